"""Tables: columns of texts, so that a file, a data frame and lists of values mean the same.

Nothing is guessed: a column is numeric if every cell is a finite number as Python writes it, else it is
texts. A column with both raises `DataError`, which names the first cell that does not fit.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ...core.errors import DataError
from ...core.validation import not_one_of, some_of
from ..tasks.frames import columns_of

MISSING = frozenset({"", "na", "nan", "null", "none", "n/a", "?", "<na>", "#n/a", "nat"})
BOOLEANS = {"true": "True", "false": "False"}
FLOAT32 = np.finfo(np.float32)  # what tables are computed in
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:.*)?")
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
Kind = Literal["numbers", "dates", "texts"]


@dataclass(frozen=True)
class Table:
    """Columns of texts, all of one length.

    Attributes:
        columns: The columns by name.
        source: Where they came from, for messages.
        lines: The line of the file where each row begins, from 1; empty if they are of no text file.
        numbered: The number of each row in the whole table, from 0; empty for all rows in order.
    """

    columns: Mapping[str, tuple[str, ...]]
    source: str
    lines: tuple[int, ...] = field(default=(), compare=False)
    numbered: tuple[int, ...] = field(default=(), compare=False)

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
            DataError: If there is no such column.
        """
        if name not in self.columns:
            raise DataError(not_one_of(f"{self.source}: column of {what}", name, self.columns))
        return self.columns[name]

    def labels(self, name: str, what: str) -> tuple[str, ...]:
        """Return a column's cells as labels: "1" of 1.0, "True" of TRUE, "2024-05-01" of that midnight.

        Args:
            name: The column.
            what: What the column is for, for the message if there is none.

        Returns:
            The labels.

        Raises:
            DataError: If there is no such column, or two ids of tasks, such as 007 and 7, have one label.
        """
        cells = self.column(name, what)
        known = {cell: label_of(cell) for cell in set(cells)}
        if what == "the task":
            ids: dict[str, str] = {}
            for cell, label in sorted(known.items()):
                plain = re.sub(r"\.0*$", "", cell.strip()) if _is_finite(cell) else label
                if ids.setdefault(label, plain) != plain:
                    raise DataError(
                        f"{self.source}: column {name!r}: expected an id for each task, got {ids[label]!r} "
                        f"and {plain!r}, which are the same number. Hint: write a letter before the ids."
                    )
        return tuple(known[cell] for cell in cells)

    def missing(self, name: str) -> np.ndarray:
        """Return which cells of a column are missing.

        Args:
            name: The column.

        Returns:
            Booleans, ``(rows,)``.
        """
        return np.array([cell.strip().lower() in MISSING for cell in self.columns[name]], bool)

    def take(self, rows: Sequence[int] | np.ndarray) -> Table:
        """Return some of the rows, which messages still call by their numbers in the whole table.

        Args:
            rows: Their numbers here, from 0.

        Returns:
            The table.
        """

        def taken(items: tuple) -> tuple:
            return tuple(items[row] for row in rows)

        columns = {name: taken(cells) for name, cells in self.columns.items()}
        return Table(columns, self.source, self.lines and taken(self.lines), tuple(map(self.number, rows)))

    def number(self, row: int | np.integer) -> int:
        """Return a row's number in the whole table.

        Args:
            row: The row's number here, from 0.

        Returns:
            The number, from 0.
        """
        return self.numbered[row] if self.numbered else int(row)

    def place(self, row: int | np.integer) -> str:
        """Say where a row is.

        Args:
            row: The row, from 0.

        Returns:
            The phrase for a message, with the row counted from 1.
        """
        return place_of(self.number(row) + 1, self.lines[row] if self.lines else None)

    def numbers(self, name: str, what: str) -> np.ndarray:
        """Return a column of numbers, or of dates as days since 1970-01-01.

        Args:
            name: The column.
            what: What the column is for, for the message if there is none.

        Returns:
            Floats, ``(rows,)``, float64, none of them beyond the range of float32; NaN for missing cells.

        Raises:
            DataError: If there is no such column, or if a cell is not a finite number, or too large for
                float32; names the first such cell.
        """
        cells = self.column(name, what)
        values = np.array([_number(cell) for cell in cells])
        most = FLOAT32.max
        for row in np.flatnonzero(~(np.abs(values) <= float(most)) & ~self.missing(name)):  # of NaN, too
            wanted = f"a number between -{most:.4g} and {most:.4g}, the range of float32"
            hint = "write numbers such as 12.5, with a point; give large ones in a larger unit."
            raise self.cell_error(name, row, wanted, hint)
        return values

    def days(self, name: str, what: str) -> np.ndarray:
        """Return a column of dates as days since 1970-01-01.

        Args:
            name: The column.
            what: What the column is for, for the message if there is none.

        Returns:
            Floats, ``(rows,)``, float64; NaN for missing cells.

        Raises:
            DataError: If there is no such column, or if a cell is not a date; names the first such cell.
        """
        values = np.array([_days(cell) for cell in self.column(name, what)])
        for row in np.flatnonzero(np.isnan(values) & ~self.missing(name)):
            raise self.cell_error(name, row, "a date such as 2024-05-31", "write year, month and day so.")
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

    def kind(self, name: str, what: str) -> Kind:
        """Return whether a column is one of numbers, of dates or of texts. Missing cells are of any kind.

        Args:
            name: The column.
            what: What the column is for, for the message if there is none.

        Returns:
            The kind.

        Raises:
            DataError: If some cells are numbers and some are not.
        """
        cells = self.column(name, what)
        there = np.flatnonzero(~self.missing(name))
        are = [bool(np.isfinite(_number(cells[row]))) for row in there]
        if any(are) and not all(are):
            row = there[are.index(False)]
            wanted = f"a finite number, as {sum(are)} of {len(are)} cells are"
            comma = re.fullmatch(r"[+-]?\d*,\d+", cells[row].strip())
            hint = f"correct it, or set --domain.texts={name} for a column of categories."
            if comma:
                hint = "set --decimal=, for numbers with a comma."
            raise self.cell_error(name, row, wanted, hint)
        if there.size and all(are):
            return "numbers"
        dates = there.size and all(DATE.fullmatch(cells[row].strip()) for row in there)
        return "dates" if dates else "texts"


def place_of(row: int, line: int | None) -> str:
    """Say where a row is.

    Args:
        row: The row, counted from 1.
        line: The line of a file on which it begins, or None.

    Returns:
        The phrase for a message.
    """
    return f"row {row}" if line is None else f"row {row} below the header (line {line} of the file)"


def _number(cell: str) -> float:
    """The finite number that a text means, else NaN; "1_000", which Python takes, is none."""
    try:
        value = float(cell)
    except ValueError:
        return np.nan
    return value if np.isfinite(value) and "_" not in cell else np.nan


def _is_finite(cell: str) -> bool:
    """Whether a text means a finite number."""
    return bool(np.isfinite(_number(cell)))


def _moment(cell: str) -> datetime.datetime | None:
    """The date and time that a text means; None if it means none."""
    if not DATE.fullmatch(cell.strip()):
        return None
    try:
        return datetime.datetime.fromisoformat(cell.strip())
    except ValueError:
        return None


def _days(cell: str) -> float:
    """The days from 1970-01-01 to the date that a text means, else NaN."""
    moment = _moment(cell)
    if moment is None:
        return np.nan
    since = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)) - EPOCH
    return since.total_seconds() / 86400


def label_of(cell: str) -> str:
    """Return a cell as a label, the same for all programs that wrote the cell.

    Args:
        cell: The cell's text.

    Returns:
        The label: numbers without a needless point or zeros, "True" and "False", dates without midnight.

    Example:
        >>> [label_of(cell) for cell in ("1.0", "TRUE", "2024-05-01 00:00:00", " b")]
        ['1', 'True', '2024-05-01', ' b']
    """
    if np.isfinite(_number(cell)):
        return str(int(cell)) if re.fullmatch(r"\s*[+-]?\d+\s*", cell) else _text(float(cell))
    if (word := cell.strip().lower()) in BOOLEANS:
        return BOOLEANS[word]
    moment = _moment(cell)
    return cell if moment is None else _text(moment)


def table_of(columns: object, source: str) -> Table:
    """Return a mapping or a data frame as a table.

    Args:
        columns: Names to columns: lists, arrays, a data frame of pandas, polars or the like.
        source: What messages call it.

    Returns:
        The table.

    Raises:
        DataError: If columns have different lengths, or a cell is not a text or number.

    Example:
        >>> table_of({"day": [0, 1], "score": [2.5, 3.0]}, "rows").numbers("score", "target")
        array([2.5, 3. ])
    """
    if isinstance(columns, Table):
        return columns
    try:
        found = columns_of(columns)
        made = {name: tuple(_text(cell) for cell in cells) for name, cells in found.items()}  # type: ignore[union-attr]
    except (AttributeError, IndexError, KeyError, TypeError):
        made = {}
    if not made:
        raise DataError(
            f"{source}: expected a mapping from column names to values, such as {{'Days': [0, 1, 2]}}, or a "
            f"data frame, got a {type(columns).__name__}."
        )
    lengths = {len(cells) for cells in made.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"{source}: expected columns of one length, at least 1, got {some_of(list(made))} of "
            f"{sorted(lengths) or 'no'} rows."
        )
    return Table(named(made), source)


def named(columns: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Return columns whose names are not empty.

    Args:
        columns: Columns by name; pandas and R write an index without a name.

    Returns:
        The columns, those without a name called as pandas does, "Unnamed: 0".
    """
    return {name or f"Unnamed: {i}": tuple(cells) for i, (name, cells) in enumerate(columns.items())}


def _text(cell: object) -> str:
    """A cell as text, so that a file, a list and a data frame mean the same; numbers keep every digit."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):  # of pandas
        return ""
    if isinstance(cell, (bool, np.bool_)):
        return str(bool(cell))
    if isinstance(cell, (float, np.floating)):
        value = float(cell)
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(cell, np.datetime64):
        cell = cell.astype("datetime64[us]").item()
        return "" if cell is None else _text(cell)
    if isinstance(cell, datetime.datetime):
        return cell.isoformat(" ").removesuffix(" 00:00:00")
    if isinstance(cell, datetime.date):
        return cell.isoformat()
    return str(cell)
