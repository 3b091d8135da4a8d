"""Haiku functions as models."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.models import EXAMPLE, haiku_net
from imaml.domains.models.adapters import as_network

pytestmark = [
    pytest.mark.usefixtures("ranks_mixed"),
    pytest.mark.filterwarnings("ignore:.*dropout is off.*:RuntimeWarning"),
]
X = jax.random.normal(jax.random.key(1), (6, 3), jnp.float32)


def without_dropout(x, is_training):
    x = hk.Linear(4)(x)
    x = jnp.tanh(hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training))
    return hk.Linear(2)(x)


def test_init_and_forward_are_the_function_s_own():
    network = as_network(hk.transform_with_state(haiku_net), EXAMPLE)
    exact = hk.without_apply_rng(hk.transform_with_state(without_dropout))
    theta = network.init(jax.random.key(5))
    params, state = exact.init(jax.random.key(5), EXAMPLE, is_training=True)
    np.testing.assert_array_equal(theta["linear/w"], params["linear"]["w"])
    outputs, statistics = network.forward(theta, X)
    np.testing.assert_allclose(outputs, exact.apply(params, state, X, is_training=True)[0], rtol=1e-6)
    for name, average in statistics.items():
        state[name]["average"] = average
    given, _ = exact.apply(params, state, X[:2], is_training=False)
    np.testing.assert_allclose(network.forward(theta, X[:2], statistics)[0], given, rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, hk.without_apply_rng], ids=["rng", "no rng"])
def test_functions_without_state(wrap):
    transformed = wrap(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
    network = as_network(transformed, EXAMPLE)
    theta = network.init(jax.random.key(2))
    params = transformed.init(jax.random.key(2), X)
    expected = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x))).apply(params, X)
    np.testing.assert_array_equal(network.forward(theta, X)[0], expected)
    assert "mlp/~/linear_0/w" in theta


def test_given_parameters_are_the_start_and_running_averages_are_ignored():
    transformed = hk.without_apply_rng(hk.transform_with_state(without_dropout))
    params, state = transformed.init(jax.random.key(5), X, is_training=True)
    _, trained = transformed.apply(params, state, 10 * X, is_training=True)
    found = []
    for given in ((params,), (params, state), (params, trained)):
        network = as_network((transformed, *given), EXAMPLE)
        theta = network.init(jax.random.key(0))
        np.testing.assert_array_equal(theta["linear_1/w"], params["linear_1"]["w"])
        found.append(network.forward(theta, X))
    jax.tree.map(np.testing.assert_array_equal, found[0], found[1])
    jax.tree.map(np.testing.assert_array_equal, found[0], found[2])


@pytest.mark.filterwarnings("error")
def test_dropout_is_off_and_a_warning_says_so():
    with pytest.warns(RuntimeWarning, match="model: haiku_net: dropout is off") as caught:
        as_network(hk.transform_with_state(haiku_net), EXAMPLE)
    assert len(caught) == 1
    as_network(hk.transform_with_state(without_dropout), EXAMPLE)  # no warning


def test_a_function_that_needs_a_key_gets_one_message():
    def noisy(x):
        return hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(2)(x))

    with pytest.raises(imaml.ConfigError, match=r"takes rows of shape \(3,\), got an error"):
        as_network(hk.transform(noisy), EXAMPLE)


def test_several_functions_at_once_are_no_model():
    def pair():
        linear = hk.Linear(2)
        return linear, (linear, linear)

    with pytest.raises(imaml.ConfigError, match="expected what hk"):
        as_network(hk.multi_transform(pair), EXAMPLE)
