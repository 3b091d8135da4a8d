"""The estimate of a meta-gradient's error: the terms of the bound, evaluated at one point; no bound."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.solution import Certification, Solution
from ..core.tree import Tree
from ..linear.lanczos import ritz
from .certificate import sensitivity
from .newton_step import Constants, Point, remaining_error
from .system import Case, System


def error_estimate(
    case: Case, system: System, solution: Solution, adapted: Tree, wanted: bool | Array = True
) -> tuple[Array, Array]:
    """The error of the meta-gradient, estimated at one point nearer to the solution.

    ```
    |B|/m (|v - A u| + |(v - A u)(phi - e) - (v - A u)(phi)|) + |g(phi - e, u) - g(phi, u)|
    ```

    e is one step of conjugate gradients for A e = F(phi). What the bound multiplies with a norm is evaluated
    here at one point, phi - e. m is the smallest Ritz value, or the least strength if that is less, and
    |B^T v| / |v| stands for |B|. It is not a bound: e is one step only, and m may lie above the smallest
    eigenvalue.

    Args:
        case: The task.
        system: Its linear system at `adapted`.
        solution: The solution u of that.
        adapted: The adapted parameters phi.
        wanted: Whether to estimate, a boolean that may be traced. Where it is False the estimate is NaN, and
            costs nothing.

    Returns:
        The estimate, a scalar: infinite where negative curvature was met. And ESTIMATED, or
        ESTIMATE_UNRELIABLE where |F|/m is more than half of |phi - theta|: so far the solution may be away.
    """
    problem, theta = case.problem, case.theta
    # m, the smallest eigenvalue: by Ritz values, else by a quotient; at least the least strength is known.
    size = tree.norm(solution.value)
    right, residual = tree.norm(system.right), tree.norm(system.residual)
    smallest = tree.dot(solution.value, system.right) / jnp.where(size > 0, size**2, 1)  # Rayleigh's quotient
    if problem.structure == "general":
        smallest = right / jnp.where(size > 0, size, 1)
    elif solution.stats.lanczos is not None:
        smallest = ritz(solution.stats.lanczos, solution.stats.steps)[0]
    negative = solution.stats.negative_curvature
    least = problem.least_strength(adapted, theta)
    if least is not None:
        smallest = jnp.where(size > 0, smallest, jnp.inf)  # u = 0 says nothing of the curvature
        negative |= ~(smallest > 0)
        smallest = jnp.minimum(smallest, least)
    negative |= ~(smallest > 0)
    smallest = jnp.where(negative, 1, smallest)
    # Where |F|/m is a large part of the path from theta, the solution may be too far for an estimate.
    mean = problem.split(problem.mean(theta))
    path = tree.norm(tree.minus(adapted, mean) if tree.same(adapted, mean) else adapted)
    far = (residual > 0) & (residual / smallest > 0.5 * path)
    code = jnp.where(far, int(Certification.ESTIMATE_UNRELIABLE), int(Certification.ESTIMATED))

    def evaluate() -> Array:
        change, gradient_change = _changes(case, system, solution.value, adapted)
        share = sensitivity(system, system.right) / smallest
        return share * (solution.stats.residual * right + change) + gradient_change

    skipped = lambda: jnp.full_like(residual, jnp.nan)  # noqa: E731
    if isinstance(wanted, bool):
        estimate = evaluate() if wanted else skipped()
    else:
        estimate = lax.cond(wanted, evaluate, skipped)
    unknown = negative | jnp.isinf(estimate) | (jnp.isnan(estimate) & jnp.asarray(wanted))
    return jnp.where(unknown, jnp.inf, estimate), code


def _changes(case: Case, system: System, u: Tree, adapted: Tree) -> tuple[Array, Array]:
    """How v - A u and the meta-gradient at fixed u change from phi to phi - e; see `error_estimate`."""
    x, unravel = tree.ravel(adapted)
    r, u_flat = tree.ravel(system.residual)[0], tree.ravel(u)[0]

    def product(at: Tree, vector: Tree) -> Tree:
        if case.problem.structure == "general":
            return jax.vjp(case.residual, at)[1](vector)[0]
        return jax.jvp(case.residual, (at,), (vector,))[1]  # A is its own transpose

    # A r and A u at phi, A u at phi - e: in a loop, so that XLA compiles the product once. Compiling it three
    # times would take longer than the first steps of training.
    def multiply(images: Array, place: Array) -> tuple[Array, None]:
        at = jnp.where(place < 2, x, x - _step(r, images[0]))
        vector = jnp.where(place == 0, r, u_flat)
        return images.at[place].set(tree.ravel(product(unravel(at), unravel(vector)))[0]), None

    images, _ = lax.scan(multiply, jnp.zeros((3, x.size), x.dtype), jnp.arange(3))
    nearer = unravel(x - _step(r, images[0]))
    if case.problem.coupling_norm(adapted, case.theta) is not None:  # B^T u does not depend on phi
        _, slope, direct = case.outer(case.problem.full(nearer, case.theta))
        right, gradient_change = case.problem.split(slope), tree.minus(direct, system.direct)
    else:
        there = case.system(nearer)
        right, gradient_change = there.right, tree.minus(there.gradient(u), system.gradient(u))
    change = tree.ravel(tree.minus(right, system.right))[0] - (images[2] - images[1])
    return jnp.linalg.norm(change), tree.norm(gradient_change)


def _step(residual: Tree, image: Tree) -> Tree:
    """One step of conjugate gradients for A e = residual, from A residual; a tree like them.

    Without positive curvature along the residual, a step of the length that |A residual| suggests.
    """
    curvature, size = tree.dot(residual, image), tree.norm(residual)
    flat = size / jnp.maximum(tree.norm(image), jnp.finfo(size.dtype).tiny)
    length = jnp.where(curvature > 0, size**2 / jnp.where(curvature > 0, curvature, 1), flat)
    return jax.tree.map(lambda leaf: length * leaf, residual)


def estimate_at(case: Case, system: System, point: Point) -> Array:
    """The error of a point's meta-gradient after Newton steps, by the least Ritz value seen; no bound.

    Args:
        case: The task.
        system: The linear system at the first point.
        point: The point reached.

    Returns:
        The estimate, a scalar; infinite where the curvature is not positive.
    """
    floor = case.problem.curvature_floor(point.adapted, case.theta)
    mu = point.smallest if floor is None else floor
    safe = jnp.where(mu > 0, mu, 1)
    estimate = remaining_error(point, Constants(safe, safe, sensitivity(system, point.u)))
    return jnp.where((mu > 0) & ~point.negative, estimate, jnp.inf)
