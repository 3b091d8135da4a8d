"""BiCGStab, for general matrices."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from ..core.recipes import recipe
from .base import STRUCTURES, Iteration, Iterative, System, quotient


class BiCGStabState(NamedTuple):
    """The state of BiCGStab; vectors have shape (n,).

    Attributes:
        x: The iterate.
        residual: r.
        direction: p.
        image: v = A p.
        rho: s.r of the step before, with the shadow s.
        alpha: The length of the step before along p.
        omega: The length of the step before along h.
        steps: The steps taken.
        ended: Whether the last step was not finite.
    """

    x: Array
    residual: Array
    direction: Array
    image: Array
    rho: Array
    alpha: Array
    omega: Array
    steps: Array
    ended: Array

    @property
    def size(self) -> Array:
        """|r|."""
        return jnp.linalg.norm(self.residual)


@recipe("linear", fresh={"steps": 5})
class BiCGStab(Iterative[BiCGStabState]):
    """Stabilised biconjugate gradients, for any invertible A; two products a step.

    If a step is not finite, the previous iterate is kept and the solve ends as BREAKDOWN. The implementation
    is our own: Lineax 0.1.1 divides 0 by 0 for A = I. In float32 it also mistakes a negative alpha or omega,
    which indefinite systems have, for a breakdown.

    Args:
        steps: The most steps; with no tolerance, the number of steps.
        tolerance: The relative residual to reach. With both None, eps^(3/4) of the dtype.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> turned = lambda x: jnp.stack([x[0] - x[1], x[0] + x[1]])  # not symmetric
        >>> BiCGStab()(turned, jnp.array([0.0, 2.0])).value.round(4)
        Array([1., 1.], dtype=float32)

    References:
        van der Vorst (1992), Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG.
    """

    accepts: ClassVar[tuple[str, ...]] = STRUCTURES
    structure: ClassVar[str] = "general"

    def iteration(self, system: System) -> Iteration[BiCGStabState]:
        """Prepare the iteration; see `Iterative.iteration`.

        Args:
            system: The flat, scaled system.

        Returns:
            The first state and the step.
        """
        shadow = system.residual()
        one, nothing = jnp.ones((), shadow.dtype), jnp.zeros_like(shadow)
        begin = BiCGStabState(
            x=system.start,
            residual=shadow,
            direction=nothing,
            image=nothing,
            rho=one,
            alpha=one,
            omega=one,
            steps=jnp.asarray(0),
            ended=jnp.asarray(False),
        )

        def step(state: BiCGStabState) -> BiCGStabState:
            # rho' = s.r         p' = r + (rho'/rho) (alpha/omega) (p - omega v)        v' = A p'
            # alpha' = rho'/s.v'         h = r - alpha' v'       t = A h        omega' = t.h / t.t
            # x' = x + alpha' p' + omega' h        r' = h - omega' t
            rho = shadow @ state.residual
            direction = state.residual + (rho / state.rho) * (state.alpha / state.omega) * (
                state.direction - state.omega * state.image
            )
            image = system.product(direction)
            alpha = rho / (shadow @ image)
            half = state.residual - alpha * image
            t = system.product(half)
            # h = 0 is an exact answer half-way, as for A = I: then omega is 0, not the textbook's 0 / 0.
            omega = quotient(t @ half, t @ t)
            x, residual = state.x + alpha * direction + omega * half, half - omega * t
            # rho = 0 or s.v = 0 breaks the method down: the step is not finite, and is not taken.
            good = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(residual))
            return BiCGStabState(
                x=jnp.where(good, x, state.x),
                residual=jnp.where(good, residual, state.residual),
                direction=direction,
                image=image,
                rho=rho,
                alpha=alpha,
                omega=omega,
                steps=state.steps + good.astype(state.steps.dtype),
                ended=~good,
            )

        return begin, step
