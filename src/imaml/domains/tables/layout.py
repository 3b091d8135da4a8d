"""How a table's rows become numbers: which columns, how they are coded, and in which units answers are."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import numpy as np
from numpy.typing import ArrayLike

from ...core.errors import ConfigError, DataError
from ...core.recipes import recipe
from ...core.validation import some_of
from .cells import FLOAT32, Table, label_of


@recipe()
class Column:
    """One column of a table.

    A number x is coded as (x - mean) / scale; a category as ones and zeros, one for each level but the first,
    which is the baseline. A missing cell is coded as the mean or the most frequent level.

    Attributes:
        name: Its name.
        levels: Its categories in order, or None for numbers.
        mean: The mean of its numbers.
        scale: Their standard deviation.
        usual: The most frequent level.
        dates: Whether its numbers are dates, as days since 1970-01-01.
    """

    name: str
    levels: tuple[str, ...] | None = None
    mean: float = 0.0
    scale: float = 1.0
    usual: str = ""
    dates: bool = False

    @property
    def width(self) -> int:
        """How many inputs it is coded by."""
        return 1 if self.levels is None else len(self.levels) - 1

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs' names."""
        return (self.name,) if self.levels is None else tuple(f"{self.name}={v}" for v in self.levels[1:])

    def places(self, table: Table, what: str, unseen: str = "error") -> np.ndarray:
        """Return each row's level.

        Args:
            table: The rows.
            what: What the column is for, for messages.
            unseen: "baseline" to take the first level for one that training did not have, or "error".

        Returns:
            Whole numbers, ``(rows,)``.

        Raises:
            DataError: If training did not have a level; names the first such cell.
        """
        assert self.levels is not None
        number = {label_of(level): i for i, level in enumerate(self.levels)}
        labels, missing = table.labels(self.name, what), table.missing(self.name)
        found = np.array([number.get(label, -1) for label in labels], np.int64)
        found[missing] = number.get(label_of(self.usual), 0)
        for row in np.flatnonzero(found < 0) if unseen == "error" else ():
            levels = f"one of the training tasks' values, {some_of(self.levels)}"
            hint = "omit such rows, or train on tasks with it."
            if what == "a feature":
                hint = "train on tasks with it, or code it like the first category, with --unseen=baseline."
            raise table.cell_error(self.name, row, levels, hint)
        return np.maximum(found, 0)

    def code(self, table: Table, unseen: str = "error") -> np.ndarray:
        """Return the inputs of a table's rows.

        Args:
            table: The rows.
            unseen: "baseline" to take the first level for one that training did not have, or "error".

        Returns:
            Floats, ``(rows, width)``, float64.

        Raises:
            DataError: If a cell is not a number, or a category that training did not have.
        """
        if self.levels is None:
            return self.standardised(table, "a feature")
        return np.eye(len(self.levels))[self.places(table, "a feature", unseen)][:, 1:]

    def values(self, table: Table, what: str) -> np.ndarray:
        """Return a column's numbers, or its dates as numbers, ``(rows,)``; NaN for missing cells."""
        return (table.days if self.dates else table.numbers)(self.name, what)

    def standardised(self, table: Table, what: str) -> np.ndarray:
        """Return a column of numbers in standard deviations from the training tasks' mean.

        Args:
            table: The rows.
            what: What the column is for, for messages.

        Returns:
            Floats, ``(rows, 1)``, float64, none of them beyond the range of float32; 0 for missing cells.

        Raises:
            DataError: If a cell is not a number, or leaves the range of float32; names the first such cell.
        """
        codes = (self.values(table, what) - self.mean) / self.scale
        for row in np.flatnonzero(np.abs(codes) > float(FLOAT32.max)):
            near = f"{self.mean:.4g} +- {FLOAT32.max:.4g} times {self.scale:.4g}, the standard deviation"
            raise table.cell_error(
                self.name, row, f"a number in {near} of the training tasks", "correct the cell."
            )
        return np.nan_to_num(codes)[:, None]


def column_of(
    table: Table, name: str, what: str, rows: np.ndarray, texts: bool = False, dates: str = "error"
) -> Column:
    """Return how a column is coded, learned from some of the rows.

    Args:
        table: All rows.
        name: The column.
        what: What the column is for, for messages.
        rows: Which rows to learn from, booleans, ``(rows,)``.
        texts: Whether its cells are categories even if they look like numbers.
        dates: "days" to take dates as numbers, or "error".

    Returns:
        The column's coding.

    Raises:
        DataError: If the column cannot be coded: dates, too few or too many categories, or numbers whose
            differences are lost in their standardisation.
    """
    kind = "texts" if texts else table.kind(name, what)
    where, leave = f"{table.source}, column {name!r}", "omit it: --features=A,B names those to use"
    if kind == "dates" and dates == "error":
        raise DataError(
            f"{where}: expected numbers or categories, got dates, such as {table.columns[name][0]!r}. Hint: "
            f"set --dates=days for days since 1970-01-01, --domain.texts={name} for categories, or {leave}."
        )
    if kind != "texts":
        return _numbers_of(table, name, what, rows, kind == "dates")
    taken = rows & ~table.missing(name)
    frequent = Counter(label for label, there in zip(table.labels(name, what), taken, strict=True) if there)
    levels = tuple(sorted(frequent))
    if len(levels) < 2:
        raise DataError(f"{where}: expected two values or more in training, got {levels}. Hint: {leave}.")
    if what != "the target" and too_many(len(levels), int(taken.sum())):
        raise DataError(
            f"{where}: expected categories, got {len(levels)} different texts in {rows.sum()} rows. "
            f"Hint: {leave}."
        )
    return Column(name, levels, usual=frequent.most_common(1)[0][0])


def too_many(levels: int, rows: int) -> bool:
    """Return whether a column of texts has so many levels that they are not categories.

    Args:
        levels: How many levels it has.
        rows: In how many rows.

    Returns:
        True if most rows differ.
    """
    return levels > 0.5 * rows


def _numbers_of(table: Table, name: str, what: str, rows: np.ndarray, dates: bool) -> Column:
    """The coding of a column of numbers; DataError if it would not keep their differences."""
    places = np.flatnonzero(rows & ~table.missing(name))
    if not places.size:
        raise DataError(f"{table.source}, column {name!r}: expected values in training tasks, got none.")
    values = Column(name, dates=dates).values(table, what)[places]
    if not np.ptp(values):
        # Whole numbers only: other programs may write one fraction with more digits than another.
        cells, begin = table.columns[name], places[0]
        for row in () if dates else places:
            number = Decimal(cells[row])
            if number != Decimal(cells[begin]) and number == number.to_integral_value():
                wanted = (
                    f"a number that differs from {cells[begin]!r}, {table.place(begin)}, within 16 digits"
                )
                hint = "subtract from the column what all its numbers have in common."
                raise table.cell_error(name, row, wanted, hint)
        return Column(
            name, None, float(values[0]), 1.0, dates=dates
        )  # not std(): rounding may leave it just above 0
    mean, scale = float(values.mean()), float(values.std())
    if scale < float(FLOAT32.tiny):  # in float32 it is 0, and with it every score in the target's units
        wanted = f"a standard deviation of at least {FLOAT32.tiny:.4g} for float32 (it is {scale:.4g})"
        hint = "give the column in a smaller unit."
        raise table.cell_error(name, places[np.argmax(np.abs(values))], wanted, hint)
    # If half of a column standardises to one number, some cell is out of scale. Differences that are rounding
    # errors, of zeros too, are no loss.
    low, high = np.quantile(values, (0.25, 0.75), method="nearest")
    size = max(abs(low), abs(high))
    differ = high - low > 1e-6 * size and size > 1e-12
    if differ and np.float32((low - mean) / scale) == np.float32((high - mean) / scale):
        wanted = (
            f"a number on the scale of {low:.4g} to {high:.4g}, half of all, which become equal in float32"
        )
        hint = "correct the cell, or take the column's logarithm."
        raise table.cell_error(name, places[np.argmax(np.abs(values - mean))], wanted, hint)
    return Column(name, None, mean, scale, dates=dates)


@recipe()
class Layout:
    """What of a table was fixed when a run began.

    Attributes:
        features: The columns to predict from.
        target: The column to be predicted.
        splits: The names of the tasks of train, validation and test; none in an artefact, as they may be
            names of people. The same table and seed have the same splits.
        digest: A digest of the coded table, by which an artefact knows it again; empty if it is not known.
        pooled: The coefficients of one least-squares model of all training rows, a row for each input with
            the intercept first; none if they are not known.
    """

    features: tuple[Column, ...]
    target: Column
    splits: tuple[tuple[str, ...], ...] = ()
    digest: str = ""
    pooled: tuple[tuple[float, ...], ...] = ()

    @property
    def inputs(self) -> int:
        """How many inputs a row has."""
        return sum(column.width for column in self.features)

    @property
    def outputs(self) -> int:
        """How many outputs a network has: classes, or 1."""
        return 1 if self.target.levels is None else len(self.target.levels)

    @property
    def names(self) -> tuple[str, ...]:
        """The coefficients' names, intercept first."""
        return ("intercept", *(name for column in self.features for name in column.names))

    def code(self, table: Table, unseen: str = "error") -> np.ndarray:
        """Return the inputs of a table's rows.

        Args:
            table: The rows.
            unseen: "baseline" to take a column's first level for one that training did not have, or "error".

        Returns:
            Floats, ``(rows, inputs)``, float64.

        Raises:
            DataError: If a cell is not a number, or a category that training did not have.
        """
        none = np.empty((table.rows, 0))
        return np.concatenate([none, *(column.code(table, unseen) for column in self.features)], axis=1)

    def targets(self, table: Table) -> np.ndarray:
        """Return the targets of a table's rows.

        Args:
            table: The rows.

        Returns:
            Numbers in standard deviations, ``(rows, 1)``, float64; or each row's class, ``(rows,)``, int64.

        Raises:
            DataError: If a cell is not a number, or a class that training did not have.
        """
        if self.target.levels is not None:
            return self.target.places(table, "the target")
        return self.target.standardised(table, "the target")

    def in_units(self, mean: ArrayLike, covariance: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return a linear model's coefficients in the table's units.

        Args:
            mean: The coefficients of the standardised model, ``(n,)``, intercept first.
            covariance: Their covariance, ``(n, n)``.

        Returns:
            The coefficients and their covariance in the table's units.

        Raises:
            ConfigError: If the target is a class, which has no units.
        """
        if self.target.levels is not None:
            raise ConfigError("in_units: expected a target of numbers, which have units, got a class.")
        # With y = m + s (b + sum_j w_j (x_j - m_j) / s_j) the coefficients are linear in (b, w).
        widths = np.array([column.width for column in self.features], int)
        centres = np.repeat([column.mean for column in self.features], widths)  # 0 and 1 of categories
        scales = np.repeat([column.scale for column in self.features], widths)
        linear = np.diag(np.concatenate([[1.0], 1 / scales])) * self.target.scale
        linear[0, 1:] = -self.target.scale * centres / scales
        found = linear @ np.asarray(mean, np.float64)
        found[0] += self.target.mean
        return found, linear @ np.asarray(covariance, np.float64) @ linear.T
