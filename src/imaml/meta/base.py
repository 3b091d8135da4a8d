"""What a rule is, and `solve`."""

from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.fields import Checked
from ..core.solution import Solution
from ..core.tree import Tree
from ..inner.base import InnerSolver, Instance
from ..problems.base import Key, Problem, Task
from ..problems.precision import Learned
from .arguments import require_parameters
from .system import QueryLoss

Flag = bool | Array  # may be traced
StepNumber = int | Array | None  # of training, from 0; None for its end


class Rule(Protocol):
    """Makes the solution of a problem a differentiable function of theta and the batch."""

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Tree, batch: Tree, phi0: Tree, key: Key
    ) -> Tree:
        """The adapted parameters at the solution.

        Args:
            problem: The inner problem.
            inner: The inner solver.
            theta: The meta-parameters.
            batch: The support set.
            phi0: Where the solver starts, the adapted parameters.
            key: A random key for the solver, or None.

        Returns:
            The adapted parameters, with the derivatives that the rule gives them.
        """


class TaskGradient(NamedTuple):
    """One task's meta-gradient and its statistics.

    Attributes:
        gradient: The meta-gradient, shaped like theta.
        loss: The query loss at phi, a scalar.
        phi: The full tree of adapted parameters.
        residual: The norm of F(phi), a scalar.
        inner: The inner Solution; None for rules that solve no task.
        linear: The linear Solution; None for rules that solve no linear system.
    """

    gradient: Tree
    loss: Array
    phi: Tree
    residual: Array | None = None
    inner: Solution | None = None
    linear: Solution | None = None


class Learning(NamedTuple):
    """What a rule learns from.

    Attributes:
        problem: One task's inner problem.
        query_loss: The outer loss, (phi, theta, batch) -> scalar.
        inner: The inner solver.
    """

    problem: Problem
    query_loss: QueryLoss
    inner: InnerSolver

    def solved(self, theta: Tree, batch: Tree, key: Key) -> tuple[Tree, Solution]:
        """Adapts to one batch.

        Args:
            theta: The meta-parameters.
            batch: The support set.
            key: A random key for the solver, or None.

        Returns:
            The full tree of adapted parameters, and the inner Solution.
        """
        start = self.problem.init(theta, batch, key)
        found = self.inner(self.problem, theta, batch, start, key)
        return self.problem.full(found.value, theta), found


class TaskRule(Protocol):
    """Estimates one task's meta-gradient: a rule, or an estimator that uses no query set.

    `docs/extend/method.md` shows how to write one. Two methods are optional. ``at_step(step, estimate)``
    returns the rule at a step of training. ``combine(problem, theta, flat)`` turns the mean of the flat
    gradients over tasks into the meta-gradient.

    Attributes:
        needs_solution: Whether a task is excluded if its inner solve moved away from the solution.
    """

    needs_solution: ClassVar[bool]

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Checks that the estimator accepts a problem and a solver.

        Args:
            problem: The inner problem.
            inner: The inner solver.

        Raises:
            StructureError: If it does not.
        """

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """One task's meta-gradient.

        Args:
            learning: The problem, the query loss and the inner solver.
            theta: The meta-parameters.
            task: One task.
            key: A random key, or None.

        Returns:
            The task's meta-gradient and its statistics.
        """
        ...


class RuleBase(Checked):
    """A base of rules: a frozen dataclass whose fields are checked when it is made, with usual answers.

    Attributes:
        owner: The name in messages; by default that of the class.
        needs_solution: Whether a task is excluded if its inner solve moved away from the solution.
    """

    needs_solution: ClassVar[bool] = True

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the inner solver solves, and has a fixed learning rate; see `TaskRule.refuse`."""
        if not getattr(inner, "solves", True):
            raise StructureError(
                f"{self.owner or type(self).__name__}: inner: expected a solver of the inner problem, got "
                f"{inner!r}. Hint: use it with unrolled(), that is with the method maml."
            )
        if isinstance(getattr(inner, "learning_rate", None), Learned):
            raise StructureError(
                f"{self.owner or type(self).__name__}: inner: expected a fixed learning rate, got a learned "
                "one. Hint: unrolled() on plain(loss), which is MetaSGD, learns it."
            )


class Differentiated(RuleBase):
    """A base of rules whose meta-gradient is automatic differentiation of the query loss at `solution`."""

    def solution(self, inner: InnerSolver, task: Instance) -> Solution:
        """The inner Solution, whose value has the derivatives that the rule gives it.

        Args:
            inner: The inner solver.
            task: The problem of one task, with where the solver starts.

        Returns:
            The Solution.
        """
        raise NotImplementedError

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Tree, batch: Tree, phi0: Tree, key: Key
    ) -> Tree:
        """The adapted parameters, with the derivatives that the rule gives them; see `Rule`."""
        return self.solution(inner, Instance(problem, theta, batch, phi0, key)).value

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """The gradient of the query loss through `solution`; see `TaskRule.task_gradient`."""
        problem, query_loss, inner = learning

        def outer(theta: Tree) -> tuple[Array, tuple[Tree, Solution]]:
            start = problem.init(theta, task.support, key)
            found = self.solution(inner, Instance(problem, theta, task.support, start, key))
            phi = problem.full(found.value, theta)
            return query_loss(phi, theta, task.query), (phi, found)

        (loss, (phi, found)), gradient = jax.value_and_grad(outer, has_aux=True)(theta)
        return TaskGradient(gradient, loss, phi, found.stats.residual, found)


def require_reversible(owner: str, argument: str, solver: InnerSolver, hint: str) -> None:
    """Check that reverse mode can go through a solver's steps.

    Args:
        owner: The rule's name in the message.
        argument: What the solver is to the rule.
        solver: The solver.
        hint: What to use instead.

    Raises:
        StructureError: If it cannot.
    """
    if not getattr(solver, "reversible", True) or getattr(solver, "tolerance", None) is not None:
        raise StructureError(
            f"{owner}: {argument}: expected a fixed number of steps that have a reverse mode, got "
            f"{solver!r}. Hint: use {hint}."
        )


def solve(
    problem: Problem,
    theta: Tree,
    batch: Tree,
    *,
    inner: InnerSolver,
    rule: Rule,
    phi0: Tree = None,
    key: Key = None,
) -> Tree:
    """Solves one task's inner problem, differentiably.

    Gradients with respect to `theta` and `batch` follow `rule`. For many tasks use `jax.vmap` over `batch`.

    Args:
        problem: The inner problem, for example ``proximal(loss, 0.5)``.
        theta: The meta-parameters, a pytree of float arrays.
        batch: The support set, any pytree.
        inner: The inner solver.
        rule: The derivative rule, for example ``implicit(CG(steps=5))``.
        phi0: Where the solver starts, a full tree; by default ``problem.init(theta, batch, key)``.
        key: A random key for the solver and for the problem's `init`, or None.

    Returns:
        The adapted parameters, a full tree. Shared parameters are theta's own.

    Raises:
        ConfigError: If `rule` is not a rule, or the shapes of `phi0` differ from those of the problem's
            start.
        StructureError: If the rule does not accept the problem or the solver.

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> inner, rule = imaml.GradientDescent(0.5, steps=60), imaml.implicit(imaml.CG(steps=2))
        >>> phi = lambda theta: imaml.solve(problem, theta, jnp.ones(1), inner=inner, rule=rule)
        >>> jax.jacobian(phi)(jnp.zeros(1))
        Array([[0.5]], dtype=float32)

    References:
        Rajeswaran et al. (2019), Lemma 1.
    """
    if not callable(rule):
        raise ConfigError(
            f"solve: rule: expected implicit(linear), unrolled() or first_order(), got {rule!r}."
        )
    require_parameters("solve", theta)
    if phi0 is None:
        start = problem.init(theta, batch, key)
    else:
        usual = jax.eval_shape(lambda: problem.full(problem.init(theta, batch, key), theta))
        tree.require_like("solve: phi0", phi0, usual, "where the problem begins")
        start = problem.split(jax.tree.map(lambda own, like: jnp.asarray(own, like.dtype), phi0, usual))
    return problem.full(rule(problem, inner, theta, batch, start, key), theta)
