"""Rules that differentiate through the inner steps, or ignore them."""

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
from jax import lax

from ..core.errors import StructureError
from ..core.solution import Solution
from ..inner.base import InnerSolver, Instance
from ..problems.base import Problem
from .base import Differentiated, require_reversible


@dataclass(frozen=True)
class Unrolled(Differentiated):
    """The rule of MAML: exact derivatives of the steps taken. Memory grows with their number.

    They are those of the objective's gradient, also where the problem's curvature is Gauss-Newton's.

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
        if problem.curvature == "gauss-newton" and getattr(inner, "linearises", False):
            raise StructureError(
                f"{self.owner}: inner: expected a solver without linear systems for Gauss-Newton curvature, "
                f"whose matrix has no derivatives of its own, got {inner!r}. Hint: use GradientDescent, or "
                "curvature='hessian'."
            )

    def solution(self, inner: InnerSolver, task: Instance) -> Solution:
        """Solve the problem by the inner solver; derivatives pass through its steps."""
        self.refuse(task.problem, inner)
        if task.problem.curvature == "gauss-newton":
            # The same steps: F has the same values, and its derivatives are the Hessian's.
            exact = replace(task.problem, curvature="hessian")  # type: ignore[type-var]
            task = task._replace(problem=exact)
        return inner(*task)


@dataclass(frozen=True)
class FirstOrder(Differentiated):
    """The rule of first-order MAML: d phi/d theta = d init/d theta, the identity by default.

    References:
        Finn, Abbeel, Levine (2017), section 5.2.
    """

    owner: ClassVar[str] = "first_order"
    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that nothing is learned but where the solver starts."""
        if problem.learns is not None:
            raise StructureError(
                f"{self.owner}: problem: expected a fixed strength, as the derivative in a learned one is "
                f"zero here, got {problem.learns!r}. Hint: use implicit(...) or unrolled()."
            )
        super().refuse(problem, inner)

    def solution(self, inner: InnerSolver, task: Instance) -> Solution:
        """Solve the problem by the inner solver; the value has the derivatives of where it started."""
        self.refuse(task.problem, inner)
        found = inner(*lax.stop_gradient(task))
        passed = lambda p, s: lax.stop_gradient(p) + (s - lax.stop_gradient(s))  # noqa: E731
        return Solution(jax.tree.map(passed, found.value, task.start), found.stats, found.status)


unrolled = Unrolled
first_order = FirstOrder
