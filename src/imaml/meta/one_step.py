"""One-step differentiation: through the last inner step alone (Bolte, Pauwels and Vaiter 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax

from ..core.errors import StructureError
from ..core.solution import Solution, Stats, Status
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..inner.newton import Newton
from ..linear.cg import CG
from ..problems.base import Problem, Task, require_anchor
from .base import Learning, TaskGradient, differentiated


@dataclass(frozen=True)
class OneStep:
    """d phi/d theta = d last(phi_k, theta)/d theta at fixed phi_k; made by `one_step(last)`."""

    last: InnerSolver
    needs_solution: ClassVar[bool] = True

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError for a problem without an anchor, or a last step without a reverse mode."""
        require_anchor(problem)
        if not getattr(self.last, "reversible", True) or getattr(self.last, "tolerance", None) is not None:
            raise StructureError(
                f"one_step() differentiates through its last step, and {self.last!r} has no reverse mode; "
                "use Newton(steps=1) or GradientDescent(rate, steps=1)."
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
        """The inner Solution and one step more, through which derivatives pass."""
        before = inner(*lax.stop_gradient((problem, theta, batch, phi0)), key)
        after = self.last(problem, theta, batch, lax.stop_gradient(before.value), key)
        # How the inner solve ended is its own; what is left is measured after the last step.
        steps, curved = before.stats.steps + after.stats.steps, before.stats.negative_curvature
        worse = Status(jnp.maximum(before.status.code, after.status.code))
        return Solution(after.value, Stats(steps, after.stats.residual, curved), worse)

    def __call__(
        self,
        problem: Problem,
        inner: InnerSolver,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree,
        key: Array | None,
    ) -> PyTree:
        """The adapted leaves after the last step."""
        self.refuse(problem, inner)
        return self.solution(problem, inner, theta, batch, phi0, key).value

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """The query loss's gradient through the last step."""
        return differentiated(self, learning, theta, task, key)


def one_step(last: InnerSolver | None = None) -> OneStep:
    """The rule that differentiates through one last step only, Newton's by default.

    ```
    phi = last(phi_k, theta)        d phi/d theta = d last/d theta at fixed phi_k
    ```

    With `Newton(steps=1)` that is -A^-1 dF/dtheta, A at phi_k: the implicit rule's own formula, one Newton
    step late, with no system more than the step itself takes; its error falls with |phi_k - phi*|, where
    that of the implicit rule at phi falls with its square. With `GradientDescent(rate, steps=1)` it is
    -rate dF/dtheta, which is right only as far as one such step forgets where it began (error of the order
    of the rate of convergence; for an ill-conditioned problem that is nearly everything).

    >>> import imaml, jax, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> inner = imaml.GradientDescent(0.5, steps=3)
    >>> phi = lambda theta: imaml.solve(problem, theta, jnp.ones(1), inner=inner, rule=one_step())
    >>> jax.jacobian(phi)(jnp.zeros(1))
    Array([[0.5]], dtype=float32)
    """
    return OneStep(Newton(steps=1, linear=CG()) if last is None else last)
