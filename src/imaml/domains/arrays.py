"""Checks of the arrays that users give: shapes, dtypes and finite values, with one message for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ..core.errors import DataError

KINDS = {  # what messages call them, what is accepted, and what an array becomes
    "float": ("numbers", np.number, np.float32),
    "int": ("whole numbers", np.integer, np.int32),
    "bool": ("booleans", np.bool_, np.bool_),
}


@dataclass(frozen=True)
class Field:
    """What one array must be: ``(rows, *shape)`` of a kind of numbers.

    Attributes:
        shape: The shape of one row; None for an axis of any length.
        kind: "float", "int" or "bool".
        below: Whole numbers run from 0 to below this one; None for any.
        rows: The name of the number of rows. Arrays of one batch with the same name have as many rows.
        column: Whether a last axis of length 1 may be omitted.
    """

    shape: tuple[int | None, ...] = ()
    kind: Literal["float", "int", "bool"] = "float"
    below: int | None = None
    rows: str = "n"
    column: bool = False

    def check(self, values: object, name: str) -> np.ndarray:
        """Return values as an array of this field's shape and kind.

        Args:
            values: An array, or nested lists of numbers.
            name: What messages call it.

        Returns:
            An array ``(rows, *shape)``, float32, int32 or boolean.

        Raises:
            DataError: If the shape or dtype does not fit, or a value is not finite or out of range.
        """
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise DataError(f"{name}: expected one array, got rows of different shapes.") from error
        if self.column and array.ndim == len(self.shape):
            array = array[..., None]
        sizes = [self.rows, *("any" if size is None else str(size) for size in self.shape)]
        wanted = f"({', '.join(sizes)}{',' * (len(sizes) == 1)}) with {self.rows} of at least 1"
        # None in `shape` accepts any size.
        fits = array.ndim == len(sizes) and all(
            size in (None, found) for size, found in zip(self.shape, array.shape[1:], strict=True)
        )
        if not fits or not array.size:
            raise DataError(f"{name}: expected shape {wanted}, got {array.shape}.")
        words, accepted, dtype = KINDS[self.kind]
        # np.number includes complex numbers, which no field accepts.
        if not jnp.issubdtype(array.dtype, accepted) or array.dtype.kind == "c":
            raise DataError(f"{name}: expected {words}, got dtype {array.dtype}.")
        if self.below is not None and (array.min() < 0 or array.max() >= self.below):
            raise DataError(
                f"{name}: expected whole numbers from 0 to {self.below - 1}, got {array.min()} to "
                f"{array.max()}."
            )
        # A float64 beyond the range of float32 becomes infinite, which the next check reports.
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
        if not np.all(np.isfinite(array)):
            raise DataError(
                f"{name}: expected finite numbers that float32 can hold, got "
                f"{int((~np.isfinite(array)).sum())} values that are not."
            )
        return array


def given(x: object, y: object, names: tuple[str, ...]) -> dict[str, object]:
    """Return a user's arrays by the names of a batch's fields.

    Args:
        x: A mapping, a NamedTuple, or the first field's array.
        y: The second field's array, or None.
        names: The batch's fields.

    Returns:
        The arrays by name.

    Raises:
        DataError: If there is a name that is not a field, or a ``y`` beside named arrays.
    """
    named = x._asdict() if hasattr(x, "_asdict") else x  # type: ignore[attr-defined]
    if not isinstance(named, Mapping):
        return dict(zip(names, (x,) if y is None else (x, y), strict=False))
    unknown = [name for name in named if name not in names]
    if unknown or y is not None:
        found = unknown[0] if unknown else "y beside them"
        raise DataError(f"adapt: expected arrays named {', '.join(names)}, got {found}.")
    return dict(named)


def require_fields(
    fields: Mapping[str, Field],
    arrays: Mapping[str, object],
    completed: Callable[[dict[str, np.ndarray]], Mapping[str, ArrayLike]],
) -> dict[str, jax.Array]:
    """Return the checked arrays of a support batch.

    Args:
        fields: What each array must be.
        arrays: The user's arrays by name.
        completed: Returns, from the checked arrays, those that may be omitted.

    Returns:
        JAX arrays by name, one for each field.

    Raises:
        DataError: If an array is missing or does not fit, or arrays differ in their number of rows.
    """
    checked = {name: fields[name].check(values, name) for name, values in arrays.items()}
    rows: dict[str, tuple[str, int]] = {}
    for name, array in checked.items():
        first, count = rows.setdefault(fields[name].rows, (name, len(array)))
        if len(array) != count:
            raise DataError(f"{name}: expected {count} rows, as {first} has, got {len(array)}.")
    if len(checked) < len(fields):
        checked = {**completed(checked), **checked} if checked else {}
    missing = [name for name in fields if name not in checked]
    if missing:
        raise DataError(
            f"adapt: expected the arrays {', '.join(fields)}, got no {missing[0]}. Hint: pass a mapping from "
            "these names to arrays."
        )
    return {name: jnp.asarray(checked[name]) for name in fields}
