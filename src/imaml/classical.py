"""Inner solvers of Optimistix (L-BFGS, nonlinear CG, Levenberg-Marquardt), and one of outside JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from . import tree
from .errors import ConfigError, StructureError
from .inner import check_stopping, looked_at, start_of
from .loops import repeat_while
from .problem import Composed, Problem, composed, proximal
from .solution import Ending, Solution, Stats, Status

DEFAULT_MOST = 1000
PATIENCE = 30  # steps without a smaller |F| after which it stops


@dataclass(frozen=True)
class HalfSquares:
    """1/2 |z|^2, the cost of residuals."""

    def __call__(self, residuals: Any, batch: Any) -> Array:
        """The cost, a scalar."""
        return 0.5 * tree.dot(residuals, residuals)


def least_squares(residuals: Callable[[Any, Any], Any], strength: Any, adapt: Any = None) -> Problem:
    """The problem min_phi 1/2 |residuals(phi, batch)|^2 + strength/2 |phi - theta|^2.

    Its curvature is Gauss-Newton's. residuals: (phi, batch) -> any tree; for a mean over n rows divide by
    sqrt(n). `LevenbergMarquardt` needs such a problem. The other arguments as for `proximal`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = least_squares(lambda phi, x: phi - x, 1.0)
    >>> problem.residual(jnp.ones(2), jnp.zeros(2), jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """
    return proximal(composed(residuals, HalfSquares()), strength, adapt, curvature="gauss-newton")


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS with a line search, through Optimistix; `memory` pairs are kept.

    For `steps`, or until |F| <= tolerance (then at most `steps`, by default 1,000); a step is one trial of
    the line search. As that compares values of the objective, |F| below the root of the dtype's precision is
    mostly out of reach: it stops, STAGNATED, where 30 steps brought nothing. Needs a problem that minimises
    something; has no reverse mode, so not for `unrolled()`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> LBFGS(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
    Array([0.5], dtype=float32)
    """

    steps: int | None = None
    tolerance: float | None = None
    memory: int = 10
    reversible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("LBFGS", self.steps, self.tolerance)

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution; its value holds the problem's adapted leaves."""
        import optimistix

        solver = optimistix.LBFGS(0.0, 0.0, history_length=self.memory)
        return _minimised(self, solver, problem, theta, batch, start_of(problem, theta, batch, phi0, key))


@dataclass(frozen=True)
class NonlinearCG:
    """Nonlinear conjugate gradients (Polak and Ribiere) with a line search, through Optimistix; see `LBFGS`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> NonlinearCG(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
    Array([0.5], dtype=float32)
    """

    steps: int | None = None
    tolerance: float | None = None
    reversible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("NonlinearCG", self.steps, self.tolerance)

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution; its value holds the problem's adapted leaves."""
        import optimistix

        solver = optimistix.NonlinearCG(0.0, 0.0)
        return _minimised(self, solver, problem, theta, batch, start_of(problem, theta, batch, phi0, key))


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Levenberg-Marquardt, through Optimistix, for `least_squares(residuals, strength)`; see `LBFGS`.

    Each step factors the Jacobian, so for problems of up to some thousand parameters.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.least_squares(lambda phi, x: phi - x, 1.0)
    >>> LevenbergMarquardt(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
    Array([0.5], dtype=float32)
    """

    steps: int | None = None
    tolerance: float | None = None
    reversible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("LevenbergMarquardt", self.steps, self.tolerance)

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution; its value holds the problem's adapted leaves."""
        import optimistix

        loss = problem.loss
        if problem.kind != "proximal" or not (
            isinstance(loss, Composed) and isinstance(loss.cost, HalfSquares)
        ):
            raise StructureError(
                "LevenbergMarquardt: made for least_squares(residuals, strength); this problem is "
                f"{problem.kind}. Use LBFGS or NewtonCG."
            )

        def residuals(phi: Any, _: Any) -> Any:
            apart = tree.ravel(problem.displacement(phi, theta))[0]
            pull = problem.precision(phi, theta).root(apart)
            return (loss.outputs(problem.full(phi, theta), batch), pull), None

        start = start_of(problem, theta, batch, phi0, key)
        solver = optimistix.LevenbergMarquardt(0.0, 0.0)
        return _stepped(self, solver, residuals, problem, theta, batch, start)


def _minimised(recipe: Any, solver: Any, problem: Problem, theta: Any, batch: Any, start: Any) -> Solution:
    """The Solution by one of Optimistix' minimisers."""
    if problem.objective_of is None:
        raise StructureError(
            f"{type(recipe).__name__} searches along lines for less of an objective, and a {problem.kind} "
            "problem has none; use GradientDescent, or another solver of F = 0."
        )
    objective = lambda phi, _: (problem.objective(phi, theta, batch), None)  # noqa: E731
    return _stepped(recipe, solver, objective, problem, theta, batch, start)


def _stepped(
    recipe: Any, solver: Any, function: Callable, problem: Problem, theta: Any, batch: Any, start: Any
) -> Solution:
    """The Solution of an Optimistix solver, taken step by step so that it stops by |F| as all of ours do.

    What it returns is the point of least |F| seen: a trial of a line search may be worse than the one before.
    """
    import equinox

    tags: frozenset[object] = frozenset()
    options: dict[str, Any] = {}
    residual = lambda phi: tree.norm(problem.residual(phi, theta, batch))  # noqa: E731
    shape, none = jax.eval_shape(lambda phi: function(phi, None), start)
    state = solver.init(function, start, None, options, shape, none, tags)
    arrays, rest = equinox.partition(state, equinox.is_array)
    most = recipe.steps or DEFAULT_MOST
    threshold = 0.0 if recipe.tolerance is None else recipe.tolerance

    def going(carry: tuple) -> Array:
        _, _, _, size, count, stale = carry
        return (size > threshold) & (count < most) & (stale < PATIENCE)

    def advance(carry: tuple) -> tuple:
        phi, arrays, best, size, count, stale = carry
        phi, state, _ = solver.step(function, phi, None, options, equinox.combine(arrays, rest), tags)
        new = residual(phi)
        better = new < size
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), phi, best)
        arrays, stale = equinox.filter(state, equinox.is_array), jnp.where(better, 0, stale + 1)
        return phi, arrays, best, jnp.where(better, new, size), count + 1, stale

    first = (start, arrays, start, residual(start), jnp.asarray(0), jnp.asarray(0))
    _, _, best, size, count, stale = repeat_while(going, advance, first)
    code = jnp.asarray(int(Ending.STEPS_DONE))
    if recipe.tolerance is not None:
        failed = jnp.where(stale < PATIENCE, int(Ending.OUT_OF_STEPS), int(Ending.STAGNATED))
        code = jnp.where(size <= recipe.tolerance, int(Ending.CONVERGED), failed)
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(best, Stats(count, size, jnp.asarray(False)), Status(code))


@dataclass(frozen=True)
class External:
    """A solver that JAX can neither differentiate nor trace: a function of NumPy arrays, run on the host.

    function: (objective, x0) -> x, with x0 and x flat vectors of shape (n,) and objective: x -> (value,
    gradient), as `scipy.optimize.minimize(objective, x0, jac=True).x` takes it. Only a solution is asked of
    it: the implicit rule has the meta-gradient from that alone. Under vmap it is called task after task. An
    answer with |F| above `tolerance` ends as OUT_OF_STEPS, an error it raises is raised.

    >>> import imaml, jax.numpy as jnp, scipy.optimize
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> solver = External(lambda f, x: scipy.optimize.minimize(f, x, jac=True).x, tolerance=1e-3)
    >>> round(float(solver(problem, jnp.zeros(1), jnp.ones(1)).value[0]), 3)
    0.5
    """

    function: Callable[[Callable, np.ndarray], np.ndarray]
    tolerance: float
    steps: ClassVar[None] = None
    reversible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("External", None, self.tolerance)
        if not callable(self.function):
            raise ConfigError(f"External: {self.function!r} is no function (objective, x0) -> x.")

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution; its value holds the problem's adapted leaves."""
        if problem.objective_of is None:
            raise StructureError(
                f"External: hands an objective to its function, and a {problem.kind} problem has none."
            )
        flat, unravel = tree.ravel(start_of(problem, theta, batch, phi0, key))

        def objective(x: Array, given: Any) -> tuple[Array, Array]:
            problem, theta, batch = given
            return jax.value_and_grad(lambda v: problem.objective(unravel(v), theta, batch))(x)

        compiled = jax.jit(objective)
        given = (problem, theta, batch)

        def host(x0: Any, given: Any) -> np.ndarray:
            def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
                value, slope = compiled(jnp.asarray(x, flat.dtype), given)
                return float(value), np.asarray(slope, np.float64)

            found = np.asarray(self.function(evaluate, np.asarray(x0, np.float64)), flat.dtype)
            if found.shape != flat.shape:
                raise ConfigError(
                    f"External: the function returned shape {found.shape}; accepted is that of x0, "
                    f"{flat.shape}."
                )
            return found

        kind = jax.ShapeDtypeStruct(flat.shape, flat.dtype)
        phi = unravel(jax.pure_callback(host, kind, flat, given, vmap_method="sequential"))
        return looked_at(problem, theta, batch, phi, self.tolerance)
