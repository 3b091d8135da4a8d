"""Solvers of one task's problem: recipes (problem, theta, batch, phi0, key) -> Solution.

Any function of this form may be used with the implicit rule, differentiable or not. `stats.residual` is the
norm of F itself at the value returned (the delta of the paper's Algorithm 2 is |phi - phi*|, at most this
over the smallest curvature).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from . import tree
from .errors import ConfigError, StructureError
from .loops import repeat_while
from .problem import Learned, Problem, Theta
from .products import check_limits
from .solution import Ending, Solution, Stats, Status

DEFAULT_MOST = 10_000
GROWTH = 10  # a residual that grew by more than this has diverged, whatever its value
FALLEN = 0.9  # a residual that is still more than this share of what it was has not fallen


class InnerSolver(Protocol):
    """A recipe for solving one task's problem."""

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """A Solution whose value is shaped like the problem's adapted leaves."""
        ...


def iterate(
    problem: Problem,
    theta: Any,
    batch: Any,
    phi0: Any,
    memory: Any,
    step: Callable,
    steps: int | None,
    tolerance: float | None,
) -> Solution:
    """The Solution of repeating `step(residual, phi, memory) -> (phi, memory)`.

    With `steps` only: a loop of fixed length, which reverse mode can go through. With a tolerance: until the
    residual's norm is at most it, or `steps` (by default 10,000), or it is not finite. A fixed number
    of steps after which |F| is over ten times that at the start ends as DIVERGED. Where F is no gradient and
    the path leads around instead of on, it ends as CYCLED (see `_watched`).
    """
    residual = lambda phi: problem.residual(phi, theta, batch)  # noqa: E731
    if tolerance is None:
        assert steps is not None

        def repeat(_: Array, state: tuple) -> tuple:
            phi, memory = state
            return step(residual(phi), phi, memory)

        # The first step outside of the loop: its slope's norm is wanted, which would cost in every step, and
        # tasks that all start at theta share its products under vmap.
        slope = residual(phi0)
        first = lax.stop_gradient(tree.norm(slope))
        state, halfway = step(slope, phi0, memory), 1 + steps // 2
        if problem.structure == "general" and halfway < steps:
            (phi, _), returned = _watched(
                residual, repeat, lax.fori_loop(1, halfway, repeat, state), steps - halfway
            )
        else:
            (phi, _), returned = lax.fori_loop(1, steps, repeat, state), None
        size = tree.norm(residual(phi))
        stats = Stats(jnp.asarray(steps), size, jnp.asarray(False), first=first, returned=returned)
        return judged(Solution(phi, stats, Status(jnp.asarray(0))), size)
    most = steps or DEFAULT_MOST

    turning = problem.structure == "general"  # then the path may lead around, and its length is wanted

    def going(state: tuple) -> Array:
        _, _, slope, count, _ = state
        size = tree.norm(slope)
        return (size > tolerance) & (count < most) & jnp.isfinite(size)

    def advance(state: tuple) -> tuple:
        phi, memory, slope, count, length = state
        moved, memory = step(slope, phi, memory)
        if turning:
            length = length + _apart(moved, phi)
        return moved, memory, residual(moved), count + 1, length

    slope = residual(phi0)
    first = tree.norm(slope)
    begun = (phi0, memory, slope, jnp.asarray(0), jnp.zeros_like(first))
    phi, _, slope, count, length = repeat_while(going, advance, begun)
    size = tree.norm(slope)
    around = (size > FALLEN * first) & (2 * _apart(phi, phi0) < length) if turning else False
    code = jnp.where(around, int(Ending.CYCLED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(size <= tolerance, int(Ending.CONVERGED), code)
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(phi, Stats(count, size, jnp.asarray(False)), Status(code))


def _watched(residual: Callable, repeat: Callable, state: tuple, steps: int) -> tuple[tuple, Array]:
    """The state after so many steps more, and |F| before them where they led back, else infinity.

    They led back where the distance between both ends is less than half of the path's length, as it is after
    more than 0.6 of a turn around a circle. A game's path may do so for ever.
    """

    def walk(i: Array, state: tuple) -> tuple:
        inner, length = state
        moved = repeat(i, inner)
        return moved, length + _apart(moved[0], inner[0])

    before = lax.stop_gradient(tree.norm(residual(state[0])))
    after, length = lax.fori_loop(0, steps, walk, (state, jnp.zeros_like(before)))
    return after, jnp.where(2 * _apart(after[0], state[0]) < length, before, jnp.inf)


def _apart(phi: Any, other: Any) -> Array:
    """The distance between two trees, through which no derivative passes."""
    return tree.norm(jax.tree.map(lambda a, b: lax.stop_gradient(a - b), phi, other))


def judged(solution: Solution, size: Array) -> Solution:
    """An inner Solution with its residual's norm as measured elsewhere, and its status by that.

    A caller that evaluates F at the solution anyway spares the solver's own evaluation: what nobody looks at
    is not computed. A solve to a tolerance has looked already, and stays as it is.
    """
    first = solution.stats.first
    if first is None:
        return solution
    noise = jnp.finfo(size.dtype).eps ** 0.5 * (1 + tree.norm(solution.value))  # a start at the solution
    code = jnp.asarray(int(Ending.STEPS_DONE))
    if solution.stats.returned is not None:
        code = jnp.where(size > FALLEN * solution.stats.returned + noise, int(Ending.CYCLED), code)
    code = jnp.where(size > GROWTH * first + noise, int(Ending.DIVERGED), code)
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(solution.value, replace(solution.stats, residual=size), Status(code))


def check_stopping(name: str, steps: int | None, tolerance: float | None, steps_name: str = "steps") -> None:
    """Refuses a solver that is not told when to stop, or told nonsense (ConfigError)."""
    check_limits(name, steps, tolerance)
    if steps is None and tolerance is None:
        raise ConfigError(
            f"{name}: when should it stop? Give {steps_name}=, tolerance= (norm of the residual), or both."
        )


def start_of(problem: Problem, theta: Any, batch: Any, phi0: Any, key: Array | None) -> Any:
    """Where a solver starts: phi0, or what the problem begins with."""
    return problem.init(theta, batch, key) if phi0 is None else phi0


@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent, phi <- phi - learning_rate * F(phi, theta, batch).

    For `steps` steps, or until |F| <= tolerance (then at most `steps`, by default 10,000). For a proximal
    problem that is the paper's inner loop (Algorithm 2, line 2). Converges for learning_rate < 2 / largest
    curvature of the problem, strength included. learning_rate: a positive number, or `learned(...)`: then it
    is part of theta, and only a rule that goes through the steps, `unrolled()`, learns it (Meta-SGD).

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> GradientDescent(0.5, steps=1)(problem, jnp.zeros(1), jnp.ones(1)).value
    Array([0.5], dtype=float32)
    """

    learning_rate: float | Learned
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("GradientDescent", self.steps, self.tolerance)
        rate = self.learning_rate
        if not isinstance(rate, Learned):
            _check_rate("GradientDescent", rate, ", or learned(...)")
        if isinstance(rate, Learned) and not rate.diagonal:
            raise ConfigError(
                f"GradientDescent: a rate learned per={rate.per!r}; accepted is per 'all', 'leaf' or "
                "'parameter', as a rate is no matrix."
            )

    def parameters(self, problem: Problem, theta: Any) -> Any:
        """Theta with what this solver learns: the logarithm of its rate, where that is `learned`."""
        if not isinstance(self.learning_rate, Learned):
            return theta
        whole = theta if isinstance(theta, Theta) else Theta(theta)
        return whole._replace(log_rate=self.learning_rate.logs(problem.split(whole.mean)))

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after descending; its value holds the problem's adapted leaves."""

        phi0 = start_of(problem, theta, batch, phi0, key)
        rates = self.rates(theta, phi0)

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            return jax.tree.map(lambda p, g, r: p - r * g, phi, slope, rates), memory

        return iterate(problem, theta, batch, phi0, None, step, self.steps, self.tolerance)

    def rates(self, theta: Any, phi: Any) -> Any:
        """The learning rate of every adapted leaf, a tree like phi."""
        rate = self.learning_rate
        if not isinstance(rate, Learned):
            return jax.tree.map(lambda _: rate, phi)
        if getattr(theta, "log_rate", None) is None:
            raise ConfigError(
                "GradientDescent: the rate is learned, so theta must be a Theta with log_rate; it came as "
                f"{type(theta).__name__}. Make it with inner.parameters(problem, theta)."
            )
        return rate.values(theta.log_rate, phi)


def _check_rate(name: str, rate: Any, more: str = "") -> None:
    """Refuses a learning rate that is neither a positive number nor traced (ConfigError)."""
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if not isinstance(rate, Tracer) and not (number and 0 < rate < float("inf")):
        raise ConfigError(f"{name}: learning_rate={rate!r}; accepted is a positive number{more}.")


@dataclass(frozen=True)
class ProximalGradient:
    """Proximal gradient descent: a step on the loss, then the anchor's exact proximal step.

    phi <- argmin_p strength/2 |p - theta|^2 + |p - (phi - learning_rate * grad loss(phi))|^2 / (2 rate)
         = phi - learning_rate * F / (1 + learning_rate * strength)

    in every parameter (Parikh and Boyd 2014, section 4.2). Converges for learning_rate < 2 / largest
    curvature of the *loss*, however large a strength is: for strengths learned per leaf or parameter, or
    prior precisions that lie decades apart, where `GradientDescent` needs a rate below 2 / the largest.
    For problems anchored at theta by one number, one a leaf or one a parameter. `steps` and `tolerance` as
    in `GradientDescent`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), jnp.array([1.0, 1e4]))
    >>> ProximalGradient(0.5, tolerance=1e-4)(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).value.round(4)
    Array([5.e-01, 2.e-04], dtype=float32)
    """

    learning_rate: float
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("ProximalGradient", self.steps, self.tolerance)
        _check_rate("ProximalGradient", self.learning_rate)

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after descending; its value holds the problem's adapted leaves."""
        if problem.kind not in ("proximal", "equilibrium"):
            raise StructureError(
                f"ProximalGradient: the problem is {problem.kind}; accepted are proximal and equilibrium "
                "problems, which have an anchor to step towards. Use GradientDescent."
            )
        phi0 = start_of(problem, theta, batch, phi0, key)
        rate = self.learning_rate
        shares = jax.tree.map(lambda s: rate / (1 + rate * s), problem.strengths(phi0, theta))

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            return jax.tree.map(lambda p, g, share: p - share * g, phi, slope, shares), memory

        return iterate(problem, theta, batch, phi0, None, step, self.steps, self.tolerance)


@dataclass(frozen=True)
class Descent:
    """Any Optax transform fed with F, for `steps` steps or until |F| <= tolerance; see `GradientDescent`.

    >>> import imaml, optax, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> solver = Descent(optax.sgd(0.2, momentum=0.5), tolerance=1e-4)
    >>> round(float(solver(problem, jnp.zeros(1), jnp.ones(1)).value[0]), 3)
    0.5
    """

    transform: Any
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("Descent", self.steps, self.tolerance)
        if not (hasattr(self.transform, "init") and hasattr(self.transform, "update")):
            raise ConfigError(
                f"Descent: {self.transform!r} is no Optax transform; pass one such as optax.adam(1e-2), "
                "or use GradientDescent(learning_rate)."
            )

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after descending; its value holds the problem's adapted leaves."""

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            updates, memory = self.transform.update(slope, memory, phi)
            return jax.tree.map(jnp.add, phi, updates), memory

        phi0 = start_of(problem, theta, batch, phi0, key)
        return iterate(
            problem, theta, batch, phi0, self.transform.init(phi0), step, self.steps, self.tolerance
        )


def looked_at(problem: Problem, theta: Any, batch: Any, phi: Any, tolerance: float) -> Solution:
    """The Solution of a solver of which only its answer is known: judged by |F| there."""
    size = tree.norm(problem.residual(phi, theta, batch))
    code = jnp.where(size <= tolerance, int(Ending.CONVERGED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(phi, Stats(jnp.asarray(1), size, jnp.asarray(False)), Status(code))


@dataclass(frozen=True)
class Custom:
    """Your own algorithm: a function (problem, theta, batch, phi0) -> phi that JAX can trace.

    phi is shaped like phi0, the problem's adapted leaves; F is problem.residual(phi, theta, batch). Nothing
    but a solution is asked of it: how it got there is neither stored nor differentiated. An answer with |F|
    above `tolerance` ends as OUT_OF_STEPS. For functions of NumPy arrays see `External`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> middle = Custom(lambda problem, theta, x, phi0: (x + theta) / 2, tolerance=1e-6)
    >>> middle(problem, jnp.zeros(1), jnp.ones(1)).value
    Array([0.5], dtype=float32)
    """

    function: Callable[[Problem, Any, Any, Any], Any]
    tolerance: float

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("Custom", None, self.tolerance)
        if not callable(self.function):
            raise ConfigError(
                f"Custom: {self.function!r} is no function (problem, theta, batch, phi0) -> phi."
            )

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution; its value holds the problem's adapted leaves."""
        phi0 = start_of(problem, theta, batch, phi0, key)
        phi = self.function(problem, theta, batch, phi0)
        if not tree.same(phi, phi0):
            raise ConfigError(
                f"Custom: the function returned {tree.shapes(phi)}; accepted is what is shaped like phi0, "
                f"{tree.shapes(phi0)}."
            )
        return looked_at(problem, theta, batch, phi, self.tolerance)
