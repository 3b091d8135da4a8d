"""The forms of a prior's precision P, and of a posterior's.

class      P
Strengths  diag(s)
Factored   L L^T, L lower triangular
LowRank    diag(s) + W W^T
Updated    R^T (I + U diag(k) U^T) R, with R^T R another precision
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular

from ..core import tree
from ..core.tree import Tree


class Precision:
    """A positive definite matrix P over the n adapted parameters.

    Its root R has R^T R = P. Vectors are flat, ``(n,)``, unless said otherwise. Products follow from `root`
    and `unroot`, and `part` from `matrix`, where a subclass has no shorter way.
    """

    def product(self, vector: Array) -> Array:
        """Compute the product P v of a flat vector.

        Args:
            vector: v.

        Returns:
            P v.
        """
        image, back = jax.vjp(self.root, vector)
        return back(image)[0]

    def pull(self, displacement: Tree) -> Tree:
        """Compute the product P d.

        Args:
            displacement: d, a tree like the adapted parameters.

        Returns:
            P d, a tree like it.
        """
        flat, unravel = tree.ravel(displacement)
        return unravel(self.product(flat))

    def inverse(self, vector: Array) -> Array:
        """Compute the product P^-1 v, differentiable in P.

        Args:
            vector: v.

        Returns:
            P^-1 v.
        """
        return self.unroot(self.unroot_transposed(vector))

    def root(self, vector: Array) -> Array:
        """Compute the product R v.

        Args:
            vector: v.

        Returns:
            R v.
        """
        raise NotImplementedError

    def unroot(self, vector: Array) -> Array:
        """Compute the product R^-1 v: a draw from the prior if v is standard normal.

        Args:
            vector: v.

        Returns:
            R^-1 v.
        """
        raise NotImplementedError

    def unroot_transposed(self, vector: Array) -> Array:
        """Compute the product R^-T v.

        Args:
            vector: v.

        Returns:
            R^-T v.
        """
        return jax.linear_transpose(self.unroot, vector)(vector)[0]

    def log_determinant(self) -> Array:
        """Compute the log-determinant, differentiable in P.

        Returns:
            The logarithm of |P|, a scalar.
        """
        raise NotImplementedError

    def least(self) -> Array:
        """Bound the eigenvalues from below.

        Returns:
            The bound, a scalar.
        """
        raise NotImplementedError

    def matrix(self) -> Array:
        """Compute the matrix P.

        Returns:
            ``(n, n)``.
        """
        raise NotImplementedError

    def variances(self) -> Array:
        """Compute the diagonal of P^-1.

        Returns:
            ``(n,)``.
        """
        raise NotImplementedError

    def part(self, chosen: np.ndarray) -> Precision:
        """Return the precision of some parameters, given the others.

        Args:
            chosen: Which, ``(n,)`` booleans.

        Returns:
            A precision over the chosen ones.
        """
        some = np.flatnonzero(chosen)
        return Factored(jnp.linalg.cholesky(self.matrix()[np.ix_(some, some)]))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Strengths(Precision):
    """The diagonal precision P = diag(s).

    Attributes:
        values: s, a tree of arrays that broadcast to the adapted parameters.
        like: The adapted parameters, of which only structure and shapes matter.
    """

    values: Tree
    like: Tree

    @property
    def flat(self) -> Array:
        """The diagonal, (n,)."""
        return tree.ravel(tree.spread(self.values, self.like))[0]

    def pull(self, displacement: Tree) -> Tree:
        """P d."""
        return jax.tree.map(jnp.multiply, self.values, displacement)

    def inverse(self, vector: Array) -> Array:
        """P^-1 v."""
        return vector / self.flat

    def root(self, vector: Array) -> Array:
        """The product sqrt(s) v."""
        return jnp.sqrt(self.flat) * vector

    def unroot(self, vector: Array) -> Array:
        """The product v / sqrt(s)."""
        return vector / jnp.sqrt(self.flat)

    def log_determinant(self) -> Array:
        """The sum of log s."""
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
class Factored(Precision):
    """The precision P = L L^T.

    Attributes:
        lower: L, ``(n, n)``, lower triangular with a positive diagonal.
    """

    lower: Array

    def root(self, vector: Array) -> Array:
        """L^T v."""
        return self.lower.T @ vector

    def unroot(self, vector: Array) -> Array:
        """L^-T v."""
        return solve_triangular(self.lower, vector, trans=1, lower=True)

    def log_determinant(self) -> Array:
        """Twice the sum of log L_ii."""
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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank(Precision):
    """The precision P = diag(s) + W W^T.

    Attributes:
        diagonal: s, ``(n,)``.
        factor: W, ``(n, rank)``.
    """

    diagonal: Array
    factor: Array

    def product(self, vector: Array) -> Array:
        """P v."""
        return self.diagonal * vector + self.factor @ (self.factor.T @ vector)

    def _core(self) -> tuple[Array, Array]:
        """S^-1 W and I + W^T S^-1 W, which by Woodbury's formula give P^-1."""
        scaled = self.factor / self.diagonal[:, None]
        return scaled, jnp.eye(scaled.shape[1], dtype=scaled.dtype) + self.factor.T @ scaled

    def _root_parts(self) -> tuple[Array, Array, Array]:
        """V = S^-1/2 W, the lower T with T T^T = I + V^T V, and I + T.

        With them I + V V^T = K^T K for K = I + V (I + T^T)^-1 V^T, and K^-1 = I - V T^-T (I + T)^-1 V^T
        (Andrews 1968). Only a small matrix is factorised, and derivatives exist for any rank of W.
        """
        across = self.factor / jnp.sqrt(self.diagonal)[:, None]
        identity = jnp.eye(across.shape[1], dtype=across.dtype)
        lower = jnp.linalg.cholesky(identity + across.T @ across)
        return across, lower, identity + lower

    def root(self, vector: Array) -> Array:
        """K S^1/2 v."""
        across, _, more = self._root_parts()
        scaled = jnp.sqrt(self.diagonal) * vector
        return scaled + across @ solve_triangular(more, across.T @ scaled, trans=1, lower=True)

    def unroot(self, vector: Array) -> Array:
        """R^-1 v."""
        across, lower, more = self._root_parts()
        inner = solve_triangular(more, across.T @ vector, lower=True)
        inner = solve_triangular(lower, inner, trans=1, lower=True)
        return (vector - across @ inner) / jnp.sqrt(self.diagonal)

    def log_determinant(self) -> Array:
        """The log-determinant, log |S| + log |I + W^T S^-1 W|."""
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
class Updated(Precision):
    """The precision R^T (I + U diag(k) U^T) R, an update of another along a few directions.

    Attributes:
        base: The other precision, R^T R.
        basis: U, ``(n, rank)``, columns orthonormal or zero.
        values: k, ``(rank,)``, above -1.
    """

    base: Precision
    basis: Array
    values: Array

    def _scaled(self, vector: Array, power: float) -> Array:
        """(I + U diag(k) U^T)^power v."""
        return vector + self.basis @ (((1 + self.values) ** power - 1) * (self.basis.T @ vector))

    def root(self, vector: Array) -> Array:
        """(I + U diag(k) U^T)^1/2 R v."""
        return self._scaled(self.base.root(vector), 0.5)

    def unroot(self, vector: Array) -> Array:
        """R^-1 (I + U diag(k) U^T)^-1/2 v."""
        return self.base.unroot(self._scaled(vector, -0.5))

    def log_determinant(self) -> Array:
        """The log-determinant of `base` plus the sum of log(1 + k)."""
        return self.base.log_determinant() + jnp.sum(jnp.log1p(self.values))

    def least(self) -> Array:
        """The bound of `base`, times 1 + the least negative of the values."""
        return self.base.least() * (1 + jnp.minimum(jnp.min(self.values), 0))

    def matrix(self) -> Array:
        """P, (n, n)."""
        identity = jnp.eye(self.basis.shape[0], dtype=self.basis.dtype)
        root = jax.vmap(self.root, in_axes=1, out_axes=1)(identity)
        return root.T @ root

    def variances(self) -> Array:
        """The diagonal of P^-1: that of `base`, less k / (1 + k) of the squares of R^-1 U."""
        directions = jax.vmap(self.base.unroot, in_axes=1, out_axes=1)(self.basis)
        shares = self.values / (1 + self.values)
        return self.base.variances() - jnp.sum(jnp.square(directions) * shares[None], 1)


def log_determinant(matrix: Array) -> Array:
    """Compute the log-determinant of a positive definite matrix by Cholesky's factor; differentiable.

    Args:
        matrix: ``(n, n)``.

    Returns:
        The logarithm of its determinant, a scalar; NaN if it is not positive definite.
    """
    return 2 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(matrix))))
