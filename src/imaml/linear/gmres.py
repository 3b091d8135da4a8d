"""Generalised minimal residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core.loops import repeat_while
from ..core.recipes import recipe
from ..core.solution import Ending, Solution
from ..core.validation import require_whole
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

LEAST = 0.999  # a round of which more than this share of the residual is left has come to nothing


class _Basis(NamedTuple):
    """Arnoldi's vectors after k products, and the least-squares problem over them.

    vectors (m + 1, n), zero beyond k; triangle (m, m) = Q H, upper triangular; turn (m + 1, m + 1) = Q;
    right (m + 1,) = Q e_1 |r|, of which right[k] is what the residual's norm is now, but for its sign.
    """

    vectors: Array
    triangle: Array
    turn: Array
    right: Array
    k: Array
    ended: Array


@recipe("linear", fresh={"steps": 5})
@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residuals, for any invertible A (Saad and Schultz 1986, algorithm 4).

    Of all x in the Krylov space of as many dimensions as products were taken, that with the least |b - A x|:
    soon a good one where few eigenvalues of A are far from the others. Arnoldi's vectors are made orthogonal
    twice. `restart` of them are kept at once; `steps` counts products. Ends as BREAKDOWN where a round of
    `restart` products came to nothing: keep more, or use Dense.

    >>> import jax.numpy as jnp
    >>> turned = lambda x: jnp.stack([x[0] - x[1], x[0] + x[1]])  # not symmetric
    >>> GMRES(steps=2)(turned, jnp.array([0.0, 2.0])).value.round(4)
    Array([1., 1.], dtype=float32)
    """

    steps: int | None = None
    tolerance: float | None = None
    restart: int = 50
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["GMRES"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("GMRES", self.steps, self.tolerance)
        require_whole("GMRES", 1, restart=self.restart)

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "general") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        product, b, start, unravel = flat_problem(matvec, b, x0)
        most = self.steps or min(5 * b.size + 50, 10_000)
        width = min(self.restart, b.size, most)
        threshold = tolerance_of(self.tolerance, self.steps, b.dtype) * jnp.linalg.norm(b)
        first = b if x0 is None else b - product(start)
        state = (start, first, jnp.linalg.norm(first), jnp.asarray(0), jnp.asarray(False))

        def going(state: tuple) -> Array:
            _, _, size, step, stuck = state
            return (step < most) & (size > threshold) & ~stuck

        def advance(state: tuple) -> tuple:
            x, r, size, step, _ = state
            grown = _grown(product, r, size, threshold, jnp.minimum(width, most - step), width)
            used = jnp.arange(width) < grown.k
            triangle = grown.triangle + jnp.diag(jnp.where(used, 0, 1).astype(b.dtype))
            weights = jax.scipy.linalg.solve_triangular(triangle, jnp.where(used, grown.right[:width], 0))
            left = (grown.turn[grown.k] * grown.right[grown.k]) @ grown.vectors
            after = jnp.linalg.norm(left)
            stuck = (after > threshold) & ~(after < LEAST * size)
            return x + weights @ grown.vectors[:width], left, after, step + jnp.maximum(grown.k, 1), stuck

        x, _, _, step, stuck = repeat_while(going, advance, state)
        asked = None if self.steps is not None and self.tolerance is None else threshold_of(self, b.dtype)
        failed = jnp.where(stuck, int(Ending.BREAKDOWN), int(Ending.OUT_OF_STEPS))
        return finish(product, b, x, unravel, step, asked, failed)


def _grown(product: Matvec, r: Array, size: Array, threshold: Array, most: Array, width: int) -> _Basis:
    """Arnoldi's vectors from a residual r, until that over them is small enough, or after `most` products.

    Ends as well where the space is closed under A, and before a product that is not finite or with which the
    least-squares problem has no answer.
    """
    dtype, eps = r.dtype, jnp.finfo(r.dtype).eps
    vectors = jnp.zeros((width + 1, r.size), dtype).at[0].set(r / jnp.where(size > 0, size, 1))
    triangle, turn = jnp.zeros((width, width), dtype), jnp.eye(width + 1, dtype=dtype)
    right = jnp.zeros(width + 1, dtype).at[0].set(size)
    state = _Basis(vectors, triangle, turn, right, jnp.asarray(0), jnp.asarray(False))

    def going(state: _Basis) -> Array:
        return (state.k < most) & ~state.ended & (jnp.abs(state.right[state.k]) > threshold)

    def advance(state: _Basis) -> _Basis:
        vectors, triangle, turn, right, k, _ = state
        image = product(vectors[k])
        height = vectors @ image
        rest = image - height @ vectors
        again = vectors @ rest
        rest, height = rest - again @ vectors, height + again
        length = jnp.linalg.norm(rest)
        closed = length <= 10 * eps * jnp.linalg.norm(image)
        length = jnp.where(closed, 0, length)
        column = turn @ height.at[k + 1].set(length)
        radius = jnp.hypot(column[k], column[k + 1])
        good = (radius > 10 * eps * jnp.linalg.norm(height)) & jnp.isfinite(radius)
        cos, sin = (column[i] / jnp.where(good, radius, 1) for i in (k, k + 1))
        rows = cos * turn[k] + sin * turn[k + 1], cos * turn[k + 1] - sin * turn[k]
        column = jnp.where(jnp.arange(width + 1) < k, column, 0).at[k].set(radius)
        new = _Basis(
            vectors.at[k + 1].set(rest / jnp.where(length > 0, length, 1) * (length > 0)),
            triangle.at[:, k].set(column[:width]),
            turn.at[k].set(rows[0]).at[k + 1].set(rows[1]),
            right.at[k].set(cos * right[k]).at[k + 1].set(-sin * right[k]),
            k + 1,
            closed,
        )
        old = state._replace(ended=jnp.asarray(True))
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    return repeat_while(going, advance, state)
