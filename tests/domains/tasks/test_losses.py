"""Losses of rows: closed forms, SciPy, and automatic derivatives."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import imaml
from helpers.marks import slow_after_first
from imaml.core.errors import ConfigError
from imaml.core.recipes import from_json, to_json
from imaml.domains.networks import MLP
from imaml.domains.tasks.counts import negative_binomial_log_density, poisson_log_density
from imaml.domains.tasks.layout import Rows
from imaml.domains.tasks.losses import TaskLoss
from imaml.domains.tasks.own_losses import NAMED, OwnDensity, OwnLoss, loss_of
from imaml.problems.likelihoods import Density, likelihood

pytestmark = pytest.mark.usefixtures("ranks_mixed")
KEY = jax.random.key(0)
COUNTS = np.array([0, 1, 2, 5, 17, 200])
CLASSES = {"cross_entropy": 3, "binary": 2, "ordinal": 4}
# Compiled as a whole: one after another, each operation of these is a program of its own.
NEGATIVE_BINOMIAL = jax.jit(jax.vmap(negative_binomial_log_density, (None, 0)))
HESSIAN = jax.jit(jax.hessian(negative_binomial_log_density))
SECOND = jax.jit(jax.vmap(lambda a, y: negative_binomial_log_density(jnp.array([0.5, a]), y), (0, None)))
SLOPE = jax.jit(
    jax.vmap(jax.grad(lambda a, y: negative_binomial_log_density(jnp.array([0.5, a]), y)), (0, None))
)


def batch_for(name, rows=6, offset=True):
    keys = jax.random.split(KEY, 3)
    inputs = jax.random.normal(keys[0], (rows, 2))
    if name in CLASSES:
        targets = jnp.arange(rows) % CLASSES[name]
    elif name == "squared":
        targets = jax.random.normal(keys[1], (rows, 2))
    else:
        targets = jnp.asarray(COUNTS[:rows, None], float)
    shift = jnp.linspace(-0.5, 0.5, rows) if offset and name not in CLASSES else None
    return Rows(inputs, targets, jnp.array([1.0, 2, 0, 1, 0.5, 1])[:rows], shift)


def loss_for(name):
    row = NAMED[name]()
    outputs = row.outputs_for(CLASSES.get(name, 2 if name == "squared" else 1))
    network = MLP((2, outputs))
    phi = jax.tree.map(lambda leaf: 0.3 * jnp.ones_like(leaf, float) + leaf, network.init(KEY))
    return TaskLoss(network, row), phi


@pytest.mark.parametrize("name", NAMED)
def test_losses_are_weighted_sums_of_negative_log_likelihoods(name):
    loss, phi = loss_for(name)
    batch = batch_for(name)
    outputs = loss.outputs(phi, batch)
    costs = loss.row.cost(outputs, batch)
    assert costs.shape == (6,)
    np.testing.assert_allclose(loss(phi, batch), jnp.sum(batch.weights * costs), rtol=1e-12)
    summed = likelihood(loss, noise=1.0 if name == "squared" else None)
    constant = 2 * jnp.sum(batch.weights) * jnp.log(2 * jnp.pi) / 2 if name == "squared" else 0
    np.testing.assert_allclose(summed(phi, batch), loss(phi, batch) + constant, rtol=1e-12)


@pytest.mark.parametrize("name", NAMED)
def test_gradients_and_curvature_halves_agree_with_jax(name):
    loss, phi = loss_for(name)
    batch = batch_for(name)
    raw = loss.network.forward(phi, batch.inputs)[0]
    outputs = loss.outputs(phi, batch)
    cost = jax.jit(lambda z: loss.cost(z, batch))
    step = jax.random.normal(KEY, outputs.shape)
    along = (cost(outputs + 1e-6 * step) - cost(outputs - 1e-6 * step)) / 2e-6
    np.testing.assert_allclose(jnp.vdot(jax.jit(jax.grad(cost))(outputs), step), along, rtol=1e-7)
    assert raw.shape[0] == outputs.shape[0]
    if name == "squared":
        return
    rows = likelihood(loss).likelihood
    hessian = jax.jit(jax.hessian(lambda z: rows.cost(z, batch, None)))(outputs)
    hessian = hessian.reshape(outputs.size, outputs.size)
    halves = jax.jit(jax.vmap(lambda v: rows.half(outputs, batch, None, v).reshape(-1)))(
        jnp.eye(outputs.size).reshape(outputs.size, *outputs.shape)
    )
    if name == "negative_binomial":  # not concave everywhere: B B^T is its part with positive eigenvalues
        values, vectors = np.linalg.eigh(hessian)
        hessian = vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(halves @ halves.T, hessian, atol=1e-9)


def test_poisson_is_scipy_s():
    for z in (-3.0, 0.0, 2.5):
        found = [float(poisson_log_density(jnp.array([z]), jnp.array([float(y)]))) for y in COUNTS]
        np.testing.assert_allclose(found, stats.poisson(np.exp(z)).logpmf(COUNTS), rtol=1e-10)


@pytest.mark.parametrize("a", slow_after_first([-2.0, -25.0, -9.0, -2.2, 0.0, 2.0, 6.0]))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_negative_binomial_is_scipy_s(a, dtype):
    """Also where the size is so large that the difference of two log gamma functions loses all digits."""
    r = np.exp(-a)
    for z in (-3.0, 0.0, 2.5):
        outputs = jnp.array([z, a], dtype)
        found = NEGATIVE_BINOMIAL(outputs, jnp.asarray(COUNTS[:, None], dtype))
        # SciPy's own digits go for large sizes: its limit is Poisson's distribution.
        expected = stats.nbinom(r, r / (r + np.exp(z))).logpmf(COUNTS)
        if a < -20:
            expected = stats.poisson(np.exp(z)).logpmf(COUNTS)
        single = dtype == jnp.float32
        # log 200! is 863, of which float32 holds four digits behind the point; SciPy loses some, too.
        rtol, atol = (1e-5, 3e-4) if single else (1e-5 if a < -8 else 1e-7, 1e-9)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
        slopes = HESSIAN(outputs, jnp.array([3.0], dtype))
        assert np.all(np.isfinite(slopes))


def test_negative_binomial_derivatives_are_smooth_over_the_branches():
    for y in (0.0, 3.0, 50.0):
        y = jnp.array([y])
        a = -np.log(8) + np.array([-1e-4, 1e-4])
        np.testing.assert_allclose(*SLOPE(jnp.asarray(a), y), rtol=1e-3, atol=1e-4)
        steps = np.linspace(-4, 2, 13)
        central = (SECOND(steps + 1e-5, y) - SECOND(steps - 1e-5, y)) / 2e-5
        np.testing.assert_allclose(SLOPE(jnp.asarray(steps), y), central, rtol=1e-5, atol=1e-7)


def test_ordinal_probabilities_are_differences_of_sigmoids():
    outputs = jnp.array([[0.3, -1.0, 0.2, -0.5]])
    thresholds = np.cumsum([-1.0, np.exp(0.2), np.exp(-0.5)])
    cumulative = np.array([0, *(1 / (1 + np.exp(-(t - 0.3))) for t in thresholds), 1])
    np.testing.assert_allclose(
        jnp.exp(NAMED["ordinal"]().outputs(outputs)), [np.diff(cumulative)], rtol=1e-12
    )


def test_binary_is_the_logistic_loss():
    batch = batch_for("binary")
    loss, phi = loss_for("binary")
    z = loss.network.forward(phi, batch.inputs)[0][:, 0]
    sign = 2 * batch.targets - 1
    np.testing.assert_allclose(loss.row.cost(loss.outputs(phi, batch), batch), np.log1p(np.exp(-sign * z)))


@pytest.mark.parametrize("name", ["poisson", "negative_binomial"])
def test_draws_have_the_mean_and_the_variance(name):
    row = NAMED[name]()
    logs = jnp.array([[1.0, -1.0], [3.0, 0.5]])[:, : row.outputs_for(1)]
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: row.draw(key, logs)))(jax.random.split(KEY, 20_000)))
    mean = np.exp(logs[:, 0])
    variance = mean if name == "poisson" else mean + mean**2 * np.exp(logs[:, 1])
    np.testing.assert_allclose(drawn.mean(0), row.mean(np.asarray(logs))[:, 0], rtol=0.03)
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.1)
    assert row.draw(KEY, jnp.full((3, 2), 200.0)).min() >= 0  # no overflow


def student(outputs, target):
    return -3.0 * jnp.log1p(jnp.square(target[0] - outputs[0]) / 5)


def test_a_density_of_one_s_own():
    density = Density(student, mean=lambda z: z, draw=lambda key, z: z + jax.random.t(key, 5.0, z.shape))
    row = loss_of(density)
    assert isinstance(row, OwnDensity)
    assert row == loss_of(density)
    assert from_json(json.loads(json.dumps(to_json(row)))) == row
    batch = Rows(jnp.zeros((4, 1)), jnp.arange(4.0)[:, None], jnp.ones(4))
    outputs = jnp.ones((4, 1))
    np.testing.assert_allclose(row.cost(outputs, batch), 3 * np.log1p((np.arange(4) - 1) ** 2 / 5), rtol=1e-6)
    assert row.draw(KEY, outputs).shape == (4,)
    np.testing.assert_array_equal(row.mean(np.ones((4, 1))), np.ones((4, 1)))
    plain = loss_of(Density(student))
    np.testing.assert_array_equal(plain.mean(np.ones((4, 1))), np.ones((4, 1)))
    with pytest.raises(
        ConfigError, match=r"predict_interval: expected a density that draws targets, got one without"
    ):
        plain.draw(KEY, outputs)
    with pytest.raises(ConfigError, match="Density: mean: expected a function, got 3"):
        Density(student, mean=3)


def test_a_loss_that_this_process_does_not_hold():
    row = OwnLoss("elsewhere", "elsewhere#7")
    with pytest.raises(ConfigError, match=r"loss: expected the user's loss 'elsewhere'.* Hint: .*loss="):
        row.cost(jnp.zeros((1, 1)), batch_for("squared"))


def test_own_losses_are_held_once():
    def huber(outputs, targets):
        return jnp.sum(jnp.abs(outputs - targets), axis=1)

    first, again, other = loss_of(huber), loss_of(huber), loss_of(lambda o, t: huber(o, t))
    assert first == again
    assert first != other
    assert first.name == "huber"
    batch = batch_for("squared")
    np.testing.assert_allclose(first.cost(batch.targets + 1, batch), 2)
    assert imaml.core.recipes.from_json(to_json(first)) == first
