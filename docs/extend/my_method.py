"""A rule of your own in one file: the contrastive meta-gradient, which solves no linear system.

    phi(beta)  minimises  objective(phi, theta, support) + beta query_loss(phi, theta, query)
    gradient = (d/dtheta of that minimum at beta  -  the same at -beta) / (2 beta)

By the envelope theorem each derivative in theta is taken at a fixed phi. The error falls with beta^2 (Zucchet
et al. 2022, A contrastive rule for meta-learning; Scellier and Bengio 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Unpack

import jax
import jax.numpy as jnp

import imaml
from imaml.core.fields import PositiveFloat
from imaml.core.tree import Tree
from imaml.meta.base import Learning, RuleBase, TaskGradient
from imaml.meta.gradient import Options
from imaml.meta.system import QueryLoss


@dataclass(frozen=True)
class Contrastive(RuleBase):
    """The contrastive rule.

    Attributes:
        beta: The weight of the query loss in the second minimisation.
    """

    needs_solution: ClassVar[bool] = True  # a task whose inner solve diverged is excluded

    beta: PositiveFloat = 1e-2

    def refuse(self, problem: imaml.Problem, inner: imaml.InnerSolver) -> None:
        """Check that the problem has an objective and an anchor, and the inner rate is fixed."""
        if not (problem.anchored and problem.has_objective):
            raise imaml.StructureError(
                f"Contrastive: problem: expected one with an objective and an anchor, got {problem.kind}. "
                "Hint: use proximal(loss, strength)."
            )
        super().refuse(problem, inner)

    def task_gradient(
        self, learning: Learning, theta: Tree, task: imaml.Task, key: jax.Array | None
    ) -> TaskGradient:
        """Estimate one task's meta-gradient."""
        problem, query_loss, inner = learning
        phi, found = learning.solved(theta, task.support, key)

        def nudged(weight: float) -> Tree:
            """Return the derivative in theta of the minimum with the query loss added, `weight` times."""

            def objective(adapted: Tree, theta: Tree, task: imaml.Task) -> jax.Array:
                query = query_loss(problem.full(adapted, theta), theta, task.query)
                return problem.objective(adapted, theta, task.support) + weight * query

            moved = inner(imaml.stationary(objective), theta, task, found.value, key)
            return jax.grad(objective, argnums=1)(moved.value, theta, task)

        difference = jax.tree.map(jnp.subtract, nudged(self.beta), nudged(-self.beta))
        gradient = jax.tree.map(lambda leaf: leaf / (2 * self.beta), difference)
        loss = query_loss(phi, theta, task.query)
        return TaskGradient(gradient, loss, phi, found.stats.residual, found)


def contrastive_method(
    problem: imaml.Problem, query_loss: QueryLoss, *, inner: imaml.InnerSolver, **options: Unpack[Options]
) -> imaml.MetaGradient:
    """Make a method with the contrastive rule, to be used as `imaml.IMAML(...)` is."""
    return imaml.MetaGradient(problem, query_loss, inner=inner, rule=Contrastive(), **options)


if __name__ == "__main__":
    domain = imaml.sinusoid()
    method = contrastive_method(
        domain.problem(0.5), domain.query_loss, inner=imaml.GradientDescent(0.01, steps=16)
    )
    run = imaml.train(domain, method, imaml.Optimiser("adam", 1e-3), steps=5, tasks=4, progress=False)
    print(imaml.evaluate(run, tasks=10))
