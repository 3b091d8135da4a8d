"""One-step differentiation: through the last inner step alone (Bolte, Pauwels and Vaiter 2023)."""

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jax import lax

from ..core.solution import Solution, Stats, Status
from ..inner.base import InnerSolver, Instance
from ..inner.newton import Newton
from ..linear.cg import CG
from ..problems.base import RULES, Problem, require_anchor
from .base import Differentiated, require_reversible


@dataclass(frozen=True)
class OneStep(Differentiated):
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

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> inner = imaml.GradientDescent(0.5, steps=3)
        >>> phi = lambda theta: imaml.solve(problem, theta, jnp.ones(1), inner=inner, rule=imaml.one_step())
        >>> jax.jacobian(phi)(jnp.zeros(1))
        Array([[0.5]], dtype=float32)

    References:
        Bolte, Pauwels, Vaiter (2023), One-step differentiation of iterative algorithms.
    """

    owner: ClassVar[str] = "one_step"

    last: InnerSolver = field(default_factory=lambda: Newton(steps=1, linear=CG()))

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the problem is anchored and that reverse mode can go through the last step."""
        require_anchor(problem, self.owner)
        hint = "Newton(steps=1) or GradientDescent(rate, steps=1)"
        require_reversible(self.owner, "last", self.last, hint)

    def solution(self, inner: InnerSolver, task: Instance) -> Solution:
        """Solve the problem, and take one step more; the status is the worse of both."""
        require_anchor(task.problem, self.owner, RULES)
        self.refuse(task.problem, inner)
        before = inner(*lax.stop_gradient(task))
        after = self.last(*task._replace(start=lax.stop_gradient(before.value)))
        # How the inner solve ended is its own; what is left is measured after the last step.
        steps, curved = before.stats.steps + after.stats.steps, before.stats.negative_curvature
        worse = Status(jnp.maximum(before.status.code, after.status.code))
        return Solution(after.value, Stats(steps, after.stats.residual, curved), worse)


one_step = OneStep
