"""Flax Linen modules as models."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.models import EXAMPLE, LinenNet
from imaml.domains.models.adapters import as_network

pytestmark = [
    pytest.mark.usefixtures("ranks_mixed"),
    pytest.mark.filterwarnings("ignore:.*dropout is off.*:RuntimeWarning"),
]
X = jax.random.normal(jax.random.key(1), (6, 3), jnp.float32)


def test_init_and_forward_are_the_module_s_own():
    network, module = as_network(LinenNet(), EXAMPLE), LinenNet(rate=0.0)
    theta = network.init(jax.random.key(5))
    variables = module.init(jax.random.key(5), EXAMPLE, train=False)
    np.testing.assert_array_equal(theta["Dense_0/kernel"], variables["params"]["Dense_0"]["kernel"])
    outputs, statistics = network.forward(theta, X)
    expected, _ = module.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    averages = {name: statistics[f"BatchNorm_0/{name}"] for name in ("mean", "var")}
    given = module.apply({**variables, "batch_stats": {"BatchNorm_0": averages}}, X[:2], train=False)
    np.testing.assert_allclose(network.forward(theta, X[:2], statistics)[0], given, rtol=1e-6)


def test_equal_definitions_are_one_model():
    assert as_network(LinenNet(), EXAMPLE) == as_network(LinenNet(), EXAMPLE)
    assert as_network(LinenNet(), EXAMPLE) != as_network(LinenNet(rate=0.1), EXAMPLE)


def test_given_variables_are_the_start_and_running_averages_are_ignored():
    module = LinenNet()
    variables = module.init(jax.random.key(5), EXAMPLE, train=False)
    network = as_network((module, variables), EXAMPLE)
    theta = network.init(jax.random.key(0))
    np.testing.assert_array_equal(theta["Dense_1/kernel"], variables["params"]["Dense_1"]["kernel"])
    moved = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf + 7, variables["batch_stats"])}
    other = as_network((module, moved), EXAMPLE)
    jax.tree.map(np.testing.assert_array_equal, network.forward(theta, X), other.forward(theta, X))


@pytest.mark.filterwarnings("error")
def test_dropout_is_off_and_a_warning_says_so():
    module = nn.Sequential([nn.Dense(2), nn.Dropout(0.5, deterministic=False)])
    with pytest.warns(RuntimeWarning, match="model: Sequential: dropout is off") as caught:
        network = as_network(module, EXAMPLE)
    assert len(caught) == 1
    theta = network.init(jax.random.key(0))
    expected = X @ theta["layers_0/kernel"] + theta["layers_0/bias"]
    np.testing.assert_allclose(network.forward(theta, X)[0], expected, rtol=1e-6)


def test_dropout_of_attention_is_off():
    module = nn.MultiHeadDotProductAttention(num_heads=1, dropout_rate=0.5, deterministic=False)
    windows = X.reshape(3, 2, 3)
    network = as_network(module, np.zeros((1, 2, 3), np.float32))
    theta = network.init(jax.random.key(0))
    exact = nn.MultiHeadDotProductAttention(num_heads=1)
    variables = exact.init(jax.random.key(0), windows)
    np.testing.assert_allclose(network.forward(theta, windows)[0], exact.apply(variables, windows), rtol=1e-6)


def test_layers_without_a_switch_normalise_by_the_batch():
    network = as_network(nn.Sequential([nn.Dense(2), nn.BatchNorm()]), EXAMPLE)
    outputs, _ = network.forward(network.init(jax.random.key(0)), X)
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(outputs.var(0), 1, rtol=1e-3)


def test_other_collections_are_constant():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            seen = self.variable("counts", "seen", jnp.zeros, 2)
            level = self.variable("batch_stats", "level", jnp.ones, 2)
            seen.value = seen.value + 1
            self.sow("intermediates", "x", x)
            return nn.Dense(2)(x) + seen.value + level.value

    with pytest.warns(RuntimeWarning, match="the batch statistics level are constant"):
        network = as_network(Net(), EXAMPLE)
    assert not network.normalises
    theta = network.init(jax.random.key(0))
    expected = X @ theta["Dense_0/kernel"] + theta["Dense_0/bias"] + 3  # 1 of initialisation, 1 of the call
    for _ in range(2):
        np.testing.assert_allclose(network.forward(theta, X)[0], expected, rtol=1e-6)


def test_narrow_parameters_are_cast_in_the_forward_pass():
    network = as_network(nn.Dense(2, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16), EXAMPLE)
    theta = network.init(jax.random.key(0))
    assert theta["kernel"].dtype == jnp.float32
    assert network.forward(theta, X)[0].dtype == jnp.float32


def test_what_cannot_be_used_gets_one_message():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x) + jax.random.normal(self.make_rng("noise"), (2,))

    with pytest.raises(imaml.ConfigError, match=r"model: Noisy: .*got an error \(InvalidRngError"):
        as_network(Noisy(), EXAMPLE)
    with pytest.raises(
        imaml.ConfigError, match="expected variables with the collection 'params', got weights"
    ):
        as_network((nn.Dense(2), {"weights": {}}), EXAMPLE)
    with pytest.raises(imaml.ConfigError, match="got the class LinenNet"):
        as_network(LinenNet, EXAMPLE)


class Gain(nn.Module):
    rate: float = 2.0

    @nn.compact
    def __call__(self, x):
        return self.rate * nn.Dense(1)(x)


def test_a_field_called_rate_is_no_dropout():
    network = as_network(Gain(), EXAMPLE)
    theta = network.init(jax.random.key(0))
    wanted = 2 * (X @ theta["Dense_0/kernel"] + theta["Dense_0/bias"])
    np.testing.assert_allclose(network.forward(theta, X)[0], wanted, rtol=1e-6)
