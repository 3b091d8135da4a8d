"""Meta-learning methods: (theta, tasks, key) -> (meta_gradient, Metrics)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from ..core import tree
from ..core.content import ByContent
from ..core.errors import ConfigError, NumericalError
from ..core.solution import Ending, Solution, Status, bounded
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..problems.base import Problem, Task
from .base import Estimator, Learning
from .certificate import Certificate
from .implicit import Implicit

POLICIES = ("raise", "warn", "skip")
AXIS = "tasks"


class Metrics(NamedTuple):
    """What is known of a meta-gradient, task by task; every array has shape (tasks,).

    loss: the query loss at phi*. gradient_norm: of the task's own meta-gradient. inner_residual: |F(phi*)|.
    inner_steps, linear_steps: iterations taken. linear_residual: |b - A u| / |b|. negative_curvature: whether
    the linear solver saw it. error_estimate, error_bound: the norm of the meta-gradient's error, estimated
    (NaN where that was not asked for), and bounded where `certified`. inner_status, linear_status: how the
    solves ended. Fields of what the rule does not make are None. used: whether the task is in the mean; a
    task is left out where its loss, gradient or residuals are not finite, where the inner solve moved away
    from the solution that the rule needs, where the linear solver broke down with an answer worse than zero,
    or where it met negative curvature in its very first direction and so has nothing to give. measures: what
    the method's `measure` returned.
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
        """Whether each task's error_bound bounds its error, shape (tasks,)."""
        code = None if self.linear_status is None else self.linear_status.certificate
        return jnp.zeros(self.used.shape, bool) if code is None else bounded(code)


class View(NamedTuple):
    """How a theta that is not shaped like a task's parameters is made, and what a new task starts at.

    wide: key -> fresh theta. narrow: theta -> parameters shaped like phi; narrow(narrow(t)) is narrow(t).
    """

    wide: Callable[[Array], PyTree]
    narrow: Callable[[PyTree], PyTree]


class Solving(NamedTuple):
    """A problem, of the same theta, and what solves it: how new tasks are learned from what was learned.

    Learning can afford few inner steps for each of very many tasks; a new task is solved once, and may want
    smaller steps, more of them, and another strength. Theta does not depend on it.
    """

    problem: Problem
    inner: InnerSolver


@dataclass(frozen=True, kw_only=True, eq=False)
class MetaGradient(ByContent):
    """The mean over tasks of a meta-gradient: what `IMAML`, `MAML`, `FOMAML` and `Reptile` make.

    problem: one task's inner problem. query_loss: (phi, theta, batch) -> scalar. inner: what solves a task.
    rule: how theta learns from it, see `imaml.Rule`. policy: what happens to tasks that fail numerically;
    they are never averaged in: "raise" (NumericalError), "warn", or "skip" (only `Metrics.used` tells).
    Inside jit nothing can be raised: call `check(metrics)` on the host. Where no task at all was used the
    meta-gradient is NaN, never 0, which would look like convergence. chunk: how many tasks are worked on
    at once (None: all). mesh: a mesh with one axis named "tasks" over which the tasks are sharded, with one
    all-reduce a call. measure: (phi, theta, batch) -> dict of scalars, taken on the query batch at phi*.
    view: for a theta that is not shaped like a task's parameters, see `View`. new_task: how
    a new task is solved in evaluation and use, see `Solving`; None for as in learning.
    """

    problem: Problem = field(kw_only=False)
    query_loss: Callable = field(kw_only=False)
    inner: InnerSolver
    rule: Estimator
    policy: str = "warn"
    chunk: int | None = None
    mesh: Mesh | None = None
    measure: Callable | None = None
    view: View | None = None
    new_task: Solving | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        if not isinstance(self.problem, Problem):
            raise ConfigError(
                f"method: problem={self.problem!r}; pass one made by proximal(loss, strength) or its kin."
            )
        for name in ("query_loss", "inner"):
            if not callable(getattr(self, name)):
                raise ConfigError(
                    f"method: {name}={getattr(self, name)!r} cannot be called; see help(imaml.MetaGradient)."
                )
        if not hasattr(self.rule, "estimate"):
            raise ConfigError(
                f"method: rule={self.rule!r}; accepted are implicit(linear), unrolled(), first_order(), "
                "displacement() and envelope()."
            )
        self.rule.refuse(self.problem, self.inner)
        if self.new_task is not None and not (
            isinstance(self.new_task, tuple)
            and len(self.new_task) == 2
            and isinstance(self.new_task[0], Problem)
            and callable(self.new_task[1])
        ):
            raise ConfigError(
                f"method: new_task={self.new_task!r}; accepted is a Solving(problem, inner), or None."
            )
        if self.policy not in POLICIES:
            raise ConfigError(f"method: policy={self.policy!r}; accepted: {', '.join(POLICIES)}.")
        if self.chunk is not None and (not isinstance(self.chunk, int) or self.chunk < 1):
            raise ConfigError(
                f"method: chunk={self.chunk!r}; accepted is a whole number of at least 1, or None."
            )
        if self.mesh is not None and tuple(self.mesh.axis_names) != (AXIS,):
            raise ConfigError(
                f"method: the mesh's axes are {self.mesh.axis_names}; accepted is one, named {AXIS!r}."
            )

    def certifying(self) -> MetaGradient:
        """The same method, its errors bounded; ConfigError where the rule has no certificate."""
        if not isinstance(self.rule, Implicit):
            raise ConfigError(
                f"certify: {type(self.rule).__name__} has no certificate; accepted is the implicit rule of "
                "IMAML."
            )
        return replace(self, rule=replace(self.rule, certificate=self.rule.certificate or Certificate()))

    def init(self, domain: Any, key: Array) -> PyTree:
        """Fresh meta-parameters for a domain's network."""
        if self.view is not None:
            return self.view.wide(key)
        theta = self.problem.parameters(domain.init(key))
        learns = getattr(self.inner, "parameters", None)
        return theta if learns is None else learns(self.problem, theta)

    def mean(self, theta: PyTree) -> PyTree:
        """The network's parameters before adaptation: the part of theta that is shaped like phi."""
        return self.problem.mean(self.start(theta))

    def start(self, theta: PyTree) -> PyTree:
        """What new tasks need of theta, and so what an artefact keeps: theta, or the view's narrow part."""
        return theta if self.view is None else self.view.narrow(theta)

    def kept(self, domain: Any, key: Array) -> PyTree:
        """What an artefact keeps of fresh meta-parameters; needs no data behind the domain."""
        return self.start(self.init(domain, key) if self.view is None else domain.init(key))

    def adapt(self, theta: PyTree, support: PyTree, key: Array | None = None) -> tuple[PyTree, Solution]:
        """The network's parameters adapted to one task, and how the inner solve ended."""
        theta = self.start(theta)
        problem, inner = (self.problem, self.inner) if self.new_task is None else self.new_task
        found = inner(problem, theta, support, problem.init(theta, support, key), key)
        return problem.full(found.value, theta), found

    def at_step(self, step: Any, estimate: Any = True) -> MetaGradient:
        """The method as it is at a step of outer learning, for rules that change; None for as it ends.

        estimate: whether errors are estimated, see `__call__`.
        """
        at = getattr(self.rule, "at_step", None)
        return self if at is None else replace(self, rule=at(step, estimate))

    def __call__(
        self, theta: PyTree, tasks: Task, key: Array | None = None, step: Any = None, estimate: Any = True
    ) -> tuple[PyTree, Metrics]:
        """The meta-gradient, shaped like theta, and Metrics. `tasks` has a leading axis on every leaf.

        The meta-gradient is the mean over the tasks that were used, and NaN where there are none.
        step: of outer learning, for an accuracy that tightens; None for as it ends. estimate: whether errors
        are estimated, a boolean that may be traced; where it is False, `Metrics.error_estimate` is NaN and
        costs nothing.
        """
        count = _count(tasks)
        keys = None if key is None else jax.random.split(key, count)
        if self.mesh is None:
            flat, metrics = self.at_step(step, estimate)._mean(theta, tasks, keys, lambda vector: vector)
        else:
            if count % self.mesh.size:
                raise ConfigError(
                    f"method: {count} tasks cannot be shared evenly by {self.mesh.size} devices; use a "
                    "multiple."
                )
            spread, whole = PartitionSpec(AXIS), PartitionSpec()
            known = isinstance(estimate, bool)  # then it stays so, and what is not wanted is not traced
            at = lambda step, wanted: self.at_step(step, estimate if known else wanted)  # noqa: E731
            # check_vma=False: else a gradient at a replicated theta is summed over devices inside each task.
            share = jax.shard_map(
                lambda t, b, k, *s: at(*s)._mean(t, b, k, lambda vector: lax.psum(vector, AXIS)),
                mesh=self.mesh,
                in_specs=(whole, spread, spread, whole, whole),
                out_specs=(whole, spread),
                check_vma=False,
            )
            flat, metrics = share(theta, tasks, keys, step, None if known else estimate)
        gradient = getattr(self.rule, "combine", _shaped)(self.problem, theta, flat)
        if not isinstance(metrics.used, Tracer):
            self.check(metrics)
        return gradient, metrics

    def check(self, metrics: Metrics) -> None:
        """Acts on excluded tasks by the policy; on the host, after a jitted step.

        Args:
            metrics: What the jitted method returned beside the meta-gradient.

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
            f"{len(failed)} of {used.size} tasks failed numerically and were left out of the meta-gradient "
            f"(tasks {failed[:8]}{'...' if len(failed) > 8 else ''}; worst ending {worst.name}). "
            f"{worst.advice}"
        )
        if self.policy == "raise" or not used.any():
            raise NumericalError(message)
        if self.policy == "warn":
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _mean(self, theta: PyTree, tasks: Task, keys: Any, add_up: Callable) -> tuple[Array, Metrics]:
        """The mean gradient over all devices' tasks as one flat vector, and this device's Metrics."""
        one = lambda args: self._task(theta, *args)  # noqa: E731
        if self.chunk == 1:
            # Mapped without vmap: matrix products without a batch axis are faster on a CPU.
            total, metrics = self._added_up(one, (tasks, keys))
        else:
            if self.chunk is None:
                gradients, metrics = jax.vmap(one)((tasks, keys))
            else:
                chunk = min(self.chunk, _count(tasks))
                gradients, metrics = lax.map(one, (tasks, keys), batch_size=chunk)
            total = jnp.where(metrics.used[:, None], gradients, 0).sum(0)
        number = metrics.used.sum().astype(total.dtype)
        summed = add_up(jnp.append(total, number))  # the one all-reduce
        # A mean over no task is NaN: 0 would read as convergence.
        return jnp.where(summed[-1] > 0, summed[:-1] / jnp.maximum(summed[-1], 1), jnp.nan), metrics

    def _added_up(self, one: Callable, tasks: tuple) -> tuple[Array, Metrics]:
        """The sum of the used tasks' gradients, of which two are held at a time, and all tasks' Metrics."""
        one = jax.jit(one, inline=True)  # traced once, for its shape and for the loop
        shape = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], tasks))[0]

        def add(total: Array, task: PyTree) -> tuple[Array, Metrics]:
            gradient, metrics = one(task)
            return total + jnp.where(metrics.used, gradient, 0), metrics

        return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), tasks)

    def _task(self, theta: PyTree, task: Task, key: Array | None) -> tuple[Array, Metrics]:
        """One task's meta-gradient as a flat vector, and its Metrics (scalars)."""
        learning = Learning(self.problem, self.query_loss, self.inner)
        found = self.rule.estimate(learning, theta, task, key)
        gradient = tree.ravel(found.gradient)[0]
        inner, linear = found.inner, found.linear
        used = tree.finite((found.loss, found.gradient, found.residual))
        if inner is not None and self.rule.needs_solution:
            used &= inner.status.code < int(Ending.DIVERGED)
        if linear is not None:
            nothing = linear.stats.negative_curvature & (linear.stats.steps == 0)
            worse = (linear.status.code == int(Ending.BREAKDOWN)) & (linear.stats.residual > 1)
            spoilt = (linear.status.code >= int(Ending.DIVERGED)) | ~jnp.isfinite(linear.stats.residual)
            used &= ~nothing & ~worse & ~spoilt
        measures = {} if self.measure is None else self.measure(found.phi, theta, task.query)
        return gradient, Metrics(
            found.loss,
            jnp.linalg.norm(gradient),
            found.residual,
            None if inner is None else inner.stats.steps,
            None if linear is None else linear.stats.residual,
            None if linear is None else linear.stats.steps,
            None if linear is None else linear.stats.negative_curvature,
            None if linear is None else linear.stats.error_estimate,
            None if linear is None else linear.stats.error_bound,
            None if inner is None else inner.status,
            None if linear is None else linear.status,
            used,
            measures,
        )


def _shaped(problem: Problem, theta: PyTree, flat: Array) -> PyTree:
    """What most rules make of the mean over tasks: itself, shaped like theta."""
    return tree.ravel(theta)[1](flat)


def _count(tasks: PyTree) -> int:
    """How many tasks the leading axes hold; ConfigError where they disagree."""
    counts = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(tasks)}
    if len(counts) != 1 or 0 in counts:
        raise ConfigError(
            f"tasks: every leaf of support and query needs the same leading axis, the tasks; the leaves are "
            f"{tree.shapes(tasks)}."
        )
    return counts.pop()
