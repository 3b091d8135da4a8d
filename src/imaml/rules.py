"""How d phi*/d theta is had, apart from the solver that found phi*.

implicit     d phi*/d theta = -(dF/dphi)^-1 dF/dtheta at the solution       iMAML; paper, Lemma 1
unrolled     through every step of the inner solver                          MAML
first_order  d phi/d theta = d init/d theta                                  first-order MAML
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
from jax import Array, lax

from . import tree
from .errors import ConfigError, StructureError
from .inner import InnerSolver
from .linear import LinearSolver, refuse_structure
from .problem import Problem, require_anchor
from .solution import Solution


class Rule(Protocol):
    """Makes the solution of a problem a differentiable function of theta and the batch."""

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Any:
        """The adapted leaves at the solution."""
        ...


@dataclass(frozen=True)
class Implicit:
    """The implicit function theorem; made by `implicit(linear)`."""

    linear: LinearSolver

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Any:
        """The adapted leaves at the solution, differentiable in every mode and order."""
        require_anchor(problem)
        refuse_structure(self.linear, problem.structure)
        # One flat vector: custom_root fails with a bare AssertionError where a leaf of F ignores theta.
        flat, unravel = tree.ravel(lax.stop_gradient(phi0))

        def residual(x: Array) -> Array:
            return tree.ravel(problem.residual(unravel(x), theta, batch))[0]

        def find(_: Any, start: Array) -> Array:
            return tree.ravel(inner(problem, theta, batch, unravel(start), key).value)[0]

        def solve_tangent(product: Any, b: Array) -> Array:
            solve = lambda matvec, b: self.linear(matvec, b, structure=problem.structure).value  # noqa: E731
            symmetric = problem.structure != "general"
            return lax.custom_linear_solve(
                product, b, solve, None if symmetric else solve, symmetric=symmetric
            )

        return unravel(lax.custom_root(residual, flat, find, solve_tangent))


@dataclass(frozen=True)
class Unrolled:
    """Differentiation through every inner step; made by `unrolled()`."""

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Any:
        """The adapted leaves after the inner steps."""
        if getattr(inner, "tolerance", None) is not None:
            raise StructureError(
                f"unrolled() needs an inner solver with a fixed number of steps; {inner!r} stops at a "
                "tolerance, and such a loop has no reverse mode. Give steps= and no tolerance, or use "
                "implicit(...)."
            )
        return inner(problem, theta, batch, phi0, key).value


@dataclass(frozen=True)
class FirstOrder:
    """d phi/d theta = d init/d theta; made by `first_order()`."""

    def __call__(
        self, problem: Problem, inner: InnerSolver, theta: Any, batch: Any, phi0: Any, key: Array | None
    ) -> Any:
        """The adapted leaves at the solution; derivatives pass to where the solver started."""
        fixed = lax.stop_gradient((problem, theta, batch, phi0))
        found = inner(*fixed, key).value
        return jax.tree.map(lambda p, s: lax.stop_gradient(p) + (s - lax.stop_gradient(s)), found, phi0)


def implicit(linear: LinearSolver) -> Implicit:
    """The implicit rule: exact up to how well phi* and the linear system are solved (Lemma 1).

    Built on `lax.custom_root`: forward mode, reverse mode, second order, and derivatives with respect to
    strength and data, passed or closed over. Memory does not grow with the inner steps. A rule cannot hand
    out the backward solve's status: where that matters (training), use `implicit_vjp`.
    """
    if not callable(linear):
        raise ConfigError(
            f"implicit: {linear!r} is no linear solver; pass one such as CG(steps=5) or Dense()."
        )
    return Implicit(linear)


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
    problem: Problem, phi: Any, theta: Any, batch: Any, cotangent: Any, *, linear: LinearSolver
) -> tuple[Any, Solution]:
    """The cotangent of theta, -(dF/dtheta)^T A^-T cotangent with A = dF/dphi, and the linear Solution.

    phi: the full tree at the inner solution. cotangent: d query_loss / d phi, a full tree. The direct term
    d query_loss / d theta is not in it: add it (paper, eq. 6 and Algorithm 2, line 4). Shared leaves are
    theta's own, so their cotangent passes straight through: this is the transpose of d phi/d theta for the
    full phi that `solve` returns. Solution.value is u with A^T u = cotangent, over the adapted leaves.
    """
    theta_bar, solution, _ = implicit_vjp_at(problem, phi, theta, batch, cotangent, linear=linear)
    return theta_bar, solution


def implicit_vjp_at(
    problem: Problem, phi: Any, theta: Any, batch: Any, cotangent: Any, *, linear: LinearSolver
) -> tuple[Any, Solution, Any]:
    """`implicit_vjp` and the residual F at phi, which the linearisation gives for free."""
    require_anchor(problem)
    refuse_structure(linear, problem.structure)
    if not tree.same(cotangent, phi):
        raise ConfigError(
            f"implicit_vjp: the cotangent must be shaped like phi, {tree.shapes(phi)}; it came as "
            f"{tree.shapes(cotangent)}."
        )
    adapted = problem.split(phi)
    residual = lambda p: problem.residual(p, theta, batch)  # noqa: E731
    if problem.structure == "general":
        value, pull = jax.vjp(residual, adapted)
        product = lambda u: pull(u)[0]  # noqa: E731
    else:
        value, product = jax.linearize(residual, adapted)  # A is its own transpose
    solution = linear(product, problem.split(cotangent), structure=problem.structure)
    _, pull_theta = jax.vjp(lambda t: problem.residual(adapted, t, batch), theta)
    (theta_bar,) = pull_theta(jax.tree.map(lambda u: -u, solution.value))
    if problem.adapt.choice is not None:
        _, pull_shared = jax.vjp(lambda t: problem.full(lax.stop_gradient(adapted), t), theta)
        theta_bar = jax.tree.map(lambda a, b: a + b, theta_bar, pull_shared(cotangent)[0])
    return theta_bar, solution, value
