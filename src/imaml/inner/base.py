"""Solvers of one task's problem: recipes (problem, theta, batch, phi0, key) -> Solution.

Any function of this form may be used with the implicit rule, differentiable or not. `stats.residual` is the
norm of F itself at the value returned (the delta of the paper's Algorithm 2 is |phi - phi*|, at most this
over the smallest curvature).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError
from ..core.loops import repeat_while
from ..core.solution import Ending, Solution, Stats, Status
from ..linear.base import check_limits
from ..problems.base import Problem

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
    the path leads around instead of on, it ends as CYCLED (see `watched`).
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
            (phi, _), returned = watched(
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
            length = length + apart(moved, phi)
        return moved, memory, residual(moved), count + 1, length

    slope = residual(phi0)
    first = tree.norm(slope)
    begun = (phi0, memory, slope, jnp.asarray(0), jnp.zeros_like(first))
    phi, _, slope, count, length = repeat_while(going, advance, begun)
    size = tree.norm(slope)
    around = (size > FALLEN * first) & (2 * apart(phi, phi0) < length) if turning else False
    code = jnp.where(around, int(Ending.CYCLED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(size <= tolerance, int(Ending.CONVERGED), code)
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(phi, Stats(count, size, jnp.asarray(False)), Status(code))


def watched(residual: Callable, repeat: Callable, state: tuple, steps: int) -> tuple[tuple, Array]:
    """The state after so many steps more, and |F| before them where they led back, else infinity.

    They led back where the distance between both ends is less than half of the path's length, as it is after
    more than 0.6 of a turn around a circle. A game's path may do so for ever.
    """

    def walk(i: Array, state: tuple) -> tuple:
        inner, length = state
        moved = repeat(i, inner)
        return moved, length + apart(moved[0], inner[0])

    before = lax.stop_gradient(tree.norm(residual(state[0])))
    after, length = lax.fori_loop(0, steps, walk, (state, jnp.zeros_like(before)))
    return after, jnp.where(2 * apart(after[0], state[0]) < length, before, jnp.inf)


def apart(phi: Any, other: Any) -> Array:
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
