"""What inner solvers share: the protocol, the loop over steps, and the status that follows from |F|.

An inner solver finds phi with F(phi, theta, batch) = 0. Any function of the form of `InnerSolver` may be used
with the implicit rule, differentiable or not. `stats.residual` is the norm of F itself at the value returned;
the delta of the paper's Algorithm 2, |phi - phi*|, is at most this over the smallest curvature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError
from ..core.loops import repeat_while
from ..core.solution import Ending, Solution, Stats, Status
from ..core.tree import PyTree
from ..linear.base import check_limits
from ..problems.base import Problem

DEFAULT_MOST = 10_000
GROWTH = 10  # a residual that grew by more than this has diverged, whatever its value
FALLEN = 0.9  # a residual that is still more than this share of what it was has not fallen

M = TypeVar("M")  # what a solver remembers from step to step, a tree of arrays
Step = Callable[[PyTree, PyTree, M], tuple[PyTree, M]]  # (F(phi), phi, memory) -> (phi, memory)


class InnerSolver(Protocol):
    """Anything that solves one task's problem; see `Solver` for the base class of ours."""

    def __call__(
        self,
        problem: Problem,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree | None = None,
        key: Array | None = None,
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


class Solver:
    """The base of this package's inner solvers; a subclass defines `_solve`.

    Attributes:
        reversible: Whether reverse mode goes through its steps, as `unrolled()` needs.
    """

    reversible: ClassVar[bool] = True

    def __call__(
        self,
        problem: Problem,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree | None = None,
        key: Array | None = None,
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
        return self._solve(problem, theta, batch, start_of(problem, theta, batch, phi0, key), key)

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """The Solution from a given start."""
        raise NotImplementedError


class _Fixed(NamedTuple, Generic[M]):
    """The state of a loop of fixed length."""

    phi: PyTree
    memory: M


class _Walk(NamedTuple, Generic[M]):
    """The state of such a loop, with the length of the path that phi took."""

    inner: _Fixed[M]
    length: Array


class _Until(NamedTuple, Generic[M]):
    """The state of a loop to a tolerance: F at phi, the steps taken, and the length of the path."""

    phi: PyTree
    memory: M
    slope: PyTree
    steps: Array
    length: Array


def iterate(
    problem: Problem,
    theta: PyTree,
    batch: PyTree,
    phi0: PyTree,
    memory: M,
    step: Step[M],
    steps: int | None,
    tolerance: float | None,
) -> Solution:
    """Repeat a step.

    Args:
        problem: The inner problem.
        theta: Meta-parameters.
        batch: The support set.
        phi0: Where to start.
        memory: What the solver remembers at the start, a tree of arrays.
        step: Maps F(phi), phi and the memory to the next phi and memory.
        steps: The number of steps, or the most with a tolerance (then 10,000 by default).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None.

    Returns:
        The Solution. Without a tolerance the loop has a fixed length, which reverse mode can go through. It
        ends as DIVERGED if |F| is then over ten times that at the start. Where F is no gradient and the path
        leads around instead of on, it ends as CYCLED (see `watched`).
    """
    residual = lambda phi: problem.residual(phi, theta, batch)  # noqa: E731
    if tolerance is None:
        assert steps is not None
        return _fixed(residual, problem.structure == "general", phi0, memory, step, steps)
    return _until(
        residual, problem.structure == "general", phi0, memory, step, steps or DEFAULT_MOST, tolerance
    )


def _fixed(
    residual: Callable[[PyTree], PyTree], turning: bool, phi0: PyTree, memory: M, step: Step[M], steps: int
) -> Solution:
    """The Solution after so many steps; turning: whether F is no gradient, so that phi may go around."""

    def repeat(_: Array, state: _Fixed[M]) -> _Fixed[M]:
        return _Fixed(*step(residual(state.phi), state.phi, state.memory))

    # The first step outside of the loop: its slope's norm is wanted, which would cost in every step, and
    # tasks that all start at theta share its products under vmap.
    slope = residual(phi0)
    first = lax.stop_gradient(tree.norm(slope))
    state, halfway = _Fixed(*step(slope, phi0, memory)), 1 + steps // 2
    returned = None
    if turning and halfway < steps:
        state = lax.fori_loop(1, halfway, repeat, state)
        state, returned = watched(residual, repeat, state, steps - halfway)
    else:
        state = lax.fori_loop(1, steps, repeat, state)
    size = tree.norm(residual(state.phi))
    stats = Stats(jnp.asarray(steps), size, jnp.asarray(False), first=first, returned=returned)
    return judged(Solution(state.phi, stats, Status(jnp.asarray(0))), size)


def _until(
    residual: Callable[[PyTree], PyTree],
    turning: bool,
    phi0: PyTree,
    memory: M,
    step: Step[M],
    most: int,
    tolerance: float,
) -> Solution:
    """The Solution of repeating a step until |F| <= tolerance, or at most so often."""

    def going(state: _Until[M]) -> Array:
        size = tree.norm(state.slope)
        return (size > tolerance) & (state.steps < most) & jnp.isfinite(size)

    def advance(state: _Until[M]) -> _Until[M]:
        moved, memory = step(state.slope, state.phi, state.memory)
        length = state.length + apart(moved, state.phi) if turning else state.length
        return _Until(moved, memory, residual(moved), state.steps + 1, length)

    slope = residual(phi0)
    first = tree.norm(slope)
    end = repeat_while(going, advance, _Until(phi0, memory, slope, jnp.asarray(0), jnp.zeros_like(first)))
    size = tree.norm(end.slope)
    # It went around where F has not fallen and the ends are closer than half the path (see `watched`).
    around = (size > FALLEN * first) & (2 * apart(end.phi, phi0) < end.length) if turning else False
    code = jnp.where(around, int(Ending.CYCLED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(size <= tolerance, int(Ending.CONVERGED), code)
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(end.phi, Stats(end.steps, size, jnp.asarray(False)), Status(code))


def watched(
    residual: Callable[[PyTree], PyTree],
    repeat: Callable[[Array, _Fixed[M]], _Fixed[M]],
    state: _Fixed[M],
    steps: int,
) -> tuple[_Fixed[M], Array]:
    """Take more steps, and tell whether they led back to where they began.

    They led back where the distance between both ends is less than half of the path's length, as it is after
    more than 0.6 of a turn around a circle. A game's path may do so for ever.

    Args:
        residual: phi -> F(phi).
        repeat: Maps a step's number and a state to the next state.
        state: The state before the steps.
        steps: The number of steps.

    Returns:
        The state after them, and |F| before them where they led back, else infinity.
    """

    def walk(i: Array, state: _Walk[M]) -> _Walk[M]:
        moved = repeat(i, state.inner)
        return _Walk(moved, state.length + apart(moved.phi, state.inner.phi))

    before = lax.stop_gradient(tree.norm(residual(state.phi)))
    after, length = lax.fori_loop(0, steps, walk, _Walk(state, jnp.zeros_like(before)))
    return after, jnp.where(2 * apart(after.phi, state.phi) < length, before, jnp.inf)


def apart(phi: PyTree, other: PyTree) -> Array:
    """Measure the distance between two trees, through which no derivative passes.

    Args:
        phi: A tree of arrays.
        other: A tree shaped like it.

    Returns:
        The Euclidean norm of their difference, a scalar.
    """
    return tree.norm(jax.tree.map(lambda a, b: lax.stop_gradient(a - b), phi, other))


def judged(solution: Solution, size: Array) -> Solution:
    """Give an inner Solution its residual's norm as measured elsewhere, and its status by that.

    A caller that evaluates F at the solution anyway spares the solver's own evaluation: what nobody looks at
    is not computed. A solve to a tolerance has looked already, and stays as it is.

    Args:
        solution: The Solution.
        size: |F| at its value, a scalar.

    Returns:
        The Solution with that residual.
    """
    first = solution.stats.first
    if first is None:
        return solution
    # Where it started at a solution the first residual is rounding, and so may be many times it.
    noise = jnp.finfo(size.dtype).eps ** 0.5 * (1 + tree.norm(solution.value))
    code = jnp.asarray(int(Ending.STEPS_DONE))
    if solution.stats.returned is not None:
        code = jnp.where(size > FALLEN * solution.stats.returned + noise, int(Ending.CYCLED), code)
    code = jnp.where(size > GROWTH * first + noise, int(Ending.DIVERGED), code)
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(solution.value, replace(solution.stats, residual=size), Status(code))


def looked_at(problem: Problem, theta: PyTree, batch: PyTree, phi: PyTree, tolerance: float) -> Solution:
    """Judge the answer of a solver of which nothing else is known.

    Args:
        problem: The inner problem.
        theta: Meta-parameters.
        batch: The support set.
        phi: The answer, shaped like the adapted parameters.
        tolerance: The |F| up to which it counts as converged.

    Returns:
        The Solution; OUT_OF_STEPS where |F| is above the tolerance.
    """
    size = tree.norm(problem.residual(phi, theta, batch))
    code = jnp.where(size <= tolerance, int(Ending.CONVERGED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(phi, Stats(jnp.asarray(1), size, jnp.asarray(False)), Status(code))


def check_stopping(name: str, steps: int | None, tolerance: float | None, steps_name: str = "steps") -> None:
    """Check that a solver is told when to stop.

    Args:
        name: The solver's name, for the message.
        steps: The most steps, or None.
        tolerance: The |F| to reach, or None.
        steps_name: The name of the argument that holds the steps.

    Raises:
        ConfigError: If both are None, or one is out of range.
    """
    check_limits(name, steps, tolerance)
    if steps is None and tolerance is None:
        raise ConfigError(
            f"{name}: when should it stop? Give {steps_name}=, tolerance= (norm of the residual), or both."
        )


def start_of(
    problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree | None, key: Array | None
) -> PyTree:
    """Choose where a solver starts.

    Args:
        problem: The inner problem.
        theta: Meta-parameters.
        batch: The support set.
        phi0: The caller's start, or None.
        key: A random key, or None.

    Returns:
        `phi0`, or where the problem begins.
    """
    return problem.init(theta, batch, key) if phi0 is None else phi0
