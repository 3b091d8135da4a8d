"""The encoding of a user's rows, and answers in the table's units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import DataError
from ...core.tree import Tree
from ...core.validation import some_of
from ...problems.base import Problem, Task
from ..arrays import Field
from ..base import Answers, DomainBase, Encoded, Predicts
from ..scenes import Scene, compared
from ..user_data import Json
from .files import Table, read_table, table_of
from .layout import Column
from .mixed_model import summary_of

if TYPE_CHECKING:
    from .domain import TablesRecipe

LEVEL = 0.9  # of the intervals
Cells = Table | str | Path | Mapping[str, Iterable[object]]


class Rows(NamedTuple):
    """Rows of one task, padded.

    Attributes:
        inputs: ``(n, inputs)``.
        targets: Numbers ``(n, 1)``, or classes ``(n,)``.
        weights: 1 for a row that counts, 0 for padding, ``(n,)``.
    """

    inputs: Array
    targets: Array
    weights: Array

    @property
    def labels(self) -> Array:
        """The targets, if they are classes."""
        return self.targets


def rows_of(rows: Cells, source: str) -> Table:
    """Return rows as a table.

    Args:
        rows: A `Table`, a file's path, or a mapping from column names to values.
        source: What messages call a mapping.

    Returns:
        The table.

    Raises:
        DataError: If the rows cannot be read.
    """
    return read_table(rows) if isinstance(rows, str | Path) else table_of(rows, source)


class TablesInterface(DomainBase):
    """The part of `Tables` that meets a user's data."""

    recipe: TablesRecipe
    support_type: ClassVar[type] = Rows

    @property
    def target(self) -> Column:
        """The column to be predicted."""
        return self.recipe.fixed.target

    @property
    def classes(self) -> bool:
        """Whether the target is a class."""
        return self.target.levels is not None

    def support_fields(self) -> dict[str, Field]:
        """Return what the arrays of a sampled support batch are: rows that are coded already."""
        layout = self.recipe.fixed
        targets = Field((), "int", layout.outputs) if self.classes else Field((1,))
        return {"inputs": Field((layout.inputs,)), "targets": targets, "weights": Field()}

    def query_field(self) -> Field:
        """Return what a row of coded inputs is."""
        return Field((self.recipe.fixed.inputs,))

    def encode(self, x: Cells | Rows | None = None, y: Iterable[object] | None = None) -> Encoded:
        """Return a user's rows as a batch.

        Args:
            x: A mapping from column names to values, a file's path, a `Table`, or a sampled batch of `Rows`.
                None for a task without rows, whose predictions are the population's.
            y: The targets, or None if they are one of the columns.

        Returns:
            The batch, and the classes that the target may be.

        Raises:
            DataError: If a column is missing, a cell cannot be coded, or rows are of several tasks.
        """
        classes = np.array(self.target.levels) if self.classes else None
        if isinstance(x, Rows):
            return Encoded(super().encode(x, y).support, classes)
        if x is None:  # one row that does not count
            blank = self.query_batch(jnp.zeros((1, self.recipe.fixed.inputs), jnp.float32))
            targets = jnp.zeros(1, jnp.int32) if self.classes else blank.targets
            return Encoded(blank._replace(targets=targets, weights=jnp.zeros_like(blank.weights)), classes)
        table, layout, task = rows_of(x, "x"), self.recipe.fixed, self.recipe.task
        if len(tasks := self._tasks_of(table)) > 1:
            raise DataError(
                f"{table.source}: expected rows of one task, got {len(tasks)} ({task!r}: {some_of(tasks)})."
            )
        if y is not None:
            columns = {**table.columns, layout.target.name: table_of({"y": y}, "y").columns["y"]}
            table = table_of(columns, table.source)
        kind = np.int32 if self.classes else np.float32
        inputs, targets = layout.code(table).astype(np.float32), layout.targets(table).astype(kind)
        ones = jnp.ones(table.rows, jnp.float32)
        return Encoded(Rows(jnp.asarray(inputs), jnp.asarray(targets), ones), classes)

    def encode_query(self, x: Cells | Rows) -> np.ndarray:
        """Return the coded inputs ``(n, inputs)`` of rows, given as `encode` takes them."""
        if isinstance(x, Rows):
            return super().encode_query(x)
        return self.recipe.fixed.code(rows_of(x, "x")).astype(np.float32)

    def decode(self, outputs: np.ndarray, x: object) -> np.ndarray:
        """Return outputs ``(n, 1)`` as targets ``(n,)`` in the table's units, float64."""
        return self.target.mean + self.target.scale * outputs[:, 0].astype(np.float64)

    def query_batch(self, rows: Array) -> Rows:
        """Return coded inputs as a batch with blank targets."""
        ones = jnp.ones(len(rows), rows.dtype)
        return Rows(rows, ones[:, None], ones)

    def read(self, path: str | Path, query: bool = False) -> Table:
        """Return the table in a file."""
        return read_table(path)

    def _tasks_of(self, table: Table) -> list[str]:
        """The tasks that a table has rows of, if it has a column of tasks."""
        return list(dict.fromkeys(map(str, table.columns.get(str(self.recipe.task), ()))))

    def answers(
        self, predictor: Predicts, support: Table | None, query: Table, uncertainty: bool = False
    ) -> Answers:
        """Return an answer for each row of the query; its note says how far they are from its target column.

        The first line names the columns: the row's number in the query, its task if the rows say it, the
        answer, and how sure it is.

        Raises:
            DataError: If the query has rows of another task than the support.
        """
        given = [] if support is None else self._tasks_of(support)
        tasks = list(dict.fromkeys([*given, *self._tasks_of(query)]))
        if support is not None and len(tasks) > 1:
            raise DataError(
                f"query: expected rows of the task in {support.source}, got {query.source} with rows of "
                f"other tasks ({self.recipe.task!r}: {some_of(tasks, 3)}). Hint: keep one task's rows, or "
                "leave out that column."
            )
        target, found = self.target, predictor.predict(query)
        rows: list[dict[str, object]] = [{"row": i, target.name: _plain(a)} for i, a in enumerate(found, 1)]
        about: dict[str, object] = {"target": target.name}
        if target.levels is not None:
            for row, p in zip(rows, predictor.predict_proba(query, uncertainty), strict=True):
                row["probability"] = round(float(p.max()), 6)
                row["probabilities"] = {c: round(float(v), 6) for c, v in zip(target.levels, p, strict=True)}
        elif uncertainty:
            about = {"level": LEVEL, **about}
            interval = predictor.predict_interval(query, LEVEL)
            for row, low, high in zip(rows, interval.low, interval.high, strict=True):
                row |= {"low": _plain(low), "high": _plain(high)}
        head = ["row", *([str(self.recipe.task)] if tasks else []), target.name]
        head += ["probability"] if target.levels else []
        head += [f"{LEVEL:.0%} interval".replace("%", " %")] if "level" in about else []
        lines = [self._line({**row, "row": "\t".join([str(row["row"]), *tasks])}) for row in rows]
        return Answers(rows, ["\t".join(head), *lines], about, lambda: self._judged(query, found))

    def _line(self, row: dict[str, object]) -> str:
        """An answer as text."""
        answer = row[self.target.name]
        more = f"\t{row['probability']:.3f}" if "probability" in row else ""
        more += f"\t{row['low']:.6g} to {row['high']:.6g}" if "low" in row else ""
        return f"{row['row']}\t{answer if isinstance(answer, str) else format(answer, '.6g')}{more}"

    def _judged(self, table: Table, found: np.ndarray) -> str:
        """How right the answers are, as a phrase."""
        name = self.target.name
        if name not in table.columns:
            return ""
        if self.classes:
            right = sum(a == b for a, b in zip(found, table.columns[name], strict=True))
            return f"{right} of {table.rows} as the column {name!r} has them"
        errors = found - table.numbers(name, "the target")
        return f"root mean squared error from the column {name!r}: {np.sqrt(np.mean(errors**2)):.6g}"

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return the query's predictions before and after adaptation, over the true targets.

        For classes the prediction is the probability of the true one, over the rows.
        """
        kept = np.flatnonzero(np.asarray(task.query.weights))
        outputs = [np.asarray(self.forward(phi, task.query.inputs)) for phi in (before, after)]
        targets = np.asarray(task.query.targets)[kept]
        if not self.classes:
            parts = [self.decode(part, None) for part in (targets, *(out[kept] for out in outputs))]
            return [compared("predicted rows", *parts, name=self.target.name)]
        rows = np.arange(len(kept))
        first, last = ((rows, np.asarray(jax.nn.softmax(out))[kept, targets]) for out in outputs)
        lines = {"before": first, "after": last}
        return [Scene("probability of the true class", self.target.name, lines, "row")]

    def summary(self, theta: Tree, problem: Problem) -> tuple[Json, str]:
        """Return the learned prior of a linear model's coefficients; nothing for other models.

        With data, and a likelihood, also what the likelihood says of it: standard errors, AIC, what is
        degenerate, and whether the fit has converged.
        """
        return summary_of(self, theta, problem)  # type: ignore[arg-type]


def _plain(answer: str | float) -> str | float:
    """An answer as a JSON value."""
    return str(answer) if isinstance(answer, str) else round(float(answer), 9)
