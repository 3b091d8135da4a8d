"""A user's arrays and labels, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ...core.errors import DataError
from ...core.validation import some_of

Level = str | int | float | bool  # a class as the user names it
NUMBERS = (int, float, np.number, np.bool_)


def rows_alike(arrays: Mapping[str, np.ndarray], name: str) -> int:
    """Return how many rows arrays have.

    Args:
        arrays: The arrays by name.
        name: What messages call them together.

    Returns:
        The number.

    Raises:
        DataError: If they differ.
    """
    counts = {key or name: len(array) for key, array in arrays.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of {key}" for key, count in counts.items())
        raise DataError(f"{name}: expected arrays with the same number of rows, got {listed}.")
    return next(iter(counts.values()))


def as_array(values: object, name: str) -> np.ndarray:
    """Return values as an array of numbers.

    Args:
        values: An array of NumPy, JAX or pandas, or nested lists.
        name: What messages call them.

    Returns:
        The array, with a leading axis of rows.

    Raises:
        DataError: If they are not numbers, or rows have different shapes.
    """
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{name}: expected an array of numbers, got rows of different shapes or kinds. Hint: a list with "
            "the arrays of each task goes to Tasks.from_list."
        ) from error
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise DataError(
            f"{name}: expected numbers in all rows, got {np.ma.count_masked(values)} that are masked. Hint: "
            "drop these rows, or fill them in."
        )
    if array.dtype.kind == "O" and array.size and all(isinstance(item, NUMBERS) for item in array.ravel()):
        array = array.astype(np.float64)  # as of a data frame's columns of several kinds
    if array.dtype.kind == "O":
        kinds = sorted({type(item).__name__ for item in array.ravel()[:1000]})
        raise DataError(
            f"{name}: expected an array of numbers, got objects ({some_of(kinds)}). Hint: convert the values "
            "to numbers, and all rows to one shape."
        )
    if str(array.dtype) in ("bfloat16", "float16"):
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise DataError(
            f"{name}: expected numbers, got dtype {array.dtype}. Hint: code texts and dates as numbers."
        )
    if not array.ndim:
        raise DataError(f"{name}: expected an array with an axis of rows, got one number.")
    if not array.size:
        raise DataError(f"{name}: expected at least one row and one column, got shape {array.shape}.")
    return array


def finite_numbers(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array as float64, all of it finite, also in float32.

    Args:
        array: The array.
        name: What messages call it.

    Returns:
        The array.

    Raises:
        DataError: If a number is NaN, infinite or too large; the message counts them and names the first row.
    """
    require_finite(array, name)
    return array.astype(np.float64)


def require_finite(array: np.ndarray, name: str) -> None:
    """Check that all numbers of an array are finite, also in float32; without a copy of it.

    Args:
        array: The array.
        name: What messages call it.

    Raises:
        DataError: If one is not; see `finite_numbers`.
    """
    if array.dtype.kind != "f":
        return
    wanted, wrong = "finite numbers", ~np.isfinite(array)
    if not wrong.any():
        wanted, wrong = "numbers that float32 can hold", np.abs(array) > np.finfo(np.float32).max
    if wrong.any():
        first = np.argwhere(wrong)[0]
        raise DataError(
            f"{name}: expected {wanted}, got {array[tuple(first)]:g} in row {int(first[0])} "
            f"({int(wrong.sum())} in all). Hint: drop these rows, or fill them in."
        )


def labels_of(y: object, name: str, kind: str = "class") -> list[Level]:
    """Return labels as Python values.

    Args:
        y: An array or a sequence of texts, numbers or booleans, ``(rows,)``.
        name: What messages call them.
        kind: What one of them is.

    Returns:
        The labels.

    Raises:
        DataError: If they have another shape, or one is missing.
    """
    try:
        # An array of texts and numbers would turn the numbers into texts.
        array = np.asarray(y, dtype=object if isinstance(y, (list, tuple)) else None)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: expected one {kind} for each row, got rows of different shapes.") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not array.size:
        raise DataError(f"{name}: expected one {kind} for each row, shape (rows,), got {array.shape}.")
    scalar = lambda item: item.item() if getattr(item, "shape", None) == () else item  # noqa: E731
    labels = [scalar(item) for item in array.tolist()]
    for row, label in enumerate(labels):
        if not isinstance(label, Level) or (isinstance(label, float) and not math.isfinite(label)):
            raise DataError(
                f"{name}: expected a {kind} in each row, a text or a number, got {label!r} in row {row}."
            )
    return labels


def levels_of(labels: Iterable[Level]) -> tuple[Level, ...]:
    """Return the different labels in order: numbers before texts, each sorted.

    Args:
        labels: The labels.

    Returns:
        Each label once.
    """
    return tuple(sorted(set(labels), key=lambda level: (isinstance(level, str), level)))


def as_classes(levels: Sequence[Level]) -> np.ndarray:
    """Return levels as an array whose items are the levels, also where kinds are mixed.

    Args:
        levels: The levels.

    Returns:
        ``(levels,)``, of objects where texts and numbers are mixed.
    """
    kinds = {type(level) for level in levels}
    return np.array(levels, dtype=None if len(kinds) == 1 else object)


def extent(array: np.ndarray) -> str:
    """Return the dtype and the range of an array, for a message.

    Args:
        array: The array.

    Returns:
        The phrase.
    """
    return f"{array.dtype} from {array.min()} to {array.max()}"
