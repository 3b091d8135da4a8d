"""One network for all tasks: transfer and multi-task learning."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from ..core.tree import Tree
from ..core.validation import require_scalar
from ..inner.base import InnerSolver
from ..problems.base import Key, Loss, Problem, Task
from ..problems.losses import Join, joined
from .base import Learning, RuleBase, TaskGradient


@dataclass(frozen=True)
class Jointly(RuleBase):
    """The estimator of transfer and multi-task learning: the gradient of one loss on all of a task's data.

    Nothing is adapted in training; a new task is fine-tuned from the theta that results.

    Args:
        loss: (theta, batch) -> scalar.
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.

    References:
        Caruana (1997), Multitask learning.
    """

    owner: ClassVar[str] = "jointly"
    needs_solution: ClassVar[bool] = False

    loss: Loss
    whole: Join = joined

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Accept everything: the problem and its solver are for new tasks, later."""

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """Differentiate the loss on all of the task's data; phi is theta, as nothing is adapted."""
        whole = task.whole(self.whole)
        loss, gradient = jax.value_and_grad(lambda t: require_scalar("loss", self.loss(t, whole)))(theta)
        return TaskGradient(gradient, loss, theta)


jointly = Jointly
