"""Inner solvers of Optimistix (L-BFGS, nonlinear CG, Levenberg-Marquardt), and one of outside JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import StructureError
from ..core.loops import repeat_while
from ..core.solution import Ending, Solution, Stats, Status
from ..problems.base import Problem
from ..problems.losses import Composed, HalfSquares
from .base import check_stopping, start_of

DEFAULT_MOST = 1000
PATIENCE = 30  # steps without a smaller |F| after which it stops


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
        squares = isinstance(loss, Composed) and isinstance(loss.cost, HalfSquares)
        if not (squares and problem.has_precision):
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
    if not problem.has_objective:
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
