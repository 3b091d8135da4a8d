"""The encoding of a user's rows, and answers in the table's units."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
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
from ..tasks.layout import bucket, padded
from ..user_data import Json, Part
from .cells import Table, label_of, table_of
from .columns import complete, less_offset, weights_of
from .files import read_table
from .layout import Column
from .mixed_model import summary_of

if TYPE_CHECKING:
    from .domain import TablesRecipe

LEVEL = 0.9  # of the intervals
Cells = object  # a `Table`, a file's path, a data frame, a mapping from column names to values, or a matrix


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

    def table(self, x: Cells, source: str = "x") -> Table:
        """Return a user's rows as a table.

        Args:
            x: A `Table`, a file's path, a data frame, a mapping from column names to values, or a matrix with
                a column for each feature.
            source: What messages call it.

        Returns:
            The table.

        Raises:
            DataError: If the rows cannot be read.
        """
        if isinstance(x, str | Path):
            return self.read(x)
        names = [column.name for column in self.recipe.fixed.features]
        if isinstance(x, np.ndarray | jax.Array | list):
            try:
                matrix = np.asarray(x)
            except ValueError as error:
                raise DataError(f"{source}: expected rows of one length, got others ({error}).") from error
            if matrix.ndim == 1 and len(names) == 1:
                matrix = matrix[:, None]
            if matrix.ndim != 2 or matrix.shape[1] != len(names):
                raise DataError(
                    f"{source}: expected a table, or a matrix with a column for each of {some_of(names)}, "
                    f"got shape {matrix.shape}."
                )
            return table_of(dict(zip(names, matrix.T, strict=True)), source)
        return table_of(x, source)

    def encode(self, x: Cells | Rows = None, y: Iterable[object] | None = None) -> Encoded:
        """Return a user's rows as a batch, padded to one of a few sizes.

        Args:
            x: Rows as `table` takes them, a sampled batch of `Rows`, or None for no rows: predictions are
                then those for the population of all tasks.
            y: The targets, or None if they are one of the columns.

        Returns:
            The batch, and the classes that the target may be.

        Raises:
            DataError: If a column is missing, a cell cannot be coded, or rows are of several tasks.
        """
        classes = np.array(self.target.levels) if self.classes else None
        if isinstance(x, Rows):
            return Encoded(super().encode(x, y).support, classes)
        layout, task = self.recipe.fixed, self.recipe.task
        kind = np.int32 if self.classes else np.float32
        if x is None and y is None:
            inputs = np.zeros((1, layout.inputs), np.float32)
            targets = np.zeros((1,) if self.classes else (1, 1), kind)
            weights = np.zeros(1, np.float32)
        else:
            table = self.table(x)
            if len(tasks := self._tasks_of(table)) > 1:
                raise DataError(
                    f"{table.source}: expected rows of one task, got {len(tasks)} ({task!r}: "
                    f"{some_of(tasks)}). Hint: name each row's task in the query, too, as in "
                    "learner.predict(support, query)."
                )
            if y is not None:
                answers = table_of({"y": y}, "y").columns["y"]
                table = replace(table, columns={**table.columns, layout.target.name: answers})
            weighed = self.recipe.weights if self.recipe.weights in table.columns else None
            extra = [name for name in (weighed, self.recipe.offset) if name is not None]
            table = self._complete(table, [layout.target.name, *extra], self.recipe.missing)
            table = less_offset(table, layout.target.name, self.recipe.offset)
            inputs = layout.code(table, self.recipe.unseen).astype(np.float32)
            targets = layout.targets(table).astype(kind)
            weights = weights_of(table, weighed).astype(np.float32)
        rows = len(inputs)
        batch = padded((inputs, targets, weights), bucket(rows))
        batch[2][rows:] = 0
        # `device_put`, as `jnp.asarray` compiles a program for each shape.
        return Encoded(Rows(*jax.device_put(batch)), classes)

    def _complete(self, table: Table, needed: list[str], missing: str) -> Table:
        """The rows of a table that can be learned from, or predicted."""
        features = [column.name for column in self.recipe.fixed.features]
        for name in (*needed, *features):
            table.column(name, "the target" if name in needed else "a feature")
        return complete(table, missing, needed, features).table

    def encode_query(self, x: Cells | Rows) -> np.ndarray:
        """Return the coded inputs ``(n, inputs)`` of rows, given as `encode` takes them."""
        if isinstance(x, Rows):
            return super().encode_query(x)
        filled = "mean" if self.recipe.missing == "mean" else "error"  # no row can be dropped
        needed = [] if self.recipe.offset is None else [self.recipe.offset]
        table = self.table(x)
        for name in needed:
            table.column(name, "the offset")
            for row in np.flatnonzero(table.missing(name)):
                raise table.cell_error(name, row, "a number", "every row that is predicted needs its offset.")
        table = self._complete(table, needed, filled)
        return self.recipe.fixed.code(table, self.recipe.unseen).astype(np.float32)

    def decode(self, outputs: np.ndarray, x: object) -> np.ndarray:
        """Return outputs ``(n, 1)`` as targets ``(n,)`` in the table's units, float64."""
        found = self.target.mean + self.target.scale * outputs[:, 0].astype(np.float64)
        offset = self.recipe.offset
        if offset is None or x is None or isinstance(x, Rows):
            return found
        return found + self.table(x).numbers(offset, "the offset")

    def query_batch(self, rows: Array) -> Rows:
        """Return coded inputs as a batch with blank targets."""
        ones = jnp.ones(len(rows), rows.dtype)
        return Rows(rows, ones[:, None], ones)

    def read(self, path: str | Path, query: bool = False) -> Table:
        """Return the table in a file."""
        return read_table(path, self.recipe.format)

    def _tasks_of(self, table: Table) -> list[str]:
        """The tasks that a table has rows of, if it has a column of tasks."""
        return list(dict.fromkeys(self._labels(table)))

    def _labels(self, table: Table) -> tuple[str, ...]:
        """The task of each row, if a table has a column of tasks."""
        name = str(self.recipe.task)
        return table.labels(name, "the task") if name in table.columns else ()

    def separate(self, x: Cells | None, query: Cells) -> list[Part]:
        """Return the rows of each task of the query: those to learn from, which may be none, and its own."""
        asked = self.table(query, "query")
        if x is None:
            return [Part(None, asked, np.arange(asked.rows))]
        support = self.table(x, "support")
        tasks, name = self._tasks_of(asked), str(self.recipe.task)
        known = self._tasks_of(support)
        if not tasks or (len(tasks) == 1 and not known):
            return [Part(support, asked, np.arange(asked.rows))]
        if not known:
            raise DataError(
                f"{support.source}: expected a column {name!r}, as {asked.source} has rows of {len(tasks)} "
                "tasks, got none. Hint: add it, so that each task is learned from its own rows."
            )
        parts = []
        labels = [np.array(table.labels(name, "the task")) for table in (support, asked)]
        for task in tasks:
            own, rows = (np.flatnonzero(label == task) for label in labels)
            parts.append(Part(support.take(own) if own.size else None, asked.take(rows), rows))
        return parts

    def answers(
        self, predictor: Predicts, support: Table | None, query: Table, uncertainty: bool = False
    ) -> Answers:
        """Return an answer for each row of the query; its note says how far they are from its target column.

        The first line names the columns: the row's number in the query, its task if the rows say it, the
        answer, and how sure it is.
        """
        tasks = self._labels(query) or (support and self._labels(support)[:1] * query.rows) or []
        target, found = self.target, predictor.predict(query)
        numbers = [query.number(i) + 1 for i in range(query.rows)]
        rows: list[dict[str, object]] = [
            {"row": i, target.name: _plain(a)} for i, a in zip(numbers, found, strict=True)
        ]
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
        shown = [f"{i}\t{task}" for i, task in zip(numbers, tasks, strict=True)] if tasks else numbers
        lines = [self._line({**row, "row": first}) for row, first in zip(rows, shown, strict=True)]
        return Answers(rows, ["\t".join(head), *lines], about, lambda: self._judged(query, found))

    def answers_each(
        self,
        adapt: Callable[[Tree], Predicts],
        support: Table | None,
        query: Table,
        uncertainty: bool = False,
    ) -> Answers:
        """Return an answer for each row of the query, each task's by the task's own support rows."""
        parts = self.separate(support, query)
        done = [self.answers(adapt(p.support), p.support, p.query, uncertainty) for p in parts]
        if len(done) == 1 and (support is None or parts[0].support is not None):
            return done[0]
        order = np.argsort(np.concatenate([part.rows for part in parts]))
        task = str(self.recipe.task)
        names = [self._tasks_of(part.query)[0] for part in parts for _ in part.rows]
        every = [row for one in done for row in one.rows]
        rows = [{"row": every[i]["row"], task: names[i], **every[i]} for i in order]
        lines = [line for one in done for line in one.lines[1:]]
        found = np.array([row[self.target.name] for row in rows])
        alone = [self._tasks_of(part.query)[0] for part in parts if part.support is None]

        def note() -> str:
            notes = [self._judged(query, found)]
            if alone:
                notes.append(
                    f"{len(alone)} of {len(parts)} tasks have no support rows, and are predicted as the "
                    f"population ({some_of(alone)})"
                )
            return "; ".join(filter(None, notes))

        return Answers(rows, [done[0].lines[0], *(lines[i] for i in order)], done[0].about, note)

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
            right = sum(
                label_of(a) == b for a, b in zip(found, table.labels(name, "the target"), strict=True)
            )
            return f"{right} of {table.rows} as the column {name!r} has them"
        errors = found - self.target.values(table, "the target")
        if np.isnan(errors).all():
            return ""
        return f"root mean squared error from the column {name!r}: {np.sqrt(np.nanmean(errors**2)):.6g}"

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
    return str(answer) if isinstance(answer, str) else float(f"{answer:.10g}")
