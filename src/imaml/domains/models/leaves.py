"""A model's arrays: float arrays become parameters by path, everything else stays as it is.

Parameters narrower than 32 bits (float16, bfloat16) are kept as float32 and cast to the model's own dtype in
each forward pass: solvers of inner problems add small steps to them, which a narrow dtype would round away.
Outputs are float32 then, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...core.errors import ConfigError
from ...core.tree import Tree, name

NARROW = 4  # bytes of a float below which parameters are kept as float32


def is_float(leaf: Any) -> bool:
    """Return whether a leaf is an array of real floats.

    Args:
        leaf: Anything.

    Returns:
        True for JAX and NumPy arrays, and for their shapes (`jax.ShapeDtypeStruct`).
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def widened(tree: Tree) -> Tree:
    """Return a tree whose narrow floats are float32.

    Args:
        tree: A tree of arrays.

    Returns:
        The tree; wider floats and everything else are unchanged.
    """

    def wide(leaf: Array) -> Array:
        narrow = is_float(leaf) and leaf.dtype.itemsize < NARROW
        return jnp.asarray(leaf, jnp.float32) if narrow else leaf

    return jax.tree.map(wide, tree)


def paths_of(tree: Tree) -> list[str]:
    """Return the paths of a tree's leaves, in their order.

    Args:
        tree: The tree.

    Returns:
        For example "layers/0/weight"; "value" of a tree that is one leaf.
    """
    return [name(path) or "value" for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@dataclass(frozen=True, eq=False)
class Leaves:
    """A tree taken apart: the paths of its parameters, and what stays constant.

    Attributes:
        structure: The tree's structure.
        paths: The path of each leaf; None of those that are constant.
        constants: Each leaf; None of those that are parameters.
        dtypes: The dtype of each leaf that is a parameter, which `join` casts narrow ones to; None of others.
    """

    structure: Tree
    paths: tuple[str | None, ...]
    constants: tuple[object, ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, tree: Tree, what: str, learned: Callable[[object], bool] = is_float) -> Leaves:
        """Take a tree apart.

        Args:
            tree: The tree, of arrays or of their shapes.
            what: What messages call it, such as "model: Net".
            learned: Says of a leaf whether it is a parameter.

        Returns:
            The parts.

        Raises:
            ConfigError: If there are no parameters, or complex ones.
        """
        leaves, structure = jax.tree.flatten(tree)
        names = paths_of(tree)
        for path, leaf in zip(names, leaves, strict=True):
            if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                raise ConfigError(
                    f"{what}: {path}: expected real parameters, got {leaf.dtype}. Hint: keep the real and "
                    "the imaginary part as two arrays."
                )
        flags = [learned(leaf) for leaf in leaves]
        if not any(flags):
            raise ConfigError(
                f"{what}: expected parameters, float arrays, got none among {len(leaves)} leaves. Hint: pass "
                "a model that has weights."
            )
        triples = list(zip(names, leaves, flags, strict=True))
        return cls(
            structure,
            tuple(path if flag else None for path, _, flag in triples),
            tuple(None if flag else leaf for _, leaf, flag in triples),
            tuple(leaf.dtype if flag else None for _, leaf, flag in triples),
        )

    def select(self, tree: Tree) -> dict[str, Array]:
        """Return the parameters of a tree of this structure.

        Args:
            tree: The tree.

        Returns:
            Float arrays by path, of 32 bits or more.
        """
        leaves = jax.tree.leaves(tree)
        chosen = {path: leaf for path, leaf in zip(self.paths, leaves, strict=True) if path is not None}
        return {path: jnp.asarray(leaf) for path, leaf in widened(chosen).items()}

    def join(self, parameters: dict[str, Array]) -> Tree:
        """Return the tree with these parameters.

        Args:
            parameters: Arrays by path; those that were narrow are cast.

        Returns:
            The tree.
        """
        leaves = []
        for path, constant, dtype in zip(self.paths, self.constants, self.dtypes, strict=True):
            if path is None:
                leaves.append(constant)
            elif dtype.itemsize < NARROW:
                leaves.append(parameters[path].astype(dtype))
            else:
                leaves.append(parameters[path])
        return jax.tree.unflatten(self.structure, leaves)
