"""Rules that differentiate through the inner steps, or leave them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
from jax import lax

from ..core.errors import StructureError
from ..core.solution import Solution
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..problems.base import Key, Problem
from .base import Differentiated, refuse_learned_rate


@dataclass(frozen=True)
class Unrolled(Differentiated):
    """Differentiation through every inner step, the exact gradient after them; made by `unrolled()`."""

    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Checks that reverse mode can go through the inner solver.

        Args:
            problem: The inner problem.
            inner: The inner solver.

        Raises:
            StructureError: If it cannot.
        """
        if not getattr(inner, "reversible", True):
            raise StructureError(
                "unrolled: inner: expected a solver whose steps have a reverse mode, got "
                f"{type(inner).__name__}. Hint: use GradientDescent or Descent, or the rule implicit(...) or "
                "first_order()."
            )
        if getattr(inner, "tolerance", None) is not None:
            raise StructureError(
                f"unrolled: inner: expected a fixed number of steps, got {inner!r}, which stops at a "
                "tolerance: such a loop has no reverse mode. Hint: give steps= and no tolerance, or use "
                "implicit(...)."
            )

    def solution(
        self, problem: Problem, inner: InnerSolver, theta: PyTree, batch: PyTree, phi0: PyTree, key: Key
    ) -> Solution:
        """The inner Solution, its value differentiable through the steps.

        Args:
            problem: The inner problem.
            inner: The inner solver.
            theta: The meta-parameters.
            batch: The support set.
            phi0: Where the solver starts, the adapted parameters.
            key: A random key for the solver, or None.

        Returns:
            The Solution.
        """
        self.refuse(problem, inner)
        return inner(problem, theta, batch, phi0, key)


@dataclass(frozen=True)
class FirstOrder(Differentiated):
    """The approximation d phi/d theta = d init/d theta; made by `first_order()`."""

    needs_solution: ClassVar[bool] = False

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Checks that the inner learning rate is fixed.

        Args:
            problem: The inner problem.
            inner: The inner solver.

        Raises:
            StructureError: If it is learned.
        """
        refuse_learned_rate(inner, "first_order()")

    def solution(
        self, problem: Problem, inner: InnerSolver, theta: PyTree, batch: PyTree, phi0: PyTree, key: Key
    ) -> Solution:
        """The inner Solution, its value with the derivatives of where the solver started.

        Args:
            problem: The inner problem.
            inner: The inner solver.
            theta: The meta-parameters.
            batch: The support set.
            phi0: Where the solver starts, the adapted parameters.
            key: A random key for the solver, or None.

        Returns:
            The Solution.
        """
        fixed = lax.stop_gradient((problem, theta, batch, phi0))
        found = inner(*fixed, key)
        passed = jax.tree.map(
            lambda p, s: lax.stop_gradient(p) + (s - lax.stop_gradient(s)), found.value, phi0
        )
        return Solution(passed, found.stats, found.status)


def unrolled() -> Unrolled:
    """The rule of MAML: exact derivatives of the steps taken. Memory grows with their number.

    Returns:
        The rule.

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> problem = imaml.plain(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2))
        >>> inner = imaml.GradientDescent(0.5, steps=2)
        >>> phi = lambda theta: imaml.solve(problem, theta, jnp.ones(1), inner=inner, rule=unrolled())
        >>> jax.jacobian(phi)(jnp.zeros(1))
        Array([[0.25]], dtype=float32)

    References:
        Finn, Abbeel, Levine (2017), Model-agnostic meta-learning.
    """
    return Unrolled()


def first_order() -> FirstOrder:
    """The rule of first-order MAML: d phi/d theta = d init/d theta, the identity by default.

    Returns:
        The rule.

    References:
        Finn, Abbeel, Levine (2017), section 5.2.
    """
    return FirstOrder()
