"""The linear system that the implicit rule solves, at one point phi of one task.

A^T u = d query_loss / d phi,  A = dF/dphi         meta-gradient = d query_loss / d theta - (dF/dtheta)^T u
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.solution import Solution
from ..core.tree import PyTree
from ..linear.base import LinearSolver
from ..problems.base import Problem
from ..problems.linearised import anchor_of, solve_anchored


class Judged(NamedTuple):
    """What a query loss says of a phi (the full tree): its value, d/dphi, and d/dtheta at fixed phi."""

    loss: Array
    slope: PyTree
    direct: PyTree


Judge = Callable[[PyTree], Judged]


class QueryJudge(NamedTuple):
    """The judge that a query loss (phi, theta, batch) -> scalar makes of one task's query batch."""

    query_loss: Callable
    theta: PyTree
    batch: PyTree

    def __call__(self, phi: PyTree) -> Judged:
        """The query loss at phi, and its derivatives."""
        value = jax.value_and_grad(self.query_loss, argnums=(0, 1))
        loss, (slope, direct) = value(phi, self.theta, self.batch)
        return Judged(loss, slope, direct)


def judge_of(query_loss: Callable, theta: PyTree, batch: PyTree) -> Judge:
    """The judge that a query loss (phi, theta, batch) -> scalar makes of one task's query batch."""
    return QueryJudge(query_loss, theta, batch)


def constant(cotangent: PyTree, theta: PyTree) -> Judge:
    """The judge that says the same of every phi: a given cotangent, and nothing direct."""
    nothing = jax.tree.map(jnp.zeros_like, theta)
    return lambda phi: Judged(jnp.zeros(()), cotangent, nothing)


@dataclass(frozen=True)
class System:
    """A^T u = right at one point. Trees like the adapted leaves, but for theta's.

    residual: F(phi). product: u -> A^T u. right: d query_loss / d phi. through: u -> -(dF/dtheta)^T u, shaped
    like theta. apart: the rest of the meta-gradient, which does not depend on u. loss: the query loss.
    structure, anchor: of A, as a `LinearSolver` takes them.
    """

    residual: PyTree
    product: Callable[[PyTree], PyTree]
    right: PyTree
    through: Callable[[PyTree], PyTree]
    apart: PyTree
    loss: Array
    structure: str
    anchor: PyTree = None

    def solve(self, linear: LinearSolver) -> Solution:
        """A linear solver's Solution of the system."""
        return solve_anchored(linear, self.product, self.right, self.structure, self.anchor)

    def gradient(self, u: PyTree) -> PyTree:
        """The meta-gradient that a solution u means, shaped like theta."""
        return jax.tree.map(jnp.add, self.apart, self.through(u))


class Case(NamedTuple):
    """One task as the implicit rule sees it: its problem, theta, its support batch, and what judges a phi."""

    problem: Problem
    theta: PyTree
    batch: PyTree
    judge: Judge

    def residual(self, adapted: PyTree) -> PyTree:
        """F at a task's adapted leaves."""
        return self.problem.residual(adapted, self.theta, self.batch)

    def slope(self, adapted: PyTree) -> PyTree:
        """F as a function whose derivative is the objective's Hessian, also where A is Gauss-Newton's."""
        return self.problem.slope(adapted, self.theta, self.batch)

    def system(self, adapted: PyTree) -> System:
        """The system at a task's adapted leaves; the linearisation gives F for free."""
        problem, theta, batch, judge = self
        if problem.structure == "general":
            value, pull = jax.vjp(self.residual, adapted)
            product = lambda u: pull(u)[0]  # noqa: E731
        else:
            value, product = jax.linearize(self.residual, adapted)  # A is its own transpose
        loss, slope, apart = judge(problem.full(adapted, theta))

        def through(u: PyTree) -> PyTree:
            _, pull_theta = jax.vjp(lambda t: problem.residual(adapted, t, batch), theta)
            return pull_theta(jax.tree.map(jnp.negative, u))[0]

        if problem.adapt.choice is not None:  # shared leaves are theta's own: their cotangent passes on
            _, pull_shared = jax.vjp(lambda t: problem.full(lax.stop_gradient(adapted), t), theta)
            apart = jax.tree.map(jnp.add, apart, pull_shared(slope)[0])
        anchor = anchor_of(problem, adapted, theta)
        right = problem.split(slope)
        return System(value, product, right, through, apart, loss, problem.structure, anchor)
