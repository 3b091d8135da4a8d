"""Estimators that learn from all of a task's data as one batch; they have no query loss.

displacement  theta - phi_k                                                   Reptile
envelope      d/dtheta of the inner optimum's value                           proximal Reptile
jointly       the slope of one loss for all tasks, nothing adapted            transfer, multi-task
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core.errors import StructureError
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..problems.base import Problem, Task, require_anchor
from ..problems.losses import joined
from .base import Learning, TaskGradient, refuse_learned_rate


@dataclass(frozen=True)
class Displacement:
    """Where the inner solver went, theta - phi_k; made by `displacement()`."""

    whole: Callable[[PyTree, PyTree], PyTree] = joined
    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError for a problem that is anchored, or started elsewhere than at theta."""
        if problem.anchored:
            raise StructureError(
                f"displacement() is for plain(loss), which starts at theta; this problem is {problem.kind}. "
                "For proximal(loss, strength) use envelope()."
            )
        refuse_learned_rate(inner, "displacement()")

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """The displacement; leaves that a task does not adapt get the gradient of its loss at phi_k."""
        problem, query_loss, _ = learning
        batch = self.whole(*task)
        start = problem.init(theta, batch, key)
        phi, found = learning.solved(theta, batch, key)
        shared = jax.grad(lambda t: problem.objective(found.value, t, batch))(theta)  # 0 for adapted leaves
        moved = problem.adapt.join(
            jax.tree.map(jnp.subtract, start, found.value), problem.adapt.split(shared)[1]
        )
        return TaskGradient(moved, query_loss(phi, theta, task.query), phi, found.stats.residual, found)


@dataclass(frozen=True)
class Envelope:
    """The gradient of the inner optimum's value; made by `envelope()`."""

    whole: Callable[[PyTree, PyTree], PyTree] = joined
    needs_solution: ClassVar[bool] = True

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError for a problem without an objective or anchor, or with a learned strength."""
        require_anchor(problem)
        if not problem.has_objective:
            raise StructureError(
                f"envelope() needs a problem that minimises something; this one is a {problem.kind}. Use "
                "implicit(GMRES())."
            )
        if problem.learns_more:
            raise StructureError(
                "envelope() with a learned strength drives it to zero, as the optimum's value only falls by "
                "that (and makes a learned noise too small); fix it, or use implicit(...) or evidence(...)."
            )
        refuse_learned_rate(inner, "envelope()")

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """d/dtheta objective(phi, theta) at the phi found; for a proximal problem strength (theta - phi)."""
        problem, query_loss, _ = learning
        batch = self.whole(*task)
        phi, found = learning.solved(theta, batch, key)
        gradient = jax.grad(lambda t: problem.objective(found.value, t, batch))(theta)
        return TaskGradient(gradient, query_loss(phi, theta, task.query), phi, found.stats.residual, found)


def displacement(whole: Callable[[PyTree, PyTree], PyTree] = joined) -> Displacement:
    """The estimator of Reptile, theta - phi_k after k inner steps (Nichol et al. 2018, Algorithm 1).

    Learns from all of a task's data at once: whole makes one batch of support and query. There is no query
    loss in it; it is measured at phi_k all the same. An estimate of no loss's gradient, in units of theta.
    """
    return Displacement(whole)


def envelope(whole: Callable[[PyTree, PyTree], PyTree] = joined) -> Envelope:
    """The estimator of proximal Reptile: the gradient of `min_phi objective(phi, theta)` in theta.

    By the envelope theorem (Danskin 1967) that is the partial derivative at phi*, for a proximal problem
    strength (theta - phi*): the gradient of the Moreau envelope, with no linear solve. Exact at the solution;
    elsewhere off by at most strength |phi - phi*|. whole: as in `displacement`.
    """
    return Envelope(whole)
