"""The domain of a user's own tasks: groups of rows, or classes from which episodes are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError
from ...core.fields import NonNegativeInt, PositiveFraction, PositiveInt
from ...core.recipes import Role, recipe
from ...core.tree import Tree
from ...problems.base import Problem, Task
from ...problems.likelihoods import Gaussian, likelihood
from ...problems.proximal import Adapt, plain, proximal
from ..fewshot.episodes import distinct
from ..models.adapters import as_network
from ..models.own import OwnModel
from ..networks import MLP, Network
from ..recipes import DomainRecipe
from ..scenes import Scene, compared
from . import baselines as simple
from .groups import Drawn, Grouped
from .interface import LEVELS as LEVELS
from .interface import TasksInterface, normalises
from .layout import ArraySpec, Rows, TaskLayout
from .losses import RowLoss, Squared, TaskLoss
from .own_losses import Own, loss_of
from .sources import Format, TasksFile, file_of


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
        columns: The columns of the data frame: task, targets and features; empty for arrays.
        offset: The data frame's column of offsets, "offset" for arrays with offsets, or empty for none.
        weights: The data frame's column of weights, "weights" for arrays with weights, or empty for none.
        share: The share of a task's rows that its support set has, or None for a number of them.
        separator: What separates the cells of a text file with new tasks; empty for what the run's file has.
        encoding: The encoding of such a file; empty for that of the run's file.
        decimal: The decimal sign of numbers in such a file; empty for that of the run's file.
        quantiles: Of the absolute errors of validation rows in predicted standard deviations, at the levels
            0.05, 0.1, ..., 0.95 and 0.99; empty for those of a Gaussian.
        pooled: The coefficients of one linear model of all training rows, `Pooled.coefficients`, so that it
            is a baseline on new tasks, too; empty if there is none, or it has more than 2,000.
        pooled_rows: Its `Pooled.rows`, or empty.
        file: Where the tasks were read from, or None if they were passed as arrays.

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
    offset: str = ""
    weights: str = ""
    share: PositiveFraction | None = None
    separator: str = ""
    encoding: str = ""
    decimal: Literal["", ".", ","] = ""
    quantiles: tuple[float, ...] = ()
    pooled: tuple[tuple[float, ...], ...] = ()
    pooled_rows: tuple[float, ...] = ()
    file: TasksFile | None = None

    own_tasks: ClassVar[bool] = True

    @property
    def network(self) -> Network:  # type: ignore[override]
        """The network that learns the tasks."""
        return self.model

    @property
    def episodes(self) -> bool:
        """Whether tasks are episodes of classification."""
        return self.ways > 0

    def with_objects(self, model: object = None, loss: object = None) -> TasksRecipe:
        """Return this recipe with the model and the loss that the run was fitted with."""
        changed = self
        if loss is not None:
            if not isinstance(self.loss, Own):
                raise ConfigError(f"load: loss: expected None, as the run has loss={self.loss.kind!r}.")
            changed = replace(changed, loss=loss_of(loss))  # type: ignore[arg-type]
        if model is not None:
            found = as_network(model, self.layout.example())
            same = found == self.model
            if isinstance(self.model, OwnModel) and isinstance(found, OwnModel):
                same = found.signature == self.model.signature
            if not same:
                raise ConfigError(
                    f"load: model: expected the model that the run was fitted with, {self.model!r}, got one "
                    f"with other parameters or constants, {found!r}."
                )
            changed = replace(changed, model=found)
        for brought in (changed.model, changed.loss):
            if isinstance(brought, OwnModel | Own):
                brought.held  # noqa: B018  it raises if this process has none
        return changed

    def with_tasks(self, tasks: Tree) -> TasksDomain:
        """Return the domain of other tasks, coded in the same way, all of them in the split "test"."""
        from .others import recoded

        return recoded(self, tasks)

    def build(self) -> TasksDomain:
        """Return the domain with the tasks of the recipe's file; ConfigError if it has none."""
        from .others import reread

        if self.file is None:
            raise ConfigError(
                "domain: expected the tasks, which a saved run does not hold. Hint: pass them, as in "
                "learner.evaluate(tasks), or on the command line --data PATH."
            )
        return reread(replace(self, file=replace(self.file, **self.text._asdict())))

    @property
    def text(self) -> Format:
        """How a text file with new tasks is written."""
        known = Format() if self.file is None else self.file.text
        return Format(*(getattr(self, name) or getattr(known, name) for name in Format._fields))

    @property
    def brought(self) -> dict[str, str]:
        """The places of the model and of the loss, if they were imported."""
        parts = {"model": self.model, "loss": self.loss}
        named = {what: part.name for what, part in parts.items() if isinstance(part, OwnModel | Own)}
        return {what: name for what, name in named.items() if ":" in name}

    @property
    def data_name(self) -> str:
        """The name of the file that tasks were read from."""
        return "tasks" if self.file is None else Path(self.file.path).name

    def with_data(self, path: str) -> TasksRecipe:
        """Return this recipe with its tasks at another path."""
        if self.file is not None:
            return replace(self, file=replace(self.file, path=path))
        target = self.layout.target
        targets = 1 if target is None else int(np.prod(target.shape))
        file = file_of(path, self.columns, targets, self.offset, self.weights)
        shape = self.layout.inputs[0].shape
        if file.form == "images" and len(shape) == 3:
            file = replace(file, side=shape[0], colour=shape[2] == 3)
        return replace(self, file=file)

    def scored_on(self, path: str) -> TasksRecipe:
        """Return the recipe to evaluate what was learned on the tasks of another file, all of them new."""
        found = self.with_data(path)
        assert found.file is not None
        file = replace(found.file, new=True, features=self.columns[1 + len(found.file.targets) :], split="")
        return replace(found, file=file)

    def published(self) -> TasksRecipe:
        """Return this recipe without the path of its tasks."""
        return replace(self, file=None)

    def uncalibrated(self) -> TasksRecipe:
        """Return this recipe without the quantiles of a run's errors."""
        return replace(self, quantiles=())

    def restored(self, stored: TasksRecipe) -> TasksRecipe:
        """Return this recipe with the stored path of its tasks."""
        return replace(self, file=stored.file)

    def without_data(self) -> TasksDomain:
        """Return the domain with its network and problem, but no rows."""
        return TasksDomain(None, None, None, None, None, None, None, {}, None, 0, self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TasksDomain(Grouped, TasksInterface):
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
        pooled: One linear model for all training rows, or None.
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
    pooled: simple.Pooled | None
    most: int = field(metadata={"static": True})
    recipe: TasksRecipe = field(metadata={"static": True})

    support_type: ClassVar[type] = Rows

    @property
    def headline(self) -> str:
        """The score that runs are judged by."""
        return self.recipe.loss.headline

    @property
    def interval_widths(self) -> Mapping[float, float]:  # type: ignore[override]
        """Half-widths of calibrated intervals in predicted standard deviations, by level."""
        return dict(zip(LEVELS, self.recipe.quantiles, strict=False))

    @property
    def repeats(self) -> bool:  # type: ignore[override]
        """Whether draws of one task differ; not if all rows behind its first ones are the query set."""
        left = np.asarray(self.counts) - np.asarray(self.supports)
        return self.recipe.order == "random" or bool(left.max() > self.recipe.queries)

    @property
    def alone(self) -> bool:  # type: ignore[override]
        """Whether a network for each task is a baseline; of a linear model ridge regression is."""
        model = self.recipe.model
        return not (isinstance(model, MLP) and len(model.sizes) == 2)

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the headline is better."""
        return self.headline == "accuracy"

    @property
    def criterion(self) -> tuple[str, bool]:
        """For classes the loss, because accuracy would choose parameters with bad probabilities."""
        return ("loss", False) if self.classes else super().criterion

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
        loss, rows = self.loss, self.loss.likelihood
        if rows is not None:  # the loss declares a distribution
            loss = likelihood(loss, noise=1.0 if isinstance(rows, Gaussian) else None)  # type: ignore[arg-type]
        return (
            plain(loss, adapt) if strength is None else proximal(loss, strength, adapt, curvature=curvature)
        )

    @staticmethod
    def whole(support: Rows, query: Rows) -> Rows:
        """Return all of a task's rows as one batch."""
        both = [part._replace(reference=None) for part in (support, query)]
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *both)

    def query_loss(self, phi: Tree, theta: Tree, batch: Rows) -> Array:
        """Return the mean loss of the query's rows, a scalar."""
        return self.loss(phi, batch) / jnp.maximum(jnp.sum(batch.weights), 1e-6)

    def forward(self, phi: Tree, rows: Tree, statistics: Tree = None) -> Array:
        """Return outputs ``(n, k)`` for rows that `encode_query` returned."""
        inputs, offset = self.asked_of(rows)
        return self.loss.formed(self.recipe.model.forward(phi, inputs, statistics)[0], offset)

    def statistics(self, phi: Tree, support: Rows) -> Tree:
        """Return what the network normalises by: the support set's statistics, if it normalises."""
        if not normalises(self.recipe.model):
            return None
        return self.recipe.model.forward(phi, support.inputs)[1]

    # Tasks ------------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> tuple[int, int]:  # type: ignore[override]
        """The most rows of a support set, and of a query set."""
        return self.recipe.support, self.recipe.queries

    @property
    def ordered(self) -> bool:  # type: ignore[override]
        """Whether a support set has the first rows of its group."""
        return self.recipe.order == "first"

    def size(self, split: str) -> int | None:
        """Return how many tasks a split has; episodes are drawn without end."""
        return None if self.recipe.episodes else super().size(split)

    def number(self, indices: Drawn) -> Array | None:
        """Return the number of the task's group; None of episodes."""
        return None if self.recipe.episodes else super().number(indices)

    def draw(self, key: Array, split: str) -> Drawn:
        """Return the indices of one random task of a split."""
        if not self.recipe.episodes:
            return super().draw(key, split)
        which, how = jax.random.split(key)
        numbers = self._numbers(split)
        chosen = numbers[distinct(which, numbers.size, self.recipe.ways)]
        parts = jax.vmap(self._rows)(chosen, jax.random.split(how, self.recipe.ways))
        return Drawn(chosen, *(part.reshape(-1) for part in parts))

    def draw_in_turn(self, key: Array, split: str, place: Array) -> Drawn:
        """Return the indices of a task of a split: groups in turn, episodes at random."""
        return self.draw(key, split) if self.recipe.episodes else super().draw_in_turn(key, split, place)

    def draws(self, key: Array, split: str, count: int) -> Drawn | None:
        """Return the indices of ``count`` tasks: every task of the split before any comes twice."""
        return None if self.recipe.episodes else super().draws(key, split, count)

    def gather(self, indices: Drawn) -> Task:
        """Return the task with these indices."""
        support = self._batch(indices.support, indices.known)
        query = self._batch(indices.query, indices.asked)
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
        """Return the query's mean loss, and its accuracy or root mean squared error in the target's units."""
        return self._scores(self.loss.outputs(phi, task.query), task.query)

    def _scores(self, outputs: Array, query: Rows) -> dict[str, Array]:
        cost = self.recipe.loss.cost(outputs, query)
        scores = {"loss": simple.weighted_mean(cost[:, None], query.weights)[0]}
        if self.headline == "loss":
            return scores
        if self.classes:
            found = (jnp.argmax(outputs, axis=1) == query.labels).astype(query.weights.dtype)
            return {"accuracy": simple.weighted_mean(found[:, None], query.weights)[0], **scores}
        squares = jnp.square((outputs - query.targets) * jnp.asarray(self._scale(), outputs.dtype))
        return {"rmse": jnp.sqrt(jnp.mean(simple.weighted_mean(squares, query.weights))), **scores}

    def _scale(self) -> np.ndarray:
        """The scale of each column of the targets, ``(k,)``."""
        target = self.recipe.layout.target
        assert target is not None
        return np.broadcast_to(np.asarray(target.scale or 1.0), target.shape).reshape(-1)

    def calibration(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the sums for the calibration error of classes; nothing for numbers."""
        if not self.classes:
            return {}
        outputs = self.loss.outputs(phi, task.query)
        return {"calibration_error": simple.confidences(outputs, task.query.labels, task.query.weights)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the scores of simple models, of each task alone and of all training rows.

        Of numbers: the support set's mean; ridge regression on the support set; least squares on all training
        rows, alone and with a random intercept. Of classes: the support's most frequent class; the nearest
        mean of a class's support inputs; for classes that all tasks share, least squares on all training
        rows. Of counts: the support set's rate; Poisson regression on all training rows. Of a loss of the
        user's own: none.
        """
        support, query = task
        loss = self.recipe.loss
        inputs, asked = simple.flat(support.inputs), simple.flat(query.inputs)
        rows = query.weights.shape[0]
        found: dict[str, Array] = {}
        if self.classes:
            ways = self.ways
            shares = simple.weighted_mean(jax.nn.one_hot(support.labels, ways), support.weights)
            found["most frequent class"] = jnp.broadcast_to(shares, (rows, ways))
            found["nearest class mean"] = simple.nearest_mean(inputs, asked, support, ways)
        elif loss.targets == "counts":
            found["support mean"] = simple.constant_counts(loss, support, query)
        elif self.headline == "rmse":
            mean = simple.weighted_mean(support.targets, support.weights)
            found["support mean"] = jnp.broadcast_to(mean, query.targets.shape)
            found["ridge on the support set"] = simple.ridge(inputs, asked, support)
        if self.pooled is not None:
            model = self.pooled.coefficients
            pooled, fitted = (rows @ model[1:] + model[0] for rows in (asked, inputs))
            if query.offset is not None and not self.classes:
                pooled = pooled.at[:, 0].add(query.offset)
                fitted = fitted.at[:, 0].add(support.offset)
            found["one linear model for all tasks"] = pooled
            if self.pooled.rows is not None:
                found["that model and a level for each task"] = pooled + self.pooled.level(support, fitted)
        return {name: self._scores(outputs, query)[self.headline] for name, outputs in found.items()}

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return the query's predictions before and after adaptation, over the true targets."""
        if self.recipe.layout.target is None:
            return []
        kept = np.flatnonzero(np.asarray(task.query.weights))
        parts = [np.asarray(task.query.targets)]
        parts += [
            self.recipe.loss.mean(np.asarray(self.loss.outputs(p, task.query))) for p in (before, after)
        ]
        first = [self.units(part)[kept].reshape(len(kept), -1)[:, 0] for part in parts]
        return [compared("predicted rows", *first, name="target")]


def _floats(leaf: Array) -> Array:
    return leaf.astype(jnp.float32) / 255 if leaf.dtype == jnp.uint8 else leaf
