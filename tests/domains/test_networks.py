"""Conv4 with pooling is XLA's own convolution and pooling, in value and in first and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import imaml
from imaml.domains import networks


def layers_of_xla(parameters, images, stride):
    """Conv4 by XLA's convolution and windows, normalised by the batch's own statistics."""
    hidden = images
    for layer in range(1, 5):
        module, channels = parameters[f"conv{layer}"], hidden.shape[-1]
        kernel = module["kernel"].reshape(-1, 3, 3, channels).transpose(1, 2, 3, 0)
        form = ("NHWC", "HWIO", "NHWC")
        hidden = lax.conv_general_dilated(
            hidden, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=form
        )
        mean, variance = hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))
        hidden = (hidden - mean) / jnp.sqrt(variance + networks.EPSILON)
        hidden = jax.nn.relu(hidden * module["scale"] + module["bias"])
        if stride == 1:
            window = (1, 2, 2, 1)
            hidden = lax.reduce_window(hidden, -jnp.inf, lax.max, window, window, "SAME")
    return hidden.reshape(hidden.shape[0], -1)


def case(downsampling, side=28, channels=1, filters=8):
    """A network in float64, parameters away from their initial values, and images, a prime number of them."""
    network = imaml.Conv4(2, filters, side, channels, downsampling)
    keys = jax.random.split(jax.random.key(0), 3)
    parameters = jax.tree.map(lambda a: a.astype(jnp.float64), network.init(keys[0]))
    leaves, tree = jax.tree.flatten(parameters)
    noisy = [
        a + 0.1 * jax.random.normal(jax.random.fold_in(keys[1], i), a.shape) for i, a in enumerate(leaves)
    ]
    parameters = jax.tree.unflatten(tree, noisy)
    return network, parameters, jax.random.uniform(keys[2], (7, side, side, channels))


CASES = {"28": (28, 1, 8), "colour": (12, 3, 8), "many filters": (28, 1, 12), "few": (9, 2, 4)}


@pytest.mark.parametrize("downsampling", ["stride", "pool"])
@pytest.mark.parametrize("name", CASES)
def test_conv4_is_xlas_convolution(name, downsampling, ranks_mixed):
    network, parameters, images = case(downsampling, *CASES[name])
    stride = 2 if downsampling == "stride" else 1

    def ours(p):
        return jnp.sin(network.embed(p, images)[0]).sum()

    def theirs(p):
        return jnp.sin(layers_of_xla(p, images, stride)).sum()

    features = network.embed(parameters, images)[0]
    assert features.shape == (7, network.features)
    tangent = jax.tree.map(jnp.cos, parameters)
    for of in (
        jax.grad,
        lambda f: lambda p: jax.jvp(jax.grad(f), (p,), (tangent,))[1],
        lambda f: lambda p: jax.vmap(jax.grad(f))(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), p)),
    ):
        got, expected = of(ours)(parameters), of(theirs)(parameters)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, expected)


@pytest.mark.parametrize("downsampling", ["stride", "pool"])
def test_its_own_statistics_given_back_change_nothing(downsampling, ranks_mixed):
    network, parameters, images = case(downsampling)
    features, statistics = network.embed(parameters, images)
    np.testing.assert_allclose(network.embed(parameters, images, statistics)[0], features, rtol=1e-12)
    # and others change what they should: the first images alone have their own
    few = network.embed(parameters, images[:3], statistics)[0]
    np.testing.assert_allclose(few, features[:3], rtol=1e-12)
    assert not np.allclose(network.embed(parameters, images[:3])[0], features[:3])
