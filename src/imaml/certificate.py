"""What is known of an implicit meta-gradient's error: an estimate that is nearly free, and a certified bound.

Let phi* solve F = 0, e = phi - phi*, r = F(phi), A = dF/dphi >= mu > 0, B = dF/dtheta, rho = v - A u what the
linear solve left over, and g the meta-gradient had from phi and u. Then (Pedregosa 2016; Grazzi et al. 2020)

    |e| <= |r| / mu        g - g* = B^T A^-1 rho  +  a term of e, about  B^T A^-1 d(v - A u)/dphi e
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import tree
from .errors import require_number, require_whole
from .refinement import SAFETY, Move, newton_move
from .solution import Certification, Solution
from .spectrum import norm_bound, ritz, smallest_bound
from .system import Case, System


@dataclass(frozen=True)
class Certificate:
    """How a bound of a meta-gradient's error is had; `certify=True` means `Certificate()`.

    One Newton step w is taken from phi, at most `steps` products of conjugate gradients, and the linear
    system is solved again there from the old u, at most `steps` more. The bound is the distance between both
    meta-gradients, plus what is left of the second one's error: with r', rho' of the second point

        |g - g'|  +  |B|/mu (|rho'|  +  3 c |r'|/mu),      c = |d(v - A u)| / |w|  as seen along w

    (and alike for what of the meta-gradient changes at fixed u, where theta enters it in other ways).

    mu is the least strength where the problem is declared convex or has Gauss-Newton curvature (for which the
    bound is then one of the Gauss-Newton gradient, and |F| must at least halve along w). Else it is Lanczos'
    bound of A's smallest eigenvalue from a random start, after `lanczos` products, which holds but with
    probability `failure` (Kuczynski and Wozniakowski 1992), less three times the change of A seen along w.
    |B| is the largest strength where all leaves are adapted and strength is fixed, else bounded by Lanczos on
    B B^T alike. The constants of a Lipschitz bound (Ehrhardt and Roberts 2023) are so replaced by what one
    direction shows, times 3: a proof for quadratic losses only; docs/certificates.md says how often it held.

    tolerance: how far either solve goes at most, relative to what it began with (with `correct=True` on to
    the root of the dtype's precision).
    """

    steps: int = 50
    tolerance: float = 0.01
    lanczos: int = 40
    failure: float = 0.01

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("Certificate", 1, steps=self.steps)
        require_whole("Certificate", 2, lanczos=self.lanczos)
        require_number("Certificate", open=True, below=1, tolerance=self.tolerance, failure=self.failure)


def certificate_of(asked: Any) -> Certificate | None:
    """The recipe that a `certify=` means: False, True, or a Certificate."""
    if isinstance(asked, Certificate) or asked is None:
        return asked
    return Certificate() if asked else None


def error_estimate(case: Case, system: System, solution: Solution, adapted: Any) -> Array:
    """The error of the meta-gradient as estimated from what the solves leave behind, with no product more.

    ```
    |B| (|rho| + |v| |r| / (m |phi - theta|)) / m         m the smallest Ritz value, |B| as |B^T u| / |u|
    ```

    where the second term takes v - A u to change by itself over the way that the task went. Infinite where m
    is not positive. No bound: m lies above the smallest eigenvalue.
    """
    problem, theta, u, right = case.problem, case.theta, solution.value, tree.norm(system.right)
    size = tree.norm(u)
    some = size > 0
    smallest = tree.dot(u, system.right) / jnp.where(some, size**2, 1)  # Rayleigh's quotient of u
    if problem.structure == "general":
        smallest = right / jnp.where(some, size, 1)
    elif solution.stats.lanczos is not None:
        smallest = ritz(solution.stats.lanczos, solution.stats.steps)[0]
    negative = solution.stats.negative_curvature | ~(smallest > 0)
    mean = problem.split(problem.mean(theta))
    way = tree.norm(tree.minus(adapted, mean) if tree.same(adapted, mean) else adapted)
    off = tree.norm(system.residual) / smallest
    share = jnp.minimum(off / jnp.where(way > 0, way, 1), 1)
    estimate = sensitivity(system, u) * (solution.stats.residual * right / smallest + size * share)
    return jnp.where(negative | ~jnp.isfinite(estimate), jnp.inf, estimate)


def moved(
    recipe: Certificate, case: Case, system: System, solution: Solution, adapted: Any, exact: bool = False
) -> Move:
    """The Newton step that a certificate is made of, from a task's adapted leaves and linear Solution.

    exact: whether both its solves go to the root of the dtype's precision, so that what they leave over does
    not hide that the error falls with the square of the distance.
    """
    root = float(jnp.finfo(system.loss.dtype).eps) ** 0.5
    tolerance = min(recipe.tolerance, root) if exact else recipe.tolerance
    share = lambda size, *_: tolerance * size  # noqa: E731
    return newton_move(case, system, adapted, solution.value, recipe.steps, (share, share))


def bound_after(recipe: Certificate, case: Case, move: Move, key: Array) -> tuple[Array, Array]:
    """The bound of the error of the meta-gradient after a Newton step, and the code of `Certification`."""
    keys = jax.random.split(key)
    problem, adapted = case.problem, move.adapted
    floor = problem.curvature_floor(adapted, case.theta)
    contracts = move.residual <= 0.5 * move.before
    if floor is None:
        flat, unravel = tree.ravel(adapted)
        _, curve = jax.linearize(case.residual, adapted)
        product = lambda vector: tree.ravel(curve(unravel(vector)))[0]  # noqa: E731
        floor = smallest_bound(product, flat, keys[0], recipe.lanczos, recipe.failure)
        floor = floor - SAFETY * move.bending * move.length
    known = floor > 0
    mu = jnp.where(known, floor, 1)
    beyond = move.residual / mu
    bound = error_after(move, mu, weight_of(recipe, case, adapted, keys[1]))
    if problem.convex:
        near = jnp.asarray(True)
    elif problem.curvature == "gauss-newton":  # F itself may be flatter than that: its steps must contract
        near = contracts | (beyond <= 1e4 * jnp.finfo(mu.dtype).eps * tree.norm(adapted))
    else:
        near = (beyond <= move.length) | (SAFETY * move.bending * beyond <= 0.1 * mu)
    finite = jnp.isfinite(bound) & tree.finite(move.gradient)
    code = jnp.where(near, int(Certification.CERTIFIED), int(Certification.SOLUTION_TOO_FAR))
    code = jnp.where(known, code, int(Certification.CURVATURE_UNKNOWN))
    code = jnp.where(finite, code, int(Certification.NO_BOUND))
    return jnp.where(code == int(Certification.CERTIFIED), bound, jnp.inf), code


def error_after(move: Move, mu: Array, weight: Array) -> Array:
    """|B|/mu (|v - A u| + 3 turning |F|/mu) + 3 drifting |F|/mu, and some units in the last place."""
    beyond = move.residual / mu
    share = weight / mu
    rounding = 10 * jnp.finfo(mu.dtype).eps * (tree.norm(move.gradient) + share * move.size)
    through = share * (move.left + SAFETY * move.turning * beyond)
    return through + SAFETY * move.drifting * beyond + rounding


def anchor_weight(case: Case, adapted: Any) -> Array | None:
    """|dF/dtheta| where it is the largest strength: all leaves adapted, the strength fixed; else None."""
    problem = case.problem
    if problem.kind != "proximal" or problem.adapt.choice is not None or problem.learns_more:
        return None
    most = [jnp.max(leaf) for leaf in jax.tree.leaves(problem.strengths(adapted, case.theta))]
    return jnp.max(jnp.stack(most))


def sensitivity(system: System, u: Any) -> Array:
    """|B^T u| / |u|, an estimate of |B|; 1 for u = 0."""
    size = tree.norm(u)
    return jnp.where(size > 0, tree.norm(system.through(u)) / jnp.where(size > 0, size, 1), 1)


def estimate_after(case: Case, system: System, move: Move) -> Array:
    """The error of the meta-gradient after a Newton step, by the least Ritz value that it saw; no bound."""
    floor = case.problem.curvature_floor(move.adapted, case.theta)
    mu = move.smallest if floor is None else floor
    estimate = error_after(move, jnp.where(mu > 0, mu, 1), sensitivity(system, move.u))
    return jnp.where((mu > 0) & ~move.negative, estimate, jnp.inf)


def weight_of(recipe: Certificate, case: Case, adapted: Any, key: Array) -> Array:
    """An upper bound of |dF/dtheta|."""
    problem, theta, batch, _ = case
    known = anchor_weight(case, adapted)
    if known is not None:
        return known
    flat, unravel = tree.ravel(adapted)
    _, pull = jax.vjp(lambda t: problem.residual(adapted, t, batch), theta)

    def gram(vector: Array) -> Array:
        pulled = pull(unravel(vector))
        return tree.ravel(jax.jvp(lambda t: problem.residual(adapted, t, batch), (theta,), pulled)[1])[0]

    return norm_bound(gram, flat, key, recipe.lanczos, recipe.failure)
