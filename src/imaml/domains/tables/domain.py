"""Tasks from a table: rows grouped by a column; each person, school or machine is a task, for example."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError
from ...core.fields import Fraction, NonNegativeInt, PositiveInt
from ...core.recipes import from_json, recipe
from ...core.tree import Tree
from ...core.validation import some_of
from ...problems.base import Problem, Task
from ...problems.likelihoods import Categorical, Gaussian
from ...problems.losses import CompositeLoss, joined
from ...problems.proximal import Adapt
from ..networks import MLP
from ..recipes import ReadsData
from ..tasks.groups import Drawn, Grouped
from .build import build
from .cells import table_of
from .files import Format, read_table
from .interface import Rows, TablesInterface
from .layout import Layout
from .mixed_model import PartlyVarying, varying_network

TINY = 1e-6  # of sums of weights that something is divided by


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
        data: The file, .csv, .tsv, .parquet or .xlsx.
        task: The column whose values name the tasks.
        target: The column to be predicted. A text column makes classification tasks.
        features: The columns to predict it from; by default all others but those that only number the rows,
            have one value, or are texts that differ in most rows. "none" for none: the model is an intercept.
        weights: The column that says how many times a row counts.
        offset: The column that is added to predictions; for targets that are numbers.
        texts: Columns that are categories although they look like numbers or dates.
        dates: "days" to take columns of dates as days since 1970-01-01; "error" to refuse them.
        missing: What is done about missing cells: "error", "drop" for their rows, or "mean", which takes the
            mean of a feature, or its most frequent category, and drops rows without task or target.
        unseen: A category that training tasks do not have: "error", or "baseline" to code it as the first.
        separator: What separates the cells of a text file; by default what its header has most of: a comma, a
            semicolon, a tab or a bar.
        encoding: The encoding of a text file, such as "cp1252".
        decimal: The sign before the fraction of a number in a text file, "." or ",".
        random: For a linear model: the coefficients that vary between tasks, "intercept" and names of
            features; all others are shared. By default all vary.
        hidden: Units of the network's hidden layers (tanh); none for a linear model.
        holdout: Which rows of a task are its query set: "random" ones, the "last" in the file, or "none": in
            training all rows are both support and query; an evaluation takes random ones.
        shots: Rows of a support set, by default half of the task's.
        validation: The share of tasks for validation.
        test: The share of tasks for testing.
        seed: The random seed of these splits.
        layout: How a run encodes its table; None before the table was read.

    Raises:
        ConfigError: If a field is out of its range.
    """

    data: str | None = None
    task: str | None = None
    target: str | None = None
    features: tuple[str, ...] = ()
    weights: str | None = None
    offset: str | None = None
    texts: tuple[str, ...] = ()
    dates: Literal["error", "days"] = "error"
    missing: Literal["error", "drop", "mean"] = "error"
    unseen: Literal["error", "baseline"] = "error"
    separator: str = ""
    encoding: str = "utf-8"
    decimal: Literal[".", ","] = "."
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
                f"model, got {', '.join(self.random)}. Hint: omit hidden, or choose --method.adapt."
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
        return Tables(None, None, None, None, None, None, None, None, None, 0, (1, 1), 0, self)

    def scored_on(self, path: str) -> TablesRecipe:
        """Return the recipe of the same network on other rows, coded in the same way."""
        # A run of an earlier version does not know its table by a digest.
        same = not self.fixed.digest and self.data is not None and Path(path) == Path(self.data)
        return replace(self, data=path, layout=self.fixed if same else replace(self.fixed, splits=()))

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
        return build(self, read_table(str(self.data), self.format))

    @property
    def format(self) -> Format:
        """How text files are written."""
        return Format(self.separator, self.encoding, self.decimal)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tables(Grouped, TablesInterface):
    """The tasks of a table; all arrays are None in a domain without data.

    Attributes:
        inputs: Coded inputs ``(rows, inputs)``, the rows of one task after those of another; behind them
            those that training learns from where ``holdout="none"``, which are fewer.
        targets: ``(rows, ...)``.
        weights: How many times each row counts, ``(rows,)``.
        first: The first row of each task, ``(tasks,)``.
        counts: The number of rows of each task, ``(tasks,)``.
        supports: The rows of each task's support set, ``(tasks,)``.
        whole_first: The first of the rows that training learns from where ``holdout="none"``, ``(tasks,)``.
        whole_counts: Their number.
        splits: The numbers of tasks by split.
        most: The rows of the largest task.
        sizes: The most rows of a support set, and of a query set.
        whole_most: The most of them in a draw.
        recipe: The recipe.
        read_as: How the table was read, as lines.
    """

    inputs: Tree
    targets: Tree
    weights: Tree
    first: Tree
    counts: Tree
    supports: Tree
    whole_first: Tree
    whole_counts: Tree
    splits: Tree
    most: int = field(metadata={"static": True})
    sizes: tuple[int, int] = field(metadata={"static": True})
    whole_most: int = field(metadata={"static": True})
    recipe: TablesRecipe = field(metadata={"static": True})
    read_as: tuple[str, ...] = field(default=(), metadata={"static": True})

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
            The rows, leaves ``(tasks, n, ...)``; of a linear model where ``holdout="none"`` equivalent ones.
        """
        first, counts, most = self.first, self.counts, self.most
        if self.recipe.holdout == "none" and not self.recipe.hidden and not self.classes:
            first, counts, most = self.whole_first, self.whole_counts, self.whole_most
        places = jnp.arange(most)
        known = places < counts[numbers, None]
        rows = first[numbers, None] + jnp.where(known, places, 0)
        return Rows(self.inputs[rows], self.targets[rows], self.weights[rows] * known)

    def design(self) -> np.ndarray:
        """Return the coded inputs of all training rows, a one before each, float64."""
        groups = np.repeat(np.arange(self.counts.size), self.counts)
        inputs = np.asarray(self.inputs, np.float64)[: groups.size]
        inputs = inputs[np.isin(groups, self.splits["train"])]
        return np.column_stack([np.ones(len(inputs)), inputs])

    @property
    def whole(self) -> Callable[[Rows, Rows], Rows]:  # type: ignore[override]
        """The function that joins support and query rows: all of a task's rows as one batch, each once."""
        return _support_alone if self.recipe.holdout == "none" else joined

    def query_loss(self, phi: Tree, theta: Tree, batch: Rows) -> Array:
        """Return the mean over the query's rows of the loss, a scalar."""
        return self.loss(phi, batch) / jnp.maximum(jnp.sum(batch.weights), TINY)

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether a support set has the first rows of its task."""
        return self.recipe.holdout == "last"

    def about(self) -> tuple[str, ...]:
        """Return how the table was read: a line for each column."""
        return self.read_as

    def _drawn(self, group: Array, key: Array, split: str) -> Drawn:
        """The indices of a random task of one group; in training all of its rows if ``holdout="none"``."""
        if self.recipe.holdout != "none" or split != "train":
            return super()._drawn(group, key, split)
        places, count = jnp.arange(self.whole_most), self.whole_counts[group]
        known = places < count
        if self.most > self.whole_most and (self.recipe.hidden or self.classes):
            # Random rows stand for all of a larger task; linear models have equivalent ones.
            places = self._order(key, count, self.whole_most)
        rows = self.whole_first[group] + jnp.where(known, places, 0)
        times = known * jnp.maximum(count / self.whole_most, 1)
        return Drawn(group, rows, rows, times, times)

    def gather(self, indices: Drawn) -> Task:
        """Return the task: its support rows and its query rows."""
        parts = (indices.support, indices.known), (indices.query, indices.asked)
        return Task(
            *(
                Rows(self.inputs[rows], self.targets[rows], self.weights[rows] * times.astype(jnp.float32))
                for rows, times in parts
            )
        )

    def _scored(self, outputs: Array, query: Rows) -> Array:
        """The accuracy, or the root mean squared error in the target's units, of outputs on the query."""
        rows = jnp.maximum(jnp.sum(query.weights), TINY)
        if self.classes:
            return jnp.sum(query.weights * (jnp.argmax(outputs, 1) == query.labels)) / rows
        squares = jnp.sum(query.weights * jnp.square(outputs - query.targets)[:, 0])
        return self.recipe.fixed.target.scale * jnp.sqrt(squares / rows)

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the headline, and the mean loss of the query's rows."""
        headline = self._scored(self.loss.outputs(phi, task.query), task.query)
        return {self.headline: headline, "loss": self.query_loss(phi, None, task.query)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return scores of least squares for all tasks, for this task alone (least norm), and of the mean.

        The fit for all tasks is always that to the run's training tasks, even if other tasks are scored; a
        run of an earlier version does not have it.
        """
        support, query = task
        design = lambda rows: jnp.concatenate([jnp.ones_like(rows.inputs[:, :1]), rows.inputs], 1)  # noqa: E731
        outputs = self.recipe.fixed.outputs
        wanted = jax.nn.one_hot(support.labels, outputs) if self.classes else support.targets
        weights = support.weights[:, None]
        root = jnp.sqrt(weights)
        own = jnp.linalg.lstsq(root * design(support), root * wanted)[0]
        mean = jnp.sum(weights * wanted, 0) / jnp.maximum(jnp.sum(weights), TINY)
        found = {
            "model_of_its_own": design(query) @ own,
            "support_mean": jnp.broadcast_to(mean, (query.inputs.shape[0], outputs)),
        }
        if pooled := self.recipe.fixed.pooled:
            found = {"pooled_model": design(query) @ jnp.asarray(pooled, query.inputs.dtype), **found}
        return {name: self._scored(answers, query) for name, answers in found.items()}


def _support_alone(support: Rows, query: Rows) -> Rows:
    """All rows of a task whose support and query set are the same."""
    return support


def tables(data: object, task: str, target: str, **options: object) -> Tables:
    r"""Return the tasks of a table.

    Args:
        data: A file, or a data frame of pandas, polars or the like, or a dict of columns.
        task: The column whose values name the tasks.
        target: The column to be predicted.
        **options: The other fields of `TablesRecipe`.

    Returns:
        The domain. ``domain.about()`` says how each column was read.

    Raises:
        ConfigError: If an option is not valid, or a column is missing or used twice.
        DataError: If the table cannot be read, or does not fit.

    Warns:
        RuntimeWarning: If columns are excluded, although no features were named.

    Example:
        >>> import imaml
        >>> who, day = [i // 4 for i in range(40)], [i % 4 for i in range(40)]
        >>> score = [w + 2 * d for w, d in zip(who, day)]
        >>> domain = imaml.tables({"who": who, "day": day, "score": score}, "who", "score")
        >>> domain.inputs.shape
        (40, 1)
        >>> print(domain.about()[3])
          day    feature   number: mean 1.5, standard deviation 1.11803
    """
    where = str(data) if isinstance(data, str | Path) else None
    several = ",".join(task) if isinstance(task, list | tuple) else task  # two are refused with advice
    fields = {"data": where, "task": several, "target": target, **options}
    recipe: TablesRecipe = from_json({"kind": "TablesRecipe", **fields})  # type: ignore[assignment]
    domain = recipe.build() if where is not None else build(recipe, table_of(data, "data"))
    parts = [line.partition("  excluded  ") for line in domain.about()]
    excluded = [name.strip() for name, found, _ in parts if found]
    if excluded and not recipe.features:
        warnings.warn(
            f"tables: columns are excluded from the features ({some_of(excluded)}). Hint: domain.about() "
            "says why; name the columns to use, features=[...].",
            RuntimeWarning,
            stacklevel=2,
        )
    return domain
