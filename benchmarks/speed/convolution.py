"""Forms of a 3 x 3 convolution at stride 1, forward and backward, beside each other and beside their floor.

    taskset -c 0 python -m benchmarks run convolution     # on one core

Each row is a layer of a pooled Conv4 on `images` images: milliseconds for the derivatives in the images and
in the kernel. The floor is the layer's operations at the rate of a large matrix product. The last row is the
whole network, strided and pooled.
"""

import statistics

import jax
import jax.numpy as jnp
from jax import lax

import imaml
from benchmarks.harness import benchmark, in_turn
from imaml.domains import networks

LAYERS = {"14 x 14 x 64": (14, 64), "7 x 7 x 64": (7, 64)}


def at_once(x, kernel):
    """All patches, then one product."""
    return networks._patches(x, 1) @ kernel.T


def by_few(x, kernel):
    """A few images at a time, as Conv4 does."""
    return networks._by_few(lambda few: networks._patches(few, 1) @ kernel.T, x)


def nine_products(x, kernel):
    """A product for each of the nine places of the kernel."""
    h, w, c = x.shape[1:]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = kernel.reshape(-1, 9, c)
    return sum(padded[:, i : i + h, j : j + w] @ parts[:, 3 * i + j].T for i in range(3) for j in range(3))


def of_xla(x, kernel):
    """XLA's convolution."""
    weights = kernel.reshape(-1, 3, 3, x.shape[-1]).transpose(1, 2, 3, 0)
    return lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


FORMS = {"all patches": at_once, "a few images": by_few, "nine products": nine_products, "XLA": of_xla}


def rate(side=2000):
    """Operations a second of a large matrix product."""
    a = jnp.ones((side, side))
    product = jax.jit(lambda a: a @ a)
    (times,) = in_turn({"product": lambda: product(a)}).values()
    return 2 * side**3 / (statistics.median(times) / 1e3)


@benchmark("convolution", quick={"images": 8, "rounds": 1})
def main(run, images=600, rounds=5):
    """Measures layers, and the whole network."""
    keys, best = jax.random.split(jax.random.key(0), 4), rate()
    for name, (side, channels) in LAYERS.items():
        x = jax.random.normal(keys[0], (images, side, side, channels))
        kernel = jax.random.normal(keys[1], (64, 9 * channels))
        slope = jax.random.normal(keys[2], (images, side, side, 64))
        calls = {}
        for form, function in FORMS.items():
            pulled = jax.jit(lambda x, k, s, f=function: jax.vjp(f, x, k)[1](s))
            calls[form] = lambda p=pulled, given=(x, kernel, slope): p(*given)
        times = in_turn(calls, rounds)
        floor = 1e3 * 6 * images * side**2 * 9 * channels * 64 / best
        run.add({"layer": name, "floor": floor, **{f: statistics.median(t) for f, t in times.items()}})
    x, calls = jax.random.uniform(keys[3], (images, 28, 28, 1)), {}
    for downsampling in ("stride", "pool"):
        network = imaml.Conv4(1, downsampling=downsampling)
        slope_of = jax.jit(jax.grad(lambda p, x, n=network: jnp.square(n.embed(p, x)[0]).sum()))
        calls[downsampling] = lambda s=slope_of, p=network.init(keys[0]): s(p, x)
    times = in_turn(calls, rounds)
    row = {form: statistics.median(spent) for form, spent in times.items()}
    run.add({"layer": "Conv4", **row}, images=images, product_flops_per_second=best)
