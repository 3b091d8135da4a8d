"""What the arrays of a user's tasks look like, and how they are coded for a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import DataError
from ...core.fields import Checked
from ...core.recipes import Json, recipe
from ...core.tree import Tree
from ...core.validation import not_one_of, some_of
from .values import Level, as_array, extent, finite_numbers, labels_of, rows_alike


class Rows(NamedTuple):
    """Rows of one task.

    Attributes:
        inputs: A tree of arrays ``(n, ...)``, coded.
        targets: Numbers ``(n, k)``, or classes ``(n,)``.
        weights: How many times each row counts, ``(n,)``; 0 for padding.
        offset: What is added to each row's outputs, ``(n,)``, or None for nothing.
        reference: For a query batch the support set's inputs, if the network normalises by them; else None.
    """

    inputs: Tree
    targets: Array
    weights: Array
    offset: Array | None = None
    reference: Tree = None

    @property
    def labels(self) -> Array:
        """The targets, if they are classes."""
        return self.targets


@recipe(fresh={"shape": (1,)})
@dataclass(frozen=True)
class ArraySpec(Checked):
    """What one array of rows must be, and how it is coded.

    Numbers are coded as ``(value - mean) / scale``, whole numbers stay as they are, and bytes (images) are
    divided by 255.

    Args:
        shape: The shape of one row.
        form: "float", "int" or "bytes".
        mean: Of numbers, for each entry of the last axis.
        scale: Of numbers, for each entry of the last axis.
    """

    shape: tuple[int, ...]
    form: Literal["float", "int", "bytes"] = "float"
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: np.ndarray, training: np.ndarray, standardise: bool) -> ArraySpec:
        """Return the specification of an array.

        Args:
            values: The array ``(rows, ...)``.
            training: The rows that means and scales are taken from, booleans ``(rows,)``.
            standardise: Whether to code numbers by their mean and scale.

        Returns:
            The specification. A constant column has the scale 1.
        """
        shape = values.shape[1:] or (1,)
        if values.dtype == np.uint8:
            return cls(shape, "bytes")
        if values.dtype.kind in "iu":
            return cls(shape, "int")
        if not standardise:
            return cls(shape)
        seen = values[training].astype(np.float64).reshape(-1, shape[-1])
        mean, scale = seen.mean(axis=0), seen.std(axis=0)
        # Of a constant column rounding may leave a little: 1e-12 of its size.
        scale = np.where(scale > 1e-12 * np.abs(mean), scale, 1)
        return cls(shape, "float", tuple(mean.tolist()), tuple(scale.tolist()))

    def check(self, values: object, name: str) -> np.ndarray:
        """Return values as an array of this specification, not coded yet.

        Args:
            values: An array ``(rows, *shape)``; for one number a row also ``(rows,)``.
            name: What messages call it.

        Returns:
            float64, int32 or uint8.

        Raises:
            DataError: If the shape or dtype does not fit, or a number is not finite.
        """
        array = as_array(values, name)
        if array.ndim == 1 and self.shape == (1,):
            array = array[:, None]
        if array.shape[1:] != self.shape:
            wanted = ", ".join(["rows", *map(str, self.shape)])
            raise DataError(f"{name}: expected shape ({wanted}), got {array.shape}.")
        if self.form == "bytes":
            real = array.dtype.kind == "f"  # images in [0, 1], which rounding may have put just outside
            least, most = (-1e-5, 1 + 1e-5) if real else (0, 255)
            if array.dtype.kind == "b" or not ((array >= least) & (array <= most)).all():
                raise DataError(f"{name}: expected bytes, or numbers from 0 to 1, got {extent(array)}.")
            return np.clip(array, 0, 1) * 255 if real else array
        if self.form == "int":
            if array.dtype.kind not in "iub":
                raise DataError(f"{name}: expected whole numbers, got dtype {array.dtype}.")
            known = np.iinfo(np.int32)
            if array.dtype.kind != "b" and not ((array >= known.min) & (array <= known.max)).all():
                raise DataError(
                    f"{name}: expected whole numbers that int32 can hold, got {extent(array)}. Hint: number "
                    "them from 0, as np.unique(..., return_inverse=True) does, or pass real numbers."
                )
            return array.astype(np.int32)
        return finite_numbers(array, name)

    def code(self, values: object, name: str) -> np.ndarray:
        """Return values as the network takes them.

        Args:
            values: As `check` takes them.
            name: What messages call them.

        Returns:
            float32 or int32.

        Raises:
            DataError: If the values do not fit.
        """
        array = self.check(values, name)
        if self.form == "int":
            return array
        if self.form == "bytes":
            return array.astype(np.float32) / 255
        if self.mean:
            array = (array - np.array(self.mean)) / np.array(self.scale)
        return finite_numbers(array, name).astype(np.float32)  # in units of a small scale it may be large

    def units(self, coded: np.ndarray) -> np.ndarray:
        """Return coded values in the user's units.

        Args:
            coded: What `code` returned.

        Returns:
            float64, or whole numbers; images stay numbers from 0 to 1.
        """
        if not self.mean:
            return coded
        return np.asarray(coded, np.float64) * np.array(self.scale) + np.array(self.mean)

    def example(self) -> Array:
        """Return one blank row, coded, ``(1, *shape)``."""
        return jnp.zeros((1, *self.shape), jnp.int32 if self.form == "int" else jnp.float32)


@recipe(fresh={"inputs": (ArraySpec((1,)),)})
@dataclass(frozen=True)
class TaskLayout(Checked):
    """What a run has fixed of its tasks' arrays.

    Args:
        inputs: The arrays of the inputs, in the order of the tree's leaves.
        structure: How they form a tree, as JSON: numbers stand for arrays, lists for tuples.
        target: The array of targets, or None of classes.
        levels: The classes that all tasks share, or None of numbers and of episodes, whose classes are new.
    """

    inputs: tuple[ArraySpec, ...]
    structure: str = "0"
    target: ArraySpec | None = None
    levels: tuple[Level, ...] | None = None

    @property
    def skeleton(self) -> Json:
        """The structure as JSON that was read."""
        return json.loads(self.structure)

    @property
    def names(self) -> list[str]:
        """The names of the inputs' arrays; that of a single one is empty."""
        return names_of(self.skeleton)

    @property
    def offset_scale(self) -> float:
        """One coded unit of the first output in units of the target: an offset is divided by it."""
        return self.target.scale[0] if self.target is not None and self.target.scale else 1.0

    def code(self, x: Tree, name: str = "x") -> Tree:
        """Return a user's inputs as the network takes them.

        Args:
            x: An array, or a tree of arrays, like those of the run.
            name: What messages call them.

        Returns:
            Arrays ``(rows, ...)`` in the run's structure.

        Raises:
            DataError: If the tree or an array does not fit.
        """
        wanted = self.names
        named = leaves_by_name(x, name)
        if sorted(named) != sorted(wanted):
            raise DataError(f"{name}: expected {_plural(wanted)}, got {_plural(list(named))}.")
        coded = [
            spec.code(named[key], f"{name}{key and '/' + key}")
            for key, spec in zip(wanted, self.inputs, strict=True)
        ]
        rows_alike(dict(zip(wanted, coded, strict=True)), name)
        return assemble(self.skeleton, coded.__getitem__)

    def example(self) -> Tree:
        """Return one blank row of inputs, coded; leaves ``(1, ...)``."""
        return assemble(self.skeleton, lambda i: self.inputs[i].example())

    def numbers(self, y: object, name: str = "y") -> np.ndarray:
        """Return targets that are numbers, coded.

        Args:
            y: The targets ``(rows,)`` or ``(rows, ...)``.
            name: What messages call them.

        Returns:
            float32 ``(rows, k)``.

        Raises:
            DataError: If they do not fit.
        """
        assert self.target is not None
        coded = self.target.code(y, name)
        return coded.reshape(len(coded), -1)

    def classes(self, y: object, name: str = "y") -> np.ndarray:
        """Return targets that are classes as their numbers.

        Args:
            y: The classes ``(rows,)``.
            name: What messages call them.

        Returns:
            int32 ``(rows,)``.

        Raises:
            DataError: If a class is none of the run's.
        """
        assert self.levels is not None
        number = {level: i for i, level in enumerate(self.levels)}
        labels = labels_of(y, name)
        strange = [label for label in labels if label not in number]
        if strange:
            raise DataError(not_one_of(f"{name}: class", strange[0], self.levels))
        return np.array([number[label] for label in labels], np.int32)


def structure_of(x: Tree, name: str = "x") -> tuple[str, list[np.ndarray]]:
    """Return how a user's inputs form a tree, and their arrays.

    Args:
        x: An array, nested lists of numbers, or a dict or tuple of them.
        name: What messages call them.

    Returns:
        The structure as JSON (see `TaskLayout`), and the arrays ``(rows, ...)``.

    Raises:
        DataError: If something is not an array of numbers, or arrays differ in their number of rows.
    """
    named = leaves_by_name(x, name)
    rows_alike(named, name)
    numbers = iter(range(len(named)))
    return json.dumps(_skeleton(x, numbers)), list(named.values())


def _skeleton(x: Tree, numbers: Iterator[int]) -> Json:
    if isinstance(x, Mapping):
        return {key: _skeleton(x[key], numbers) for key in sorted(x)}
    if isinstance(x, tuple):
        return [_skeleton(item, numbers) for item in x]
    return next(numbers)


def leaves_by_name(x: Tree, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a user's inputs by name.

    Args:
        x: An array, nested lists of numbers, or a dict or tuple of them.
        name: What messages call them.

    Returns:
        The arrays; the name of a single one is empty.

    Raises:
        DataError: If something is not an array of numbers.
    """
    found: dict[str, np.ndarray] = {}

    def visit(node: Tree, path: str) -> None:
        if isinstance(node, Mapping):
            if not all(isinstance(key, str) for key in node):
                raise DataError(f"{name}: expected a dict whose keys are texts, got {some_of(_shown(node))}.")
            for key in sorted(node):
                visit(node[key], f"{path}/{key}" if path else key)
        elif isinstance(node, tuple):
            for index, item in enumerate(node):
                visit(item, f"{path}/{index}" if path else str(index))
        else:
            found[path] = as_array(node, f"{name}{path and '/' + path}")

    visit(x, "")
    if not found:
        raise DataError(f"{name}: expected at least one array, got an empty {type(x).__name__}.")
    return found


def names_of(skeleton: Json, path: str = "") -> list[str]:
    """Return the names of a structure's arrays, in the order of their numbers.

    Args:
        skeleton: The structure, JSON that was read.
        path: The names above it.

    Returns:
        The names, as `leaves_by_name` gives them.
    """
    items = (
        skeleton.items()
        if isinstance(skeleton, dict)
        else enumerate(skeleton)
        if isinstance(skeleton, list)
        else None
    )
    if items is None:
        return [path]
    return [name for key, item in items for name in names_of(item, f"{path}/{key}" if path else str(key))]


def assemble(skeleton: Json, leaf: Callable[[int], Tree]) -> Tree:
    """Return the tree of a structure.

    Args:
        skeleton: The structure, JSON that was read.
        leaf: Returns the array of a number.

    Returns:
        Dicts and tuples of arrays, or one array.
    """
    if isinstance(skeleton, dict):
        return {key: assemble(item, leaf) for key, item in skeleton.items()}
    if isinstance(skeleton, list):
        return tuple(assemble(item, leaf) for item in skeleton)
    return leaf(skeleton)


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Tree]:
    """Return arrays named by their paths as a tree.

    Args:
        arrays: For example of "y", "x/left" and "x/right".

    Returns:
        Nested dicts; tuples where all names of a level are 0, 1, ...
    """
    below: dict[str, dict[str, np.ndarray]] = {}
    found: dict[str, Tree] = {}
    for path, array in arrays.items():
        first, _, rest = path.partition("/")
        if rest:
            below.setdefault(first, {})[rest] = array
        else:
            found[first] = array
    for first, inner in below.items():
        tree = nested(inner)
        numbers = [str(i) for i in range(len(tree))]
        found[first] = tuple(tree[i] for i in numbers) if sorted(tree) == sorted(numbers) else tree
    return found


def _plural(names: Sequence[str]) -> str:
    return "one array" if list(names) == [""] else f"the arrays {some_of(sorted(names), 10)}"


def _shown(values: Iterable[object]) -> list[str]:
    return [repr(value) for value in values]


def bucket(rows: int, least: int = 4) -> int:
    """Return the number of rows that a batch is padded to, a power of two.

    Args:
        rows: The rows that there are.
        least: The smallest bucket.

    Returns:
        The bucket, so that batches of 1 to 256 rows have seven sizes.
    """
    return max(least, 1 << (rows - 1).bit_length())


def padded(batch: Tree, rows: int) -> Tree:
    """Return arrays with as many rows as asked for; those added are copies of the first.

    Args:
        batch: A tree of arrays ``(n, ...)``.
        rows: How many.

    Returns:
        Arrays ``(rows, ...)``.
    """

    def pad(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf, np.repeat(leaf[:1], rows - len(leaf), axis=0)])

    return jax.tree.map(pad, batch)
