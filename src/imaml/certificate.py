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
from .linear import CG
from .problem import Problem
from .solution import Certification, Solution
from .spectrum import norm_bound, ritz, smallest_bound
from .system import Judge, System, system_at

SAFETY = 3.0  # the change along one direction is sampled; that along others is taken to be this much more


@dataclass(frozen=True)
class Certificate:
    """How a bound of a meta-gradient's error is had; `certify=True` means `Certificate()`.

    One Newton step w is taken from phi, at most `steps` products of conjugate gradients, and the linear
    system is solved again there from the old u, at most `steps` more. The bound is the distance between both
    meta-gradients, plus what is left of the second one's error: with r', rho' of the second point

        |g - g'|  +  |B|/mu (|rho'|  +  3 c |r'|/mu),      c = |d(v - A u)| / |w|  as seen along w

    mu is the least strength where the problem is declared convex or has Gauss-Newton curvature (for which the
    bound is then one of the Gauss-Newton gradient). Else it is Lanczos' bound of A's smallest eigenvalue from
    a random start, after `lanczos` products, which holds but with probability `failure` (Kuczynski and
    Wozniakowski 1992), less three times the change of A seen along w. |B| is the largest strength where all
    leaves are adapted and strength is fixed, else bounded by Lanczos on B B^T alike. The constants of a
    Lipschitz bound (Ehrhardt and Roberts 2023) are so replaced by what one direction shows, times 3: no proof
    for every function, but for a quadratic loss; docs/certificates.md says how often it held.

    tolerance: how far either solve goes at most, relative to what it began with.
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


@dataclass(frozen=True)
class Examined:
    """What a certificate found: the bound and why there is none; and a better gradient with its own bound."""

    bound: Array
    code: Array
    refined: Any
    refined_bound: Array
    refined_phi: Any


def error_estimate(problem: Problem, system: System, solution: Solution, phi: Any, theta: Any) -> Array:
    """The error of the meta-gradient as estimated from what the solves leave behind, with no product more.

    ```
    |B| (|rho| + |v| |r| / (m |phi - theta|)) / m         m the smallest Ritz value, |B| as |B^T u| / |u|
    ```

    where the second term takes v - A u to change by itself over the way that the task went. Infinite where m
    is not positive. No bound: m lies above the smallest eigenvalue.
    """
    u, right = solution.value, tree.norm(system.right)
    size, image = tree.norm(u), tree.norm(system.through(u))
    some = size > 0
    smallest = tree.dot(u, system.right) / jnp.where(some, size**2, 1)  # Rayleigh's quotient of u
    if problem.structure == "general":
        smallest = right / jnp.where(some, size, 1)
    elif solution.stats.lanczos is not None:
        smallest = ritz(solution.stats.lanczos, solution.stats.steps)[0]
    negative = solution.stats.negative_curvature | ~(smallest > 0)
    mean = problem.split(problem.mean(theta))
    way = tree.norm(jax.tree.map(jnp.subtract, phi, mean)) if tree.same(phi, mean) else tree.norm(phi)
    off = tree.norm(system.residual) / smallest
    share = jnp.minimum(off / jnp.where(way > 0, way, 1), 1)
    sensitivity = jnp.where(some, image / jnp.where(some, size, 1), 1)
    estimate = sensitivity * (solution.stats.residual * right / smallest + size * share)
    return jnp.where(negative | ~jnp.isfinite(estimate), jnp.inf, estimate)


def examine(
    recipe: Certificate,
    problem: Problem,
    system: System,
    solution: Solution,
    adapted: Any,
    theta: Any,
    batch: Any,
    judge: Judge,
    key: Array,
) -> Examined:
    """The certificate of the gradient that `solution` means at the adapted leaves; see `Certificate`.

    For a problem declared "spd" only: others get the code NO_BOUND.
    """
    if problem.structure != "spd":
        nothing = jnp.full_like(solution.stats.residual, jnp.inf)
        code = jnp.full_like(solution.status.code, int(Certification.NO_BOUND))
        return Examined(nothing, code, system.gradient(solution.value), nothing, adapted)
    keys = jax.random.split(key)
    solver = CG(steps=recipe.steps, tolerance=recipe.tolerance)
    minus = lambda a, b: jax.tree.map(jnp.subtract, a, b)  # noqa: E731
    way = solver(system.product, system.residual).value
    nearer = minus(adapted, way)
    there = system_at(problem, nearer, theta, batch, judge)
    left = minus(system.right, system.product(solution.value))
    new_image = there.product(solution.value)
    new_left = minus(there.right, new_image)
    further = solver(there.product, new_left)
    refined = jax.tree.map(jnp.add, solution.value, further.value)
    still = tree.norm(minus(there.right, there.product(refined)))
    gradient, better = system.gradient(solution.value), there.gradient(refined)

    length, size = tree.norm(way), tree.norm(solution.value)
    per = lambda change: tree.norm(change) / jnp.where(length > 0, length, 1)  # noqa: E731
    turning = per(minus(new_left, left))
    bending = per(minus(minus(there.right, new_left), minus(system.right, left))) / jnp.where(
        size > 0, size, 1
    )
    floor = problem.curvature_floor(adapted, theta)
    exact = floor is not None
    if floor is None:
        flat, unravel = tree.ravel(nearer)
        product = lambda vector: tree.ravel(there.product(unravel(vector)))[0]  # noqa: E731
        floor = smallest_bound(product, flat, keys[0], recipe.lanczos, recipe.failure)
        floor = floor - SAFETY * bending * length
    known = floor > 0
    mu = jnp.where(known, floor, 1)
    beyond = tree.norm(there.residual) / mu
    weight = _weight(problem, there, nearer, theta, batch, recipe, keys[1]) / mu
    after = weight * (still + SAFETY * turning * beyond)
    # Rounding: every product of the solves is off by some units in the last place of what it adds up.
    rounding = jnp.finfo(length.dtype).eps * (tree.norm(better) + weight * tree.norm(there.right))
    after = after + 10 * rounding
    bound = tree.norm(minus(gradient, better)) + after
    near = exact | (beyond <= length) | (SAFETY * bending * beyond <= 0.1 * mu)
    finite = jnp.isfinite(bound) & tree.finite(better)
    code = jnp.where(near, int(Certification.CERTIFIED), int(Certification.SOLUTION_TOO_FAR))
    code = jnp.where(known, code, int(Certification.CURVATURE_UNKNOWN))
    code = jnp.where(finite, code, int(Certification.NO_BOUND))
    good = code == int(Certification.CERTIFIED)
    return Examined(jnp.where(good, bound, jnp.inf), code, better, jnp.where(good, after, jnp.inf), nearer)


def _weight(
    problem: Problem, system: System, adapted: Any, theta: Any, batch: Any, recipe: Certificate, key: Array
) -> Array:
    """An upper bound of |dF/dtheta|."""
    whole = problem.adapt.choice is None and problem.learns is None
    if problem.kind == "proximal" and whole:
        most = [jnp.max(leaf) for leaf in jax.tree.leaves(problem.strengths(adapted, theta))]
        return jnp.max(jnp.stack(most))
    flat, unravel = tree.ravel(adapted)

    def gram(vector: Array) -> Array:
        pulled = system.through(unravel(vector))
        pushed = jax.jvp(lambda t: problem.residual(adapted, t, batch), (theta,), (pulled,))[1]
        return -tree.ravel(pushed)[0]

    return norm_bound(gram, flat, key, recipe.lanczos, recipe.failure)
