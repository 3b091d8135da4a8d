"""Code that inner solvers share: the protocol, the loop over steps, and the status, which follows from |F|.

An inner solver finds phi with F(phi, theta, batch) = 0. Any function with the signature of `InnerSolver` may
be used with the implicit rule, differentiable or not. `stats.residual` is the norm of F itself at the value
returned; the delta of the paper's Algorithm 2, |phi - phi*|, is at most this over the smallest curvature.

A new solver that repeats a step is a subclass of `Stepping` that defines `iteration`. One that does not is a
subclass of `Solver` that defines `_solve`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.fields import Checked, PositiveFloat, PositiveInt
from ..core.loops import repeat_while
from ..core.solution import Ending, Solution, Stats, Status
from ..core.tree import Tree
from ..problems.base import Key, Problem

GROWTH = 10  # a residual that grew by more than this has diverged, whatever its value
FALLEN = 0.9  # a residual that is still more than this share of what it was has not fallen

M = TypeVar("M")  # what a solver remembers from step to step, a tree of arrays
Step = Callable[[Tree, Tree, M], tuple[Tree, M]]  # (F(phi), phi, memory) -> (phi, memory)


class InnerSolver(Protocol):
    """Anything that solves one task's problem; see `Solver` for the base class of ours."""

    def __call__(
        self, problem: Problem, theta: Tree, batch: Tree, phi0: Tree | None = None, key: Key = None
    ) -> Solution:
        """Solve F(phi, theta, batch) = 0.

        Args:
            problem: The inner problem, for example `proximal(loss, 0.5)`.
            theta: Meta-parameters, a tree of float arrays.
            batch: The support set; leaves (rows, ...).
            phi0: Where to start, shaped like the adapted parameters; by default where the problem begins.
            key: A random key, for solvers and problems that draw numbers.

        Returns:
            A Solution whose value is shaped like the problem's adapted parameters.
        """
        ...


class Instance(NamedTuple):
    """The problem of one task, as a solver gets it.

    Attributes:
        problem: The inner problem.
        theta: Meta-parameters.
        batch: The support set.
        start: The first phi.
        key: A random key, or None.
    """

    problem: Problem
    theta: Tree
    batch: Tree
    start: Tree
    key: Key

    @property
    def may_cycle(self) -> bool:
        """Whether F is not a gradient, so that steps against it may go around the solution."""
        return self.problem.structure == "general"

    def residual(self, phi: Tree) -> Tree:
        """Compute F(phi, theta, batch).

        Args:
            phi: Adapted parameters.

        Returns:
            F, a tree shaped like ``phi``.
        """
        return self.problem.residual(phi, self.theta, self.batch)

    def size(self, phi: Tree) -> Array:
        """Compute |F(phi, theta, batch)|.

        Args:
            phi: Adapted parameters.

        Returns:
            A scalar.
        """
        return tree.norm(self.residual(phi))

    def objective(self, phi: Tree) -> Array:
        """Compute the scalar whose gradient is F.

        Args:
            phi: Adapted parameters.

        Returns:
            A scalar; only of problems with `has_objective`.
        """
        value = self.problem.objective(phi, self.theta, self.batch)
        assert value is not None
        return value


class Solver:
    """The base of this package's inner solvers; a subclass defines `_solve`.

    Attributes:
        reversible: Whether reverse mode goes through its steps, as `unrolled()` needs.
        minimises: Whether it needs a problem that minimises an objective.
        linearises: Whether its steps depend on the derivative of F, not on F alone.
        solves: Whether it goes for a solution; what it returns is else a function of theta and the batch
            alone, whose derivatives are those of its steps.
    """

    reversible: ClassVar[bool] = True
    minimises: ClassVar[bool] = False
    linearises: ClassVar[bool] = False
    solves: ClassVar[bool] = True

    def __call__(
        self, problem: Problem, theta: Tree, batch: Tree, phi0: Tree | None = None, key: Key = None
    ) -> Solution:
        """Solve F(phi, theta, batch) = 0.

        Args:
            problem: The inner problem, for example `proximal(loss, 0.5)`.
            theta: Meta-parameters, a tree of float arrays.
            batch: The support set; leaves (rows, ...).
            phi0: Where to start, shaped like the adapted parameters; by default where the problem begins.
            key: A random key, for solvers and problems that draw numbers.

        Returns:
            A Solution whose value is shaped like the problem's adapted parameters, and whose residual is |F|.

        Raises:
            StructureError: If the solver is not made for problems of that kind.
        """
        if self.minimises and not problem.has_objective:
            raise StructureError(
                f"{type(self).__name__}: expected a problem that minimises an objective, got {problem.kind}. "
                "Hint: use GradientDescent, or another solver of F = 0."
            )
        start = problem.init(theta, batch, key) if phi0 is None else phi0
        return self._solve(Instance(problem, theta, batch, start, key))

    def _solve(self, task: Instance) -> Solution:
        """The Solution from a given start."""
        raise NotImplementedError


class Stepping(Checked, Solver, Generic[M]):
    """The base of solvers that repeat a step; a subclass has the fields and defines `iteration`.

    Attributes:
        steps: The number of steps; with a tolerance, the most.
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None.
        most: The most steps where only a tolerance is given.
    """

    steps: PositiveInt | None
    tolerance: PositiveFloat | None
    most: ClassVar[int] = 10_000

    def __post_init__(self) -> None:
        """Check the fields, and that it has something to stop at (ConfigError)."""
        super().__post_init__()
        check_stopping(type(self).__name__, self.steps, self.tolerance)

    def iteration(self, task: Instance) -> tuple[M, Step[M]]:
        """Prepare the iteration.

        Args:
            task: The problem of one task.

        Returns:
            What the solver remembers at the start, a tree of arrays, and the step, which maps F(phi), phi and
            that memory to the next phi and memory.
        """
        raise NotImplementedError

    def _solve(self, task: Instance) -> Solution:
        """Take the steps; with no tolerance so many that reverse mode can go through them."""
        memory, step = self.iteration(task)
        if self.tolerance is not None:
            return until(task, memory, step, self.steps or self.most, self.tolerance, task.may_cycle)
        assert self.steps is not None
        return _fixed(task, memory, step, self.steps)


@dataclass(frozen=True)
class Rated(Stepping[M]):
    """The base of solvers that have a learning rate.

    Attributes:
        learning_rate: A positive number, which may be traced.
    """

    learning_rate: PositiveFloat
    steps: PositiveInt | None = None
    tolerance: PositiveFloat | None = None

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        if isinstance(self.learning_rate, Tracer):  # its value is not known yet
            replace(self, learning_rate=1.0)
        else:
            super().__post_init__()


def _fixed(task: Instance, memory: M, step: Step[M], steps: int) -> Solution:
    """The Solution after so many steps.

    It ends as DIVERGED if |F| is then over ten times that at the start. Where F is not a gradient, it ends as
    CYCLED if the second half of the path leads back to where it began, and |F| does not fall. It leads back
    if the distance between both ends is less than half of the path's length, as it is after more than 0.6 of
    a turn around a circle. A game's path may do so for ever.
    """

    def advance(_: Array, state: tuple[Tree, M]) -> tuple[Tree, M]:
        phi, memory = state
        return step(task.residual(phi), phi, memory)

    def advance_measured(i: Array, walk: tuple[tuple[Tree, M], Array]) -> tuple[tuple[Tree, M], Array]:
        state, length = walk
        after = advance(i, state)
        return after, length + _distance(after[0], state[0])

    # The first step outside of the loop: its slope's norm is wanted, which would cost in every step, and
    # tasks that all start at theta share its products under vmap.
    slope = task.residual(task.start)
    first = lax.stop_gradient(tree.norm(slope))
    state, halfway, returned = step(slope, task.start, memory), 1 + steps // 2, None
    if task.may_cycle and halfway < steps:
        # The second half is measured: the length of its path, and where it leads.
        middle = lax.fori_loop(1, halfway, advance, state)
        before = lax.stop_gradient(task.size(middle[0]))
        walk = middle, jnp.zeros_like(before)
        state, length = lax.fori_loop(0, steps - halfway, advance_measured, walk)
        rounding = jnp.finfo(before.dtype).eps ** 0.5 * (1 + tree.norm(middle[0]))
        around = (2 * _distance(state[0], middle[0]) < length) & (length > rounding)
        returned = jnp.where(around, before, jnp.inf)
    else:
        state = lax.fori_loop(1, steps, advance, state)
    return of_fixed_length(task, state[0], steps, first, returned)


def of_fixed_length(
    task: Instance, phi: Tree, steps: int, first: Array, returned: Array | None = None
) -> Solution:
    """Make the Solution of a loop of fixed length.

    Args:
        task: The problem of one task.
        phi: The result of the loop.
        steps: The number of steps taken.
        first: |F| at the start.
        returned: See `Stats.returned`.

    Returns:
        The Solution, judged by |F| at its value.
    """
    size = task.size(phi)
    # Where it started at a solution, |F| was rounding at first, and may grow to many times that.
    rounding = jnp.finfo(size.dtype).eps ** 0.5 * (1 + tree.norm(phi))
    first = jnp.where(_distance(phi, task.start) > rounding, first, jnp.inf)
    stats = Stats(jnp.asarray(steps), size, jnp.asarray(False), first=first, returned=returned)
    return judged(Solution(phi, stats, Status(jnp.asarray(0))), size)


class _Until(NamedTuple, Generic[M]):
    """The state of a loop to a tolerance: F at phi, the steps taken, and the length of the path."""

    phi: Tree
    memory: M
    slope: Tree
    steps: Array
    length: Array


def until(
    task: Instance, memory: M, step: Step[M], most: int, tolerance: float, may_cycle: bool = False
) -> Solution:
    """Repeat a step until |F| is small enough.

    Args:
        task: The problem of one task.
        memory: What the solver remembers at the start, a tree of arrays.
        step: Maps F(phi), phi and the memory to the next phi and memory.
        most: The most steps.
        tolerance: Stop where |F| is at most this.
        may_cycle: Whether the path may go around the solution, which then ends as CYCLED.

    Returns:
        The Solution.
    """

    def going(state: _Until[M]) -> Array:
        size = tree.norm(state.slope)
        return (size > tolerance) & (state.steps < most) & jnp.isfinite(size)

    def advance(state: _Until[M]) -> _Until[M]:
        moved, memory = step(state.slope, state.phi, state.memory)
        length = state.length + _distance(moved, state.phi) if may_cycle else state.length
        return _Until(moved, memory, task.residual(moved), state.steps + 1, length)

    slope = task.residual(task.start)
    first = tree.norm(slope)
    begin = _Until(task.start, memory, slope, jnp.asarray(0), jnp.zeros_like(first))
    end = repeat_while(going, advance, begin)
    size = tree.norm(end.slope)
    # It went around where F has not fallen and the ends are closer than half the path (see `_fixed`).
    failed: Array | int = int(Ending.OUT_OF_STEPS)
    if may_cycle:
        around = (size > FALLEN * first) & (2 * _distance(end.phi, task.start) < end.length)
        failed = jnp.where(around, int(Ending.CYCLED), failed)
    return to_tolerance(end.phi, end.steps, size, tolerance, failed)


def to_tolerance(
    value: Tree,
    steps: Array,
    size: Array,
    tolerance: float | None,
    failed: Array | int = int(Ending.OUT_OF_STEPS),
    finite: Array | bool = True,
) -> Solution:
    """Make the Solution of a solve to a tolerance, or of one that ends otherwise.

    Args:
        value: The solution.
        steps: The number of steps taken.
        size: |F| there.
        tolerance: The |F| up to which it counts as converged; None if no |F| does.
        failed: The `Ending` code above that.
        finite: Whether all else is finite.

    Returns:
        The Solution; NOT_FINITE where |F| is not finite.
    """
    converged = False if tolerance is None else size <= tolerance
    code = jnp.where(converged, int(Ending.CONVERGED), failed)
    code = jnp.where(jnp.isfinite(size) & finite, code, int(Ending.NOT_FINITE))
    return Solution(value, Stats(steps, size, jnp.asarray(False)), Status(code))


def _distance(phi: Tree, other: Tree) -> Array:
    """The Euclidean distance between two trees, through which no derivative passes."""
    return tree.norm(jax.tree.map(lambda a, b: lax.stop_gradient(a - b), phi, other))


def judged(solution: Solution, size: Array) -> Solution:
    """Give an inner Solution its residual's norm as measured elsewhere, and its status by that.

    A caller that evaluates F at the solution anyway spares the solver's own evaluation: XLA removes what
    nobody reads. A solve to a tolerance has its status already, and stays as it is.

    Args:
        solution: The Solution.
        size: |F| at its value, a scalar.

    Returns:
        The Solution with that residual.
    """
    first = solution.stats.first
    if first is None:
        return solution
    code = jnp.asarray(int(Ending.STEPS_DONE))
    if solution.stats.returned is not None:
        code = jnp.where(size > FALLEN * solution.stats.returned, int(Ending.CYCLED), code)
    code = jnp.where(size > GROWTH * first, int(Ending.DIVERGED), code)
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(solution.value, replace(solution.stats, residual=size), Status(code))


def check_stopping(name: str, steps: int | None, tolerance: float | None, steps_name: str = "steps") -> None:
    """Check that a solver has something to stop at.

    Args:
        name: The solver's name, for the message.
        steps: The most steps, or None.
        tolerance: The |F| to reach, or None.
        steps_name: The name of the argument that holds the steps.

    Raises:
        ConfigError: If both are None.
    """
    if steps is None and tolerance is None:
        raise ConfigError(
            f"{name}: expected {steps_name}=, tolerance= (the norm of the residual), or both, got neither."
        )
