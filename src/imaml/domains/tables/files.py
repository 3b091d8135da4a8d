"""Tables from files: CSV, or Parquet if pyarrow is installed.

Nothing is guessed: a column is numeric if every cell is a finite number as Python writes it, else it is
texts. A column with both raises `DataError`, which names the first cell that does not fit.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ...core.errors import DataError
from ...core.validation import not_one_of, some_of, suggestion

MISSING = frozenset({"", "na", "nan", "null", "none", "n/a", "?"})
SUFFIXES = (".csv", ".tsv", ".parquet")
FLOAT32 = np.finfo(np.float32)  # what tables are computed in


@dataclass(frozen=True)
class Table:
    """Columns of texts, all of one length.

    Attributes:
        columns: The columns by name.
        source: Where they came from, for messages.
        lines: The line of the file where each row begins, from 1; empty if they are of no text file.
    """

    columns: Mapping[str, tuple[str, ...]]
    source: str
    lines: tuple[int, ...] = field(default=(), compare=False)

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str, what: str) -> tuple[str, ...]:
        """Return a column's texts.

        Args:
            name: The column.
            what: What the column is for, for the message if there is none.

        Returns:
            The cells.

        Raises:
            DataError: If there is no such column, or if a cell is missing.
        """
        if name not in self.columns:
            raise DataError(not_one_of(f"{self.source}: column of {what}", name, self.columns))
        cells = self.columns[name]
        missing = [row for row, cell in enumerate(cells) if cell.strip().lower() in MISSING]
        if missing:
            found = repr(cells[missing[0]]) if cells[missing[0]].strip() else "an empty cell"
            more = f" (and {len(missing) - 1} more in this column)" if len(missing) > 1 else ""
            hint = "fill the cell, or leave the row out."
            raise self.cell_error(name, missing[0], "a value", hint, found + more)
        return cells

    def place(self, row: int | np.integer) -> str:
        """Say where a row is.

        Args:
            row: The row, from 0.

        Returns:
            The phrase for a message, with the row counted from 1.
        """
        return _place(row + 1, self.lines[row] if self.lines else None)

    def numbers(self, name: str, what: str) -> np.ndarray:
        """Return a column of numbers.

        Args:
            name: The column.
            what: What the column is for, for the message if there is none.

        Returns:
            Floats, ``(rows,)``, float64, none of them beyond the range of float32.

        Raises:
            DataError: If there is no such column, or if a cell is missing, no finite number, or too large
                for float32; names the first such cell.
        """
        values = np.array([_number(cell) for cell in self.column(name, what)])
        most = FLOAT32.max
        for row in np.flatnonzero(~(np.abs(values) <= float(most))):  # of NaN, too
            wanted = f"a number between -{most:.4g} and {most:.4g}, the range of float32"
            hint = "write numbers such as 12.5, with a point; give large ones in a larger unit."
            raise self.cell_error(name, row, wanted, hint)
        return values

    def cell_error(
        self, name: str, row: int | np.integer, expected: str, hint: str, found: str | None = None
    ) -> DataError:
        """Return the error on one cell.

        Args:
            name: The cell's column.
            row: The cell's row, from 0.
            expected: What was expected in its place.
            hint: What to do about it.
            found: What is there; by default the cell's text.

        Returns:
            A ``DataError`` with the file, the row counted from 1, the column and the value.
        """
        return DataError(
            f"{self.source}, {self.place(row)}, column {name!r}: expected {expected}, got "
            f"{found or repr(self.columns[name][row])}. Hint: {hint}"
        )

    def numeric(self, name: str, what: str) -> bool:
        """Return whether a column is one of numbers.

        Args:
            name: The column.
            what: What the column is for, for the message if there is none.

        Returns:
            True for numbers, False for texts.

        Raises:
            DataError: If some cells are numbers and some are not.
        """
        are = [bool(np.isfinite(_number(cell))) for cell in self.column(name, what)]
        if any(are) and not all(are):
            wanted = f"a finite number, as {sum(are)} of {len(are)} cells are"
            hint = f"correct it, or say --domain.texts={name} for a column of categories."
            raise self.cell_error(name, are.index(False), wanted, hint)
        return all(are)


def _place(row: int | np.integer, line: int | None) -> str:
    """Where a row is, counted from 1, and the line of a file on which it begins."""
    return f"row {row}" if line is None else f"row {row} below the header (line {line} of the file)"


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
    if not path.is_file():
        found, folder = ("a folder", path) if path.is_dir() else ("no such file", path.parent)
        files = sorted(file.name for suffix in SUFFIXES for file in folder.glob(f"*{suffix}"))
        listed = f"{folder} holds {some_of(files)}" if files else "check the path"
        hint = suggestion(path.name, files, files=True) or f" Hint: {listed}."
        raise DataError(f"{path}: expected a table (.csv, .tsv or .parquet), got {found}.{hint}")
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    between = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        text = path.read_text(encoding="utf-8-sig").splitlines()
        numbered, before, reader = [], 0, csv.reader(text, delimiter=between, strict=True)
        for line in reader:
            if line:
                numbered.append((before + 1, line))
            before = reader.line_num
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected CSV in UTF-8, got an error ({error}).") from error
    lines = [line for _, line in numbered]
    if len(lines) < 2:
        raise DataError(
            f"{path}: expected a header and at least one row, got {len(lines)} line{'s' * (len(lines) != 1)}."
        )
    begins = tuple(number for number, _ in numbered[1:])
    header = [name.strip() for name in lines[0]]
    if len(header) == 1 and any(other in header[0] for other in ",;|\t"):
        raise DataError(
            f"{path}: expected columns separated by {between!r}, got one column, {header[0]!r}. Hint: save "
            "the table with that separator; a .tsv file has tabs."
        )
    for row, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise DataError(
                f"{path}, {_place(row, begins[row - 1])}: expected {len(header)} cells, as in the header, "
                f'got {len(line)}. Hint: a comma within a cell needs quotes, "1,5".'
            )
    for place, name in enumerate(header):
        if not name or name in header[:place]:
            raise DataError(f"{path}: column {place + 1}: expected a name of its own, got {name!r}.")
    found = table_of(dict(zip(header, zip(*lines[1:], strict=True), strict=True)), str(path))
    return replace(found, lines=begins)


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found]

        found = parquet.read_table(path)
        columns = {name: found.column(name).to_pylist() for name in found.column_names}
    except ImportError as error:
        raise DataError(
            f"{path}: expected pyarrow, got none. Hint: pip install pyarrow, or save the table as CSV."
        ) from error
    except Exception as error:
        raise DataError(f"{path}: expected a Parquet table, got an error ({error}).") from error
    return table_of(columns, str(path))


def table_of(columns: Table | Mapping[str, Iterable[object]], source: str) -> Table:
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
            f"{source}: expected a mapping from column names to values, such as {{'Days': [0, 1, 2]}}, or a "
            f"data frame, got a {type(columns).__name__}."
        ) from error
    lengths = {len(cells) for cells in made.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"{source}: expected columns of one length, at least 1, got {some_of(names)} of "
            f"{sorted(lengths) or 'no'} rows."
        )
    return Table(dict(zip(names, made.values(), strict=True)), source)


def _text(cell: object) -> str:
    """A cell as text, so that a file, a list and a data frame mean the same; numbers keep every digit."""
    if cell is None:
        return ""
    if isinstance(cell, (bool, np.bool_)):
        return str(bool(cell))
    if isinstance(cell, (float, np.floating)):
        value = float(cell)
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(cell)
