"""From a user's tasks, model and loss to a domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError, DataError, ImamlError
from ...core.tree import Tree
from ...core.validation import not_one_of, require_number, require_one_of, require_whole
from ...problems.likelihoods import Density
from ...problems.precision import Theta
from ..models.adapters import as_network
from ..models.imported import unwrapped
from ..networks import MLP, Conv4, Network
from ..signals import GRU, Conv1D
from .collection import Tasks
from .domain import TasksDomain, TasksRecipe
from .interface import normalises, require_counts
from .layout import ArraySpec, Rows, TaskLayout
from .losses import RowLoss, TaskLoss
from .others import divided, filled, large_enough
from .own_losses import Own, loss_of
from .values import labels_of, levels_of

MOST_SUPPORT, MOST_QUERIES = 128, 64  # rows of a draw from a group, unless they were asked for
EPISODE_QUERIES = 5  # query images of each class, unless they were asked for
POOLED_STORED = 2000  # coefficients of one linear model of all rows that a run's configuration holds
HIDDEN = 40  # units of the two hidden layers of the network for vectors
FILTERS = 32  # of "conv4", as in a minute of training a network of 64 takes too few steps
NAMES = {  # of networks, and the rows that they take
    "mlp": "vectors (rows, features)",
    "linear": "vectors (rows, features)",
    "conv1d": "signals (rows, time, channels)",
    "conv4": "square images (rows, side, side, channels)",
}


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
    start: Tree = None,
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
        standardise: Whether inputs and targets that are numbers are coded by the mean and scale of training
            rows.
        start: The meta-parameters that a run starts from, or None; "conv4" is as wide as theirs.

    Returns:
        The domain, and what was chosen.

    Raises:
        ConfigError: If an argument is not valid, or the model does not fit.
        DataError: If the tasks do not fit the loss, or are too few.

    Warns:
        RuntimeWarning: If groups are too small, and excluded.

    Example:
        >>> import numpy as np
        >>> groups = np.repeat(np.arange(10), 6)
        >>> tasks = Tasks.from_arrays(np.arange(60.0) % 7, np.arange(60.0) % 5, groups)
        >>> domain, chosen = domain_of(tasks, "linear", shots=2)
        >>> domain.size("train"), domain.recipe.support, domain.recipe.queries
        (6, 2, 4)
        >>> [choice.name for choice in chosen]
        ['loss']
    """
    if not isinstance(tasks, Tasks):
        raise ConfigError(
            f"fit: tasks: expected imaml.Tasks, got a {type(tasks).__name__}. Hint: make them with "
            "Tasks.from_arrays(x, y, groups), from_list, from_frame or from_folder."
        )
    model, place = unwrapped(model)
    shots, queries, ways, seed = (_plain(value) for value in (shots, queries, ways, seed))
    validation, test = _plain(validation), _plain(test)
    _check_arguments(shots, queries, ways, validation, test, seed, standardise)
    chosen: list[Choice] = []
    row = _loss(tasks, loss, chosen)
    if ways is not None and not tasks.episodes:
        raise ConfigError(
            f"fit: ways: expected None, as tasks have targets of their own, got {ways}. Hint: tasks whose "
            "groups are the classes are made without y, Tasks.from_arrays(x, groups=classes)."
        )
    order = order or ("first" if tasks.supports is not None else "random")
    require_one_of("fit", "order", order, ("random", "first"))
    if tasks.supports is not None and (shots is not None or order == "random"):
        raise ConfigError(
            "fit: shots: expected None and order='first', as the tasks' support sets are given, got "
            f"shots={shots!r}, order={order!r}."
        )
    usable = large_enough(tasks, shots if tasks.episodes else None)
    splits = tasks.splits(validation, test, seed, usable)
    if not splits["train"].size:
        raise DataError(
            f"fit: tasks: expected tasks for training ({tasks.source}), got none that is large enough."
        )
    usable = np.isin(np.arange(len(tasks)), np.concatenate(list(splits.values())))
    count = _ways(splits, ways, chosen) if tasks.episodes else 0
    training = tasks.rows_of(splits["train"])
    arrays = [_numeric(array, model) for array in tasks.inputs]
    inputs = tuple(ArraySpec.of(array, training, standardise) for array in arrays)
    target, levels = _targets(tasks, row, training, standardise)
    layout = TaskLayout(inputs, tasks.structure, target, levels)
    wanted = count or (len(levels) if levels is not None else int(np.prod(target.shape)) if target else 1)
    network = _network(model, place, layout, row, wanted, chosen, _filters(start))
    _check_outputs(network, row, layout, wanted)
    supports, support, asked, share = _sizes(tasks, usable, shots, queries, normalises(network), chosen)
    columns, offset, weights = _used_as(tasks)
    recipe = TasksRecipe(
        model=network,
        loss=row,
        layout=layout,
        support=support,
        queries=asked,
        order=order,
        ways=count,
        columns=columns,
        offset=offset,
        weights=weights,
        share=share,
        file=tasks.file
        and replace(tasks.file, validation=validation, test=test, seed=seed, divided=divided(tasks, splits)),
    )
    domain = filled(recipe, replace(tasks, inputs=tuple(arrays)), splits, supports)
    if domain.pooled is not None and domain.pooled.coefficients.size <= POOLED_STORED:
        coefficients, rows = domain.pooled.numbers()
        domain = replace(domain, recipe=replace(recipe, pooled=coefficients, pooled_rows=rows))
    return domain, chosen


def _used_as(tasks: Tasks) -> tuple[tuple[str, ...], str, str]:
    """The columns of task, targets and features, and the names of offset and weights; empty for none."""
    frame = tasks.frame
    if frame is not None:
        return (frame.task, *frame.targets, *frame.features), frame.offset, frame.weights
    offset = "" if tasks.offset is None else "offset"
    return (), offset, "" if tasks.weights is None else "weights"


def _plain(value: Tree) -> Tree:
    """A number of NumPy as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _check_arguments(
    shots: object,
    queries: object,
    ways: object,
    validation: float,
    test: float,
    seed: object,
    standardise: object,
) -> None:
    """Check what can be checked without the data (ConfigError)."""
    for name, value, least in (("queries", queries, 1), ("ways", ways, 2), ("seed", seed, 0)):
        if value is not None:
            require_whole("fit", least, **{name: value})
    require_number("fit", 0, 1, validation=validation, test=test)
    if validation + test >= 1:
        raise ConfigError(
            f"fit: test: expected a share of tasks for training, got validation={validation:g} and "
            f"test={test:g}."
        )
    require_one_of("fit", "standardise", standardise, (True, False))
    if isinstance(shots, float):
        if not 0 < shots < 1:
            raise ConfigError(
                "fit: shots: expected a whole number, or a share of a task's rows between 0 and 1, got "
                f"{shots!r}."
            )
    elif shots is not None:
        require_whole("fit", 1, shots=shots)


def _loss(tasks: Tasks, loss: str | RowLoss | Density | Callable | None, chosen: list[Choice]) -> RowLoss:
    if loss is not None:
        found = loss_of(loss)
    elif tasks.targets is None or tasks.targets.dtype.kind in "Ob":
        found = loss_of("cross_entropy")
        chosen.append(Choice("loss", found.kind, "targets are classes"))
    else:
        found = loss_of("squared")
        chosen.append(Choice("loss", found.kind, "targets are numbers; for classes choose 'cross_entropy'"))
    if tasks.episodes and found.kind != "cross_entropy":
        raise ConfigError(
            f"fit: loss: expected 'cross_entropy', as tasks are episodes of classes, got {found.kind!r}."
        )
    return found


def _sizes(
    tasks: Tasks,
    usable: np.ndarray,
    shots: float | None,
    queries: int | None,
    alike: bool,
    chosen: list[Choice],
) -> tuple[np.ndarray, int, int, float | None]:
    """The rows of each group's support set, the most of them, the most of a query set, and the share.

    With ``alike`` all support sets have as many rows: the model normalises by a batch's statistics, which
    padding would change.
    """
    counts = tasks.counts
    if alike and shots is None and tasks.supports is None and not tasks.episodes:
        shots = max(1, min(int(counts[usable].min()) // 2, MOST_SUPPORT))
        chosen.append(Choice("shots", shots, "as many rows of each task, as the model normalises by a batch"))
    if tasks.supports is not None:
        supports = tasks.supports
    elif tasks.episodes:
        if shots is None:
            middle = int(np.median(counts[usable]))
            least = int(counts[usable].min())
            shots = 5 if middle >= 10 and least > 5 else 1
            chosen.append(
                Choice("shots", shots, f"classes have {least} rows or more, {middle} in the median")
            )
        elif isinstance(shots, float):
            raise ConfigError(f"fit: shots: expected a whole number of rows of each class, got {shots!r}.")
        supports = np.full(len(counts), shots)
    elif shots is None or isinstance(shots, float):
        if shots is None:
            shots = 0.5
            chosen.append(Choice("shots", shots, "half of each task's rows"))
        wanted = np.maximum(np.round(shots * counts), 1)
        if wanted[usable].max() > MOST_SUPPORT:
            chosen.append(Choice("shots", MOST_SUPPORT, "at most so many rows of a task are drawn at a time"))
        supports = np.minimum(np.minimum(wanted, np.maximum(counts - 1, 1)), MOST_SUPPORT)
    else:
        most = int(counts[usable].max())
        if shots >= most:
            raise ConfigError(
                f"fit: shots: expected fewer than {most}, the rows of the largest task, got {shots}. Hint: a "
                "row is left to be predicted."
            )
        few = int((counts[usable] <= shots).sum())
        if few:
            why = f"{few} tasks have no more rows; all but one of their rows are support rows"
            chosen.append(Choice("shots", shots, why))
        supports = np.minimum(shots, np.maximum(counts - 1, 1))
    supports = supports.astype(np.int64)
    least, most = int(supports[usable].min()), int(supports[usable].max())
    if alike and least < most:
        raise ConfigError(
            "fit: shots: expected one whole number for all tasks, as the model normalises by a batch's "
            f"statistics, which padding would change, got support sets of {least} to {most} rows."
        )
    rest = int((counts - supports)[usable].max())
    if queries is None:
        queries = min(rest, EPISODE_QUERIES if tasks.episodes else MOST_QUERIES)
        if queries < rest:
            chosen.append(
                Choice("queries", queries, f"the largest group has {rest} rows besides its support set")
            )
    return supports, most, min(queries, rest), shots if isinstance(shots, float) else None


def _ways(splits: dict[str, np.ndarray], ways: int | None, chosen: list[Choice]) -> int:
    smallest, fewest = min(
        ((name, numbers.size) for name, numbers in splits.items() if numbers.size), key=lambda part: part[1]
    )
    if fewest < 2:
        raise DataError(
            f"fit: tasks: expected at least 2 classes in each split, got {fewest} in {smallest!r}. Hint: "
            "bring more classes, or set the shares, validation= and test=."
        )
    if ways is None:
        ways = min(5, fewest)
        chosen.append(Choice("ways", ways, f"the smallest split, {smallest!r}, has {fewest} classes"))
    if ways > fewest:
        raise ConfigError(
            f"fit: ways: expected at most {fewest}, the classes of the smallest split ({smallest!r}), got "
            f"{ways}."
        )
    return ways


def _numeric(array: np.ndarray, model: object) -> np.ndarray:
    """Whole numbers as real ones if the model is imaml's; one of the user's own may need whole ones."""
    ours = model is None or isinstance(model, (str, MLP, Conv4, Conv1D, GRU))
    bytes_of_images = array.dtype == np.uint8 and array.ndim > 2
    return array.astype(np.float64) if ours and array.dtype.kind in "iu" and not bytes_of_images else array


def _targets(
    tasks: Tasks, row: RowLoss, training: np.ndarray, standardise: bool
) -> tuple[ArraySpec | None, tuple | None]:
    """The specification of targets, and the classes that all tasks share."""
    if tasks.targets is None:
        return None, None
    if row.targets == "classes":
        given = tasks.targets
        if given.dtype.kind == "f" and (broken := given[given != np.round(given)]).size:
            raise DataError(
                f"y: expected classes with loss={row.kind!r}, got real numbers, such as {broken[0]:g}. Hint: "
                "for numbers choose loss='squared'."
            )
        labels = labels_of(given, "y")
        levels = levels_of(labels)
        if len(levels) < 2 or len(levels) > 1000:
            raise DataError(
                f"y: expected 2 to 1,000 classes with loss={row.kind!r}, got {len(levels)}. Hint: for "
                "numbers choose loss='squared'."
            )
        if row.kind == "ordinal" and any(isinstance(level, str) for level in levels):
            raise DataError(
                "y: expected numbers with loss='ordinal', as they say the order of classes, got "
                f"{next(level for level in levels if isinstance(level, str))!r}."
            )
        return None, levels
    if tasks.targets.dtype.kind == "O":
        raise DataError(
            f"y: expected numbers with loss={row.kind!r}, got {tasks.targets[0]!r}. Hint: for classes choose "
            "loss='cross_entropy'."
        )
    values = tasks.targets.astype(np.float64)
    spec = ArraySpec.of(values, training, standardise and row.kind == "squared")
    if row.targets == "counts":
        require_counts(values, "y")
    return spec, None


def _filters(start: Tree) -> int:
    """How wide "conv4" is: as what a run starts from, where that is such a network."""
    try:
        return Theta.of(start).mean["conv1"]["scale"].shape[0]
    except (TypeError, KeyError, IndexError, AttributeError):
        return FILTERS


def _network(
    model: object,
    place: str,
    layout: TaskLayout,
    row: RowLoss,
    wanted: int,
    chosen: list[Choice],
    filters: int,
) -> Network:
    """The network that a user means, or one that fits the inputs; "conv4" has so many filters."""
    outputs, shape = row.outputs_for(wanted), layout.inputs[0].shape
    several, square = len(layout.inputs) > 1, len(shape) == 3 and shape[0] == shape[1]
    fits = {1: "mlp", 2: "conv1d", 3: "conv4" if square else None}.get(len(shape))
    got = "several arrays" if several else f"rows of shape {shape}"
    if isinstance(model, str) and model not in NAMES:
        raise ConfigError(not_one_of("fit: model", model, NAMES))
    if model is None:
        if several or fits is None or (fits == "conv1d" and shape[0] == shape[1]):  # or grey images
            raise ConfigError(
                f"fit: model: expected a model, as inputs are {got}, got None. Hint: pass functions (init, "
                "apply) or a module of Equinox, Flax or Haiku; images have the shape (side, side, channels), "
                "signals (time, channels)."
            )
        model = fits
        chosen.append(Choice("model", model, f"inputs are {NAMES[fits].partition(' (')[0]}"))
    if isinstance(model, str) and (several or fits != model.replace("linear", "mlp")):
        raise ConfigError(f"fit: model: expected inputs that are {NAMES[model]} with {model!r}, got {got}.")
    if model in ("mlp", "linear"):
        return MLP((*shape, HIDDEN, HIDDEN, outputs) if model == "mlp" else (*shape, outputs))
    if model == "conv1d":
        return Conv1D(outputs, channels=shape[1])
    if model == "conv4":
        return Conv4(outputs, filters, shape[0], shape[2])
    try:
        return as_network(model, layout.example(), place=place)
    except ImamlError:
        raise
    except Exception as error:  # whatever the user's functions raise
        raise _model_error("a model", error) from error


def _model_error(wanted: str, error: Exception) -> ConfigError:
    """The error on a model whose functions raise one."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return ConfigError(f"fit: model: expected {wanted}, got an error ({said}).")


def _check_outputs(network: Network, row: RowLoss, layout: TaskLayout, wanted: int) -> None:
    """Check that the network takes the inputs, and that the loss takes what it returns (ConfigError)."""
    rows = 3  # so that outputs of another number of rows are noticed
    example = jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, axis=0), layout.example())
    try:
        parameters = jax.eval_shape(network.init, jax.random.key(0))
        found = jax.eval_shape(lambda p, x: network.forward(p, x)[0], parameters, example)
    except ImamlError:
        raise
    except Exception as error:  # whatever a user's function raises
        shapes = ", ".join(str((rows, *spec.shape)) for spec in layout.inputs)
        raise _model_error(f"a model that takes inputs of shape {shapes}", error) from error
    if not jax.tree.leaves(parameters):
        raise ConfigError("fit: model: expected a model with parameters to learn, got one without.")
    own = isinstance(row, Own)
    outputs = row.outputs_for(wanted)
    shape = getattr(found, "shape", None)
    if shape is None or shape[:1] != (rows,):
        got = f"a {type(found).__name__}" if shape is None else f"shape {shape}"
        raise ConfigError(
            f"fit: model: expected one array of outputs with as many rows as inputs, got {got}."
        )
    if not own and int(np.prod(shape[1:])) != outputs:
        raise ConfigError(
            f"fit: model: expected outputs of shape (rows, {outputs}) with loss={row.kind!r}, got {shape} "
            f"for {rows} rows."
        )
    target = layout.target
    columns = int(np.prod(target.shape)) if target else 1
    if row.targets == "counts" and columns != 1:
        raise ConfigError(f"y: expected one column with loss={row.kind!r}, got {columns}.")
    blank = jnp.zeros(rows, jnp.int32) if target is None else jnp.zeros((rows, columns), jnp.float32)
    batch = Rows(example, blank, jnp.ones(rows))
    jax.eval_shape(lambda p: TaskLoss(network, row)(p, batch), parameters)
