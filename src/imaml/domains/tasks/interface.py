"""A user's rows as batches, and predictions in their units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError, DataError
from ...core.recipes import to_json
from ...core.tree import Tree
from ...core.validation import some_of
from ...problems.base import Task
from ..base import Answers, DomainBase, Encoded, Predicts, Standalone
from ..fewshot.images import SUFFIXES
from ..user_data import Part
from .counts import LOG_MOST
from .folders import files_of, read_images
from .frames import columns_of, numbers_of, taken
from .layout import Rows, bucket, leaves_by_name, nested, padded
from .own_losses import Own
from .sources import TABLES, read_columns
from .values import Level, as_array, as_classes, finite_numbers, labels_of, levels_of

if TYPE_CHECKING:
    from .domain import TasksRecipe

DRAWS = 400  # of predictive intervals that are simulated
LEVEL = 0.9  # of the intervals of answers to files
LISTED = 10  # classes whose probabilities are all shown
LEVELS = (*(i / 20 for i in range(1, 20)), 0.99)  # of the quantiles that a calibration keeps
PARTS = ("x", "y", "offset", "weights")  # the arrays of rows by name


class Asked(NamedTuple):
    """Query rows of a run whose rows have offsets.

    Attributes:
        inputs: A tree of coded arrays ``(n, ...)``.
        offset: ``(n,)``.
    """

    inputs: Tree
    offset: np.ndarray | Array


class Given(NamedTuple):
    """A user's rows, by what they are for; None of what was not given."""

    x: Tree
    y: Tree = None
    offset: Tree = None
    weights: Tree = None


class TasksInterface(DomainBase):
    """What a user's own tasks encode, decode, read and write."""

    recipe: TasksRecipe
    support_type: ClassVar[type] = Rows

    @property
    def classes(self) -> bool:
        """Whether targets are classes."""
        return self.recipe.loss.targets == "classes"

    @property
    def ways(self) -> int:
        """How many classes a task has; those that all tasks share, or those of an episode."""
        levels = self.recipe.layout.levels
        return self.recipe.ways if levels is None else len(levels)

    def encode(self, x: object, y: object = None) -> Encoded:
        """Return a user's support rows as a batch, padded to one of a few sizes.

        Args:
            x: Of a run on images the path of a folder with a folder for each class, or a list of image files.
                None for no rows: predictions are then those for the population of all tasks. Or inputs like
                those of the run: an array or a tree of arrays. Of a data frame's run a data frame
                or a dict of columns, which may hold the target. Of a run with offsets or weights a dict
                ``{"x": ..., "offset": ..., "weights": ...}``. Or a sampled batch.
            y: The targets.

        Returns:
            The batch, and the classes of its outputs.

        Raises:
            DataError: If a value does not fit.
        """
        recipe = self.recipe
        if x is None and y is None:
            return self._nothing()
        if isinstance(x, Rows):
            levels = range(recipe.ways) if recipe.layout.levels is None else recipe.layout.levels
            return Encoded(x._replace(reference=None), as_classes(tuple(levels)) if self.classes else None)
        labels = list(dict.fromkeys(self._labels(x)))
        if len(labels) > 1:
            raise DataError(
                f"adapt: expected rows of one task, got {len(labels)} ({recipe.columns[0]!r}: "
                f"{some_of([str(label) for label in labels])}). Hint: learner.predict(support, query) learns "
                "each task from its own rows."
            )
        given = self._given(x)
        targets_given = given.y if y is None else y
        if targets_given is None:
            raise DataError(
                "adapt: y: expected targets, got None. Hint: pass them as the second argument, adapt(x, y)."
            )
        inputs = recipe.layout.code(given.x)
        rows = len(jax.tree.leaves(inputs)[0])
        targets, classes = self._targets(targets_given)
        weights = np.ones(rows) if given.weights is None else _column(given.weights, "weights")
        parts = {"y": targets, "weights": weights}
        offset = self._offset(given)
        if offset is not None:
            parts["offset"] = offset
        for name, part in parts.items():
            if len(part) != rows:
                raise DataError(f"{name}: expected {rows} rows, as x has, got {len(part)}.")
        if weights.min() < 0 or not weights.sum():
            raise DataError(
                f"weights: expected numbers of at least 0, not all of them 0, got {weights.min():g}."
            )
        batch = (inputs, targets, weights.astype(np.float32), offset)
        if not normalises(recipe.model):  # copies of rows would change the statistics
            batch = padded(batch, bucket(rows))
            batch[2][rows:] = 0
        # `device_put`, as `jnp.asarray` compiles a program for each shape.
        return Encoded(Rows(*jax.device_put(batch)), classes)

    def _nothing(self) -> Encoded:
        """A support set of no rows that count: the adapted parameters are then theta."""
        recipe, rows = self.recipe, bucket(1)
        if normalises(recipe.model) or recipe.episodes:
            what = (
                "classes are new in each task" if recipe.episodes else "the model normalises by support rows"
            )
            raise DataError(f"adapt: x: expected support rows, as {what}, got None.")
        inputs = jax.tree.map(lambda leaf: np.repeat(leaf, rows, axis=0), recipe.layout.example())
        blank = self.query_batch(inputs)
        offset = jnp.zeros(rows) if recipe.offset else None
        levels = recipe.layout.levels
        support = Rows(inputs, blank.targets, jnp.zeros(rows), offset)
        return Encoded(jax.device_put(support), as_classes(tuple(levels)) if levels is not None else None)

    def posterior_form(self, support: Rows) -> dict[str, Tree]:
        """Return the form whose rank is the number of rows; it is exact for Gauss-Newton curvature."""
        return {"form": "rows"}

    def _targets(self, y: Tree) -> tuple[np.ndarray, np.ndarray | None]:
        """Coded targets, and the classes that they are of, if they are classes."""
        recipe = self.recipe
        if recipe.episodes:
            labels = labels_of(y, "y")
            levels = levels_of(labels)
            if len(levels) > recipe.ways:
                raise DataError(
                    f"y: expected at most {recipe.ways} classes, as the model has outputs, got "
                    f"{len(levels)}. Hint: train with more ways."
                )
            number = {level: i for i, level in enumerate(levels)}
            return np.array([number[label] for label in labels], np.int32), as_classes(levels)
        if self.classes:
            assert recipe.layout.levels is not None
            return recipe.layout.classes(y), as_classes(recipe.layout.levels)
        targets = recipe.layout.numbers(y)
        if recipe.loss.targets == "counts":
            require_counts(targets, "y")
        return targets, None

    def encode_query(self, x: Tree) -> Tree:
        """Return coded rows, leaves ``(n, ...)``; of a run with offsets `Asked`. See `encode`."""
        if isinstance(x, Rows):
            inputs = jax.tree.map(np.asarray, x.inputs)
            return inputs if x.offset is None else Asked(inputs, np.asarray(x.offset))
        given = self._given(x)
        inputs, offset = self.recipe.layout.code(given.x), self._offset(given)
        if offset is None:
            return inputs
        rows = len(jax.tree.leaves(inputs)[0])
        if len(offset) != rows:
            raise DataError(f"offset: expected {rows} rows, as x has, got {len(offset)}.")
        return Asked(inputs, offset)

    @staticmethod
    def asked_of(rows: Tree) -> tuple[Tree, Array | None]:
        """Return the inputs and the offset of query rows.

        Args:
            rows: What `encode_query` returned, or a part of its rows.

        Returns:
            The inputs, and the offset or None.
        """
        return (rows.inputs, jnp.asarray(rows.offset)) if isinstance(rows, Asked) else (rows, None)

    def _given(self, x: Tree) -> Given:
        """A user's rows, by what they are for."""
        recipe = self.recipe
        if are_paths(x):
            spec = recipe.layout.inputs[0]
            if len(recipe.layout.inputs) > 1 or spec.form != "bytes" or len(spec.shape) != 3:
                raise DataError(f"x: expected arrays, as the run was not fitted on images, got {x!r}.")
            return Given(*read_images(x, spec.shape))
        if recipe.columns:
            columns = columns_of(x)
            if not columns:
                return Given(x)
            targets, features = self._columns
            answered = all(name in columns for name in targets)
            y = None
            if answered:
                y = columns[targets[0]] if len(targets) == 1 else numbers_of(x, targets)
            extra = (columns.get(name) for name in (recipe.offset, recipe.weights))
            return Given(numbers_of(x, features), y, *extra)
        if isinstance(x, Mapping) and "x" in x and set(x) <= set(PARTS) and not self._is_inputs(x):
            return Given(**x)
        return Given(x)

    def _labels(self, x: Tree) -> list[Level]:
        """The task of each row of a data frame that has the run's column of tasks; else none."""
        if not self.recipe.columns or are_paths(x):
            return []
        name, columns = self.recipe.columns[0], columns_of(x)
        return labels_of(columns[name], f"column {name!r}", "label") if name in columns else []

    def separate(self, x: Tree, query: Tree) -> list[Part]:
        """Return the rows of each task of the query: those to learn from, which may be none, and its own."""
        if not self.recipe.columns:
            return super().separate(x, query)
        asked, known = self._labels(query), self._labels(x)
        tasks = list(dict.fromkeys(asked))
        if not tasks or x is None or (len(tasks) == 1 and not known):
            rows = len(jax.tree.leaves(self.encode_query(query))[0])
            return [Part(x, query, np.arange(rows))]
        if not known:
            raise DataError(
                f"support: expected a column {self.recipe.columns[0]!r}, as the query has rows of "
                f"{len(tasks)} tasks, got none. Hint: add it, so that each task is learned from its own rows."
            )
        few, every = columns_of(x), columns_of(query)
        parts = []
        for task in tasks:
            own, rows = (np.flatnonzero([label == task for label in labels]) for labels in (known, asked))
            parts.append(Part(taken(few, own) if own.size else None, taken(every, rows), rows))
        return parts

    @property
    def _columns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The data frame's columns of targets and of features."""
        target = self.recipe.layout.target
        count = 1 if target is None else int(np.prod(target.shape))
        return self.recipe.columns[1 : 1 + count], self.recipe.columns[1 + count :]

    def _is_inputs(self, x: Mapping[str, Tree]) -> bool:
        """Whether a dict is one of the run's inputs, which may have the names of `PARTS`."""
        skeleton = self.recipe.layout.skeleton
        return isinstance(skeleton, dict) and sorted(skeleton) == sorted(x)

    def _offset(self, given: Given) -> np.ndarray | None:
        name = self.recipe.offset
        if not name:
            if given.offset is not None:
                raise DataError("offset: expected none, as the run learned from rows without, got one.")
            return None
        if given.offset is None:
            hint = f"with the column {name!r}" if self.recipe.columns else 'as {"x": x, "offset": offset}'
            raise DataError(
                "offset: expected an offset for each row, as the run learned from rows with offsets, got "
                f"none. Hint: pass rows {hint}."
            )
        return (_column(given.offset, "offset") / self.recipe.layout.offset_scale).astype(np.float32)

    def decode(self, outputs: np.ndarray, x: Tree) -> np.ndarray:
        """Return the expected targets in their units, ``(n,)`` or ``(n, ...)`` as the run's targets were.

        Of a loss of the user's own, whose outputs are not targets, the outputs.
        """
        return self.units(self.recipe.loss.mean(outputs))

    def units(self, coded: np.ndarray) -> np.ndarray:
        """Return coded targets in their units.

        Args:
            coded: ``(n, ...)``.

        Returns:
            ``(n,)`` or ``(n, ...)`` as the run's targets were; the argument itself if it has another shape.
        """
        target = self.recipe.layout.target
        if target is None or coded[0].size != int(np.prod(target.shape)):
            return coded
        values = np.asarray(coded, np.float64).reshape(len(coded), *target.shape)
        if target.mean:
            values = values * np.array(target.scale) + np.array(target.mean)
        return values[:, 0] if target.shape == (1,) else values

    def query_batch(self, rows: Tree) -> Rows:
        """Return coded rows as a batch with blank targets."""
        inputs, offset = self.asked_of(rows)
        count = len(jax.tree.leaves(inputs)[0])
        target = self.recipe.layout.target
        shape = (count,) if target is None else (count, int(np.prod(target.shape)))
        blank = jnp.zeros(shape, jnp.int32 if target is None else jnp.float32)
        return Rows(jax.tree.map(jnp.asarray, inputs), blank, jnp.ones(count), offset)

    def interval(
        self, noise: Array | None, mean: Array, covariance: Array, level: float, x: Tree
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return predictions and intervals; see `UserData.interval`.

        Of numbers with a squared loss the width is that of the errors on validation tasks, in predicted
        standard deviations. Of other rows targets are simulated.
        """
        centre = np.asarray(mean, np.float64)
        spread = np.asarray(covariance, np.float64)
        if noise is not None:
            variance = np.diagonal(spread, axis1=1, axis2=2) + float(noise)
            half = self._factor(level) * np.sqrt(variance)
            return self.units(centre), self.units(centre - half), self.units(centre + half)
        values, vectors = np.linalg.eigh(spread)
        roots = vectors * np.sqrt(np.maximum(values, 0))[:, None]  # rounding may leave values below 0
        # The same random numbers for all rows, so that no row's interval depends on the others.
        first, second = jax.random.split(jax.random.key(0))
        normals = np.asarray(jax.random.normal(first, (DRAWS, centre.shape[1])))
        outputs = centre + np.einsum("nij,dj->dni", roots, normals)
        one = lambda key, row: self.recipe.loss.draw(key, row[None])[0]  # noqa: E731
        draw = jax.vmap(jax.vmap(one, (None, 0)))
        drawn = np.asarray(draw(jax.random.split(second, DRAWS), jnp.asarray(outputs, jnp.float32)))
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return self.units(self.recipe.loss.mean(centre)), low, high

    def _factor(self, level: float) -> float:
        """How many standard deviations an interval of a level is wide, to each side."""
        gaussian = NormalDist().inv_cdf((1 + level) / 2)
        quantiles = self.recipe.quantiles
        if not quantiles:
            return gaussian
        if level > LEVELS[-1]:  # beyond what validation says, as much wider than a Gaussian as at its end
            return quantiles[-1] * gaussian / NormalDist().inv_cdf((1 + LEVELS[-1]) / 2)
        return float(np.interp(level, (0.0, *LEVELS), (0.0, *quantiles)))

    def standalone(self, rows: int, queries: int) -> Standalone:
        """Return what `imaml_standalone.py` needs to code rows and to decode answers."""
        recipe, layout = self.recipe, self.recipe.layout
        loss = recipe.loss
        if loss.likelihood is not None and loss.kind == Own.kind:
            raise ConfigError("export: expected a loss with a name, or a function, got a density.")
        support, query = (
            jax.tree.map(lambda leaf, n=n: np.zeros((n, *leaf.shape[1:]), leaf.dtype), layout.example())
            for n in (rows, queries)
        )
        blank = self.query_batch(support)._replace(weights=np.ones(rows, np.float32))
        if recipe.offset:
            blank = blank._replace(offset=np.zeros(rows, np.float32))
            query = Asked(query, np.zeros(queries, np.float32))
        about: dict[str, Tree] = {
            "form": layout.skeleton,
            "inputs": to_json(layout.inputs),
            "target": to_json(layout.target),
            "levels": None if layout.levels is None else list(layout.levels),
            "ways": recipe.ways,
            "offset": layout.offset_scale if recipe.offset else None,
            "columns": list(self._columns[1]),
            "most": LOG_MOST if loss.targets == "counts" else None,
            "quantiles": [LEVELS, recipe.quantiles],
            "spread": self.classes or self.headline == "rmse",
            "pads": not normalises(recipe.model),
        }
        return Standalone(about, blank, query)

    # Files ------------------------------------------------------------------------------------------------

    def read(self, path: str | Path, query: bool = False) -> Tree:
        """Return the rows of an ``.npz`` file as a dict, or the array of an ``.npy`` file.

        The arrays are ``x`` (of a tree ``x/NAME``), ``y``, ``offset`` and ``weights``; of a data frame's run
        they are columns, also those of a table (.csv, .tsv, .parquet). Images are given by their folder.
        """
        suffix = Path(path).suffix.lower()
        if Path(path).is_dir() or suffix in SUFFIXES:
            return path
        if self.recipe.columns and suffix in TABLES:
            return read_columns(path, self.recipe.text)
        found = super().read(path)
        if not isinstance(found, Mapping) or self.recipe.columns:
            return found
        parts = {name.split("/")[0] for name in found}
        strange = parts - set(PARTS)
        if "x" not in parts or strange:
            raise DataError(
                f"{path}: expected arrays named {', '.join(PARTS)}, or x/NAME, got {some_of(sorted(found))}."
            )
        return nested(found)

    def write(self, task: Task, out: Path) -> tuple[int, int]:
        """Write a task as OUT/support.npz and OUT/query.npz, which `read` reads."""
        out.mkdir(parents=True, exist_ok=True)
        sizes = []
        for name, rows in (("support", task.support), ("query", task.query)):
            kept = np.flatnonzero(np.asarray(rows.weights))
            np.savez(out / f"{name}.npz", **self._arrays(rows, kept, name == "support"))  # type: ignore[arg-type]
            sizes.append(len(kept))
        return sizes[0], sizes[1]

    def _arrays(self, rows: Rows, kept: np.ndarray, answered: bool) -> dict[str, np.ndarray]:
        """The arrays of a sampled batch by name, in the user's units."""
        recipe = self.recipe
        named = leaves_by_name(jax.tree.map(np.asarray, rows.inputs), "x")
        values = [
            spec.units(named[name][kept])
            for name, spec in zip(recipe.layout.names, recipe.layout.inputs, strict=True)
        ]
        targets, features = self._columns
        if recipe.columns:
            found = dict(zip(features, values[0].T, strict=True))
        else:
            names = [f"x/{name}" if name else "x" for name in recipe.layout.names]
            found = dict(zip(names, values, strict=True))
        if answered:
            found |= self._answered(np.asarray(rows.targets)[kept], targets)
            if recipe.weights:
                found[recipe.weights] = np.asarray(rows.weights)[kept]
        if rows.offset is not None:
            found[recipe.offset] = np.asarray(rows.offset)[kept] * recipe.layout.offset_scale
        return found

    def _answered(self, targets: np.ndarray, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Coded targets in the user's units, by the name of their array or of their columns."""
        levels = self.recipe.layout.levels
        if self.classes:
            y = targets if levels is None else as_classes(levels)[targets]
        else:
            y = self.units(targets)
        if len(columns) > 1:
            return dict(zip(columns, y.T, strict=True))
        return {columns[0] if columns else "y": y}

    def answers(self, predictor: Predicts, support: Tree, query: Tree, uncertainty: bool = False) -> Answers:
        """Return an answer for each row of the query, with its probability or interval."""
        found = predictor.predict(query)
        names: dict[str, list[Tree]] = {"row": list(range(1, len(found) + 1))}
        if are_paths(query):
            names = {"file": [str(file) for file in files_of(query)[0]]}
        key, values = names.popitem()
        rows: list[dict[str, object]] = [
            {key: name, "prediction": np.asarray(one).tolist()}
            for name, one in zip(values, found, strict=True)
        ]
        if predictor.classes is not None:
            chances = predictor.predict_proba(query, uncertainty)
            for row, one in zip(rows, chances, strict=True):
                row["probability"] = round(float(one.max()), 6)
                if len(one) <= LISTED:
                    each = zip(predictor.classes.tolist(), one, strict=True)
                    row |= {f"P({name})": round(float(chance), 6) for name, chance in each}
        elif uncertainty:
            interval = predictor.predict_interval(query, LEVEL)
            for row, low, high in zip(rows, interval.low, interval.high, strict=True):
                row |= {"low": low.tolist(), "high": high.tolist()}
        return _answers(rows)

    def answers_each(
        self, adapt: Callable[[Tree], Predicts], support: Tree, query: Tree, uncertainty: bool = False
    ) -> Answers:
        """Return an answer for each row of the query, each task's by the task's own support rows."""
        if not self._labels(query):
            return super().answers_each(adapt, support, query, uncertainty)
        parts = self.separate(support, query)
        done = [self.answers(adapt(p.support), p.support, p.query, uncertainty) for p in parts]
        if len(parts) == 1 and (support is None or parts[0].support is not None):
            return done[0]
        name, labels = self.recipe.columns[0], self._labels(query)
        rows: dict[int, dict[str, object]] = {}
        for part, one in zip(parts, done, strict=True):
            for place, row in zip(part.rows.tolist(), one.rows, strict=True):
                rows[place] = {
                    "row": place + 1,
                    name: labels[place],
                    **{k: row[k] for k in row if k != "row"},
                }
        alone = [str(labels[part.rows[0]]) for part in parts if part.support is None]
        said = (
            f"{len(alone)} of {len(parts)} tasks have no support rows, and are predicted as the population "
            f"({some_of(alone)})"
        )
        return _answers([rows[place] for place in sorted(rows)])._replace(note=lambda: said if alone else "")


def _answers(rows: list[dict[str, object]]) -> Answers:
    """Answers with a head and a line for each row."""
    lines = ["\t".join(str(value) for value in row.values()) for row in rows]
    return Answers(rows, ["\t".join(rows[0]), *lines] if rows else [])


def are_paths(x: object) -> bool:
    """Return whether a user gives files instead of arrays.

    Args:
        x: What the user gives.

    Returns:
        True for a path, or a list of paths.
    """
    if isinstance(x, list | tuple):
        return bool(x) and all(isinstance(item, str | Path) for item in x)
    return isinstance(x, str | Path)


def _column(values: Tree, name: str) -> np.ndarray:
    """One finite number for each row."""
    array = finite_numbers(as_array(values, name), name)
    if array.ndim != 1:
        raise DataError(f"{name}: expected one number for each row, shape (rows,), got {array.shape}.")
    return array


def normalises(model: object) -> bool:
    """Return whether a network's outputs for a row depend on the batch's statistics.

    Args:
        model: The network.

    Returns:
        Its attribute `normalises`; False where it has none.
    """
    return bool(getattr(model, "normalises", False))


def require_counts(values: np.ndarray, name: str) -> None:
    """Check that targets are counts.

    Args:
        values: The targets.
        name: What messages call them.

    Raises:
        DataError: If one is negative or no whole number.
    """
    if (values < 0).any() or (values != np.round(values)).any():
        wrong = values[(values < 0) | (values != np.round(values))].ravel()[0]
        raise DataError(f"{name}: expected counts, whole numbers of at least 0, got {wrong:g}.")
