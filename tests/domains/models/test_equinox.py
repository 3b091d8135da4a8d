"""Equinox modules as models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.models import EXAMPLE, EquinoxNet
from imaml.domains.models.adapters import as_network

pytestmark = pytest.mark.usefixtures("ranks_mixed")
X = jax.random.normal(jax.random.key(1), (6, 3))
quiet = pytest.mark.filterwarnings("ignore:.*dropout is off.*:RuntimeWarning")


def test_forward_is_the_module_on_each_row():
    module = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    network = as_network(module, EXAMPLE)
    theta = network.init(jax.random.key(5))
    np.testing.assert_array_equal(theta["layers/0/weight"], module.layers[0].weight)  # whatever the key
    np.testing.assert_array_equal(network.forward(theta, X)[0], jax.vmap(module)(X))


@quiet
@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_batch_normalisation_is_the_module_s_own(mode):
    module, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0), mode)
    network = as_network((module, state), EXAMPLE)
    outputs, statistics = network.forward(network.init(jax.random.key(0)), X)
    # At the first batch "ema" normalises by the batch, too.
    quiet = eqx.tree_at(lambda m: m.dropout.inference, module, True)
    expected, _ = jax.vmap(quiet, axis_name="rows", in_axes=(0, None), out_axes=(0, None))(X, state)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    mean, variance = statistics[0]
    hidden = jax.vmap(module.first)(X)
    np.testing.assert_allclose(mean, hidden.mean(0), rtol=1e-12)
    np.testing.assert_allclose(variance, hidden.var(0), rtol=1e-12)


@quiet
def test_running_averages_are_ignored_and_the_state_is_not_changed():
    module, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    _, trained = jax.vmap(
        eqx.nn.inference_mode(module, False).norm, axis_name="rows", in_axes=(0, None), out_axes=(0, None)
    )(jnp.ones((5, 4)) * 7.0, jax.tree.map(jnp.copy, state))
    outputs = []
    for one in (state, trained):
        network = as_network((module, one), EXAMPLE)
        theta = network.init(jax.random.key(0))
        outputs += [network.forward(theta, X), network.forward(theta, X[:2], network.forward(theta, X)[1])]
        assert one.get(module.norm.batch_counter) in (0, 1)  # still usable
    jax.tree.map(np.testing.assert_array_equal, outputs[:2], outputs[2:])


@quiet
def test_a_module_that_still_holds_its_initial_state_needs_no_other():
    module = EquinoxNet(jax.random.key(0))
    network = as_network(module, EXAMPLE)
    assert network.normalises
    assert network.forward(network.init(jax.random.key(0)), X)[0].shape == (6, 2)
    assert not any("init" in path for path in network.init(jax.random.key(0)))  # running averages


def test_a_missing_state_is_named():
    module, _ = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    with pytest.raises(imaml.ConfigError, match=r"Hint: pass \(model, state\)"):
        as_network(module, EXAMPLE)
    with pytest.raises(imaml.ConfigError, match="got a dict as state"):
        as_network((module, {}), EXAMPLE)


def test_the_argument_inference_does_not_matter():
    class Net(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __call__(self, x, state, inference=False):
            return self.norm(x, state, inference=inference)

    module = Net(eqx.nn.BatchNorm(3, "rows", channelwise_affine=True, mode="batch"))
    network = as_network(module, EXAMPLE)
    outputs, _ = network.forward(network.init(jax.random.key(0)), X)
    np.testing.assert_allclose(outputs, (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), rtol=1e-10)


def test_dropout_is_off_and_a_warning_says_so():
    class Net(eqx.Module):
        linear: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x, key):
            return self.dropout(self.linear(x), key=key)

    module = Net(eqx.nn.Linear(3, 2, key=jax.random.key(0)), eqx.nn.Dropout(0.5))
    with pytest.warns(RuntimeWarning, match="model: Net: dropout is off in adaptation") as caught:
        network = as_network(module, EXAMPLE)
    assert len(caught) == 1
    outputs, _ = network.forward(network.init(jax.random.key(0)), X)
    np.testing.assert_array_equal(outputs, jax.vmap(module.linear)(X))
    as_network(eqx.nn.inference_mode(module), EXAMPLE)  # off already: no warning


def test_narrow_weights_are_cast_in_the_forward_pass():
    module = eqx.nn.Linear(3, 2, dtype=jnp.float16, key=jax.random.key(0))
    network = as_network(module, EXAMPLE)
    theta = network.init(jax.random.key(0))
    assert {leaf.dtype for leaf in theta.values()} == {jnp.dtype(jnp.float32)}
    x = X.astype(jnp.float16)
    outputs, _ = network.forward(theta, x)
    assert outputs.dtype == jnp.float32
    np.testing.assert_array_equal(outputs, jax.vmap(module)(x).astype(jnp.float32))


def test_a_module_without_weights_gets_one_message():
    with pytest.raises(
        imaml.ConfigError, match=r"model: Lambda: expected parameters, float arrays, got none"
    ):
        as_network(eqx.nn.Lambda(jnp.tanh), EXAMPLE)
