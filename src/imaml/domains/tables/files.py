"""Tables from files: CSV by the standard library, Parquet and Excel by libraries that may be installed."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...core.errors import DataError
from ...core.validation import some_of, suggestion
from .cells import MISSING as MISSING
from .cells import Table, named, place_of
from .cells import table_of as table_of

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")
SEPARATORS = (",", ";", "\t", "|")  # the first is taken where several would do


class Format(NamedTuple):
    """How a text file is written.

    Attributes:
        separator: What separates cells; empty for the one of `SEPARATORS` that the header has most of.
        encoding: The file's encoding.
        decimal: The sign before the fraction of a number, "." or ",".
    """

    separator: str = ""
    encoding: str = "utf-8"
    decimal: str = "."


def read_table(path: str | Path, form: Format = Format()) -> Table:
    """Read a table with a header.

    Args:
        path: A .csv, .tsv, .txt, .parquet or .xlsx file; of the last the first sheet is read.
        form: How a text file is written.

    Returns:
        The table.

    Raises:
        DataError: If it is none.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.is_file():
        found, folder = ("a folder", path) if path.is_dir() else ("no such file", path.parent)
        files = sorted(file.name for ending in SUFFIXES for file in folder.glob(f"*{ending}"))
        listed = f"{folder} holds {some_of(files)}" if files else "check the path"
        hint = suggestion(path.name, files, files=True) or f" Hint: {listed}."
        raise DataError(f"{path}: expected a table (.csv, .tsv, .parquet or .xlsx), got {found}.{hint}")
    if suffix == ".parquet":
        return _parquet(path)
    if suffix in (".xlsx", ".xlsm"):
        return _excel(path)
    return _text_file(path, form)


def _text_file(path: Path, form: Format) -> Table:
    """The table in a text file."""
    encoding = "utf-8-sig" if form.encoding.lower() in ("utf-8", "utf8") else form.encoding
    try:
        text = path.read_text(encoding=encoding).splitlines()
    except (UnicodeError, LookupError) as error:
        hint = "for files of Excel and R on Windows try --encoding=cp1252, for UTF-16 --encoding=utf-16."
        raise DataError(
            f"{path}: expected text in {form.encoding.upper()}, got an error ({error}). Hint: {hint}"
        ) from error
    between = form.separator or _separator(text, path.suffix.lower())
    try:
        numbered, before, reader = [], 0, csv.reader(text, delimiter=between, strict=True)
        for line in reader:
            if line:
                numbered.append((before + 1, line))
            before = reader.line_num
    except (csv.Error, TypeError) as error:
        raise DataError(f"{path}: expected CSV separated by {between!r}, got an error ({error}).") from error
    lines = [line for _, line in numbered]
    if len(lines) < 2:
        raise DataError(
            f"{path}: expected a header and at least one row, got {len(lines)} line{'s' * (len(lines) != 1)}."
        )
    begins = tuple(number for number, _ in numbered[1:])
    header = [name.strip() for name in lines[0]]
    if len(header) == 1 and any(other in header[0] for other in SEPARATORS):
        raise DataError(
            f"{path}: expected columns separated by {between!r}, got one column, {header[0]!r}. Hint: give "
            "the separator that the file has, as --separator=';'."
        )
    for row, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise DataError(
                f"{path}, {place_of(row, begins[row - 1])}: expected {len(header)} cells, as in the header, "
                f'got {len(line)}. Hint: a comma within a cell needs quotes, "1,5".'
            )
    columns = _columns(header, lines[1:], path)
    if form.decimal == ",":
        columns = {
            name: tuple(
                _with_point(cell, f"{path}, {place_of(row + 1, begins[row])}, column {name!r}")
                for row, cell in enumerate(cells)
            )
            for name, cells in columns.items()
        }
    return replace(table_of(columns, str(path)), lines=begins)


def _columns(header: Sequence[str], lines: Sequence[Sequence], path: Path) -> dict[str, tuple]:
    """The columns by name; DataError where two have the same."""
    for place, name in enumerate(header):
        if name in header[:place]:
            raise DataError(f"{path}: column {place + 1}: expected a name of its own, got {name!r}.")
    return named(dict(zip(header, zip(*lines, strict=True), strict=True)))


def _separator(text: Sequence[str], suffix: str) -> str:
    """What separates the cells of the header, of which there are most."""
    if suffix == ".tsv":
        return "\t"
    header = next((line for line in text if line.strip()), "")
    cells = {between: len(next(csv.reader([header], delimiter=between), ())) for between in SEPARATORS}
    return max(SEPARATORS, key=cells.__getitem__)


def _with_point(cell: str, place: str) -> str:
    """A number with a decimal comma as Python writes it; other cells as they are."""
    if "." in cell and _is_number(cell):  # between thousands, or a decimal point after all
        raise DataError(
            f"{place}: expected numbers with a decimal comma, as --decimal=, says, got {cell!r}. Hint: "
            "remove the points between thousands, or omit --decimal."
        )
    pointed = cell.replace(",", ".")
    return pointed if _is_number(pointed) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> Table:
    """The table in a Parquet file, by polars or pyarrow."""
    for library in ("polars", "pyarrow.parquet"):
        try:
            reader = importlib.import_module(library)
        except ImportError:
            continue
        try:
            found = (reader.read_parquet if library == "polars" else reader.read_table)(path)
            columns = found.to_dict(as_series=False) if library == "polars" else found.to_pydict()
        except Exception as error:  # each library has its own
            raise DataError(f"{path}: expected a Parquet table, got an error ({error}).") from error
        return table_of(columns, str(path))
    raise DataError(
        f'{path}: expected polars or pyarrow, got neither. Hint: pip install "imaml[parquet]", or save the '
        "table as CSV."
    )


def _excel(path: Path) -> Table:
    """The table in the first sheet of an Excel file, by openpyxl."""
    try:
        from openpyxl import load_workbook  # type: ignore[import-not-found,import-untyped]
    except ImportError as error:
        raise DataError(
            f'{path}: expected openpyxl, got none. Hint: pip install "imaml[excel]", or save the table as '
            "CSV."
        ) from error
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        rows = [
            row for row in book.worksheets[0].iter_rows(values_only=True) if any(c is not None for c in row)
        ]
        book.close()
    except Exception as error:  # damaged archives and XML raise what their parsers raise
        raise DataError(f"{path}: expected an Excel table, got an error ({error}).") from error
    if len(rows) < 2:
        raise DataError(f"{path}: expected a header and at least one row, got {len(rows)} rows.")
    header = ["" if name is None else str(name).strip() for name in rows[0]]
    return table_of(_columns(header, rows[1:], path), str(path))
