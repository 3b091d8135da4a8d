"""One-step differentiation: through the last inner step alone (Bolte, Pauwels and Vaiter 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import lax

from ..core.errors import StructureError
from ..core.solution import Solution, Stats, Status
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..inner.newton import Newton
from ..linear.cg import CG
from ..problems.base import Key, Problem, require_anchor
from .base import Differentiated


@dataclass(frozen=True)
class OneStep(Differentiated):
    """The derivative of one last inner step at a fixed phi_k; made by `one_step(last)`."""

    last: InnerSolver
    needs_solution: ClassVar[bool] = True

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Checks that the problem is anchored and that reverse mode can go through the last step.

        Args:
            problem: The inner problem.
            inner: The inner solver.

        Raises:
            StructureError: If it is not, or cannot.
        """
        require_anchor(problem)
        if not getattr(self.last, "reversible", True) or getattr(self.last, "tolerance", None) is not None:
            raise StructureError(
                f"one_step: last: expected a step that has a reverse mode, got {self.last!r}. Hint: use "
                "Newton(steps=1) or GradientDescent(rate, steps=1)."
            )

    def solution(
        self, problem: Problem, inner: InnerSolver, theta: PyTree, batch: PyTree, phi0: PyTree, key: Key
    ) -> Solution:
        """The inner Solution and one step more, through which derivatives pass.

        Args:
            problem: The inner problem.
            inner: The inner solver.
            theta: The meta-parameters.
            batch: The support set.
            phi0: Where the solver starts, the adapted parameters.
            key: A random key for the solver, or None.

        Returns:
            The Solution after the last step; its status is the worse of both.
        """
        self.refuse(problem, inner)
        before = inner(*lax.stop_gradient((problem, theta, batch, phi0)), key)
        after = self.last(problem, theta, batch, lax.stop_gradient(before.value), key)
        # How the inner solve ended is its own; what is left is measured after the last step.
        steps, curved = before.stats.steps + after.stats.steps, before.stats.negative_curvature
        worse = Status(jnp.maximum(before.status.code, after.status.code))
        return Solution(after.value, Stats(steps, after.stats.residual, curved), worse)


def one_step(last: InnerSolver | None = None) -> OneStep:
    """The rule that differentiates through one last step only, Newton's by default.

    ```
    phi = last(phi_k, theta)        d phi/d theta = d last/d theta at fixed phi_k
    ```

    With `Newton(steps=1)` that is -A^-1 dF/dtheta with A at phi_k: the implicit rule's formula, one Newton
    step late, without a linear system other than the step's own. Its error falls with |phi_k - phi*|; that of
    the implicit rule at phi falls with its square. With `GradientDescent(rate, steps=1)` it is -rate
    dF/dtheta. That is accurate only as far as one such step forgets where it began: the error is of the order
    of the rate of convergence.

    Args:
        last: The last step, an inner solver that takes a fixed number of steps.

    Returns:
        The rule.

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> inner = imaml.GradientDescent(0.5, steps=3)
        >>> phi = lambda theta: imaml.solve(problem, theta, jnp.ones(1), inner=inner, rule=one_step())
        >>> jax.jacobian(phi)(jnp.zeros(1))
        Array([[0.5]], dtype=float32)

    References:
        Bolte, Pauwels, Vaiter (2023), One-step differentiation of iterative algorithms.
    """
    return OneStep(Newton(steps=1, linear=CG()) if last is None else last)
