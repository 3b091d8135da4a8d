"""Estimators that learn from all of a task's data as one batch, and use no query loss.

displacement  theta - phi_k                                Reptile
envelope      d/dtheta of the inner optimum's value        proximal Reptile
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ..core.errors import StructureError
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..problems.base import Key, Problem, Task, require_anchor
from ..problems.losses import Join, joined
from .base import Learning, TaskGradient, refuse_learned_rate


@dataclass(frozen=True)
class Displacement:
    """The displacement theta - phi_k of the inner solver; made by `displacement()`."""

    whole: Join = joined
    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Checks that the problem starts at theta.

        Args:
            problem: The inner problem.
            inner: The inner solver.

        Raises:
            StructureError: If it is anchored, or the inner rate is learned.
        """
        if problem.anchored:
            raise StructureError(
                "displacement: expected a problem that starts at theta, such as plain(loss), got "
                f"{problem.kind}. Hint: for proximal(loss, strength) use envelope()."
            )
        refuse_learned_rate(inner, "displacement()")

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Key) -> TaskGradient:
        """The displacement; shared parameters get the gradient of the task's loss at phi_k.

        Args:
            learning: The problem, the query loss and the inner solver.
            theta: The meta-parameters.
            task: One task.
            key: A random key, or None.

        Returns:
            The task's meta-gradient and its statistics.
        """
        problem, query_loss, _ = learning
        batch = self.whole(*task)
        start = problem.init(theta, batch, key)
        phi, found = learning.solved(theta, batch, key)
        shared = jax.grad(lambda t: problem.objective(found.value, t, batch))(
            theta
        )  # 0 for adapted parameters
        moved = problem.adapt.join(
            jax.tree.map(jnp.subtract, start, found.value), problem.adapt.split(shared)[1]
        )
        return TaskGradient(moved, query_loss(phi, theta, task.query), phi, found.stats.residual, found)


@dataclass(frozen=True)
class Envelope:
    """The gradient of the inner optimum's value; made by `envelope()`."""

    whole: Join = joined
    needs_solution: ClassVar[bool] = True

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Checks that the problem has an objective, an anchor and a fixed strength.

        Args:
            problem: The inner problem.
            inner: The inner solver.

        Raises:
            StructureError: If it has not, or the inner rate is learned.
        """
        require_anchor(problem)
        if not problem.has_objective:
            raise StructureError(
                f"envelope: expected a problem with an objective, got {problem.kind}. Hint: use "
                "implicit(GMRES())."
            )
        if problem.learns_more:
            raise StructureError(
                "envelope: expected a fixed strength, got a learned strength or noise: the optimum's value "
                "falls as the strength does, so it goes to zero. Hint: fix it, or use implicit(...) or "
                "evidence(...)."
            )
        refuse_learned_rate(inner, "envelope()")

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Key) -> TaskGradient:
        """The derivative of objective(phi, theta) in theta at the phi found; see `envelope`.

        Args:
            learning: The problem, the query loss and the inner solver.
            theta: The meta-parameters.
            task: One task.
            key: A random key, or None.

        Returns:
            The task's meta-gradient and its statistics.
        """
        problem, query_loss, _ = learning
        batch = self.whole(*task)
        phi, found = learning.solved(theta, batch, key)
        gradient = jax.grad(lambda t: problem.objective(found.value, t, batch))(theta)
        return TaskGradient(gradient, query_loss(phi, theta, task.query), phi, found.stats.residual, found)


def displacement(whole: Join = joined) -> Displacement:
    """The estimator of Reptile, theta - phi_k after k inner steps.

    It learns from all of a task's data at once; the query loss is only measured, at phi_k. It estimates the
    gradient of no loss, and has the units of theta.

    Args:
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.

    Returns:
        The estimator.

    References:
        Nichol, Achiam, Schulman (2018), Algorithm 1.
    """
    return Displacement(whole)


def envelope(whole: Join = joined) -> Envelope:
    """The estimator of proximal Reptile: the gradient in theta of ``min_phi objective(phi, theta)``.

    By the envelope theorem it is the partial derivative at phi*. For a proximal problem that is strength
    (theta - phi*), the gradient of the Moreau envelope, without a linear solve. It is exact at the solution;
    elsewhere it is off by at most strength |phi - phi*|.

    Args:
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.

    Returns:
        The estimator.

    References:
        Danskin (1967); Zhou et al. (2019), Efficient meta learning via minibatch proximal update.
    """
    return Envelope(whole)
