"""A log density of one's own as the likelihood of rows: against the Gaussian in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.core.errors import ConfigError
from imaml.domains.regression import LinearLoss, Points
from imaml.problems.likelihoods import Density, Gaussian


def gaussian(outputs, target):
    return -0.5 * jnp.sum(jnp.square(outputs - target)) / 2.0 - 0.5 * jnp.log(2 * jnp.pi * 2.0)


class Declared(LinearLoss):
    """The linear model, with a density in place of its declared Gaussian."""

    likelihood = Density(gaussian)


X = np.random.default_rng(0).normal(size=(7, 3))
Y = X @ np.array([1.0, -1.0, 0.5]) + 0.1
BATCH = Points(jnp.asarray(X), jnp.asarray(Y))


def test_it_is_the_gaussian_s():
    outputs, vector = jnp.asarray(Y[:, None] + 0.3), jax.random.normal(jax.random.key(0), (7, 1))
    density, noise = Density(gaussian), jnp.asarray(2.0)
    rows = Points(BATCH.inputs, BATCH.targets[:, None])
    np.testing.assert_allclose(density.cost(outputs, rows), Gaussian().cost(outputs, rows, noise), rtol=1e-12)
    np.testing.assert_allclose(
        density.half(outputs, rows, None, vector), Gaussian().half(outputs, rows, noise, vector), rtol=1e-12
    )


def test_laplace_s_posterior_is_the_gaussian_s():
    made = imaml.proximal(imaml.likelihood(Declared()), 1.5)
    known = imaml.proximal(imaml.likelihood(LinearLoss(), noise=2.0), 1.5)
    phi = np.linalg.solve(X.T @ X / 2 + 1.5 * np.eye(3), X.T @ Y / 2)
    theta = jnp.zeros(3)
    np.testing.assert_allclose(made.residual(jnp.asarray(phi), theta, BATCH), np.zeros(3), atol=1e-12)
    found, expected = (imaml.posterior(p, jnp.asarray(phi), theta, BATCH) for p in (made, known))
    np.testing.assert_allclose(found.covariance(), expected.covariance(), rtol=1e-10)
    np.testing.assert_allclose(found.covariance(), np.linalg.inv(X.T @ X / 2 + 1.5 * np.eye(3)), rtol=1e-10)
    assert found.noise is None
    np.testing.assert_allclose(expected.noise, 2.0)


def test_negative_curvature_counts_as_none():
    rows = Points(jnp.zeros((2, 1)), jnp.zeros((2, 1)))
    density = Density(lambda z, y: -jnp.log1p(jnp.sum((z - y) ** 2)))  # Cauchy: convex beyond 1
    inside, outside = density.half(jnp.array([[0.5], [2.0]]), rows, None, jnp.ones((2, 1)))[:, 0]
    np.testing.assert_allclose(inside**2, 2 * (1 - 0.25) / 1.25**2, rtol=1e-10)
    assert outside == 0


def test_a_density_is_a_scalar_of_one_row():
    rows = Points(jnp.zeros((2, 1)), jnp.zeros((2, 1)))
    with pytest.raises(
        ConfigError,
        match=r"expected a log density that returns a scalar for one row, got one of shape \(1,\)",
    ):
        Density(lambda z, y: z - y).cost(jnp.zeros((2, 1)), rows)
    with pytest.raises(ConfigError, match="Density: log_density: expected a function, got 'poisson'"):
        Density("poisson")
