"""Squared losses of a head: the inverse in closed form against the dense one, and what is learned by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import imaml
from imaml.problems.base import Task


@dataclasses.dataclass(frozen=True)
class Head(imaml.LinearSquares):
    """The last layer of a small network; its features are shaped by the shared parameters."""

    linear_in = ("head",)

    def design(self, phi, batch):
        features = jnp.tanh(batch[0] @ phi["body"])
        return {"head": {"bias": jnp.ones((features.shape[0], 1), features.dtype), "kernel": features}}

    def targets(self, batch, columns):
        return batch[1]


RANDOM = np.random.default_rng(0)


def theta_of(features, columns=3):
    head = {"bias": RANDOM.normal(size=columns), "kernel": RANDOM.normal(size=(features, columns))}
    return jax.tree.map(jnp.asarray, {"body": RANDOM.normal(size=(4, features)), "head": head})


def batch_of(rows, columns=3):
    return jnp.asarray(RANDOM.normal(size=(rows, 4))), jnp.asarray(RANDOM.normal(size=(rows, columns)))


STRENGTHS = {
    "a number": 0.3,
    "a leaf": {"body": 1.0, "head": {"bias": 0.01, "kernel": 0.7}},
    "learned, all": imaml.learned(0.3, per="all"),
    "learned, a leaf": imaml.learned(0.3, per="leaf"),
}
SIZES = {"fewer features": (6, 20), "fewer rows": (20, 6), "one row": (5, 1)}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_is_that_of_the_dense_matrix(strength, size):
    features, rows = SIZES[size]
    mean, batch = theta_of(features), batch_of(rows)
    problem = imaml.proximal(Head(), STRENGTHS[strength], "head")
    theta = problem.parameters(mean)
    phi = problem.init(theta, batch)
    flat, unravel = ravel_pytree(phi)
    residual = lambda x: ravel_pytree(problem.residual(unravel(x), theta, batch))[0]  # noqa: E731
    matrix = jax.jit(jax.jacfwd(residual))(flat)
    right = RANDOM.normal(size=flat.size)
    inverse = lambda right: ravel_pytree(problem.inverse(phi, theta, batch)(unravel(right)))[0]  # noqa: E731
    found = jax.jit(inverse)(jnp.asarray(right))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_one_newton_step_is_exact(size):
    features, rows = SIZES[size]
    theta, batch = theta_of(features), batch_of(rows)
    problem = imaml.proximal(Head(), 0.1, "head")
    newton = imaml.Newton(steps=1, linear=imaml.Inverse())
    found = jax.jit(lambda theta: newton(problem, theta, batch))(theta)
    x = np.concatenate([np.ones((rows, 1)), np.tanh(np.asarray(batch[0] @ theta["body"]))], axis=1)
    start = np.concatenate([np.asarray(theta["head"]["bias"])[None], theta["head"]["kernel"]])
    normal = x.T @ x / rows + 0.1 * np.eye(features + 1)
    expected = np.linalg.solve(normal, x.T @ np.asarray(batch[1]) / rows + 0.1 * start)
    np.testing.assert_allclose(found.value["head"]["bias"], expected[0], atol=1e-9)
    np.testing.assert_allclose(found.value["head"]["kernel"], expected[1:], atol=1e-9)
    assert float(found.stats.residual) < 1e-10


@pytest.mark.parametrize("size", SIZES)
def test_the_meta_gradient_is_that_of_the_closed_form(size):
    """Of the body, the head and the strength, against automatic differentiation of the ridge solution."""
    features, rows = SIZES[size]
    mean, support, query = theta_of(features), batch_of(rows), batch_of(7)
    problem = imaml.proximal(Head(), imaml.learned(0.2, per="all"), "head")
    theta = problem.parameters(mean)

    def query_loss(phi, theta, batch):
        return jnp.mean(jax.nn.logsumexp(Head().outputs(phi, batch), axis=1)) + jnp.sum(phi["body"] ** 2)

    def closed(theta):
        x = jnp.concatenate([jnp.ones((rows, 1)), jnp.tanh(support[0] @ theta.mean["body"])], axis=1)
        start = jnp.concatenate([theta.mean["head"]["bias"][None], theta.mean["head"]["kernel"]])
        strength = jnp.exp(theta.log_strength)
        normal = x.T @ x / rows + strength * jnp.eye(features + 1)
        w = jnp.linalg.solve(normal, x.T @ support[1] / rows + strength * start)
        return query_loss({**theta.mean, "head": {"bias": w[0], "kernel": w[1:]}}, theta, query)

    newton = imaml.Newton(steps=1, linear=imaml.Inverse())
    method = imaml.IMAML(problem, query_loss, inner=newton, linear=imaml.Inverse())
    tasks = jax.tree.map(lambda leaf: leaf[None], Task(support, query))
    gradient, metrics = jax.jit(method)(theta, tasks)
    expected = jax.jit(jax.grad(closed))(theta)
    for found, right in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-8, atol=1e-10)
    assert float(metrics.linear_residual[0]) < 1e-10
    inner = {"inner": newton, "rule": imaml.implicit(imaml.Inverse())}
    solved = lambda t: query_loss(imaml.solve(problem, t, support, **inner), t, query)  # noqa: E731
    through = jax.jit(jax.grad(solved))(theta)
    for found, right in zip(jax.tree.leaves(through), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-8, atol=1e-10)


def test_derivatives_in_data_and_strength_go_through_the_system():
    """Against automatic differentiation of the closed form, in forward and in reverse mode."""
    theta, (x, y) = theta_of(6), batch_of(4)
    solving = {
        "inner": imaml.Newton(steps=1, linear=imaml.Inverse()),
        "rule": imaml.implicit(imaml.Inverse()),
    }

    def by_solve(strength, x):
        found = imaml.solve(imaml.proximal(Head(), strength, "head"), theta, (x, y), **solving)
        return jnp.sum(jnp.sin(found["head"]["kernel"]))

    def closed(strength, x):
        design = jnp.concatenate([jnp.ones((4, 1)), jnp.tanh(x @ theta["body"])], axis=1)
        start = jnp.concatenate([theta["head"]["bias"][None], theta["head"]["kernel"]])
        normal = design.T @ design / 4 + strength * jnp.eye(7)
        return jnp.sum(jnp.sin(jnp.linalg.solve(normal, design.T @ y / 4 + strength * start)[1:]))

    for mode in (jax.grad, jax.jacfwd):
        found, expected = (jax.jit(mode(f, argnums=(0, 1)))(0.3, x) for f in (by_solve, closed))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)


def test_what_has_no_inverse_is_refused():
    mean, batch = theta_of(6), batch_of(20)
    newton = imaml.Newton(steps=1, linear=imaml.Inverse())
    solving = {"inner": newton, "rule": imaml.implicit(imaml.Inverse())}
    whole = imaml.proximal(Head(), 0.3)  # the body adapts, too: no linear problem
    with pytest.raises(imaml.StructureError, match="expected a problem whose inverse has a closed form"):
        imaml.solve(whole, mean, batch, **solving)
    dense = imaml.proximal(Head(), imaml.learned(0.3, per="dense"), "head")
    with pytest.raises(imaml.StructureError, match="expected a problem whose inverse has a closed form"):
        imaml.solve(dense, dense.parameters(mean), batch, **solving)
    each = imaml.proximal(Head(), imaml.learned(0.3, per="parameter"), "head")
    with pytest.raises(imaml.StructureError, match="the same for all classes"):
        imaml.solve(each, each.parameters(mean), batch, **solving)
    with pytest.raises(imaml.ConfigError, match="inverse: expected a function"):
        imaml.Inverse()(lambda v: v, jnp.ones(2))


def test_large_features_leave_no_rounding_behind():
    """In float32, with curvature 100,000 times the strength: a bare Woodbury formula is off by 1 % there."""
    rows, features = 30, 60
    mean = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), theta_of(features))
    mean["body"] = 1e3 * mean["body"]
    x, y = batch_of(rows)
    batch = (x.astype(jnp.float32), y.astype(jnp.float32))
    problem = imaml.proximal(Head(), 1e-4, "head")
    newton = imaml.Newton(steps=1, linear=imaml.Inverse())
    found = jax.jit(lambda mean: newton(problem, mean, batch))(mean)
    start = np.float64(
        jnp.linalg.norm(problem.residual(problem.init(mean, batch), mean, batch)["head"]["kernel"])
    )
    assert float(found.stats.residual) < 1e-3 * start
