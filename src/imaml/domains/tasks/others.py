"""Tasks as the domain of a run: those that it was fitted on, and others, coded in the same way."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.tree import Tree
from ...core.validation import some_of
from ..base import SPLITS
from .baselines import pooled_model
from .collection import Tasks
from .domain import TasksDomain, TasksRecipe
from .interface import require_counts
from .layout import assemble
from .own_losses import Own


def recoded(recipe: TasksRecipe, tasks: Tree) -> TasksDomain:
    """Return the domain of other tasks, coded as a run's recipe says.

    Args:
        recipe: The run's recipe.
        tasks: The tasks.

    Returns:
        The domain. All tasks are in the split "test". A task's support set has as many rows as in the run, or
        the same share of them.

    Raises:
        ConfigError: If they are no tasks.
        DataError: If they do not fit the run.
    """
    if not isinstance(tasks, Tasks):
        raise ConfigError(f"evaluate: tasks: expected imaml.Tasks, got a {type(tasks).__name__}.")
    _require_alike(recipe, tasks)
    usable = large_enough(tasks, recipe.support if recipe.episodes else None)
    if recipe.episodes and usable.sum() < recipe.ways:
        raise DataError(
            f"evaluate: tasks: expected at least {recipe.ways} classes, as an episode has, got "
            f"{usable.sum()}."
        )
    return filled(recipe, tasks, {"test": np.flatnonzero(usable)})


def reread(recipe: TasksRecipe) -> TasksDomain:
    """Return the domain of the tasks in a recipe's file.

    Args:
        recipe: The recipe of a run.

    Returns:
        The domain that the run was fitted on; of a file of new tasks, that of `recoded`.

    Raises:
        DataError: If the file is missing, or its tasks do not fit.
    """
    assert recipe.file is not None
    file, tasks = recipe.file, recipe.file.read()
    if file.new:
        return recoded(recipe, tasks)
    _require_alike(recipe, tasks)
    usable = large_enough(tasks, recipe.support if recipe.episodes else None)
    return filled(recipe, tasks, tasks.splits(file.validation, file.test, file.seed, usable))


def _require_alike(recipe: TasksRecipe, tasks: Tasks) -> None:
    """Check that tasks are of a run's kind (DataError)."""
    if tasks.episodes != recipe.episodes:
        wanted = "classes without targets" if recipe.episodes else "tasks with targets"
        raise DataError(f"evaluate: tasks: expected {wanted}, as the run was fitted on, got others.")
    if tasks.structure != recipe.layout.structure:
        raise DataError(
            f"evaluate: tasks: expected inputs of the structure {recipe.layout.structure}, as the run was "
            f"fitted on, got {tasks.structure}."
        )


def filled(
    recipe: TasksRecipe,
    tasks: Tasks,
    splits: Mapping[str, np.ndarray],
    supports: np.ndarray | None = None,
) -> TasksDomain:
    """Return the domain of a recipe with tasks in it.

    Args:
        recipe: The recipe.
        tasks: The tasks.
        splits: The numbers of each split's groups; none of a split that is missing.
        supports: The rows of each group's support set, ``(groups,)``; by default as the recipe says.

    Returns:
        The domain.

    Raises:
        DataError: If the tasks do not fit the recipe.
    """
    layout, row = recipe.layout, recipe.loss
    coded = [
        spec.check(array, "x").astype(np.uint8, copy=False) if spec.form == "bytes" else spec.code(array, "x")
        for array, spec in zip(tasks.inputs, layout.inputs, strict=True)
    ]
    targets = None
    if layout.levels is not None:
        targets = layout.classes(tasks.targets)
    elif layout.target is not None:
        targets = layout.numbers(tasks.targets)
        if row.targets == "counts":
            require_counts(targets, "y")
    times = np.ones(len(coded[0])) if tasks.weights is None else tasks.weights
    numbers = {name: np.asarray(splits.get(name, ()), np.int64) for name in SPLITS}
    pooled = None
    if targets is not None and numbers["train"].size and not isinstance(row, Own):
        training = tasks.rows_of(numbers["train"])
        pooled = pooled_model(
            [array[training] for array in coded],
            layout.inputs,
            targets[training],
            times[training],
            None if tasks.offset is None else tasks.offset[training],
            row,
            len(layout.levels or ()),
            np.repeat(np.arange(len(tasks)), tasks.counts)[training],
        )
    return TasksDomain(
        inputs=jax.tree.map(jnp.asarray, assemble(json.loads(tasks.structure), coded.__getitem__)),
        targets=None if targets is None else jnp.asarray(targets),
        weights=jnp.asarray(times, jnp.float32),
        offset=None if tasks.offset is None else jnp.asarray(tasks.offset, jnp.float32),
        first=jnp.asarray(tasks.first, jnp.int32),
        counts=jnp.asarray(tasks.counts, jnp.int32),
        supports=jnp.asarray(_supports(recipe, tasks) if supports is None else supports, jnp.int32),
        splits={name: jnp.asarray(numbers[name], jnp.int32) for name in SPLITS},
        pooled=pooled,
        most=int(tasks.counts.max()),
        recipe=recipe,
    )


def large_enough(tasks: Tasks, shots: float | None) -> np.ndarray:
    """Return which groups have enough rows; a warning names the others.

    Args:
        tasks: The tasks.
        shots: Rows of a support set, if it is a whole number.

    Returns:
        Booleans ``(groups,)``.

    Raises:
        DataError: If none has.
    """
    least = 2
    if tasks.episodes and isinstance(shots, int):
        least = shots + 1
    if tasks.supports is not None:
        usable = (tasks.supports >= 1) & (tasks.supports < tasks.counts)
    else:
        usable = tasks.counts >= least
    small = [str(tasks.names[i]) for i in np.flatnonzero(~usable)]
    what = "classes" if tasks.episodes else "tasks"
    if len(small) == len(tasks):
        raise DataError(
            f"fit: tasks: expected {what} of at least {least} rows, got none among {len(tasks)} "
            f"({tasks.source}). Hint: rows of one {what.rstrip('s')} must have the same label."
        )
    if small:
        warnings.warn(
            f"fit: {len(small)} of {len(tasks)} {what} are excluded, as they have fewer than {least} rows "
            f"({some_of(small)}).",
            RuntimeWarning,
            stacklevel=4,
        )
    return usable


def _supports(recipe: TasksRecipe, tasks: Tasks) -> np.ndarray:
    """The rows of each task's support set."""
    if tasks.supports is not None:
        return np.minimum(tasks.supports, recipe.support)
    if recipe.episodes:
        return np.full(len(tasks), recipe.support)
    wanted = np.full(len(tasks), recipe.support)
    if recipe.share:
        wanted = np.maximum(np.round(recipe.share * tasks.counts), 1).astype(np.int64)
    return np.minimum(np.minimum(wanted, np.maximum(tasks.counts - 1, 1)), recipe.support)
