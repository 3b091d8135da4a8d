"""Class numbers of each split of a table of images, checked against the tasks of a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import DataError
from ...core.validation import some_of
from .images import SPLITS, Images

if TYPE_CHECKING:
    from .domain import FewShotRecipe


def splits_of(recipe: FewShotRecipe, table: Images) -> dict[str, Array]:
    """Return the classes of each split that have enough images; warn if some classes are excluded.

    Args:
        recipe: The recipe.
        table: The images.

    Returns:
        Class numbers by split, each int32 ``(classes,)``.

    Raises:
        DataError: If a split has too few classes, or a class too few images.
    """
    given = table.splits if recipe.validation else merged(table.splits)
    splits = {}
    for name in SPLITS:
        ids = np.asarray(given.get(name, ()), np.int32)
        # Of a folder only the test split is used. Without validation its split is empty.
        if (recipe.source == "folder" and name != "test") or (name == "validation" and not recipe.validation):
            splits[name] = jnp.asarray(ids)
            continue
        # A task draws `ways` classes, and `shots` + `queries` distinct images of each. The split "train" has
        # tasks of training, and tasks like new ones where an evaluation asks for them.
        ways, wanted, names = recipe.ways, recipe.shots + recipe.queries, ""
        if name == "train":
            steps = [recipe.in_training(i) for i in range(max(1, len(recipe.train_shots)))]
            ways = max(ways, steps[0].ways)
            wanted = max(wanted, *(one.shots + one.queries for one in steps))
            names = "train_" * (ways > recipe.ways or wanted > recipe.shots + recipe.queries)
        if ids.size < ways:
            raise DataError(
                f"{name} split: expected at least {ways} classes (the ways), got {ids.size}. Hint: "
                f"lower --domain.{names}ways, or add classes."
            )
        least, enough = ids[np.argmin(table.count[ids])], ids[table.count[ids] >= wanted]
        if enough.size < ways:
            raise DataError(
                f"class {table.names[least]!r} of the {name} split: expected at least {wanted} images (shots "
                f"and queries), got {table.count[least]}. Hint: lower --domain.{names}shots or "
                f"--domain.{names}queries."
            )
        if enough.size < ids.size:
            small = [table.names[i] for i in ids if table.count[i] < wanted]
            warnings.warn(
                f"{name} split: {len(small)} of {ids.size} classes are excluded, as they have fewer than "
                f"{wanted} images, shots and queries ({some_of(small)}).",
                RuntimeWarning,
                stacklevel=2,
            )
        splits[name] = jnp.asarray(enough)
    return splits


def merged(splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the splits with the validation classes moved to the training split.

    Args:
        splits: Class numbers by split, each ``(classes,)``.

    Returns:
        The splits; that of validation is empty.
    """
    both = np.concatenate([splits.get(name, np.zeros(0, np.int32)) for name in ("train", "validation")])
    return {**splits, "train": both, "validation": both[:0]}


def require_group(asked: str, ways: int, groups: np.ndarray, hint: str) -> None:
    """Check that at least one group has enough classes for a task.

    Args:
        asked: The option that needs it, for the message.
        ways: Classes of a task.
        groups: The group of each class, ``(classes,)``.
        hint: The remedy, for the message.

    Raises:
        DataError: If no group has ``ways`` classes.
    """
    most = int(np.unique(groups, return_counts=True)[1].max(initial=0))
    if most < ways:
        raise DataError(
            f"domain: {asked}: expected a group (an alphabet) of at least {ways} classes (the ways), got "
            f"{most} in the largest. Hint: {hint}."
        )
