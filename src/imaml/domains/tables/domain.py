"""Tasks from a table: rows grouped by a column, such as one person, school or machine a task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError, DataError
from ...core.fields import Fraction, NonNegativeInt, PositiveInt
from ...core.recipes import from_json, recipe
from ...core.tree import Tree
from ...core.validation import not_one_of, some_of
from ...problems.base import Problem, Task
from ...problems.likelihoods import Categorical, Gaussian
from ...problems.losses import CompositeLoss
from ...problems.proximal import Adapt
from ..base import SPLITS
from ..networks import MLP
from ..recipes import ReadsData
from .files import Table, read_table
from .interface import Rows, TablesInterface
from .layout import Layout, column_of
from .mixed_model import INTERCEPT, PartlyVarying, varying_network

NONE = "none"  # features


@dataclass(frozen=True)
class RowsLoss(CompositeLoss):
    """A network's loss on rows, summed over those that count: half squared errors, or cross entropies.

    A sum, so that the strength is the precision of a prior (for numbers in units of the noise's), the same
    for tasks of 2 rows and of 200; hashable.
    """

    network: MLP | PartlyVarying
    classes: bool
    averages: ClassVar[bool] = False

    @property
    def likelihood(self) -> Gaussian | Categorical:
        """What rows are: numbers with Gaussian noise, or classes."""
        return Categorical() if self.classes else Gaussian()

    def outputs(self, phi: Tree, batch: Rows) -> Array:
        """Return the network's outputs, ``(n, outputs)``."""
        return self.network.forward(phi, batch.inputs)[0]

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the loss of outputs, a scalar."""
        if self.classes:
            return Categorical().cost(outputs, batch)
        return 0.5 * jnp.sum(batch.weights * jnp.square(outputs - batch.targets)[:, 0])


@recipe("domain")
class TablesRecipe(ReadsData):
    """The recipe of a domain of tables: rows grouped by a column.

    Args:
        data: The file, .csv, .tsv or .parquet.
        task: The column whose values name the tasks.
        target: The column to be predicted. A column of texts makes tasks of classification.
        features: The columns to predict it from; by default all others. "none" for none: the model is an
            intercept.
        texts: Columns that are categories although they look like numbers.
        random: Of a linear model: the coefficients that vary between tasks, "intercept" and names of
            features, all others being shared; by default all vary.
        hidden: Units of the network's hidden layers (tanh); none for a linear model.
        holdout: Which rows of a task are its query set: "random" ones, the "last" in the file, or "none": all
            rows are both support and query.
        shots: Rows of a support set, by default half of the task's.
        validation: The share of tasks for validation.
        test: The share of tasks for testing.
        seed: Draws these tasks.
        layout: What a run has fixed of its table; None before.

    Raises:
        ConfigError: If a field is out of its range.
    """

    data: str | None = None
    task: str | None = None
    target: str | None = None
    features: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    random: tuple[str, ...] = ()
    hidden: tuple[PositiveInt, ...] = ()
    holdout: Literal["random", "last", "none"] = "random"
    shots: PositiveInt | None = None
    validation: Fraction = 0.2
    test: Fraction = 0.2
    seed: NonNegativeInt = 0
    layout: Layout | None = None

    reads_table: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        if self.task is not None and self.task == self.target:
            raise ConfigError(
                f"domain: expected a column for task (whose rows are a task) and another for target (what is "
                f"predicted), got {self.task!r} for both."
            )
        if self.validation + self.test >= 1:
            raise ConfigError(
                "domain: expected validation and test with a sum below 1, to leave tasks for training, got "
                f"{self.validation:g} and {self.test:g}."
            )
        if self.random and self.hidden:
            raise ConfigError(
                "domain: random: expected none with hidden layers, as coefficients are those of a linear "
                f"model, got {', '.join(self.random)}. Hint: leave out hidden, or choose --method.adapt."
            )
        if self.shots is not None and self.holdout == "none":
            raise ConfigError(
                f"domain: shots: expected None with holdout='none', as all rows are support, got {self.shots}"
            )

    @property
    def fixed(self) -> Layout:
        """The layout; ConfigError if no table was read yet."""
        if self.layout is None:
            raise ConfigError("domain: expected a recipe that has read its table. Hint: use recipe.build().")
        return self.layout

    @property
    def network(self) -> MLP | PartlyVarying:  # type: ignore[override]
        """The network: inputs, hidden layers, outputs; of one kind where some coefficients are shared."""
        if self.random or not self.fixed.inputs:
            return varying_network(self)
        return MLP((self.fixed.inputs, *self.hidden, self.fixed.outputs), "tanh")

    @property
    def network_placement(self) -> np.ndarray:
        """The matrix from a linear model's flat parameters to its coefficients, intercept first."""
        return varying_network(self).placement

    def without_data(self) -> Tables:
        """Return the domain with its network and problem, but no rows."""
        return Tables(None, None, None, None, None, self)

    def scored_on(self, path: str) -> TablesRecipe:
        """Return the recipe of the same network on other rows, coded in the same way."""
        return replace(self, data=path, layout=replace(self.fixed, splits=()))

    def published(self) -> TablesRecipe:
        """Return this recipe without the path and the names of tasks, which may be people."""
        return replace(self, data=None, layout=self.layout and replace(self.layout, splits=()))

    def restored(self, stored: TablesRecipe) -> TablesRecipe:
        """Return this recipe with the stored path and splits."""
        return replace(self, data=stored.data, layout=stored.layout)

    def build(self) -> Tables:
        """Return the domain, its table read and checked; DataError if it does not fit."""
        for name, option in (("data", "--data FILE.csv"), ("task", "--task"), ("target", "--target")):
            if getattr(self, name) is None:
                raise ConfigError(
                    f"domain: {name}: expected {option} for a run on a table, got None. Hint: imaml train "
                    "tables --data FILE.csv --task COLUMN --target COLUMN."
                )
        return build(self, read_table(str(self.data)))


def build(recipe: TablesRecipe, table: Table) -> Tables:
    """Build the domain of a table that was read.

    Args:
        recipe: The recipe.
        table: The table.

    Returns:
        The domain.

    Raises:
        ConfigError: If columns are missing or used twice.
        DataError: If the table does not fit the recipe.
    """
    assert recipe.task is not None
    assert recipe.target is not None
    _refuse_crossed(recipe.task, table)
    groups = np.array(table.column(recipe.task, "the task"))
    table.column(recipe.target, "the target")
    given = () if recipe.features == (NONE,) and NONE not in table.columns else recipe.features
    for name in (*given, *recipe.texts):
        table.column(name, "a feature")
    features = given or tuple(n for n in table.columns if n not in (recipe.task, recipe.target))
    if given != recipe.features:
        features = ()
    if {recipe.task, recipe.target} & set(features):
        raise ConfigError(
            f"domain: features: expected columns other than the task {recipe.task!r} and the target "
            f"{recipe.target!r}, got {', '.join(features)}."
        )
    for name in recipe.random:
        if name not in (INTERCEPT, *features):
            raise ConfigError(not_one_of("domain: random: coefficient", name, (INTERCEPT, *features)))
    if recipe.hidden and not features:
        raise ConfigError("domain: hidden: expected features with hidden layers, got none.")
    for name in (*features, recipe.target):
        if name not in recipe.texts:
            table.numeric(name, "a column")  # so that a cell in doubt is reported before anything else
    # The tasks in the order of the file, their splits, and what is learned from rows of training tasks alone.
    names = list(dict.fromkeys(groups.tolist()))
    number = {name: i for i, name in enumerate(names)}
    splits = recipe.layout.splits if recipe.layout else ()
    splits = splits or _split(recipe, names, table.source)
    training = np.isin(groups, splits[0])
    if recipe.layout is None:
        columns = tuple(column_of(table, n, "a feature", training, n in recipe.texts) for n in features)
        target = column_of(table, recipe.target, "the target", training, recipe.target in recipe.texts)
        recipe = replace(recipe, layout=Layout(columns, target))
    layout = replace(recipe.fixed, splits=splits)
    strange = sorted({name for split in splits for name in split} ^ set(names))
    if strange:
        raise DataError(
            f"{table.source}: expected the tasks that this run began with, got others ({strange[0]!r}, ...). "
            "Hint: continue with the table as it was, or begin a new run with --from."
        )
    # Tasks are padded to the length of the longest with copies of their first rows.
    places = [np.flatnonzero(groups == name) for name in names]
    counts = np.array([len(rows) for rows in places])
    if counts.min() < 2 and recipe.holdout != "none":
        raise DataError(
            f"{table.source}: expected at least 2 rows of each task, one of them for its query set, got 1 of "
            f"{names[counts.argmin()]!r}. Hint: leave it out, or say --domain.holdout=none."
        )
    padded = np.stack([np.append(rows, np.repeat(rows[:1], counts.max() - len(rows))) for rows in places])
    inputs, targets = layout.code(table), layout.targets(table)
    kind = np.float32 if layout.target.levels is None else np.int32
    return Tables(
        jnp.asarray(inputs[padded], jnp.float32),
        jnp.asarray(targets[padded].astype(kind)),
        jnp.asarray(counts, jnp.int32),
        {
            split: jnp.asarray([number[name] for name in group], jnp.int32)
            for split, group in zip(SPLITS, splits, strict=True)
        },
        jnp.asarray(_pooled(inputs, targets, training, layout), jnp.float32),
        replace(recipe, layout=layout),
    )


def _refuse_crossed(task: str, table: Table) -> None:
    """Raise ConfigError where several columns are named as the task."""
    parts = [part.strip() for part in task.replace("*", ",").replace(":", ",").replace("/", ",").split(",")]
    if len(parts) > 1 and task not in table.columns and all(part in table.columns for part in parts):
        raise ConfigError(
            f"domain: task: expected one column, got {len(parts)} ({some_of(parts)}). Hint: a task is a "
            "group of rows; for crossed or nested factors use lme4 or glmmTMB in R, or bambi or statsmodels "
            "in Python."
        )


def _split(recipe: TablesRecipe, names: list[str], source: str) -> tuple[tuple[str, ...], ...]:
    """The names of each split's tasks: shares rounded, one task at least if a share is asked for."""
    shares = (recipe.validation, recipe.test)
    sizes = [max(1, round(share * len(names))) if share else 0 for share in shares]
    if len(names) <= max(1, sum(sizes)):
        raise DataError(
            f"{source}, column {recipe.task!r}: expected several tasks, enough for shares of {shares[0]:g} "
            f"(validation) and {shares[1]:g} (test), got {len(names)}. Hint: lower the shares, or add tasks."
        )
    mixed = np.random.default_rng(recipe.seed).permutation(names).tolist()
    first, last = len(names) - sum(sizes), len(names) - sizes[1]
    return tuple(mixed[:first]), tuple(mixed[first:last]), tuple(mixed[last:])


def _pooled(inputs: np.ndarray, targets: np.ndarray, rows: np.ndarray, layout: Layout) -> np.ndarray:
    """Least squares of all training rows at once, (inputs + 1, outputs); of classes their indicators."""
    design = np.column_stack([np.ones(rows.sum()), inputs[rows]])
    wanted = targets[rows] if layout.target.levels is None else np.eye(layout.outputs)[targets[rows]]
    return np.linalg.lstsq(design, wanted, rcond=None)[0]


class Drawn(NamedTuple):
    """The indices of a task.

    Attributes:
        task: Its number.
        order: The order of its rows, ``(n,)``: support rows are first, padding is last.
    """

    task: Array
    order: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tables(TablesInterface):
    """The tasks of a table; all arrays are None in a domain without data.

    Attributes:
        inputs: Coded inputs ``(tasks, n, inputs)``, padded.
        targets: ``(tasks, n, ...)``, padded.
        counts: The number of rows of each task, ``(tasks,)``.
        splits: The numbers of tasks by split.
        pooled: The coefficients of one least-squares model for all training rows, intercept first.
        recipe: The recipe.
    """

    inputs: Tree
    targets: Tree
    counts: Tree
    splits: Tree
    pooled: Tree
    recipe: TablesRecipe = field(metadata={"static": True})

    @property
    def headline(self) -> str:
        """The root mean squared error of a task in the target's units, or the accuracy."""
        return "accuracy" if self.classes else "rmse"

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the headline is better."""
        return self.classes

    @property
    def convex(self) -> bool:
        """Whether the model is linear."""
        return not self.recipe.hidden

    @property
    def loss(self) -> RowsLoss:
        """The loss of a task's rows, a sum."""
        return RowsLoss(self.recipe.network, self.classes)

    def init(self, key: Array) -> Tree:
        """Return fresh parameters of the network; zeros for a linear model."""
        made = self.recipe.network.init(key)
        return made if self.recipe.hidden else jax.tree.map(jnp.zeros_like, made)

    def problem(self, strength: Tree, adapt: Adapt = None, curvature: str = "hessian") -> Problem:
        """Return the inner problem; a task adapts the coefficients of `random` where there are such."""
        if self.recipe.random and adapt is not None:
            raise ConfigError(
                "method: adapt: expected None with random coefficients, which say what a task adapts, got "
                f"{adapt!r}."
            )
        shared = self.recipe.random and varying_network(self.recipe).shared
        return super().problem(strength, ("varying",) if shared else adapt, curvature)

    def rows_of_tasks(self, numbers: Array) -> Rows:
        """Return all rows of some tasks.

        Args:
            numbers: The tasks, ``(tasks,)``.

        Returns:
            The rows, leaves ``(tasks, n, ...)``.
        """
        known = jnp.arange(self.inputs.shape[1]) < self.counts[numbers, None]
        return Rows(self.inputs[numbers], self.targets[numbers], known.astype(self.inputs.dtype))

    def design(self) -> np.ndarray:
        """Return the coded inputs of all training rows, a one before each, float64."""
        rows = self.rows_of_tasks(self.splits["train"])
        inputs = np.asarray(rows.inputs, np.float64)[np.asarray(rows.weights) > 0]
        return np.column_stack([np.ones(len(inputs)), inputs])

    @staticmethod
    def whole(support: Rows, query: Rows) -> Rows:
        """Return all of a task's rows as one batch: each once, even if it is in both."""
        return support._replace(weights=jnp.maximum(support.weights, query.weights))

    def query_loss(self, phi: Tree, theta: Tree, batch: Rows) -> Array:
        """Return the mean over the query's rows of the loss, a scalar."""
        return self.loss(phi, batch) / jnp.maximum(jnp.sum(batch.weights), 1)

    def _numbers(self, split: str) -> Array:
        """The tasks of a split; if none was held out for it, those of training."""
        chosen = self.splits[split]
        return chosen if chosen.size else self.splits["train"]

    def _order(self, task: Array, key: Array) -> Array:
        rows = jnp.arange(self.inputs.shape[1])
        if self.recipe.holdout != "random":
            return rows
        known = rows < self.counts[task]
        return jnp.argsort(jnp.where(known, jax.random.uniform(key, rows.shape), 2.0 + rows))

    def draw(self, key: Array, split: str) -> Drawn:
        """Return the indices of one random task of a split, its rows in random order."""
        which, how = jax.random.split(key)
        task = jax.random.choice(which, self._numbers(split))
        return Drawn(task, self._order(task, how))

    def draws(self, key: Array, split: str, count: int) -> Drawn:
        """Return the indices of ``count`` tasks: every task of the split before any comes twice."""
        which, how = jax.random.split(key)
        numbers = self._numbers(split)
        rounds = -(-count // numbers.size)
        mixed = [jax.random.permutation(k, numbers) for k in jax.random.split(which, rounds)]
        tasks = jnp.concatenate(mixed)[:count]
        return Drawn(tasks, jax.vmap(self._order)(tasks, jax.random.split(how, count)))

    def size(self, split: str) -> int:
        """Return how many tasks a split has."""
        return int(self._numbers(split).size)

    def held_out(self, split: str) -> bool:
        """Return whether a split has tasks of its own; else those of training stand in for them."""
        return bool(self.splits[split].size)

    def number(self, indices: Drawn) -> Array:
        """Return which task was drawn: draws of the same one are not independent."""
        return indices.task

    def gather(self, indices: Drawn) -> Task:
        """Return the task: its rows in the order drawn, of which the first are the support."""
        count, order = self.counts[indices.task], indices.order
        inputs, targets = (part[indices.task][order] for part in (self.inputs, self.targets))
        place = jnp.arange(order.size)
        known = (place < count).astype(inputs.dtype)
        if self.recipe.holdout == "none":
            rows = Rows(inputs, targets, known)
            return Task(rows, rows)
        wanted = (count + 1) // 2 if self.recipe.shots is None else self.recipe.shots
        seen = (place < jnp.clip(wanted, 1, count - 1)).astype(inputs.dtype)
        return Task(Rows(inputs, targets, known * seen), Rows(inputs, targets, known * (1 - seen)))

    def _scored(self, outputs: Array, query: Rows) -> Array:
        """The accuracy, or the root mean squared error in the target's units, of outputs on the query."""
        rows = jnp.maximum(jnp.sum(query.weights), 1)
        if self.classes:
            return jnp.sum(query.weights * (jnp.argmax(outputs, 1) == query.labels)) / rows
        squares = jnp.sum(query.weights * jnp.square(outputs - query.targets)[:, 0])
        return self.recipe.fixed.target.scale * jnp.sqrt(squares / rows)

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the headline, and the mean loss of the query's rows."""
        headline = self._scored(self.loss.outputs(phi, task.query), task.query)
        return {self.headline: headline, "loss": self.query_loss(phi, None, task.query)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return scores of least squares for all tasks, for this task alone (least norm), and of the mean."""
        support, query = task
        ones = jnp.ones_like(support.inputs[:, :1])
        design = lambda rows: jnp.concatenate([ones, rows.inputs], 1)  # noqa: E731
        outputs = self.recipe.fixed.outputs
        wanted = jax.nn.one_hot(support.labels, outputs) if self.classes else support.targets
        weights = support.weights[:, None]
        own = jnp.linalg.lstsq(weights * design(support), weights * wanted)[0]
        mean = jnp.sum(weights * wanted, 0) / jnp.maximum(jnp.sum(weights), 1)
        found = {
            "pooled_model": design(query) @ self.pooled,
            "model_of_its_own": design(query) @ own,
            "support_mean": jnp.broadcast_to(mean, (query.inputs.shape[0], outputs)),
        }
        return {name: self._scored(answers, query) for name, answers in found.items()}


def tables(data: str, task: str, target: str, **options: object) -> Tables:
    r"""Return the tasks of a table in a file.

    Args:
        data: The file.
        task: The column whose values name the tasks.
        target: The column to be predicted.
        **options: The other fields of `TablesRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "scores.csv"
        >>> rows = [f"{who},{day},{who + 2 * day}" for who in range(10) for day in range(4)]
        >>> _ = file.write_text("\n".join(["who,day,score", *rows]))
        >>> imaml.tables(str(file), "who", "score").inputs.shape
        (10, 4, 1)
    """
    several = ",".join(task) if isinstance(task, list | tuple) else task  # two are refused with advice
    fields = {"data": data, "task": several, "target": target, **options}
    return from_json({"kind": "TablesRecipe", **fields}).build()
