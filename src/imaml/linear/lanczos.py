"""Bounds on a symmetric operator's eigenvalues from products: Ritz values; Lanczos from a random start."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

RITZ = 64  # Ritz values come from the first so many steps of conjugate gradients


def ritz(coefficients: tuple[Array, Array], steps: Array) -> tuple[Array, Array]:
    """The smallest and the largest Ritz value of A that conjugate gradients leave behind.

    coefficients: (alpha, beta), each of shape (most,), as in `stats.lanczos`. The tridiagonal matrix has
    1/alpha_j + beta_(j-1)/alpha_(j-1) on its diagonal and sqrt(beta_j)/alpha_j beside it (Saad 2003, section
    6.7.3). They lie between A's extreme eigenvalues: the smallest bounds A's smallest from *above*.
    Infinity and 0 where no step was taken.
    """
    alpha, beta = (values[:RITZ] for values in coefficients)
    known = jnp.arange(alpha.size) < steps
    inverse = jnp.where(known, 1 / jnp.where(known, alpha, 1), 0)
    before = jnp.roll(jnp.where(known, beta, 0) * inverse, 1).at[0].set(0)
    diagonal = inverse + jnp.where(known, before, 0)
    beside = jnp.sqrt(jnp.where(known, beta, 0)) * inverse
    beside = jnp.where(jnp.roll(known, -1).at[-1].set(False), beside, 0)[:-1]
    # Steps not taken get a copy of the first entry of the diagonal, which lies between the extremes.
    diagonal = jnp.where(known, diagonal, diagonal[0])
    values = _eigenvalues(diagonal, beside)
    some = steps > 0
    return jnp.where(some, values[0], jnp.inf), jnp.where(some, values[-1], 0)


def _tridiagonal(diagonal: Array, beside: Array) -> tuple[Array, Array]:
    """The matrix, and whether it is finite; if not it is zero, as LAPACK need not end on it."""
    good = jnp.all(jnp.isfinite(diagonal)) & jnp.all(jnp.isfinite(beside))
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    return jnp.where(good, matrix, 0), good


def _eigenvalues(diagonal: Array, beside: Array) -> Array:
    """Those of a tridiagonal matrix, NaN where an entry is not finite."""
    matrix, good = _tridiagonal(diagonal, beside)
    return jnp.where(good, jnp.linalg.eigvalsh(matrix), jnp.nan)


def eigenpairs(diagonal: Array, beside: Array) -> tuple[Array, Array]:
    """A tridiagonal matrix's eigenvalues and eigenvectors, in columns; NaN where an entry is not finite."""
    matrix, good = _tridiagonal(diagonal, beside)
    values, vectors = jnp.linalg.eigh(matrix)
    return jnp.where(good, values, jnp.nan), jnp.where(good, vectors, jnp.nan)


def lanczos(product: Callable[[Array], Array], start: Array, steps: int) -> tuple[Array, Array]:
    """The smallest and the largest Ritz value after `steps` of Lanczos; see `krylov`."""
    _, diagonal, beside, _ = krylov(product, start, steps)
    values = _eigenvalues(diagonal, beside)
    return values[0], values[-1]


def krylov(product: Callable[[Array], Array], start: Array, steps: int) -> tuple[Array, Array, Array, Array]:
    """`steps` of Lanczos with full reorthogonalisation: V^T (steps, n), T's diagonal, what is beside it.

    start: shape (n,), not zero. And how many steps were taken: where the Krylov space is exhausted before,
    rows of V^T are zero and T has its first entry once more, which lies between its extreme eigenvalues.
    """
    steps = min(steps, start.size)
    tiny = 100 * jnp.finfo(start.dtype).eps

    def advance(count: Array, state: tuple) -> tuple:
        basis, vector, diagonal, beside, live = state
        basis = basis.at[count].set(jnp.where(live, vector, 0))
        image = product(vector)
        own = vector @ image
        rest = image - basis.T @ (basis @ image)
        rest = rest - basis.T @ (basis @ rest)
        length = jnp.linalg.norm(rest)
        more = live & (length > tiny * jnp.linalg.norm(image))
        diagonal = diagonal.at[count].set(jnp.where(live, own, diagonal[0]))
        beside = beside.at[count].set(jnp.where(more, length, 0))
        return basis, jnp.where(more, rest / jnp.where(more, length, 1), vector), diagonal, beside, more

    unit = start / jnp.linalg.norm(start)
    nothing = jnp.zeros(steps, start.dtype)
    state = (jnp.zeros((steps, start.size), start.dtype), unit, nothing, nothing, jnp.asarray(True))
    basis, _, diagonal, beside, _ = lax.fori_loop(0, steps, advance, state)
    taken = jnp.sum(jnp.any(basis != 0, axis=1))
    return basis, diagonal, beside[:-1], taken


def share_unseen(size: int, steps: int, failure: float) -> float:
    """By what share of the spectrum the extreme Ritz value may miss the extreme eigenvalue.

    From a start uniform on the sphere, `steps` of Lanczos miss by more than this share with a probability of
    at most `failure` (Kuczynski and Wozniakowski 1992, Theorem 4.2: 1.648 sqrt(n) exp(-sqrt(share)
    (2 steps - 1))). 0 where the steps exhaust the space.
    """
    if steps >= size:
        return 0.0
    return (math.log(1.648 * math.sqrt(size) / failure) / (2 * steps - 1)) ** 2


def smallest_bound(
    product: Callable[[Array], Array], like: Array, key: Array, steps: int, failure: float
) -> Array:
    """A lower bound of a symmetric A's smallest eigenvalue that holds but with probability `failure`.

    -inf where `steps` are too few to say anything. like: any vector of A's size.
    """
    share = share_unseen(like.size, steps, failure / 2)  # both ends must be right
    if share >= 0.5:
        return jnp.asarray(-jnp.inf, like.dtype)
    smallest, largest = lanczos(product, jax.random.normal(key, like.shape, like.dtype), steps)
    size = jnp.maximum(jnp.abs(smallest), jnp.abs(largest))
    smallest = smallest - 10 * min(steps, like.size) * jnp.finfo(like.dtype).eps * size  # rounding
    return smallest - share / (1 - 2 * share) * (largest - smallest)


def norm_bound(gram: Callable[[Array], Array], like: Array, key: Array, steps: int, failure: float) -> Array:
    """An upper bound of |B| from products with B B^T, that holds but with probability `failure`."""
    share = share_unseen(like.size, steps, failure)
    if share >= 1:
        return jnp.asarray(jnp.inf, like.dtype)
    largest = lanczos(gram, jax.random.normal(key, like.shape, like.dtype), steps)[1]
    return jnp.sqrt(jnp.maximum(largest, 0) / (1 - share))


def linear_factor(probes: int, failure: float) -> float:
    """The c for which |M| <= c max_i |M z_i| with probability 1 - failure, z_i standard normal vectors.

    |M z| is at least |M| |g| with g standard normal, along M's leading singular direction, and |g| < 1/c has
    a probability of at most sqrt(2/pi)/c (Halko, Martinsson and Tropp 2011, Lemma 4.1). It needs no product
    with M^T, unlike `norm_bound`, and overestimates by up to c sqrt(rank).

    >>> round(linear_factor(3, 0.001), 2)
    7.98
    """
    return math.sqrt(2 / math.pi) * failure ** (-1 / probes)


def bilinear_factor(probes: int, failure: float) -> float:
    """The c for which |T| <= c max_i |T(y_i, z_i)| with probability 1 - failure, for a bilinear map T.

    |T(y, z)| is at least |T| |g h| with g, h standard normal and independent. With a = e sqrt(2/pi), the
    probability of |g h| < e is at most (2/pi) e (1 + log(1 + 2/a^2) / 2): the part of |h| below a, and the
    integral of e/|h| above it, by E_1(x) <= exp(-x) log(1 + 1/x). Solved for e = 1/c by bisection.
    """
    each = failure ** (1 / probes)

    def chance(e: float) -> float:
        return 2 / math.pi * e * (1 + 0.5 * math.log1p(math.pi / e**2))

    low, high = 1e-12, 1.0
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if chance(middle) <= each else (low, middle)
    return 1 / low
