"""Vector algebra on trees; the only place where trees are flattened, masked and joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from .errors import ConfigError
from .validation import not_one_of

Tree: TypeAlias = Any  # nested containers of arrays; Python's type system has no type for them
LARGE = 1 << 18  # entries from which on a copy of each leaf costs less than one loop over all


def ravel(tree: Tree) -> tuple[Array, Callable[[Array], Tree]]:
    """Flatten a tree to one vector.

    Large leaves are written one after another: XLA makes a concatenation one loop that asks for every entry
    which leaf it is of, together with whatever made the leaves.

    Args:
        tree: A tree of arrays with n entries in all.

    Returns:
        All entries, shape (n,), and the function that makes a tree of such a vector.
    """
    flat, unravel = ravel_pytree(tree)
    leaves = jax.tree.leaves(tree)
    if flat.size < LARGE or len(leaves) < 2 or not isinstance(flat, Tracer):
        return flat, unravel
    written, start = jnp.zeros_like(flat), 0
    for leaf in leaves:
        written = lax.dynamic_update_slice(written, jnp.ravel(leaf).astype(flat.dtype), (start,))
        start += leaf.size
    return written, unravel


def dot(left: Tree, right: Tree) -> Array:
    """Compute the inner product of two trees.

    Args:
        left: A tree of arrays.
        right: A tree of the same structure.

    Returns:
        A scalar.
    """
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: jnp.sum(a * b), left, right))


def minus(left: Tree, right: Tree) -> Tree:
    """Subtract a tree from another.

    Args:
        left: A tree of arrays.
        right: A tree of the same structure.

    Returns:
        left - right, a tree shaped like them.
    """
    return jax.tree.map(jnp.subtract, left, right)


def spread(values: Tree, like: Tree) -> Tree:
    """Broadcast values to the leaves of a tree.

    Args:
        values: A tree whose leaves broadcast to those of `like`.
        like: A tree of arrays.

    Returns:
        The values in full, of the shapes and dtypes of the leaves of `like`.
    """
    full = lambda value, leaf: jnp.broadcast_to(  # noqa: E731
        jnp.asarray(value, jnp.result_type(leaf)), jnp.shape(leaf)
    )
    return jax.tree.map(full, values, like)


def collapse(leaf: Array, shape: tuple[int, ...]) -> Array:
    """Sum an array to a shape that broadcasts to its own: the transpose of broadcasting.

    Args:
        leaf: The array.
        shape: The shape, of as many axes or of none.

    Returns:
        An array of that shape.
    """
    wide, number = jnp.shape(leaf), jnp.zeros(shape, jnp.result_type(leaf))
    return jax.linear_transpose(lambda x: jnp.broadcast_to(x, wide), number)(leaf)[0]


def norm(tree: Tree) -> Array:
    """Compute the Euclidean norm of a tree.

    Args:
        tree: A tree of arrays.

    Returns:
        The norm of all of its entries, a scalar.
    """
    return jnp.sqrt(dot(tree, tree))


def finite(tree: Tree) -> Array:
    """Say whether every entry of a tree is finite.

    Args:
        tree: A tree of arrays.

    Returns:
        A boolean scalar.
    """
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def name(path: Sequence[object]) -> str:
    """Write a leaf's path as people do.

    Args:
        path: The path, as of `jax.tree_util.tree_leaves_with_path`.

    Returns:
        For example "head/weight".
    """
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


@dataclass(frozen=True)
class Selection:
    """Which leaves of a tree are meant: all, those of some names, or those of a mask.

    Attributes:
        choice: None for all; a tuple of names ("head", "body/0/weight": a branch means all that is below it);
            or a function that takes the tree and returns a tree of booleans (or a prefix of one), as in
            `optax.masked`.
    """

    choice: tuple[str, ...] | Callable[[Tree], Tree] | None = None

    @classmethod
    def of(cls, choice: Tree) -> Selection:
        """Make the selection that a user's `adapt=` means.

        Args:
            choice: None, a name, names, a tree of booleans, or a function theta -> tree of booleans.

        Returns:
            The selection.

        Raises:
            ConfigError: If it is none of these.
        """
        if choice is None or isinstance(choice, Selection):
            return choice or cls()
        if isinstance(choice, str):
            return cls((choice,))
        if isinstance(choice, (tuple, list, set, frozenset)) and all(isinstance(c, str) for c in choice):
            return cls(tuple(sorted(choice)))
        leaves = jax.tree_util.tree_leaves_with_path(choice)
        # Before functions: a module of booleans, as filters of Equinox are, can be called, too.
        if leaves and all(isinstance(leaf, (bool, np.bool_)) for _, leaf in leaves):
            return cls(tuple(name(path) for path, leaf in leaves if leaf))
        if callable(choice):
            return cls(choice)
        raise ConfigError(
            "adapt: expected None (all), a name such as 'head', a tuple of names, a tree of booleans shaped "
            f"like theta, or a function theta -> tree of booleans, got {choice!r}."
        )

    def mask(self, tree: Tree) -> Tree:
        """Make the mask of a tree.

        Args:
            tree: The tree, such as theta.

        Returns:
            A tree of booleans shaped like it.

        Raises:
            ConfigError: If nothing, or nothing known, is chosen.
        """
        if self.choice is None:
            return jax.tree.map(lambda _: True, tree)
        if isinstance(self.choice, tuple):
            names = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
            for wanted in self.choice:
                if not any(_below(leaf, wanted) for leaf in names):
                    raise ConfigError(not_one_of("adapt: leaf or branch of theta", wanted, names))
            flags = [any(_below(leaf, wanted) for wanted in self.choice) for leaf in names]
            mask = jax.tree.structure(tree).unflatten(flags)
        else:
            prefix = self.choice(tree)
            try:
                mask = jax.tree.map(bool, jax.tree.broadcast(prefix, tree))
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    "adapt: expected a function that returns a tree of booleans shaped like theta, or a "
                    f"prefix of it, got one that returns {prefix!r}."
                ) from error
        if not any(jax.tree.leaves(mask)):
            raise ConfigError("adapt: expected at least one leaf of theta, got a selection of none.")
        return mask

    def split(self, tree: Tree) -> tuple[Tree, Tree]:
        """Split a tree.

        Args:
            tree: The tree, such as theta.

        Returns:
            The selected leaves and the rest, each shaped like the tree with None in the other's places.
        """
        if self.choice is None:
            return tree, jax.tree.map(lambda _: None, tree)
        mask = self.mask(tree)
        chosen = jax.tree.map(lambda leaf, flag: leaf if flag else None, tree, mask)
        rest = jax.tree.map(lambda leaf, flag: None if flag else leaf, tree, mask)
        return chosen, rest

    def join(self, chosen: Tree, rest: Tree) -> Tree:
        """Join the two parts that `split` made.

        Args:
            chosen: The selected leaves.
            rest: The rest.

        Returns:
            The full tree.
        """
        if self.choice is None:
            return chosen
        return jax.tree.map(
            lambda a, b: b if a is None else a, chosen, rest, is_leaf=lambda leaf: leaf is None
        )


def _below(leaf: str, branch: str) -> bool:
    return leaf == branch or leaf.startswith(branch + "/")


def shapes(tree: Tree) -> str:
    """Describe a tree's structure and shapes, for messages.

    Args:
        tree: A tree of arrays.

    Returns:
        A phrase, "a tree of bias[5], weight[3, 5]".
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if len(leaves) == 1 and not leaves[0][0]:
        return f"one array of shape {jnp.shape(leaves[0][1])}"
    parts = [f"{name(path)}{list(jnp.shape(leaf))}" for path, leaf in leaves[:8]]
    more = f" and {len(leaves) - 8} more" if len(leaves) > 8 else ""
    return "a tree of " + (", ".join(parts) or "nothing") + more


def apart(left: Tree, right: Tree) -> str:
    """Describe where two trees' structures or shapes differ, for messages.

    Args:
        left: The tree found.
        right: The tree wanted.

    Returns:
        A phrase, "head/bias [5], not [20]".
    """
    found, wanted = (
        {name(path): list(jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (left, right)
    )
    parts = [
        f"{leaf or 'one array of shape'} {found.get(leaf, 'missing')}, not {wanted.get(leaf, 'there')}"
        for leaf in dict.fromkeys([*found, *wanted])
        if found.get(leaf) != wanted.get(leaf)
    ]
    return ("; ".join(parts[:4]) or "its structure") + ("; ..." if len(parts) > 4 else "")


def same(left: Tree, right: Tree) -> bool:
    """Say whether two trees have the same structure and the same shapes.

    Args:
        left: A tree of arrays.
        right: Another.

    Returns:
        True if they have.
    """
    if jax.tree.structure(left) != jax.tree.structure(right):
        return False
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(jnp.shape(a) == jnp.shape(b) for a, b in pairs)


def require_like(what: str, found: Tree, like: Tree, name: str) -> None:
    """Check that a tree has the structure and the shapes of another.

    Args:
        what: What the tree is, for the message.
        found: The tree.
        like: The other tree.
        name: The name of the other tree, for the message.

    Raises:
        ConfigError: If it has not.
    """
    if not same(found, like):
        raise ConfigError(f"{what}: expected a tree shaped like {name}, {shapes(like)}, got {shapes(found)}.")
