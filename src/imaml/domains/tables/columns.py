"""Which columns and rows of a table are used, and how that is reported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ...core.errors import DataError
from ...core.validation import some_of
from .cells import Table
from .layout import Column, Layout, too_many

LEVELS = 6  # of a category that are listed


class Kept(NamedTuple):
    """The rows of a table that are used.

    Attributes:
        table: The rows.
        missing: How many cells of each column were missing.
        dropped: How many rows were dropped for them.
    """

    table: Table
    missing: Mapping[str, int]
    dropped: int


def complete(table: Table, missing: str, needed: Iterable[str], features: Iterable[str]) -> Kept:
    """Return the rows that are used.

    Args:
        table: The rows.
        missing: What is done about missing cells: "error", "drop" for the rows, or "mean", which keeps those
            whose missing cells are features.
        needed: Columns without which a row is of no use: its task, its target, its weight.
        features: The columns to predict from.

    Returns:
        The rows that are left.

    Raises:
        DataError: If cells are missing and that is an error, or no row is left; counts them by column.
    """
    needed, features = list(needed), list(features)
    flags = {name: table.missing(name) for name in dict.fromkeys([*needed, *features])}
    counts = {name: int(flag.sum()) for name, flag in flags.items() if flag.any()}
    if not counts:
        return Kept(table, {}, 0)
    if missing == "error":
        raise missing_error(table, flags, "fill them, or set --missing=drop or --missing=mean.")
    dropping = needed if missing == "mean" else list(flags)
    kept = ~np.any([flags[name] for name in dropping], axis=0) if dropping else np.ones(table.rows, bool)
    if not kept.any():
        raise missing_error(table, flags, "no row is left without them: omit columns, or fill them.")
    dropped = int((~kept).sum())
    return Kept(table.take(np.flatnonzero(kept)) if dropped else table, counts, dropped)


def missing_error(table: Table, flags: Mapping[str, np.ndarray], hint: str) -> DataError:
    """Return the error on all missing cells of a table.

    Args:
        table: The rows.
        flags: Which cells are missing, by column.
        hint: What to do about them.

    Returns:
        A ``DataError`` with the first cell, and how many there are in each column.
    """
    there = {name: int(flag.sum()) for name, flag in flags.items() if flag.any()}
    row, first = min((int(np.argmax(flags[name])), place) for place, name in enumerate(there))
    name = list(there)[first]
    cell = table.columns[name][row]
    found = repr(cell) if cell.strip() else "an empty cell"
    if sum(there.values()) > 1:
        listed = some_of([f"{count} in {column!r}" for column, count in there.items()], 20)
        found += f" (missing in all: {listed})"
    return table.cell_error(name, row, "a value", hint, found)


def chosen(table: Table, used: Sequence[str], texts: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Choose the features of a user who names none: all columns but those that can say nothing.

    Args:
        table: The rows.
        used: The columns that are used for something else.
        texts: Columns that are categories.

    Returns:
        The features, and the reason for each excluded column.

    Raises:
        DataError: If a column mixes numbers and texts.
    """
    others = [name for name in table.columns if name not in used]
    reasons = {name: _reason(table, name, name in texts) for name in others}
    return tuple(n for n in others if not reasons[n]), {n: why for n, why in reasons.items() if why}


def _reason(table: Table, name: str, texts: bool) -> str:
    """Why a column is excluded; empty if it is not."""
    there = ~table.missing(name)
    if not there.any():
        return "has no values"
    seen = np.array(table.labels(name, "a feature"))[there]
    levels = np.unique(seen)
    if levels.size < 2:
        return f"has one value, {str(levels[0])!r}"
    kind = "texts" if texts else table.kind(name, "a feature")
    if kind == "texts":
        many = not texts and too_many(levels.size, seen.size)
        return f"has {levels.size} different texts in {seen.size} rows" if many else ""
    if kind == "numbers" and table.rows > 2 and there.all():
        # A counter of the rows, in any order: 0 to n - 1, 1 to n, or the numbers of a part of a table.
        values = np.sort(table.numbers(name, "a feature"))
        if np.array_equal(values, values[0] + np.arange(len(values))):
            return f"only numbers the rows, {values[0]:g} to {values[-1]:g}"
    return ""


def weights_of(table: Table, name: str | None) -> np.ndarray:
    """Return how many times each row counts.

    Args:
        table: The rows.
        name: The column of weights, or None for once.

    Returns:
        ``(rows,)``, float64.

    Raises:
        DataError: If a cell is not a number above 0.
    """
    if name is None:
        return np.ones(table.rows)
    values = table.numbers(name, "the weights")
    for row in np.flatnonzero(~(values > 0)):
        raise table.cell_error(name, row, "a weight above 0", "drop rows that do not count.")
    return values


def less_offset(table: Table, target: str, offset: str | None) -> Table:
    """Return the rows with a target from which the offset was subtracted.

    Args:
        table: The rows.
        target: The column to be predicted.
        offset: The column that is added to predictions, or None.

    Returns:
        The rows.

    Raises:
        DataError: If a column is not numeric.
    """
    if offset is None:
        return table
    for name in (target, offset):
        if table.kind(name, "the offset") != "numbers":
            raise DataError(f"{table.source}, column {name!r}: expected numbers with an offset, got others.")
    values = table.numbers(target, "the target") - table.numbers(offset, "the offset")
    return replace(table, columns={**table.columns, target: tuple(map(repr, values.tolist()))})


def described(
    table: Table,
    layout: Layout,
    task: str,
    others: Mapping[str, str | None],
    excluded: Mapping[str, str],
    kept: Kept,
    fill: bool,
) -> tuple[str, ...]:
    """Say how the columns of a table are read, a line for each.

    Args:
        table: The rows that are used.
        layout: How columns are coded.
        task: The column of tasks.
        others: The columns of weights and offset by these names, or None.
        excluded: Why columns are excluded.
        kept: What was done about missing cells.
        fill: Whether missing features are filled in.

    Returns:
        The lines.
    """
    sizes = np.unique(np.array(table.labels(task, "the task")), return_counts=True)[1]
    rows = f"{sizes.min()} to {sizes.max()}" if np.ptp(sizes) else f"{sizes[0]}"
    roles = {task: ("task", f"{sizes.size:,} tasks of {rows} rows")}
    roles[layout.target.name] = ("target", _coded(layout.target))
    roles |= {column.name: ("feature", _coded(column)) for column in layout.features}
    roles |= {name: (role, "numbers") for role, name in others.items() if name is not None}
    roles |= {name: ("excluded", f"{why}; to use it, name it in features") for name, why in excluded.items()}
    for name in table.columns:
        roles.setdefault(name, ("excluded", "not named in features"))
    features = {column.name for column in layout.features}
    for name, count in kept.missing.items():
        role, what = roles[name]
        done = "filled in" if fill and name in features else "rows dropped"
        roles[name] = (role, f"{what}; missing cells: {count}, {done}")
    width = max(map(len, roles))
    head = f"{table.source}: {table.rows:,} rows"
    head += f", and {kept.dropped:,} dropped for missing cells" if kept.dropped else ""
    return head, *(f"  {name:<{width}}  {role:<8}  {what}" for name, (role, what) in roles.items())


def _coded(column: Column) -> str:
    """What a column is, in words."""
    if column.levels is not None:
        return f"category: {some_of(column.levels, LEVELS)}"
    kind = "date, in days since 1970-01-01" if column.dates else "number"
    return f"{kind}: mean {column.mean:.6g}, standard deviation {column.scale:.6g}"
