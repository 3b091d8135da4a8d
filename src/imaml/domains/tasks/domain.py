"""The domain of a user's own tasks: groups of rows, or classes of which episodes are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError, DataError
from ...core.fields import NonNegativeInt, PositiveFraction, PositiveInt
from ...core.recipes import Role, recipe
from ...core.tree import Tree
from ...problems.base import Problem, Task
from ...problems.likelihoods import Gaussian, likelihood
from ...problems.proximal import Adapt, plain, proximal
from ..base import DomainBase, Encoded
from ..fewshot.episodes import confidences, distinct
from ..models.own import OwnModel
from ..networks import MLP, Network
from ..recipes import DomainRecipe
from ..scenes import Scene, compared
from .collection import numbers_of
from .layout import ArraySpec, Rows, TaskLayout, bucket, labels_of, padded
from .losses import RowLoss, Squared, TaskLoss

DRAWS = 400  # of predictive intervals that are simulated
LEVELS = tuple(i / 20 for i in range(1, 20)) + (0.99,)  # of the quantiles that a calibration keeps
SORTED = 4096  # rows of a group up to which a random order of all of them is drawn


@recipe("domain")
@dataclass(frozen=True)
class TasksRecipe(DomainRecipe):
    """The recipe of a user's own tasks.

    Args:
        model: The network.
        loss: The loss of a row.
        layout: What the arrays of rows look like.
        support: The most rows of a support set.
        queries: The most rows of a query set.
        order: Whether a support set's rows are "random" ones of the task, or its "first".
        ways: Classes of an episode; 0 if groups are tasks.
        columns: The columns of the data frame: task, target and features; empty for arrays.
        support_share: The share of a task's rows that its support set has, or None for a number of them.
        quantiles: Of the absolute errors of validation rows in predicted standard deviations, at the levels
            0.05, 0.1, ..., 0.95 and 0.99; empty for those of a Gaussian.

    Raises:
        ConfigError: If a field is out of its range.
    """

    model: Annotated[Network, Role("network")] = field(default_factory=lambda: MLP((1, 1)))
    loss: Annotated[RowLoss, Role("loss")] = field(default_factory=Squared)
    layout: TaskLayout = field(default_factory=lambda: TaskLayout((ArraySpec((1,)),), "0", ArraySpec((1,))))
    support: PositiveInt = 5
    queries: PositiveInt = 15
    order: Literal["random", "first"] = "random"
    ways: NonNegativeInt = 0
    columns: tuple[str, ...] = ()
    support_share: PositiveFraction | None = None
    quantiles: tuple[float, ...] = ()

    @property
    def network(self) -> Network:  # type: ignore[override]
        """The network that learns the tasks."""
        return self.model

    @property
    def episodes(self) -> bool:
        """Whether tasks are episodes of classification."""
        return self.ways > 0

    def with_model(self, model: object) -> TasksRecipe:
        """Return this recipe with the model that the run was fitted with."""
        from ..models.adapters import as_network

        found = as_network(model, self.layout.example())
        if not isinstance(self.model, OwnModel) or not isinstance(found, OwnModel):
            same = found == self.model
        else:
            same = found.signature == self.model.signature
        if not same:
            raise ConfigError(
                f"load: model: expected the model that the run was fitted with, {self.model!r}, got one with "
                f"other parameters, {found!r}."
            )
        return replace(self, model=found)

    def with_tasks(self, tasks: object) -> TasksDomain:
        """Return the domain of other tasks, coded in the same way, all of them in the split "test"."""
        from .build import recoded

        return recoded(self, tasks)

    def build(self) -> TasksDomain:
        """Raise ConfigError: the tasks are not part of the recipe."""
        raise ConfigError(
            "domain: expected the tasks, which a saved run does not hold. Hint: pass them, as in "
            "learner.evaluate(tasks)."
        )

    def without_data(self) -> TasksDomain:
        """Return the domain with its network and problem, but no rows."""
        return TasksDomain(None, None, None, None, None, None, None, {}, None, 0, self)


class Drawn(NamedTuple):
    """The indices of a task.

    Attributes:
        group: The number of its group, or ``(ways,)`` of its classes.
        support: Rows of the support set, ``(rows,)``.
        query: Rows of the query set.
        known: Which of the support's rows count, booleans.
        asked: Which of the query's rows count, booleans.
    """

    group: Array
    support: Array
    query: Array
    known: Array
    asked: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TasksDomain(DomainBase):
    """A user's own tasks; made by `domain_of`. All arrays are None in a domain without data.

    Attributes:
        inputs: The tree of coded inputs ``(rows, ...)``; bytes stay bytes.
        targets: Coded targets ``(rows, k)``, or classes ``(rows,)``; None of episodes.
        weights: ``(rows,)``.
        offset: ``(rows,)``, or None.
        first: The first row of each group, ``(groups,)``.
        counts: The rows of each group, ``(groups,)``.
        supports: The rows of each group's support set, ``(groups,)``.
        splits: Group numbers by split.
        pooled: The coefficients of one linear model for all training rows, intercept first, or None.
        most: The rows of the largest group.
        recipe: The recipe.
    """

    inputs: Tree
    targets: Tree
    weights: Tree
    offset: Tree
    first: Tree
    counts: Tree
    supports: Tree
    splits: dict[str, Array]
    pooled: Tree
    most: int = field(metadata={"static": True})
    recipe: TasksRecipe = field(metadata={"static": True})

    support_type: ClassVar[type] = Rows

    @property
    def headline(self) -> str:
        """The score that runs are judged by."""
        return self.recipe.loss.headline

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the headline is better."""
        return self.headline == "accuracy"

    @property
    def classes(self) -> bool:
        """Whether targets are classes."""
        return self.recipe.loss.targets == "classes"

    # Learning ---------------------------------------------------------------------------------------------

    @property
    def loss(self) -> TaskLoss:
        """The loss of a task's rows, a sum."""
        return TaskLoss(self.recipe.model, self.recipe.loss)

    def problem(self, strength: Tree, adapt: Adapt = None, curvature: str = "hessian") -> Problem:
        """Return the problem of the support rows' negative log likelihood; unanchored without a strength."""
        loss: object = self.loss
        if isinstance(self.loss.likelihood, Gaussian):
            loss = likelihood(self.loss, noise=1.0)
        elif self.loss.likelihood is not None:
            loss = likelihood(self.loss)
        if strength is None:
            return plain(loss, adapt)  # type: ignore[arg-type]
        return proximal(loss, strength, adapt, curvature=curvature)  # type: ignore[arg-type]

    @staticmethod
    def whole(support: Rows, query: Rows) -> Rows:
        """Return all of a task's rows as one batch."""
        both = [part._replace(reference=None) for part in (support, query)]
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *both)

    def query_loss(self, phi: Tree, theta: Tree, batch: Rows) -> Array:
        """Return the mean loss of the query's rows, a scalar."""
        return self.loss(phi, batch) / jnp.maximum(jnp.sum(batch.weights), 1e-6)

    def forward(self, phi: Tree, rows: Tree, statistics: Tree = None) -> Array:
        """Return outputs ``(n, k)`` for coded rows."""
        return self.recipe.loss.outputs(self.recipe.model.forward(phi, rows, statistics)[0])

    def statistics(self, phi: Tree, support: Rows) -> Tree:
        """Return what the network normalises by: the support set's statistics, if it normalises."""
        if not normalises(self.recipe.model):
            return None
        return self.recipe.model.forward(phi, support.inputs)[1]

    # Tasks ------------------------------------------------------------------------------------------------

    def _numbers(self, split: str) -> Array:
        """The groups of a split; if none was held out for it, those of training."""
        chosen = self.splits[split]
        return chosen if chosen.size else self.splits["train"]

    def size(self, split: str) -> int | None:
        """Return how many tasks a split has; episodes are drawn without end."""
        return None if self.recipe.episodes else int(self._numbers(split).size)

    def held_out(self, split: str) -> bool:
        """Return whether a split has groups of its own."""
        return bool(self.splits[split].size)

    def number(self, indices: Drawn) -> Array | None:
        """Return the number of the task's group; None of episodes."""
        return None if self.recipe.episodes else indices.group

    def draw(self, key: Array, split: str) -> Drawn:
        """Return the indices of one random task of a split."""
        which, how = jax.random.split(key)
        numbers = self._numbers(split)
        if self.recipe.episodes:
            chosen = numbers[distinct(which, numbers.size, self.recipe.ways)]
            parts = jax.vmap(self._rows)(chosen, jax.random.split(how, self.recipe.ways))
            flat = [part.reshape(-1) for part in parts]
            return Drawn(chosen, *flat)
        group = jax.random.choice(which, numbers)
        return Drawn(group, *self._rows(group, how))

    def draws(self, key: Array, split: str, count: int) -> Drawn | None:
        """Return the indices of ``count`` tasks: every task of the split before any comes twice."""
        if self.recipe.episodes:
            return None
        which, how = jax.random.split(key)
        numbers = self._numbers(split)
        rounds = -(-count // numbers.size)
        mixed = [jax.random.permutation(k, numbers) for k in jax.random.split(which, rounds)]
        groups = jnp.concatenate(mixed)[:count]
        return Drawn(groups, *jax.vmap(self._rows)(groups, jax.random.split(how, count)))

    def _rows(self, group: Array, key: Array) -> tuple[Array, Array, Array, Array]:
        """The rows of a group's support and query set, and which of them count."""
        recipe = self.recipe
        count, known = self.counts[group], self.supports[group]
        wanted = recipe.support + recipe.queries
        places = jnp.arange(wanted)
        if recipe.order == "first":
            order = places  # the query set is what follows the support set
        else:
            order = self._order(key, count, wanted)
        support = order[: recipe.support]
        query = order[jnp.minimum(known + jnp.arange(recipe.queries), wanted - 1)]
        kept = jnp.arange(recipe.support) < known
        asked = known + jnp.arange(recipe.queries) < jnp.minimum(count, wanted)
        # Rows that do not count are copies of the group's first one that does.
        within = lambda rows, flags: self.first[group] + jnp.where(flags, rows, order[0])  # noqa: E731
        return within(support, kept), within(query, asked), kept, asked

    def _order(self, key: Array, count: Array, wanted: int) -> Array:
        """The first ``wanted`` rows of a random order of ``count`` rows; those beyond ``count`` are any."""
        if self.most <= SORTED:
            rows = jnp.arange(max(self.most, wanted))
            scores = jnp.where(rows < count, jax.random.uniform(key, rows.shape), 2.0 + rows)
            return jnp.argsort(scores)[:wanted]
        return distinct(key, jnp.maximum(count, 1), wanted)

    def gather(self, indices: Drawn) -> Task:
        """Return the task that indices mean."""
        support, query = (
            self._batch(indices.support, indices.known),
            self._batch(indices.query, indices.asked),
        )
        if self.recipe.episodes:
            ways = self.recipe.ways
            label = lambda rows: jnp.repeat(jnp.arange(ways, dtype=jnp.int32), rows.shape[0] // ways)  # noqa: E731
            support = support._replace(targets=label(indices.support))
            query = query._replace(targets=label(indices.query))
        if normalises(self.recipe.model):
            query = query._replace(reference=support.inputs)
        return Task(support, query)

    def _batch(self, rows: Array, flags: Array) -> Rows:
        inputs = jax.tree.map(lambda leaf: _floats(leaf[rows]), self.inputs)
        targets = None if self.targets is None else self.targets[rows]
        offset = None if self.offset is None else self.offset[rows]
        return Rows(inputs, targets, self.weights[rows] * flags, offset)  # type: ignore[arg-type]

    # Scores -----------------------------------------------------------------------------------------------

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the query's mean loss, and its accuracy or the root mean squared error in the target's units."""
        return self._scores(self.loss.outputs(phi, task.query), task.query)

    def _scores(self, outputs: Array, query: Rows) -> dict[str, Array]:
        weights = query.weights / jnp.maximum(jnp.sum(query.weights), 1e-6)
        scores = {"loss": jnp.sum(weights * self.recipe.loss.cost(outputs, query))}
        if self.classes:
            right = jnp.argmax(outputs, axis=1) == query.labels
            return {"accuracy": jnp.sum(weights * right), **scores}
        if self.headline == "rmse":
            return {"rmse": self._rmse(outputs, query), **scores}
        return scores

    def _rmse(self, outputs: Array, query: Rows) -> Array:
        """The root mean squared error, in the target's units; over columns their mean square."""
        scale = jnp.asarray(self._scale(), outputs.dtype)
        squares = jnp.mean(jnp.square((outputs - query.targets) * scale), axis=1)
        return jnp.sqrt(jnp.sum(query.weights * squares) / jnp.maximum(jnp.sum(query.weights), 1e-6))

    def _scale(self) -> np.ndarray:
        target = self.recipe.layout.target
        assert target is not None
        scale = np.asarray(target.scale or 1.0)
        return np.broadcast_to(scale, target.shape).reshape(-1)

    def calibration(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return what the calibration error of classes is made of; nothing for numbers."""
        if not self.recipe.episodes:  # elsewhere rows that are padding would count
            return {}
        return {"calibration_error": confidences(self.loss.outputs(phi, task.query), task.query.labels)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return scores without meta-learning: simple models of each task alone, and one of all training rows.

        Of numbers: the support set's mean; ridge regression on the support set; least squares on all training
        rows. Of classes: the support's most frequent class; the nearest mean of a class's support inputs;
        for classes that all tasks share, least squares on all training rows.
        """
        support, query = task
        flat = [_flat(part.inputs) for part in (support, query)]
        found: dict[str, Array] = {}
        weights = support.weights[:, None]
        total = jnp.maximum(jnp.sum(weights), 1e-6)
        if self.classes:
            ways = self._ways
            shares = jnp.sum(weights * jax.nn.one_hot(support.labels, ways), axis=0) / total
            accuracy = lambda z: self._scores(z, query)["accuracy"]  # noqa: E731
            found["most frequent class"] = accuracy(jnp.broadcast_to(shares, (query.labels.shape[0], ways)))
            found["nearest class mean"] = accuracy(_nearest_mean(*flat, support, ways))
        elif self.headline == "rmse":
            mean = jnp.sum(weights * support.targets, axis=0) / total
            found["support mean"] = self._rmse(jnp.broadcast_to(mean, query.targets.shape), query)
            found["ridge on the support set"] = self._rmse(_ridge(*flat, support), query)
        else:
            return found
        if self.pooled is not None:
            outputs = flat[1] @ self.pooled[1:] + self.pooled[0]
            name = "one linear model for all tasks"
            found[name] = accuracy(outputs) if self.classes else self._rmse(outputs, query)
        return found

    @property
    def _ways(self) -> int:
        levels = self.recipe.layout.levels
        return self.recipe.ways if levels is None else len(levels)

    # A user's data ----------------------------------------------------------------------------------------

    def encode(self, x: object, y: object = None) -> Encoded:
        """Return a user's support rows as a batch, padded to one of a few sizes.

        Args:
            x: Inputs like those of the run: an array or a tree of arrays; of a data frame's run a data frame
                or a dict of columns, which may hold the target; or a sampled batch.
            y: The targets.

        Returns:
            The batch, and the classes of its outputs.

        Raises:
            DataError: If a value does not fit.
        """
        recipe = self.recipe
        if isinstance(x, Rows):
            levels = recipe.layout.levels
            classes = (
                None if not self.classes else np.arange(recipe.ways) if levels is None else np.array(levels)
            )
            return Encoded(x._replace(reference=None), classes)
        if y is None and recipe.columns and recipe.columns[1] in _columns(x):
            y = x[recipe.columns[1]]  # type: ignore[index]
        if y is None:
            raise DataError(
                "adapt: expected targets, got None. Hint: pass them as the second argument, adapt(x, y)."
            )
        inputs = recipe.layout.code(self._features(x))
        rows = len(jax.tree.leaves(inputs)[0])
        classes: np.ndarray | None = None
        if recipe.episodes:
            labels = labels_of(y, "y")
            levels = sorted(set(labels), key=lambda level: (str(type(level)), level))
            if len(levels) > recipe.ways:
                raise DataError(
                    f"y: expected at most {recipe.ways} classes, as the model has outputs, got {len(levels)}."
                )
            classes = np.array(levels)
            targets = np.array([levels.index(label) for label in labels], np.int32)
        elif self.classes:
            targets, classes = recipe.layout.classes(y), np.array(recipe.layout.levels)
        else:
            targets = recipe.layout.numbers(y)
            if recipe.loss.targets == "counts":
                require_counts(targets, "y")
        if len(targets) != rows:
            raise DataError(f"y: expected {rows} rows, as x has, got {len(targets)}.")
        batch = Rows(inputs, targets, np.ones(rows, np.float32))
        if not normalises(recipe.model):  # copies of rows would change the statistics
            batch = padded(batch, bucket(rows))
            batch.weights[rows:] = 0
        return Encoded(jax.tree.map(jnp.asarray, batch), classes)

    def encode_query(self, x: Tree) -> Tree:
        """Return coded rows ``(n, ...)``; see `encode`."""
        if isinstance(x, Rows):
            return jax.tree.map(np.asarray, x.inputs)
        return self.recipe.layout.code(self._features(x))

    def _features(self, x: object) -> Tree:
        if not self.recipe.columns or not _columns(x):
            return x
        return numbers_of(x, self.recipe.columns[2:])

    def decode(self, outputs: np.ndarray, x: object) -> np.ndarray:
        """Return the expected targets in their units, ``(n,)`` or ``(n, ...)`` as the run's targets were."""
        target = self.recipe.layout.target
        if target is None:
            return outputs
        coded = np.asarray(self.recipe.loss.mean(outputs), np.float64)
        return self._units(coded)

    def _units(self, coded: np.ndarray) -> np.ndarray:
        target = self.recipe.layout.target
        assert target is not None
        values = coded.reshape(len(coded), *target.shape)
        if target.mean:
            values = values * np.array(target.scale) + np.array(target.mean)
        return values[:, 0] if target.shape == (1,) else values

    def query_batch(self, rows: Tree) -> Rows:
        """Return coded rows as a batch with blank targets."""
        count = len(jax.tree.leaves(rows)[0])
        target = self.recipe.layout.target
        blank = (
            jnp.zeros(count, jnp.int32) if target is None else jnp.zeros((count, int(np.prod(target.shape))))
        )
        return Rows(jax.tree.map(jnp.asarray, rows), blank, jnp.ones(count))

    def posterior_form(self, support: Rows) -> dict[str, Tree]:
        """Return the form whose rank is the number of support rows; it is exact for Gauss-Newton curvature."""
        return {"form": "rows"}

    def interval(
        self, noise: Array | None, mean: Array, covariance: Array, level: float, x: object
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return predictions and intervals; see `UserData.interval`.

        Of numbers with a squared loss the width is that of the errors on validation tasks, in predicted
        standard deviations. Of counts targets are simulated.
        """
        if noise is not None:
            variance = np.diagonal(np.asarray(covariance, np.float64), axis1=1, axis2=2) + float(noise)
            half = self._factor(level) * np.sqrt(variance)
            centre = np.asarray(mean, np.float64)
            return self._units(centre), self._units(centre - half), self._units(centre + half)
        root = jnp.linalg.cholesky(covariance + 1e-9 * jnp.eye(mean.shape[1]))
        first, second = jax.random.split(jax.random.key(0))
        normals = jax.random.normal(first, (DRAWS, *mean.shape))
        outputs = mean + jnp.einsum("rij,drj->dri", root, normals)
        keys = jax.random.split(second, DRAWS)
        drawn = np.asarray(jax.vmap(self.recipe.loss.draw)(keys, outputs))
        expected = np.mean([self.recipe.loss.mean(np.asarray(part))[:, 0] for part in outputs], axis=0)
        ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return expected, ends[0], ends[1]

    def _factor(self, level: float) -> float:
        """How many standard deviations an interval of a level is wide, to each side."""
        gaussian = NormalDist().inv_cdf((1 + level) / 2)
        if not self.recipe.quantiles:
            return gaussian
        if level > LEVELS[-1]:  # beyond what validation says, as much wider than a Gaussian as at its end
            return self.recipe.quantiles[-1] * gaussian / NormalDist().inv_cdf((1 + LEVELS[-1]) / 2)
        return float(np.interp(level, (0.0, *LEVELS), (0.0, *self.recipe.quantiles)))

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return the query's predictions before and after adaptation, over the true targets."""
        if self.recipe.layout.target is None:
            return []
        kept = np.flatnonzero(np.asarray(task.query.weights))
        outputs = [np.asarray(self.loss.outputs(phi, task.query))[kept] for phi in (before, after)]
        means = [self.recipe.loss.mean(part)[:, :1] for part in outputs]
        parts = [np.asarray(task.query.targets)[kept][:, :1], *means]
        return [compared("predicted rows", *(part[:, 0] for part in parts), name="target")]


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


def _columns(x: object) -> list[str]:
    """The columns of a data frame or a dict; none of anything else."""
    if isinstance(x, Mapping):
        return [str(name) for name in x]
    return [str(name) for name in x.columns] if hasattr(x, "columns") else []


def _floats(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) / 255 if leaf.dtype == jnp.uint8 else leaf


def _flat(inputs: Tree) -> Array:
    """Inputs as one matrix ``(n, features)``."""
    leaves = jax.tree.leaves(inputs)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in leaves], axis=1)


def _ridge(x: Array, asked: Array, support: Rows) -> Array:
    """Ridge regression on the support set, with a penalty of 1 on coded inputs and none on the intercept."""
    weights = support.weights[:, None]
    total = jnp.maximum(jnp.sum(weights), 1e-6)
    centre, level = jnp.sum(weights * x, 0) / total, jnp.sum(weights * support.targets, 0) / total
    root = jnp.sqrt(weights)
    rows, targets = root * (x - centre), root * (support.targets - level)
    # (X^T X + I)^-1 X^T y = X^T (X X^T + I)^-1 y: as many equations as rows, which are few.
    duals = jnp.linalg.solve(rows @ rows.T + jnp.eye(rows.shape[0]), targets)
    return (asked - centre) @ (rows.T @ duals) + level


def _nearest_mean(x: Array, asked: Array, support: Rows, ways: int) -> Array:
    """Minus the squared distance to each class's mean support input; minus infinity of classes not there."""
    marks = jax.nn.one_hot(support.labels, ways) * support.weights[:, None]
    sizes = jnp.sum(marks, axis=0)
    means = marks.T @ x / jnp.maximum(sizes, 1e-6)[:, None]
    distances = jnp.sum(jnp.square(asked[:, None] - means[None]), axis=2)
    return jnp.where(sizes > 0, -distances, -1e30)
