"""Flax NNX modules as models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import imaml
from helpers.models import EXAMPLE, NNXNet
from imaml.domains.models.adapters import as_network

pytestmark = [
    pytest.mark.usefixtures("ranks_mixed"),
    pytest.mark.filterwarnings("ignore:.*dropout is off.*:RuntimeWarning"),
]
X = jax.random.normal(jax.random.key(1), (6, 3), jnp.float32)
KEPT = nnx.Any(nnx.Param, nnx.BatchStat)


def test_forward_is_the_module_s_own_call():
    module = NNXNet(nnx.Rngs(0))
    network = as_network(module, EXAMPLE)
    outputs, statistics = network.forward(network.init(jax.random.key(5)), X)
    module.dropout.rate = 0.0
    np.testing.assert_allclose(outputs, module(X, train=True), rtol=1e-6)
    module.norm.mean[...], module.norm.var[...] = statistics["norm/mean"], statistics["norm/var"]
    given, _ = network.forward(network.init(jax.random.key(5)), X[:2], statistics)
    np.testing.assert_allclose(given, module(X[:2], train=False), rtol=1e-6)


def test_the_user_s_module_is_neither_changed_nor_followed():
    module = NNXNet(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, KEPT)))
    network = as_network(module, EXAMPLE)
    theta = network.init(jax.random.key(0))
    outputs, _ = network.forward(theta, X)
    after = nnx.to_pure_dict(nnx.state(module, KEPT))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert module.dropout.rate == 0.5
    assert module.norm.momentum == 0.99
    module(10 * X, train=True)  # changes running averages, which are ignored
    module.last.kernel[...] = module.last.kernel[...] * 2
    np.testing.assert_array_equal(network.forward(network.init(jax.random.key(0)), X)[0], outputs)
    assert as_network(module, EXAMPLE) != network  # as its weights are others


def test_modes_of_the_module_do_not_matter():
    outputs = []
    for prepare in (NNXNet.train, NNXNet.eval):
        module = NNXNet(nnx.Rngs(0))
        prepare(module)
        network = as_network(module, EXAMPLE)
        outputs.append(network.forward(network.init(jax.random.key(0)), X)[0])
    np.testing.assert_array_equal(*outputs)


@pytest.mark.filterwarnings("error")
def test_dropout_is_off_and_a_warning_says_so():
    dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    module = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), dropout)
    with pytest.warns(RuntimeWarning, match="model: Sequential: dropout is off") as caught:
        network = as_network(module, EXAMPLE)
    assert len(caught) == 1
    outputs, _ = network.forward(network.init(jax.random.key(0)), X)
    np.testing.assert_array_equal(outputs, module.layers[0](X))


def test_dropout_of_attention_is_off():
    module = nnx.MultiHeadAttention(
        num_heads=1, in_features=3, dropout_rate=0.5, decode=False, rngs=nnx.Rngs(0)
    )
    network = as_network(module, np.zeros((1, 2, 3), np.float32))
    windows = X.reshape(3, 2, 3)
    outputs, _ = network.forward(network.init(jax.random.key(0)), windows)
    np.testing.assert_allclose(outputs, module(windows, deterministic=True), rtol=1e-6)


def test_only_params_are_learned():
    class Net(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones((3, 2), jnp.float32))
            self.steps = nnx.Param(jnp.arange(2))
            self.scale = nnx.Variable(jnp.full(2, 2.0, jnp.float32))
            self.offset = jnp.ones(2, jnp.float32)

        def __call__(self, x):
            return x @ self.weight[...] * self.scale[...] + self.offset + self.steps[...]

    network = as_network(Net(), EXAMPLE)
    theta = network.init(jax.random.key(0))
    assert list(theta) == ["weight"]
    expected = 2 * jnp.sum(X, 1, keepdims=True) + 1 + jnp.arange(2)
    np.testing.assert_allclose(network.forward(theta, X)[0], expected, rtol=1e-6)


def test_batch_statistics_of_other_layers_are_named():
    class Net(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones((3, 2), jnp.float32))
            self.level = nnx.BatchStat(jnp.ones(2, jnp.float32))

        def __call__(self, x):
            return x @ self.weight[...] + self.level[...]

    with pytest.warns(RuntimeWarning, match="the batch statistics level are constant"):
        network = as_network(Net(), EXAMPLE)
    assert not network.normalises


def test_a_layer_that_is_called_twice_gets_one_message():
    class Net(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(1 + 3 * self.norm(x) ** 2)

    with pytest.raises(
        imaml.ConfigError, match="Net: expected layers of batch normalisation that are each called"
    ):
        as_network(Net(), EXAMPLE)


def test_a_module_without_params_gets_one_message():
    with pytest.raises(
        imaml.ConfigError, match="model: Dropout: expected parameters, float arrays, got none"
    ):
        as_network(nnx.Dropout(0.0), EXAMPLE)
