"""Rules that learn from all of a task's data as one batch, and use no query loss.

displacement  theta - phi_k                                Reptile
envelope      d/dtheta of the inner optimum's value        proximal Reptile
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from ..core import tree
from ..core.errors import StructureError
from ..core.tree import Tree
from ..inner.base import InnerSolver
from ..problems.base import Key, Problem, Task, require_anchor
from ..problems.losses import Join, joined
from .base import Learning, RuleBase, TaskGradient


@dataclass(frozen=True)
class OnAllData(RuleBase):
    """A base of estimators that adapt to all of a task's data.

    Args:
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.
    """

    whole: Join = joined

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """Adapt to all of the task's data; the query loss is only measured; see `TaskRule.task_gradient`."""
        problem, query_loss, _ = learning
        batch = task.whole(self.whole)
        start = problem.init(theta, batch, key)
        phi, found = learning.solved(theta, batch, key)
        slope = jax.tree.map(jnp.zeros_like, theta)
        if problem.has_objective:
            slope = jax.grad(lambda t: problem.objective(found.value, t, batch))(theta)
        gradient = self.learned(problem, slope, start, found.value)
        return TaskGradient(gradient, query_loss(phi, theta, task.asked), phi, found.stats.residual, found)

    def learned(self, problem: Problem, slope: Tree, start: Tree, found: Tree) -> Tree:
        """Make the meta-gradient; by default the slope.

        Args:
            problem: The inner problem.
            slope: The derivative of the objective in theta at the adapted parameters found.
            start: Where the inner solver started, adapted parameters.
            found: The adapted parameters found.

        Returns:
            A tree like theta.
        """
        return slope


@dataclass(frozen=True)
class Envelope(OnAllData):
    """The estimator of proximal Reptile: the gradient in theta of ``min_phi objective(phi, theta)``.

    By the envelope theorem it is the partial derivative at phi*. For a proximal problem that is strength
    (theta - phi*), the gradient of the Moreau envelope, without a linear solve. It is exact at the solution;
    elsewhere it is off by at most strength |phi - phi*|.

    Args:
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.

    References:
        Danskin (1967); Zhou et al. (2019), Efficient meta learning via minibatch proximal update.
    """

    owner: ClassVar[str] = "envelope"

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the problem has an objective, an anchor and a fixed strength."""
        require_anchor(problem, "envelope")
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
        super().refuse(problem, inner)


@dataclass(frozen=True)
class Displacement(OnAllData):
    """The estimator of Reptile, theta - phi_k after k inner steps.

    It learns from all of a task's data at once; the query loss is only measured, at phi_k. It estimates the
    gradient of no loss, and has the units of theta. Shared parameters get the gradient of the task's loss at
    phi_k.

    Args:
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.

    References:
        Nichol, Achiam, Schulman (2018), Algorithm 1.
    """

    owner: ClassVar[str] = "displacement"
    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the problem starts at theta."""
        if problem.anchored:
            raise StructureError(
                "displacement: expected a problem that starts at theta, such as plain(loss), got "
                f"{problem.kind}. Hint: for proximal(loss, strength) use envelope()."
            )
        if problem.adapt.choice is not None and not problem.has_objective:
            raise StructureError(
                "displacement: expected a problem with an objective, of which shared parameters get the "
                f"gradient, got {problem.kind}. Hint: adapt all parameters, or use implicit(GMRES())."
            )
        super().refuse(problem, inner)

    def learned(self, problem: Problem, slope: Tree, start: Tree, found: Tree) -> Tree:
        """Return the displacement, and the slope of shared parameters."""
        return problem.adapt.join(tree.minus(start, found), problem.adapt.split(slope)[1])


displacement = Displacement
envelope = Envelope
