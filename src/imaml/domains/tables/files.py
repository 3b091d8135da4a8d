"""Tables from files: CSV, or Parquet where pyarrow is installed; a cell that is in doubt is refused.

Nothing is guessed: a column is numeric where every cell is a finite number as Python writes it, else it is
texts; a column with both is refused, with the first cell that does not fit.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import DataError
from ...core.validation import not_one_of, some_of, suggestion

MISSING = frozenset({"", "na", "nan", "null", "none", "n/a", "?"})
FLOAT32 = np.finfo(np.float32)  # what tables are computed in


@dataclass(frozen=True)
class Table:
    """Columns of texts, all of one length. source: where they came from, for messages."""

    columns: Mapping[str, tuple[str, ...]]
    source: str

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, what: str) -> tuple[str, ...]:
        """A column's texts; DataError where there is none, or a cell is empty."""
        if name not in self.columns:
            raise DataError(not_one_of(f"{self.source}: column of {what}", name, self.columns))
        cells = self.columns[name]
        for row, cell in enumerate(cells):
            if cell.strip().lower() in MISSING:
                raise DataError(
                    f"{self.source}, row {row + 1}, column {name!r}: the cell is missing ({cell!r}); fill "
                    "it, or leave the row out."
                )
        return cells

    def numbers(self, name: str, what: str) -> np.ndarray:
        """A column of numbers.

        Args:
            name: The column.
            what: What the column is for, for the message if there is none.

        Returns:
            Floats, ``(rows,)``, float64, none of them beyond the range of float32.

        Raises:
            DataError: If there is no such column, or if a cell is missing, no finite number, or too large
                for float32; names the first such cell.
        """
        cells = self.column(name, what)
        values = np.array([_number(cell) for cell in cells])
        for row in np.flatnonzero(~np.isfinite(values)):
            raise DataError(
                f"{self.source}, row {row + 1}, column {name!r}: {cells[row]!r} is no finite number; "
                "accepted are numbers such as 12.5 (with a point)."
            )
        for row in np.flatnonzero(np.abs(values) > float(FLOAT32.max)):
            raise self.refused(
                name,
                int(row),
                f"a number between -{FLOAT32.max:.4g} and {FLOAT32.max:.4g}, the range of float32",
                "correct the cell, or give the column in a larger unit.",
            )
        return values

    def refused(self, name: str, row: int, expected: str, hint: str) -> DataError:
        """The error on one cell.

        Args:
            name: The cell's column.
            row: The cell's row, from 0.
            expected: What was expected in its place.
            hint: What to do about it.

        Returns:
            A ``DataError`` with the file, the row counted from 1, the column and the value.
        """
        return DataError(
            f"{self.source}, row {row + 1}, column {name!r}: expected {expected}, got "
            f"{self.columns[name][row]!r}. Hint: {hint}"
        )

    def numeric(self, name: str, what: str) -> bool:
        """Whether a column is one of numbers; DataError where some cells are, and some are not."""
        cells = self.column(name, what)
        are = [bool(np.isfinite(_number(cell))) for cell in cells]
        if any(are) and not all(are):
            row = are.index(False)
            raise DataError(
                f"{self.source}, row {row + 1}, column {name!r}: {cells[row]!r} is no finite number, but "
                f"{sum(are)} of {len(are)} cells are; mend it, or say --domain.texts={name} for a column of "
                "categories."
            )
        return all(are)


def _number(cell: str) -> float:
    """The finite number that a text means, else NaN; "1_000", which Python takes, is none."""
    try:
        value = float(cell)
    except ValueError:
        return np.nan
    return value if np.isfinite(value) and "_" not in cell else np.nan


def read_table(path: str | Path) -> Table:
    """Read a table with a header.

    Args:
        path: A .csv, .tsv or .parquet file.

    Returns:
        The table.

    Raises:
        DataError: If it is none.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; accepted is a file, .csv, .tsv or .parquet.")
    if not path.is_file():
        near = path.parent.glob("*.csv") if path.parent.is_dir() else ()
        raise DataError(f"{path}: expected a file, got none.{suggestion(path.name, [p.name for p in near])}")
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text ({error.reason}); save it as CSV in UTF-8.") from error
    between = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        lines = [line for line in csv.reader(text.splitlines(), delimiter=between, strict=True) if line]
    except csv.Error as error:
        raise DataError(f"{path}: no CSV ({error}).") from error
    if len(lines) < 2:
        raise DataError(f"{path}: has {len(lines)} lines; accepted are a header and at least one row.")
    header = [name.strip() for name in lines[0]]
    if len(header) == 1 and any(other in header[0] for other in ",;|\t"):
        raise DataError(
            f"{path}: has one column, {header[0]!r}; accepted are several, with {between!r} between them."
        )
    for row, line in enumerate(lines[1:]):
        if len(line) != len(header):
            raise DataError(
                f"{path}, row {row + 1}: {len(line)} cells where the header has {len(header)}; a comma "
                'within a cell needs quotes, "1,5".'
            )
    return table_of(dict(_named(header, zip(*lines[1:], strict=True), str(path))), str(path))


def _named(header: Sequence[str], columns: Iterable[Any], source: str) -> Iterable[tuple[str, Any]]:
    for place, name in enumerate(header):
        if not name or name in header[:place]:
            raise DataError(
                f"{source}: column {place + 1} is named {name!r}; accepted are names, each only once."
            )
    return zip(header, columns, strict=True)


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found]
    except ImportError as error:
        raise DataError(
            f"{path}: reading Parquet needs pyarrow, which is not installed: pip install pyarrow, or save "
            "the table as CSV."
        ) from error
    try:
        found = parquet.read_table(path)
    except Exception as error:
        raise DataError(f"{path}: no Parquet table ({error}).") from error
    return table_of(
        {name: found.column(name).to_pylist() for name in found.column_names},
        str(path),
    )


def table_of(columns: Any, source: str) -> Table:
    """Return a mapping as a table.

    Args:
        columns: Names to columns: lists, arrays, a data frame.
        source: What messages call it.

    Returns:
        The table.

    Raises:
        DataError: If columns have different lengths, or a cell is no text or number.

    Example:
        >>> table_of({"day": [0, 1], "score": [2.5, 3.0]}, "rows").numbers("score", "target")
        array([2.5, 3. ])
    """
    if isinstance(columns, Table):
        return columns
    try:
        names = [str(name) for name in columns]
        made = {name: tuple(_text(cell) for cell in columns[name]) for name in columns}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise DataError(
            f"{source}: a {type(columns).__name__} came; accepted is a mapping from column names to values, "
            "such as {'Days': [0, 1, 2]}, or a data frame."
        ) from error
    lengths = {len(cells) for cells in made.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"{source}: columns of {sorted(lengths) or 'no'} rows ({some_of(names)}); accepted are columns "
            "of one length, of one row at least."
        )
    return Table(dict(zip(names, made.values(), strict=True)), source)


def _text(cell: Any) -> str:
    """A cell as text, so that a file, a list and a data frame mean the same; numbers keep every digit."""
    if cell is None:
        return ""
    if isinstance(cell, (bool, np.bool_)):
        return str(bool(cell))
    if isinstance(cell, (float, np.floating)):
        value = float(cell)
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(cell)
