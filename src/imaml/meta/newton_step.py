"""Newton steps from a task's solution, each followed by the linear solve there, until the error is small.

With phi the point reached, u the solution of A u = v there, R a bound of |phi - phi*| and B = dF/dtheta, the
meta-gradient g is off by at most (docs/certificates.md, inequality 2)

    |B|/mu (|v - A u| + |D(v - A u)| R)  +  |Dg| R,          R = |F(phi)| / mu

where D is the derivative in phi at fixed u, and the norms hold on the ball of radius R about phi. This module
takes the steps and measures the terms; `certificate` says what a bound made of them is worth.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from ..core import tree
from ..core.loops import halved_while, repeat_while
from ..core.solution import Solution
from ..core.tree import Tree
from ..linear.cg import conjugate_gradients
from ..linear.lanczos import bilinear_factor, linear_factor, ritz
from .system import Case, System

PROBES = 3
HALVINGS = 10


class Rates(NamedTuple):
    """Rates of change around a point, u held fixed; scalars, per unit of length in phi.

    Attributes:
        system: The norm of D(v - A u).
        gradient: The norm of D of the meta-gradient.
        curvature: The largest norm of the change of F's derivative, over all directions.
        rounding: The error of F as computed, an absolute norm.
    """

    system: Array
    gradient: Array
    curvature: Array
    rounding: Array


class Point(NamedTuple):
    """Adapted parameters phi, an approximate solution u of A u = v there, and their statistics.

    Attributes:
        adapted: phi.
        u: The approximate solution.
        gradient: The meta-gradient for phi and u, shaped like theta.
        loss: The outer loss.
        residual: |F|.
        mismatch: |v - A u|, with what rounding may add.
        size: |v|.
        rates: The rates around phi.
        scale: The length that distances from phi are relative to.
        products: The number of products with A so far.
        smallest: The smallest Ritz value of A seen so far.
        largest: The largest.
        negative: Whether negative curvature was seen.
    """

    adapted: Tree
    u: Tree
    gradient: Tree
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
    """The constants of an error bound, scalars.

    Attributes:
        floor: A lower bound of the eigenvalues of F's derivative.
        system: A lower bound of the eigenvalues of A.
        weight: |B|.
    """

    floor: Array
    system: Array
    weight: Array


def root_of(dtype: DTypeLike) -> float:
    """The square root of the dtype's precision: the length of probes, relative to a point's scale.

    Args:
        dtype: A float dtype.

    Returns:
        A number.
    """
    return float(jnp.finfo(dtype).eps) ** 0.5


def radius(point: Point, constants: Constants) -> Array:
    """A bound of |phi - phi*|.

    Args:
        point: The point.
        constants: The constants.

    Returns:
        (|F| + rounding) / floor, a scalar.
    """
    return (point.residual + point.rates.rounding) / constants.floor


def rounding(point: Point, constants: Constants) -> Array:
    """What rounding may make of the meta-gradient direct + B^T u, where |direct| is at most |g| + |B| |u|.

    Args:
        point: The point.
        constants: The constants.

    Returns:
        A norm, a scalar.
    """
    size = tree.norm(point.gradient) + constants.weight * tree.norm(point.u)
    return 10 * jnp.finfo(size.dtype).eps * size


def remaining_error(point: Point, constants: Constants) -> Array:
    """The error of a point's meta-gradient by inequality 2: a bound if the constants and rates are bounds.

    Args:
        point: The point.
        constants: The constants.

    Returns:
        The bound, a scalar.
    """
    distance = radius(point, constants)
    through = point.mismatch + point.rates.system * distance
    share = constants.weight / constants.system
    return share * through + point.rates.gradient * distance + rounding(point, constants)


# Measures the rates around a point: (here, adapted, u, length of the probes, key) -> Rates.
Sampler = Callable[[System, Tree, Tree, Array, Array], Rates]


def sampler(case: Case, failure: float | None = None, with_curvature: bool = False) -> Sampler:
    """Measures rates by evaluating the system at random points around phi, three of them for bounds.

    The differences are quotients over a finite length, so they need no derivative of the system: they hold
    for query losses through which a derivative is stopped, and average over the segment.

    Args:
        case: The task.
        failure: The probability with which any of the three norms may be larger than returned. None for an
            estimate: the change at one point stands for the norm.
        with_curvature: Whether the rate of the curvature is needed; else it is 0. A point takes one system
            and one product more, two with it.

    Returns:
        The sampler.
    """
    probes, linear, bilinear = 1, 1.0, 1.0
    if failure is not None:
        probes, share = PROBES, failure / 3
        linear, bilinear = linear_factor(probes, share), bilinear_factor(probes, share)

    def measure(here: System, adapted: Tree, u: Tree, length: Array, key: Array) -> Rates:
        flat, unravel = tree.ravel(adapted)
        mismatch, gradient = tree.minus(here.right, here.product(u)), here.gradient(u)
        curved = lambda at: jax.linearize(case.slope, at)[1]  # noqa: E731
        gauss_newton = case.problem.curvature == "gauss-newton"
        slope = curved(adapted) if gauss_newton else here.product

        def probe(key: Array) -> tuple[Array, Array, Array, Array]:
            # A step of the given length in a random direction; |first| / length undoes it in what follows.
            first, second = (jax.random.normal(k, flat.shape, flat.dtype) for k in jax.random.split(key))
            width = jnp.linalg.norm(first)
            step = unravel(length / width * first)
            at = jax.tree.map(jnp.add, adapted, step)
            there = case.system(at)
            per = lambda change: tree.norm(change) * width / length  # noqa: E731
            # D(v - A u) along the step, and what F as computed adds to its linearisation, which is rounding.
            change = tree.minus(tree.minus(there.right, there.product(u)), mismatch)
            moved = tree.minus(tree.minus(there.residual, here.residual), slope(step))
            curvature = jnp.zeros_like(width)
            if with_curvature:  # of F's derivative along the step, in a second direction
                across = unravel(second)
                new = curved(at) if gauss_newton else there.product
                curvature = per(tree.minus(new(across), slope(across)))
            return per(change), per(tree.minus(there.gradient(u), gradient)), curvature, tree.norm(moved)

        # The largest of a few probes times the factor bounds the norm with probability 1 - failure.
        found = lax.map(probe, jax.random.split(key, probes))
        system, gradient_change, curvature, off = (jnp.max(values) for values in found)
        return Rates(linear * system, linear * gradient_change, bilinear * curvature, 2 * off)

    return measure


def scale_of(case: Case, adapted: Tree) -> Array:
    """The larger of |phi| and |theta|, or 1 where both are 0.

    Args:
        case: The task.
        adapted: phi.

    Returns:
        A scalar.
    """
    mean = case.problem.mean(case.theta)
    scale = jnp.maximum(tree.norm(adapted), tree.norm(case.problem.split(mean)))
    return jnp.where(scale > 0, scale, 1)


def start(case: Case, system: System, solution: Solution, adapted: Tree) -> Point:
    """The point of an inner and a linear solution, before any Newton step; its rates are not known.

    Args:
        case: The task.
        system: The linear system.
        solution: Its Solution.
        adapted: The adapted parameters.

    Returns:
        The point.
    """
    # Ritz values of the linear solve lie within the spectrum of A. Without them, infinity and 0 leave
    # later minima and maxima unchanged.
    zero = jnp.zeros_like(solution.stats.residual)
    smallest, largest = jnp.full_like(zero, jnp.inf), zero
    if solution.stats.lanczos is not None:
        smallest, largest = ritz(solution.stats.lanczos, solution.stats.steps)
    # The linear residual is relative: |v - A u| = residual |v|.
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


# How far a round's linear solve goes: (|v - A u| before, its rate along the step, |F| after it) -> |v - A u|.
Limit = Callable[[Array, Array, Array], Array]


def newton_round(
    case: Case, point: Point, steps: int, accuracy: Array, limit: Limit, sample: Sampler, key: Array
) -> Point:
    """One Newton step w from a point, and the linear system there solved from the old u on.

    The new system begun at the old u has the right-hand side D(v - A u) w to second order, the correction of
    the implicit gradient at the old point; but it needs no third derivative.

    Args:
        case: The task.
        point: Where it begins.
        steps: The most steps of conjugate gradients, for w and for u each.
        accuracy: |F + A w| at which the Newton step ends.
        limit: How far the linear solve goes.
        sample: Measures the rates around the new point.
        key: For its probes.

    Returns:
        The new point.
    """
    value, curved = jax.linearize(case.slope, point.adapted)
    newton = conjugate_gradients(curved, value, steps, accuracy)  # A w = F, with the Hessian as A
    before = tree.norm(value)
    along = lambda share: jax.tree.map(lambda x, w: x - share * w, point.adapted, newton.x)  # noqa: E731

    # Away from the solution a full step may lead further away; then it is halved until |F| falls.
    worse = lambda share: ~(tree.norm(case.slope(along(share))) <= before)  # noqa: E731
    share = halved_while(worse, HALVINGS, before)
    # The linear system at the new point, solved from the old u on.
    nearer = along(share)
    there = case.system(nearer)
    length = share * tree.norm(newton.x)
    mismatch = tree.minus(there.right, there.product(point.u))
    left, residual = tree.norm(mismatch), tree.norm(there.residual)
    change = jnp.abs(left - point.mismatch) / jnp.where(length > 0, length, 1)
    more = conjugate_gradients(there.product, mismatch, steps, limit(left, change, residual))
    u = jax.tree.map(jnp.add, point.u, more.x)
    # The residual that conjugate gradients carry along drifts away from the true one: one product more.
    left, size = tree.norm(tree.minus(there.right, there.product(u))), tree.norm(there.right)
    (low, high), (low_more, high_more) = (ritz(run.coefficients, run.steps) for run in (newton, more))
    smallest = jnp.minimum(point.smallest, jnp.minimum(low, low_more))
    largest = jnp.maximum(point.largest, jnp.maximum(high, high_more))
    scale, eps = scale_of(case, nearer), jnp.finfo(left.dtype).eps
    return Point(
        adapted=nearer,
        u=u,
        gradient=there.gradient(u),
        loss=there.loss,
        residual=residual,
        mismatch=left + 4 * eps * (size + largest * tree.norm(u)),
        size=size,
        rates=sample(there, nearer, u, root_of(left.dtype) * scale, key),
        scale=scale,
        products=point.products + newton.steps + more.steps + 2,
        smallest=smallest,
        largest=largest,
        negative=point.negative | newton.negative | more.negative,
    )


def corrected(case: Case, begun: Point, steps: int, key: Array) -> Point:
    """The point one Newton step further, both solves taken to the root of the dtype's precision.

    Their errors then do not hide that the meta-gradient's falls with the square of the distance.

    Args:
        case: The task.
        begun: The point.
        steps: The most steps of conjugate gradients in one solve.
        key: A random key for probes.

    Returns:
        The new point.
    """
    root = root_of(begun.residual.dtype)
    limit = lambda left, *_: root * left  # noqa: E731
    return newton_round(case, begun, steps, root * begun.residual, limit, sampler(case), key)


class Aim(NamedTuple):
    """What `refine` goes on until.

    Attributes:
        error: The error of the meta-gradient that is allowed at a point, a function of it.
        constants: The `Constants` at a point, or a guess where they are not known yet, a function of it.
        near: |phi - phi*| relative to the point's scale below which the rates hold; None where they hold
            everywhere.
    """

    error: Callable[[Point], Array]
    constants: Callable[[Point], Constants]
    near: float | None

    def gap(self, point: Point) -> Array:
        """The factor by which a point misses the aim.

        Args:
            point: The point.

        Returns:
            A scalar, at most 1 where the aim is reached.
        """
        constants, tiny = self.constants(point), jnp.finfo(point.residual.dtype).tiny
        gap = remaining_error(point, constants) / jnp.maximum(self.error(point), tiny)
        if self.near is not None:
            allowed = jnp.maximum(self.near * point.scale, tiny)
            gap = jnp.maximum(gap, radius(point, constants) / allowed)
        return gap


def refine(case: Case, begun: Point, aim: Aim, sample: Sampler, steps: int, rounds: int, key: Array) -> Point:
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
        key: For the probes.

    Returns:
        The point reached.
    """

    def advance(state: tuple) -> tuple:
        point, count, gap, _ = state
        constants, eps = aim.constants(point), jnp.finfo(point.residual.dtype).eps
        first = count == 0
        # How far |F| must fall for the error allowed, and what the Newton step itself needs.
        share = constants.weight / constants.system
        sensitivity = share * point.rates.system + point.rates.gradient  # of the gradient to |phi - phi*|
        allowed = 0.25 * aim.error(point)
        enough = allowed * constants.floor / jnp.where(sensitivity > 0, sensitivity, 1)
        enough = jnp.where(sensitivity > 0, enough, jnp.inf)
        if aim.near is not None:
            enough = jnp.minimum(enough, 0.5 * aim.near * point.scale * constants.floor)
        enough = jnp.clip(enough, eps * point.residual, 0.1 * point.residual)
        step = jnp.where(first, jnp.minimum(enough, 0.01 * point.residual), enough)

        def limit(left: Array, change: Array, residual: Array) -> Array:
            # What the next Newton step changes need not be solved for now.
            later = jnp.minimum(0.3 * change * residual / constants.floor, 0.5 * left)
            wanted = jnp.where(first, 0.01 * left, allowed / share)
            return jnp.maximum(jnp.maximum(wanted, later), eps * left)

        new = newton_round(case, point, steps, step, limit, sample, jax.random.fold_in(key, count))
        return new, count + 1, aim.gap(new), gap

    def unfinished(state: tuple) -> Array:
        point, count, gap, before = state
        falling = (count < 3) | (gap < 0.9 * before)
        sound = ~point.negative & tree.finite((point.gradient, point.residual))
        return (count < rounds) & ~(gap <= 1) & falling & sound

    far = jnp.full_like(begun.residual, jnp.inf)
    return repeat_while(unfinished, advance, (begun, jnp.asarray(0), far, far))[0]
