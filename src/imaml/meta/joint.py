"""One network for all tasks: transfer and multi-task learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..problems.base import Key, Loss, Problem, Task
from ..problems.losses import Join, joined
from .base import Learning, TaskGradient


@dataclass(frozen=True)
class Jointly:
    """The gradient of one loss for all tasks; made by `jointly(loss)`."""

    loss: Loss
    whole: Join = joined
    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Accepts everything: the problem and its solver are for new tasks, later.

        Args:
            problem: The inner problem.
            inner: The inner solver.
        """

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Key) -> TaskGradient:
        """The loss's gradient on all of the task's data; phi is theta, as nothing is adapted.

        Args:
            learning: The problem, the query loss and the inner solver.
            theta: The meta-parameters.
            task: One task.
            key: A random key, or None.

        Returns:
            The task's meta-gradient and its statistics.
        """
        loss, gradient = jax.value_and_grad(self.loss)(theta, self.whole(*task))
        return TaskGradient(gradient, loss, theta)


def jointly(loss: Loss, whole: Join = joined) -> Jointly:
    """The estimator of transfer and multi-task learning: the gradient of one loss on all of a task's data.

    Nothing is adapted in training; a new task is fine-tuned from the theta that results.

    Args:
        loss: (theta, batch) -> scalar.
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.

    Returns:
        The estimator.

    References:
        Caruana (1997), Multitask learning.
    """
    return Jointly(loss, whole)
