"""From a table and a recipe to a domain: tasks, splits, coding."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.validation import not_one_of, some_of
from ..base import SPLITS
from .cells import Table, label_of
from .columns import chosen, complete, described, less_offset, weights_of
from .layout import Layout, column_of
from .mixed_model import INTERCEPT

if TYPE_CHECKING:
    from .domain import Tables, TablesRecipe

NONE = "none"  # features
MOST = 256  # rows of a support set, and of a query set, that a training step draws of a larger task
MOST_WHOLE = 1024  # rows where a training step learns from all rows


def build(recipe: TablesRecipe, table: Table) -> Tables:
    """Build the domain of a table that was read.

    Args:
        recipe: The recipe.
        table: The table.

    Returns:
        The domain.

    Raises:
        ConfigError: If columns are missing or used twice.
        DataError: If the table does not fit the recipe.

    Warns:
        RuntimeWarning: If tasks of one row are excluded from an evaluation.
    """
    assert recipe.task is not None
    assert recipe.target is not None
    _refuse_crossed(recipe.task, table)
    roles = {"the task": recipe.task, "the target": recipe.target}
    roles |= {"the weights": recipe.weights, "the offset": recipe.offset}
    used = [name for name in roles.values() if name is not None]
    for what, name in roles.items():
        if name is not None:
            table.column(name, what)
    none = recipe.features == (NONE,) and NONE not in table.columns
    given = () if none else recipe.features
    for name in (*given, *recipe.texts):
        table.column(name, "a feature")
    named = (*used, *given)
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ConfigError(
            f"domain: features: expected columns other than the task {recipe.task!r} and the target "
            f"{recipe.target!r}, each once, got {', '.join(twice)} twice."
        )
    layout, excluded = recipe.layout, {}
    features = tuple(column.name for column in layout.features) if layout else given
    if not features and not none:
        features, excluded = chosen(table, used, recipe.texts)
    if not features and not none:
        reasons = some_of([f"{name} {why}" for name, why in excluded.items()])
        raise ConfigError(
            f"domain: features: expected columns other than the task {recipe.task!r} and the target "
            f"{recipe.target!r}, one at least, got none{f' ({reasons})' if excluded else ''}. Hint: "
            "for a model with only an intercept, choose features 'none'."
        )
    for name in recipe.random:
        if name not in (INTERCEPT, *features):
            raise ConfigError(not_one_of("domain: random: coefficient", name, (INTERCEPT, *features)))
    if recipe.hidden and not features:
        raise ConfigError("domain: hidden: expected features with hidden layers, got none.")
    for name in (*features, recipe.target) if layout is None else ():
        if name not in recipe.texts:
            table.kind(name, "a column")  # so that a cell in doubt is reported before anything else
    kept = complete(table, recipe.missing, used, features)
    table = less_offset(kept.table, recipe.target, recipe.offset)
    labels = np.array(table.labels(recipe.task, "the task"))
    names = list(dict.fromkeys(labels.tolist()))
    splits = layout.splits if layout else _split(recipe, names, table.source)
    if layout is None:
        training = np.isin(labels, splits[0])
        code = lambda name, what: column_of(  # noqa: E731
            table, name, what, training, name in recipe.texts, recipe.dates
        )
        columns = tuple(code(name, "a feature") for name in features)
        layout = Layout(columns, code(recipe.target, "the target"))
    inputs, targets = layout.code(table, recipe.unseen), layout.targets(table)
    weights = weights_of(table, recipe.weights)
    digest = _digest(labels, inputs, targets)
    if not splits:  # of an artefact, on the table that it was trained on or on another
        known = layout.digest == digest
        splits = _split(recipe, names, table.source) if known else ((), (), tuple(names))
    if recipe.layout is None:
        pooled = _pooled(inputs, targets, weights, training, layout)
        layout = replace(layout, digest=digest, pooled=pooled)
    recipe = replace(recipe, layout=replace(layout, splits=splits))
    others = {"weights": recipe.weights, "offset": recipe.offset}
    read_as = described(table, layout, str(recipe.task), others, excluded, kept, recipe.missing == "mean")
    return _domain(recipe, table.source, labels, names, (inputs, targets, weights), read_as)


def _refuse_crossed(task: str, table: Table) -> None:
    """Raise ConfigError where several columns are named as the task."""
    parts = [part.strip() for part in task.replace("*", ",").replace(":", ",").replace("/", ",").split(",")]
    if len(parts) > 1 and task not in table.columns and all(part in table.columns for part in parts):
        raise ConfigError(
            f"domain: task: expected one column, got {len(parts)} ({some_of(parts)}). Hint: a task is a "
            "group of rows; for crossed or nested factors use lme4 or glmmTMB in R, or bambi or statsmodels "
            "in Python."
        )


def _domain(
    recipe: TablesRecipe,
    source: str,
    labels: np.ndarray,
    names: list[str],
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    read_as: tuple[str, ...],
) -> Tables:
    """The domain of coded rows: those of one task after those of another."""
    from .domain import Tables

    layout, splits = recipe.fixed, recipe.fixed.splits
    number = {name: i for i, name in enumerate(names)}
    strange = sorted({label_of(name) for split in splits for name in split} ^ set(names))
    if strange:
        raise DataError(
            f"{source}: expected the tasks that this run started with, got others ({strange[0]!r}, ...). "
            "Hint: continue with the table as it was, or begin a new run with --from."
        )
    groups = np.array([number[label] for label in labels])
    order = np.argsort(groups, kind="stable")
    inputs, targets, weights = (array[order] for array in arrays)
    counts = np.bincount(groups, minlength=len(names))
    first = np.cumsum(counts) - counts
    numbers = [np.array([number[label_of(name)] for name in split], np.int32) for split in splits]
    small = [names[i] for i in np.flatnonzero(counts < 2)]
    if small and recipe.holdout != "none" and numbers[0].size:
        raise DataError(
            f"{source}: expected at least 2 rows of each task, one of them for its query set, got 1 of "
            f"{small[0]!r}. Hint: omit that task, or set --domain.holdout=none."
        )
    if not numbers[0].size:  # an evaluation of new tasks
        numbers = [part[counts[part] > 1] for part in numbers]
        if small:
            warnings.warn(
                f"{source}: {len(small)} of {len(names)} tasks are not scored, as they have one row "
                f"({some_of(small)}).",
                RuntimeWarning,
                stacklevel=2,
            )
        if not numbers[2].size:
            raise DataError(f"{source}: expected tasks of at least 2 rows to score, got none.")
    wanted = (counts + 1) // 2 if recipe.shots is None else recipe.shots
    supports = np.clip(np.minimum(wanted, MOST), 1, np.maximum(counts - 1, 1))
    first_whole, counts_whole = first, counts
    if recipe.holdout == "none" and not recipe.hidden and layout.target.levels is None:
        pieces = [
            _equivalent(*(array[i : i + n] for array in (inputs, targets, weights)))
            for i, n in zip(first, counts, strict=True)
        ]
        counts_whole = np.array([len(piece[0]) for piece in pieces])
        first_whole = len(inputs) + np.cumsum(counts_whole) - counts_whole
        inputs, targets, weights = (
            np.concatenate([array, *parts])
            for array, parts in zip((inputs, targets, weights), zip(*pieces, strict=True), strict=True)
        )
    kind = np.float32 if layout.target.levels is None else np.int32
    indices = lambda part: jnp.asarray(part, jnp.int32)  # noqa: E731
    return Tables(
        inputs=jnp.asarray(inputs, jnp.float32),
        targets=jnp.asarray(targets.astype(kind)),
        weights=jnp.asarray(weights, jnp.float32),
        first=indices(first),
        counts=indices(counts),
        supports=indices(supports),
        whole_first=indices(first_whole),
        whole_counts=indices(counts_whole),
        splits=dict(zip(SPLITS, map(indices, numbers), strict=True)),
        most=int(counts.max()),
        sizes=(int(supports.max()), int(np.minimum(np.maximum(counts - supports, 1), MOST).max())),
        whole_most=min(int(counts_whole.max()), MOST_WHOLE),
        recipe=recipe,
        read_as=read_as,
    )


def _equivalent(inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """At most inputs + 2 rows that every linear model has the same weighted sum of squared errors on.

    With A = sqrt(w) [1, X, y] and the triangle R of A = QR, |A c| = |R c| for every c. A reflection H that
    takes the first column of R, (r, 0, ..., 0), to the multiples (s, ..., s) of ones makes H R such rows
    again, [1, X', y'] each of weight s^2. The sum of the weights is r^2 = sum w.
    """
    rows = inputs.shape[1] + 2
    if len(inputs) <= rows:
        return inputs, targets, weights
    design = np.sqrt(weights)[:, None] * np.column_stack([np.ones(len(inputs)), inputs, targets])
    triangle = np.asarray(np.linalg.qr(design, mode="r"))
    size = triangle[0, 0] / np.sqrt(rows)
    normal = -np.full(rows, size)
    normal[0] += triangle[0, 0]
    triangle -= np.outer(normal, 2 * (normal @ triangle) / (normal @ normal))
    return triangle[:, 1:-1] / size, triangle[:, -1:] / size, np.full(rows, size**2)


def _digest(labels: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> str:
    """A digest of a coded table, the same for all files of the same content."""
    found = hashlib.sha256("\n".join(labels).encode())
    for array in (inputs, targets):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


def _split(recipe: TablesRecipe, names: list[str], source: str) -> tuple[tuple[str, ...], ...]:
    """The names of each split's tasks: shares rounded, one task at least if a share is asked for."""
    shares = (recipe.validation, recipe.test)
    sizes = [max(1, round(share * len(names))) if share else 0 for share in shares]
    if len(names) <= max(1, sum(sizes)):
        raise DataError(
            f"{source}, column {recipe.task!r}: expected several tasks, enough for shares of {shares[0]:g} "
            f"(validation) and {shares[1]:g} (test), got {len(names)}. Hint: lower the shares, or add tasks."
        )
    mixed = np.random.default_rng(recipe.seed).permutation(names).tolist()
    first, last = len(names) - sum(sizes), len(names) - sizes[1]
    return tuple(mixed[:first]), tuple(mixed[first:last]), tuple(mixed[last:])


def _pooled(
    inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray, rows: np.ndarray, layout: Layout
) -> tuple[tuple[float, ...], ...]:
    """Least squares of all training rows at once, (inputs + 1, outputs); of classes their indicators."""
    design = np.column_stack([np.ones(rows.sum()), inputs[rows]])
    wanted = targets[rows] if layout.target.levels is None else np.eye(layout.outputs)[targets[rows]]
    root = np.sqrt(weights[rows])[:, None]
    found = np.linalg.lstsq(root * design, root * wanted, rcond=None)[0]
    return tuple(map(tuple, found.tolist()))
