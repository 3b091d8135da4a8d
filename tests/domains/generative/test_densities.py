"""Densities: a two-parameter energy against a grid, score matching, the normaliser, and the meta-gradient."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.differences import check_meta_gradient, in_double
from helpers.marks import slow_after_first
from imaml.domains.generative.densities import Cloud, Energy, logs_of_mixture

pytestmark = pytest.mark.usefixtures("ranks_mixed")
GRID = np.linspace(-6, 6, 2001)


def statistics(x):
    """What the two parameters of the energy phi_0 x^2 / 2 + phi_1 x^4 / 4 multiply."""
    return jnp.stack([x**2 / 2, x**4 / 4], -1)


def negative_log_likelihood(phi, points):
    """Of the energy, its normaliser summed over the grid."""
    width = GRID[1] - GRID[0]
    return jnp.mean(statistics(points) @ phi) + jax.nn.logsumexp(-statistics(GRID) @ phi) + jnp.log(width)


def test_a_two_parameter_energy_has_the_gradient_that_a_grid_gives():
    """At phi*, H is the covariance of the statistics under p(x; phi*), in NumPy: (I + H / strength)^-1 g."""
    seen, asked = (np.array(x) for x in ([-1.3, -0.9, 1.1, 1.0, 0.2], [-1.0, 0.8, 1.4]))
    theta, strength = np.array([0.3, 0.5]), 0.2
    problem = imaml.proximal(negative_log_likelihood, strength)
    solver, linear = imaml.NewtonCG(steps=60, linear=imaml.CG(tolerance=1e-13)), imaml.CG(tolerance=1e-13)

    def outer(theta):
        solved = imaml.solve(problem, theta, seen, inner=solver, rule=imaml.implicit(linear))
        return negative_log_likelihood(solved, asked), solved

    found, solved = jax.grad(outer, has_aux=True)(jnp.asarray(theta))
    phi = np.array(solved)
    t = np.stack([GRID**2 / 2, GRID**4 / 4], -1)
    p = np.exp(-t @ phi)
    p /= p.sum()
    mean = p @ t
    means = [np.stack([x**2 / 2, x**4 / 4], -1).mean(0) for x in (seen, asked)]
    np.testing.assert_allclose(means[0] - mean + strength * (phi - theta), 0, atol=1e-9)  # it is the solution
    curvature = (t - mean).T @ (p[:, None] * (t - mean))
    expected = np.linalg.solve(np.eye(2) + curvature / strength, means[1] - mean)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_outputs_are_the_energy_s_slopes():
    energy = imaml.densities(hidden=(6,)).loss
    phi = jax.tree.map(lambda leaf: leaf.astype(float), energy.network.init(jax.random.key(0)))
    points, noise = (
        jax.random.normal(jax.random.key(1), (4, 2)),
        jax.random.normal(jax.random.key(2), (4, 3, 2)),
    )
    blurred, size = (points[:, None] + energy.sigma * noise).reshape(-1, 2), 1e-5
    slopes = [
        (energy.at(phi, blurred + size * way) - energy.at(phi, blurred - size * way)) / (2 * size)
        for way in jnp.eye(2)
    ]
    expected = energy.sigma * jnp.stack(slopes, -1).reshape(noise.shape)
    np.testing.assert_allclose(energy.outputs(phi, Cloud(points, noise)), expected, rtol=1e-7, atol=1e-9)


class Bowl(Energy):
    """A normal distribution of variance phi."""

    def at(self, phi, points):
        return jnp.sum(jnp.square(points), -1) / (2 * phi)


def test_score_matching_finds_the_blurred_variance():
    """Its least loss is at the score of the density blurred by sigma (Vincent 2011): variances add."""
    points = 0.7 * jax.random.normal(jax.random.key(0), (100_000, 2))
    cloud = Cloud(points, jax.random.normal(jax.random.key(1), (100_000, 4, 2)))
    energy = Bowl(None, 0.5)
    slope = jax.grad(lambda variance: energy(variance, cloud))
    expected = 0.7**2 + 0.5**2
    assert slope(0.98 * expected) < 0 < slope(1.02 * expected)


@pytest.mark.parametrize("family", slow_after_first(["curves", "modes"]))
def test_true_and_learned_densities_integrate_to_one(family):
    domain = imaml.densities(family, grid=60, spread=0.2)
    width = 8 / 200
    line = -4 + width * (np.arange(200) + 0.5)
    wide = np.array(list(itertools.product(line, line)))
    centres = domain.sample(jax.random.key(3), "test").query.centres
    true = np.exp(logs_of_mixture(jnp.asarray(wide), centres, 0.2))
    np.testing.assert_allclose(true.sum() * width**2, 1, atol=1e-4)
    inside = wide[np.abs(wide).max(1) < 3]
    learned = np.exp(domain.forward(domain.init(jax.random.key(0)), jnp.asarray(inside)))
    np.testing.assert_allclose(learned.sum() * width**2, 1, atol=2e-3)  # two grids of one integral


@pytest.mark.parametrize("judge", slow_after_first(["likelihood", "score"]))
def test_the_meta_gradient_equals_central_differences(judge):
    domain = imaml.densities(shots=4, queries=5, noises=3, grid=12, hidden=(5,), judge=judge)
    task, theta = in_double((domain.sample(jax.random.key(0), "train"), domain.init(jax.random.key(1))))
    linear = imaml.CG(tolerance=1e-13)
    inner = imaml.NewtonCG(steps=40, linear=linear)
    check_meta_gradient(domain.problem(0.5), domain.query_loss, theta, task, inner, linear)


@pytest.mark.slow
def test_baselines_are_worse_than_the_truth():
    domain = imaml.densities(queries=400)
    tasks = jax.vmap(lambda key: domain.sample(key, "test"))(jax.random.split(jax.random.key(0), 8))
    found = {name: float(np.mean(each)) for name, each in jax.vmap(domain.baselines)(tasks).items()}
    assert found["true"] + 0.5 < min(found["kernels"], found["normal"])
    assert max(found.values()) < 4
