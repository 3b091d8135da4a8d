"""The Gaussian prior that an anchor is: its mean theta, and its precision P, fixed or learned with it.

    anchored term  1/2 (phi - theta)^T P (phi - theta)        P positive definite by construction

    per                    P                              in Theta.log_strength
    "all"                  s I                            log s
    "leaf", "parameter"    diag(s)                        log s, a tree
    "dense"                L L^T, L lower triangular      a matrix: L's, with the logarithms of its diagonal
    "low-rank"             diag(s) + W W^T                `Spread(log_diagonal, factor)`

Strengths are precisions where the loss is a sum of negative log likelihoods; see `likelihoods` for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular

from ..core import tree
from ..core.errors import ConfigError
from ..core.tree import Selection
from ..core.validation import require_whole

PER = ("all", "leaf", "parameter", "dense", "low-rank")
DENSE_MOST = 2_000  # parameters that a dense precision is learned for: 32 MB in float64


class Theta(NamedTuple):
    """Meta-parameters where more is learned than where tasks start.

    mean: a tree shaped like phi, what it is anchored to or starts at. log_strength, log_rate: the logarithms
    of a learned strength, and of a learned inner learning rate; each None where it is not learned, a scalar
    (per="all"), or a tree like the adapted leaves with one scalar a leaf (per="leaf") or one number a
    parameter (per="parameter"); of a strength also a matrix (n, n) over the n adapted parameters
    (per="dense") or a `Spread` (per="low-rank"). log_noise: the logarithm of a learned noise variance, a
    scalar, or None.
    """

    mean: Any
    log_strength: Any = None
    log_rate: Any = None
    log_noise: Any = None


class Spread(NamedTuple):
    """What a low-rank precision is learned as: log_diagonal (n,), factor (n, rank)."""

    log_diagonal: Array
    factor: Array


class Precision(Protocol):
    """A positive definite P over the n adapted parameters; vectors are flat, (n,), unless said otherwise."""

    def pull(self, displacement: Any) -> Any:
        """P d, trees like the adapted leaves."""
        ...

    def inverse(self, vector: Array) -> Array:
        """P^-1 v; can be differentiated in P."""
        ...

    def root(self, vector: Array) -> Array:
        """R v with R^T R = P."""
        ...

    def unroot(self, vector: Array) -> Array:
        """R^-1 v: of a standard normal v, a draw from the prior."""
        ...

    def unroot_transposed(self, vector: Array) -> Array:
        """R^-T v."""
        ...

    def log_determinant(self) -> Array:
        """log |P|; can be differentiated in P."""
        ...

    def least(self) -> Array:
        """A lower bound of P's eigenvalues."""
        ...

    def matrix(self) -> Array:
        """P itself, (n, n)."""
        ...

    def variances(self) -> Array:
        """The diagonal of P^-1, (n,)."""
        ...

    def part(self, chosen: np.ndarray) -> Precision:
        """The precision of some of the parameters, the others known; chosen: (n,) booleans."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Strengths:
    """P = diag(s). values: a tree like the adapted leaves, `like`, of arrays that broadcast to them."""

    values: Any
    like: Any

    @property
    def flat(self) -> Array:
        """The diagonal, (n,)."""
        return tree.ravel(tree.spread(self.values, self.like))[0]

    def pull(self, displacement: Any) -> Any:
        """P d."""
        return jax.tree.map(jnp.multiply, self.values, displacement)

    def inverse(self, vector: Array) -> Array:
        """P^-1 v."""
        return vector / self.flat

    def root(self, vector: Array) -> Array:
        """sqrt(s) v."""
        return jnp.sqrt(self.flat) * vector

    def unroot(self, vector: Array) -> Array:
        """v / sqrt(s)."""
        return vector / jnp.sqrt(self.flat)

    unroot_transposed = unroot

    def log_determinant(self) -> Array:
        """sum log s."""
        return jnp.sum(jnp.log(self.flat))

    def least(self) -> Array:
        """The least strength."""
        return jnp.min(jnp.stack([jnp.min(leaf) for leaf in jax.tree.leaves(self.values)]))

    def matrix(self) -> Array:
        """diag(s)."""
        return jnp.diag(self.flat)

    def variances(self) -> Array:
        """1 / s."""
        return 1 / self.flat

    def part(self, chosen: np.ndarray) -> Strengths:
        """The strengths of some."""
        some = self.flat[np.flatnonzero(chosen)]
        return Strengths(some, some)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factored:
    """P = L L^T. lower: L, (n, n), lower triangular with a positive diagonal."""

    lower: Array

    def pull(self, displacement: Any) -> Any:
        """P d."""
        flat, unravel = tree.ravel(displacement)
        return unravel(self.lower @ (self.lower.T @ flat))

    def inverse(self, vector: Array) -> Array:
        """P^-1 v."""
        return self.unroot(self.unroot_transposed(vector))

    def root(self, vector: Array) -> Array:
        """L^T v."""
        return self.lower.T @ vector

    def unroot(self, vector: Array) -> Array:
        """L^-T v."""
        return solve_triangular(self.lower, vector, trans=1, lower=True)

    def unroot_transposed(self, vector: Array) -> Array:
        """L^-1 v."""
        return solve_triangular(self.lower, vector, lower=True)

    def log_determinant(self) -> Array:
        """2 sum log L_ii."""
        return 2 * jnp.sum(jnp.log(jnp.diagonal(self.lower)))

    def least(self) -> Array:
        """The square of L's least singular value, less what rounding may make of it."""
        values = jnp.linalg.svd(self.lower, compute_uv=False)
        rounding = 10 * jnp.finfo(values.dtype).eps * values.size * values[0]
        return jnp.square(jnp.maximum(values[-1] - rounding, 0))

    def matrix(self) -> Array:
        """L L^T."""
        return self.lower @ self.lower.T

    def variances(self) -> Array:
        """The squares in the columns of L^-1, summed."""
        identity = jnp.eye(self.lower.shape[0], dtype=self.lower.dtype)
        return jnp.sum(jnp.square(solve_triangular(self.lower, identity, lower=True)), 0)

    def part(self, chosen: np.ndarray) -> Factored:
        """The precision of some."""
        some = np.flatnonzero(chosen)
        return Factored(jnp.linalg.cholesky(self.matrix()[np.ix_(some, some)]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """P = diag(s) + W W^T. diagonal: s, (n,). factor: W, (n, rank)."""

    diagonal: Array
    factor: Array

    def pull(self, displacement: Any) -> Any:
        """P d."""
        flat, unravel = tree.ravel(displacement)
        return unravel(self.diagonal * flat + self.factor @ (self.factor.T @ flat))

    def _core(self) -> tuple[Array, Array]:
        """S^-1 W, and I + W^T S^-1 W: by Woodbury's formula all that P^-1 takes."""
        scaled = self.factor / self.diagonal[:, None]
        return scaled, jnp.eye(scaled.shape[1], dtype=scaled.dtype) + self.factor.T @ scaled

    def inverse(self, vector: Array) -> Array:
        """P^-1 v."""
        scaled, core = self._core()
        return vector / self.diagonal - scaled @ cho_solve(cho_factor(core), scaled.T @ vector)

    def _turned(self) -> tuple[Array, Array, Array]:
        """V = S^-1/2 W, the lower T with T T^T = I + V^T V, and I + T.

        With them I + V V^T = K^T K for K = I + V (I + T^T)^-1 V^T, and K^-1 = I - V T^-T (I + T)^-1 V^T
        (Andrews 1968); of a small matrix, and with a derivative whatever rank W has.
        """
        across = self.factor / jnp.sqrt(self.diagonal)[:, None]
        identity = jnp.eye(across.shape[1], dtype=across.dtype)
        lower = jnp.linalg.cholesky(identity + across.T @ across)
        return across, lower, identity + lower

    def root(self, vector: Array) -> Array:
        """K S^1/2 v."""
        across, _, more = self._turned()
        scaled = jnp.sqrt(self.diagonal) * vector
        return scaled + across @ solve_triangular(more, across.T @ scaled, trans=1, lower=True)

    def unroot(self, vector: Array) -> Array:
        """R^-1 v."""
        across, lower, more = self._turned()
        inner = solve_triangular(more, across.T @ vector, lower=True)
        inner = solve_triangular(lower, inner, trans=1, lower=True)
        return (vector - across @ inner) / jnp.sqrt(self.diagonal)

    def unroot_transposed(self, vector: Array) -> Array:
        """R^-T v."""
        across, lower, more = self._turned()
        scaled = vector / jnp.sqrt(self.diagonal)
        inner = solve_triangular(lower, across.T @ scaled, lower=True)
        inner = solve_triangular(more, inner, trans=1, lower=True)
        return scaled - across @ inner

    def log_determinant(self) -> Array:
        """log |S| + log |I + W^T S^-1 W|."""
        return jnp.sum(jnp.log(self.diagonal)) + log_determinant(self._core()[1])

    def least(self) -> Array:
        """The least of the diagonal."""
        return jnp.min(self.diagonal)

    def matrix(self) -> Array:
        """P."""
        return jnp.diag(self.diagonal) + self.factor @ self.factor.T

    def variances(self) -> Array:
        """The diagonal of S^-1 - S^-1 W (I + W^T S^-1 W)^-1 W^T S^-1."""
        scaled, core = self._core()
        return 1 / self.diagonal - jnp.sum(scaled * cho_solve(cho_factor(core), scaled.T).T, 1)

    def part(self, chosen: np.ndarray) -> LowRank:
        """The precision of some."""
        some = np.flatnonzero(chosen)
        return LowRank(self.diagonal[some], self.factor[some])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Raised:
    """R^T (I + U diag(k) U^T) R with R^T R = below: what data add along a few directions.

    below: a precision. basis: U, (n, rank), columns orthonormal or zero. values: k, (rank,), above -1.
    """

    below: Any
    basis: Array
    values: Array

    def _turned(self, vector: Array, power: float) -> Array:
        """(I + U diag(k) U^T)^power v."""
        return vector + self.basis @ (((1 + self.values) ** power - 1) * (self.basis.T @ vector))

    def pull(self, displacement: Any) -> Any:
        """P d."""
        flat, unravel = tree.ravel(displacement)
        _, back = jax.vjp(self.root, flat)
        return unravel(back(self.root(flat))[0])

    def root_matrix(self) -> Array:
        """R with R^T R = P, (n, n)."""
        identity = jnp.eye(self.basis.shape[0], dtype=self.basis.dtype)
        return jax.vmap(self.root, in_axes=1, out_axes=1)(identity)

    def inverse(self, vector: Array) -> Array:
        """P^-1 v."""
        return self.below.unroot(self._turned(self.below.unroot_transposed(vector), -1))

    def root(self, vector: Array) -> Array:
        """(I + U diag(k) U^T)^1/2 R v."""
        return self._turned(self.below.root(vector), 0.5)

    def unroot(self, vector: Array) -> Array:
        """R^-1 (I + U diag(k) U^T)^-1/2 v."""
        return self.below.unroot(self._turned(vector, -0.5))

    def unroot_transposed(self, vector: Array) -> Array:
        """(I + U diag(k) U^T)^-1/2 R^-T v."""
        return self._turned(self.below.unroot_transposed(vector), -0.5)

    def log_determinant(self) -> Array:
        """log |below| + sum log (1 + k)."""
        return self.below.log_determinant() + jnp.sum(jnp.log1p(self.values))

    def least(self) -> Array:
        """That of `below`, lowered by the least of the values where that is negative."""
        return self.below.least() * (1 + jnp.minimum(jnp.min(self.values), 0))

    def matrix(self) -> Array:
        """P, (n, n)."""
        root = self.root_matrix()
        return root.T @ root

    def variances(self) -> Array:
        """The diagonal of P^-1: that of `below`'s, less k / (1 + k) of the squares of R^-1 U."""
        directions = jax.vmap(self.below.unroot, in_axes=1, out_axes=1)(self.basis)
        shares = self.values / (1 + self.values)
        return self.below.variances() - jnp.sum(jnp.square(directions) * shares[None], 1)

    def part(self, chosen: np.ndarray) -> Factored:
        """The precision of some."""
        some = np.flatnonzero(chosen)
        return Factored(jnp.linalg.cholesky(self.matrix()[np.ix_(some, some)]))


def log_determinant(matrix: Array) -> Array:
    """log |A| of a positive definite matrix by Cholesky's factor, NaN where it is not; differentiable."""
    return 2 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(matrix))))


@dataclass(frozen=True)
class Learned:
    """A strength, an inner learning rate or a noise variance, learned with theta; made by `learned`."""

    initial: float
    per: str
    rank: int = 5

    @property
    def diagonal(self) -> bool:
        """Whether it is a number for every parameter, and no matrix."""
        return self.per in ("all", "leaf", "parameter")

    def logs(self, adapted: Any) -> Any:
        """The logarithms to begin with, for the adapted leaves."""
        value = float(np.log(self.initial))
        if self.per == "all":
            return jnp.asarray(value, jnp.result_type(*jax.tree.leaves(adapted)))
        if not self.diagonal:
            return self._matrix(value, tree.ravel(adapted)[0])
        shape = (lambda _: ()) if self.per == "leaf" else jnp.shape
        return jax.tree.map(lambda leaf: jnp.full(shape(leaf), value, jnp.result_type(leaf)), adapted)

    def _matrix(self, value: float, flat: Array) -> Any:
        """What a precision that is a matrix begins with: `initial` times I, or nearly."""
        if self.per == "dense":
            if flat.size > DENSE_MOST:
                raise ConfigError(
                    f"learned: per='dense' for {flat.size} parameters; accepted are up to {DENSE_MOST}. Use "
                    "per='low-rank' or 'parameter', or adapt fewer leaves."
                )
            return jnp.diag(jnp.full(flat.size, value / 2, flat.dtype))
        # W = 0 would be a saddle, as the derivative in W is 2 (d/dP) W: it begins with a hundredth of S.
        rank = min(self.rank, flat.size)
        start = jax.random.normal(jax.random.key(0), (flat.size, rank), flat.dtype)
        return Spread(jnp.full(flat.size, value, flat.dtype), (0.01 * self.initial / rank) ** 0.5 * start)

    def values(self, logs: Any, adapted: Any) -> Any:
        """What was learned, a tree like the adapted leaves of arrays that broadcast to them."""
        if self.per == "all":
            return jax.tree.map(lambda _: jnp.exp(logs), adapted)
        return jax.tree.map(lambda _, log: jnp.exp(log), adapted, logs)

    def precision(self, logs: Any, adapted: Any) -> Precision:
        """The precision that the logarithms mean, over the adapted leaves."""
        if self.per == "dense":
            return Factored(jnp.tril(logs, -1) + jnp.diag(jnp.exp(jnp.diagonal(logs))))
        if self.per == "low-rank":
            return LowRank(jnp.exp(logs.log_diagonal), logs.factor)
        return Strengths(self.values(logs, adapted), adapted)

    def fitted(self, second: Array, adapted: Any) -> Any:
        """The logarithms of the precision that fits second moments about the mean best, by likelihood.

        second: E (phi - mean)(phi - mean)^T, (n, n), of which the diagonal, (n,), does where `diagonal`.
        ```
        "all"  n / trace        "leaf"  its n / its trace        "parameter"  1 / diagonal        "dense"  ^-1
        ```
        (the maxima of log |P| - tr(P second)). Not for "low-rank", which has no closed form.
        """
        if self.per == "dense":
            identity = jnp.eye(second.shape[0], dtype=second.dtype)
            inverse = cho_solve(cho_factor((second + second.T) / 2), identity)
            lower = jnp.linalg.cholesky((inverse + inverse.T) / 2)
            return jnp.tril(lower, -1) + jnp.diag(jnp.log(jnp.diagonal(lower)))
        if self.per == "all":
            return -jnp.log(jnp.mean(second))
        spread = tree.ravel(adapted)[1](second)
        average = jnp.mean if self.per == "leaf" else lambda leaf: leaf
        return jax.tree.map(lambda leaf: -jnp.log(average(leaf)), spread)


def learned(initial: float, per: str = "leaf", rank: int = 5) -> Learned:
    """A number that is learned: its logarithm becomes part of theta, so that it stays positive.

    A strength of `proximal`, the learning rate of `GradientDescent`, or (per="all") the noise variance of a
    `likelihood`. `per` is "all" (one number), "leaf" (one a leaf, the default) or "parameter"; of a strength
    also "dense", any positive definite matrix over the adapted parameters (at most 2,000 of them), or
    "low-rank", a diagonal plus a matrix of rank `rank`: the precision P of
    1/2 (phi - theta)^T P (phi - theta). Theta is then a `Theta`, which `MetaGradient.init`, or for a strength
    `Problem.parameters(mean)`, makes.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, batch: jnp.sum(phi**2), imaml.learned(0.5, per="dense"))
    >>> problem.parameters(jnp.zeros(2)).log_strength.shape
    (2, 2)
    """
    if isinstance(initial, bool) or not isinstance(initial, (int, float, np.number)):
        raise ConfigError(f"learned: initial={initial!r}; accepted is a positive number.")
    if not 0 < float(initial) < float("inf"):
        raise ConfigError(f"learned: initial={initial!r}; a strength must be positive and finite.")
    if per not in PER:
        raise ConfigError(f"learned: per={per!r}; accepted: {', '.join(map(repr, PER))}.")
    require_whole("learned", 1, rank=rank)
    return Learned(float(initial), per, rank)


def spread_over(strength: Any, phi: Any, adapt: Selection) -> Any:
    """The strength as a tree like phi; ConfigError where it fits neither phi's leaves nor its shapes."""
    cast = lambda value, leaf: jnp.asarray(value, jnp.result_type(leaf))  # noqa: E731
    if jax.tree.structure(strength) == jax.tree.structure(0) and jnp.ndim(strength) == 0:
        return jax.tree.map(lambda leaf: cast(strength, leaf), phi)
    if jax.tree.structure(strength) != jax.tree.structure(phi) and adapt.choice is not None:
        strength = adapt.split(strength)[0]
    if jax.tree.structure(strength) != jax.tree.structure(phi):
        raise ConfigError(
            f"strength: came as {tree.shapes(strength)}; accepted are one number, or a tree like the adapted "
            f"parameters, {tree.shapes(phi)}, with one number a leaf or one a parameter."
        )

    def fit(value: Any, leaf: Any) -> Array:
        if jnp.shape(value) not in ((), jnp.shape(leaf)):
            raise ConfigError(
                f"strength: a leaf of shape {jnp.shape(value)} for a parameter of shape {jnp.shape(leaf)}; "
                "accepted are one number or an array of the parameter's shape."
            )
        return cast(value, leaf)

    return jax.tree.map(fit, strength, phi)
