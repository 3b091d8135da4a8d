"""A truncated Neumann series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.errors import ConfigError
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
class Neumann:
    """The Neumann series, x += scale (b - A x): plain fixed-point iteration.

    Converges where |I - scale A| < 1 (spectral radius). With `scale=None` and structure "spd", the scale is
    1 / (1.05 * the largest eigenvalue estimated by 20 power iterations), which converges for any positive
    definite A; for structure "general" it is 1, the series of a contraction (A = I - J). Needs on the order
    of the condition number of products where CG needs its square root: it is here to compare with.
    Source: Lorraine, Vicol, Duvenaud 2020, Algorithm 3.
    """

    steps: int | None = None
    tolerance: float | None = None
    scale: float | None = None
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["Neumann"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("Neumann", self.steps, self.tolerance)
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ConfigError(
                f"Neumann: scale={self.scale!r}; accepted is a positive number, or None to estimate."
            )

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "spd") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        product, b, start, unravel = flat_problem(matvec, b, x0)
        most = self.steps or 100_000
        threshold = tolerance_of(self.tolerance, self.steps, b.dtype) * jnp.linalg.norm(b)
        if self.scale is not None:
            scale = jnp.asarray(self.scale, b.dtype)
        elif structure == "general":
            scale = jnp.ones((), b.dtype)
        else:
            scale = 1 / (1.05 * _largest(product, b))
        first = b - product(start)

        def going(state: tuple) -> Array:
            _, r, step = state
            size = jnp.linalg.norm(r)
            return (step < most) & (size > threshold) & jnp.isfinite(size)

        def advance(state: tuple) -> tuple:
            x, r, step = state
            x = x + scale * r
            return x, b - product(x), step + 1

        x, _, step = repeat_while(going, advance, (start, first, jnp.asarray(0)))
        asked = None if self.steps is not None and self.tolerance is None else threshold_of(self, b.dtype)
        return finish(product, b, x, unravel, step, asked, int(Ending.OUT_OF_STEPS))


def _largest(product: Callable[[Array], Array], b: Array) -> Array:
    """An estimate of the largest eigenvalue of A, from 20 power iterations on a fixed start."""
    start = jax.random.normal(jax.random.key(0), b.shape, b.dtype)

    def iterate(_: Any, v: Array) -> Array:
        image = product(v)
        return image / jnp.maximum(jnp.linalg.norm(image), jnp.finfo(b.dtype).tiny)

    v = lax.fori_loop(0, 20, iterate, start / jnp.linalg.norm(start))
    return jnp.maximum(jnp.linalg.norm(product(v)), jnp.finfo(b.dtype).tiny)
