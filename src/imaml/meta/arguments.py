"""Checks of what a method is called with: meta-parameters and tasks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..core.errors import ConfigError
from ..core.tree import Tree, name

WIDE = 4  # bytes of the floats that linear solves need
STACK = "jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks) stacks a list of Task(support, query)"


def require_parameters(owner: str, theta: Tree, wide: bool = False) -> None:
    """Check that meta-parameters are a tree of real floats.

    Args:
        owner: What is called, for the message.
        theta: The meta-parameters.
        wide: Whether they need 32 bits or more.

    Raises:
        ConfigError: If a leaf is anything else; the message names it.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        dtype = getattr(leaf, "dtype", None)
        real = isinstance(leaf, float) if dtype is None else jnp.issubdtype(dtype, jnp.floating)
        where = f"{owner}: theta{name(path) and ': ' + name(path)}"
        if not real:
            raise ConfigError(
                f"{where}: expected an array of real floats, got {_told(leaf)}. Hint: keep what is not "
                "learned out of theta, for example in the loss; imaml.fit takes models as they are."
            )
        if wide and dtype is not None and dtype.itemsize < WIDE:
            raise ConfigError(
                f"{where}: expected float32 or float64, as the implicit gradient solves linear systems, got "
                f"{dtype}. Hint: keep parameters in float32, and cast them in the loss; imaml.fit does so."
            )


def require_tasks(tasks: Tree) -> None:
    """Check that tasks have a support and a query set of arrays.

    Args:
        tasks: The tasks.

    Raises:
        ConfigError: If they are anything else.
    """
    if not hasattr(tasks, "support") or not hasattr(tasks, "query"):
        pair = isinstance(tasks, tuple) and len(tasks) == 2
        hint = "imaml.Task(*tasks)" if pair else STACK
        raise ConfigError(
            "tasks: expected imaml.Task(support, query), with a leading axis of tasks on every array, got a "
            f"{_kind(tasks)}. Hint: {hint}."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tasks):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        kind = getattr(dtype, "kind", "V")
        if callable(leaf) or kind in "OUSMm":
            raise ConfigError(f"tasks: {name(path)}: expected an array of numbers, got {_told(leaf)}.")


def _kind(value: object) -> str:
    return type(value).__name__


def _told(leaf: object) -> str:
    """What a leaf is, for a message."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None:
        return f"dtype {dtype}"
    return f"{leaf!r}" if isinstance(leaf, (int, str, complex)) else f"a {_kind(leaf)}"
