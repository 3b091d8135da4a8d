"""`Tasks`: a user's data as many tasks, in memory."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ...core.errors import ConfigError, DataError
from ...core.tree import Tree
from ...core.validation import not_one_of, require_whole, some_of
from ...problems.base import Task
from ..base import SPLITS
from .frames import coded_names, columns_of, numbers_of, warn_of_keys
from .layout import assemble, names_of, structure_of
from .sources import TasksFile
from .values import NUMBERS, Level, as_array, finite_numbers, labels_of, require_finite, rows_alike


class Frame(NamedTuple):
    """Which columns of a data frame tasks were made of.

    Attributes:
        task: The column that names the tasks.
        targets: The columns to be predicted.
        features: The columns to predict them from.
        weights: The column that says how many times a row counts, or empty.
        offset: The column that is added to each row's first output, or empty.
    """

    task: str
    targets: tuple[str, ...]
    features: tuple[str, ...]
    weights: str = ""
    offset: str = ""


@dataclass(frozen=True, eq=False)
class Tasks:
    """Many tasks, each with its rows; made by `from_arrays`, `from_list`, `from_frame` or `from_folder`.

    Attributes:
        structure: How the inputs form a tree; see `TaskLayout`.
        inputs: The arrays of the inputs ``(rows, ...)``, the rows of one task after those of another.
        targets: ``(rows, ...)``, or None where the tasks' classes are the targets.
        first: The first row of each task, ``(tasks,)``.
        counts: The number of rows of each task, ``(tasks,)``.
        names: The names of the tasks.
        supports: The number of each task's first rows that are its support set, if that was given.
        weights: How many times each row counts, ``(rows,)``, or None for once.
        offset: What is added to each row's first output, ``(rows,)``, or None.
        split: The names of the tasks of each split, where that was given.
        episodes: Whether the groups are classes, from which classification tasks are made.
        frame: The columns that they were read from, if they come from a data frame.
        source: Their name in messages.
        file: Where they were read from, or None.
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
    source: str = "tasks"
    file: TasksFile | None = None

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
        if groups is None:
            raise DataError(
                "groups: expected a label for each row, got None. Hint: name each row's task, or use "
                "Tasks.from_list."
            )
        labels = labels_of(groups, "groups", "label")
        given = {
            "x": inputs[0],
            "y": None if y is None else _targets(y),
            "groups": np.empty(len(labels)),
            "weights": _column("weights", weights, 0),
            "offset": _column("offset", offset),
        }
        rows = rows_alike({name: array for name, array in given.items() if array is not None}, "tasks")
        for name, array in zip(names_of(json.loads(structure)), inputs, strict=True):
            require_finite(array, f"x/{name}" if name else "x")
        # A row that counts zero times is not a row: a task of such rows alone would have no score.
        kept = np.ones(rows, bool) if given["weights"] is None else given["weights"] > 0
        if not kept.any():
            raise DataError("weights: expected some above 0, got 0 for all rows.")
        names = tuple(dict.fromkeys(label for label, counted in zip(labels, kept, strict=True) if counted))
        number = {name: i for i, name in enumerate(names)}
        index = np.array([number.get(label, -1) for label in labels], np.int64)
        order = np.argsort(index, kind="stable")
        order = order[kept[order]]
        counts = np.bincount(index[kept], minlength=len(names))

        def ordered(name: str) -> np.ndarray | None:
            array = given[name]
            return None if array is None else array[order]

        return cls(
            structure,
            tuple(array[order] for array in inputs),
            ordered("y"),
            np.cumsum(counts) - counts,
            counts,
            names,
            weights=ordered("weights"),
            offset=ordered("offset"),
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
            DataError: If an item is not such a pair, or arrays of the tasks do not fit together.

        Example:
            >>> import numpy as np
            >>> tasks = Tasks.from_list([(np.zeros((n, 2)), np.zeros(n)) for n in (3, 8)])
            >>> tasks.counts.tolist()
            [3, 8]
        """
        if isinstance(tasks, (str, Mapping)) or not isinstance(tasks, Iterable):
            raise DataError(
                f"tasks: expected a list of pairs (x, y), got a {type(tasks).__name__}. Hint: of a dict pass "
                "its values, and its keys as names."
            )
        pieces: list[_Piece] = []
        supports: list[int] = []
        total = 0
        for i, item in enumerate(tasks):
            parts = [_Piece.of(x, y, f"tasks[{i}]", i) for x, y in _pairs(item, f"tasks[{i}]")]
            if len(parts) == 2:
                supports.append(parts[0].rows)
            if bool(supports) != (len(parts) == 2):
                raise DataError(
                    "tasks: expected all items to be pairs (x, y), or all (support, query), got both "
                    f"(tasks[0], tasks[{i}])."
                )
            pieces += parts
            total = i + 1
        if not pieces:
            raise DataError("tasks: expected at least one task, got none.")
        labels: list[Level] = list(range(total))
        if names is not None:
            labels = labels_of(names, "names", "name")
            if len(labels) != total or len(set(labels)) != total:
                raise DataError(
                    f"names: expected {total} different ones, one for each task, got {len(labels)}, "
                    f"{len(set(labels))} different."
                )
        first = pieces[0]
        for piece in pieces:
            if piece.structure != first.structure:
                raise DataError(
                    f"tasks[{piece.task}]: expected inputs of the same structure as those of tasks[0], "
                    f"{_words(first)}, got {_words(piece)}."
                )
        inputs = [_joined("x", column, pieces) for column in zip(*(p.inputs for p in pieces), strict=True)]
        made = cls.from_arrays(
            assemble(json.loads(first.structure), inputs.__getitem__),
            _joined("y", [piece.targets for piece in pieces], pieces),
            [labels[piece.task] for piece in pieces for _ in range(piece.rows)],
        )
        return replace(made, supports=np.array(supports) if supports else None, source=f"{total} tasks")

    @classmethod
    def from_frame(
        cls,
        frame: Tree,
        task: str,
        target: str | Sequence[str],
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
            target: The column to be predicted, or several columns of numbers.
            features: The columns to predict it from; by default all others. A text column with up to 50
                different values is one-hot encoded. A warning names columns that only number the rows, such
                as the index that pandas writes to a file.
            weights: The column that says how many times a row counts.
            offset: The column that is added to each row's first output.
            split: The column that says which split a task belongs to.

        Returns:
            The tasks.

        Raises:
            DataError: If a column is missing, holds neither numbers nor texts, or has missing cells.

        Example:
            >>> frame = {"person": ["a", "a", "b", "b"], "day": [1, 2, 1, 2], "score": [1.0, 2, 3, 4]}
            >>> Tasks.from_frame(frame, task="person", target="score").frame.features
            ('day',)
        """
        columns = columns_of(frame)
        if not columns:
            raise DataError(
                f"frame: expected a data frame or a dict of columns, got a {type(frame).__name__}."
            )
        optional = {"weights": weights, "offset": offset, "split": split}
        if isinstance(features, str):
            features = [features]
        targets = [target] if isinstance(target, str) else list(target)
        used = [task, *targets, *(name for name in optional.values() if name is not None)]
        for name in used:
            if name not in columns:
                raise DataError(not_one_of("column", name, list(columns)))
        chosen = tuple(columns) if features is None else tuple(features)
        if features is None:
            chosen = tuple(name for name in columns if name not in used)
        twice = sorted({name for name in chosen if name in used or chosen.count(name) > 1})
        if twice:
            raise DataError(f"features: expected columns without another use, got {some_of(twice)} twice.")
        if not chosen:
            raise DataError(
                f"features: expected at least one column besides {some_of([task, *targets])}, got none."
            )
        chosen = coded_names(frame, chosen, task)
        inputs = numbers_of(frame, chosen)
        if features is None:
            warn_of_keys(inputs, chosen)
        values = {key: None if name is None else columns[name] for key, name in optional.items()}
        made = cls.from_arrays(
            inputs,
            columns[targets[0]] if len(targets) == 1 else numbers_of(frame, targets),
            columns[task],
            weights=values["weights"],
            offset=values["offset"],
            split=values["split"],
        )
        used_as = Frame(task, tuple(targets), chosen, weights or "", offset or "")
        return replace(made, frame=used_as, source=f"a table of {len(inputs)} rows")

    @classmethod
    def from_folder(cls, path: str | Path, side: int = 28, colour: bool = False) -> Tasks:
        """Make episodes of few-shot classification of a folder of images, with a folder for each class.

        Args:
            path: The folder. Its subfolders with images are the classes; they may be nested, as in
                ``alphabet/character/1.png``. If it has a folder train/, then train/, val/ (or validation/)
                and test/ are the splits; else `fit` splits the classes at random.
            side: The side in pixels that images are shrunk to.
            colour: Whether images keep their colours; else they are grey, ink is 1 and paper 0.

        Returns:
            The tasks.

        Raises:
            DataError: If there is no such folder, or no images in it.

        Warns:
            RuntimeWarning: If files are not images, a class has one image only, or an image is nearly blank.
        """
        from .folders import read_classes  # late, as it imports what reads images

        if not isinstance(path, (str, Path)):
            raise DataError(f"path: expected the path of a folder, got a {type(path).__name__}.")
        require_whole("Tasks.from_folder", 1, side=side)

        images, labels, split = read_classes(Path(path), side, 3 if colour else 1)
        made = cls.from_arrays(images, None, labels, split=split)
        place = TasksFile(str(path), "images", side=side, colour=bool(colour))
        return replace(made, source=str(path), file=place)

    def __repr__(self) -> str:
        """Return one line: how many tasks of how many rows, and what a row is."""
        kind = "classes" if self.episodes else "tasks"
        shapes = ", ".join(str(array.shape[1:]) for array in self.inputs)
        return (
            f"Tasks: {len(self):,} {kind} of {self.counts.min()} to {self.counts.max()} rows, "
            f"{int(self.counts.sum()):,} in all; inputs of shape {shapes}"
        )

    def __len__(self) -> int:
        """Return the number of tasks, or of classes if tasks are episodes."""
        return len(self.names)

    def rows_of(self, groups: np.ndarray) -> np.ndarray:
        """Return which rows belong to some tasks.

        Args:
            groups: The numbers of the tasks.

        Returns:
            Booleans ``(rows,)``.
        """
        flags = np.zeros(len(self), bool)
        flags[groups] = True
        return np.repeat(flags, self.counts)

    def map(self, function: Callable[[Tree], Tree], rows: int = 256) -> Tasks:
        """Return these tasks with inputs transformed by a function, such as a pretrained network.

        The function is not learned: it is called once for each row, and its results are stored with the
        tasks. Training, and the baselines of an evaluation (the nearest class mean, ridge regression), then
        use its features. Apply it to the rows of new tasks before `adapt` and `predict`.

        Args:
            function: From inputs ``(n, ...)``, as they were given, to an array or a tree of arrays
                ``(n, ...)``.
            rows: The rows of a call, the same in all calls.

        Returns:
            The tasks.

        Raises:
            DataError: If the function does not return one row for each.

        Example:
            >>> import numpy as np
            >>> tasks = Tasks.from_arrays(np.ones((6, 8, 8)), np.arange(6.0), list("aabbbb"))
            >>> tasks.map(lambda images: images.mean(axis=1)).inputs[0].shape
            (6, 8)
        """
        require_whole("map", 1, rows=rows)
        inputs = assemble(json.loads(self.structure), self.inputs.__getitem__)
        total = len(self.inputs[0])
        size = min(rows, total)
        found: list[Tree] = []
        for start in range(0, total, size):  # the last call is filled up, for functions of `jax.jit`
            chosen = np.minimum(np.arange(start, start + size), total - 1)
            made = function(jax.tree.map(lambda leaf, chosen=chosen: leaf[chosen], inputs))
            found.append(jax.tree.map(np.asarray, made))
            for leaf in jax.tree.leaves(found[-1]):
                if leaf.shape[:1] != (size,):
                    raise DataError(f"map: expected {size} rows, as inputs have, got shape {leaf.shape}.")
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *found)
        structure, arrays = structure_of(joined, "map")
        for array in arrays:
            require_finite(array, "map")
        return replace(self, structure=structure, inputs=tuple(arrays), frame=None, file=None)

    def splits(
        self, validation: float, test: float, seed: int, usable: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return the numbers of each split's groups.

        Args:
            validation: The share for validation, unless the split was given.
            test: The share for testing.
            seed: Draws them.
            usable: The groups that may be in a split, booleans ``(groups,)``; by default all.

        Returns:
            Whole numbers by split.

        Raises:
            DataError: If no group is left for training.
        """
        usable = np.ones(len(self), bool) if usable is None else usable
        if self.split is not None:
            number = {name: i for i, name in enumerate(self.names)}
            given = {
                part: [number[name] for name in self.split.get(part, ()) if name in number] for part in SPLITS
            }
            return {part: np.array([n for n in given[part] if usable[n]], np.int64) for part in SPLITS}
        total = int(usable.sum())
        sizes = [max(1, round(share * total)) if share else 0 for share in (validation, test)]
        if total <= sum(sizes):
            raise DataError(
                f"{self.source}: expected groups for training, validation ({validation:g}) and test "
                f"({test:g}), got {total}. Hint: lower the shares, or bring more groups."
            )
        mixed = np.random.default_rng(seed).permutation(np.flatnonzero(usable))
        first, last = total - sum(sizes), total - sizes[1]
        return {"train": mixed[:first], "validation": mixed[first:last], "test": mixed[last:]}


class _Piece(NamedTuple):
    """Rows of one task of a list: all of them, or its support or query set."""

    structure: str
    inputs: list[np.ndarray]
    targets: np.ndarray
    rows: int
    task: int

    @classmethod
    def of(cls, x: Tree, y: object, name: str, task: int) -> _Piece:
        structure, inputs = structure_of(x, f"{name}: x")
        targets = _targets(y, f"{name}: y")
        return cls(structure, inputs, targets, rows_alike({"x": inputs[0], "y": targets}, name), task)


def _words(piece: _Piece) -> str:
    """What a piece's inputs are, for a message."""
    names = names_of(json.loads(piece.structure))
    return "one array" if names == [""] else f"arrays {some_of(names)}"


def _targets(y: object, name: str = "y") -> np.ndarray:
    """Targets as an array: finite numbers, or objects where they are classes."""
    if isinstance(y, (Mapping, tuple)) and not (isinstance(y, tuple) and all(map(np.isscalar, y))):
        raise DataError(
            f"{name}: expected one array, got a {type(y).__name__}. Hint: join targets as columns."
        )
    try:
        array = np.asarray(y)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: expected one array, got rows of different shapes.") from error
    numbers = array.dtype.kind == "O" and all(isinstance(item, NUMBERS) for item in array.ravel())
    if array.dtype.kind in "OUS" and not numbers:
        return np.array(labels_of(y, name), dtype=object)
    array = as_array(array, name)
    require_finite(array, name)
    return array


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
    """One pair (x, y), or two: those of the support and of the query set."""
    parts = tuple(item) if isinstance(item, (tuple, list)) else ()
    if len(parts) != 2:
        got = f"{len(parts)} items" if parts else f"a {type(item).__name__}"
        raise DataError(f"{name}: expected a pair (x, y), or (support, query) of two such pairs, got {got}.")

    def paired(part: object) -> bool:
        # A list of two arrays is a pair; a list of two numbers, or of two rows of numbers, is an array.
        arrays = isinstance(part, list) and len(part) == 2 and all(hasattr(p, "shape") for p in part)
        return arrays or (isinstance(part, tuple) and len(part) == 2 and not all(map(np.isscalar, part)))

    if isinstance(item, Task) or all(map(paired, parts)):
        for part in parts:
            if not isinstance(part, (tuple, list)) or len(part) != 2:
                raise DataError(
                    f"{name}: expected a support and a query set that are pairs (x, y), got a "
                    f"{type(part).__name__}."
                )
        return [(parts[0][0], parts[0][1]), (parts[1][0], parts[1][1])]
    return [(parts[0], parts[1])]


def _joined(name: str, arrays: Sequence[np.ndarray], pieces: Sequence[_Piece]) -> np.ndarray:
    """The rows of all pieces; where some have rows of one number as a column, all have."""
    if any(array.shape[1:] == (1,) for array in arrays):
        arrays = [array[:, None] if array.ndim == 1 else array for array in arrays]
    for array, piece in zip(arrays, pieces, strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise DataError(
                f"{name}: expected rows of one shape in all tasks, got {arrays[0].shape[1:]} in tasks[0] and "
                f"{array.shape[1:]} in tasks[{piece.task}]."
            )
        if (array.dtype.kind == "O") != (arrays[0].dtype.kind == "O"):
            raise DataError(
                f"{name}: expected numbers in all tasks, or classes in all, got {arrays[0].flat[0]!r} in "
                f"tasks[0] and {array.flat[0]!r} in tasks[{piece.task}]."
            )
    return np.concatenate(arrays)


def _given_split(split: object, labels: list[Level], rows: int) -> dict[str, tuple[Level, ...]]:
    """The names of each split's groups, from a dict or from a split for each row."""
    found: dict[str, tuple[Level, ...]] = {name: () for name in SPLITS}
    if isinstance(split, Mapping):
        for name, groups in split.items():
            if name not in SPLITS:
                raise ConfigError(not_one_of("split", name, SPLITS))
            if np.size(np.asarray(groups, dtype=object)):
                found[name] = tuple(labels_of(groups, f"split: {name}", "label"))
    else:
        parts = labels_of(split, "split", "split")
        if len(parts) != rows:
            raise DataError(f"split: expected {rows} rows, as x has, got {len(parts)}.")
        of: dict[Level, str] = {}
        for part, label in zip(parts, labels, strict=True):
            if part not in SPLITS:
                raise DataError(not_one_of("split", part, SPLITS))
            if of.setdefault(label, str(part)) != part:
                raise DataError(
                    f"split: expected one split for all rows of a group, got {of[label]!r} and {part!r} for "
                    f"{label!r}."
                )
        for label, part in of.items():
            found[part] = (*found[part], label)
    known = dict.fromkeys(labels)
    named = [label for groups in found.values() for label in groups]
    strange = [repr(label) for label in named if label not in known]
    if strange:
        raise DataError(
            f"split: expected labels of groups, such as {next(iter(known))!r}, got {some_of(strange)}."
        )
    twice = [str(label) for label, times in Counter(named).items() if times > 1]
    if twice:
        raise DataError(f"split: expected each group in one split, got some in two ({some_of(twice)}).")
    if not found["train"]:
        raise DataError("split: expected groups for training, got none in 'train'.")
    inside = set(named)
    left = [str(label) for label in known if label not in inside]
    if left:
        warnings.warn(
            f"split: {len(left)} of {len(known)} groups are in no split, and excluded ({some_of(left)}).",
            RuntimeWarning,
            stacklevel=4,
        )
    return found
