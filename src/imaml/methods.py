"""Meta-learning methods: (theta, tasks, key) -> (meta_gradient, Metrics)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.sharding import Mesh, PartitionSpec

from . import tree
from .errors import ConfigError, NumericalError
from .inner import InnerSolver
from .linear import LinearSolver, refuse_structure
from .problem import Problem, require_anchor
from .rules import implicit_vjp_at
from .solution import Ending, Status

POLICIES = ("raise", "warn", "skip")
AXIS = "tasks"


class Task(NamedTuple):
    """Tasks to learn from: `support` is learned from, `query` is scored; any trees, leading axis: tasks."""

    support: Any
    query: Any


class Metrics(NamedTuple):
    """What is known of a meta-gradient, task by task; every array has shape (tasks,).

    loss: the query loss at phi*. inner_residual: |F(phi*)|. inner_steps, linear_steps: iterations taken.
    linear_residual: |b - A u| / |b|. negative_curvature: whether the linear solver saw it. inner_status,
    linear_status: how the solves ended. used: whether the task is in the mean; a task is left out where its
    loss, gradient or residuals are not finite, where the linear solver broke down with an answer worse than
    zero, or where it met negative curvature in its very first direction and so has nothing to give.
    measures: what the method's `measure` returned.
    """

    loss: Array
    inner_residual: Array
    inner_steps: Array
    linear_residual: Array
    linear_steps: Array
    negative_curvature: Array
    inner_status: Status
    linear_status: Status
    used: Array
    measures: dict[str, Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class IMAML:
    """Implicit MAML: the mean over tasks of the implicit meta-gradient (paper, Algorithms 1 and 2).

    problem: one task's inner problem (usually `proximal`). query_loss: (phi, theta, batch) -> scalar.
    inner, linear: how well each task is solved (delta) and its linear system (delta'). policy: what happens
    to tasks that fail numerically; they are never averaged in: "raise" (NumericalError), "warn", or "skip"
    (only `Metrics.used` tells). Inside jit nothing can be raised: call `check(metrics)` on the host. chunk:
    how many tasks are worked on at once (None: all). mesh: a mesh with one axis named "tasks" over which the
    tasks are sharded, with one all-reduce a call. measure: (phi, theta, batch) -> dict of scalars, taken on
    the query batch at phi*.

    The result is the gradient of `theta`, shaped like it: the direct term plus `implicit_vjp`.

    >>> import imaml, jax, jax.numpy as jnp
    >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
    >>> method = imaml.IMAML(imaml.proximal(loss, 1.0), lambda phi, theta, x: loss(phi, x),
    ...                      inner=imaml.GradientDescent(0.5, steps=30), linear=imaml.CG(steps=2))
    >>> tasks = imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1)))
    >>> gradient, metrics = method(jnp.zeros(1), tasks, jax.random.key(0))
    >>> gradient
    Array([-0.25], dtype=float32)
    """

    problem: Problem = field(kw_only=False)
    query_loss: Callable = field(kw_only=False)
    inner: InnerSolver
    linear: LinearSolver
    policy: str = "warn"
    chunk: int | None = None
    mesh: Mesh | None = None
    measure: Callable | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        if not isinstance(self.problem, Problem):
            raise ConfigError(
                f"IMAML: problem={self.problem!r}; pass one made by proximal(loss, strength) or its kin."
            )
        for name in ("query_loss", "inner", "linear"):
            if not callable(getattr(self, name)):
                raise ConfigError(
                    f"IMAML: {name}={getattr(self, name)!r} cannot be called; see help(imaml.IMAML)."
                )
        require_anchor(self.problem)
        refuse_structure(self.linear, self.problem.structure)
        if self.policy not in POLICIES:
            raise ConfigError(f"IMAML: policy={self.policy!r}; accepted: {', '.join(POLICIES)}.")
        if self.chunk is not None and (not isinstance(self.chunk, int) or self.chunk < 1):
            raise ConfigError(
                f"IMAML: chunk={self.chunk!r}; accepted is a whole number of at least 1, or None."
            )
        if self.mesh is not None and tuple(self.mesh.axis_names) != (AXIS,):
            raise ConfigError(
                f"IMAML: the mesh's axes are {self.mesh.axis_names}; accepted is one, named {AXIS!r}."
            )

    def __call__(self, theta: Any, tasks: Task, key: Array | None = None) -> tuple[Any, Metrics]:
        """The meta-gradient, shaped like theta, and Metrics. `tasks` has a leading axis on every leaf."""
        count = _count(tasks)
        keys = None if key is None else jax.random.split(key, count)
        if self.mesh is None:
            flat, metrics = self._mean(theta, tasks, keys, lambda vector: vector)
        else:
            if count % self.mesh.size:
                raise ConfigError(
                    f"IMAML: {count} tasks cannot be shared evenly by {self.mesh.size} devices; use a "
                    "multiple."
                )
            spread, whole = PartitionSpec(AXIS), PartitionSpec()
            # check_vma=False: else a gradient at a replicated theta is summed over devices inside each task.
            share = jax.shard_map(
                lambda t, b, k: self._mean(t, b, k, lambda vector: lax.psum(vector, AXIS)),
                mesh=self.mesh,
                in_specs=(whole, spread, spread),
                out_specs=(whole, spread),
                check_vma=False,
            )
            flat, metrics = share(theta, tasks, keys)
        gradient = tree.ravel(theta)[1](flat)
        if not isinstance(metrics.used, Tracer):
            self.check(metrics)
        return gradient, metrics

    def check(self, metrics: Metrics) -> None:
        """Acts on failed tasks by the policy; on the host, after a jitted step.

        Where every task failed there is no gradient at all, and NumericalError is raised under any policy.
        """
        used = np.asarray(metrics.used)
        if used.all():
            return
        failed = [int(i) for i in np.flatnonzero(~used)]
        codes = [np.asarray(status.code) for status in (metrics.inner_status, metrics.linear_status)]
        worst = Ending(int(max(code[~used].max() for code in codes)))
        if worst <= Ending.STEPS_DONE:  # both solves went well, so it is the query loss or its gradient
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

    def _mean(self, theta: Any, tasks: Task, keys: Any, add_up: Callable) -> tuple[Array, Metrics]:
        """The mean gradient over all devices' tasks as one flat vector, and this device's Metrics."""
        one = lambda args: self._task(theta, *args)  # noqa: E731
        if self.chunk is None:
            gradients, metrics = jax.vmap(one)((tasks, keys))
        else:
            # A chunk of one is mapped without vmap: matrix products without a batch axis are faster on a CPU.
            chunk = None if self.chunk == 1 else min(self.chunk, _count(tasks))
            gradients, metrics = lax.map(one, (tasks, keys), batch_size=chunk)
        total = jnp.where(metrics.used[:, None], gradients, 0).sum(0)
        number = metrics.used.sum().astype(total.dtype)
        summed = add_up(jnp.append(total, number))  # the one all-reduce
        return summed[:-1] / jnp.maximum(summed[-1], 1), metrics

    def _task(self, theta: Any, task: Task, key: Array | None) -> tuple[Array, Metrics]:
        """One task's meta-gradient as a flat vector, and its Metrics (scalars)."""
        problem = self.problem
        start = problem.init(theta, task.support, key)
        inner = self.inner(problem, theta, task.support, start, key)
        phi = problem.full(inner.value, theta)
        loss, (slope, direct) = jax.value_and_grad(self.query_loss, argnums=(0, 1))(phi, theta, task.query)
        through, linear, residual = implicit_vjp_at(
            problem, phi, theta, task.support, slope, linear=self.linear
        )
        gradient = tree.ravel(jax.tree.map(jnp.add, direct, through))[0]
        size = tree.norm(residual)
        nothing = linear.stats.negative_curvature & (linear.stats.steps == 0)
        worse = (linear.status.code == int(Ending.BREAKDOWN)) & (linear.stats.residual > 1)
        worst = jnp.maximum(inner.status.code, linear.status.code)
        failed = worst >= int(Ending.DIVERGED)
        whole = tree.finite((loss, gradient, size, linear.stats.residual))
        used = whole & ~nothing & ~worse & ~failed
        measures = {} if self.measure is None else self.measure(phi, theta, task.query)
        return gradient, Metrics(
            loss,
            size,
            inner.stats.steps,
            linear.stats.residual,
            linear.stats.steps,
            linear.stats.negative_curvature,
            inner.status,
            linear.status,
            used,
            measures,
        )


def _count(tasks: Any) -> int:
    """How many tasks the leading axes hold; ConfigError where they disagree."""
    counts = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(tasks)}
    if len(counts) != 1 or 0 in counts:
        raise ConfigError(
            f"tasks: every leaf of support and query needs the same leading axis, the tasks; the leaves are "
            f"{tree.shapes(tasks)}."
        )
    return counts.pop()
