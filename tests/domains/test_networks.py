"""Conv4 is XLA's own convolution and pooling, in value and in first and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import imaml
from helpers.marks import slow_after_first
from imaml.domains import networks

pytestmark = pytest.mark.usefixtures("ranks_mixed")
CASES = {  # side, channels, filters
    "normalisation in the kernel": (12, 1, 12),  # as 9 channels are no more than the filters
    "normalisation beside it": (12, 1, 8),
    "colour": (12, 3, 8),
    "an odd side": (9, 2, 4),
    "at the edge": (12, 1, 9),
    "colour in the kernel": (9, 3, 27),
}


def layers_of_xla(parameters, images, stride):
    """Conv4 by XLA's convolution and windows, normalised by the batch's own statistics, and these."""
    hidden, statistics = images, []
    for layer in range(1, 5):
        module, channels = parameters[f"conv{layer}"], hidden.shape[-1]
        kernel = module["kernel"].reshape(-1, 3, 3, channels).transpose(1, 2, 3, 0)
        form = ("NHWC", "HWIO", "NHWC")
        hidden = lax.conv_general_dilated(
            hidden, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=form
        )
        mean, variance = hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))
        statistics.append((mean, variance))
        hidden = (hidden - mean) / jnp.sqrt(variance + networks.EPSILON)
        hidden = jax.nn.relu(hidden * module["scale"] + module["bias"])
        if stride == 1:
            window = (1, 2, 2, 1)
            hidden = lax.reduce_window(hidden, -jnp.inf, lax.max, window, window, "SAME")
    return hidden.reshape(hidden.shape[0], -1), statistics


def case(downsampling, side=28, channels=1, filters=8):
    """A network in float64, parameters away from their initial values, and images, a prime number of them."""
    network = imaml.Conv4(2, filters, side, channels, downsampling)
    keys = jax.random.split(jax.random.key(0), 3)
    parameters = jax.tree.map(lambda a: a.astype(jnp.float64), network.init(keys[0]))
    leaves, tree = jax.tree.flatten(parameters)
    noisy = [
        a + 0.1 * jax.random.normal(jax.random.fold_in(keys[1], i), a.shape) for i, a in enumerate(leaves)
    ]
    return network, jax.tree.unflatten(tree, noisy), jax.random.uniform(keys[2], (7, side, side, channels))


def same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), got, expected)


@pytest.mark.parametrize("downsampling", ["stride", "pool"])
@pytest.mark.parametrize("name", slow_after_first(CASES))
def test_conv4_is_xlas_convolution(name, downsampling):
    network, parameters, images = case(downsampling, *CASES[name])
    stride = 2 if downsampling == "stride" else 1

    def ours(p):
        return jnp.sin(network.embed(p, images)[0]).sum()

    def theirs(p):
        return jnp.sin(layers_of_xla(p, images, stride)[0]).sum()

    found = jax.jit(lambda p: network.embed(p, images))(parameters)
    assert found[0].shape == (7, network.features)
    same(found, jax.jit(lambda p: layers_of_xla(p, images, stride))(parameters))
    tangent = jax.tree.map(jnp.cos, parameters)

    def derivatives(f):
        """The gradient, its derivative along a tangent, and gradients in a batch."""
        both = jax.jit(lambda p: jax.jvp(jax.grad(f), (p,), (tangent,)))
        many = jax.jit(jax.vmap(jax.grad(f)))
        return both(parameters), many(jax.tree.map(lambda a: jnp.stack([a, 2 * a]), parameters))

    same(derivatives(ours), derivatives(theirs))


@pytest.mark.parametrize("downsampling", ["stride", "pool"])
@pytest.mark.parametrize("name", slow_after_first(CASES))
def test_statistics_given_are_used_for_any_images(name, downsampling):
    network, parameters, images = case(downsampling, *CASES[name])
    embed = jax.jit(network.embed)
    features, statistics = embed(parameters, images)
    same(embed(parameters, images, statistics)[0], features)
    same(embed(parameters, images[:3], statistics)[0], features[:3])
    same(embed(parameters, images[:1], statistics)[0], features[:1])
    assert not np.allclose(embed(parameters, images[:3])[0], features[:3])
    assert embed(parameters, images[:0], statistics)[0].shape == (0, network.features)


def test_other_devices_compute_the_same_at_once(monkeypatch):
    """They take the branch that a CPU does not; here both are lowered for the CPU."""
    network, parameters, images = case("pool", *CASES["normalisation in the kernel"])
    expected = jax.jit(network.embed)(parameters, images)
    monkeypatch.setattr(lax, "platform_dependent", lambda *given, cpu, default: default(*given))
    same(jax.jit(lambda *given: network.embed(*given))(parameters, images), expected)


@pytest.mark.parametrize("downsampling", ["stride", "pool"])
def test_half_precision_does_not_overflow_for_many_images(downsampling):
    network = imaml.Conv4(2, 16, downsampling=downsampling)
    half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float16), tree)  # noqa: E731
    parameters = network.init(jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (100, 28, 28, 1), jnp.float32)
    embed = jax.jit(lambda parameters, images: network.embed(parameters, images)[0])
    found, expected = embed(half(parameters), half(images)), embed(parameters, images)
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found, expected, atol=0.1)
