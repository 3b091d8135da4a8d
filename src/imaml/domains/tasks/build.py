"""From a user's tasks, model and loss to a domain."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError, DataError
from ...core.validation import require_number, require_one_of, require_whole, some_of
from ..base import SPLITS
from ..networks import MLP, Conv4, Network
from .collection import Tasks
from .domain import TasksDomain, TasksRecipe, normalises, require_counts
from .layout import ArraySpec, TaskLayout, assemble, labels_of
from .losses import RowLoss, loss_of

MOST_SUPPORT, MOST_QUERIES = 128, 64  # rows of a draw from a group, unless they were asked for
POOLED_FEATURES, POOLED_ROWS = 512, 50_000  # up to which a linear model of all rows is fitted
HIDDEN = 40  # units of the two hidden layers of the network for vectors


class Choice(NamedTuple):
    """Something that was chosen for the user.

    Attributes:
        name: What it is, the name of the argument that sets it.
        value: What was chosen.
        why: The reason.
    """

    name: str
    value: object
    why: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.name}: {self.value} ({self.why})"


def domain_of(
    tasks: Tasks,
    model: object = None,
    loss: str | RowLoss | Callable[[Array, Array], Array] | None = None,
    *,
    shots: float | None = None,
    queries: int | None = None,
    order: Literal["random", "first"] | None = None,
    ways: int | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    standardise: bool = True,
) -> tuple[TasksDomain, list[Choice]]:
    """Return the domain of a user's tasks.

    Args:
        tasks: The tasks.
        model: The network; see `imaml.fit`. None for one that fits the inputs.
        loss: The loss of a row; see `imaml.fit`. None for one that fits the targets.
        shots: Rows of a support set: a whole number, or a share of the task's rows between 0 and 1. Of
            episodes: rows of each class.
        queries: The most rows of a query set; of episodes: rows of each class.
        order: Whether the support set's rows are "random" ones or the "first" ones.
        ways: Classes of an episode.
        validation: The share of tasks for validation, unless `tasks` has splits.
        test: The share of tasks for testing.
        seed: Draws the splits.
        standardise: Whether inputs and targets that are numbers are coded by the mean and scale of training rows.

    Returns:
        The domain, and what was chosen.

    Raises:
        ConfigError: If an argument is not valid, or the model does not fit.
        DataError: If the tasks do not fit the loss, or are too few.
    """
    _required(tasks)
    chosen: list[Choice] = []
    row = _loss(tasks, loss, chosen)
    order = order or ("first" if tasks.supports is not None else "random")
    require_one_of("fit", "order", order, ("random", "first"))
    if tasks.supports is not None and (shots is not None or order == "random"):
        raise ConfigError(
            "fit: shots: expected None and order='first', as the tasks' support sets are given, got "
            f"shots={shots!r}, order={order!r}."
        )
    tasks, splits = _large_enough(tasks, tasks.splits(validation, test, seed), shots)
    supports, support, asked = _sizes(tasks, shots, queries, chosen)
    count = _ways(tasks, splits, ways, chosen) if tasks.episodes else 0
    training = _rows_of(tasks, splits["train"])
    inputs = tuple(ArraySpec.of(array, training, standardise) for array in tasks.inputs)
    target, levels, targets = _targets(tasks, row, training, standardise)
    layout = TaskLayout(inputs, tasks.structure, target, levels)
    columns = () if tasks.frame is None else (tasks.frame.task, tasks.frame.target, *tasks.frame.features)
    wanted = count or (len(levels) if levels is not None else int(np.prod(target.shape)) if target else 1)
    network = _network(model, layout, row, wanted, chosen)
    share = None if isinstance(shots, int) else 0.5 if shots is None else shots
    recipe = TasksRecipe(network, row, layout, support, asked, order, count, columns, share)
    coded = [
        array if spec.form == "bytes" else spec.code(array, "x")
        for array, spec in zip(tasks.inputs, inputs, strict=True)
    ]
    _check_outputs(recipe, wanted)
    if normalises(network) and len(set(supports.tolist())) > 1:
        raise ConfigError(
            "fit: shots: expected one whole number for all tasks, as the model normalises by a batch's "
            f"statistics, which padding would change, got support sets of {supports.min()} to {supports.max()} rows."
        )
    pooled = _pooled(coded, inputs, targets, training, levels)
    return _made(recipe, tasks, coded, targets, supports, splits, pooled), chosen


def recoded(recipe: TasksRecipe, tasks: object) -> TasksDomain:
    """Return the domain of other tasks than those that a run was fitted on, coded in the same way.

    Args:
        recipe: The run's recipe.
        tasks: The tasks.

    Returns:
        The domain. All tasks are in the split "test".

    Raises:
        ConfigError: If they are no tasks.
        DataError: If they do not fit the run.
    """
    tasks = _required(tasks)
    layout, everything = recipe.layout, np.arange(len(tasks))
    if tasks.episodes != recipe.episodes:
        wanted = "classes without targets" if recipe.episodes else "tasks with targets"
        raise DataError(f"tasks: expected {wanted}, as the run was fitted on, got others.")
    if tasks.structure != layout.structure or len(tasks.inputs) != len(layout.inputs):
        raise DataError("tasks: expected inputs of the structure that the run was fitted on, got another.")
    coded = [
        spec.check(array, "x").astype(np.uint8) if spec.form == "bytes" else spec.code(array, "x")
        for array, spec in zip(tasks.inputs, layout.inputs, strict=True)
    ]
    targets = None
    if layout.levels is not None:
        targets = layout.classes(tasks.targets)
    elif layout.target is not None:
        targets = layout.numbers(tasks.targets)
    if tasks.supports is None:
        most = np.maximum(tasks.counts - 1, 1)
        share = 1 if recipe.support_share is None else recipe.support_share
        wanted = (
            np.round(share * tasks.counts) if recipe.support_share else np.full(len(tasks), recipe.support)
        )
        supports = np.clip(wanted, 1, np.minimum(most, recipe.support)).astype(np.int64)
    else:
        supports = np.minimum(tasks.supports, recipe.support)
    splits = {"train": everything[:0], "validation": everything[:0], "test": everything}
    _, splits = _large_enough(tasks, splits, recipe.support if recipe.episodes else None, "test")
    return _made(recipe, tasks, coded, targets, supports, splits, None)


def _required(tasks: object) -> Tasks:
    if not isinstance(tasks, Tasks):
        raise ConfigError(
            f"tasks: expected imaml.Tasks, got a {type(tasks).__name__}. Hint: Tasks.from_arrays(x, y, groups), "
            "from_list, from_frame or from_folder make them."
        )
    return tasks


def _made(
    recipe: TasksRecipe,
    tasks: Tasks,
    coded: list[np.ndarray],
    targets: np.ndarray | None,
    supports: np.ndarray,
    splits: dict[str, np.ndarray],
    pooled: Array | None,
) -> TasksDomain:
    """The domain, its arrays on the device."""
    weights = np.ones(len(coded[0])) if tasks.weights is None else tasks.weights
    return TasksDomain(
        jax.tree.map(jnp.asarray, assemble(json.loads(tasks.structure), coded.__getitem__)),
        None if targets is None else jnp.asarray(targets),
        jnp.asarray(weights, jnp.float32),
        None if tasks.offset is None else jnp.asarray(tasks.offset, jnp.float32),
        jnp.asarray(tasks.first, jnp.int32),
        jnp.asarray(tasks.counts, jnp.int32),
        jnp.asarray(supports, jnp.int32),
        {name: jnp.asarray(splits[name], jnp.int32) for name in SPLITS},
        pooled,
        int(tasks.counts.max()),
        recipe,
    )


def _loss(tasks: Tasks, loss: object, chosen: list[Choice]) -> RowLoss:
    if loss is not None:
        found = loss_of(loss)  # type: ignore[arg-type]
    else:
        classes = tasks.targets is None or tasks.targets.dtype.kind in "Ob"
        found = loss_of("cross_entropy" if classes else "squared")
        chosen.append(Choice("loss", found.kind, "targets are classes" if classes else "targets are numbers"))
    if tasks.episodes and found.kind != "cross_entropy":
        raise ConfigError(
            f"fit: loss: expected 'cross_entropy', as tasks are episodes of classes, got {found.kind!r}."
        )
    return found


def _large_enough(
    tasks: Tasks, splits: dict[str, np.ndarray], shots: float | None, needed: str = "train"
) -> tuple[Tasks, dict[str, np.ndarray]]:
    """The splits without groups that are too small, which a warning names."""
    least = 2 if not tasks.episodes else 1 + (shots if isinstance(shots, int) else 1)
    small = np.flatnonzero(tasks.counts < least)
    if tasks.supports is not None:
        small = np.flatnonzero((tasks.supports < 1) | (tasks.supports >= tasks.counts))
    if small.size:
        names = [str(tasks.names[i]) for i in small]
        what = "classes" if tasks.episodes else "tasks"
        warnings.warn(
            f"fit: {small.size} of {len(tasks)} {what} excluded, as they have fewer than {least} rows "
            f"({some_of(names)}).",
            RuntimeWarning,
            stacklevel=4,
        )
        splits = {name: np.setdiff1d(numbers, small) for name, numbers in splits.items()}
    if not splits[needed].size:
        raise DataError(f"{tasks.source}: expected tasks of at least {least} rows, got none.")
    return tasks, splits


def _sizes(
    tasks: Tasks, shots: float | None, queries: int | None, chosen: list[Choice]
) -> tuple[np.ndarray, int, int]:
    """The rows of each group's support set, the most of them, and the most rows of a query set."""
    counts = tasks.counts
    if queries is not None:
        require_whole("fit", 1, queries=queries)
    if tasks.supports is not None:
        supports = tasks.supports
    elif tasks.episodes:
        if shots is None:
            shots = 1 if np.median(counts) < 6 else 5
            chosen.append(Choice("shots", shots, f"classes have {int(np.median(counts))} rows in the median"))
        require_whole("fit", 1, shots=shots)
        supports = np.full(len(counts), int(shots))
    elif shots is None or isinstance(shots, float):
        if shots is None:
            shots = 0.5
            chosen.append(Choice("shots", shots, "half of each task's rows"))
        require_number("fit", 0, 1, open=True, shots=shots)
        supports = np.clip(np.round(shots * counts), 1, np.minimum(np.maximum(counts - 1, 1), MOST_SUPPORT))
        if (np.round(shots * counts) > MOST_SUPPORT).any():
            chosen.append(Choice("shots", MOST_SUPPORT, "at most so many rows of a task are drawn at a time"))
    else:
        require_whole("fit", 1, shots=shots)
        supports = np.minimum(int(shots), np.maximum(counts - 1, 1))
    supports = supports.astype(np.int64)
    rest = int(np.max(counts - supports))
    if queries is None:
        queries = min(rest, 15 if tasks.episodes else MOST_QUERIES)
        if queries < rest:
            chosen.append(
                Choice("queries", queries, f"the largest group has {rest} rows besides its support set")
            )
    if tasks.episodes and int(np.min(counts[counts > supports]) - supports.max()) < queries:
        queries = max(1, min(queries, int(np.min(counts[counts > supports]) - supports.max())))
    return supports, int(supports.max()), int(min(queries, max(rest, 1)))


def _ways(tasks: Tasks, splits: dict[str, np.ndarray], ways: int | None, chosen: list[Choice]) -> int:
    fewest = min(numbers.size for numbers in splits.values() if numbers.size)
    if ways is None:
        ways = min(5, fewest)
        chosen.append(Choice("ways", ways, f"the smallest split has {fewest} classes"))
    require_whole("fit", 2, ways=ways)
    if ways > fewest:
        raise ConfigError(
            f"fit: ways: expected at most {fewest}, the classes of the smallest split, got {ways}."
        )
    return ways


def _rows_of(tasks: Tasks, groups: np.ndarray) -> np.ndarray:
    """Which rows belong to some groups, booleans."""
    flags = np.zeros(len(tasks), bool)
    flags[groups] = True
    return np.repeat(flags, tasks.counts)


def _targets(
    tasks: Tasks, row: RowLoss, training: np.ndarray, standardise: bool
) -> tuple[ArraySpec | None, tuple | None, np.ndarray | None]:
    """The specification of targets, the classes that all tasks share, and the coded targets."""
    if tasks.targets is None:
        return None, None, None
    if row.targets == "classes":
        labels = labels_of(tasks.targets, "y")
        levels = tuple(sorted(set(labels), key=lambda level: (str(type(level)), level)))
        if len(levels) < 2 or len(levels) > 1000:
            raise DataError(
                f"y: expected 2 to 1,000 classes with loss={row.kind!r}, got {len(levels)}. Hint: for numbers "
                "choose loss='squared'."
            )
        number = {level: i for i, level in enumerate(levels)}
        return None, levels, np.array([number[label] for label in labels], np.int32)
    if tasks.targets.dtype.kind == "O":
        raise DataError(
            f"y: expected numbers with loss={row.kind!r}, got {tasks.targets[0]!r}. Hint: for classes choose "
            "loss='cross_entropy'."
        )
    values = tasks.targets.astype(np.float64)
    spec = ArraySpec.of(values, training, standardise and row.kind == "squared")
    coded = spec.code(values, "y").reshape(len(values), -1)
    if row.targets == "counts":
        require_counts(coded, "y")
    return spec, None, coded


def _network(model: object, layout: TaskLayout, row: RowLoss, wanted: int, chosen: list[Choice]) -> Network:
    """The network that a user means, or one that fits the inputs."""
    outputs, first = row.outputs_for(wanted), layout.inputs[0]
    if model is None:
        if len(layout.inputs) > 1:
            raise ConfigError(
                "fit: model: expected a model, as inputs are several arrays, got None. Hint: pass (init, apply)."
            )
        vectors = len(first.shape) == 1
        model = (
            "mlp"
            if vectors
            else "conv4"
            if len(first.shape) == 3 and first.shape[0] == first.shape[1]
            else None
        )
        if model is None:
            raise ConfigError(
                f"fit: model: expected a model, as inputs have rows of shape {first.shape}, got None. Hint: pass "
                "(init, apply), or a module of Equinox, Flax or Haiku."
            )
        chosen.append(Choice("model", model, "inputs are vectors" if vectors else "inputs are square images"))
    if model in ("mlp", "linear"):
        size = int(np.prod(first.shape))
        return MLP((size, HIDDEN, HIDDEN, outputs) if model == "mlp" else (size, outputs))
    if model == "conv4":
        return Conv4(outputs, 64, first.shape[0], first.shape[2])
    from ..models.adapters import as_network

    return as_network(model, layout.example())


def _check_outputs(recipe: TasksRecipe, wanted: int) -> None:
    """Check that the network takes the inputs and gives as many outputs as the loss needs."""
    network, row, example = recipe.model, recipe.loss, recipe.layout.example()
    try:
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        found = jax.eval_shape(lambda p, x: network.forward(p, x)[0], shapes, example)
    except (TypeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        shapes_of = ", ".join(str(spec.shape) for spec in recipe.layout.inputs)
        raise ConfigError(
            f"model: expected a model that takes rows of shape {shapes_of}, got an error ({first})."
        ) from error
    if row.kind == "own":
        return
    outputs = row.outputs_for(wanted)
    if not hasattr(found, "shape") or found.shape not in {(1, outputs)} | ({(1,)} if outputs == 1 else set()):
        got = found.shape if hasattr(found, "shape") else f"a {type(found).__name__}"
        raise ConfigError(
            f"model: expected outputs of shape (rows, {outputs}) for loss={row.kind!r}, got {got} for one row."
        )


def _pooled(
    coded: list[np.ndarray],
    inputs: tuple[ArraySpec, ...],
    targets: np.ndarray | None,
    training: np.ndarray,
    levels: tuple | None,
) -> Array | None:
    """Least squares of training rows at once, (features + 1, outputs); of classes their indicators."""
    features = sum(int(np.prod(spec.shape)) for spec in inputs)
    if targets is None or features > POOLED_FEATURES:
        return None
    rows = np.flatnonzero(training)
    rows = rows[:: -(-len(rows) // POOLED_ROWS)]
    columns = [
        array[rows].reshape(len(rows), -1).astype(np.float64) / (255 if spec.form == "bytes" else 1)
        for array, spec in zip(coded, inputs, strict=True)
    ]
    design = np.column_stack([np.ones(len(rows)), *columns])
    wanted = targets[rows] if levels is None else np.eye(len(levels))[targets[rows]]
    return jnp.asarray(np.linalg.lstsq(design, wanted, rcond=None)[0], jnp.float32)
