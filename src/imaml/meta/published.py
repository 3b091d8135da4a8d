"""The published implementation's meta-gradient, which differs from the paper's; kept for comparisons.

    phi  <- phi - rate dloss/dphi(phi, support)          `steps` times, without an anchor, from theta
    phi  <- phi - rate strength (phi - theta)            once
    u    =  ((1 + damping) I + H / (strength + shift))^-1  dquery_loss/dphi,   H = d2 loss/dphi2(phi, support)

where the paper has phi* of the anchored problem and u = (I + H / strength)^-1 dquery_loss/dphi (Rajeswaran et
al. 2019, eq. 6). damping = 1 and shift = 10 are the published code's defaults.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ..core.errors import StructureError
from ..core.fields import Checked, NonNegativeFloat, PositiveFloat, PositiveInt
from ..core.solution import Ending, Solution
from ..core.tree import Tree
from ..inner.base import InnerSolver, Instance, Solver, to_tolerance
from ..linear.base import LinearSolver, refuse_structure
from ..linear.cg import CG
from ..problems.base import Key, Loss, Problem, Task
from ..problems.linearised import Known, solve_known
from ..problems.proximal import Proximal
from .base import Learning, RuleBase, TaskGradient


@dataclass(frozen=True)
class ThenPulled(Checked, Solver):
    """Gradient descent on the loss alone, then one step towards theta, as in the published code.

    It takes `steps` steps on the loss from theta, then one on strength/2 |phi - theta|^2. The result does not
    solve a problem: `stats.residual` is the residual of the regularised problem.

    Attributes:
        learning_rate: Of all steps.
        steps: The number of steps on the loss.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> ThenPulled(0.5, steps=1)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.25], dtype=float32)
    """

    learning_rate: PositiveFloat
    steps: PositiveInt

    def _solve(self, task: Instance) -> Solution:
        """Solve one task of a problem made by `proximal`."""
        problem, theta, batch, start, _ = task
        loss = _proximal_loss("ThenPulled", problem)
        slope = jax.grad(lambda p: loss(problem.full(p, theta), batch))
        down = lambda p, g: p - self.learning_rate * g  # noqa: E731
        phi = lax.fori_loop(0, self.steps, lambda _, p: jax.tree.map(down, p, slope(p)), start)
        pull, anchor = problem.strengths(phi, theta), problem.split(problem.mean(theta))
        phi = jax.tree.map(lambda p, s, t: down(p, s * (p - t)), phi, pull, anchor)
        ended = int(Ending.STEPS_DONE)
        return to_tolerance(phi, jnp.asarray(self.steps + 1), task.size(phi), None, ended)


@dataclass(frozen=True)
class AsReleased(RuleBase):
    """The rule of the published implementation, with `ThenPulled` as inner solver; for comparisons.

    Args:
        linear: The linear solver.
        damping: The published code's damping, added to the identity.
        shift: What the published code adds to the strength.

    Raises:
        ConfigError: If a value is out of range.
    """

    owner: ClassVar[str] = "as_released"
    needs_solution: ClassVar[bool] = False

    linear: LinearSolver = field(default_factory=lambda: CG(steps=5))
    damping: NonNegativeFloat = 1.0
    shift: NonNegativeFloat = 10.0

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the published code could solve the problem."""
        _proximal_loss("as_released", problem)
        refuse_structure(self.linear, problem.structure)
        one_strength = problem.learns is None and jnp.shape(problem.strength) == ()
        if problem.adapt.choice is not None or not one_strength:
            raise StructureError(
                "as_released: expected proximal(loss, number) that adapts all parameters, as the published "
                "code has it. Hint: for anything else use implicit(...)."
            )

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """Solve the published code's system, and add the direct term; see `TaskRule.task_gradient`."""
        problem, query_loss, _ = learning
        loss = _proximal_loss("as_released", problem)
        phi, found = learning.solved(theta, task.support, key)
        value, (slope, direct) = jax.value_and_grad(query_loss, argnums=(0, 1))(phi, theta, task.query)
        _, curve = jax.linearize(jax.grad(lambda p: loss(p, task.support)), phi)
        scale = 1 / (problem.strength + self.shift)

        def product(v: Tree) -> Tree:
            return jax.tree.map(lambda a, h: (1 + self.damping) * a + scale * h, v, curve(v))

        anchor = jax.tree.map(lambda p: jnp.full_like(p, 1 + self.damping), phi)
        linear = solve_known(self.linear, product, slope, "spd", Known(anchor))
        gradient = jax.tree.map(jnp.add, direct, linear.value)
        return TaskGradient(gradient, value, phi, found.stats.residual, found, linear)


as_released = AsReleased


def _proximal_loss(who: str, problem: Problem) -> Loss:
    """The loss of a proximal problem; StructureError for any other."""
    if not isinstance(problem, Proximal):
        raise StructureError(f"{who}: expected proximal(loss, strength), got {problem.kind}.")
    return problem.loss
