"""The file or folder that tasks were read from, so that a run can read them again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal
from zipfile import BadZipFile

import numpy as np

from ...core.errors import DataError
from ...core.fields import Checked, Fraction, PositiveInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...core.validation import Interval, some_of
from ..tables.files import MISSING, Format, read_table
from ..tables.files import SUFFIXES as TABLES
from .layout import nested

if TYPE_CHECKING:
    from .collection import Tasks

TRUTHS = {word: word.lower() == "true" for word in ("True", "TRUE", "true", "False", "FALSE", "false")}
ARRAYS = ("x", "y", "groups", "weights", "offset", "split")  # of an .npz file; x may be x/NAME, ...


@recipe(fresh={"path": "tasks.npz"})
@dataclass(frozen=True)
class TasksFile(Checked):
    """Where tasks are, and how `fit` divided them.

    Args:
        path: The file, or the folder of images.
        form: "arrays", an .npz file; "frame", a table with a header; "images", a folder a class.
        task: Of a table, the column that names the tasks.
        targets: Of a table, the columns to be predicted.
        features: Of a table, the columns to predict them from; empty for all others.
        weights: Of a table, the column that says how many times a row counts, or empty.
        offset: Of a table, the column that is added to the first output, or empty.
        split: Of a table, the column that says which split a task belongs to, or empty.
        separator: What separates the cells of a text file; empty for what its header has most of.
        encoding: The encoding of a text file.
        decimal: The sign before the fraction of a number in a text file, "." or ",".
        side: The side in pixels that images are shrunk to.
        colour: Whether images keep their colours.
        validation: The share of tasks for validation, unless the file has splits.
        test: The share of tasks for testing.
        seed: Draws the splits.
        new: Whether all tasks are new ones, to test a run on.
        divided: How many tasks each split had, and a digest of their names; empty in runs of earlier
            versions.

    Raises:
        ConfigError: If a field is not valid.
    """

    owner: ClassVar[str] = "tasks"

    path: str
    form: Literal["arrays", "frame", "images"] = "arrays"
    task: str = ""
    targets: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    weights: str = ""
    offset: str = ""
    split: str = ""
    separator: str = ""
    encoding: str = "utf-8"
    decimal: Literal[".", ","] = "."
    side: PositiveInt = 28
    colour: bool = False
    validation: Fraction = 0.2
    test: Fraction = 0.2
    seed: Annotated[int, Interval(0)] = 0
    new: bool = False
    divided: str = ""

    @property
    def text(self) -> Format:
        """How a text file is written."""
        return Format(self.separator, self.encoding, self.decimal)

    def read(self) -> Tasks:
        """Read the tasks.

        Returns:
            The tasks; their `file` is this.

        Raises:
            DataError: If the file cannot be read, or does not hold tasks.
        """
        from .collection import Tasks

        if self.form == "images":
            made = Tasks.from_folder(self.path, self.side, self.colour)
        elif self.form == "frame":
            table = read_table(self.path, self.text)
            if self.task in table.columns:
                table.labels(self.task, "the task")  # refuses ids that are equal as numbers, 007 and 7
            made = Tasks.from_frame(
                {name: _column(cells) for name, cells in table.columns.items()},
                self.task,
                self.targets[0] if len(self.targets) == 1 else self.targets,
                self.features or None,
                weights=self.weights or None,
                offset=self.offset or None,
                split=self.split or None,
            )
        else:
            arrays = read_arrays(self.path)
            if "x" not in arrays or "groups" not in arrays:
                raise DataError(
                    f"{self.path}: expected arrays x (or x/NAME), y and groups, got {some_of(sorted(arrays))}"
                    ". Hint: np.savez(path, x=x, y=y, groups=groups), with the label of each row's task in "
                    "groups."
                )
            made = Tasks.from_arrays(arrays.pop("x"), arrays.pop("y", None), arrays.pop("groups"), **arrays)
        return replace(made, file=self, source=self.path)


def read_arrays(path: str | Path) -> dict[str, Tree]:
    """Read the arrays of tasks from an .npz file.

    Args:
        path: The file.

    Returns:
        The arrays by name; x as a tree if the file has x/NAME.

    Raises:
        DataError: If it is no such file, or has arrays of other names.
    """
    wanted = "an .npz file with arrays x, y and groups"
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {} if isinstance(content, np.ndarray) else dict(content)
    except FileNotFoundError:
        raise DataError(f"{path}: expected {wanted}, got no such file. Hint: check the path.") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        hint = "save them with np.savez(path, x=x, y=y, groups=groups)"
        if "allow_pickle" in str(error) or "pickled" in str(error):
            hint = "save texts as an array of texts, np.array(labels, dtype=str), and numbers as numbers"
        raise DataError(f"{path}: expected {wanted}, got an error ({error}). Hint: {hint}.") from error
    strange = {name.split("/")[0] for name in arrays} - set(ARRAYS)
    if strange:
        raise DataError(
            f"{path}: expected arrays named {', '.join(ARRAYS)}, or x/NAME, got {some_of(sorted(strange))} "
            "as well."
        )
    return nested(arrays)


def read_columns(path: str | Path, text: Format = Format()) -> dict[str, Tree]:
    """Read the columns of a table with a header.

    Args:
        path: A .csv, .tsv, .parquet or .xlsx file.
        text: How a text file is written.

    Returns:
        Columns by name: numbers if all cells are numbers or empty, an empty one as NaN; booleans if all are
        true or false, as pandas reads them; else texts, an empty one as None.

    Raises:
        DataError: If it is no such file.
    """
    return {name: _column(cells) for name, cells in read_table(path, text).columns.items()}


def _column(cells: tuple[str, ...]) -> Tree:
    missing = [cell.strip().lower() in MISSING for cell in cells]
    try:
        # "1_000", which Python takes for a number, is a text.
        numbers = [
            np.nan if gone else float(cell.replace("_", "?"))
            for cell, gone in zip(cells, missing, strict=True)
        ]
    except ValueError:
        if all(cell in TRUTHS for cell in cells):
            return np.array([TRUTHS[cell] for cell in cells])
        return [None if gone else cell for cell, gone in zip(cells, missing, strict=True)]
    array = np.array(numbers)
    whole = np.isfinite(array).all() and (array == np.round(array)).all() and np.abs(array).max() < 2**53
    return array.astype(np.int64) if whole else array


def file_of(path: str, columns: tuple[str, ...], targets: int, offset: str, weights: str) -> TasksFile:
    """Return where other tasks for a run are, by the kind of the file and what the run knows of its tasks.

    Args:
        path: The file, or a folder of images.
        columns: The columns of the run's data frame: task, targets and features; empty for none.
        targets: How many of them are targets.
        offset: The column of offsets, or empty.
        weights: The column of weights, or empty.

    Returns:
        The place.
    """
    if Path(path).is_dir():
        return TasksFile(path, "images")
    if not columns or Path(path).suffix.lower() not in TABLES:
        return TasksFile(path)
    return TasksFile(
        path, "frame", columns[0], columns[1 : 1 + targets], columns[1 + targets :], weights, offset
    )
