"""Bounds on a symmetric operator's eigenvalues from products: Ritz values; Lanczos from a random start."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .base import Product

RITZ = 64  # Ritz values come from the first so many steps of conjugate gradients


def ritz(coefficients: Array | tuple[Array, Array], steps: Array) -> tuple[Array, Array]:
    """Compute the extreme Ritz values of A from what conjugate gradients leave behind.

    The tridiagonal matrix has 1/alpha_j + beta_(j-1)/alpha_(j-1) on its diagonal and sqrt(beta_j)/alpha_j off
    it. Ritz values lie between A's extreme eigenvalues: the smallest bounds A's smallest from *above*.

    Args:
        coefficients: (alpha, beta), each of shape (most,), as in `stats.lanczos`.
        steps: The steps taken, a scalar.

    Returns:
        The smallest and the largest Ritz value, scalars; infinity and 0 where no step was taken.

    References:
        Saad (2003), Iterative methods for sparse linear systems, section 6.7.3.
    """
    alpha, beta = (values[:RITZ] for values in coefficients)
    known = jnp.arange(alpha.size) < steps
    inverse = jnp.where(known, 1 / jnp.where(known, alpha, 1), 0)
    before = jnp.roll(jnp.where(known, beta, 0) * inverse, 1).at[0].set(0)
    diagonal = inverse + jnp.where(known, before, 0)
    off_diagonal = jnp.sqrt(jnp.where(known, beta, 0)) * inverse
    off_diagonal = jnp.where(jnp.roll(known, -1).at[-1].set(False), off_diagonal, 0)[:-1]
    # Steps not taken get a copy of the first entry of the diagonal, which lies between the extremes.
    diagonal = jnp.where(known, diagonal, diagonal[0])
    values = eigenpairs(diagonal, off_diagonal)[0]
    some = steps > 0
    return jnp.where(some, values[0], jnp.inf), jnp.where(some, values[-1], 0)


def eigenpairs(diagonal: Array, off_diagonal: Array) -> tuple[Array, Array]:
    """Compute the eigenvalues and eigenvectors of a symmetric tridiagonal matrix.

    Args:
        diagonal: Shape (steps,).
        off_diagonal: Shape (steps - 1,).

    Returns:
        The eigenvalues in rising order, shape (steps,), and the eigenvectors in columns, shape
        (steps, steps). NaN where an entry is not finite.
    """
    good = jnp.all(jnp.isfinite(diagonal)) & jnp.all(jnp.isfinite(off_diagonal))
    matrix = jnp.diag(diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    values, vectors = jnp.linalg.eigh(jnp.where(good, matrix, 0))  # LAPACK need not end on what is not finite
    return jnp.where(good, values, jnp.nan), jnp.where(good, vectors, jnp.nan)


def lanczos(product: Product, start: Array, steps: int) -> tuple[Array, Array]:
    """Compute the extreme Ritz values by Lanczos.

    Args:
        product: x -> A x, A symmetric of shape (n, n).
        start: The first vector, shape (n,), not zero.
        steps: The steps, each of one product.

    Returns:
        The smallest and the largest Ritz value, scalars.
    """
    found = krylov(product, start, steps)
    values = eigenpairs(found.diagonal, found.off_diagonal)[0]
    return values[0], values[-1]


class Krylov(NamedTuple):
    """What Lanczos found: A V ~ V T.

    Attributes:
        basis: V^T, shape (steps, n); rows are zero where the Krylov space was exhausted before.
        diagonal: T's diagonal, shape (steps,). Where the space was exhausted it repeats the first entry,
            which lies between T's extreme eigenvalues.
        off_diagonal: The entries next to it, shape (steps - 1,).
        steps: The steps taken, a scalar.
    """

    basis: Array
    diagonal: Array
    off_diagonal: Array
    steps: Array


def krylov(product: Product, start: Array, steps: int, key: Array | None = None) -> Krylov:
    """Take steps of Lanczos with full reorthogonalisation.

        alpha_k = v_k.A v_k           beta_k v_(k+1) = A v_k - alpha_k v_k - beta_(k-1) v_(k-1)

    In floating point the three terms are not enough: converged Ritz values come back as ghosts. So A v_k is
    made orthogonal to all vectors so far, twice (Golub and Van Loan 2013, section 10.3).

    From one start, an eigenvalue that occurs several times is found once. With a key, it starts again where
    the space is exhausted, from a random vector A z orthogonal to it; V T then has a block for each start.

    Args:
        product: x -> A x, A symmetric of shape (n, n).
        start: The first vector, shape (n,), not zero.
        steps: The steps, each of one product; at most n are taken.
        key: A random key to find all of A's range; None to end where the space of `start` is exhausted. A
            new start takes a product more.

    Returns:
        The Krylov.
    """
    steps = min(steps, start.size)
    tiny = 100 * jnp.finfo(start.dtype).eps

    def advance(count: Array, state: tuple[Krylov, Array, Array]) -> tuple[Krylov, Array, Array]:
        # Row k is v_k, or zero once the space is exhausted: products with all rows are those with v_1 .. v_k.
        found, vector, live = state
        basis = found.basis.at[count].set(jnp.where(live, vector, 0))
        image = product(vector)
        own = vector @ image
        # Classical Gram-Schmidt, twice: as accurate as the modified one, in products of matrix and vector.
        rest = image - basis.T @ (basis @ image)
        rest = rest - basis.T @ (basis @ rest)
        length = jnp.linalg.norm(rest)
        # What is left is rounding where the Krylov space is closed under A.
        more = live & (length > tiny * jnp.linalg.norm(image))
        following = jnp.where(more, rest / jnp.where(more, length, 1), vector)
        lives = more
        if key is not None:
            again = functools.partial(_restarted, product, basis, jax.random.fold_in(key, count))
            anew, some = lax.cond(live & ~more, again, lambda: (vector, jnp.asarray(False)))
            following, lives = jnp.where(some, anew, following), more | some
        grown = Krylov(
            basis=basis,
            diagonal=found.diagonal.at[count].set(jnp.where(live, own, found.diagonal[0])),
            off_diagonal=found.off_diagonal.at[count].set(jnp.where(more, length, 0)),
            steps=found.steps + live,
        )
        return grown, following, lives

    unit = start / jnp.linalg.norm(start)
    nothing = jnp.zeros(steps, start.dtype)
    begin = Krylov(jnp.zeros((steps, start.size), start.dtype), nothing, nothing, jnp.asarray(0))
    end = lax.fori_loop(0, steps, advance, (begin, unit, jnp.asarray(True)))[0]
    return end._replace(off_diagonal=end.off_diagonal[:-1])


def _restarted(product: Product, basis: Array, key: Array) -> tuple[Array, Array]:
    """A random unit vector of A's range orthogonal to the basis, and whether the range has one."""
    image = product(jax.random.normal(key, basis.shape[1:], basis.dtype))
    rest = image - basis.T @ (basis @ image)
    rest = rest - basis.T @ (basis @ rest)
    length = jnp.linalg.norm(rest)
    some = length > 100 * jnp.finfo(basis.dtype).eps * jnp.linalg.norm(image)
    return rest / jnp.where(some, length, 1), some


def share_unseen(size: int, steps: int, failure: float) -> float:
    """Bound by what share of the spectrum the extreme Ritz value may miss the extreme eigenvalue.

    From a start uniform on the sphere, `steps` of Lanczos miss by more than a share with a probability of at
    most 1.648 sqrt(n) exp(-sqrt(share) (2 steps - 1)). Solved for the share of probability `failure`.

    Args:
        size: n, the number of unknowns.
        steps: The steps of Lanczos.
        failure: The probability with which the bound may fail.

    Returns:
        The share; 0 where the steps exhaust the space, and above 1 where they say nothing.

    References:
        Kuczynski and Wozniakowski (1992), Theorem 4.2.
    """
    if steps >= size:
        return 0.0
    return (math.log(1.648 * math.sqrt(size) / failure) / (2 * steps - 1)) ** 2


def smallest_bound(product: Product, like: Array, key: Array, steps: int, failure: float) -> Array:
    """Bound a symmetric operator's smallest eigenvalue from below.

    Args:
        product: x -> A x.
        like: Any vector of A's size, shape (n,).
        key: A random key, for the start.
        steps: The steps of Lanczos, each of one product.
        failure: The probability with which the bound may fail.

    Returns:
        The bound, a scalar; -inf where `steps` are too few to say anything.
    """
    share = share_unseen(like.size, steps, failure / 2)  # both ends must be right
    if share >= 0.5:
        return jnp.asarray(-jnp.inf, like.dtype)
    smallest, largest = lanczos(product, jax.random.normal(key, like.shape, like.dtype), steps)
    # With s the share, each Ritz value is within s (lambda_n - lambda_1) of its eigenvalue, so
    # lambda_n - lambda_1 <= (theta_n - theta_1) / (1 - 2 s).
    size = jnp.maximum(jnp.abs(smallest), jnp.abs(largest))
    smallest = smallest - 10 * min(steps, like.size) * jnp.finfo(like.dtype).eps * size  # rounding
    return smallest - share / (1 - 2 * share) * (largest - smallest)


def norm_bound(gram: Product, like: Array, key: Array, steps: int, failure: float) -> Array:
    """Bound a norm |B| from above by products with B B^T.

    Args:
        gram: x -> B B^T x.
        like: Any vector of its size, shape (n,).
        key: A random key, for the start.
        steps: The steps of Lanczos, each of one product.
        failure: The probability with which the bound may fail.

    Returns:
        The bound, a scalar; infinity where `steps` are too few to say anything.
    """
    share = share_unseen(like.size, steps, failure)
    if share >= 1:
        return jnp.asarray(jnp.inf, like.dtype)
    largest = lanczos(gram, jax.random.normal(key, like.shape, like.dtype), steps)[1]
    return jnp.sqrt(jnp.maximum(largest, 0) / (1 - share))


def linear_factor(probes: int, failure: float) -> float:
    """Compute the c for which |M| <= c max_i |M z_i| with probability 1 - failure, z_i standard normal.

    |M z| is at least |M| |g| with g standard normal, along M's leading singular direction, and |g| < 1/c has
    a probability of at most sqrt(2/pi)/c. It needs no product with M^T, unlike `norm_bound`, and
    overestimates by up to c sqrt(rank).

    Args:
        probes: The number of z_i.
        failure: The probability with which the bound may fail.

    Returns:
        c.

    Example:
        >>> round(linear_factor(3, 0.001), 2)
        7.98

    References:
        Halko, Martinsson and Tropp (2011), Lemma 4.1.
    """
    return math.sqrt(2 / math.pi) * failure ** (-1 / probes)


def bilinear_factor(probes: int, failure: float) -> float:
    """Compute the c for which |T| <= c max_i |T(y_i, z_i)| with probability 1 - failure, T bilinear.

    |T(y, z)| is at least |T| |g h| with g, h standard normal and independent. With a = e sqrt(2/pi), the
    probability of |g h| < e is at most (2/pi) e (1 + log(1 + 2/a^2) / 2): the part of |h| below a, and the
    integral of e/|h| above it, by E_1(x) <= exp(-x) log(1 + 1/x). Solved for e = 1/c by bisection.

    Args:
        probes: The number of pairs (y_i, z_i).
        failure: The probability with which the bound may fail.

    Returns:
        c.
    """
    each = failure ** (1 / probes)

    def chance(e: float) -> float:
        return 2 / math.pi * e * (1 + 0.5 * math.log1p(math.pi / e**2))

    low, high = 1e-12, 1.0
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if chance(middle) <= each else (low, middle)
    return 1 / low
