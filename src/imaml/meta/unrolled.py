"""Rules that differentiate through the inner steps, or leave them out."""

from dataclasses import dataclass
from typing import ClassVar

import jax
from jax import lax

from ..core.solution import Solution
from ..inner.base import InnerSolver, Instance
from ..problems.base import Problem
from .base import Differentiated, require_reversible


@dataclass(frozen=True)
class Unrolled(Differentiated):
    """The rule of MAML: exact derivatives of the steps taken. Memory grows with their number.

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> problem = imaml.plain(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2))
        >>> inner = imaml.GradientDescent(0.5, steps=2)
        >>> phi = lambda theta: imaml.solve(problem, theta, jnp.ones(1), inner=inner, rule=imaml.unrolled())
        >>> jax.jacobian(phi)(jnp.zeros(1))
        Array([[0.25]], dtype=float32)

    References:
        Finn, Abbeel, Levine (2017), Model-agnostic meta-learning.
    """

    owner: ClassVar[str] = "unrolled"
    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that reverse mode can go through the inner solver; its learning rate may be learned."""
        hint = "GradientDescent or Descent with steps= and no tolerance, or the rule implicit(...)"
        require_reversible(self.owner, "inner", inner, hint)

    def solution(self, inner: InnerSolver, task: Instance) -> Solution:
        """Solve the problem by the inner solver; derivatives pass through its steps."""
        self.refuse(task.problem, inner)
        return inner(*task)


@dataclass(frozen=True)
class FirstOrder(Differentiated):
    """The rule of first-order MAML: d phi/d theta = d init/d theta, the identity by default.

    References:
        Finn, Abbeel, Levine (2017), section 5.2.
    """

    owner: ClassVar[str] = "first_order"
    needs_solution: ClassVar[bool] = False

    def solution(self, inner: InnerSolver, task: Instance) -> Solution:
        """Solve the problem by the inner solver; the value has the derivatives of where it started."""
        found = inner(*lax.stop_gradient(task))
        passed = lambda p, s: lax.stop_gradient(p) + (s - lax.stop_gradient(s))  # noqa: E731
        return Solution(jax.tree.map(passed, found.value, task.start), found.stats, found.status)


unrolled = Unrolled
first_order = FirstOrder
