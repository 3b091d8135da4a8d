"""The implicit rule: d phi*/d theta = -(dF/dphi)^-1 dF/dtheta at the solution (iMAML, Lemma 1).

A rule is independent of the solver that found phi*. It makes `solve` differentiable, and estimates one task's
meta-gradient. Others are in `unrolled`, `one_step`, `reptile` and `joint`.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated, ClassVar, Self

import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.fields import PositiveFraction, Such
from ..core.solution import Certification, Solution, Status
from ..core.tree import Tree
from ..inner.base import InnerSolver, Instance, judged
from ..linear.base import LinearSolver, Matvec
from ..linear.cg import CG
from ..problems.base import RULES, Key, Problem, Task, require_anchor
from ..problems.linearised import Known, refuse_system, solve_linear
from .accuracy import Tightening, until_accurate
from .arguments import require_parameters
from .base import Flag, Learning, RuleBase, StepNumber, TaskGradient
from .certificate import Certificate, certified_from, key_of
from .estimate import error_estimate, estimate_at
from .newton_step import corrected, start
from .system import Case, OuterLoss, linear_outer_loss, outer_loss_of


@dataclass(frozen=True)
class ImplicitBase(RuleBase):
    """A base of rules that solve the implicit rule's linear system; the fields are those of `Implicit`."""

    linear: LinearSolver | None = None
    _: KW_ONLY
    certify: bool | Certificate = False
    correct: bool = False
    # Traced at a step of training, where a `Tightening` has been asked for its number.
    accuracy: PositiveFraction | Tightening | Annotated[Array, Such("a traced number")] | None = None
    estimating: Flag = True
    learns_rates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        if not callable(self.linear) and (self.linear is not None or self.accuracy is None):
            raise ConfigError(
                f"{self.owner}: linear: expected a linear solver such as CG(steps=5) or Dense(), got "
                f"{self.linear!r}."
            )

    @property
    def solver(self) -> LinearSolver:
        """The linear solver; conjugate gradients where only an accuracy is asked for."""
        return CG(steps=200, tolerance=0.1) if self.linear is None else self.linear

    @property
    def certificate(self) -> Certificate | None:
        """How errors are bounded, or None."""
        return Certificate() if self.certify is True else self.certify or None

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the problem is anchored and that the linear solver accepts its systems."""
        require_anchor(problem, self.owner)
        refuse_system(self.solver, problem)
        if not (getattr(inner, "learns_rates", False) and problem.has_objective and self.learns_rates):
            super().refuse(problem, inner)
        if problem.structure != "spd" and (self.correct or self.accuracy is not None):
            raise StructureError(
                f"{self.owner}: correct and accuracy: expected a problem of structure 'spd', as they take "
                f"Newton steps by conjugate gradients, got {problem.structure!r}. Hint: use step counts "
                "and tolerances."
            )

    def at_step(self, step: StepNumber, estimate: Flag = True) -> Self:
        """The rule at a step of training.

        Args:
            step: The step, from 0; None for the end of training.
            estimate: Whether the error is estimated, a boolean that may be traced.

        Returns:
            The rule, with the accuracy of that step.
        """
        rule = self if estimate is True else replace(self, estimating=estimate)
        asked = self.accuracy
        return replace(rule, accuracy=asked.at(step)) if isinstance(asked, Tightening) else rule

    def under(self, outer: OuterLoss, learning: Learning, theta: Tree, batch: Tree, key: Key) -> TaskGradient:
        """One task's meta-gradient of an outer loss at the parameters adapted to a batch.

        Args:
            outer: The outer loss, phi -> `OuterValue`.
            learning: The problem and the inner solver.
            theta: The meta-parameters.
            batch: The support set.
            key: A random key, or None.

        Returns:
            The task's meta-gradient and its statistics.
        """
        _, found = learning.solved(theta, batch, key)
        at = self.at(Case(learning.problem, theta, batch, outer), found.value, key)
        if self.learns_rates and getattr(learning.inner, "learns_rates", False):
            # No query loss at a solution depends on how it was found, so rates have a signal of their own.
            instance = Instance(learning.problem, theta, batch, found.value, key)
            rates = learning.inner.rate_gradient(instance, found.value)  # type: ignore[attr-defined]
            at = at._replace(gradient=at.gradient._replace(log_rate=rates))
        assert at.residual is not None
        return at._replace(inner=judged(found, at.residual))

    def at(self, case: Case, adapted: Tree, key: Key) -> TaskGradient:
        """The meta-gradient at a task's adapted parameters, which `correct` and `accuracy` move on.

        Args:
            case: The task.
            adapted: The adapted parameters.
            key: A random key for probes, or None.

        Returns:
            The meta-gradient, and the parameters that it is of; no inner Solution.
        """
        system, certificate = case.system(adapted), self.certificate
        solution = system.solve(self.solver)  # A^T u = d outer / d phi
        # The meta-gradient there is direct - (dF/dtheta)^T u (paper, equation 6).
        point, key = start(case, system, solution, adapted), key_of(key, adapted)
        if self.accuracy is not None:
            asked = self.accuracy
            asked = asked.at(None) if isinstance(asked, Tightening) else asked
            point, linear = until_accurate(asked, certificate, case, system, point, key)
        else:
            estimate, code = error_estimate(case, system, solution, adapted, self.estimating)
            bound = None
            if self.correct:  # one Newton step, and the system solved again there
                point = corrected(case, point, (certificate or Certificate()).steps, key)
                estimate = estimate_at(case, system, point)
                code = jnp.full_like(code, int(Certification.ESTIMATED))
            spent = point.products
            if certificate is not None:  # the bound is of the point's error, corrected or not
                bound, code, products = certified_from(certificate, case, point, key)
                spent = spent + products
            stats = replace(solution.stats, steps=spent, error_estimate=estimate, error_bound=bound)
            linear = Solution(solution.value, stats, Status(solution.status.code, code))
        phi = case.problem.full(point.adapted, case.theta)
        return TaskGradient(point.gradient, point.loss, phi, point.residual, linear=linear)


@dataclass(frozen=True)
class Implicit(ImplicitBase):
    """The implicit rule: exact up to how well phi* and the linear system are solved.

    It is built on `lax.custom_root`: forward mode, reverse mode, second order, and derivatives in strength
    and data all work. Memory does not grow with the number of inner steps. Automatic differentiation cannot
    return how the linear solve ended; where that matters, as in training, use `implicit_vjp`.

    Args:
        linear: The linear solver, such as ``CG(steps=5)``. It may be omitted if `accuracy` is given.
        certify: Whether `IMAML` bounds each task's error: True, or a `Certificate`.
        correct: Whether `IMAML` takes one more Newton step, after which the error falls with the square of
            the inner solution's. The linear steps then count its products, too.
        accuracy: The error asked for, relative to the norm of a task's meta-gradient, or a `Tightening`.
            Newton steps and linear solves go on from the inner solution until it is reached.
        estimating: Whether the error is estimated where it is not bounded, a boolean that may be traced.

    `certify`, `correct` and `accuracy` do not change the derivatives of `solve`.

    Raises:
        ConfigError: If an argument is not valid.

    Example:
        >>> import imaml
        >>> imaml.implicit(imaml.CG(steps=5)).correct
        False

    References:
        Rajeswaran et al. (2019), Lemma 1 and equation 6.
    """

    owner: ClassVar[str] = "implicit"
    learns_rates: ClassVar[bool] = True

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """Add the direct term to `implicit_vjp`: the explicit route, which keeps the solves' statistics."""
        outer = outer_loss_of(learning.query_loss, theta, task.query)
        return self.under(outer, learning, theta, task.support, key)

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Tree, batch: Tree, phi0: Tree, key: Key
    ) -> Tree:
        """Return the adapted parameters, differentiable in every mode and order; see `Rule`."""
        require_anchor(problem, self.owner, RULES)
        require_parameters(self.owner, theta, wide=True)
        self.refuse(problem, inner)
        # One flat vector: custom_root fails with a bare AssertionError where a leaf of F ignores theta.
        flat, unravel = tree.ravel(lax.stop_gradient(phi0))

        def residual(x: Array) -> Array:
            return tree.ravel(problem.residual(unravel(x), theta, batch))[0]

        def find(_: Callable, start: Array) -> Array:
            return tree.ravel(inner(problem, theta, batch, unravel(start), key).value)[0]

        anchor, inverse = Known.of(problem, phi0, theta, batch)
        flattened = None if inverse is None else lambda b: tree.ravel(inverse(unravel(b)))[0]
        known = Known(None if anchor is None else tree.ravel(tree.spread(anchor, phi0))[0], flattened)

        def solve_tangent(product: Matvec, b: Array) -> Array:
            return solve_linear(self.solver, product, b, problem.structure, known)

        return unravel(lax.custom_root(residual, flat, find, solve_tangent))


implicit = Implicit


def implicit_vjp(
    problem: Problem,
    phi: Tree,
    theta: Tree,
    batch: Tree,
    cotangent: Tree,
    *,
    linear: LinearSolver,
    certify: bool | Certificate = False,
    key: Key = None,
) -> tuple[Tree, Solution]:
    """The cotangent of theta, -(dF/dtheta)^T A^-T cotangent with A = dF/dphi.

    It does not include the direct term d query_loss / d theta: add it yourself. Shared parameters are those
    of theta, so their cotangent passes through unchanged: this is the transpose of d phi/d theta for the full
    phi that `solve` returns.

    Args:
        problem: The inner problem.
        phi: The full tree at the inner solution.
        theta: The meta-parameters.
        batch: The support set.
        cotangent: d query_loss / d phi, a full tree.
        linear: The linear solver.
        certify: Whether to bound the error: True, or a `Certificate`.
        key: A random key for the certificate's probes, or None.

    Returns:
        The cotangent of theta, and the linear Solution. Its value is u with A^T u = cotangent, over the
        adapted parameters. ``stats.error_estimate`` estimates the error of theta's cotangent, against that at
        the exact inner solution and the same cotangent; with `certify`, ``stats.error_bound`` bounds it if
        ``certified``, else ``status.certification`` says why not. The inner residual is measured at the phi
        given.

    Raises:
        StructureError: If the problem is not anchored, or the linear solver does not accept its structure.
        ConfigError: If the cotangent is not shaped like phi.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> phi, theta = jnp.array([0.5]), jnp.zeros(1)
        >>> imaml.implicit_vjp(problem, phi, theta, jnp.ones(1), jnp.ones(1), linear=imaml.CG(steps=1))[0]
        Array([0.5], dtype=float32)

    References:
        Rajeswaran et al. (2019), equation 6 and Algorithm 2, line 4.
    """
    require_anchor(problem, "implicit_vjp", RULES)
    require_parameters("implicit_vjp", theta, wide=True)
    refuse_system(linear, problem)
    if not tree.same(cotangent, phi):
        raise ConfigError(
            f"implicit_vjp: cotangent: expected one shaped like phi, {tree.shapes(phi)}, got "
            f"{tree.shapes(cotangent)}."
        )
    # The outer loss cotangent^T phi has the slope that is given and no direct term in theta.
    # So its implicit gradient is the cotangent of theta alone.
    rule = Implicit(linear, certify=certify)
    case = Case(problem, theta, batch, linear_outer_loss(cotangent, theta))
    implied = rule.at(case, problem.split(phi), key)
    assert implied.linear is not None
    return implied.gradient, implied.linear
