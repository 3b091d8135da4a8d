"""The published implementation's meta-gradient, kept to show what it changes; not the paper's.

    phi  <- phi - rate dloss/dphi(phi, support)          `steps` times, without an anchor, from theta
    phi  <- phi - rate strength (phi - theta)            once
    u    =  ((1 + damping) I + H / (strength + shift))^-1  dquery_loss/dphi,   H = d2 loss/dphi2(phi, support)

where the paper has phi* of the anchored problem and u = (I + H / strength)^-1 dquery_loss/dphi (Rajeswaran et
al. 2019, eq. 6). damping = 1 and shift = 10 are the published code's defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import StructureError
from ..core.solution import Ending, Solution, Stats, Status
from ..core.tree import PyTree
from ..core.validation import require_number
from ..inner.base import InnerSolver, check_stopping, start_of
from ..linear.base import LinearSolver, refuse_structure
from ..linear.cg import CG
from ..problems.base import Problem, Task
from ..problems.linearised import solve_anchored
from ..problems.proximal import Proximal
from .base import Learning, TaskGradient


@dataclass(frozen=True)
class ThenPulled:
    """Gradient descent on the loss alone, then one step towards theta, as the published code solves a task.

    `steps` steps on the loss from theta, then one on strength/2 |phi - theta|^2, all with learning_rate. What
    comes out solves no problem: `stats.residual` says how far it is from the anchored one's solution.
    """

    learning_rate: float
    steps: int

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_number("ThenPulled", 0, open=True, learning_rate=self.learning_rate)
        check_stopping("ThenPulled", self.steps, None)

    def __call__(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree = None, key: Array | None = None
    ) -> Solution:
        """The Solution; its value holds the problem's adapted leaves."""
        loss = _proximal_loss("ThenPulled", problem)
        start = start_of(problem, theta, batch, phi0, key)
        slope = jax.grad(lambda p: loss(problem.full(p, theta), batch))
        down = lambda p, g: p - self.learning_rate * g  # noqa: E731
        phi = lax.fori_loop(0, self.steps, lambda _, p: jax.tree.map(down, p, slope(p)), start)
        pull, anchor = problem.strengths(phi, theta), problem.split(problem.mean(theta))
        phi = jax.tree.map(lambda p, s, t: down(p, s * (p - t)), phi, pull, anchor)
        size = tree.norm(problem.residual(phi, theta, batch))
        code = jnp.where(jnp.isfinite(size), int(Ending.STEPS_DONE), int(Ending.NOT_FINITE))
        stats = Stats(jnp.asarray(self.steps + 1), size, jnp.asarray(False))
        return Solution(phi, stats, Status(code))


@dataclass(frozen=True)
class AsReleased:
    """The published code's linear system; made by `as_released(linear)`."""

    linear: LinearSolver
    damping: float = 1.0
    shift: float = 10.0
    needs_solution: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_number("as_released", 0, damping=self.damping, shift=self.shift)

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError for what the published code does not have."""
        _proximal_loss("as_released", problem)
        refuse_structure(self.linear, problem.structure)
        if (
            problem.adapt.choice is not None
            or problem.learns is not None
            or jnp.shape(problem.strength) != ()
        ):
            raise StructureError(
                "as_released: the published code adapts all parameters with one fixed strength; accepted is "
                "proximal(loss, number). For anything else use implicit(...)."
            )

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """The solution u of the published code's system, and the direct term where there is one."""
        problem, query_loss, _ = learning
        loss = _proximal_loss("as_released", problem)
        phi, found = learning.solved(theta, task.support, key)
        value, (slope, direct) = jax.value_and_grad(query_loss, argnums=(0, 1))(phi, theta, task.query)
        _, curve = jax.linearize(jax.grad(lambda p: loss(p, task.support)), phi)
        scale = 1 / (problem.strength + self.shift)

        def product(v: PyTree) -> PyTree:
            return jax.tree.map(lambda a, h: (1 + self.damping) * a + scale * h, v, curve(v))

        whole = jax.tree.map(lambda p: jnp.full_like(p, 1 + self.damping), phi)
        linear = solve_anchored(self.linear, product, slope, "spd", whole)
        gradient = jax.tree.map(jnp.add, direct, linear.value)
        return TaskGradient(gradient, value, phi, found.stats.residual, found, linear)


def as_released(linear: LinearSolver | None = None, damping: float = 1.0, shift: float = 10.0) -> AsReleased:
    """The rule of the published implementation, with `ThenPulled` as inner solver; to compare with."""
    return AsReleased(CG(steps=5) if linear is None else linear, damping, shift)


def _proximal_loss(who: str, problem: Problem) -> PyTree:
    """The loss of a proximal problem; StructureError for any other."""
    if not isinstance(problem, Proximal):
        raise StructureError(f"{who}: made for proximal(loss, strength); this problem is {problem.kind}.")
    return problem.loss
