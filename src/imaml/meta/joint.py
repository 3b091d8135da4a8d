"""One network for all tasks: transfer and multi-task learning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
from jax import Array

from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..problems.base import Problem, Task
from ..problems.losses import joined
from .base import Learning, TaskGradient


@dataclass(frozen=True)
class Jointly:
    """The gradient of one loss for all tasks; made by `jointly(loss)`."""

    loss: Callable[[PyTree, PyTree], Array]
    whole: Callable[[PyTree, PyTree], PyTree] = joined
    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Nothing is refused: the problem and its solver are for new tasks, later."""

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """The loss's gradient on all of the task's data; phi is theta, as nothing is adapted."""
        loss, gradient = jax.value_and_grad(self.loss)(theta, self.whole(*task))
        return TaskGradient(gradient, loss, theta)


def jointly(
    loss: Callable[[PyTree, PyTree], Array], whole: Callable[[PyTree, PyTree], PyTree] = joined
) -> Jointly:
    """The estimator of transfer and multi-task learning: the gradient of loss(theta, batch), all of a task's.

    Nothing is adapted while it learns; new tasks are fine-tuned from the theta that comes out. whole: as in
    `displacement`.
    """
    return Jointly(loss, whole)
