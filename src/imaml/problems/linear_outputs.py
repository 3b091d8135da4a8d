"""Half squares of outputs that are linear in the adapted parameters, such as those of a network's head.

    loss = 1/(2n) |X W - Y|^2      the design X (n, d), the adapted parameters W (d, c), the targets Y (n, c)
    A    = X^T X / n + diag(s)     with the strengths s, and the same for each of the c columns of W

A has d unknowns instead of d c. Its inverse needs a system with d or n unknowns, whichever is less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve

from ..core.errors import StructureError
from ..core.tree import Tree
from .losses import CompositeLoss


class LinearSquares(CompositeLoss):
    """The base of a loss 1/(2n) |X W - Y|^2; a subclass is a frozen dataclass with `design` and `targets`.

    `imaml.Inverse` and `Newton(steps=1, linear=Inverse())` solve a problem of it exactly.

    Attributes:
        linear_in: The names of the parameters W, which a problem must adapt and no others; None for all.
    """

    averages: ClassVar[bool] = True
    linear_in: ClassVar[tuple[str, ...] | None] = None

    def design(self, phi: Tree, batch: Tree) -> Tree:
        """Return X, in parts.

        Args:
            phi: The full tree of parameters, of which the shared ones may shape the design.
            batch: The batch; leaves ``(rows, ...)``.

        Returns:
            A tree like the adapted parameters. A leaf ``(d_i, c)`` of these has a part ``(n, d_i)``, and a
            leaf ``(c,)`` a part ``(n, 1)``.
        """
        raise NotImplementedError

    def targets(self, batch: Tree, columns: int) -> Array:
        """Return Y.

        Args:
            batch: The batch.
            columns: c, the number of outputs.

        Returns:
            The targets, ``(n, c)``.
        """
        raise NotImplementedError

    def outputs(self, phi: Tree, batch: Tree) -> Array:
        """Return X W, ``(n, c)``."""
        parts = self.design(phi, batch)
        found = jax.tree_util.tree_leaves_with_path(parts)
        leaves = dict(jax.tree_util.tree_leaves_with_path(phi))
        return sum(part @ rows_of(leaves[path]) for path, part in found)  # type: ignore[return-value]

    def cost(self, outputs: Array, batch: Tree) -> Array:
        """Return 1/(2n) |outputs - Y|^2."""
        away = outputs - self.targets(batch, outputs.shape[1])
        return 0.5 * jnp.sum(jnp.square(away)) / outputs.shape[0]


def squares_of(loss: object, adapted: object) -> LinearSquares | None:
    """Return a loss, if it is of squares that are linear in the adapted parameters.

    Args:
        loss: Any loss.
        adapted: The names of the adapted parameters, or None for all.

    Returns:
        The loss, or None.
    """
    return loss if isinstance(loss, LinearSquares) and adapted == loss.linear_in else None


def rows_of(leaf: Array) -> Array:
    """Return a leaf of W as a matrix.

    Args:
        leaf: ``(d, c)``, or ``(c,)`` for one row.

    Returns:
        ``(d, c)``.
    """
    return leaf if leaf.ndim == 2 else leaf[None]


def ridge_inverse(design: Tree, strengths: Tree, phi: Tree) -> Callable[[Tree], Tree]:
    """Make the function V -> A^-1 V with A = X^T X / n + diag(s).

    In unknowns, d of them, by a Cholesky factor of A; or in rows, where these are fewer, by Woodbury's
    formula with R = diag(s)^-1:

        A^-1 = R - R X^T (n I + X R X^T)^-1 X R

    Args:
        design: X in parts; see `LinearSquares.design`.
        strengths: s, a tree like ``phi`` of arrays that broadcast to its leaves.
        phi: The adapted parameters, of which only structure and shapes matter.

    Returns:
        The function, from a tree like ``phi`` to one like it.

    Raises:
        StructureError: If a strength differs between the columns of W.
    """
    x = jnp.concatenate(jax.tree.leaves(design), axis=1)
    pairs = zip(jax.tree.leaves(strengths), jax.tree.leaves(phi), strict=True)
    s = jnp.concatenate([_one_column(strength, leaf) for strength, leaf in pairs])
    n, d = x.shape
    if d <= n:
        factor = cho_factor(x.T @ x / n + jnp.diag(s))
        inverse = lambda v: cho_solve(factor, v)  # noqa: E731
    else:
        narrow = x / s[None]  # X R
        factor = cho_factor(n * jnp.eye(n, dtype=x.dtype) + narrow @ x.T)
        inverse = lambda v: v / s[:, None] - narrow.T @ cho_solve(factor, narrow @ v)  # noqa: E731

    def apply(v: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(v)
        found = inverse(jnp.concatenate([rows_of(leaf) for leaf in leaves]))
        parts, start = [], 0
        for leaf in leaves:
            rows = rows_of(leaf).shape[0]
            parts.append(found[start : start + rows].reshape(leaf.shape))
            start += rows
        return structure.unflatten(parts)

    return apply


def _one_column(strength: Array, leaf: Array) -> Array:
    """The strength of each row of a leaf of W, ``(d_i,)``."""
    rows, strength = rows_of(leaf).shape[0], jnp.asarray(strength)
    if strength.ndim:
        strength = rows_of(strength)
        if strength.shape[1] != 1 and leaf.shape[-1] != 1:
            raise StructureError(
                "inverse: expected one strength for each row of the head, the same for all classes, got "
                f"strengths of shape {strength.shape}. Hint: learn the strength per 'all' or 'leaf', or use "
                "CG()."
            )
        strength = strength[:, 0]
    return jnp.broadcast_to(strength, (rows,)).astype(leaf.dtype)
