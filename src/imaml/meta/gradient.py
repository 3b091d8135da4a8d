"""Meta-learning methods: (theta, tasks, key) -> (meta_gradient, Metrics)."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, NamedTuple, Protocol, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from ..core import tree
from ..core.content import ByContent
from ..core.errors import ConfigError, NumericalError, StructureError
from ..core.fields import Checked, PositiveInt, Such
from ..core.recipes import Recipe
from ..core.solution import Ending, Solution, Stats, Status, bounded
from ..core.tree import Tree
from ..core.validation import require_function, require_scalar
from ..inner.base import InnerSolver
from ..problems.base import Key, Problem, Task
from ..problems.losses import joined, same_arrays
from .arguments import require_parameters, require_tasks
from .base import Flag, Learning, StepNumber, TaskGradient, TaskRule
from .implicit import Implicit
from .system import QueryLoss

Policy = Literal["raise", "warn", "skip"]
AXIS = "tasks"
# The solves of a rule that has none.
UNSOLVED = Solution(None, Stats(None, None, None), None)  # type: ignore[arg-type]


class Metrics(NamedTuple):
    """Statistics of a meta-gradient, task by task; every array has shape ``(tasks,)``.

    Fields that a rule does not compute are None.

    Attributes:
        loss: The query loss at phi*.
        gradient_norm: The norm of the task's meta-gradient.
        inner_residual: The norm of F(phi*).
        inner_steps: Iterations of the inner solver.
        linear_residual: |b - A u| / |b|.
        linear_steps: Iterations of the linear solver.
        negative_curvature: Whether the linear solver met negative curvature.
        error_estimate: An estimate of the norm of the meta-gradient's error; NaN if it was not requested.
        error_bound: A bound of that norm, where `certified`.
        inner_status: How the inner solves ended.
        linear_status: How the linear solves ended.
        used: Whether the task is in the mean. A task is excluded if its loss, gradient or residuals are not
            finite, if the inner solve moved away from the solution that the rule needs, if the linear
            solver's answer is worse than zero, or if it met negative curvature in its first direction.
        measures: What the method's `measure` returned.
    """

    loss: Array
    gradient_norm: Array
    inner_residual: Array | None
    inner_steps: Array | None
    linear_residual: Array | None
    linear_steps: Array | None
    negative_curvature: Array | None
    error_estimate: Array | None
    error_bound: Array | None
    inner_status: Status | None
    linear_status: Status | None
    used: Array
    measures: dict[str, Array]

    @property
    def certified(self) -> Array:
        """Whether each task's `error_bound` bounds its error, shape ``(tasks,)``."""
        code = None if self.linear_status is None else self.linear_status.certificate
        return jnp.zeros(self.used.shape, bool) if code is None else bounded(code)


def unsolved(loss: Array, gradient_norm: Array, used: Array) -> Metrics:
    """Return the statistics of a step that solves no inner problem and no linear system.

    Args:
        loss: See `Metrics`.
        gradient_norm: See `Metrics`.
        used: See `Metrics`.

    Returns:
        The statistics.
    """
    return Metrics(loss, gradient_norm, *[None] * 9, used, {})  # type: ignore[arg-type]


Measure = Callable[[Tree, Tree, Tree], dict[str, Array]]  # (phi, theta, batch) -> scalars


class Network(Protocol):
    """What fresh meta-parameters come from, such as a domain."""

    def init(self, key: Array) -> Tree:
        """Return fresh parameters.

        Args:
            key: A random key.

        Returns:
            A pytree of float arrays.
        """


class View(NamedTuple):
    """How a theta that is not shaped like a task's parameters is made, and what a new task starts at.

    Attributes:
        wide: key -> fresh theta.
        narrow: theta -> parameters shaped like phi; narrow(narrow(t)) equals narrow(t).
    """

    wide: Callable[[Array], Tree]
    narrow: Callable[[Tree], Tree]


class Solving(NamedTuple):
    """How new tasks are solved in evaluation and use, if that differs from training.

    Training can afford only few inner steps for each of very many tasks. A new task is solved once, and may
    need smaller steps, more steps, and another strength. Theta does not depend on these settings.

    Attributes:
        problem: A problem with the same theta.
        inner: The inner solver.
    """

    problem: Problem
    inner: InnerSolver


class Origin(NamedTuple):
    """The recipes that a method was built from.

    Attributes:
        method: The recipe of the method.
        domain: The recipe of the domain whose problem and losses it has.
    """

    method: Recipe
    domain: Recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class MetaGradient(Checked, ByContent):
    """A method: the mean over tasks of a meta-gradient, as `IMAML`, `MAML`, `FOMAML` and `Reptile` make it.

    Two methods with equal content are equal, so `jax.jit` compiles once for both. Inside jit no error can be
    raised for failed tasks: call `check(metrics)` on the host.

    Args:
        problem: One task's inner problem.
        query_loss: The outer loss, (phi, theta, batch) -> scalar.
        inner: The inner solver.
        rule: Computes what one task contributes to the meta-gradient; see `docs/extend/method.md`.
        policy: What to do about tasks that fail numerically, which are never averaged in: "raise"
            (NumericalError), "warn", or "skip" (only `Metrics.used` shows them).
        chunk: How many tasks are computed at once; None for all.
        mesh: A mesh with one axis named "tasks", over which tasks are sharded with one all-reduce a call.
        measure: (phi, theta, batch) -> dict of scalars, evaluated on the query batch at phi*.
        view: For a theta that is not shaped like a task's parameters.
        new_task: How new tasks are solved; None for as in training.

    Attributes:
        origin: The recipes that it was built from, or None for a method made by hand. A copy with other
            fields (`dataclasses.replace`) has none, as they do not describe it.

    Raises:
        ConfigError: If an argument is not valid.
        StructureError: If the rule does not accept the problem or the solver.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
        >>> method = imaml.MetaGradient(imaml.proximal(loss, 1.0), lambda phi, theta, x: loss(phi, x),
        ...                             inner=imaml.GradientDescent(0.5, steps=30), rule=imaml.one_step())
        >>> method(jnp.zeros(1), imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1))))[0]
        Array([-0.25], dtype=float32)
    """

    owner: ClassVar[str] = "method"

    problem: Annotated[Problem, Such("one such as proximal(loss, strength)")] = field(kw_only=False)
    query_loss: QueryLoss = field(kw_only=False)
    inner: Annotated[InnerSolver, Such("an inner solver such as GradientDescent(rate, steps=...)")]
    rule: TaskRule
    policy: Policy = "warn"
    chunk: PositiveInt | None = None
    mesh: Mesh | None = None
    measure: Measure | None = None
    view: View | None = None
    new_task: Annotated[Solving, Such("a Solving(problem, inner)")] | None = None
    origin: Origin | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check the fields (ConfigError, StructureError)."""
        super().__post_init__()
        if not hasattr(self.rule, "task_gradient"):
            raise ConfigError(
                f"method: rule: expected one such as implicit(linear) or unrolled(), got {self.rule!r}."
            )
        if self.mesh is not None and tuple(self.mesh.axis_names) != (AXIS,):
            raise ConfigError(f"method: mesh: expected one axis, named {AXIS!r}, got {self.mesh.axis_names}.")
        require_function("method: query_loss", self.query_loss, "phi", "theta", "batch")
        self.rule.refuse(self.problem, self.inner)

    def built_from(self, origin: Origin | None) -> MetaGradient:
        """Records the recipes that this method was built from.

        Args:
            origin: The recipes, or None.

        Returns:
            This method.
        """
        object.__setattr__(self, "origin", origin)
        return self

    def on(self, mesh: Mesh | None) -> MetaGradient:
        """Shares the tasks of a step between devices.

        Args:
            mesh: A mesh with one axis named "tasks", or None for one device.

        Returns:
            The same method on that mesh, with the same origin.
        """
        return replace(self, mesh=mesh).built_from(self.origin)

    def certifying(self) -> MetaGradient:
        """The same method with its errors bounded.

        Returns:
            The method.

        Raises:
            ConfigError: If its rule has no certificate.
        """
        if not isinstance(self.rule, Implicit):
            raise ConfigError(
                f"certify: expected the implicit rule of IMAML, got {type(self.rule).__name__}, which has no "
                "certificate."
            )
        return replace(self, rule=replace(self.rule, certify=self.rule.certificate or True))

    def init(self, domain: Network | Tree, key: Key = None) -> Tree:
        """Initial meta-parameters for a domain's network, or from given parameters.

        Args:
            domain: The domain; without one, the tree of parameters from which tasks start.
            key: A random key for the domain's network; None with parameters.

        Returns:
            Theta; a `Theta` if a strength, rate or noise is learned.
        """
        if self.view is not None:
            return self.view.wide(key)  # type: ignore[arg-type]
        fresh = domain if key is None else domain.init(key)
        theta = self.problem.parameters(fresh)
        learns = getattr(self.inner, "parameters", None)
        return theta if learns is None else learns(self.problem, theta)

    def mean(self, theta: Tree) -> Tree:
        """The network's parameters before adaptation.

        Args:
            theta: The meta-parameters.

        Returns:
            The part of theta that is shaped like phi.
        """
        return self.problem.mean(self.start(theta))

    def start(self, theta: Tree) -> Tree:
        """The part of theta that new tasks need, and that an artefact stores.

        Args:
            theta: The meta-parameters.

        Returns:
            Theta, or the view's narrow part.
        """
        return theta if self.view is None else self.view.narrow(theta)

    def kept(self, domain: Network, key: Array) -> Tree:
        """The part of initial meta-parameters that an artefact stores; the domain needs no data.

        Args:
            domain: The domain.
            key: A random key.

        Returns:
            What `start` returns for a fresh theta.
        """
        return self.start(self.init(domain, key) if self.view is None else domain.init(key))

    def adapt(self, theta: Tree, support: Tree, key: Key = None) -> tuple[Tree, Solution]:
        """Adapts to one task.

        Args:
            theta: The meta-parameters.
            support: The task's support set.
            key: A random key for the solver, or None.

        Returns:
            The full tree of adapted parameters, and the inner Solution.

        Raises:
            ConfigError: If theta is not a tree of real floats.
        """
        require_parameters("adapt", theta)
        theta = self.start(theta)
        problem, inner = (self.problem, self.inner) if self.new_task is None else self.new_task
        return Learning(problem, self.query_loss, inner).solved(theta, support, key)

    def at_step(self, step: StepNumber, estimate: Flag = True) -> MetaGradient:
        """The method at a step of training, for rules that change.

        Args:
            step: The step, from 0; None for the end of training.
            estimate: Whether errors are estimated; see `__call__`.

        Returns:
            The method.
        """
        at = getattr(self.rule, "at_step", None)
        return self if at is None else replace(self, rule=at(step, estimate))

    def __call__(
        self,
        theta: Tree,
        tasks: Task,
        key: Key = None,
        step: StepNumber = None,
        estimate: Flag = True,
    ) -> tuple[Tree, Metrics]:
        """The meta-gradient of a batch of tasks.

        Args:
            theta: The meta-parameters, a pytree of float arrays.
            tasks: The tasks, with a leading axis of tasks on every leaf.
            key: A random key, split over the tasks, or None.
            step: The step of training, for an accuracy that tightens; None for the end of training.
            estimate: Whether errors are estimated, a boolean that may be traced. If it is False,
                `Metrics.error_estimate` is NaN and costs nothing.

        Returns:
            The mean over the used tasks, shaped like theta; NaN if no task was used, never 0, which would
            look like convergence. And the Metrics.

        Raises:
            NumericalError: Outside jit, if tasks failed and the policy is "raise", or if all failed.
        """
        solves = any(getattr(self.rule, name, None) is not None for name in ("linear", "accuracy"))
        require_parameters("method", theta, wide=solves)
        require_tasks(tasks)
        if getattr(self.rule, "whole", None) is joined and same_arrays(tasks.support, tasks.query):
            # Else each row would count twice, as both are joined.
            tasks = Task(tasks.support, None)
            warnings.warn(
                "tasks: support and query are the same rows, and each is counted once. A compiled function "
                "cannot see that, and counts them twice. Hint: pass Task(rows), without a query.",
                RuntimeWarning,
                stacklevel=2,
            )
        count = _count(tasks)
        keys = None if key is None else jax.random.split(key, count)
        mean = self.at_step(step, estimate)._mean_gradient
        if self.mesh is not None:
            if count % self.mesh.size:
                raise ConfigError(
                    f"method: tasks: expected a multiple of the {self.mesh.size} devices, got {count}."
                )
            spread, replicated = PartitionSpec(AXIS), PartitionSpec()
            # check_vma=False: else a gradient at a replicated theta is summed over devices inside each task.
            mean = jax.shard_map(
                mean,
                mesh=self.mesh,
                in_specs=(replicated, spread, spread),
                out_specs=(replicated, spread),
                check_vma=False,
            )
        flat, metrics = mean(theta, tasks, keys)
        gradient = getattr(self.rule, "combine", _shaped)(self.problem, theta, flat)
        if not isinstance(metrics.used, Tracer):
            self.check(metrics)
        return gradient, metrics

    def check(self, metrics: Metrics) -> None:
        """Applies the policy to excluded tasks; call it on the host, after a jitted step.

        Args:
            metrics: What the jitted method returned with the meta-gradient.

        Raises:
            NumericalError: If a task was excluded and the policy is "raise"; under any policy, if all were,
                as the meta-gradient is then NaN.
        """
        used = np.asarray(metrics.used)
        if used.all():
            return
        failed = [int(i) for i in np.flatnonzero(~used)]
        solves = (metrics.inner_status, metrics.linear_status)
        codes = [np.asarray(status.code) for status in solves if status is not None]
        worst = Ending(int(max((code[~used].max() for code in codes), default=0)))
        if worst <= Ending.DAMPED:  # the solves went well, so it is the query loss or its gradient
            worst = Ending.NOT_FINITE
        message = (
            f"{len(failed)} of {used.size} tasks failed numerically and were excluded from the meta-gradient "
            f"(tasks {failed[:8]}{'...' if len(failed) > 8 else ''}; worst ending {worst.name}). "
            f"{worst.advice}"
        )
        if self.policy == "raise" or not used.any():
            raise NumericalError(message)
        if self.policy == "warn":
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _mean_gradient(self, theta: Tree, tasks: Task, keys: Array | None) -> tuple[Array, Metrics]:
        """The mean gradient over all devices' tasks as one flat vector, and this device's Metrics."""
        one = lambda args: self._task(theta, *args)  # noqa: E731
        if self.chunk == 1:
            # Mapped without vmap: matrix products without a batch axis are faster on a CPU.
            total, metrics = self._added_up(one, (tasks, keys))
        else:
            chunk = self.chunk and min(self.chunk, _count(tasks))
            mapped = jax.vmap(one) if chunk is None else functools.partial(lax.map, one, batch_size=chunk)
            gradients, metrics = mapped((tasks, keys))
            total = jnp.where(metrics.used[:, None], gradients, 0).sum(0)
        number = metrics.used.sum().astype(total.dtype)
        summed = jnp.append(total, number)
        if self.mesh is not None:
            summed = lax.psum(summed, AXIS)  # the one all-reduce
        # A mean over no task is NaN: 0 would read as convergence.
        return jnp.where(summed[-1] > 0, summed[:-1] / jnp.maximum(summed[-1], 1), jnp.nan), metrics

    def _added_up(self, one: Callable, tasks: tuple) -> tuple[Array, Metrics]:
        """The sum of the used tasks' gradients, of which two are held at a time, and all tasks' Metrics."""
        one = jax.jit(one, inline=True)  # traced once, for its shape and for the loop
        shape = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], tasks))[0]

        def add(total: Array, task: Tree) -> tuple[Array, Metrics]:
            gradient, metrics = one(task)
            return total + jnp.where(metrics.used, gradient, 0), metrics

        return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), tasks)

    def _task(self, theta: Tree, task: Task, key: Key) -> tuple[Array, Metrics]:
        """One task's meta-gradient as a flat vector, and its Metrics (scalars)."""
        learning = Learning(self.problem, functools.partial(_outer_loss, self.query_loss), self.inner)
        found = self.rule.task_gradient(learning, theta, task, key)
        if not hasattr(self.rule, "combine"):
            _require_shape(self.rule, found.gradient, theta)
        gradient = tree.ravel(found.gradient)[0]
        inner, linear = found.inner or UNSOLVED, found.linear or UNSOLVED
        return gradient, Metrics(
            loss=found.loss,
            gradient_norm=jnp.linalg.norm(gradient),
            inner_residual=found.residual,
            inner_steps=inner.stats.steps,
            linear_residual=linear.stats.residual,
            linear_steps=linear.stats.steps,
            negative_curvature=linear.stats.negative_curvature,
            error_estimate=linear.stats.error_estimate,
            error_bound=linear.stats.error_bound,
            inner_status=inner.status,
            linear_status=linear.status,
            used=_usable(found, self.rule.needs_solution),
            measures={} if self.measure is None else self.measure(found.phi, theta, task.asked),
        )


class Options(TypedDict, total=False):
    """The optional fields of `MetaGradient` that every method takes."""

    policy: Policy
    chunk: int | None
    mesh: Mesh | None
    measure: Measure | None
    new_task: Solving | None


def _usable(found: TaskGradient, needs_solution: bool) -> Array:
    """Whether a task is in the mean; see `Metrics.used`."""
    inner, linear = found.inner, found.linear
    used = tree.finite((found.loss, found.gradient, found.residual))
    if inner is not None and needs_solution:
        used &= inner.status.code < int(Ending.DIVERGED)
    if linear is not None:
        # Excluded as well: a linear solve without a single step, or with an answer no better than zero.
        no_step = linear.stats.negative_curvature & (linear.stats.steps == 0)
        failed = jnp.isin(linear.status.code, jnp.array([int(Ending.BREAKDOWN), int(Ending.STAGNATED)]))
        worse = failed & (linear.stats.residual >= 1)  # x = 0 has the residual 1
        spoilt = (linear.status.code >= int(Ending.DIVERGED)) | ~jnp.isfinite(linear.stats.residual)
        used &= ~no_step & ~worse & ~spoilt
    return used


def _outer_loss(query_loss: QueryLoss, phi: Tree, theta: Tree, batch: Tree) -> Array:
    """The query loss; ConfigError where it does not return one floating-point number."""
    try:
        value = query_loss(phi, theta, batch)
    except (TypeError, AttributeError) as error:
        if batch is not None:
            raise
        raise ConfigError(
            f"tasks: expected a query set for the query loss, got None, with which it fails ({error}). Hint: "
            "pass Task(support, query)."
        ) from error
    return require_scalar("query_loss", value)


def _require_shape(rule: TaskRule, gradient: Tree, theta: Tree) -> None:
    """StructureError for a rule whose result is shaped like a task's parameters, where theta is not."""
    if tree.same(gradient, theta):
        return
    name = getattr(rule, "owner", "") or type(rule).__name__
    raise StructureError(
        f"{name}: expected theta shaped like a task's parameters, got {tree.apart(gradient, theta)}. Hint: "
        "use IMAML, MAML or FOMAML, or a head with an output for each class (--domain.head=own)."
    )


def _shaped(problem: Problem, theta: Tree, flat: Array) -> Tree:
    """The mean over tasks, shaped like theta; for rules without `combine`."""
    return tree.ravel(theta)[1](flat)


def _count(tasks: Tree) -> int:
    """How many tasks the leading axes hold; ConfigError where they disagree."""
    counts = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(tasks)}
    if len(counts) != 1 or 0 in counts:
        raise ConfigError(
            "tasks: expected the same leading axis, of tasks, on every leaf of support and query, got "
            f"{tree.shapes(tasks)}."
        )
    return counts.pop()


def require_method(method: object) -> MetaGradient:
    """Checks that an argument is a method.

    Args:
        method: The argument.

    Returns:
        The method.

    Raises:
        ConfigError: If it is none.
    """
    if not isinstance(method, MetaGradient):
        raise ConfigError(
            "train: expected a method such as imaml.IMAML(problem, query_loss, ...), or a recipe such as "
            f"imaml.config.Method('imaml'), got method={method!r}."
        )
    return method
