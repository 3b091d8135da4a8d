"""BiCGStab, for general matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from ..core.loops import repeat_while
from ..core.recipes import recipe
from ..core.solution import Ending, Solution
from .base import (
    ACCEPTS,
    Matvec,
    check_limits,
    finish,
    flat_problem,
    refuse_structure,
    threshold_of,
    tolerance_of,
)


@recipe("linear", fresh={"steps": 5})
@dataclass(frozen=True)
class BiCGStab:
    """Stabilised biconjugate gradients, for any invertible A (van der Vorst 1992); two products a step.

    ```
    rho' = s.r           p = r + (rho'/rho) (alpha/omega) (p - omega v)      v = A p      alpha = rho' / s.v
    h = r - alpha v      t = A h      omega = t.h / t.t      x += alpha p + omega h      r = h - omega t
    ```

    with the shadow s, the first residual. Where a step is not finite (a breakdown), the iterate before it
    stays. Of our own: Lineax 0.1.1 divides 0 by 0 for A = I, and in float32 takes a negative alpha or omega,
    which indefinite systems have, for a breakdown.
    """

    steps: int | None = None
    tolerance: float | None = None
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["BiCGStab"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("BiCGStab", self.steps, self.tolerance)

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "general") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        product, b, start, unravel = flat_problem(matvec, b, x0)
        most = self.steps or min(5 * b.size + 50, 10_000)
        threshold = tolerance_of(self.tolerance, self.steps, b.dtype) * jnp.linalg.norm(b)
        shadow = b if x0 is None else b - product(start)
        one, nothing = jnp.ones((), b.dtype), jnp.zeros_like(b)
        state = (start, shadow, nothing, nothing, one, one, one, jnp.asarray(0), jnp.asarray(False))

        def going(state: tuple) -> Array:
            _, r, _, _, _, _, _, step, broken = state
            return (step < most) & ~broken & (jnp.linalg.norm(r) > threshold)

        def advance(state: tuple) -> tuple:
            x, r, p, v, rho, alpha, omega, step, _ = state
            following = shadow @ r
            p = r + (following / rho) * (alpha / omega) * (p - omega * v)
            v = product(p)
            alpha = following / (shadow @ v)
            half = r - alpha * v
            t = product(half)
            square = t @ t
            omega = jnp.where(square > 0, (t @ half) / jnp.where(square > 0, square, 1), 0)
            new_x, new_r = x + alpha * p + omega * half, half - omega * t
            good = jnp.all(jnp.isfinite(new_x)) & jnp.all(jnp.isfinite(new_r))
            x, r = jnp.where(good, new_x, x), jnp.where(good, new_r, r)
            return x, r, p, v, following, alpha, omega, step + good.astype(step.dtype), ~good

        x, *_, step, broken = repeat_while(going, advance, state)
        asked = None if self.steps is not None and self.tolerance is None else threshold_of(self, b.dtype)
        failed = jnp.where(broken, int(Ending.BREAKDOWN), int(Ending.OUT_OF_STEPS))
        return finish(product, b, x, unravel, step, asked, failed)
