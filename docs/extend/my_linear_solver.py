"""A linear solver in one file: steepest descent with an exact line search."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

import imaml
from imaml.linear.base import Iteration, Iterative, System


class DescentState(NamedTuple):
    """The state: x and r = b - A x, of shape (n,), the steps taken, and whether it ended."""

    x: Array
    residual: Array
    steps: Array
    ended: Array

    @property
    def size(self) -> Array:
        """|r|."""
        return jnp.linalg.norm(self.residual)


@imaml.recipe("linear", fresh={"steps": 5})
class SteepestDescent(Iterative[DescentState]):
    """Steepest descent, for A symmetric positive definite; one product a step."""

    accepts: ClassVar[tuple[str, ...]] = ("spd",)

    def most(self, size: int) -> int:
        """Allow more steps than the default, 5 n + 50: it needs as many as the condition number is large."""
        return self.steps or 10_000

    def iteration(self, system: System) -> Iteration[DescentState]:
        """Prepare the iteration; see `Iterative.iteration`."""

        def step(state: DescentState) -> DescentState:
            # a = r.r / r.Ar          x' = x + a r          r' = r - a A r
            r = state.residual
            image = system.product(r)
            curvature = r @ image
            positive = curvature > 0
            length = jnp.where(positive, r @ r / jnp.where(positive, curvature, 1), 0)
            # Where A is not positive definite after all, x stays and the solve ends as BREAKDOWN.
            return DescentState(
                state.x + length * r,
                r - length * image,
                state.steps + positive.astype(state.steps.dtype),
                ended=~positive,
            )

        return DescentState(system.start, system.residual(), jnp.asarray(0), jnp.asarray(False)), step
