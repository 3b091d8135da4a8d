"""Domains: where tasks come from, how a user's data become a task, and how predictions are decoded.

A domain has two parts. Its *recipe*, a subclass of `imaml.DomainRecipe`, is a frozen dataclass of numbers and
names that goes to JSON. `recipe.build()` gives the domain itself, a subclass of `DomainBase`, with its data.
`recipe.without_data()` gives a domain with the same network and problem but no data, which is enough to use a
trained model. No code outside this package depends on the class of a domain. docs/extend/domain.md shows how
to write one.

tests/laws/test_domains.py holds every registered domain to these laws:

1. `sample(key, split)` depends on its arguments alone, and works under jit and vmap.
2. `sample(key, split)` equals `gather(draw(key, split))`: indices first, data second.
3. Splits share no class and no task.
4. `query_loss`, and the problem's residual and objective (where it has one) on the support batch and on
   `whole`, are finite at `init(key)` on every sampled task.
5. `encode(task.support)` and `encode_query(task.query)` accept every sampled task.
6. A trained run can be evaluated, saved, loaded in another process, adapted, asked for predictions and
   reported.

A domain is a pytree. Its data are leaves, so that they are arguments of a compiled step, not constants in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, TypeVar

import jax
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError
from ..core.tree import Tree
from ..core.validation import require_one_of
from ..problems.base import Loss, Problem, Task
from ..problems.losses import joined
from ..problems.proximal import Adapt, equilibrium, plain, proximal
from ..problems.proximal import Field as VectorField
from .networks import Network
from .recipes import DomainRecipe
from .scenes import Example, Scene
from .user_data import Answers as Answers
from .user_data import Encoded as Encoded
from .user_data import Json, Predicts, UserData
from .user_data import Standalone as Standalone

SPLITS = ("train", "validation", "test")
T = TypeVar("T")
D = TypeVar("D", bound="DomainBase")
Strength = Tree  # a positive number, a tree of them, `learned(...)`, or None for no regularisation


class DomainBase(UserData):
    """The base class of domains: the methods that callers use, with defaults.

    A subclass is a frozen dataclass and a pytree (`jax.tree_util.register_static` if it holds no arrays). It
    has a field ``recipe`` and defines `gather` and `metrics`. If one network learns the tasks by one
    loss, it defines ``network`` in the recipe and `loss` here; else it overrides `init`, `problem`,
    `query_loss` and `shared_loss`. To be used on a user's own tasks it also defines `support_fields`.

    Attributes:
        recipe: The recipe that the domain was built from.
        headline: The metric that a validation is judged by.
        higher_is_better: Whether more of the headline is better.
        convex: Whether `loss` is convex in the parameters.
        interval_widths: Half-widths of calibrated intervals in predicted standard deviations, by level.
        repeats: Whether draws of one task differ.
        finalises: Whether `finalise` changes anything.
        alone: Whether an evaluation also trains the network on each task alone, as a baseline.
        group_names: Names for the numbers of tasks, such as alphabets, if scores are listed by group.
        oracles: The names of `baselines` that know what no method can, such as a task's true parameters.
    """

    recipe: DomainRecipe
    headline: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    convex: ClassVar[bool] = False
    repeats: ClassVar[bool] = True
    finalises: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    group_names: tuple[str, ...] = ()
    oracles: ClassVar[frozenset[str]] = frozenset()
    interval_widths: ClassVar[Mapping[float, float]] = MappingProxyType({})

    @property
    def criterion(self) -> tuple[str, bool]:
        """The metric that the best parameters are chosen by, and whether more of it is better."""
        return self.headline, self.higher_is_better

    # Tasks ------------------------------------------------------------------------------------------------

    def draw(self, key: Array, split: str) -> Tree:
        """Draw the indices of one random task of a split.

        Works under jit and vmap. The result depends on the arguments alone.

        Args:
            key: A random key.
            split: "train", "validation" or "test"; static under jit.

        Returns:
            A tree of small arrays from which `gather` makes the task. By default a random key that belongs to
            the split, for tasks that are made only of random numbers.
        """
        return split_key(key, split)

    def gather(self, indices: Tree) -> Task:
        """Return the task with these indices.

        Works under jit and vmap.

        Args:
            indices: What `draw` returned, or one item of what `draws` returned.

        Returns:
            The support batch, a `support_type` with leaves ``(rows, ...)``, and the query batch. All tasks
            have the same shapes.
        """
        raise NotImplementedError

    def sample(self, key: Array, split: str) -> Task:
        """Return one random task of a split.

        Args:
            key: A random key.
            split: "train", "validation" or "test".

        Returns:
            The task, ``gather(draw(key, split))``.
        """
        return self.gather(self.draw(key, split))

    @staticmethod
    def whole(support: Tree, query: Tree) -> Tree:
        """Return all of a task's data as one batch, for methods that do not split it.

        Args:
            support: The support batch.
            query: The query batch: one like the support batch, or a tuple whose first item is one.

        Returns:
            One batch, with the support's rows first.
        """
        return joined(support, query if isinstance(query, type(support)) else query[0])

    def size(self, split: str) -> int | None:
        """Return how many tasks a split has.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The number of tasks, or None if tasks are drawn without end.
        """
        return None

    def draws(self, key: Array, split: str, count: int) -> Tree | None:
        """Draw the indices of several tasks; no task is drawn twice before every task was drawn once.

        Args:
            key: A random key.
            split: "train", "validation" or "test".
            count: How many tasks.

        Returns:
            Indices, leaves ``(count, ...)``; or None, the default, to draw each task by a key of its own.
        """
        return None

    def draw_in_turn(self, key: Array, split: str, place: Array) -> Tree:
        """Draw the indices of a task for an evaluation, in which every task occurs.

        Args:
            key: A random key.
            split: "train", "validation" or "test".
            place: The number of the draw in the evaluation, an integer scalar.

        Returns:
            What `draw` returns. In a split with a fixed number of tasks, each is drawn once before any is
            drawn again; by default ``draw(key, split)``.
        """
        return self.draw(key, split)

    def number(self, indices: Tree) -> Array | None:
        """Return which task was drawn.

        Args:
            indices: What `draw` returned.

        Returns:
            An integer scalar: tasks with equal numbers are not independent. None, the default, if no task is
            drawn twice.
        """
        return None

    def held_out(self, split: str) -> bool:
        """Return whether a split has its own tasks; otherwise training tasks are used instead.

        Args:
            split: "train", "validation" or "test".

        Returns:
            True by default.
        """
        return True

    def draws_all(self, split: str) -> bool:
        """Return whether each task of a split is drawn with all of its rows, which a likelihood needs.

        Args:
            split: "train", "validation" or "test".

        Returns:
            True by default.
        """
        return True

    def training_domain(self: D, step: int) -> D:
        """Return the domain that a step of training draws its tasks from.

        Args:
            step: The step, from 0. Two steps may have tasks of different shapes.

        Returns:
            The domain itself by default; another one if training tasks differ from new tasks, as in their
            number of classes.
        """
        return self

    # Learning ---------------------------------------------------------------------------------------------

    @property
    def network(self) -> Network:
        """The network that learns the tasks: the recipe's."""
        return self.recipe.network

    @property
    def loss(self) -> Loss:
        """The loss ``(phi, batch) -> scalar`` of the inner problem, without its regularisation; hashable."""
        raise NotImplementedError

    def init(self, key: Array) -> Tree:
        """Return fresh parameters of the network.

        Args:
            key: A random key.

        Returns:
            A pytree of float arrays.
        """
        return self.network.init(key)

    def problem(self, strength: Strength, adapt: Adapt = None, curvature: str = "hessian") -> Problem:
        """Return the inner problem of a task.

        Args:
            strength: The regularisation strength; None for no regularisation.
            adapt: Which parameters a task adapts; see `imaml.proximal`.
            curvature: "hessian" or "gauss-newton"; see `imaml.proximal`.

        Returns:
            The problem: `loss` on the support batch plus ``strength/2 |phi - theta|^2``.

        Raises:
            ConfigError: If an argument is not valid.
        """
        if strength is None:
            return plain(self.loss, adapt)
        return proximal(self.loss, strength, adapt, curvature=curvature, convex=self.convex)

    def query_loss(self, phi: Tree, theta: Tree, batch: Tree) -> Array:
        """Return the loss that meta-learning minimises.

        Args:
            phi: Adapted parameters of one task.
            theta: The meta-parameters they were adapted from; most losses ignore them.
            batch: The task's query batch.

        Returns:
            A scalar, `loss` on the query batch by default.
        """
        return self.loss(phi, batch)

    def finalise(self, theta: Tree, key: Array) -> Tree:
        """Return the meta-parameters as new tasks need them, after the training steps so far.

        Args:
            theta: The meta-parameters.
            key: A random key for training tasks.

        Returns:
            ``theta`` itself by default; otherwise with quantities that are measured instead of learned, such
            as statistics for normalisation.
        """
        return theta

    def wide(self, key: Array) -> Tree:
        """Return fresh parameters for joint learning: those of the same network.

        Args:
            key: A random key.

        Returns:
            Parameters for `joint_loss`, a pytree of float arrays.
        """
        return self.init(key)

    def narrow(self, theta: Tree) -> Tree:
        """Return where a new task starts after joint learning: at ``theta`` itself.

        Args:
            theta: Parameters as `wide` returns them, after joint learning.

        Returns:
            Parameters as `init` returns them.
        """
        return theta

    def shared_loss(self, theta: Tree, batch: Tree) -> Array:
        """Return the loss of one network for all tasks.

        Args:
            theta: The parameters of that network.
            batch: All of a task's data, as `whole` returns them.

        Returns:
            A scalar, `loss` by default.
        """
        return self.loss(theta, batch)

    def joint_loss(self, theta: Tree, batch: Tree, grouped: bool = False) -> Array:
        """Return the loss of joint learning, `shared_loss`.

        Args:
            theta: Parameters as `wide` returns them.
            batch: All of a task's data, as `whole` returns them.
            grouped: Whether each group of tasks has a head of its own.

        Returns:
            A scalar.

        Raises:
            ConfigError: If ``grouped``, as one network serves all tasks.
        """
        if grouped:
            raise ConfigError(
                "multitask: expected tasks with heads of their own, got one network for all tasks. Hint: use "
                "the method transfer."
            )
        return self.shared_loss(theta, batch)

    def forward(self, phi: Tree, rows: Tree, statistics: Tree = None) -> Array:
        """Return the outputs for encoded rows: those of the network.

        Args:
            phi: Adapted parameters.
            rows: What `encode_query` returned, or a part of its rows.
            statistics: What `statistics` returned for the support set.

        Returns:
            Outputs ``(n, ...)``; logits, if predictions are classes.
        """
        return self.network.forward(phi, rows, statistics)[0]

    # Scores -----------------------------------------------------------------------------------------------

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the scores of adapted parameters on a task's query batch.

        Args:
            phi: Adapted parameters.
            task: The task, without a leading axis of tasks.

        Returns:
            Scalars by name. One of them is the headline. Works under jit and vmap.
        """
        raise NotImplementedError

    def measure(self, phi: Tree, theta: Tree, batch: Tree) -> dict[str, Array]:
        """Return what training logs in addition to the loss.

        Args:
            phi: Adapted parameters of one task.
            theta: The meta-parameters, or None where a caller has none.
            batch: The task's query batch.

        Returns:
            Scalars by name; none by default.
        """
        return {}

    def calibration(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the sums from which calibration errors are computed.

        Args:
            phi: Adapted parameters.
            task: The task.

        Returns:
            Sums by bin of confidence, ``(bins, 3)``, by name; see `confidences`. Empty, the default, if
            predictions are not classes.
        """
        return {}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the scores of simple methods without meta-learning.

        Args:
            task: The task.

        Returns:
            Scalars by name, in the headline's units; none by default.
        """
        return {}

    # Reports ----------------------------------------------------------------------------------------------

    def examples(self, before: Tree, predictor: Predicts, task: Task) -> Sequence[Example | Scene]:
        """Return what the report shows of a test task.

        Args:
            before: The parameters before adaptation.
            predictor: Adapted to the task's support set.
            task: The task.

        Returns:
            Examples or scenes; by default `scenes` before and after adaptation.
        """
        return self.scenes(before, predictor.phi, task)

    def scenes(self, before: Tree, after: Tree, task: Task) -> Sequence[Scene]:
        """Return pictures of a task at parameters before and after adaptation.

        Args:
            before: The parameters before adaptation.
            after: The adapted parameters.
            task: The task.

        Returns:
            The pictures; none by default.
        """
        return []

    def change(self, before: Tree, after: Tree, task: Task, form: str, metric: str = "") -> str:
        """Return a score before and after adaptation as text, such as "0.31 to 0.87".

        Args:
            before: The parameters before adaptation.
            after: The adapted parameters.
            task: The task.
            form: The format of a score, such as ".2f".
            metric: Which score of `metrics`; by default the headline.

        Returns:
            The text.
        """
        scores = [float(self.metrics(phi, task)[metric or self.headline]) for phi in (before, after)]
        return " to ".join(format(score, form) for score in scores)

    def about(self) -> Sequence[str]:
        """Return how the data were read, as lines to print before training; none by default."""
        return ()

    def summary(self, theta: Tree, problem: Problem) -> tuple[Json, str]:
        """Return a summary of theta, such as fixed effects.

        Args:
            theta: The meta-parameters after training.
            problem: The inner problem that they were trained with.

        Returns:
            JSON fields, and the same as text; both empty by default.
        """
        return {}, ""


Domain = DomainBase  # the interface is the base class


class EquilibriumDomain(DomainBase):
    """The base of a domain whose inner problem is the zero of a vector field, which is not a gradient.

    A subclass defines `field`.
    """

    @property
    def field(self) -> VectorField:
        """The vector field ``(phi, batch) -> a tree like phi`` of the inner problem; hashable."""
        raise NotImplementedError

    def problem(self, strength: Strength, adapt: Adapt = None, curvature: str = "hessian") -> Problem:
        """Return the problem ``field(phi, support) + strength (phi - theta) = 0``.

        Args:
            strength: The regularisation strength; None for no regularisation.
            adapt: Which parameters a task adapts; see `imaml.equilibrium`.
            curvature: "hessian", as a field that is not a gradient has no Gauss-Newton matrix.

        Returns:
            The problem.

        Raises:
            ConfigError: If an argument is not valid.
        """
        require_one_of("domain", "curvature", curvature, ("hessian",))
        return equilibrium(self.field, strength, adapt)

    def shared_loss(self, theta: Tree, batch: Tree) -> Array:
        """Return a scalar whose gradient is the field, of one theta for all tasks; its value says nothing."""
        return tree.dot(lax.stop_gradient(self.field(theta, batch)), theta)


def split_key(key: Array, split: str) -> Array:
    """Return the random key of a split, so that no two splits share random numbers.

    Args:
        key: A random key.
        split: Which split.

    Returns:
        The key.
    """
    return jax.random.fold_in(key, SPLITS.index(split))


def cut(batch: T, shots: int) -> tuple[T, T]:
    """Cut a batch into a support and a query batch.

    Args:
        batch: A tree of arrays ``(rows, ...)``.
        shots: How many rows the support batch has.

    Returns:
        The first ``shots`` rows, and the others.
    """
    return jax.tree.map(lambda leaf: leaf[:shots], batch), jax.tree.map(lambda leaf: leaf[shots:], batch)


def require_domain(owner: str, domain: object) -> None:
    """Check that an argument is a domain.

    Args:
        owner: The function that was called.
        domain: The argument.

    Raises:
        ConfigError: If it is none.
    """
    if not isinstance(domain, DomainBase):
        raise ConfigError(
            f"{owner}: domain: expected a domain, such as imaml.characters(), got {domain!r}. Hint: a "
            "domain of your own subclasses imaml.DomainBase."
        )


def in_step(domain: Domain, tasks: int) -> int:
    """Return how many tasks a step of training has.

    Args:
        domain: The domain.
        tasks: As many as asked for, or 0 for every training task.

    Returns:
        The number of tasks.

    Raises:
        ConfigError: If ``tasks`` is 0 and the domain draws tasks without end.
    """
    if tasks:
        return tasks
    size = domain.size("train")
    if size is None:
        raise ConfigError(
            "training: tasks: expected a whole number of at least 1, got 0. Hint: tasks=0 means every "
            f"training task, and {type(domain).__name__} draws tasks without end."
        )
    return size


def sample_many(domain: Domain, key: Array, split: str, count: int, place: Callable[[T], T]) -> Task:
    """Return ``count`` tasks of a split.

    Args:
        domain: The domain.
        key: A random key.
        split: Which split.
        count: How many tasks.
        place: Puts the keys or indices that tasks are drawn by on devices.

    Returns:
        The tasks, leaves ``(count, ...)``.
    """
    indices = domain.draws(key, split, count)
    if indices is not None:
        return jax.vmap(domain.gather)(place(indices))
    return jax.vmap(lambda k: domain.sample(k, split))(place(jax.random.split(key, count)))  # type: ignore[arg-type]
