"""MINRES: minimal residuals for symmetric systems, definite or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from ..core.loops import repeat_while
from ..core.recipes import recipe
from ..core.solution import Ending, Solution, Stats
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
class MINRES:
    """Minimal residuals, for A symmetric, also indefinite (Paige and Saunders 1975); one product a step.

    Lanczos' three-term recurrence v_(k+1) = A v_k - alpha_k v_k - beta_k v_(k-1), its tridiagonal matrix
    turned upper triangular by Givens rotations as it grows; |b - A x| falls at every step. Where A is
    indefinite the answer is the solution all the same: what it means for learning is another matter, as phi
    is then no minimum; `stats.negative_curvature` says that a Ritz value was not positive, which is seen
    where CG of as many steps would see it. Of our own: Lineax has none.

    >>> import jax.numpy as jnp
    >>> MINRES(steps=2)(lambda v: jnp.array([1.0, -2.0]) * v, jnp.ones(2)).value.round(3)
    Array([ 1. , -0.5], dtype=float32)
    """

    steps: int | None = None
    tolerance: float | None = None
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["MINRES"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("MINRES", self.steps, self.tolerance)

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "symmetric") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        product, b, start, unravel = flat_problem(matvec, b, x0)
        most = self.steps or min(5 * b.size + 50, 10_000)
        threshold = tolerance_of(self.tolerance, self.steps, b.dtype) * jnp.linalg.norm(b)
        first = b if x0 is None else b - product(start)
        size = jnp.linalg.norm(first)
        unit = first / jnp.where(size > 0, size, 1)
        nothing, one, zero = jnp.zeros_like(b), jnp.ones((), b.dtype), jnp.zeros((), b.dtype)
        tiny = jnp.finfo(b.dtype).eps
        flag = jnp.asarray(False)
        # x, v_k, v_(k-1), directions w_(k-1), w_(k-2), beta_k, (c, s) of the last two rotations, what they
        # made of the right-hand side (its size is |r|), the largest entries seen, a measure of |A|,
        # the steps, and the pivot of the Lanczos matrix: pivots are positive as long as all Ritz values are.
        state = (
            start,
            unit,
            nothing,
            nothing,
            nothing,
            zero,
            one,
            zero,
            one,
            zero,
            size,
            zero,
            0,
            one,
            flag,
            flag,
        )

        def going(state: tuple) -> Array:
            residual, step, over = jnp.abs(state[10]), state[12], state[15]
            return (step < most) & (residual > threshold) & ~over & jnp.isfinite(residual)

        def advance(state: tuple) -> tuple:
            x, v, before, w, older, beta, c, s, c_old, s_old, right, scale, step, pivot, negative, _ = state
            image = product(v) - beta * before
            alpha = v @ image
            image = image - alpha * v
            pivot = alpha - beta * beta / jnp.where(pivot > 0, pivot, 1)
            following = jnp.linalg.norm(image)
            # The new column (beta, alpha, following), turned by the last two rotations.
            above = s_old * beta
            middle = c_old * beta
            upper = c * middle + s * alpha
            corner = -s * middle + c * alpha
            radius = jnp.hypot(corner, following)
            scale = jnp.maximum(scale, jnp.abs(alpha) + beta + following)
            solid = radius > 10 * tiny * scale
            safe = jnp.where(solid, radius, 1)
            c_new, s_new = corner / safe, following / safe
            direction = (v - upper * w - above * older) / safe
            length = c_new * right
            keep = lambda new, old: jnp.where(solid, new, old)  # noqa: E731
            exhausted = following <= 10 * tiny * scale
            return (
                keep(x + length * direction, x),
                jnp.where(exhausted, v, image / jnp.where(exhausted, 1, following)),
                v,
                keep(direction, w),
                w,
                following,
                c_new,
                s_new,
                c,
                s,
                keep(-s_new * right, right),
                scale,
                step + 1,
                pivot,
                negative | (pivot <= 0),
                exhausted | ~solid,
            )

        x, *_, step, _, negative, _ = repeat_while(going, advance, state)
        asked = None if self.steps is not None and self.tolerance is None else threshold_of(self, b.dtype)
        failed = jnp.where(step < most, int(Ending.STAGNATED), int(Ending.OUT_OF_STEPS))
        found = finish(product, b, x, unravel, step, asked, failed)
        return Solution(found.value, Stats(found.stats.steps, found.stats.residual, negative), found.status)
