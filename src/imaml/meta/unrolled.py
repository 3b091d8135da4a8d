"""Rules that differentiate through the inner steps, or leave them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
from jax import Array, lax

from ..core.errors import StructureError
from ..core.solution import Solution
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..problems.base import Problem, Task
from .base import Learning, TaskGradient, differentiated, refuse_learned_rate


@dataclass(frozen=True)
class Unrolled:
    """Differentiation through every inner step; made by `unrolled()`."""

    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError for an inner solver that reverse mode cannot go through."""
        if not getattr(inner, "reversible", True):
            raise StructureError(
                f"unrolled() differentiates through every inner step, and {type(inner).__name__}'s have no "
                "reverse mode; use GradientDescent or Descent, or implicit(...) or first_order()."
            )
        if getattr(inner, "tolerance", None) is not None:
            raise StructureError(
                f"unrolled() needs an inner solver with a fixed number of steps; {inner!r} stops at a "
                "tolerance, and such a loop has no reverse mode. Give steps= and no tolerance, or use "
                "implicit(...)."
            )

    def solution(
        self,
        problem: Problem,
        inner: InnerSolver,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree,
        key: Array | None,
    ) -> Solution:
        """The inner Solution, its value differentiable through the steps."""
        self.refuse(problem, inner)
        return inner(problem, theta, batch, phi0, key)

    def __call__(
        self,
        problem: Problem,
        inner: InnerSolver,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree,
        key: Array | None,
    ) -> PyTree:
        """The adapted leaves after the inner steps."""
        return self.solution(problem, inner, theta, batch, phi0, key).value

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """The exact gradient of the query loss after the steps taken (Finn, Abbeel, Levine 2017, eq. 1)."""
        return differentiated(self, learning, theta, task, key)


@dataclass(frozen=True)
class FirstOrder:
    """d phi/d theta = d init/d theta; made by `first_order()`."""

    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError for a learned inner rate."""
        refuse_learned_rate(inner, "first_order()")

    def solution(
        self,
        problem: Problem,
        inner: InnerSolver,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree,
        key: Array | None,
    ) -> Solution:
        """The inner Solution, its value with the derivatives of where the solver started."""
        fixed = lax.stop_gradient((problem, theta, batch, phi0))
        found = inner(*fixed, key)
        passed = jax.tree.map(
            lambda p, s: lax.stop_gradient(p) + (s - lax.stop_gradient(s)), found.value, phi0
        )
        return Solution(passed, found.stats, found.status)

    def __call__(
        self,
        problem: Problem,
        inner: InnerSolver,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree,
        key: Array | None,
    ) -> PyTree:
        """The adapted leaves at the solution; derivatives pass to where the solver started."""
        return self.solution(problem, inner, theta, batch, phi0, key).value

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """The query loss's gradient at the adapted parameters (Finn, Abbeel, Levine 2017, section 5.2)."""
        return differentiated(self, learning, theta, task, key)


def unrolled() -> Unrolled:
    """The rule of MAML: exact derivatives of the steps taken; memory grows with them."""
    return Unrolled()


def first_order() -> FirstOrder:
    """The rule of first-order MAML: d phi/d theta = d init/d theta, the identity by default."""
    return FirstOrder()
