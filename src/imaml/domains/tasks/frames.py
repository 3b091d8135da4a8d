"""Columns of data frames: of pandas, polars or the like, or of dicts."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from ...core.errors import DataError
from ...core.tree import Tree
from ...core.validation import some_of
from .values import as_array, rows_alike

MOST_LEVELS = 50  # texts of a column; one with more is a name or a key
MISSING = ("None", "nan", "<NA>", "NaT")  # how missing cells of pandas and polars print


def columns_of(frame: object) -> dict[str, Tree]:
    """Return the columns of a data frame or a dict by name.

    Args:
        frame: A data frame of pandas, polars or the like, or a dict of columns.

    Returns:
        The columns; none if it is neither.
    """
    if isinstance(frame, Mapping):
        return {str(name): frame[name] for name in frame}
    if hasattr(frame, "collect") and hasattr(frame, "lazy"):
        raise DataError("frame: expected a data frame, got a lazy one. Hint: frame.collect() reads it.")
    names = getattr(frame, "columns", None)
    if names is None or not hasattr(frame, "__getitem__"):
        return {}
    return {str(name): frame[name] for name in names}  # type: ignore[index]


def taken(columns: Mapping[str, Tree], rows: np.ndarray) -> dict[str, Tree]:
    """Return some rows of columns.

    Args:
        columns: Columns by name.
        rows: The places of the rows.

    Returns:
        The columns; lists stay lists, whose numbers beside texts stay numbers.
    """
    return {
        name: [column[i] for i in rows] if isinstance(column, list | tuple) else np.asarray(column)[rows]
        for name, column in columns.items()
    }


def coded_names(frame: object, features: Sequence[str], task: str) -> tuple[str, ...]:
    """Return the columns, with one column for each text of those that hold texts.

    Args:
        frame: A data frame, or a dict of columns.
        features: The columns.
        task: The column whose values name the tasks.

    Returns:
        Names that `numbers_of` takes: of "colour" with the texts "blue" and "red" these are "colour=blue" and
        "colour=red".

    Raises:
        DataError: If a column of texts has missing cells or more than 50 different texts, or most of them are
            in one task only, so that new tasks would have others.
    """
    columns = columns_of(frame)
    labels = np.asarray(columns[task]).tolist()
    found: list[str] = []
    for name in features:
        if name not in columns or not _holds_texts(columns[name]):
            found.append(name)
            continue
        tasks: dict[str, set] = {}
        for text, label in zip(_texts(columns[name], name), labels, strict=False):
            tasks.setdefault(text, set()).add(label)
        levels = sorted(tasks)
        alone = [level for level in levels if len(tasks[level]) == 1]
        if len(levels) > MOST_LEVELS or 2 * len(alone) > len(levels):
            raise DataError(
                f"column {name!r}: expected numbers, or at most {MOST_LEVELS} texts, most of them in two "
                f"tasks or more, got {len(levels)} texts such as {levels[0]!r}, of which {len(alone)} are in "
                "one task only. Hint: name the columns to use, features=[...]."
            )
        found += [f"{name}={level}" for level in levels]
    return tuple(found)


def _holds_texts(column: Tree) -> bool:
    """Whether the cells that are there are texts."""
    array = np.asarray(column)
    if array.ndim != 1 or array.dtype.kind not in "OUT":
        return False
    cells = _cells(column)
    return any(isinstance(cell, str) for cell in cells) and all(
        isinstance(cell, str) or str(cell) in MISSING for cell in cells
    )


def _cells(column: Tree) -> list:
    """The cells of a column; NumPy would make texts of numbers beside texts."""
    return list(column) if isinstance(column, list | tuple) else np.asarray(column).tolist()


def _texts(column: Tree, name: str) -> list[str]:
    """The cells of a column of texts."""
    cells = _cells(column)
    missing = [row for row, cell in enumerate(cells) if not isinstance(cell, str)]
    if missing:
        raise DataError(
            f"column {name!r}: expected a text in each row, got {len(missing)} others, the first in row "
            f"{missing[0]} ({cells[missing[0]]!r}). Hint: drop these rows, or fill them in."
        )
    return cells


def _coded(columns: Mapping[str, Tree], features: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns that `coded_names` has named. A text that it did not see has no column: DataError."""
    found: dict[str, np.ndarray] = {}
    levels: dict[str, list[str]] = {}
    for name in features:
        column = next((known for known in columns if name.startswith(f"{known}=")), None)
        if name in columns:
            found[name] = np.asarray(columns[name])
        elif column is None:
            wanted = name.partition("=")[0]
            near = difflib.get_close_matches(wanted, columns, 1)
            raise DataError(
                f"columns: expected {wanted!r} among them, got {some_of(list(columns))}."
                + (f" Hint: is {near[0]!r} meant?" if near else "")
            )
        else:
            level = name[len(column) + 1 :]
            levels.setdefault(column, []).append(level)
            found[name] = np.array([cell == level for cell in _texts(columns[column], column)])
    for column, known in levels.items():
        unseen = sorted(set(_texts(columns[column], column)).difference(known))
        if unseen:
            raise DataError(
                f"column {column!r}: expected one of {some_of(known)}, as the run learned from, got "
                f"{some_of(unseen)}."
            )
    return found


def numbers_of(frame: object, features: Sequence[str]) -> np.ndarray:
    """Return columns of numbers as one array.

    Args:
        frame: A data frame, or a dict of columns.
        features: The columns. "colour=blue" is 1 where the column "colour" is "blue", else 0.

    Returns:
        float64 ``(rows, features)``.

    Raises:
        DataError: If columns are missing, are not numbers, or have missing cells; the message names them all.
    """
    arrays = _coded(columns_of(frame), features)
    flat = [name for name, array in arrays.items() if array.ndim != 1]
    if flat:
        raise DataError(
            f"columns: expected one number in each row, got shape {arrays[flat[0]].shape} in {flat[0]!r}."
        )
    rows_alike(arrays, "columns")
    strange = [name for name, array in arrays.items() if array.dtype.kind not in "fiub"]
    if strange:
        column = arrays[strange[0]]
        example = f", for example {column[:1].tolist()[0]!r}" if len(column) else ""
        raise DataError(
            f"columns: expected numbers, got others in {some_of(strange)} ({column.dtype}{example}). Hint: "
            "name the columns to use, features=[...]."
        )
    table = np.stack([as_array(array, f"column {name!r}") for name, array in arrays.items()], axis=1)
    table = table.astype(np.float64)
    missing = {name: int(n) for name, n in zip(features, np.isnan(table).sum(axis=0), strict=True) if n}
    if missing:
        listed = some_of([f"{count} in {name!r}" for name, count in missing.items()])
        row = int(np.flatnonzero(np.isnan(table).any(axis=1))[0])
        raise DataError(
            f"columns: expected a number in each row, got missing cells ({listed}), the first in row {row}. "
            "Hint: drop these rows, or fill them in."
        )
    return table


def warn_of_keys(inputs: np.ndarray, names: Sequence[str]) -> None:
    """Warn of columns that nobody named, and that only count the rows or seem to be keys.

    Args:
        inputs: ``(rows, features)``.
        names: The columns' names.
    """
    rows = np.arange(len(inputs))
    counting, keys = [], []
    for name, column in zip(names, inputs.T, strict=True):
        if len(rows) > 2 and (np.array_equal(column, rows) or np.array_equal(column, rows + 1)):
            counting.append(name)
        elif name.lower().endswith("id") and not np.any(column % 1):
            keys.append(name)
    for found, what in ((counting, "only count the rows"), (keys, "seem to be keys")):
        if found:
            warnings.warn(
                f"features: columns that {what} are used as numbers: {some_of(found)}. Hint: name the "
                "columns to use, features=[...].",
                RuntimeWarning,
                stacklevel=3,
            )
