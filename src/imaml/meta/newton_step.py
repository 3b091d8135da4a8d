"""Newton steps from a task's solution, each followed by the linear solve there, until little is left over.

With phi the point reached, u the solution of A u = v there, R a bound of |phi - phi*| and B = dF/dtheta, the
meta-gradient g is off by at most (docs/certificates.md, inequality 2)

    |B|/mu (|v - A u| + |D(v - A u)| R)  +  |Dg| R,          R = |F(phi)| / mu

where D is the derivative in phi at fixed u, and the norms hold on the ball of radius R about phi. This module
takes the steps and measures the terms; `certificate` says what a bound made of them is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.loops import repeat_while
from ..core.solution import Solution
from ..core.tree import PyTree
from ..linear.cg import conjugate_gradients
from ..linear.lanczos import bilinear_factor, linear_factor, ritz
from .system import Case, System

PROBES = 3
HALVINGS = 10


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rates:
    """How fast things change with phi around a point; scalars, per unit of length, u held fixed.

    system: the norm of D(v - A u). gradient: that of D of the meta-gradient. curvature: the largest norm of
    the change of F's derivative, over all directions. rounding: how far F as computed is off, as an absolute
    norm.
    """

    system: Array
    gradient: Array
    curvature: Array
    rounding: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Point:
    """Adapted leaves phi, a u that nearly solves A u = v there, and what is known of both.

    gradient: the meta-gradient that phi and u mean, shaped like theta. loss: the query loss. residual: |F|.
    mismatch: |v - A u|, with what rounding may add; size: |v|. rates: around phi. scale: the length that
    distances from phi are measured against. products: with A, that were needed so far. smallest, largest:
    Ritz values of A seen so far; negative: whether negative curvature was seen.
    """

    adapted: PyTree
    u: PyTree
    gradient: PyTree
    loss: Array
    residual: Array
    mismatch: Array
    size: Array
    rates: Rates
    scale: Array
    products: Array
    smallest: Array
    largest: Array
    negative: Array


class Constants(NamedTuple):
    """floor: a lower bound of the eigenvalues of F's derivative; system: of A's; weight: |B|. Scalars."""

    floor: Array
    system: Array
    weight: Array


def radius(point: Point, constants: Constants) -> Array:
    """A bound of |phi - phi*| where F's derivative is at least `constants.floor`."""
    return (point.residual + point.rates.rounding) / constants.floor


def rounding(point: Point, constants: Constants) -> Array:
    """What rounding may make of the meta-gradient apart + B^T u; |apart| is at most |g| + |B| |u|."""
    size = tree.norm(point.gradient) + constants.weight * tree.norm(point.u)
    return 10 * jnp.finfo(size.dtype).eps * size


def leftover(point: Point, constants: Constants) -> Array:
    """A bound of the error of a point's meta-gradient, if the constants and rates are bounds."""
    distance = radius(point, constants)
    through = point.mismatch + point.rates.system * distance
    share = constants.weight / constants.system
    return share * through + point.rates.gradient * distance + rounding(point, constants)


# Measures the rates around a point: (here, adapted, u, length of the probes, key) -> Rates.
Sampler = Callable[[System, Any, Any, Array, Array], Rates]


def sampler(case: Case, failure: float, bending: bool, probes: int = PROBES) -> Sampler:
    """Measures rates by evaluating the system at `probes` random points around phi.

    The differences are quotients over a finite length, so they need no derivative of the system: they hold
    for query losses through which a derivative is stopped, and average over the segment.

    Args:
        case: The task.
        failure: The probability with which any of the three norms may be larger than returned.
        bending: Whether the rate of the curvature is needed; else it is 0.
        probes: The number of points. Each takes one system and one product more, two with `bending`.
    """
    linear = linear_factor(probes, failure / 3)
    bilinear = bilinear_factor(probes, failure / 3)

    def measure(here: System, adapted: PyTree, u: PyTree, length: Array, key: Array) -> Rates:
        flat, unravel = tree.ravel(adapted)
        mismatch, gradient = tree.minus(here.right, here.product(u)), here.gradient(u)
        curved = lambda at: jax.linearize(case.slope, at)[1]  # noqa: E731
        bent = case.problem.curvature == "gauss-newton"
        slope = curved(adapted) if bent else here.product

        def probe(key: Array) -> tuple[Array, Array, Array, Array]:
            first, second = (jax.random.normal(k, flat.shape, flat.dtype) for k in jax.random.split(key))
            width = jnp.linalg.norm(first)
            step = unravel(length / width * first)
            at = jax.tree.map(jnp.add, adapted, step)
            there = case.system(at)
            per = lambda change: tree.norm(change) * width / length  # noqa: E731
            change = tree.minus(tree.minus(there.right, there.product(u)), mismatch)
            moved = tree.minus(tree.minus(there.residual, here.residual), slope(step))
            turned = jnp.zeros_like(width)
            if bending:
                across = unravel(second)
                new = curved(at) if bent else there.product
                turned = per(tree.minus(new(across), slope(across)))
            return per(change), per(tree.minus(there.gradient(u), gradient)), turned, tree.norm(moved)

        found = lax.map(probe, jax.random.split(key, probes))
        system, drift, turned, off = (jnp.max(values) for values in found)
        return Rates(linear * system, linear * drift, bilinear * turned, 2 * off)

    return measure


def scale_of(case: Case, adapted: PyTree) -> Array:
    """The larger of |phi| and |theta|, or 1 where both are 0."""
    mean = case.problem.mean(case.theta)
    scale = jnp.maximum(tree.norm(adapted), tree.norm(case.problem.split(mean)))
    return jnp.where(scale > 0, scale, 1)


def start(case: Case, system: System, solution: Solution, adapted: PyTree) -> Point:
    """The point that an inner and a linear solution are, before any Newton step; its rates are not known."""
    zero = jnp.zeros_like(solution.stats.residual)
    smallest, largest = jnp.full_like(zero, jnp.inf), zero
    if solution.stats.lanczos is not None:
        smallest, largest = ritz(solution.stats.lanczos, solution.stats.steps)
    size = tree.norm(system.right)
    return Point(
        adapted=adapted,
        u=solution.value,
        gradient=system.gradient(solution.value),
        loss=system.loss,
        residual=tree.norm(system.residual),
        mismatch=solution.stats.residual * size,
        size=size,
        rates=Rates(zero, zero, zero, zero),
        scale=scale_of(case, adapted),
        products=solution.stats.steps,
        smallest=smallest,
        largest=largest,
        negative=jnp.zeros_like(zero, bool),
    )


class Limits(NamedTuple):
    """How far one round's solves go.

    step: |F + A w| at which the Newton step ends. system: (|v - A u| before, its rate along the step, |F|
    after it) -> |v - A u| at which the linear solve ends.
    """

    step: Array
    system: Callable[[Array, Array, Array], Array]


def newton_round(
    case: Case, point: Point, steps: int, limits: Limits, sample: Sampler, near: float, key: Array
) -> Point:
    """One Newton step w from a point, and the linear system there solved from the old u on.

    The new system begun at the old u has the right-hand side D(v - A u) w to second order, the correction of
    the implicit gradient at the old point; but it needs no third derivative.

    Args:
        case: The task.
        point: Where it begins.
        steps: The most steps of conjugate gradients, for w and for u each.
        limits: How far both solves go.
        sample: Measures the rates around the new point.
        near: The length of its probes, relative to the point's scale.
        key: For the probes.
    """
    value, curved = jax.linearize(case.slope, point.adapted)
    newton = conjugate_gradients(curved, value, steps, limits.step)
    before = tree.norm(value)
    along = lambda share: jax.tree.map(lambda x, w: x - share * w, point.adapted, newton.value)  # noqa: E731

    # Away from the solution a whole step may lead further away; then it is halved until |F| falls.
    worse = lambda share: ~(tree.norm(case.slope(along(share))) <= before)  # noqa: E731
    least = 0.5**HALVINGS
    share = repeat_while(
        lambda share: (share > least) & worse(share), lambda share: share / 2, jnp.ones_like(before)
    )
    nearer = along(share)
    there = case.system(nearer)
    length = share * tree.norm(newton.value)
    mismatch = tree.minus(there.right, there.product(point.u))
    left, residual = tree.norm(mismatch), tree.norm(there.residual)
    change = jnp.abs(left - point.mismatch) / jnp.where(length > 0, length, 1)
    more = conjugate_gradients(there.product, mismatch, steps, limits.system(left, change, residual))
    u = jax.tree.map(jnp.add, point.u, more.value)
    # The residual that conjugate gradients carry along drifts away from the true one: one product more.
    left, size = tree.norm(tree.minus(there.right, there.product(u))), tree.norm(there.right)
    seen = [ritz(run.coefficients, run.steps) for run in (newton, more)]
    smallest = jnp.minimum(point.smallest, jnp.minimum(seen[0][0], seen[1][0]))
    largest = jnp.maximum(point.largest, jnp.maximum(seen[0][1], seen[1][1]))
    eps = jnp.finfo(left.dtype).eps
    new = Point(
        adapted=nearer,
        u=u,
        gradient=there.gradient(u),
        loss=there.loss,
        residual=residual,
        mismatch=left + 4 * eps * (size + largest * tree.norm(u)),
        size=size,
        rates=point.rates,
        scale=scale_of(case, nearer),
        products=point.products + newton.steps + more.steps + 2,
        smallest=smallest,
        largest=largest,
        negative=point.negative | newton.negative | more.negative,
    )
    return replace(new, rates=sample(there, nearer, u, near * new.scale, key))


class Aim(NamedTuple):
    """What `refine` goes on until: two functions of the point, and how near phi* must be.

    error: the error of the meta-gradient that is allowed at a point. constants: see `Constants`, or a guess
    where they are not known yet. near: |phi - phi*| relative to the point's scale below which the rates are
    taken to hold; None where they hold everywhere.
    """

    error: Callable[[Point], Array]
    constants: Callable[[Point], Constants]
    near: float | None

    def gap(self, point: Point) -> Array:
        """By what factor a point misses what is wanted; at most 1 where it does not."""
        constants, tiny = self.constants(point), jnp.finfo(point.residual.dtype).tiny
        gap = leftover(point, constants) / jnp.maximum(self.error(point), tiny)
        if self.near is not None:
            allowed = jnp.maximum(self.near * point.scale, tiny)
            gap = jnp.maximum(gap, radius(point, constants) / allowed)
        return gap


def refine(
    case: Case, begun: Point, aim: Aim, sample: Sampler, steps: int, rounds: int, probe: float, key: Array
) -> Point:
    """Rounds of Newton steps until the aim is reached, or until rounding keeps a round from getting nearer.

    The first round reduces both residuals a hundredfold. From then on the errors allowed are known, and each
    solve goes as far as half of them asks for, but no further than the other's residual makes sensible.

    Args:
        case: The task; its structure is "spd".
        begun: Where it begins.
        aim: What is wanted.
        sample: Measures the rates around each new point.
        steps: The most steps of conjugate gradients in one solve.
        rounds: The most rounds.
        probe: The length of the probes, relative to the point's scale.
        key: For the probes.
    """

    def advance(state: tuple) -> tuple:
        point, count, gap, _ = state
        constants, eps = aim.constants(point), jnp.finfo(point.residual.dtype).eps
        first = count == 0
        share = constants.weight / constants.system
        sensitivity = share * point.rates.system + point.rates.gradient  # of the gradient to |phi - phi*|
        allowed = 0.25 * aim.error(point)
        enough = allowed * constants.floor / jnp.where(sensitivity > 0, sensitivity, 1)
        enough = jnp.where(sensitivity > 0, enough, jnp.inf)
        if aim.near is not None:
            enough = jnp.minimum(enough, 0.5 * aim.near * point.scale * constants.floor)
        enough = jnp.clip(enough, eps * point.residual, 0.1 * point.residual)
        step = jnp.where(first, jnp.minimum(enough, 0.01 * point.residual), enough)

        def system(left: Array, change: Array, residual: Array) -> Array:
            # What the next Newton step changes need not be solved for now.
            later = jnp.minimum(0.3 * change * residual / constants.floor, 0.5 * left)
            wanted = jnp.where(first, 0.01 * left, allowed / share)
            return jnp.maximum(jnp.maximum(wanted, later), eps * left)

        limits = Limits(step, system)
        new = newton_round(case, point, steps, limits, sample, probe, jax.random.fold_in(key, count))
        return new, count + 1, aim.gap(new), gap

    def going(state: tuple) -> Array:
        point, count, gap, before = state
        falling = (count < 3) | (gap < 0.9 * before)
        sound = ~point.negative & tree.finite((point.gradient, point.residual))
        return (count < rounds) & ~(gap <= 1) & falling & sound

    far = jnp.full_like(begun.residual, jnp.inf)
    return repeat_while(going, advance, (begun, jnp.asarray(0), far, far))[0]
