"""How a table's rows become numbers: which columns, how they are coded, and in which units answers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError, some_of
from .table_files import Table


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
            return (self.numbers(table, "a feature")[:, None] - self.mean) / self.scale
        return np.eye(len(self.levels))[self.places(table, "a feature")][:, 1:]

    def numbers(self, table: Table, what: str) -> np.ndarray:
        """The numbers as they stand in the table, (rows,)."""
        return table.numbers(self.name, what)


def column_of(table: Table, name: str, what: str, rows: np.ndarray, texts: bool = False) -> Column:
    """A column's coding, learned from the given rows alone (booleans, (rows,))."""
    if not texts and table.numeric(name, what):
        values = table.numbers(name, what)[rows]
        scale = float(values.std())
        return Column(name, None, float(values.mean()), scale if scale > 0 else 1.0)
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
        return (self.target.numbers(table, "the target")[:, None] - self.target.mean) / self.target.scale

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
