"""What a rule is, and `solve`."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import jax
from jax import Array

from ..core.errors import ConfigError, StructureError
from ..core.solution import Solution
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..problems.base import Problem, Task
from ..problems.precision import Learned


class Rule(Protocol):
    """Makes the solution of a problem a differentiable function of theta and the batch."""

    def __call__(
        self,
        problem: Problem,
        inner: InnerSolver,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree,
        key: Array | None,
    ) -> PyTree:
        """The adapted leaves at the solution."""
        ...


class TaskGradient(NamedTuple):
    """One task's meta-gradient, shaped like theta, and what is known of it.

    loss: the query loss at phi, the full tree of adapted parameters. residual: the norm |F(phi)|. inner,
    linear: how the solves ended; None for rules that solve no task, or no linear system.
    """

    gradient: PyTree
    loss: Array
    phi: PyTree
    residual: Array | None = None
    inner: Solution | None = None
    linear: Solution | None = None


class Learning(NamedTuple):
    """What is learned by: one task's inner problem, the loss (phi, theta, batch) that judges, what solves."""

    problem: Problem
    query_loss: Callable
    inner: InnerSolver

    def solved(self, theta: PyTree, batch: PyTree, key: Array | None) -> tuple[PyTree, Solution]:
        """The full tree of parameters adapted to a batch, and the inner Solution."""
        start = self.problem.init(theta, batch, key)
        found = self.inner(self.problem, theta, batch, start, key)
        return self.problem.full(found.value, theta), found


class Estimator(Protocol):
    """Estimates one task's meta-gradient; a rule, or one of those that use no query set."""

    needs_solution: ClassVar[
        bool
    ]  # whether an inner solve that moved away from a solution spoils the estimate

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError, with advice, for a problem or solver that it is not made for."""
        ...

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """One task's meta-gradient."""
        ...


class Passing(Protocol):
    """A rule whose inner Solution automatic differentiation goes through."""

    def solution(
        self,
        problem: Problem,
        inner: InnerSolver,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree,
        key: Array | None,
    ) -> Solution:
        """The inner Solution, its value with the derivatives that the rule gives it."""
        ...


def differentiated(
    rule: Passing, learning: Learning, theta: PyTree, task: Task, key: Array | None
) -> TaskGradient:
    """The meta-gradient by automatic differentiation of the query loss at the rule's solution."""
    problem, query_loss, inner = learning

    def outer(theta: PyTree) -> tuple[Array, tuple[PyTree, Solution]]:
        start = problem.init(theta, task.support, key)
        found = rule.solution(problem, inner, theta, task.support, start, key)
        phi = problem.full(found.value, theta)
        return query_loss(phi, theta, task.query), (phi, found)

    (loss, (phi, found)), gradient = jax.value_and_grad(outer, has_aux=True)(theta)
    return TaskGradient(gradient, loss, phi, found.stats.residual, found)


def refuse_learned_rate(inner: InnerSolver, rule: str) -> None:
    """Refuses a learned inner rate under a rule that does not see the steps (StructureError)."""
    if isinstance(getattr(inner, "learning_rate", None), Learned):
        raise StructureError(
            f"{rule} learns nothing of how a task is solved, so the inner rate cannot be learned; accepted "
            "is a number, or unrolled() on plain(loss), which is MetaSGD."
        )


def solve(
    problem: Problem,
    theta: PyTree,
    batch: PyTree,
    *,
    inner: InnerSolver,
    rule: Rule,
    phi0: PyTree = None,
    key: Array | None = None,
) -> PyTree:
    """The solution phi of one task's problem, a full tree, differentiable by `rule`.

    phi0: where the solver starts (a full tree), by default problem.init(theta, batch, key). Shared leaves
    (those that `adapt` leaves out) are theta's own. For many tasks, `jax.vmap` over `batch`.

    >>> import imaml, jax, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> inner, rule = imaml.GradientDescent(0.5, steps=60), imaml.implicit(imaml.CG(steps=2))
    >>> phi = lambda theta: imaml.solve(problem, theta, jnp.ones(1), inner=inner, rule=rule)
    >>> jax.jacobian(phi)(jnp.zeros(1))
    Array([[0.5]], dtype=float32)
    """
    if not callable(rule):
        raise ConfigError(f"solve: rule={rule!r}; pass implicit(linear), unrolled() or first_order().")
    start = problem.init(theta, batch, key) if phi0 is None else problem.split(phi0)
    return problem.full(rule(problem, inner, theta, batch, start, key), theta)
