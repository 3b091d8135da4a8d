"""The linear system that the implicit rule solves, at one phi of one task.

A^T u = d query_loss / d phi,  A = dF/dphi         meta-gradient = d query_loss / d theta - (dF/dtheta)^T u
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.solution import Solution
from ..core.tree import Tree
from ..linear.base import LinearSolver
from ..problems.base import Problem
from ..problems.linearised import Known, solve_known

QueryLoss = Callable[[Tree, Tree, Tree], Array]  # (phi, theta, batch) -> scalar


class OuterValue(NamedTuple):
    """The outer loss at one phi.

    Attributes:
        loss: Its value, a scalar.
        slope: Its gradient in phi, a full tree.
        direct: Its gradient in theta at fixed phi, shaped like theta.
    """

    loss: Array
    slope: Tree
    direct: Tree


OuterLoss = Callable[[Tree], OuterValue]


class BoundQueryLoss(NamedTuple):
    """The outer loss of one task, a query loss on the task's query batch.

    Attributes:
        query_loss: (phi, theta, batch) -> scalar.
        theta: The meta-parameters.
        batch: The query set.
    """

    query_loss: QueryLoss
    theta: Tree
    batch: Tree

    def __call__(self, phi: Tree) -> OuterValue:
        """The query loss and its gradients.

        Args:
            phi: The full tree of adapted parameters.

        Returns:
            The value and the gradients in phi and in theta.
        """
        value = jax.value_and_grad(self.query_loss, argnums=(0, 1))
        loss, (slope, direct) = value(phi, self.theta, self.batch)
        return OuterValue(loss, slope, direct)


outer_loss_of = BoundQueryLoss


def linear_outer_loss(cotangent: Tree, theta: Tree) -> OuterLoss:
    """An outer loss with the same gradient at every phi, and none in theta.

    Args:
        cotangent: The gradient in phi, a full tree.
        theta: The meta-parameters, of which only shapes matter.

    Returns:
        A function phi -> `OuterValue`.
    """
    direct = jax.tree.map(jnp.zeros_like, theta)
    return lambda phi: OuterValue(jnp.zeros(()), cotangent, direct)


class System(NamedTuple):
    """The system A^T u = right at one phi; trees are like the adapted parameters, unless they are theta's.

    Attributes:
        residual: F(phi).
        product: u -> A^T u.
        right: The outer loss's gradient in phi.
        through: u -> -(dF/dtheta)^T u, shaped like theta.
        direct: The part of the meta-gradient that does not depend on u, shaped like theta.
        loss: The outer loss, a scalar.
        structure: The structure of A.
        known: What the problem knows of A besides products.
    """

    residual: Tree
    product: Callable[[Tree], Tree]
    right: Tree
    through: Callable[[Tree], Tree]
    direct: Tree
    loss: Array
    structure: str
    known: Known = Known()

    def solve(self, linear: LinearSolver) -> Solution:
        """Solves the system.

        Args:
            linear: The linear solver.

        Returns:
            The Solution u.
        """
        return solve_known(linear, self.product, self.right, self.structure, self.known)

    def gradient(self, u: Tree) -> Tree:
        """The meta-gradient for a solution of the system.

        Args:
            u: The solution.

        Returns:
            direct + through(u), shaped like theta.
        """
        return jax.tree.map(jnp.add, self.direct, self.through(u))


class Case(NamedTuple):
    """One task as the implicit rule sees it.

    Attributes:
        problem: The inner problem.
        theta: The meta-parameters.
        batch: The support set.
        outer: The outer loss, phi -> `OuterValue`.
    """

    problem: Problem
    theta: Tree
    batch: Tree
    outer: OuterLoss

    def residual(self, adapted: Tree) -> Tree:
        """F at given adapted parameters.

        Args:
            adapted: The adapted parameters.

        Returns:
            F, a tree like them.
        """
        return self.problem.residual(adapted, self.theta, self.batch)

    def slope(self, adapted: Tree) -> Tree:
        """F as a program whose derivative is the objective's Hessian, also where A is a Gauss-Newton matrix.

        Args:
            adapted: The adapted parameters.

        Returns:
            F, a tree like them.
        """
        return self.problem.slope(adapted, self.theta, self.batch)

    def system(self, adapted: Tree) -> System:
        """The linear system at given adapted parameters; the linearisation computes F as well.

        Args:
            adapted: The adapted parameters.

        Returns:
            The system.
        """
        problem, theta, batch, outer = self
        if problem.structure == "general":
            value, pull = jax.vjp(self.residual, adapted)
            product = lambda u: pull(u)[0]  # noqa: E731
        else:
            value, product = jax.linearize(self.residual, adapted)  # A is its own transpose
        loss, slope, direct = outer(problem.full(adapted, theta))

        def through(u: Tree) -> Tree:
            _, pull_theta = jax.vjp(lambda t: problem.residual(adapted, t, batch), theta)
            return pull_theta(jax.tree.map(jnp.negative, u))[0]

        if problem.adapt.choice is not None:  # shared parameters are theta's own: their cotangent passes on
            _, pull_shared = jax.vjp(lambda t: problem.full(lax.stop_gradient(adapted), t), theta)
            direct = jax.tree.map(jnp.add, direct, pull_shared(slope)[0])
        known = Known.of(problem, adapted, theta, batch)
        right = problem.split(slope)
        return System(value, product, right, through, direct, loss, problem.structure, known)
