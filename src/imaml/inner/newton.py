"""Newton's method: with conjugate gradients and a line search (Hessian-free), and plain for any F = 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.loops import repeat_while
from ..core.recipes import recipe
from ..core.solution import Solution
from ..linear.base import LinearSolver
from ..linear.cg import CG
from ..linear.dense import Dense
from ..problems.base import Problem
from ..problems.linearised import anchor_of, refuse_system, solve_anchored
from .base import check_stopping, iterate, start_of

SUFFICIENT = 1e-4  # Armijo: the share of the decrease that the slope promises (Nocedal and Wright, eq. 3.4)


@recipe("inner", fresh={"steps": 5})
@dataclass(frozen=True)
class NewtonCG:
    """Truncated Newton, phi <- phi + a d with H d = -F by conjugate gradients (Hessian-free).

    Where CG meets negative curvature the direction is its iterate before that, or -F where there is none
    (Nocedal and Wright 2006, Algorithm 7.1): always one of descent. The length a is 1, halved until the
    objective falls by at least 1e-4 of what the slope promises, at most `halvings` times; then phi stays.
    For `steps` Newton steps, or until |F| <= tolerance (then at most `steps`, by default 100).

    The inner solver of "iMAML, Hessian-free" (Rajeswaran et al. 2019, section 4 and Appendix C). Needs a
    problem that minimises something; has no reverse mode, so not for `unrolled()`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> NewtonCG(steps=1)(problem, jnp.zeros(1), jnp.ones(1)).value
    Array([0.5], dtype=float32)
    """

    steps: int | None = None
    linear: CG = field(default_factory=lambda: CG(steps=5))
    tolerance: float | None = None
    halvings: int = 20
    reversible: ClassVar[bool] = False  # whether reverse mode goes through its steps

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("NewtonCG", self.steps, self.tolerance)
        if not isinstance(self.linear, CG):
            raise ConfigError(
                f"NewtonCG: linear={self.linear!r}; accepted is CG(...), for its curvature test."
            )
        if isinstance(self.halvings, bool) or not isinstance(self.halvings, int) or self.halvings < 1:
            raise ConfigError(
                f"NewtonCG: halvings={self.halvings!r}; accepted is a whole number of at least 1."
            )

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after the steps; its value holds the problem's adapted leaves."""
        if not problem.has_objective:
            raise StructureError(
                f"NewtonCG searches along lines for less of an objective, and a {problem.kind} problem has "
                "none; use GradientDescent, or another solver of F = 0."
            )
        objective = lambda phi: problem.objective(phi, theta, batch)  # noqa: E731

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            return search(objective, phi, slope, self._direction(problem, phi, theta, batch, slope)), memory

        def search(objective: Any, phi: Any, slope: Any, direction: Any) -> Any:
            before = objective(phi)
            promised = tree.dot(slope, direction)
            moved = lambda length: jax.tree.map(lambda p, d: p + length * d, phi, direction)  # noqa: E731
            noise = jnp.finfo(before.dtype).eps * jnp.abs(before)  # near a solution differences are rounding

            def short(state: tuple) -> Array:
                length, count = state
                bound = before + SUFFICIENT * length * promised + noise
                return ~(objective(moved(length)) <= bound) & (count < self.halvings)

            halve = lambda state: (state[0] / 2, state[1] + 1)  # noqa: E731
            length, count = repeat_while(short, halve, (jnp.ones_like(before), jnp.asarray(0)))
            return moved(jnp.where(count < self.halvings, length, 0))

        phi0 = start_of(problem, theta, batch, phi0, key)
        most = self.steps if self.tolerance is None else self.steps or 100
        return iterate(problem, theta, batch, phi0, None, step, most, self.tolerance)

    def _direction(self, problem: Problem, phi: Any, theta: Any, batch: Any, slope: Any) -> Any:
        """A direction of descent, shaped like phi."""
        _, product = jax.linearize(lambda p: problem.residual(p, theta, batch), phi)
        downhill = jax.tree.map(jnp.negative, slope)
        solution = self.linear(product, downhill, structure="spd")
        nothing = solution.stats.steps == 0
        return jax.tree.map(lambda d, g: jnp.where(nothing, g, d), solution.value, downhill)


@dataclass(frozen=True)
class Newton:
    """Newton's method on F = 0, phi <- phi - A^-1 F with A = dF/dphi, for a problem of any structure.

    For `steps`, or until |F| <= tolerance (then at most `steps`, by default 100). No line search: it
    converges, quadratically with a `linear` that is exact, only from near enough, and else ends as DIVERGED
    or OUT_OF_STEPS; where the problem minimises something `NewtonCG` is the safer one. With a fixed number of
    steps every derivative goes through it, so it is for `unrolled()` and, one step of it, `one_step()`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.fixed_point(lambda phi, theta, batch: jnp.cos(phi) + theta)
    >>> round(float(Newton(tolerance=1e-5)(problem, jnp.asarray(0.0), None).value), 4)
    0.7391
    """

    steps: int | None = None
    linear: LinearSolver = field(default_factory=Dense)
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("Newton", self.steps, self.tolerance)
        if not callable(self.linear):
            raise ConfigError(f"Newton: {self.linear!r} is no linear solver; pass one such as Dense().")

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after the steps; its value holds the problem's adapted leaves."""
        refuse_system(self.linear, problem)

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            _, product = jax.linearize(lambda p: problem.residual(p, theta, batch), phi)
            anchor = anchor_of(problem, phi, theta)

            def solve(matvec: Any, b: Any) -> Any:
                return solve_anchored(self.linear, matvec, b, problem.structure, anchor).value

            symmetric = problem.structure != "general"
            transposed = None if symmetric else solve
            way = lax.custom_linear_solve(product, slope, solve, transposed, symmetric=symmetric)
            return tree.minus(phi, way), memory

        phi0 = start_of(problem, theta, batch, phi0, key)
        most = self.steps if self.tolerance is None else self.steps or 100
        return iterate(problem, theta, batch, phi0, None, step, most, self.tolerance)
