"""The likelihood of a prior, its maximum by Newton's method, and the standard errors there.

    phi = mean + L u        u ~ N(0, I), and L L^T the covariance of the tasks' parameters
    -log p(rows)  ~  nll(u*) + 1/2 |u*|^2 + 1/2 log |I + L^T H L|      u* the mode, H the Hessian of nll

This is Laplace's method, exact for linear-Gaussian models. In L, unlike in a precision, a model without
variance between tasks is an ordinary point: the likelihood is smooth there, and Newton's method converges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core import tree
from ..core.compile import whole_program
from ..core.errors import StructureError
from ..core.tree import Tree
from ..problems.base import Problem
from ..problems.likelihoods import likelihood_of
from ..problems.precision import Theta
from .polynomial import degree_of

FLOOR = 1e-3  # the least standard deviation between tasks that a precision holds, in units of the noise's
MOST = 300  # numbers that are learned: the Hessian is a matrix over them
DAMPING = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1e4)  # of a Newton step, in units of the Hessian's diagonal
SHRINKING = (1.0, 0.5, 0.2, 0.05, 0.01)  # of a Newton step for one task
FLAT = 1e-9  # eigenvalues of the scaled Hessian below which a direction is not determined
TOGETHER = 4_000_000  # entries of the rows times columns of the Hessian that are computed at once
INNER = 60  # Newton steps at most for one task


def roots(problem: Problem, theta: Tree) -> Theta:
    """Return theta with L in the place of its log strengths.

    Args:
        problem: The problem.
        theta: The meta-parameters.

    Returns:
        A `Theta` whose `log_strength` holds standard deviations, or with ``per="dense"`` the lower triangular
        L; None where the strength is fixed.

    Raises:
        StructureError: If the strength is learned as "low-rank".
    """
    theta = Theta.of(theta)
    if problem.learns is None:
        return theta
    if problem.learns.per == "low-rank":
        raise StructureError(
            "likelihood: expected a strength learned per 'all', 'leaf', 'parameter' or 'dense', got "
            "'low-rank'."
        )
    if problem.learns.diagonal:
        return theta._replace(log_strength=jax.tree.map(lambda log: jnp.exp(-log / 2), theta.log_strength))
    return theta._replace(log_strength=jnp.linalg.cholesky(_covariance(problem, theta)))


def _covariance(problem: Problem, theta: Tree) -> Array:
    """The inverse of the precision, (n, n)."""
    adapted = problem.split(problem.mean(theta))
    flat = tree.ravel(adapted)[0]
    found = jax.vmap(problem.precision(adapted, theta).inverse)(jnp.eye(flat.size, dtype=flat.dtype))
    return (found + found.T) / 2


def root_matrix(problem: Problem, rooted: Theta) -> Array:
    """Return L.

    Args:
        problem: The problem.
        rooted: What `roots` returned.

    Returns:
        ``(n, n)`` over the adapted parameters.
    """
    if problem.learns is None:
        return jnp.linalg.cholesky(_covariance(problem, rooted))
    if not problem.learns.diagonal:
        return jnp.tril(rooted.log_strength)
    adapted = problem.split(rooted.mean)
    found = rooted.log_strength
    if problem.learns.per == "all":
        found = jax.tree.map(lambda _: rooted.log_strength, adapted)
    return jnp.diag(tree.ravel(tree.spread(found, adapted))[0])


def unrooted(problem: Problem, rooted: Theta) -> Theta:
    """Return the `Theta` with log strengths again.

    Standard deviations are raised to `FLOOR` times the noise's, as a precision cannot be infinite.

    Args:
        problem: The problem.
        rooted: What `roots` returned.

    Returns:
        The meta-parameters.
    """
    if problem.learns is None:
        return rooted
    least = _least(rooted)
    if problem.learns.diagonal:
        logs = jax.tree.map(lambda root: -jnp.log(jnp.maximum(root**2, least)), rooted.log_strength)
        return rooted._replace(log_strength=logs)
    root = root_matrix(problem, rooted)
    values, vectors = jnp.linalg.eigh(root @ root.T)
    covariance = (vectors * jnp.maximum(values, least)) @ vectors.T
    return rooted._replace(log_strength=problem.learns.fitted(covariance, problem.split(rooted.mean)))


def _least(rooted: Theta) -> Array | float:
    """The least variance that a precision holds."""
    return FLOOR**2 * (1.0 if rooted.log_noise is None else jnp.exp(rooted.log_noise))


def flattened(problem: Problem, rooted: Theta) -> tuple[Array, Callable[[Array], Theta]]:
    """Return the numbers that are learned as one vector, and how a vector becomes a tree again.

    Args:
        problem: The problem.
        rooted: What `roots` returned.

    Returns:
        The vector ``(k,)``: the mean, then L, of which a matrix counts its lower triangle, then the noise.
    """
    if problem.learns is None or problem.learns.diagonal:
        return tree.ravel(rooted)
    size = rooted.log_strength.shape[0]
    lower = jnp.tril_indices(size)
    flat, unravel = tree.ravel(rooted._replace(log_strength=rooted.log_strength[lower]))

    def back(vector: Array) -> Theta:
        found = unravel(vector)
        matrix = jnp.zeros((size, size), vector.dtype).at[lower].set(found.log_strength)
        return found._replace(log_strength=matrix)

    return flat, back


def surprise(problem: Problem, rooted: Theta, batch: Tree) -> Array:
    """Return a task's negative log likelihood by Laplace's method, twice differentiable in `rooted`.

    Args:
        problem: ``proximal(likelihood(loss), strength)``.
        rooted: What `roots` returned.
        batch: All of the task's rows.

    Returns:
        A scalar; NaN if the Hessian at the mode is not positive definite.

    Raises:
        StructureError: If the loss is not a sum of negative log likelihoods, or outputs are not linear in the
            adapted parameters.
    """
    loss, root = likelihood_of("likelihood", problem).given(rooted), root_matrix(problem, rooted)
    mean, unravel = tree.ravel(problem.split(rooted.mean))
    start = jnp.zeros_like(mean)

    def outputs(u: Array) -> Array:
        return loss.outputs(problem.full(unravel(mean + root @ u), rooted), batch)

    if degree_of(outputs, start) > 1:
        raise StructureError(
            "likelihood: expected outputs that are linear in the parameters that a task adapts, got others. "
            "Hint: Newton's method fits linear models; for networks choose --optimiser.name=adam."
        )
    first, along = jax.linearize(outputs, start)
    columns = jax.vmap(along)(jnp.eye(start.size, dtype=start.dtype))  # J L, (n, rows, ...)
    cost = jax.grad(lambda z: loss.cost(z, batch))
    z = lambda u: first + jnp.tensordot(u, columns, 1)  # noqa: E731
    onto = lambda slope: jnp.tensordot(columns.reshape(start.size, -1), slope.reshape(-1), 1)  # noqa: E731

    def objective(u: Array) -> Array:
        return loss.cost(z(u), batch) + 0.5 * u @ u

    def step(u: Array) -> tuple[Array, Array]:
        slope, curvature = jax.linearize(cost, z(u))
        return onto(slope) + u, jax.vmap(lambda v: onto(curvature(v)))(columns) + jnp.eye(
            u.size, dtype=u.dtype
        )

    mode = start
    if degree_of(cost, first) > 1:
        mode = lax.stop_gradient(_mode(objective, step, start))
    # A Newton step from a solution is differentiable once, and two of them three times. Of a quadratic
    # objective the first is the solution itself.
    for _ in range(2 if degree_of(cost, first) > 1 else 1):
        slope, curvature = step(mode)
        mode = mode - jnp.linalg.solve(curvature, slope)
    lower = jnp.linalg.cholesky(step(mode)[1])
    return objective(mode) + jnp.sum(jnp.log(jnp.diagonal(lower)))


def _mode(
    objective: Callable[[Array], Array], step: Callable[[Array], tuple[Array, Array]], start: Array
) -> Array:
    """The minimiser: Newton steps, each shrunk to the best of a few lengths."""
    shrinking = jnp.asarray(SHRINKING, start.dtype)

    def onwards(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        u, _, count = state
        slope, curvature = step(u)
        values, vectors = jnp.linalg.eigh(curvature)
        move = vectors @ ((vectors.T @ slope) / jnp.maximum(jnp.abs(values), 1e-3))
        tried = u - shrinking[:, None] * move
        scores = jax.vmap(objective)(tried)
        best = jnp.argmin(jnp.where(jnp.isfinite(scores), scores, jnp.inf))
        return tried[best], jnp.max(jnp.abs(move)), count + 1

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] > 1e-9) & (state[2] < INNER)

    return lax.while_loop(goes_on, onwards, (start, jnp.asarray(jnp.inf, start.dtype), jnp.asarray(0)))[0]


class Move(NamedTuple):
    """A step towards the maximum.

    Attributes:
        rooted: The new parameters, as `roots` has them.
        distance: How far the old ones were from the maximum, in standard errors.
        surprises: Each task's negative log likelihood at the old ones, ``(tasks,)``.
    """

    rooted: Theta
    distance: Array
    surprises: Array


def _each(problem: Problem, back: Callable[[Array], Theta], batches: Tree) -> Callable[[Array], Array]:
    """The function from the learned numbers to each task's negative log likelihood."""
    return lambda x: jax.vmap(lambda batch: surprise(problem, back(x), batch))(batches)


def _measured(each: Callable[[Array], Array], at: Array, size: int) -> tuple[Array, Array, Array]:
    """Every task's negative log likelihood, and slope and Hessian of their sum: one program for all three.

    The Hessian's columns come a few at a time, so that memory stays bounded.

    Args:
        each: What `_each` returned.
        at: The learned numbers.
        size: The number of entries of the batches.
    """

    def both(x: Array) -> tuple[Array, Array]:
        values, pull = jax.vjp(each, x)
        return values, pull(jnp.ones_like(values))[0]

    along = lambda e: jax.jvp(both, (at,), (e,))  # noqa: E731
    several = max(1, min(at.size, TOGETHER // size))
    (values, slopes), (_, columns) = lax.map(along, jnp.eye(at.size, dtype=at.dtype), batch_size=several)
    return values[0], slopes[0], (columns + columns.T) / 2


def newton(problem: Problem, rooted: Theta, batches: Tree) -> Move:
    """Take a damped Newton step on the negative log likelihood of all tasks.

    Of steps with several dampings the best is taken, and none if all are worse. Directions of negative
    curvature are left downhill.

    Args:
        problem: The problem.
        rooted: The parameters, as `roots` has them.
        batches: All rows of every task, with a leading axis of tasks.

    Returns:
        The step.

    References:
        Nocedal, Wright (2006), Numerical optimization, sections 3.4 and 4.3.
    """
    at, back = flattened(problem, rooted)
    _require_few(at.size)
    each = _each(problem, back, batches)
    surprises, slope, hessian = _measured(each, at, _size(batches))
    scale, values, vectors = _spectrum(hessian)
    slopes = vectors.T @ (slope / scale)
    # At a saddle the slope is 0: a small push lets the step leave it.
    slopes = jnp.where(values < -1e-6, slopes + jnp.copysign(1e-3, slopes), slopes)
    steep = jnp.abs(values) > FLAT
    safe = jnp.where(steep, jnp.abs(values), 1)

    def tried(damping: Array) -> Array:
        return at - (vectors @ jnp.where(steep, slopes / (safe + damping), 0)) / scale

    points = jax.vmap(tried)(jnp.asarray(DAMPING, at.dtype))
    scores = lax.map(lambda x: jnp.sum(each(x)), points)
    scores = jnp.where(jnp.isfinite(scores), scores, jnp.inf)
    best = jnp.argmin(scores)
    distance = jnp.sqrt(jnp.sum(jnp.where(steep, slopes**2 / safe, 0)))
    better = scores[best] <= jnp.sum(surprises)
    return Move(back(jnp.where(better, points[best], at)), distance, surprises)


def _spectrum(hessian: Array) -> tuple[Array, Array, Array]:
    """The scale of each parameter, and eigenvalues and eigenvectors of the Hessian in units of it."""
    diagonal = jnp.abs(jnp.diagonal(hessian))
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1))
    return scale, *jnp.linalg.eigh(hessian / jnp.outer(scale, scale))


class Fitted(NamedTuple):
    """What the likelihood says at some parameters.

    Attributes:
        mean: The flat mean of the tasks' parameters, shared ones included, ``(m,)``.
        covariance: Of the estimate of that mean, ``(m, m)``; rows that are not determined are 0.
        determined: Which of the means the data determine, booleans ``(m,)``.
        log_likelihood: The sum over tasks.
        parameters: How many numbers are learned, those that are not determined excluded.
        distance: From the maximum, in standard errors; infinite at a saddle.
        deviations: The standard deviation between tasks of each adapted parameter, ``(n,)``; 0 at the floor.
        deviation_errors: Their standard errors, ``(n,)``.
        spread: The standard deviations along the principal axes, largest first, ``(n,)``; 0 at the floor.
    """

    mean: np.ndarray
    covariance: np.ndarray
    determined: np.ndarray
    log_likelihood: float
    parameters: int
    distance: float
    deviations: np.ndarray
    deviation_errors: np.ndarray
    spread: np.ndarray


def fitted(problem: Problem, theta: Tree, batches: Tree) -> Fitted:
    """Return the log likelihood of all tasks, and standard errors by the observed information, in float64.

    Args:
        problem: The problem.
        theta: The meta-parameters.
        batches: All rows of every task, with a leading axis of tasks.

    Returns:
        What the likelihood says.

    Raises:
        StructureError: If the loss is not a sum of negative log likelihoods, the model is not linear, or too
            many numbers are learned.
    """
    with jax.enable_x64(True):
        found = whole_program(functools.partial(_fitted, problem))(theta, batches)
        mean, surprises, slope, spread, deviations, along, scale, values, vectors = map(np.asarray, found)
    steep, size = np.abs(values) > FLAT, mean.size
    whitened = vectors[:, steep] / np.sqrt(np.abs(values[steep])) / scale[:, None]
    lost = (vectors[:, ~steep] ** 2).sum(1)[:size] > 1e-6
    covariance = (whitened @ whitened.T)[:size, :size]
    covariance[lost] = covariance[:, lost] = 0.0
    distance = float(np.linalg.norm(whitened.T @ slope)) if values.min() > -1e-6 else np.inf
    errors = np.linalg.norm(along @ whitened, axis=1)
    likelihood = -float(surprises.sum())
    return Fitted(mean, covariance, ~lost, likelihood, int(steep.sum()), distance, deviations, errors, spread)


def _fitted(problem: Problem, theta: Tree, batches: Tree) -> tuple[Array, ...]:
    """The mean, surprises, slope, standard deviations with their derivatives, and the Hessian's spectrum."""
    theta, batches = doubled((theta, batches))
    rooted = _cleaned(problem, roots(problem, theta))
    at, back = flattened(problem, rooted)
    _require_few(at.size)
    surprises, slope, hessian = _measured(_each(problem, back, batches), at, _size(batches))
    deviations = lambda x: jnp.sqrt(jnp.sum(root_matrix(problem, back(x)) ** 2, 1) + 1e-30)  # noqa: E731
    spread = jnp.linalg.svd(root_matrix(problem, rooted), compute_uv=False)
    found = tree.ravel(rooted.mean)[0], surprises, slope, spread, deviations(at), jax.jacfwd(deviations)(at)
    return *found, *_spectrum(hessian)


def _cleaned(problem: Problem, rooted: Theta) -> Theta:
    """Standard deviations at the floor of a precision as the zeros that they stand for."""
    if problem.learns is None:
        return rooted
    least = 1.01 * _least(rooted) ** 0.5
    if problem.learns.diagonal:
        zeroed = jax.tree.map(lambda root: jnp.where(root > least, root, 0), rooted.log_strength)
        return rooted._replace(log_strength=zeroed)
    left, values, _ = jnp.linalg.svd(root_matrix(problem, rooted))
    upper = jnp.linalg.qr((left * jnp.where(values > least, values, 0)).T, mode="r")
    return rooted._replace(log_strength=(upper * jnp.where(jnp.diagonal(upper) < 0, -1, 1)[:, None]).T)


def _size(batches: Tree) -> int:
    """The number of entries of the arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(batches))


def doubled(value: Tree) -> Tree:
    """Return a tree with its floats in float64; within ``jax.enable_x64(True)``.

    Args:
        value: The tree.

    Returns:
        The tree.
    """
    wide = lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf  # noqa: E731
    return jax.tree.map(lambda leaf: wide(jnp.asarray(leaf)), value)


def _require_few(count: int) -> None:
    """Check that the Hessian is not a large matrix."""
    if count > MOST:
        raise StructureError(
            f"likelihood: expected at most {MOST} learned numbers, got {count}. Hint: let fewer coefficients "
            "vary, learn a strength per 'parameter' instead of 'dense', or choose --optimiser.name=adam."
        )
