"""Columns of data frames: of pandas, polars or the like, or of dicts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from ...core.errors import DataError
from ...core.tree import Tree
from ...core.validation import not_one_of, some_of
from .values import as_array, rows_alike


def columns_of(frame: object) -> dict[str, Tree]:
    """Return the columns of a data frame or a dict by name.

    Args:
        frame: A data frame of pandas, polars or the like, or a dict of columns.

    Returns:
        The columns; none if it is neither.
    """
    if isinstance(frame, Mapping):
        return {str(name): frame[name] for name in frame}
    names = getattr(frame, "columns", None)
    if names is None or not hasattr(frame, "__getitem__"):
        return {}
    return {str(name): frame[name] for name in names}  # type: ignore[index]


def numbers_of(frame: object, features: Sequence[str]) -> np.ndarray:
    """Return columns of numbers as one array.

    Args:
        frame: A data frame, or a dict of columns.
        features: The columns.

    Returns:
        float64 ``(rows, features)``.

    Raises:
        DataError: If columns are missing, are no numbers, or have missing cells; the message names them all.
    """
    columns = columns_of(frame)
    for name in features:
        if name not in columns:
            raise DataError(not_one_of("column", name, list(columns)))
    arrays = {name: np.asarray(columns[name]) for name in features}
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
            "name the columns to use, features=[...], or choose imaml.tables, which codes categories."
        )
    table = np.stack([as_array(array, f"column {name!r}") for name, array in arrays.items()], axis=1)
    table = table.astype(np.float64)
    missing = {name: int(n) for name, n in zip(features, np.isnan(table).sum(axis=0), strict=True) if n}
    if missing:
        told = some_of([f"{count} in {name!r}" for name, count in missing.items()])
        row = int(np.flatnonzero(np.isnan(table).any(axis=1))[0])
        raise DataError(
            f"columns: expected a number in each row, got missing cells ({told}), the first in row {row}. "
            "Hint: drop these rows, or fill them in."
        )
    return table


def warn_of_row_numbers(inputs: np.ndarray, names: Sequence[str]) -> None:
    """Warn of columns that nobody named and that only count the rows.

    Args:
        inputs: ``(rows, features)``.
        names: The columns' names.
    """
    rows = np.arange(len(inputs))
    counting = [
        name
        for name, column in zip(names, inputs.T, strict=True)
        if len(rows) > 2 and (np.array_equal(column, rows) or np.array_equal(column, rows + 1))
    ]
    if counting:
        warnings.warn(
            f"features: {some_of(counting)} only count(s) the rows, and is used as a feature. Hint: name the "
            "columns to use, features=[...].",
            RuntimeWarning,
            stacklevel=3,
        )
