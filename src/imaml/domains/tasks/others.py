"""Other tasks than those that a run was fitted on, coded in the same way."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.tree import Tree
from .build import large_enough
from .collection import Tasks
from .domain import TasksDomain, TasksRecipe
from .interface import require_counts
from .layout import assemble


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
    layout = recipe.layout
    if tasks.episodes != recipe.episodes:
        wanted = "classes without targets" if recipe.episodes else "tasks with targets"
        raise DataError(f"evaluate: tasks: expected {wanted}, as the run was fitted on, got others.")
    if tasks.structure != layout.structure:
        raise DataError(
            f"evaluate: tasks: expected inputs of the structure {layout.structure}, as the run was fitted "
            f"on, got {tasks.structure}."
        )
    coded = [
        spec.check(array, "x").astype(np.uint8) if spec.form == "bytes" else spec.code(array, "x")
        for array, spec in zip(tasks.inputs, layout.inputs, strict=True)
    ]
    targets = None
    if layout.levels is not None:
        targets = layout.classes(tasks.targets)
    elif layout.target is not None:
        targets = layout.numbers(tasks.targets)
        if recipe.loss.targets == "counts":
            require_counts(targets, "y")
    usable = large_enough(tasks, recipe.support if recipe.episodes else None)
    if recipe.episodes and usable.sum() < recipe.ways:
        raise DataError(
            f"evaluate: tasks: expected at least {recipe.ways} classes, as an episode has, got "
            f"{usable.sum()}."
        )
    splits = {name: np.zeros(0, np.int64) for name in ("train", "validation")} | {
        "test": np.flatnonzero(usable)
    }
    weights = np.ones(len(coded[0])) if tasks.weights is None else tasks.weights
    return TasksDomain(
        jax.tree.map(jnp.asarray, assemble(json.loads(tasks.structure), coded.__getitem__)),
        None if targets is None else jnp.asarray(targets),
        jnp.asarray(weights, jnp.float32),
        None if tasks.offset is None else jnp.asarray(tasks.offset, jnp.float32),
        jnp.asarray(tasks.first, jnp.int32),
        jnp.asarray(tasks.counts, jnp.int32),
        jnp.asarray(_supports(recipe, tasks), jnp.int32),
        {name: jnp.asarray(numbers, jnp.int32) for name, numbers in splits.items()},
        None,
        int(tasks.counts.max()),
        recipe,
    )


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
