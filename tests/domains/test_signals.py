"""Networks for windows of signals."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.differences import check_meta_gradient, in_double
from imaml.core.recipes import from_json, to_json

pytestmark = pytest.mark.usefixtures("ranks_mixed")
NETWORKS = {
    "Conv1D": imaml.Conv1D(2, filters=4, layers=2, kernel=3, channels=2),
    "GRU": imaml.GRU(2, units=3, channels=2),
}
every = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def windows(count, steps, seed=1):
    return jax.random.normal(jax.random.key(seed), (count, steps, 2))


@every
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_windows_of_any_length(network, steps):
    outputs, statistics = network.forward(network.init(jax.random.key(0)), windows(5, steps))
    assert outputs.shape == (5, 2)
    assert statistics is None


@every
def test_they_are_recipes(network):
    assert from_json(to_json(network)) == network
    with pytest.raises(imaml.ConfigError, match="channels"):
        type(network)(2, channels=0)


def test_the_convolution_is_that_of_lax():
    network = imaml.Conv1D(2, filters=4, layers=1, kernel=5, channels=2)
    theta, x = in_double(network.init(jax.random.key(0))), windows(3, 11)
    kernel = theta["conv1"]["kernel"].reshape(4, 5, 2).transpose(1, 2, 0)
    hidden = jax.lax.conv_general_dilated(x, kernel, (2,), [(2, 2)], dimension_numbers=("NWC", "WIO", "NWC"))
    expected = jax.nn.relu(hidden + theta["conv1"]["bias"]).mean(1) @ theta["head"]["kernel"]
    np.testing.assert_allclose(network.forward(theta, x)[0], expected, rtol=1e-10)


def test_the_recurrence_is_that_of_equinox():
    import equinox as eqx

    network = imaml.GRU(2, units=3, channels=2)
    theta, x = in_double(network.init(jax.random.key(0))), windows(1, 7)
    cell = eqx.nn.GRUCell(2, 3, key=jax.random.key(0))
    own = theta["cell"]
    weights = (own["input"].T, own["state"].T, jnp.zeros(9), jnp.zeros(3))
    where = lambda c: (c.weight_ih, c.weight_hh, c.bias, c.bias_n)  # noqa: E731
    cell, state = eqx.tree_at(where, cell, weights), jnp.zeros(3)
    for row in x[0]:
        state = cell(row, state)
    np.testing.assert_allclose(network.forward(theta, x)[0][0], state @ theta["head"]["kernel"], rtol=1e-10)


@pytest.mark.slow
@every
def test_the_meta_gradient_is_that_of_differences(network):
    loss = lambda phi, batch: jnp.mean((network.forward(phi, batch[0])[0] - batch[1]) ** 2)  # noqa: E731
    batches = [(windows(4, 5, seed), windows(4, 1, seed + 5)[:, 0]) for seed in (1, 2)]
    linear = imaml.CG(tolerance=1e-13)
    check_meta_gradient(
        imaml.proximal(loss, 10.0),  # near theta, where no unit of the ReLU changes sides
        lambda phi, theta, batch: loss(phi, batch),
        in_double(network.init(jax.random.key(3))),
        imaml.Task(*batches),
        imaml.NewtonCG(steps=30, linear=linear),
        linear,
    )


@every
def test_long_windows_compile_as_quickly_as_short_ones(network):
    def seconds(steps):
        began = time.perf_counter()
        loss = lambda theta, x: jnp.sum(network.forward(theta, x)[0] ** 2)  # noqa: E731
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        jax.jit(jax.grad(loss)).lower(shapes, windows(2, steps))
        return time.perf_counter() - began

    seconds(7)  # what is imported and cached on the way
    assert seconds(1000) < 5 * seconds(10) + 1
