"""Tasks as the domain of a run: those that it was fitted on, and others, coded in the same way."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.tree import Tree
from ...core.validation import some_of
from ..base import SPLITS
from .baselines import Pooled, pooled_model
from .collection import Tasks
from .domain import TasksDomain, TasksRecipe
from .interface import normalises, require_counts
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
        ConfigError: If they are not tasks.
        DataError: If they do not fit the run.
    """
    if not isinstance(tasks, Tasks):
        raise ConfigError(f"evaluate: tasks: expected imaml.Tasks, got a {type(tasks).__name__}.")
    tasks = _alike(recipe, tasks)
    usable = _usable(recipe, tasks)
    if recipe.episodes and usable.sum() < recipe.ways:
        raise DataError(
            f"evaluate: tasks: expected at least {recipe.ways} classes, as an episode has, got "
            f"{usable.sum()}."
        )
    if tasks.supports is not None:  # these, whichever rows the run has drawn
        supports, rest = (part[usable] for part in (tasks.supports, tasks.counts - tasks.supports))
        if normalises(recipe.model) and supports.min() < supports.max():
            raise DataError(
                "evaluate: tasks: expected support sets of the same size, as the model normalises by a "
                f"batch's statistics, which padding would change, got {supports.min()} to {supports.max()} "
                "rows."
            )
        sizes = {"support": int(supports.max()), "queries": int(rest.max())}
        recipe = replace(recipe, order="first", share=None, **sizes)
    return filled(recipe, tasks, {"test": np.flatnonzero(usable)})


def reread(recipe: TasksRecipe) -> TasksDomain:
    """Return the domain of the tasks in a recipe's file.

    Args:
        recipe: The recipe of a run.

    Returns:
        The domain that the run was fitted on; of a file of new tasks, that of `recoded`.

    Raises:
        DataError: If the file is missing, or its tasks do not fit, or others are in the splits than when the
            run was fitted, as then test tasks may be some of training.
    """
    assert recipe.file is not None
    file, tasks = recipe.file, recipe.file.read()
    if file.new:
        return recoded(recipe, tasks)
    tasks = _alike(recipe, tasks)
    usable = _usable(recipe, tasks)
    splits = tasks.splits(file.validation, file.test, file.seed, usable)
    now = divided(tasks, splits)
    if file.divided and now != file.divided:
        before, after = (text.partition(" ")[0] for text in (file.divided, now))
        raise DataError(
            f"{file.path}: expected the tasks that the run was fitted on (train/validation/test {before}), "
            f"got others ({after}), so that test tasks may be some of training. Hint: restore the file; or "
            "put new tasks in a file of their own, and score them with imaml evaluate RUN --data FILE."
        )
    return filled(recipe, tasks, splits)


def divided(tasks: Tasks, splits: Mapping[str, np.ndarray]) -> str:
    """Return what a run keeps of its splits, to notice that a file has gained or lost tasks.

    Args:
        tasks: The tasks.
        splits: The numbers of each split's groups.

    Returns:
        How many groups each split has, and a digest of their names, in whatever order.
    """
    names = {split: sorted(str(tasks.names[i]) for i in splits[split]) for split in SPLITS}
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
    return f"{'/'.join(str(len(each)) for each in names.values())} {digest}"


def _usable(recipe: TasksRecipe, tasks: Tasks) -> np.ndarray:
    """Which groups have enough rows for a run's support sets."""
    alike = recipe.episodes or normalises(recipe.model)
    return large_enough(tasks, recipe.support if alike else None)


def _alike(recipe: TasksRecipe, tasks: Tasks) -> Tasks:
    """The tasks, their columns in the order of the run's; DataError if they are not of its kind."""
    if tasks.episodes != recipe.episodes:
        wanted = "classes without targets" if recipe.episodes else "tasks with targets"
        raise DataError(f"evaluate: tasks: expected {wanted}, as the run was fitted on, got others.")
    if tasks.structure != recipe.layout.structure:
        raise DataError(
            f"evaluate: tasks: expected inputs of the structure {recipe.layout.structure}, as the run was "
            f"fitted on, got {tasks.structure}."
        )
    if (tasks.offset is not None) != bool(recipe.offset):
        wanted, got = ("an offset for each row", "none") if recipe.offset else ("no offsets", "some")
        raise DataError(f"evaluate: tasks: expected {wanted}, as the run was fitted on, got {got}.")
    if tasks.frame is None or not recipe.columns:
        return tasks
    target = recipe.layout.target
    count = 1 if target is None else int(np.prod(target.shape))
    targets, features = recipe.columns[1 : 1 + count], recipe.columns[1 + count :]
    if tasks.frame.targets != targets:
        raise DataError(
            f"evaluate: tasks: expected the target {', '.join(targets)}, as the run was fitted on, got "
            f"{', '.join(tasks.frame.targets)}."
        )
    return replace(tasks, inputs=(_in_order(tasks.inputs[0], tasks.frame.features, features),))


def _in_order(table: np.ndarray, names: tuple[str, ...], wanted: tuple[str, ...]) -> np.ndarray:
    """The columns that a run was fitted on, in its order; DataError if they are others."""
    if names == wanted:
        return table
    place = {name: i for i, name in enumerate(names)}
    texts = {name.partition("=")[0] for name in names if "=" in name}
    # A text of the run that no new row has is a column of zeros.
    none = {name for name in wanted if name not in place and name.partition("=")[0] in texts and "=" in name}
    missing = [name for name in wanted if name not in place and name not in none]
    strange = [name for name in names if name not in wanted]
    if missing or strange:
        lists = [f"no {some_of(missing)}"] * bool(missing) + [f"also {some_of(strange)}"] * bool(strange)
        raise DataError(
            f"evaluate: tasks: expected the columns {some_of(list(wanted), 20)}, as the run was fitted on, "
            f"got {' and '.join(lists)}. Hint: name the columns, features=[...]."
        )
    blank = np.zeros(len(table))
    return np.stack([blank if name in none else table[:, place[name]] for name in wanted], axis=1)


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
    offset = None if tasks.offset is None else tasks.offset / layout.offset_scale
    numbers = {name: np.asarray(splits.get(name, ()), np.int64) for name in SPLITS}
    pooled = Pooled.of(recipe.pooled, recipe.pooled_rows) if recipe.pooled else None
    if pooled is None and targets is not None and numbers["train"].size and not isinstance(row, Own):
        training = tasks.rows_of(numbers["train"])
        pooled = pooled_model(
            [array[training] for array in coded],
            layout.inputs,
            targets[training],
            times[training],
            None if offset is None else offset[training],
            row,
            len(layout.levels or ()),
            np.repeat(np.arange(len(tasks)), tasks.counts)[training],
        )
    return TasksDomain(
        inputs=jax.tree.map(jnp.asarray, assemble(json.loads(tasks.structure), coded.__getitem__)),
        targets=None if targets is None else jnp.asarray(targets),
        weights=jnp.asarray(times, jnp.float32),
        offset=None if offset is None else jnp.asarray(offset, jnp.float32),
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
        shots: Rows that a support set must have, if it is a whole number.

    Returns:
        Booleans ``(groups,)``.

    Raises:
        DataError: If none has.
    """
    least = shots + 1 if isinstance(shots, int) else 2
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
