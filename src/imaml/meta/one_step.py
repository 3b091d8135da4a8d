"""One-step differentiation: only through the last inner step (Bolte, Pauwels and Vaiter 2023)."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ..core import tree
from ..core.solution import Solution, Stats, Status
from ..core.tree import Tree
from ..inner.base import InnerSolver, Instance, of_fixed_length
from ..inner.newton import Newton
from ..linear.cg import CG
from ..problems.base import RULES, Key, Problem, Task, require_anchor
from ..problems.linearised import Known, solve_known
from .base import Differentiated, Learning, TaskGradient, require_reversible
from .system import outer_loss_of


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
        super().refuse(problem, inner)
        hint = "Newton(steps=1) or GradientDescent(rate, steps=1)"
        require_reversible(self.owner, "last", self.last, hint)

    def solution(self, inner: InnerSolver, task: Instance) -> Solution:
        """Solve the problem, and take one more step; the status is the worse of both."""
        require_anchor(task.problem, self.owner, RULES)
        self.refuse(task.problem, inner)
        before = inner(*lax.stop_gradient(task))
        return _together(before, self.last(*task._replace(start=lax.stop_gradient(before.value))))

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """The gradient of the query loss through `solution`; see `TaskRule.task_gradient`.

        Through one Newton step it is computed explicitly, as automatic differentiation cannot return how the
        step's linear systems ended. With F and A at phi_k, w = A^-1 F, phi = phi_k - w, v the query loss's
        gradient at phi, and A^T u = v, it is

            direct - d/dtheta [u.(F - A w)]           at fixed phi_k, u and w
        """
        solver = getattr(self.last, "single_solve", None)
        if solver is None:
            return super().task_gradient(learning, theta, task, key)
        problem, support = learning.problem, task.support
        _, before = learning.solved(theta, support, key)
        at, structure = before.value, problem.structure
        residual = lambda p, t: problem.residual(p, t, support)  # noqa: E731
        value, product = jax.linearize(lambda p: residual(p, theta), at)
        transposed = product
        if structure == "general":
            back = jax.linear_transpose(product, at)
            transposed = lambda u: back(u)[0]  # noqa: E731
        known = Known.of(problem, at, theta, support)
        step = solve_known(solver, product, value, structure, known)
        moved = tree.minus(at, step.value)
        phi = problem.full(moved, theta)
        loss, slope, direct = outer_loss_of(learning.query_loss, theta, task.query)(phi)
        found = solve_known(solver, transposed, problem.split(slope), structure, known)

        def left(t: Tree) -> Tree:  # F - A w
            own, along = jax.jvp(lambda p: residual(p, t), (at,), (step.value,))
            return tree.minus(own, along)

        through = jax.vjp(left, theta)[1](found.value)[0]
        shared = jax.vjp(lambda t: problem.full(moved, t), theta)[1](slope)[0]
        gradient = jax.tree.map(lambda a, b, c: a + b - c, direct, shared, through)
        after = of_fixed_length(Instance(problem, theta, support, at, key), moved, 1, tree.norm(value))
        inner = _together(before, after)
        worse = jnp.maximum(step.status.code, found.status.code)
        curved = step.stats.negative_curvature | found.stats.negative_curvature
        stats = replace(found.stats, steps=step.stats.steps + found.stats.steps, negative_curvature=curved)
        # Where one of them took no step at all, the task is excluded: `_usable` sees that by the steps.
        stuck = (step.stats.negative_curvature & (step.stats.steps == 0)) | (
            found.stats.negative_curvature & (found.stats.steps == 0)
        )
        stats = replace(stats, steps=jnp.where(stuck, 0, stats.steps))
        linear = Solution(found.value, stats, Status(worse))
        return TaskGradient(gradient, loss, phi, inner.stats.residual, inner, linear)


def _together(before: Solution, after: Solution) -> Solution:
    """The Solution of an inner solve and a last step; the status is the worse of both."""
    # How the inner solve ended is its own; what is left is measured after the last step.
    steps, curved = before.stats.steps + after.stats.steps, before.stats.negative_curvature
    worse = Status(jnp.maximum(before.status.code, after.status.code))
    return Solution(after.value, Stats(steps, after.stats.residual, curved), worse)


one_step = OneStep
