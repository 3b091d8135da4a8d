"""How a table's rows become numbers: which columns, how they are coded, and in which units answers are."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.recipes import recipe
from ...core.validation import some_of
from .files import FLOAT32, Table


@recipe()
@dataclass(frozen=True)
class Column:
    """One column. levels: of categories, in order, or None for numbers; mean, scale: by which they are shown.

    A number x is coded as (x - mean) / scale; a category as ones and zeros, one for each level but the first.
    """

    name: str
    levels: tuple[str, ...] | None = None
    mean: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """How many inputs it is coded by."""
        return 1 if self.levels is None else len(self.levels) - 1

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs' names."""
        return (self.name,) if self.levels is None else tuple(f"{self.name}={v}" for v in self.levels[1:])

    def places(self, table: Table, what: str) -> np.ndarray:
        """Each row's level, (rows,) whole numbers; DataError for one that training did not have."""
        assert self.levels is not None
        cells = table.column(self.name, what)
        for row, cell in enumerate(cells):
            if cell not in self.levels:
                raise DataError(
                    f"{table.source}, row {row + 1}, column {self.name!r}: {cell!r} was not among the "
                    f"training tasks' values, {some_of(self.levels)}; leave such rows out, or train on tasks "
                    "that have it."
                )
        return np.array([self.levels.index(cell) for cell in cells], np.int64)

    def code(self, table: Table) -> np.ndarray:
        """The inputs, (rows, width), float64."""
        if self.levels is None:
            return self.standardised(table, "a feature")
        return np.eye(len(self.levels))[self.places(table, "a feature")][:, 1:]

    def numbers(self, table: Table, what: str) -> np.ndarray:
        """The numbers as they stand in the table, (rows,)."""
        return table.numbers(self.name, what)

    def standardised(self, table: Table, what: str) -> np.ndarray:
        """A column of numbers in standard deviations from the training tasks' mean.

        Args:
            table: The rows.
            what: What the column is for, for messages.

        Returns:
            Floats, ``(rows, 1)``, float64, none of them beyond the range of float32.

        Raises:
            DataError: If a cell is no number, or leaves the range of float32; names the first such cell.
        """
        codes = (self.numbers(table, what) - self.mean) / self.scale
        for row in np.flatnonzero(np.abs(codes) > float(FLOAT32.max)):
            raise table.refused(
                self.name,
                int(row),
                f"a number within {FLOAT32.max:.4g} standard deviations ({self.scale:.4g} in the training "
                f"tasks) of the mean ({self.mean:.4g}), the range of float32",
                "correct the cell.",
            )
        return codes[:, None]


def column_of(table: Table, name: str, what: str, rows: np.ndarray, texts: bool = False) -> Column:
    """How a column is coded, learned from some of the rows.

    Args:
        table: All rows.
        name: The column.
        what: What the column is for, for messages.
        rows: Which rows to learn from, booleans, ``(rows,)``.
        texts: Whether its cells are categories even if they look like numbers.

    Returns:
        The column's coding.

    Raises:
        DataError: If the column cannot be coded: too few or too many categories, or numbers whose differences
            are lost in their standardisation.
    """
    if not texts and table.numeric(name, what):
        return _numbers_of(table, name, what, rows)
    cells = table.column(name, what)
    levels = tuple(sorted({cell for cell, taken in zip(cells, rows, strict=True) if taken}))
    if len(levels) < 2:
        raise DataError(
            f"{table.source}, column {name!r}: training tasks have the one value {cells[0]!r}; accepted are "
            f"at least two: leave it out of --features."
        )
    if len(levels) > 0.5 * rows.sum() and what != "the target":
        raise DataError(
            f"{table.source}, column {name!r}: {len(levels)} different texts in {rows.sum()} rows are no "
            "categories; leave it out: --features=A,B names those to use."
        )
    return Column(name, levels)


def _numbers_of(table: Table, name: str, what: str, rows: np.ndarray) -> Column:
    """The coding of a column of numbers; DataError where it would not keep their differences."""
    places = np.flatnonzero(rows)
    values = table.numbers(name, what)[places]
    if not np.ptp(values):
        # Whole numbers only: other programs may write one fraction with more digits than another.
        cells, first = table.columns[name], Decimal(table.columns[name][places[0]])
        for row in places:
            number = Decimal(cells[row])
            if number != first and number == number.to_integral_value():
                raise table.refused(
                    name,
                    int(row),
                    f"a number that differs from {cells[places[0]]!r}, row {places[0] + 1}, within 16 digits",
                    "subtract from the column what all its numbers have in common.",
                )
        return Column(name, None, float(values[0]), 1.0)  # not std(): rounding may leave it just above 0
    mean, scale = float(values.mean()), float(values.std())
    if scale < float(FLOAT32.tiny):  # in float32 it is 0, and with it every score in the target's units
        raise table.refused(
            name,
            int(places[np.argmax(np.abs(values))]),
            f"numbers whose standard deviation is at least {FLOAT32.tiny:.4g} (it is {scale:.4g}), as they "
            "are computed with in float32",
            "give the column in a smaller unit.",
        )
    # If half of a column standardises to one number, some cell is out of scale. Differences that are rounding
    # errors, of zeros too, are no loss.
    low, high = np.quantile(values, (0.25, 0.75), method="nearest")
    size = max(abs(low), abs(high))
    differ = high - low > 1e-6 * size and size > 1e-12
    if differ and np.float32((low - mean) / scale) == np.float32((high - mean) / scale):
        raise table.refused(
            name,
            int(places[np.argmax(np.abs(values - mean))]),
            f"a number on the scale of the others, half of which lie between {low:.4g} and {high:.4g} and "
            "become equal in float32 when divided by the column's standard deviation",
            "correct the cell, or take the column's logarithm.",
        )
    return Column(name, None, mean, scale)


@recipe()
@dataclass(frozen=True)
class Layout:
    """What of a table was fixed when a run began.

    splits: the names of the tasks of train, validation and test; none in an artefact, as names of people do
    not leave the house: the same table and seed have the same splits.
    """

    features: tuple[Column, ...]
    target: Column
    splits: tuple[tuple[str, ...], ...] = ()

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

    def code(self, table: Table) -> np.ndarray:
        """The inputs, (rows, inputs), float64."""
        return np.concatenate([column.code(table) for column in self.features], axis=1)

    def targets(self, table: Table) -> np.ndarray:
        """The targets, (rows, 1) in standard deviations, or each row's class, (rows,)."""
        if self.target.levels is not None:
            return self.target.places(table, "the target")
        return self.target.standardised(table, "the target")

    def in_units(self, mean: Any, covariance: Any = None) -> tuple[np.ndarray, np.ndarray | None]:
        """A linear model's coefficients (n,), intercept first, and their covariance, in the table's units.

        mean: of the standardised model, (n,), bias first. With y = m + s (b + sum_j w_j (x_j - m_j) / s_j)
        the coefficients are linear in (b, w). ConfigError for classes, which have no units.
        """
        if self.target.levels is not None:
            raise ConfigError("in_units: the target is a class; only numbers have units.")
        centres = np.concatenate([[c.mean] if c.levels is None else np.zeros(c.width) for c in self.features])
        scales = np.concatenate([[c.scale] if c.levels is None else np.ones(c.width) for c in self.features])
        map_ = np.diag(np.concatenate([[1.0], 1 / scales])) * self.target.scale
        map_[0, 1:] = -self.target.scale * centres / scales
        found = map_ @ np.asarray(mean, np.float64)
        found[0] += self.target.mean
        spread = None if covariance is None else map_ @ np.asarray(covariance, np.float64) @ map_.T
        return found, spread
