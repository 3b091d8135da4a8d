"""Networks as recipes: `init(key)` gives parameters, `forward(parameters, inputs, statistics)` outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.errors import ConfigError
from ..core.fields import Checked, PositiveInt
from ..core.recipes import recipe
from ..core.tree import Tree
from .resampling import aligned

EPSILON = 1e-5  # added to variances, as is usual
IN_CACHE = 4  # images that a CPU convolves at a time
Parameters = dict[str, dict[str, Array]]  # of each layer, by name
Moments = tuple[Array, Array]  # mean and variance of each channel


class Network(Protocol):
    """A network; `MLP` and `Conv4` are two."""

    def init(self, key: Array) -> Tree:
        """Return fresh parameters.

        Args:
            key: A random key.

        Returns:
            A pytree of float arrays.
        """
        ...

    def forward(self, parameters: Tree, inputs: Array, statistics: Tree = None) -> tuple[Array, Tree]:
        """Return the outputs, and the statistics that they were computed with.

        Args:
            parameters: As `init` returns them.
            inputs: ``(n, ...)``.
            statistics: What an earlier call returned; None to compute them from ``inputs``.

        Returns:
            Outputs ``(n, ...)``, and the statistics, a tree; None of a network that has none.
        """
        ...


def init_each(key: Array, **networks: Network) -> dict[str, Tree]:
    """Return fresh parameters of several networks.

    Args:
        key: A random key.
        **networks: The networks by name.

    Returns:
        The parameters of each, by the same names.
    """
    keys = jax.random.split(key, len(networks))
    return {name: network.init(one) for (name, network), one in zip(networks.items(), keys, strict=True)}


@recipe("network", fresh={"ways": 5})
@dataclass(frozen=True)
class Conv4(Checked):
    """The four-layer convolutional network of few-shot learning, strided or pooled.

    Four modules of 3 x 3 convolution (padding 1), batch normalisation and ReLU, then a linear head. Each
    module halves the side, rounded up: by a stride of 2, as in the paper's Omniglot experiments and MAML's
    (Finn et al. 2017, section 5.2); or by the maximum of each 2 x 2 pixels, which takes about four times the
    operations. A 28 x 28 image passes through 14, 7, 4 and 2 pixels a side; 64 filters and 5 ways give
    112,965 parameters. Matching and prototypical networks also pool (Vinyals et al. 2016, Snell et al. 2017),
    but round down, to 14, 7, 3 and 1 pixels, and have a quarter of the features.

    A convolution is nine shifted slices, concatenated, times one matrix: with per-task kernels XLA's own
    would become a grouped convolution, an order of magnitude slower on a CPU. Kernels are stored as
    (filters, 9 channels): their gradient is then a product of that shape, which XLA computes on a CPU in
    about 0.6 of the time that its transpose takes.

    >>> import jax
    >>> network = Conv4(ways=5)
    >>> logits, _ = network.forward(network.init(jax.random.key(0)), jax.numpy.zeros((3, 28, 28, 1)))
    >>> logits.shape
    (3, 5)

    Args:
        ways: Classes, the number of outputs.
        filters: Filters of each layer.
        side: Pixels of an image's side.
        channels: Channels of an image.
        downsampling: How a module halves the side: "stride" or "pool".
        aligned: Whether images are first aligned (see `imaml.domains.resampling.aligned`).
        detail: The factor by which aligned images are averaged down before the first layer; a divisor of
            ``side``.

    Raises:
        ConfigError: If a field is out of its range.
    """

    normalises: ClassVar[bool] = True  # by a batch's statistics

    ways: PositiveInt
    filters: PositiveInt = 64
    side: PositiveInt = 28
    channels: PositiveInt = 1
    downsampling: Literal["stride", "pool"] = "stride"
    aligned: bool = False
    detail: PositiveInt = 1

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        if self.side % self.detail or (self.detail > 1 and not self.aligned):
            raise ConfigError(
                f"network: detail: expected 1, or a divisor of side={self.side} with aligned=True, got "
                f"{self.detail} with aligned={self.aligned}."
            )

    @property
    def features(self) -> int:
        """The number of inputs of the head."""
        side = self.side // self.detail
        return (-(-side // 16)) ** 2 * self.filters  # each of four layers halves the side, rounded up

    def init(self, key: Array) -> Parameters:
        """Return fresh parameters, float32: He-normal kernels, unit scales, zero biases and a zero head.

        Args:
            key: A random key.

        Returns:
            For each layer its kernel ``(filters, 9 channels)``, scale and bias; for the head kernel and bias.
        """
        parameters = {}
        channels = self.channels
        for layer, layer_key in enumerate(jax.random.split(key, 4), start=1):
            kernel = jax.random.normal(layer_key, (self.filters, 9 * channels), jnp.float32)
            parameters[f"conv{layer}"] = {
                "kernel": kernel * (2 / (9 * channels)) ** 0.5,
                "scale": jnp.ones(self.filters, jnp.float32),
                "bias": jnp.zeros(self.filters, jnp.float32),
            }
            channels = self.filters
        parameters["head"] = {
            "kernel": jnp.zeros((self.features, self.ways), jnp.float32),
            "bias": jnp.zeros(self.ways, jnp.float32),
        }
        return parameters

    def forward(self, parameters: Parameters, inputs: Array, statistics: Tree = None) -> tuple[Array, Tree]:
        """Return logits, and the mean and variance that each layer was normalised by.

        Args:
            parameters: As `init` returns them.
            inputs: Images ``(n, side, side, channels)``.
            statistics: None to normalise by this batch's own statistics, or what an earlier call returned
                (inductive use: the support set's).

        Returns:
            Logits ``(n, ways)``, and a pair ``(mean, variance)``, each ``(filters,)``, for each layer.
        """
        flat, used = self.embed(parameters, inputs, statistics)
        return flat @ parameters["head"]["kernel"] + parameters["head"]["bias"], used

    def embed(self, parameters: Parameters, inputs: Array, statistics: Tree = None) -> tuple[Array, Tree]:
        """Return the features that the head reads, and the statistics that they were computed with.

        Args:
            parameters: As `init` returns them; the head is not read.
            inputs: Images ``(n, side, side, channels)``.
            statistics: As in `forward`.

        Returns:
            Features ``(n, features)``, and the statistics.
        """
        used = []
        hidden = aligned(inputs, self.detail) if self.aligned else inputs
        module_of = _strided if self.downsampling == "stride" else _pooled
        for layer in range(4):
            given = None if statistics is None else statistics[layer]
            hidden, of_layer = module_of(hidden, parameters[f"conv{layer + 1}"], given)
            used.append(of_layer)
        return hidden.reshape(hidden.shape[0], self.features), used


def _strided(x: Array, module: dict[str, Array], given: Moments | None) -> tuple[Array, Moments]:
    """Return convolution at stride 2, normalisation by ``given`` or by what it has, and ReLU."""
    hidden = _convolve(x, module["kernel"])
    mean, variance = moments = _moments(hidden) if given is None else given
    scale, shift = _affine(module, mean, variance)
    return jax.nn.relu(hidden * scale + shift), moments


def _pooled(x: Array, module: dict[str, Array], given: Moments | None) -> tuple[Array, Moments]:
    """Return convolution, normalisation by ``given`` or by what it has, ReLU and the maximum of 2 x 2 pixels.

    A convolution of few channels costs less than the memory that its output takes. It is linear in the
    patches, so its mean and variance follow from theirs, and normalisation becomes part of its kernel: on a
    CPU nothing of the size of its output is written.
    """
    kernel = module["kernel"]
    if kernel.shape[1] > kernel.shape[0]:
        hidden = _by_few(lambda few: _patches(few, 1) @ kernel.T, x)
        mean, variance = moments = _moments(hidden) if given is None else given
        scale, shift = _affine(module, mean, variance)
        return _pool(jax.nn.relu(hidden * scale + shift)), moments
    if given is None:
        patches = _patches(x, 1).reshape(-1, kernel.shape[1])
        centre = patches.mean(0)
        away = patches - centre
        wide = jnp.promote_types(x.dtype, jnp.float32)  # sums of half-precision numbers overflow
        covariance = jnp.matmul(away.T, away, preferred_element_type=wide) / patches.shape[0]
        variance = ((kernel @ covariance.astype(x.dtype)) * kernel).sum(1)
        given = kernel @ centre, jnp.maximum(variance, 0)
    scale, shift = _affine(module, *given)
    scaled = (scale[:, None] * kernel).T
    return _by_few(lambda few: _pool(jax.nn.relu(_patches(few, 1) @ scaled + shift)), x), given


def _moments(hidden: Array) -> Moments:
    """Return mean and variance of each channel."""
    mean = hidden.mean((0, 1, 2))
    variance = jnp.square(hidden).mean((0, 1, 2)) - jnp.square(mean)
    return mean, jnp.maximum(variance, 0)  # which is E[x^2] - E[x]^2, and rounding may make it negative


def _affine(module: dict[str, Array], mean: Array, variance: Array) -> tuple[Array, Array]:
    """Return normalisation as a product and a sum for each channel.

    scale (x - mean) / sqrt(variance + EPSILON) + bias, rearranged.
    """
    scale = module["scale"] * lax.rsqrt(variance + EPSILON)
    return scale, module["bias"] - mean * scale


def _convolve(x: Array, kernel: Array) -> Array:
    """Return the convolution (n, h, w, c) -> (n, (h+1)//2, (w+1)//2, filters) with a kernel (filters, 9 c).

    Behind the barrier XLA on a CPU computes the product's gradient in rows, before it is transposed for that
    of the kernel; without, it computes normalisation and activation anew in columns, which takes longer.
    """
    patches = _patches(x, 2)
    product = patches.reshape(math.prod(patches.shape[:-1]), kernel.shape[1]) @ kernel.T
    return lax.optimization_barrier(product).reshape(*patches.shape[:-1], kernel.shape[0])


def _by_few(function: Callable[[Array], Array], images: Array) -> Array:
    """Return a function of images, on a CPU of a few at a time.

    What it makes of a few, such as their patches, stays in the CPU's cache, and is made anew for the
    gradient. A convolution then takes hardly longer than its products (benchmarks/results/convolution.json).
    """
    one = jax.checkpoint(lambda image: function(image[None])[0])
    by_few = lambda images: lax.map(one, images, batch_size=IN_CACHE)  # noqa: E731
    return lax.platform_dependent(images, cpu=by_few, default=function)


def _pool(x: Array) -> Array:
    """Return the maximum of each 2 x 2 pixels, none of them negative; the side is rounded up.

    Slices of whole rows, then of pixels: on a CPU XLA's own windows take several times as long.
    """
    n, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
    x = x.reshape(n, (h + 1) // 2, 2, (w + 1) // 2, 2, c)
    rows = jnp.maximum(x[:, :, 0], x[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


def _patches(x: Array, stride: int) -> Array:
    """Return 3 x 3 neighbourhoods, padding 1: (n, h, w, c) -> (n, ceil(h/stride), ceil(w/stride), 9 c)."""
    n, h, w, c = x.shape
    rows, columns = stride * (-(-h // stride) - 1) + 1, stride * (-(-w // stride) - 1) + 1
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    slices = [
        lax.slice(padded, (0, i, j, 0), (n, i + rows, j + columns, c), (1, stride, stride, 1))
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(slices, axis=-1)


@recipe("network", fresh={"sizes": (1, 40, 1)})
@dataclass(frozen=True)
class MLP(Checked):
    """A multilayer perceptron; for sinusoids 1-40-40-1 with ReLU, as in MAML (Finn et al. 2017, section 5.1).

    Args:
        sizes: The numbers of units, input first.
        activation: The function that is applied after each layer except the last.

    Raises:
        ConfigError: If there are fewer than two sizes, or a field is not valid.
    """

    sizes: tuple[PositiveInt, ...]
    activation: Literal["relu", "tanh", "gelu", "silu", "softplus", "identity"] = "relu"

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        if len(self.sizes) < 2:
            raise ConfigError(
                f"MLP: sizes: expected at least two numbers, of inputs and outputs, got {self.sizes!r}."
            )

    def init(self, key: Array) -> Parameters:
        """Return fresh parameters, float32: He-normal kernels and zero biases.

        Args:
            key: A random key.

        Returns:
            For each layer a kernel ``(in, out)`` and a bias ``(out,)``.
        """
        parameters, keys = {}, jax.random.split(key, len(self.sizes) - 1)
        for layer, (layer_key, (n, m)) in enumerate(zip(keys, pairwise(self.sizes), strict=True), start=1):
            kernel = jax.random.normal(layer_key, (n, m), jnp.float32) * (2 / n) ** 0.5
            parameters[f"layer{layer}"] = {"kernel": kernel, "bias": jnp.zeros(m, jnp.float32)}
        return parameters

    def forward(self, parameters: Parameters, inputs: Array, statistics: Tree = None) -> tuple[Array, Tree]:
        """Return the outputs of the last layer.

        Args:
            parameters: As `init` returns them.
            inputs: ``(n, sizes[0])``.
            statistics: Returned unchanged, as the network has none.

        Returns:
            Outputs ``(n, sizes[-1])``, and ``statistics``.
        """
        activate = getattr(jax.nn, self.activation)
        hidden = inputs
        for layer in range(1, len(self.sizes)):
            module = parameters[f"layer{layer}"]
            hidden = hidden @ module["kernel"] + module["bias"]
            if layer < len(self.sizes) - 1:
                hidden = activate(hidden)
        return hidden, statistics
