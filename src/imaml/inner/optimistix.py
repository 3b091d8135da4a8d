"""Inner solvers of Optimistix: L-BFGS, nonlinear conjugate gradients, Levenberg-Marquardt."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import StructureError
from ..core.fields import PositiveFloat, PositiveInt
from ..core.loops import repeat_while
from ..core.solution import Ending, Solution
from ..core.tree import Tree
from ..problems.losses import Composed, HalfSquares
from .base import Instance, Stepping, to_tolerance

PATIENCE = 30  # steps without a smaller |F| after which it stops
Backend: TypeAlias = Any  # a solver of Optimistix, which is imported in calls only, as it takes long
Function = Callable[[Tree, None], tuple[Tree, None]]  # what Optimistix minimises, of phi and no arguments


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

    phi: Tree
    arrays: Tree
    best: Tree
    size: Array
    steps: Array
    stale: Array


@dataclass(frozen=True)
class _Wrapped(Stepping[None]):
    """The base of the solvers of Optimistix; a subclass defines `_backend`."""

    steps: PositiveInt | None = None
    tolerance: PositiveFloat | None = None
    reversible: ClassVar[bool] = False
    minimises: ClassVar[bool] = True
    most: ClassVar[int] = 1000

    def _backend(self, optimistix: ModuleType) -> Backend:
        """The solver of Optimistix, given its module."""
        raise NotImplementedError

    def _function(self, task: Instance) -> Function:
        """What that solver minimises; by default the objective."""
        return lambda phi, _: (task.objective(phi), None)

    def _solve(self, task: Instance) -> Solution:
        """Take the solver's steps one by one, so that it stops by |F| as all of ours do.

        The Solution is the point of least |F| seen: a trial of a line search may be worse than the last.
        """
        import equinox
        import optimistix

        backend, function = self._backend(optimistix), self._function(task)
        tags: frozenset[object] = frozenset()
        options: dict[str, object] = {}
        shape, none = jax.eval_shape(lambda phi: function(phi, None), task.start)
        state = backend.init(function, task.start, None, options, shape, none, tags)
        # Optimistix' state holds functions as well as arrays, and a loop carries arrays only.
        arrays, rest = equinox.partition(state, equinox.is_array)
        most = self.steps or self.most
        threshold = 0.0 if self.tolerance is None else self.tolerance

        # It stops at the tolerance, after `most` steps, or after PATIENCE steps without a smaller |F|.
        def going(search: _Search) -> Array:
            return (search.size > threshold) & (search.steps < most) & (search.stale < PATIENCE)

        def advance(search: _Search) -> _Search:
            state = equinox.combine(search.arrays, rest)
            phi, state, _ = backend.step(function, search.phi, None, options, state, tags)
            size = task.size(phi)
            better = size < search.size
            return _Search(
                phi=phi,
                arrays=equinox.filter(state, equinox.is_array),
                best=jax.tree.map(lambda a, b: jnp.where(better, a, b), phi, search.best),
                size=jnp.where(better, size, search.size),
                steps=search.steps + 1,
                stale=jnp.where(better, 0, search.stale + 1),
            )

        begin = _Search(task.start, arrays, task.start, task.size(task.start), jnp.asarray(0), jnp.asarray(0))
        end = repeat_while(going, advance, begin)
        failed: Array | int = int(Ending.STEPS_DONE)
        if self.tolerance is not None:
            failed = jnp.where(end.stale < PATIENCE, int(Ending.OUT_OF_STEPS), int(Ending.STAGNATED))
        return to_tolerance(end.best, end.steps, end.size, self.tolerance, failed)


@dataclass(frozen=True)
class LBFGS(_Wrapped):
    """Limited-memory BFGS with a line search, through Optimistix.

    The line search compares values of the objective, so it seldom reaches an |F| below the square root of the
    dtype's precision. It ends as STAGNATED if 30 steps bring no progress. It needs a problem that minimises
    something, and has no reverse mode, so it does not work with `unrolled()`.

    Args:
        steps: The most steps (by default 1,000); a step is one trial of the line search.
        tolerance: The |F| to reach, or None for all steps.
        memory: The number of pairs of steps and slopes kept.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> LBFGS(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Nocedal and Wright (2006), Numerical optimization, Algorithm 7.5.
    """

    memory: PositiveInt = 10

    def _backend(self, optimistix: ModuleType) -> Backend:
        """L-BFGS; its own tolerances of 0 are never reached."""
        return optimistix.LBFGS(0.0, 0.0, history_length=self.memory)


@dataclass(frozen=True)
class NonlinearCG(_Wrapped):
    """Nonlinear conjugate gradients (Polak and Ribiere) with a line search, through Optimistix; see `LBFGS`.

    Args:
        steps: The most steps (by default 1,000); a step is one trial of the line search.
        tolerance: The |F| to reach, or None for all steps.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> NonlinearCG(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Nocedal and Wright (2006), Numerical optimization, section 5.2.
    """

    def _backend(self, optimistix: ModuleType) -> Backend:
        """Nonlinear conjugate gradients."""
        return optimistix.NonlinearCG(0.0, 0.0)


@dataclass(frozen=True)
class LevenbergMarquardt(_Wrapped):
    """Levenberg-Marquardt, through Optimistix, for `least_squares(residuals, strength)`; see `LBFGS`.

    Each step factorises the Jacobian, so it suits problems of up to a few thousand parameters.

    Args:
        steps: The most steps (by default 1,000).
        tolerance: The |F| to reach, or None for all steps.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.least_squares(lambda phi, x: phi - x, 1.0)
        >>> LevenbergMarquardt(tolerance=1e-5)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Nocedal and Wright (2006), Numerical optimization, section 10.3.
    """

    def _backend(self, optimistix: ModuleType) -> Backend:
        """Levenberg-Marquardt."""
        return optimistix.LevenbergMarquardt(0.0, 0.0)

    def _function(self, task: Instance) -> Function:
        """The residuals of the loss and S^(1/2) (phi - theta); the objective is half their squares' sum."""
        problem, loss = task.problem, task.problem.loss
        squares = isinstance(loss, Composed) and isinstance(loss.cost, HalfSquares)
        if not (squares and problem.has_precision):
            raise StructureError(
                "LevenbergMarquardt: expected a problem made by least_squares(residuals, strength), got "
                f"{problem.kind}. Hint: use LBFGS or NewtonCG."
            )

        def residuals(phi: Tree, _: None) -> tuple[Tree, None]:
            away = tree.ravel(problem.displacement(phi, task.theta))[0]
            pull = problem.precision(phi, task.theta).root(away)
            return (loss.outputs(problem.full(phi, task.theta), task.batch), pull), None

        return residuals
