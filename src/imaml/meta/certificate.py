"""Bounds of an implicit meta-gradient's error.

Let phi* solve F = 0 near phi, A = dF/dphi >= mu > 0, B = dF/dtheta, u an approximate solution of A u = v, and
g(phi, u) the meta-gradient that both mean. With D the derivative in phi at fixed u, for all phi* within R,

    |g(phi, u) - g*|  <=  |B|/mu (|v - A u| + |D(v - A u)| R)  +  |Dg| R,      R = |F(phi)| / mu

(docs/certificates.md, inequality 2; Pedregosa 2016 and Grazzi et al. 2020 have its ancestors). The norms are
those over the ball of radius R about phi. The grade depends on whether they are proved, sampled or declared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError
from ..core.fields import Checked, NonNegativeFloat, NonNegativeInt, PositiveFraction, PositiveInt, SeveralInt
from ..core.solution import Certification
from ..core.tree import Tree
from ..linear.lanczos import norm_bound, smallest_bound
from ..problems.base import Key, declared
from .newton_step import (
    Aim,
    Constants,
    Point,
    Rates,
    Sampler,
    radius,
    refine,
    remaining_error,
    root_of,
    sampler,
)
from .polynomial import degree_of
from .system import Case, System

GROWTH = 2.0  # the smoothness assumption: within R no rate is more than this times the one sampled around phi
ENTRIES = 1 << 20  # of a matrix that is formed to have its norm


@dataclass(frozen=True)
class Certificate(Checked):
    """How to bound a meta-gradient's error; `certify=True` means `Certificate()`.

    Newton steps are taken from phi, and the linear system is solved again after each, until the remaining
    error is small. The bound is the distance between the first and the last meta-gradient, plus a bound of
    the remaining error.

    The grade (`solution.status.certification`) says what the bound is based on:

    - PROVED: the problem is quadratic, as read from its program, and has at most `dense` adapted parameters;
      or it is declared convex and every constant that varies is declared (`lipschitz`). No probability, no
      assumption.
    - CERTIFIED: quadratic, but norms are bounded by random probes; wrong with probability `failure` at most.
    - CERTIFIED_IF_SMOOTH: wrong with probability `failure` at most, if within R of the point reached no rate
      of change is more than twice the one that the probes found around it. R is at most the root of the
      dtype's precision, relative to phi.

    Args:
        steps: The most steps of conjugate gradients in one solve. Each round has two.
        tolerance: The error that may remain after the last round, relative to the distance between both
            meta-gradients.
        lanczos: Products that bound the least eigenvalue where more than `dense` parameters are adapted and
            the problem's kind gives no bound; a quarter of it bounds |B| where strengths do not give that.
        failure: The probability of a wrong bound, all random probes together.
        rounds: The most Newton steps.
        dense: The most adapted parameters for which matrices are formed, and norms computed exactly.
        lipschitz: A Lipschitz constant of the query loss's gradient in phi: a number, or a function query
            batch -> number. Together with that of the loss's Hessian (`proximal(lipschitz=...)`) it makes the
            bound of a convex problem a proof.

    Raises:
        ConfigError: If a value is out of range.

    Example:
        >>> import imaml
        >>> rule = imaml.implicit(imaml.CG(steps=5), certify=imaml.Certificate(failure=1e-3))
    """

    steps: PositiveInt = 50
    tolerance: PositiveFraction = 0.1
    lanczos: SeveralInt = 40
    failure: PositiveFraction = 0.01
    rounds: PositiveInt = 10
    dense: NonNegativeInt = 256
    lipschitz: NonNegativeFloat | Callable[[Tree], Tree] | None = None


class Facts(NamedTuple):
    """What is known of a task before any Newton step; None for what is not known.

    Attributes:
        affine: Whether F, v and the meta-gradient at fixed u are affine in phi, and B^T u constant, so that
            every rate is a constant.
        floor: A lower bound, everywhere, of the eigenvalues of F's derivative.
        system: A lower bound, everywhere, of the eigenvalues of A.
        floor_proved: Whether a floor is or will be proved.
        weight: |B|, or its value at one phi where B varies.
        weight_known: Whether the weight holds everywhere.
        weight_proved: Whether it is also exact.
        outer_rate: |Dv|.
        lipschitz: A Lipschitz constant of A, and so a bound of |D(A u)| / |u|.
        gradient_rate: |Dg|.
    """

    affine: bool
    floor: Array | None
    system: Array | None
    floor_proved: bool
    weight: Array
    weight_known: bool
    weight_proved: bool
    outer_rate: Array | None
    lipschitz: Array | None
    gradient_rate: Array | None

    @property
    def proved(self) -> bool:
        """Whether a bound made of these facts rests on nothing sampled."""
        rates = (self.outer_rate, self.lipschitz, self.gradient_rate)
        return self.floor_proved and self.weight_proved and all(rate is not None for rate in rates)

    @property
    def grade(self) -> Certification:
        """The grade of a bound made of these facts."""
        if self.proved:
            return Certification.PROVED
        return Certification.CERTIFIED if self.affine else Certification.CERTIFIED_IF_SMOOTH


def facts_of(recipe: Certificate, case: Case, adapted: Tree, u: Tree, key: Array) -> Facts:
    """Reads what holds everywhere from a task's programs and declarations.

    Args:
        recipe: How the error is bounded.
        case: The task.
        adapted: The adapted parameters.
        u: The solution of the linear system there.
        key: A random key for probes.

    Returns:
        The facts.
    """
    problem, theta, batch, outer = case
    _check_dtypes(adapted, theta)
    flat, _ = tree.ravel(adapted)
    small, zero = flat.size <= recipe.dense, jnp.zeros((), flat.dtype)
    gauss_newton = problem.curvature == "gauss-newton"

    # The degrees of F, v, g(., u) and B^T u as polynomials in phi: what is affine has a constant derivative.
    right = lambda p: problem.split(outer(problem.full(p, theta)).slope)  # noqa: E731
    gradient = lambda p: case.system(p).gradient(u)  # noqa: E731
    through = lambda p: case.system(p).through(u)  # noqa: E731
    fixed = degree_of(case.slope, adapted) <= 1  # F is affine, so its derivative is constant
    if fixed and gauss_newton:
        fixed = degree_of(lambda p: case.system(p).product(u), adapted) == 0
    coupling_fixed = degree_of(through, adapted) == 0  # B is constant
    of_slope, of_gradient = degree_of(right, adapted), degree_of(gradient, adapted)

    # Constants that hold everywhere: computed where a derivative is constant, else declared, else unknown.
    lipschitz = zero if fixed else None
    constant = None if fixed or gauss_newton else problem.hessian_lipschitz(batch)
    if constant is not None:
        lipschitz = constant.astype(flat.dtype)
    outer_rate = _rate(right, adapted, of_slope, small)
    if outer_rate is None and recipe.lipschitz is not None:
        outer_rate = declared("Certificate", recipe.lipschitz, getattr(outer, "batch", None))
        outer_rate = outer_rate.astype(flat.dtype)
    gradient_rate = _rate(gradient, adapted, of_gradient, small) if coupling_fixed else None

    # Lower bounds of the eigenvalues of F's derivative and of A, which differ for Gauss-Newton curvature.
    floor = problem.curvature_floor(adapted, theta)
    system = floor
    if gauss_newton and not problem.convex:
        floor = None  # the least strength bounds A from below, but not the Hessian
    if floor is None and fixed:
        floor = least_eigenvalue(recipe, case, adapted, key)
    system = floor if system is None else system
    weight, exact = problem.coupling_norm(adapted, theta), True
    anchored = weight is not None
    if weight is None:
        weight, exact = coupling_norm(recipe, case, adapted, key)
    return Facts(
        affine=fixed and coupling_fixed and of_slope <= 1 and of_gradient <= 1,
        floor=floor,
        system=system,
        floor_proved=problem.convex or (small and lipschitz is not None),
        weight=weight,
        weight_known=anchored or coupling_fixed,
        weight_proved=anchored or (exact and coupling_fixed),
        outer_rate=outer_rate,
        lipschitz=lipschitz,
        gradient_rate=gradient_rate,
    )


def _check_dtypes(adapted: Tree, theta: Tree) -> None:
    """Raises ConfigError for floats of several precisions: rounding is bounded by that of one."""
    leaves = [jnp.result_type(leaf) for leaf in jax.tree.leaves((adapted, theta))]
    names = sorted({dtype.name for dtype in leaves if jnp.issubdtype(dtype, jnp.inexact)})
    if len(names) > 1:
        raise ConfigError(
            f"certify: theta and phi: expected floats of one dtype, got {', '.join(names)}. Hint: cast "
            "theta, or what `init` returns."
        )


def key_of(key: Key, adapted: Tree) -> Array:
    """A certificate's random key.

    A fixed key would make the probes fail together in every task and run, so by default it depends on phi.

    Args:
        key: The key given, or None.
        adapted: The adapted parameters.

    Returns:
        The key given, or one made of the bits of phi.
    """
    if key is not None:
        return key
    bits = lax.bitcast_convert_type(tree.ravel(adapted)[0], jnp.uint32)
    return jax.random.fold_in(jax.random.key(0), jnp.sum(bits, dtype=jnp.uint32))


def flat_derivative(function: Callable[[Tree], Tree], at: Tree) -> tuple[Array, Callable[[Array], Array]]:
    """The derivative of a function from trees to trees, over flat vectors.

    Args:
        function: The function.
        at: Where the derivative is taken.

    Returns:
        `at` as a flat vector, and the derivative's product with flat vectors.
    """
    flat, unravel = tree.ravel(at)
    _, derivative = jax.linearize(function, at)
    return flat, lambda vector: tree.ravel(derivative(unravel(vector)))[0]


def symmetric(case: Case, adapted: Tree, key: Array) -> Array:
    """Whether F's derivative is symmetric, by one pair of random vectors: F is a gradient only if it is.

    Args:
        case: The task.
        adapted: The adapted parameters.
        key: A random key.

    Returns:
        A boolean scalar.
    """
    flat, curve = flat_derivative(case.slope, adapted)
    x, y = jax.random.normal(key, (2, flat.size), flat.dtype)
    of_x, of_y = curve(x), curve(y)
    size = jnp.linalg.norm(x) * jnp.linalg.norm(of_y) + jnp.linalg.norm(y) * jnp.linalg.norm(of_x)
    return jnp.abs(x @ of_y - y @ of_x) <= root_of(flat.dtype) * size


def _rate(function: Callable[[Tree], Tree], at: Tree, degree: float, small: bool) -> Array | None:
    """The norm of a function's derivative where that is constant and can be formed; else None."""
    flat, _ = tree.ravel(at)
    if degree == 0:
        return jnp.zeros((), flat.dtype)
    outputs = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(function, at)))
    if degree > 1 or not small or outputs * flat.size > ENTRIES:
        return None
    columns = jax.vmap(flat_derivative(function, at)[1])(jnp.eye(flat.size, dtype=flat.dtype))
    return jnp.linalg.norm(columns)  # Frobenius' norm, which is at least the spectral one


def coupling_norm(recipe: Certificate, case: Case, adapted: Tree, key: Array) -> tuple[Array, bool]:
    """An upper bound of |B| = |dF/dtheta| at one phi.

    Args:
        recipe: How the error is bounded.
        case: The task.
        adapted: The adapted parameters.
        key: A random key for Lanczos' start.

    Returns:
        The bound, a scalar, and whether it is exact (static).
    """
    problem, theta, batch, _ = case
    flat, unravel = tree.ravel(adapted)
    _, pull = jax.vjp(lambda t: problem.residual(adapted, t, batch), theta)
    identity = jnp.eye(flat.size, dtype=flat.dtype) if flat.size <= recipe.dense else None
    if identity is not None and flat.size * tree.ravel(theta)[0].size <= ENTRIES:
        rows = jax.vmap(lambda e: tree.ravel(pull(unravel(e))[0])[0])(identity)
        norm = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(rows @ rows.T)[-1], 0))
        return norm * (1 + 10 * flat.size * jnp.finfo(norm.dtype).eps), True

    def gram(vector: Array) -> Array:
        pulled = pull(unravel(vector))
        return tree.ravel(jax.jvp(lambda t: problem.residual(adapted, t, batch), (theta,), pulled)[1])[0]

    steps = max(recipe.lanczos // 4, 2)
    return norm_bound(gram, flat, jax.random.fold_in(key, 1), steps, recipe.failure / 4), False


def least_eigenvalue(recipe: Certificate, case: Case, adapted: Tree, key: Array) -> Array:
    """A lower bound of the least eigenvalue of F's derivative at one phi.

    Args:
        recipe: How the error is bounded.
        case: The task.
        adapted: The adapted parameters.
        key: A random key for Lanczos' start.

    Returns:
        The bound, a scalar; -infinity where the derivative is not finite.
    """
    flat, product = flat_derivative(case.slope, adapted)
    if flat.size > recipe.dense:
        return smallest_bound(product, flat, jax.random.fold_in(key, 2), recipe.lanczos, recipe.failure / 4)
    matrix = jax.vmap(product)(jnp.eye(flat.size, dtype=flat.dtype))
    finite = jnp.all(jnp.isfinite(matrix))  # LAPACK need not end on what is not finite
    values = jnp.linalg.eigvalsh(jnp.where(finite, (matrix + matrix.T) / 2, 0))
    rounding = 10 * flat.size * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    return jnp.where(finite, values[0] - rounding, -jnp.inf)


def measured(recipe: Certificate, case: Case, facts: Facts) -> Sampler:
    """A sampler of the rates around a point: known constants, and random probes for the others.

    Args:
        recipe: How the error is bounded.
        case: The task.
        facts: What is known.

    Returns:
        The sampler.
    """
    with_curvature = facts.floor is None and facts.lipschitz is None
    # Half of the failures are for probes; rounds end by what they say, so each round has its share.
    probe = sampler(case, recipe.failure / 2 / recipe.rounds, with_curvature)
    growth = 1.0 if facts.affine else GROWTH

    def measure(here: System, adapted: Tree, u: Tree, length: Array, key: Array) -> Rates:
        found = probe(here, adapted, u, length, key)
        system, gradient = growth * found.system, growth * found.gradient
        if facts.outer_rate is not None and facts.lipschitz is not None:
            system = facts.outer_rate + facts.lipschitz * tree.norm(u)
        gradient = gradient if facts.gradient_rate is None else facts.gradient_rate
        curvature = growth * found.curvature if facts.lipschitz is None else facts.lipschitz
        return Rates(system, gradient, curvature, found.rounding)

    return measure


def curvature_guess(case: Case, point: Point) -> Array:
    """A guess of the least eigenvalue: the least Ritz value seen, or the least strength if that is less.

    Args:
        case: The task.
        point: The point.

    Returns:
        A positive scalar; 1 where the guess is not positive and finite.
    """
    guess = point.smallest
    least = case.problem.least_strength(point.adapted, case.theta)
    if least is not None:
        guess = jnp.minimum(guess, least)
    return jnp.where((guess > 0) & jnp.isfinite(guess), guess, 1)


def guessed(case: Case, facts: Facts) -> Callable[[Point], Constants]:
    """The constants while Newton steps are taken: unknown ones are guessed from Ritz values.

    Args:
        case: The task.
        facts: What is known.

    Returns:
        A function of the point.
    """

    def constants(point: Point) -> Constants:
        guess = curvature_guess(case, point)
        known = [guess if bound is None else bound for bound in (facts.floor, facts.system)]
        floor, system = (jnp.where(bound > 0, bound, 1) for bound in known)
        weight = facts.weight if facts.weight_known else GROWTH * facts.weight
        return Constants(floor, system, weight)

    return constants


def near_of(facts: Facts, point: Point) -> float | None:
    """How near phi* must be for the smoothness assumption, no further than probes are.

    Args:
        facts: What is known.
        point: A point, of which only the dtype matters.

    Returns:
        A number, relative to the point's scale; None where the assumption is not needed.
    """
    return None if facts.proved or facts.affine else root_of(point.residual.dtype)


def outer_rounding(case: Case, point: Point, key: Array) -> tuple[Array, Array]:
    """What rounding may make of v, and of the meta-gradient's part that does not depend on u.

    Second differences over the length of a probe, in two directions. They remove what is linear in phi and
    leave rounding, which can be all of the query loss's gradient where its terms cancel.

    Args:
        case: The task.
        point: The point.
        key: A random key.

    Returns:
        Two scalars.
    """
    problem, theta, _, outer = case
    flat, unravel = tree.ravel(point.adapted)
    length = root_of(flat.dtype) * point.scale

    def gradients(step: Array) -> tuple[Tree, Tree]:
        _, slope, direct = outer(problem.full(unravel(flat + step), theta))
        return slope, direct

    def second(key: Array) -> tuple[Array, Array]:
        step = jax.random.normal(key, flat.shape, flat.dtype)
        step = length / jnp.linalg.norm(step) * step
        left, middle, right = (gradients(share * step) for share in (-1, 0, 1))
        slope, direct = jax.tree.map(lambda a, b, c: a - 2 * b + c, left, middle, right)
        return tree.norm(problem.split(slope)), tree.norm(slope) + tree.norm(direct)

    found = lax.map(second, jax.random.split(key, 2))
    return jnp.max(found[0]), jnp.max(found[1])


def bound_at(recipe: Certificate, case: Case, facts: Facts, point: Point, key: Array) -> tuple[Array, Array]:
    """The bound of the error of a point's meta-gradient.

    Args:
        recipe: How the error is bounded.
        case: The task.
        facts: What is known.
        point: The point.
        key: A random key for probes.

    Returns:
        The bound, a scalar, infinite where there is none; and the code of `Certification`.
    """
    floor, weight, near = facts.floor, facts.weight, near_of(facts, point)
    close = jnp.asarray(True)
    if floor is None:
        # The largest m with m <= least eigenvalue - change within R = |F| / m (Kantorovich's condition).
        least = least_eigenvalue(recipe, case, point.adapted, key)
        room = least**2 - 4 * point.rates.curvature * (point.residual + point.rates.rounding)
        close &= room >= 0
        floor = jnp.where(least > 0, (least + jnp.sqrt(jnp.maximum(room, 0))) / 2, least)
    system = floor if facts.system is None else facts.system
    if not facts.weight_known:  # B varies: its norm at the point stands for that on the ball
        weight = GROWTH * coupling_norm(recipe, case, point.adapted, key)[0]
    # Inequality 2, plus what rounding may add.
    known = (floor > 0) & (system > 0) & ~point.negative
    constants = Constants(jnp.where(known, floor, 1), jnp.where(known, system, 1), weight)
    of_slope, of_rest = outer_rounding(case, point, jax.random.fold_in(key, 3))
    bound = remaining_error(point, constants) + constants.weight / constants.system * of_slope + of_rest
    if near is not None:
        close &= radius(point, constants) <= near * point.scale
    code = jnp.where(close, int(facts.grade), int(Certification.SOLUTION_TOO_FAR))
    code = jnp.where(known, code, int(Certification.CURVATURE_UNKNOWN))
    finite = jnp.isfinite(bound) & tree.finite(point.gradient)
    finite &= symmetric(case, point.adapted, jax.random.fold_in(key, 4))
    code = jnp.where(finite, code, int(Certification.NO_BOUND))
    return jnp.where(code == int(facts.grade), bound, jnp.inf), code


def certified(
    recipe: Certificate, case: Case, begun: Point, error: Callable[[Point], Array], steps: int, key: Array
) -> tuple[Point, Constants, Array, Array]:
    """Takes Newton steps until the error is small enough, and bounds the error that remains.

    Args:
        recipe: How the error is bounded.
        case: The task.
        begun: Where the steps begin.
        error: The error that may remain at a point.
        steps: The most steps of conjugate gradients in one solve.
        key: A random key for probes.

    Returns:
        The point reached, the constants that the steps were aimed by, the bound, infinite where there is
        none, and the code of `Certification`.
    """
    keys = jax.random.split(key, 3)
    facts = facts_of(recipe, case, begun.adapted, begun.u, keys[0])
    aim = Aim(error, guessed(case, facts), near_of(facts, begun))
    point = refine(case, begun, aim, measured(recipe, case, facts), steps, recipe.rounds, keys[1])
    bound, code = bound_at(recipe, case, facts, point, keys[2])
    return point, aim.constants(point), bound, code


def certified_from(recipe: Certificate, case: Case, begun: Point, key: Array) -> tuple[Array, Array, Array]:
    """The bound of a point's error by Newton steps from it.

    Args:
        recipe: How the error is bounded.
        case: The task.
        begun: The point.
        key: A random key for probes.

    Returns:
        The bound, the code of `Certification`, and the number of products with A that it took.
    """
    if case.problem.structure != "spd":
        none = jnp.full_like(begun.residual, jnp.inf)
        return none, jnp.asarray(int(Certification.NO_BOUND)), jnp.zeros_like(begun.products)
    distance = lambda point: tree.norm(tree.minus(begun.gradient, point.gradient))  # noqa: E731
    allowed = lambda point: recipe.tolerance * distance(point)  # noqa: E731
    point, _, bound, code = certified(recipe, case, begun, allowed, recipe.steps, key)
    # The error is at most the distance between both meta-gradients plus the error that remains.
    return bound + distance(point), code, point.products - begun.products


def sensitivity(system: System, u: Tree) -> Array:
    """The ratio |B^T u| / |u|, an estimate of |B| that is at most |B|.

    Args:
        system: The linear system.
        u: A vector, a tree like the adapted parameters.

    Returns:
        A scalar; 1 for u = 0.
    """
    size = tree.norm(u)
    return jnp.where(size > 0, tree.norm(system.through(u)) / jnp.where(size > 0, size, 1), 1)
