"""How theta learns from a task, apart from the solver that found phi*.

implicit      d phi*/d theta = -(dF/dphi)^-1 dF/dtheta at the solution       iMAML; paper, Lemma 1
unrolled      through every step of the inner solver                          MAML
first_order   d phi/d theta = d init/d theta                                  first-order MAML

They make `solve` differentiable, and estimate one task's meta-gradient. One more does both, `last_step`;
those that learn from all of a task's data at once are in `pooled`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import tree
from .accuracy import Tightening, check_accuracy, until_accurate
from .certificate import (
    Certificate,
    certificate_of,
    certified_from,
    corrected,
    key_of,
)
from .errors import ConfigError, StructureError
from .estimate import error_estimate, estimate_at
from .inner import InnerSolver, judged
from .linear import CG
from .problem import Learned, Problem, Task, require_anchor
from .products import LinearSolver
from .refinement import start
from .solution import Certification, Solution, Status
from .system import Case, Judge, anchor_of, constant, judge_of, refuse_system, solve_anchored


class Rule(Protocol):
    """Makes the solution of a problem a differentiable function of theta and the batch."""

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Any:
        """The adapted leaves at the solution."""
        ...


class TaskGradient(NamedTuple):
    """One task's meta-gradient, shaped like theta, and what is known of it.

    loss: the query loss at phi, the full tree of adapted parameters. residual: the norm |F(phi)|. inner,
    linear: how the solves ended; None for rules that solve no task, or no linear system.
    """

    gradient: Any
    loss: Array
    phi: Any
    residual: Array | None = None
    inner: Solution | None = None
    linear: Solution | None = None


class Learning(NamedTuple):
    """What is learned by: one task's inner problem, the loss (phi, theta, batch) that judges, what solves."""

    problem: Problem
    query_loss: Callable
    inner: InnerSolver

    def solved(self, theta: Any, batch: Any, key: Array | None) -> tuple[Any, Solution]:
        """The full tree of parameters adapted to a batch, and the inner Solution."""
        start = self.problem.init(theta, batch, key)
        found = self.inner(self.problem, theta, batch, start, key)
        return self.problem.full(found.value, theta), found


class Estimator(Protocol):
    """Estimates one task's meta-gradient; a rule, or one of those that use no query set."""

    needs_solution: ClassVar[
        bool
    ]  # whether an inner solve that moved away from a solution spoils the estimate

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError, with advice, for a problem or solver that it is not made for."""
        ...

    def estimate(self, learning: Learning, theta: Any, task: Task, key: Array | None) -> TaskGradient:
        """One task's meta-gradient."""
        ...


class Passing(Protocol):
    """A rule whose inner Solution automatic differentiation goes through."""

    def solution(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Solution:
        """The inner Solution, its value with the derivatives that the rule gives it."""
        ...


class Implied(NamedTuple):
    """The adapted leaves that a meta-gradient is of, it, the query loss, |F|, and the linear Solution."""

    adapted: Any
    gradient: Any
    loss: Array
    residual: Array
    linear: Solution


@dataclass(frozen=True)
class Implicit:
    """The implicit function theorem; made by `implicit(linear)`."""

    linear: LinearSolver
    certificate: Certificate | None = None
    correct: bool = False
    accuracy: float | Tightening | None = None
    estimating: Any = True  # whether the error is estimated; a boolean, or a traced one
    needs_solution: ClassVar[bool] = True

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError for a problem without an anchor, or not of the linear solver's structure."""
        require_anchor(problem)
        refuse_system(self.linear, problem)
        refuse_learned_rate(inner, "implicit()")
        if problem.structure != "spd" and (self.correct or self.accuracy is not None):
            raise StructureError(
                "implicit: correct and accuracy take Newton steps by conjugate gradients, for problems that "
                f"minimise something; this one is {problem.structure!r}. Use step counts and tolerances."
            )

    def at_step(self, step: Any, estimate: Any = True) -> Implicit:
        """The rule as it is at a step of outer learning (None: as it ends), estimating its error or not."""
        rule = self if estimate is True else replace(self, estimating=estimate)
        asked = self.accuracy
        return replace(rule, accuracy=asked.at(step)) if isinstance(asked, Tightening) else rule

    def estimate(self, learning: Learning, theta: Any, task: Task, key: Array | None) -> TaskGradient:
        """The direct term plus `implicit_vjp`: the explicit route, which keeps the solves' statistics."""
        judge = judge_of(learning.query_loss, theta, task.query)
        return self.under(judge, learning, theta, task.support, key)

    def under(
        self, judge: Judge, learning: Learning, theta: Any, batch: Any, key: Array | None
    ) -> TaskGradient:
        """One task's meta-gradient of whatever judges the parameters adapted to a batch."""
        problem = learning.problem
        phi, found = learning.solved(theta, batch, key)
        at = self.at(Case(problem, theta, batch, judge), found.value, key)
        phi = phi if at.adapted is found.value else problem.full(at.adapted, theta)
        return TaskGradient(at.gradient, at.loss, phi, at.residual, judged(found, at.residual), at.linear)

    def at(self, case: Case, adapted: Any, key: Array | None) -> Implied:
        """What follows from a task's adapted leaves, which `correct` and `accuracy` move on."""
        problem, system = case.problem, case.system(adapted)
        solution = system.solve(self.linear)
        key = key_of(key, adapted)
        given = (case, system, solution, adapted)
        if self.accuracy is not None:
            point, linear = until_accurate(self.accuracy, self.certificate, *given, key)
            return Implied(point.adapted, point.gradient, point.loss, point.residual, linear)
        gradient, residual = system.gradient(solution.value), tree.norm(system.residual)
        estimate, code = error_estimate(*given, self.estimating)
        spent, bound = solution.stats.steps, None
        implied = Implied(adapted, gradient, system.loss, residual, solution)
        if problem.structure != "spd":
            if self.certificate is not None:
                bound = jnp.full_like(estimate, jnp.inf)
                code = jnp.full_like(code, int(Certification.NO_BOUND))
        elif self.certificate is not None or self.correct:
            point = start(case, system, solution, adapted)
            if self.correct:
                point = corrected(case, point, (self.certificate or Certificate()).steps, key)
                implied = Implied(point.adapted, point.gradient, point.loss, point.residual, solution)
                estimate, code = (
                    estimate_at(case, system, point),
                    jnp.full_like(code, int(Certification.ESTIMATED)),
                )
            spent = point.products
            if self.certificate is not None:
                bound, code, products = certified_from(self.certificate, case, point, key)
                spent = spent + products
        stats = replace(solution.stats, steps=spent, error_estimate=estimate, error_bound=bound)
        return implied._replace(linear=Solution(solution.value, stats, Status(solution.status.code, code)))

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Any:
        """The adapted leaves at the solution, differentiable in every mode and order."""
        self.refuse(problem, inner)
        # One flat vector: custom_root fails with a bare AssertionError where a leaf of F ignores theta.
        flat, unravel = tree.ravel(lax.stop_gradient(phi0))

        def residual(x: Array) -> Array:
            return tree.ravel(problem.residual(unravel(x), theta, batch))[0]

        def find(_: Any, start: Array) -> Array:
            return tree.ravel(inner(problem, theta, batch, unravel(start), key).value)[0]

        anchor = anchor_of(problem, phi0, theta)
        anchor = None if anchor is None else tree.ravel(tree.spread(anchor, phi0))[0]

        def solve_tangent(product: Any, b: Array) -> Array:
            def solve(matvec: Any, b: Array) -> Any:
                return solve_anchored(self.linear, matvec, b, problem.structure, anchor).value

            symmetric = problem.structure != "general"
            return lax.custom_linear_solve(
                product, b, solve, None if symmetric else solve, symmetric=symmetric
            )

        return unravel(lax.custom_root(residual, flat, find, solve_tangent))


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
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Solution:
        """The inner Solution, its value differentiable through the steps."""
        self.refuse(problem, inner)
        return inner(problem, theta, batch, phi0, key)

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Any:
        """The adapted leaves after the inner steps."""
        return self.solution(problem, inner, theta, batch, phi0, key).value

    def estimate(self, learning: Learning, theta: Any, task: Task, key: Array | None) -> TaskGradient:
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
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Solution:
        """The inner Solution, its value with the derivatives of where the solver started."""
        fixed = lax.stop_gradient((problem, theta, batch, phi0))
        found = inner(*fixed, key)
        passed = jax.tree.map(
            lambda p, s: lax.stop_gradient(p) + (s - lax.stop_gradient(s)), found.value, phi0
        )
        return Solution(passed, found.stats, found.status)

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Any:
        """The adapted leaves at the solution; derivatives pass to where the solver started."""
        return self.solution(problem, inner, theta, batch, phi0, key).value

    def estimate(self, learning: Learning, theta: Any, task: Task, key: Array | None) -> TaskGradient:
        """The query loss's gradient at the adapted parameters (Finn, Abbeel, Levine 2017, section 5.2)."""
        return differentiated(self, learning, theta, task, key)


def differentiated(
    rule: Passing, learning: Learning, theta: Any, task: Task, key: Array | None
) -> TaskGradient:
    """The meta-gradient by automatic differentiation of the query loss at the rule's solution."""
    problem, query_loss, inner = learning

    def outer(theta: Any) -> tuple[Array, tuple[Any, Solution]]:
        start = problem.init(theta, task.support, key)
        found = rule.solution(problem, inner, theta, task.support, start, key)
        phi = problem.full(found.value, theta)
        return query_loss(phi, theta, task.query), (phi, found)

    (loss, (phi, found)), gradient = jax.value_and_grad(outer, has_aux=True)(theta)
    return TaskGradient(gradient, loss, phi, found.stats.residual, found)


def refuse_learned_rate(inner: InnerSolver, rule: str) -> None:
    """Refuses a learned inner rate under a rule that does not see the steps (StructureError)."""
    if isinstance(getattr(inner, "learning_rate", None), Learned):
        raise StructureError(
            f"{rule} learns nothing of how a task is solved, so the inner rate cannot be learned; accepted "
            "is a number, or unrolled() on plain(loss), which is MetaSGD."
        )


def implicit(
    linear: LinearSolver | None = None,
    *,
    certify: bool | Certificate = False,
    correct: bool = False,
    accuracy: float | Tightening | None = None,
) -> Implicit:
    """The implicit rule: exact up to how well phi* and the linear system are solved (Lemma 1).

    Built on `lax.custom_root`: forward mode, reverse mode, second order, and derivatives with respect to
    strength and data, passed or closed over. Memory does not grow with the inner steps. A rule cannot hand
    out the backward solve's status: where that matters (training), use `implicit_vjp`.

    certify: whether `IMAML` bounds each task's error, see `Certificate`. correct: whether its gradient is
    that after one Newton step more, whose error falls with the square of the inner solution's; the linear
    steps then count its products, too. accuracy: the
    error asked for, relative to the norm of a task's meta-gradient: Newton steps and linear solves go on from
    the inner solution until it is reached; `linear` may then be left out; a `Tightening` asks for more as
    learning goes on. All leave the differentiable rule
    as it is.
    """
    if accuracy is not None:
        check_accuracy("implicit", accuracy)
        linear = CG(steps=200, tolerance=0.1) if linear is None else linear
    if not callable(linear):
        raise ConfigError(
            f"implicit: {linear!r} is no linear solver; pass one such as CG(steps=5) or Dense()."
        )
    return Implicit(linear, certificate_of(certify), correct, accuracy)


def unrolled() -> Unrolled:
    """The rule of MAML: exact derivatives of the steps taken; memory grows with them."""
    return Unrolled()


def first_order() -> FirstOrder:
    """The rule of first-order MAML: d phi/d theta = d init/d theta, the identity by default."""
    return FirstOrder()


def solve(
    problem: Problem,
    theta: Any,
    batch: Any,
    *,
    inner: InnerSolver,
    rule: Rule,
    phi0: Any = None,
    key: Array | None = None,
) -> Any:
    """The solution phi of one task's problem, a full tree, differentiable by `rule`.

    phi0: where the solver starts (a full tree), by default problem.init(theta, batch, key). Shared leaves
    (those that `adapt` leaves out) are theta's own. For many tasks, `jax.vmap` over `batch`.

    >>> import imaml, jax, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> inner, rule = imaml.GradientDescent(0.5, steps=60), imaml.implicit(imaml.CG(steps=2))
    >>> phi = lambda theta: imaml.solve(problem, theta, jnp.ones(1), inner=inner, rule=rule)
    >>> jax.jacobian(phi)(jnp.zeros(1))
    Array([[0.5]], dtype=float32)
    """
    if not callable(rule):
        raise ConfigError(f"solve: rule={rule!r}; pass implicit(linear), unrolled() or first_order().")
    start = problem.init(theta, batch, key) if phi0 is None else problem.split(phi0)
    return problem.full(rule(problem, inner, theta, batch, start, key), theta)


def implicit_vjp(
    problem: Problem,
    phi: Any,
    theta: Any,
    batch: Any,
    cotangent: Any,
    *,
    linear: LinearSolver,
    certify: bool | Certificate = False,
    key: Array | None = None,
) -> tuple[Any, Solution]:
    """The cotangent of theta, -(dF/dtheta)^T A^-T cotangent with A = dF/dphi, and the linear Solution.

    phi: the full tree at the inner solution. cotangent: d query_loss / d phi, a full tree. The direct term
    d query_loss / d theta is not in it: add it (paper, eq. 6 and Algorithm 2, line 4). Shared leaves are
    theta's own, so their cotangent passes straight through: this is the transpose of d phi/d theta for the
    full phi that `solve` returns. Solution.value is u with A^T u = cotangent, over the adapted leaves.

    The Solution's stats say how wrong theta's cotangent may be, against that at the exact inner solution and
    the same cotangent: error_estimate always, error_bound with certify=True (or a `Certificate`), with
    `solution.certified` and, where it could not be had, the reason in `solution.status.certification`. The
    inner residual is measured at the phi given. key: for the certificate's random start.
    """
    require_anchor(problem)
    refuse_system(linear, problem)
    if not tree.same(cotangent, phi):
        raise ConfigError(
            f"implicit_vjp: the cotangent must be shaped like phi, {tree.shapes(phi)}; it came as "
            f"{tree.shapes(cotangent)}."
        )
    rule = Implicit(linear, certificate_of(certify))
    implied = rule.at(Case(problem, theta, batch, constant(cotangent, theta)), problem.split(phi), key)
    return implied.gradient, implied.linear
