"""`Tasks`: a user's data as many tasks, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.tree import Tree
from ...core.validation import not_one_of, some_of
from ...problems.base import Task
from ..base import SPLITS
from .layout import Level, as_array, finite_numbers, labels_of, rows_alike, structure_of


class Frame(NamedTuple):
    """Which columns of a data frame tasks were made of.

    Attributes:
        task: The column that names the tasks.
        target: The column to be predicted.
        features: The columns to predict it from.
    """

    task: str
    target: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Tasks:
    """Many tasks, each with its rows; made by `from_arrays`, `from_list`, `from_frame` or `from_folder`.

    Attributes:
        structure: How the inputs form a tree; see `TaskLayout`.
        inputs: The arrays of the inputs ``(rows, ...)``, the rows of one task after those of another.
        targets: ``(rows, ...)``, or None where the tasks' classes are the targets.
        first: The first row of each task, ``(tasks,)``.
        counts: The number of rows of each task, ``(tasks,)``.
        names: The name of each task.
        supports: How many of each task's rows, its first ones, are its support set, where that was given.
        weights: How many times each row counts, ``(rows,)``, or None for once.
        offset: What is added to each row's outputs, ``(rows,)``, or None.
        split: The names of the tasks of each split, where that was given.
        episodes: Whether the groups are classes, of which tasks of classification are made.
        frame: The columns that they were read from, if they come from a data frame.
        source: What messages call them.
    """

    structure: str
    inputs: tuple[np.ndarray, ...]
    targets: np.ndarray | None
    first: np.ndarray
    counts: np.ndarray
    names: tuple[Level, ...]
    supports: np.ndarray | None = None
    weights: np.ndarray | None = None
    offset: np.ndarray | None = None
    split: Mapping[str, tuple[Level, ...]] | None = None
    episodes: bool = False
    frame: Frame | None = None
    source: str = field(default="tasks", compare=False)

    @classmethod
    def from_arrays(
        cls,
        x: Tree,
        y: object | None = None,
        groups: object | None = None,
        *,
        weights: object | None = None,
        offset: object | None = None,
        split: object | None = None,
    ) -> Tasks:
        """Make tasks of arrays whose rows are grouped by a label.

        Args:
            x: Inputs: an array ``(rows, ...)``, or a dict or tuple of such arrays.
            y: Targets ``(rows, ...)``: numbers, or classes. None if the groups are the classes, so that
                tasks are episodes of few-shot classification.
            groups: The label of each row's task, ``(rows,)``, in any order. Without ``y``: its class.
            weights: How many times each row counts, ``(rows,)``.
            offset: What is added to each row's first output, ``(rows,)``, such as the logarithm of an
                exposure.
            split: "train", "validation" or "test" for each row, ``(rows,)``, the same for all rows of a task;
                or a dict from split to labels of groups. By default `fit` splits at random.

        Returns:
            The tasks, in the order in which their labels first come.

        Raises:
            DataError: If arrays differ in their number of rows, or values are not accepted.

        Example:
            >>> import numpy as np
            >>> tasks = Tasks.from_arrays(np.arange(6.0), np.arange(6.0), list("aabbbb"))
            >>> tasks.names, tasks.counts.tolist()
            (('a', 'b'), [2, 4])
        """
        structure, inputs = structure_of(x)
        rows = len(inputs[0])
        if groups is None:
            raise DataError(
                "groups: expected a label for each row, got None. Hint: name each row's task, or use Tasks.from_list."
            )
        arrays: dict[str, np.ndarray | None] = {"x": inputs[0]}
        arrays["groups"] = labels = np.asarray(labels_of(groups, "groups"), dtype=object)
        arrays["y"] = targets = None if y is None else _targets(y)
        arrays["weights"], arrays["offset"] = _column("weights", weights, 0), _column("offset", offset)
        rows_alike({name: array for name, array in arrays.items() if array is not None}, "tasks")
        names = tuple(dict.fromkeys(labels.tolist()))
        number = {name: i for i, name in enumerate(names)}
        index = np.array([number[label] for label in labels], np.int64)
        order = np.argsort(index, kind="stable")
        counts = np.bincount(index, minlength=len(names))
        taken = lambda array: None if array is None else array[order]  # noqa: E731
        return cls(
            structure,
            tuple(array[order] for array in inputs),
            taken(targets),
            np.cumsum(counts) - counts,
            counts,
            names,
            weights=taken(arrays["weights"]),
            offset=taken(arrays["offset"]),
            split=None if split is None else _given_split(split, labels, rows),
            episodes=y is None,
            source=f"{rows} rows in {len(names)} groups",
        )

    @classmethod
    def from_list(cls, tasks: Iterable[object], names: Sequence[Level] | None = None) -> Tasks:
        """Make tasks of a list.

        Args:
            tasks: Each item is a pair ``(x, y)`` of a task's inputs and targets, or a pair ``(support,
                query)`` of two such pairs (also an `imaml.Task` of them). Inputs are an array, or a dict or
                tuple of arrays, with rows first.
            names: The tasks' names; by default their numbers.

        Returns:
            The tasks.

        Raises:
            DataError: If an item is no such pair, or arrays of the tasks do not fit together.

        Example:
            >>> import numpy as np
            >>> tasks = Tasks.from_list([(np.zeros((n, 2)), np.zeros(n)) for n in (3, 8)])
            >>> tasks.counts.tolist()
            [3, 8]
        """
        parts: list[tuple[Tree, object]] = []
        supports: list[int | None] = []
        for i, item in enumerate(tasks):
            pieces = _pairs(item, f"tasks[{i}]")
            structures = [structure_of(x, f"tasks[{i}]: x") for x, _ in pieces]
            sizes = [len(arrays[0]) for _, arrays in structures]
            for (_, y), rows in zip(pieces, sizes, strict=True):
                rows_alike({"x": np.empty(rows), "y": _targets(y, f"tasks[{i}]: y")}, f"tasks[{i}]")
            supports.append(sizes[0] if len(pieces) == 2 else None)
            parts += pieces
        if not parts:
            raise DataError("tasks: expected at least one task, got none.")
        count = len(supports)
        given = [s is not None for s in supports]
        if any(given) and not all(given):
            raise DataError(
                f"tasks: expected all items to be pairs (x, y), or all (support, query), got both (tasks[0], "
                f"tasks[{given.index(not given[0])}])."
            )
        if names is not None and len(names) != count:
            raise DataError(f"names: expected {count}, one for each task, got {len(names)}.")
        labels = list(range(count) if names is None else names)
        each = np.repeat(np.arange(count), 2 if any(given) else 1)
        first = jax.tree.structure(parts[0][0])
        for i, (x, _) in enumerate(parts):
            if jax.tree.structure(x) != first and not isinstance(x, list):
                raise DataError(
                    f"tasks[{each[i]}]: expected inputs of the same structure as those of tasks[0], got others."
                )
        joined = _stacked([x for x, _ in parts])
        sizes = [len(structure_of(x)[1][0]) for x, _ in parts]
        groups = np.repeat(np.asarray(labels, dtype=object)[each], sizes)
        made = cls.from_arrays(joined, _joined("y", [_targets(y) for _, y in parts]), groups.tolist())
        found = None if not any(given) else np.array(supports)
        return replace(made, supports=found, source=f"{count} tasks")

    @classmethod
    def from_frame(
        cls,
        frame: Tree,
        task: str,
        target: str,
        features: Sequence[str] | None = None,
        *,
        weights: str | None = None,
        offset: str | None = None,
        split: str | None = None,
    ) -> Tasks:
        """Make tasks of a data frame of pandas, polars or the like, or of a dict of columns.

        Args:
            frame: The data frame.
            task: The column whose values name the tasks.
            target: The column to be predicted.
            features: The columns to predict it from; by default all others, which must be numbers.
            weights: The column that says how many times a row counts.
            offset: The column that is added to each row's first output.
            split: The column that says which split a task belongs to.

        Returns:
            The tasks.

        Raises:
            DataError: If a column is missing, is no numbers, or has missing cells.

        Example:
            >>> frame = {"person": ["a", "a", "b", "b"], "day": [1, 2, 1, 2], "score": [1.0, 2, 3, 4]}
            >>> Tasks.from_frame(frame, task="person", target="score").frame.features
            ('day',)
        """
        columns = [str(name) for name in (frame.keys() if isinstance(frame, Mapping) else frame.columns)]
        used = {"task": task, "target": target, "weights": weights, "offset": offset, "split": split}
        for name in [*(name for name in used.values() if name is not None), *(features or ())]:
            if name not in columns:
                raise DataError(not_one_of("column", name, columns))
        chosen = tuple(features or (name for name in columns if name not in used.values()))
        if not chosen:
            raise DataError(
                f"features: expected at least one column besides {task!r} and {target!r}, got none."
            )
        inputs = numbers_of(frame, chosen)
        optional = {
            name: None if used[name] is None else np.asarray(frame[used[name]])
            for name in ("weights", "offset", "split")
        }
        made = cls.from_arrays(inputs, frame[target], frame[task], **optional)
        return replace(made, frame=Frame(task, target, chosen), source=f"a table of {len(inputs)} rows")

    @classmethod
    def from_folder(cls, path: str | Path, side: int = 28, colour: bool = False) -> Tasks:
        """Make episodes of few-shot classification of a folder of images, with a folder for each class.

        Args:
            path: The folder. If it has the folders train/, val/ (or validation/) and test/, they are the splits;
                else `fit` splits the classes at random.
            side: The side in pixels that images are shrunk to.
            colour: Whether images keep their colours; else they are grey, ink is 1 and paper 0.

        Returns:
            The tasks.

        Raises:
            DataError: If there is no such folder, or no images in it.
        """
        from .folders import read_classes

        images, labels, split = read_classes(Path(path), side, 3 if colour else 1)
        made = cls.from_arrays(images, None, labels, split=split)
        return replace(made, source=str(path))

    def __len__(self) -> int:
        """Return the number of tasks, or of classes if tasks are episodes."""
        return len(self.names)

    def splits(self, validation: float, test: float, seed: int) -> dict[str, np.ndarray]:
        """Return the numbers of each split's groups.

        Args:
            validation: The share for validation, unless the split was given.
            test: The share for testing.
            seed: Draws them.

        Returns:
            Whole numbers by split.

        Raises:
            DataError: If no group is left for training.
        """
        if self.split is not None:
            number = {name: i for i, name in enumerate(self.names)}
            return {
                part: np.array([number[n] for n in self.split.get(part, ())], np.int64) for part in SPLITS
            }
        total = len(self.names)
        sizes = [max(1, round(share * total)) if share else 0 for share in (validation, test)]
        if total <= sum(sizes):
            raise DataError(
                f"{self.source}: expected groups for training, validation ({validation:g}) and test ({test:g}), "
                f"got {total}. Hint: lower the shares, or bring more groups."
            )
        mixed = np.random.default_rng(seed).permutation(total)
        first, last = total - sum(sizes), total - sizes[1]
        return {"train": mixed[:first], "validation": mixed[first:last], "test": mixed[last:]}


def numbers_of(frame: Tree, features: Sequence[str]) -> np.ndarray:
    """Return columns of numbers as one array.

    Args:
        frame: A data frame, or a dict of columns.
        features: The columns.

    Returns:
        float64 ``(rows, features)``.

    Raises:
        DataError: If a column is missing, is no numbers, or has missing cells.
    """
    columns = []
    have = [str(name) for name in (frame.keys() if isinstance(frame, Mapping) else frame.columns)]
    for name in features:
        if name not in have:
            raise DataError(not_one_of("column", name, have))
        array = np.asarray(frame[name])
        if array.dtype.kind not in "fiub":
            raise DataError(
                f"column {name!r}: expected numbers, got {array.dtype}, for example {array.ravel()[0]!r}. Hint: "
                "leave it out with features=, or use imaml.tables, which codes categories."
            )
        columns.append(finite_numbers(array, f"column {name!r}"))
    rows_alike(dict(zip(features, columns, strict=True)), "columns")
    return np.stack(columns, axis=1)


def _targets(y: object, name: str = "y") -> np.ndarray:
    """Targets as an array: numbers, or objects where they are classes."""
    if isinstance(y, (dict, tuple)):
        raise DataError(
            f"{name}: expected one array, got a {type(y).__name__}. Hint: join targets as columns."
        )
    try:
        array = np.asarray(y)
    except ValueError as error:
        raise DataError(f"{name}: expected one array, got rows of different shapes.") from error
    if array.dtype.kind in "OUS":
        return np.asarray(labels_of(y, name), dtype=object)
    return as_array(array, name)


def _column(name: str, values: object, least: float | None = None) -> np.ndarray | None:
    if values is None:
        return None
    array = finite_numbers(as_array(values, name), name)
    if array.ndim != 1:
        raise DataError(f"{name}: expected one number for each row, shape (rows,), got {array.shape}.")
    if least is not None and array.min() < least:
        raise DataError(f"{name}: expected numbers of at least {least}, got {array.min():g}.")
    return array


def _pairs(item: object, name: str) -> list[tuple[Tree, object]]:
    """One pair (x, y), or two."""
    parts = tuple(item) if isinstance(item, (tuple, list, Task)) else ()
    if len(parts) != 2:
        got = f"{len(parts)} items" if parts else f"a {type(item).__name__}"
        raise DataError(f"{name}: expected a pair (x, y), or (support, query) of two such pairs, got {got}.")
    pair = lambda part: isinstance(part, (tuple, list)) and len(part) == 2 and hasattr(part[0], "shape")  # noqa: E731
    if all(pair(part) and hasattr(part[1], "__len__") for part in parts):
        return [(parts[0][0], parts[0][1]), (parts[1][0], parts[1][1])]
    return [(parts[0], parts[1])]


def _stacked(trees: Sequence[Tree]) -> Tree:
    """The rows of several trees, one after another."""
    if isinstance(trees[0], Mapping):
        return {key: _stacked([tree[key] for tree in trees]) for key in trees[0]}
    if isinstance(trees[0], tuple):
        return tuple(_stacked([tree[i] for tree in trees]) for i in range(len(trees[0])))
    return _joined("x", [np.asarray(tree) for tree in trees])


def _joined(name: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    for i, array in enumerate(arrays):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise DataError(
                f"{name}: expected rows of one shape in all tasks, got {arrays[0].shape[1:]} and "
                f"{array.shape[1:]} (part {i})."
            )
    return np.concatenate(arrays)


def _given_split(split: object, labels: np.ndarray, rows: int) -> dict[str, tuple[Level, ...]]:
    """The names of each split's groups, from a dict or from a split for each row."""
    if isinstance(split, Mapping):
        for name in split:
            if name not in SPLITS:
                raise ConfigError(not_one_of("split", name, SPLITS))
        found = {str(name): tuple(groups) for name, groups in split.items()}
    else:
        parts = labels_of(split, "split")
        if len(parts) != rows:
            raise DataError(f"split: expected {rows} rows, as x has, got {len(parts)}.")
        found = {name: () for name in SPLITS}
        of: dict[Level, str] = {}
        for part, label in zip(parts, labels.tolist(), strict=True):
            if part not in SPLITS:
                raise DataError(not_one_of("split", part, SPLITS))
            if of.setdefault(label, str(part)) != part:
                raise DataError(
                    f"split: expected one split for all rows of a group, got {of[label]} and {part} for {label!r}."
                )
        for label, part in of.items():
            found[part] += (label,)
    known = set(labels.tolist())
    named = [label for groups in found.values() for label in groups]
    strange = [label for label in named if label not in known]
    if strange:
        raise DataError(
            f"split: expected labels of groups, got others ({some_of([str(s) for s in strange])})."
        )
    twice = sorted({str(label) for label in named if named.count(label) > 1})
    if twice:
        raise DataError(f"split: expected each group in one split, got some in two ({some_of(twice)}).")
    if not found.get("train"):
        raise DataError("split: expected groups for training, got none in 'train'.")
    return found
