"""Which parameters a task adapts, as users of each library write it, as names of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ...core.errors import ConfigError
from ...core.tree import Tree, name
from ...core.validation import not_one_of
from .own import OwnModel

WHAT = "adapt: parameter or branch"


def adapt_names(model: object, adapt: object, parameters: Tree) -> tuple[str, ...] | None:
    """Return the names of the parameters that a task adapts.

    Args:
        model: The network, as `as_network` returns it.
        adapt: One of these:

            - None for all;
            - a path of a parameter or of a branch ("layers/2/weight", "layers/2", "layers"), or several;
            - a tree of booleans, such as a filter of Equinox: a module whose leaves are True or False;
            - for a module of Flax NNX a type of variables, such as `nnx.LoRAParam`, or a filter of NNX;
            - for a Haiku function a predicate ``(module_name, name, value) -> bool``;
            - a function ``path -> bool``, or one of all parameters that returns a tree of booleans.
        parameters: The parameters, as the network's `init` returns them, or their shapes.

    Returns:
        Paths of parameters and branches, as the `adapt` of problems and methods takes them; None for all.

    Raises:
        ConfigError: If a path is not known, nothing is selected, or it is none of these.

    Example:
        >>> import jax, imaml
        >>> network = imaml.MLP((3, 8, 1))
        >>> parameters = network.init(jax.random.key(0))
        >>> adapt_names(network, lambda path: path.endswith("bias"), parameters)
        ('layer1/bias', 'layer2/bias')
    """
    if adapt is None:
        return None
    paths = [name(path) for path, _ in jax.tree_util.tree_leaves_with_path(parameters)]
    if isinstance(adapt, str):
        found: Sequence[str] = (adapt,)
    elif isinstance(adapt, (tuple, list, set, frozenset)) and all(isinstance(one, str) for one in adapt):
        found = sorted(adapt)
    else:
        found = _selected(model, adapt, parameters, paths)
    branches = {
        "/".join(parts[:n]) for parts in (p.split("/") for p in paths) for n in range(1, len(parts) + 1)
    }
    for wanted in found:
        if wanted not in branches:
            raise ConfigError(not_one_of(WHAT, wanted, branches))
    if not found:
        raise ConfigError(
            f"adapt: expected at least one of {len(paths)} parameters, got a selection of none."
        )
    return tuple(found)


def _selected(model: object, adapt: object, parameters: Tree, paths: list[str]) -> Sequence[str]:
    """The paths that a filter selects."""
    found = model.held.chosen(adapt) if isinstance(model, OwnModel) else None
    if found is not None:
        return found
    # Before functions: a module of booleans can be called, too.
    marked = _marked(adapt)
    if marked is not None:
        return [path for path in marked if any(_related(path, other) for other in paths)]
    if callable(adapt) and not isinstance(adapt, type):
        return _by_function(adapt, parameters, paths)
    raise ConfigError(
        "adapt: expected None (all), a path such as 'head' or several, a tree of booleans, a function "
        f"path -> bool, or a filter of the model's library, got {adapt!r}."
    )


def _marked(tree: object) -> list[str] | None:
    """The paths of a tree's leaves that are True; None if it is not a tree of booleans."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves or not all(_is_flag(leaf) for _, leaf in leaves) or not leaves[0][0]:
        return None
    return [name(path) for path, leaf in leaves if bool(leaf)]


def _is_flag(leaf: object) -> bool:
    return isinstance(leaf, (bool, np.bool_)) or (
        hasattr(leaf, "dtype") and leaf.dtype == jnp.bool_ and leaf.ndim == 0  # type: ignore[attr-defined]
    )


def _by_function(function: Callable, parameters: Tree, paths: list[str]) -> Sequence[str]:
    """The paths that a function selects: of a path, or of all parameters."""
    try:
        mask = function(parameters)
    except Exception:  # a function of a path may do anything with a tree
        mask = None
    marked = _marked(mask)
    if marked is not None:
        return marked
    flags = []
    for path in paths:
        try:
            flags.append(function(path))
        except Exception as error:  # the user's own code
            raise ConfigError(
                f"adapt: expected a function path -> bool, got an error for the path {path!r} ({error})."
            ) from error
    if not all(_is_flag(flag) for flag in flags):
        raise ConfigError(f"adapt: expected a function path -> bool, got one that returns {flags[0]!r}.")
    return [path for path, flag in zip(paths, flags, strict=True) if flag]


def _branches(path: str) -> list[str]:
    """A path, and those of the branches that it is on."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _related(path: str, other: str) -> bool:
    """Whether a marked path is a parameter, or a branch with it."""
    return path == other or other.startswith(f"{path}/")
