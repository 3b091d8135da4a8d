"""Inner solvers of Optimistix: L-BFGS, nonlinear conjugate gradients, Levenberg-Marquardt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import StructureError
from ..core.loops import repeat_while
from ..core.solution import Ending, Solution, Stats, Status
from ..core.tree import PyTree
from ..problems.base import Problem
from ..problems.losses import Composed, HalfSquares
from .base import Solver, check_stopping

DEFAULT_MOST = 1000
PATIENCE = 30  # steps without a smaller |F| after which it stops
Backend: TypeAlias = Any  # a solver of Optimistix, which is imported late as it takes long


class _Search(NamedTuple):
    """The state of a search.

    Attributes:
        phi: The point that Optimistix is at.
        arrays: The arrays of Optimistix' own state.
        best: The point of least |F| so far.
        size: |F| there.
        steps: The steps taken.
        stale: How many of the last ones brought no smaller |F|.
    """

    phi: PyTree
    arrays: PyTree
    best: PyTree
    size: Array
    steps: Array
    stale: Array


@dataclass(frozen=True)
class _Limited(Solver):
    """What the three have in common: when they stop, and that reverse mode does not go through them."""

    steps: int | None = None
    tolerance: float | None = None
    reversible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the limits; raises ConfigError."""
        check_stopping(type(self).__name__, self.steps, self.tolerance)


@dataclass(frozen=True)
class LBFGS(_Limited):
    """Limited-memory BFGS with a line search, through Optimistix.

    The line search compares values of the objective, so |F| below the root of the dtype's precision is mostly
    out of reach: it ends as STAGNATED where 30 steps brought nothing. It needs a problem that minimises
    something, and has no reverse mode, so it is not for `unrolled()`.

    Args:
        steps: The most steps (by default 1,000); a step is one trial of the line search.
        tolerance: The |F| to reach, or None for all steps.
        memory: The number of pairs of steps and slopes kept.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> LBFGS(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Nocedal and Wright (2006), Numerical optimization, Algorithm 7.5.
    """

    memory: int = 10

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""
        import optimistix

        backend = optimistix.LBFGS(0.0, 0.0, history_length=self.memory)
        return _minimised(self, backend, problem, theta, batch, phi0)


@dataclass(frozen=True)
class NonlinearCG(_Limited):
    """Nonlinear conjugate gradients (Polak and Ribiere) with a line search, through Optimistix; see `LBFGS`.

    Args:
        steps: The most steps (by default 1,000); a step is one trial of the line search.
        tolerance: The |F| to reach, or None for all steps.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> NonlinearCG(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Nocedal and Wright (2006), Numerical optimization, section 5.2.
    """

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""
        import optimistix

        return _minimised(self, optimistix.NonlinearCG(0.0, 0.0), problem, theta, batch, phi0)


@dataclass(frozen=True)
class LevenbergMarquardt(_Limited):
    """Levenberg-Marquardt, through Optimistix, for `least_squares(residuals, strength)`; see `LBFGS`.

    Each step factorises the Jacobian, so it is for problems of up to some thousand parameters.

    Args:
        steps: The most steps (by default 1,000).
        tolerance: The |F| to reach, or None for all steps.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.least_squares(lambda phi, x: phi - x, 1.0)
        >>> LevenbergMarquardt(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Nocedal and Wright (2006), Numerical optimization, section 10.3.
    """

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""
        import optimistix

        loss = problem.loss
        squares = isinstance(loss, Composed) and isinstance(loss.cost, HalfSquares)
        if not (squares and problem.has_precision):
            raise StructureError(
                "LevenbergMarquardt: made for least_squares(residuals, strength); this problem is "
                f"{problem.kind}. Use LBFGS or NewtonCG."
            )

        # The objective is half the sum of squares of the loss's residuals and of S^(1/2) (phi - theta).
        def residuals(phi: PyTree, _: None) -> tuple[PyTree, None]:
            apart = tree.ravel(problem.displacement(phi, theta))[0]
            pull = problem.precision(phi, theta).root(apart)
            return (loss.outputs(problem.full(phi, theta), batch), pull), None

        backend = optimistix.LevenbergMarquardt(0.0, 0.0)
        return _stepped(self, backend, residuals, problem, theta, batch, phi0)


def _minimised(
    recipe: _Limited, backend: Backend, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree
) -> Solution:
    """The Solution by one of Optimistix' minimisers."""
    if not problem.has_objective:
        raise StructureError(
            f"{type(recipe).__name__} searches along lines for less of an objective, and a {problem.kind} "
            "problem has none; use GradientDescent, or another solver of F = 0."
        )
    objective = lambda phi, _: (problem.objective(phi, theta, batch), None)  # noqa: E731
    return _stepped(recipe, backend, objective, problem, theta, batch, phi0)


def _stepped(
    recipe: _Limited,
    backend: Backend,
    function: Callable[[PyTree, None], tuple[PyTree, None]],
    problem: Problem,
    theta: PyTree,
    batch: PyTree,
    phi0: PyTree,
) -> Solution:
    """The Solution of an Optimistix solver, taken step by step so that it stops by |F| as all of ours do.

    What it returns is the point of least |F| seen: a trial of a line search may be worse than the one before.
    """
    import equinox

    tags: frozenset[object] = frozenset()
    options: dict[str, object] = {}
    residual = lambda phi: tree.norm(problem.residual(phi, theta, batch))  # noqa: E731
    shape, none = jax.eval_shape(lambda phi: function(phi, None), phi0)
    state = backend.init(function, phi0, None, options, shape, none, tags)
    # Optimistix' state holds functions beside arrays, and a loop carries arrays only.
    arrays, rest = equinox.partition(state, equinox.is_array)
    most = recipe.steps or DEFAULT_MOST
    threshold = 0.0 if recipe.tolerance is None else recipe.tolerance

    def going(search: _Search) -> Array:
        return (search.size > threshold) & (search.steps < most) & (search.stale < PATIENCE)

    def advance(search: _Search) -> _Search:
        state = equinox.combine(search.arrays, rest)
        phi, state, _ = backend.step(function, search.phi, None, options, state, tags)
        size = residual(phi)
        better = size < search.size
        return _Search(
            phi=phi,
            arrays=equinox.filter(state, equinox.is_array),
            best=jax.tree.map(lambda a, b: jnp.where(better, a, b), phi, search.best),
            size=jnp.where(better, size, search.size),
            steps=search.steps + 1,
            stale=jnp.where(better, 0, search.stale + 1),
        )

    begin = _Search(phi0, arrays, phi0, residual(phi0), jnp.asarray(0), jnp.asarray(0))
    end = repeat_while(going, advance, begin)
    code = jnp.asarray(int(Ending.STEPS_DONE))
    if recipe.tolerance is not None:
        failed = jnp.where(end.stale < PATIENCE, int(Ending.OUT_OF_STEPS), int(Ending.STAGNATED))
        code = jnp.where(end.size <= recipe.tolerance, int(Ending.CONVERGED), failed)
    code = jnp.where(jnp.isfinite(end.size), code, int(Ending.NOT_FINITE))
    return Solution(end.best, Stats(end.steps, end.size, jnp.asarray(False)), Status(code))
