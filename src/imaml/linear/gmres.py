"""Generalised minimal residuals."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core.fields import PositiveInt
from ..core.loops import repeat_while
from ..core.recipes import recipe
from .base import STRUCTURES, Iteration, Iterative, Product, System, quotient

LEAST = 0.999  # a round of which more than this share of the residual is left has stagnated


class GMRESState(NamedTuple):
    """The state between two rounds of Arnoldi.

    Attributes:
        x: The iterate, shape (n,).
        residual: r, shape (n,).
        size: |r|.
        steps: The products taken.
        ended: Whether a round stagnated.
    """

    x: Array
    residual: Array
    size: Array
    steps: Array
    ended: Array


class _Basis(NamedTuple):
    """Arnoldi's vectors after k products, and the least-squares problem over them.

    Attributes:
        vectors: (m + 1, n), zero beyond k.
        triangle: (m, m) = Q H, upper triangular.
        turn: (m + 1, m + 1) = Q.
        right: (m + 1,) = Q e_1 |r|, of which right[k] is what the residual's norm is now, but for its sign.
        k: The products taken.
        ended: Whether no further vector is of use.
    """

    vectors: Array
    triangle: Array
    turn: Array
    right: Array
    k: Array
    ended: Array


@recipe("linear", fresh={"steps": 5})
class GMRES(Iterative[GMRESState]):
    """Generalised minimal residuals, for any invertible A; one product a step.

    It finds the x with the smallest |b - A x| in the Krylov space, whose dimension is the number of products.
    It converges fast if few eigenvalues of A are far from the others. If a round of `restart` products
    stagnates, the solve ends as BREAKDOWN: increase `restart`, or use `Dense`.

    Args:
        steps: The most products; with no tolerance, the number of products.
        tolerance: The relative residual to reach. With both None, eps^(3/4) of the dtype.
        restart: The number of vectors kept at once, after which it restarts.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> turned = lambda x: jnp.stack([x[0] - x[1], x[0] + x[1]])  # not symmetric
        >>> GMRES(steps=2)(turned, jnp.array([0.0, 2.0])).value.round(4)
        Array([1., 1.], dtype=float32)

    References:
        Saad and Schultz (1986), GMRES: a generalized minimal residual algorithm, Algorithm 4.
    """

    restart: PositiveInt = 50
    accepts: ClassVar[tuple[str, ...]] = STRUCTURES
    structure: ClassVar[str] = "general"
    factorises: ClassVar[bool] = True  # a triangular solve by LAPACK

    def iteration(self, system: System) -> Iteration[GMRESState]:
        """Prepare the iteration; a step is one round of at most `restart` products.

        Args:
            system: The flat, scaled system.

        Returns:
            The first state and the step.
        """
        most, threshold = self.most(system.b.size), self.threshold(system.b)
        width = min(self.restart, system.b.size, most)
        first = system.residual()

        def step(state: GMRESState) -> GMRESState:
            # x' = x + V y, where y minimises |Q e_1 |r| - R y| by back substitution. Unused columns get a
            # diagonal of ones and a right-hand side of zeros, so that their weights are zero.
            allowed = jnp.minimum(width, most - state.steps)
            grown = _grown(system.product, state.residual, state.size, threshold, allowed, width)
            used = jnp.arange(width) < grown.k
            triangle = grown.triangle + jnp.diag(jnp.where(used, 0, 1).astype(first.dtype))
            weights = jax.scipy.linalg.solve_triangular(triangle, jnp.where(used, grown.right[:width], 0))
            # What least squares leaves is V Q^T e_(k+1) right[k]: the new residual without a product.
            left = (grown.turn[grown.k] * grown.right[grown.k]) @ grown.vectors
            after = jnp.linalg.norm(left)
            return GMRESState(
                x=state.x + weights @ grown.vectors[:width],
                residual=left,
                size=after,
                steps=state.steps + jnp.maximum(grown.k, 1),
                ended=(after > threshold) & ~(after < LEAST * state.size),
            )

        begin = GMRESState(system.start, first, jnp.linalg.norm(first), jnp.asarray(0), jnp.asarray(False))
        return begin, step


def _grown(product: Product, r: Array, size: Array, threshold: Array, most: Array, width: int) -> _Basis:
    """Arnoldi's vectors from a residual r, until that over them is small enough, or after `most` products.

        h_(k+1) v_(k+1) = A v_k - sum_(i <= k) h_i v_i          h_i = v_i.A v_k

    The new column (h_1 .. h_(k+1)) of H is turned by the rotations so far, and by a new one that makes its
    last entry zero (Saad and Schultz 1986, section 3.2).

    Departures from the textbook:
    - Vectors are made orthogonal twice by classical Gram-Schmidt. That is as accurate as the modified one,
      and takes products of a matrix and a vector instead of a loop of k.
    - The rotations are kept as one matrix Q, so that a column is turned by a product, and the residual of the
      least squares follows from Q's last row.
    - It ends where the space is closed under A. It also ends *before* a product that is not finite, or with
      which the least-squares problem has no answer.
    """
    dtype, eps = r.dtype, jnp.finfo(r.dtype).eps
    begin = _Basis(
        vectors=jnp.zeros((width + 1, r.size), dtype).at[0].set(r / jnp.where(size > 0, size, 1)),
        triangle=jnp.zeros((width, width), dtype),
        turn=jnp.eye(width + 1, dtype=dtype),
        right=jnp.zeros(width + 1, dtype).at[0].set(size),
        k=jnp.asarray(0),
        ended=jnp.asarray(False),
    )

    def going(state: _Basis) -> Array:
        return (state.k < most) & ~state.ended & (jnp.abs(state.right[state.k]) > threshold)

    def advance(state: _Basis) -> _Basis:
        vectors, turn, right, k = state.vectors, state.turn, state.right, state.k
        # Rows of `vectors` beyond k are zero, so products with all of them are products with those there are.
        image = product(vectors[k])
        height = vectors @ image
        rest = image - height @ vectors
        again = vectors @ rest
        rest, height = rest - again @ vectors, height + again
        length = jnp.linalg.norm(rest)
        closed = length <= 10 * eps * jnp.linalg.norm(image)
        length = jnp.where(closed, 0, length)
        # The new rotation turns rows k and k + 1 of the column to (radius, 0).
        column = turn @ height.at[k + 1].set(length)
        radius = jnp.hypot(column[k], column[k + 1])
        good = (radius > 10 * eps * jnp.linalg.norm(height)) & jnp.isfinite(radius)
        cos, sin = (column[i] / jnp.where(good, radius, 1) for i in (k, k + 1))
        rows = cos * turn[k] + sin * turn[k + 1], cos * turn[k + 1] - sin * turn[k]
        column = jnp.where(jnp.arange(width + 1) < k, column, 0).at[k].set(radius)
        new = _Basis(
            vectors=vectors.at[k + 1].set(quotient(rest, length)),
            triangle=state.triangle.at[:, k].set(column[:width]),
            turn=turn.at[k].set(rows[0]).at[k + 1].set(rows[1]),
            right=right.at[k].set(cos * right[k]).at[k + 1].set(-sin * right[k]),
            k=k + 1,
            ended=closed,
        )
        old = state._replace(ended=jnp.asarray(True))
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)

    return repeat_while(going, advance, begin)
