"""Networks as recipes: `init(key)` gives parameters, `forward(parameters, inputs, statistics)` outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.errors import ConfigError
from ..core.validation import require_whole

EPSILON = 1e-5  # added to variances, as is usual


@dataclass(frozen=True)
class Conv4:
    """The four-layer convolutional network of few-shot learning, with strided convolutions.

    Four modules of 3 x 3 convolution (stride 2, padding 1), batch normalisation and ReLU, then a linear head:
    the network of the paper's Omniglot experiments, as of MAML's (Finn et al. 2017, section 5.2). A
    28 x 28 image passes through 14, 7, 4 and 2 pixels a side; 64 filters and 5 ways give 112,965 parameters.

    A convolution is nine shifted slices, concatenated, times one matrix: with per-task kernels XLA's own
    would become a grouped convolution, an order of magnitude slower on a CPU. Kernels are stored as
    (filters, 9 channels): their gradient is then a product of that shape, which XLA computes on a CPU in
    about 0.6 of the time that its transpose takes.

    >>> import jax
    >>> network = Conv4(ways=5)
    >>> logits, _ = network.forward(network.init(jax.random.key(0)), jax.numpy.zeros((3, 28, 28, 1)))
    >>> logits.shape
    (3, 5)
    """

    ways: int
    filters: int = 64
    side: int = 28
    channels: int = 1

    def __post_init__(self) -> None:
        """Refuses sizes that make no sense (ConfigError)."""
        require_whole(
            "Conv4", 1, ways=self.ways, filters=self.filters, side=self.side, channels=self.channels
        )

    @property
    def features(self) -> int:
        """How many numbers the head sees."""
        side = self.side
        for _ in range(4):
            side = (side + 1) // 2
        return side * side * self.filters

    def init(self, key: Array) -> dict[str, dict[str, Array]]:
        """Parameters, float32: He-normal kernels (filters, 9 channels), unit scales, zero biases and head."""
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

    def forward(self, parameters: Any, images: Array, statistics: Any = None) -> tuple[Array, Any]:
        """Logits (n, ways) for images (n, side, side, channels), and each layer's mean and variance used.

        statistics: None to normalise by this batch's own, or what an earlier call returned (inductive use:
        the support set's).
        """
        used = []
        hidden = images
        for layer in range(4):
            module = parameters[f"conv{layer + 1}"]
            hidden = _convolve(hidden, module["kernel"])
            if statistics is None:
                mean = hidden.mean((0, 1, 2))
                variance = jnp.square(hidden).mean((0, 1, 2)) - jnp.square(mean)
                variance = jnp.maximum(variance, 0)
            else:
                mean, variance = statistics[layer]
            used.append((mean, variance))
            scale = module["scale"] * lax.rsqrt(variance + EPSILON)
            hidden = jax.nn.relu(hidden * scale + (module["bias"] - mean * scale))
        flat = hidden.reshape(hidden.shape[0], -1)
        return flat @ parameters["head"]["kernel"] + parameters["head"]["bias"], used


def _convolve(x: Array, kernel: Array) -> Array:
    """The convolution (n, h, w, c) -> (n, (h+1)//2, (w+1)//2, filters) with a kernel (filters, 9 c).

    Behind the barrier XLA on a CPU computes the product's gradient in rows, before it is transposed for that
    of the kernel; without, it computes normalisation and activation anew in columns, which takes longer.
    """
    patches = _patches(x)
    product = patches.reshape(-1, patches.shape[-1]) @ kernel.T
    return lax.optimization_barrier(product).reshape(*patches.shape[:-1], -1)


def _patches(x: Array) -> Array:
    """The 3 x 3 neighbourhoods at stride 2, padding 1: (n, h, w, c) -> (n, (h+1)//2, (w+1)//2, 9 c)."""
    n, h, w, c = x.shape
    rows, columns = (h + 1) // 2, (w + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    slices = [
        lax.slice(padded, (0, i, j, 0), (n, i + 2 * rows - 1, j + 2 * columns - 1, c), (1, 2, 2, 1))
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(slices, axis=-1)


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron; for sinusoids 1-40-40-1 with ReLU, as in MAML (Finn et al. 2017, section 5.1).

    sizes: numbers of units, input first. activation: a name in `jax.nn`, or "identity".
    """

    sizes: tuple[int, ...]
    activation: str = "relu"

    def __post_init__(self) -> None:
        """Refuses sizes that make no sense (ConfigError)."""
        if len(self.sizes) < 2:
            raise ConfigError(
                f"MLP: sizes={self.sizes!r}; accepted are at least two numbers, input and output."
            )
        require_whole("MLP", 1, **{f"sizes[{i}]": size for i, size in enumerate(self.sizes)})
        if self.activation not in ("relu", "tanh", "gelu", "silu", "softplus", "identity"):
            raise ConfigError(
                f"MLP: activation={self.activation!r}; accepted: relu, tanh, gelu, silu, softplus, identity."
            )

    def init(self, key: Array) -> dict[str, dict[str, Array]]:
        """Parameters, float32: He-normal kernels (in, out) and zero biases."""
        keys = jax.random.split(key, len(self.sizes) - 1)
        parameters = {}
        for layer, (layer_key, n, m) in enumerate(
            zip(keys, self.sizes[:-1], self.sizes[1:], strict=True), start=1
        ):
            kernel = jax.random.normal(layer_key, (n, m), jnp.float32) * (2 / n) ** 0.5
            parameters[f"layer{layer}"] = {"kernel": kernel, "bias": jnp.zeros(m, jnp.float32)}
        return parameters

    def forward(self, parameters: Any, inputs: Array, statistics: Any = None) -> tuple[Array, Any]:
        """Outputs (n, sizes[-1]) for inputs (n, sizes[0]); statistics pass through untouched."""
        activate = (
            (lambda x: x) if self.activation == "identity" else getattr(jax.nn, self.activation, jnp.tanh)
        )
        hidden = inputs
        for layer in range(1, len(self.sizes)):
            module = parameters[f"layer{layer}"]
            hidden = hidden @ module["kernel"] + module["bias"]
            if layer < len(self.sizes) - 1:
                hidden = activate(hidden)
        return hidden, statistics
