"""How theta learns from a task, apart from the solver that found phi*.

implicit      d phi*/d theta = -(dF/dphi)^-1 dF/dtheta at the solution       iMAML; paper, Lemma 1
unrolled      through every step of the inner solver                          MAML
first_order   d phi/d theta = d init/d theta                                  first-order MAML

They make `solve` differentiable, and estimate one task's meta-gradient. One more does both, `last_step`;
those that learn from all of a task's data at once are in `pooled`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.solution import Certification, Solution, Status
from ..core.tree import PyTree
from ..inner.base import InnerSolver, judged
from ..linear.base import LinearSolver
from ..linear.cg import CG
from ..problems.base import Problem, Task, require_anchor
from ..problems.linearised import anchor_of, refuse_system, solve_anchored
from .accuracy import Tightening, check_accuracy, until_accurate
from .base import Learning, TaskGradient, refuse_learned_rate
from .certificate import Certificate, certificate_of, certified_from, corrected, key_of
from .estimate import error_estimate, estimate_at
from .newton_step import start
from .system import Case, Judge, constant, judge_of


class Implied(NamedTuple):
    """The adapted leaves that a meta-gradient is of, it, the query loss, |F|, and the linear Solution."""

    adapted: PyTree
    gradient: PyTree
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

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """The direct term plus `implicit_vjp`: the explicit route, which keeps the solves' statistics."""
        judge = judge_of(learning.query_loss, theta, task.query)
        return self.under(judge, learning, theta, task.support, key)

    def under(
        self, judge: Judge, learning: Learning, theta: PyTree, batch: PyTree, key: Array | None
    ) -> TaskGradient:
        """One task's meta-gradient of whatever judges the parameters adapted to a batch."""
        problem = learning.problem
        phi, found = learning.solved(theta, batch, key)
        at = self.at(Case(problem, theta, batch, judge), found.value, key)
        phi = phi if at.adapted is found.value else problem.full(at.adapted, theta)
        return TaskGradient(at.gradient, at.loss, phi, at.residual, judged(found, at.residual), at.linear)

    def at(self, case: Case, adapted: PyTree, key: Array | None) -> Implied:
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
        self,
        problem: Problem,
        inner: InnerSolver,
        theta: PyTree,
        batch: PyTree,
        phi0: PyTree,
        key: Array | None,
    ) -> PyTree:
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
            def solve(matvec: Any, b: Array) -> PyTree:
                return solve_anchored(self.linear, matvec, b, problem.structure, anchor).value

            symmetric = problem.structure != "general"
            return lax.custom_linear_solve(
                product, b, solve, None if symmetric else solve, symmetric=symmetric
            )

        return unravel(lax.custom_root(residual, flat, find, solve_tangent))


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


def implicit_vjp(
    problem: Problem,
    phi: PyTree,
    theta: PyTree,
    batch: PyTree,
    cotangent: PyTree,
    *,
    linear: LinearSolver,
    certify: bool | Certificate = False,
    key: Array | None = None,
) -> tuple[PyTree, Solution]:
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
