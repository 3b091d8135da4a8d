"""Networks for windows of signals ``(n, time, channels)``: a convolution over time, and a recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.fields import Checked, PositiveInt
from ..core.recipes import recipe
from ..core.tree import Tree
from .networks import Parameters


@recipe("network", fresh={"outputs": 1})
@dataclass(frozen=True)
class Conv1D(Checked):
    """Convolutions over time with stride 2 and ReLU, the mean over time, then a linear head.

    Windows may have any length, the same for all rows of a batch. Each layer halves it, rounded up. Features
    are averaged over time, so that outputs hardly depend on where in the window an event occurs.

    As in `Conv4`, a convolution is shifted slices, concatenated, times one matrix: with kernels that differ
    between tasks XLA's own would become a grouped convolution, which is slow on a CPU.

    >>> import jax
    >>> network = Conv1D(outputs=4, channels=3)
    >>> logits, _ = network.forward(network.init(jax.random.key(0)), jax.numpy.zeros((2, 100, 3)))
    >>> logits.shape
    (2, 4)

    Args:
        outputs: The number of outputs.
        filters: Filters of each layer.
        layers: The number of convolutions.
        kernel: Time steps that a filter covers.
        channels: Channels of a signal.

    Raises:
        ConfigError: If a field is out of its range.
    """

    normalises: ClassVar[bool] = False

    outputs: PositiveInt
    filters: PositiveInt = 32
    layers: PositiveInt = 3
    kernel: PositiveInt = 5
    channels: PositiveInt = 1

    def init(self, key: Array) -> Parameters:
        """Return fresh parameters, float32: He-normal kernels and zero biases.

        Args:
            key: A random key.

        Returns:
            For each layer a kernel ``(filters, kernel * inputs)`` and a bias ``(filters,)``; for the head a
            kernel ``(filters, outputs)`` and a bias ``(outputs,)``.
        """
        *keys, head_key = jax.random.split(key, self.layers + 1)
        parameters, inputs = {}, self.channels
        for layer, layer_key in enumerate(keys, start=1):
            size = self.kernel * inputs
            parameters[f"conv{layer}"] = {
                "kernel": jax.random.normal(layer_key, (self.filters, size), jnp.float32) * (2 / size) ** 0.5,
                "bias": jnp.zeros(self.filters, jnp.float32),
            }
            inputs = self.filters
        parameters["head"] = _head(head_key, self.filters, self.outputs)
        return parameters

    def forward(self, parameters: Parameters, inputs: Array, statistics: Tree = None) -> tuple[Array, Tree]:
        """Return the outputs.

        Args:
            parameters: As `init` returns them.
            inputs: Windows ``(n, time, channels)``.
            statistics: Returned unchanged, as the network has none.

        Returns:
            Outputs ``(n, outputs)``, and ``statistics``.
        """
        hidden = inputs
        for layer in range(1, self.layers + 1):
            module = parameters[f"conv{layer}"]
            patches = _patches(hidden, self.kernel)
            hidden = jax.nn.relu(patches @ module["kernel"].T + module["bias"])
        return hidden.mean(1) @ parameters["head"]["kernel"] + parameters["head"]["bias"], statistics


def _patches(x: Array, kernel: int) -> Array:
    """Return neighbourhoods in time at stride 2, padded with zeros: (n, t, c) -> (n, (t+1)//2, kernel c)."""
    n, steps, channels = x.shape
    kept = (steps + 1) // 2
    before = (kernel - 1) // 2
    padded = jnp.pad(x, ((0, 0), (before, kernel), (0, 0)))
    slices = [lax.slice(padded, (0, i, 0), (n, i + 2 * kept - 1, channels), (1, 2, 1)) for i in range(kernel)]
    return jnp.concatenate(slices, axis=-1)


@recipe("network", fresh={"outputs": 1})
@dataclass(frozen=True)
class GRU(Checked):
    """A gated recurrent unit over time, and a linear head on its last state (Cho et al. 2014).

    ```
    r, z = sigmoid(W x_t + U h + b)      reset and update gates
    c    = tanh(V x_t + r * (Q h + d))   candidate
    h    = z * h + (1 - z) * c
    ```

    Windows may have any length, the same for all rows of a batch.

    >>> import jax
    >>> network = GRU(outputs=4, channels=3)
    >>> logits, _ = network.forward(network.init(jax.random.key(0)), jax.numpy.zeros((2, 100, 3)))
    >>> logits.shape
    (2, 4)

    Args:
        outputs: The number of outputs.
        units: The length of the state.
        channels: Channels of a signal.

    Raises:
        ConfigError: If a field is out of its range.
    """

    normalises: ClassVar[bool] = False

    outputs: PositiveInt
    units: PositiveInt = 32
    channels: PositiveInt = 1

    def init(self, key: Array) -> Parameters:
        """Return fresh parameters, float32: input kernels with variance 1/channels, orthogonal state kernels.

        Args:
            key: A random key.

        Returns:
            Of the cell "input" ``(channels, 3 units)``, "state" ``(units, 3 units)`` and the biases of both,
            in the order reset, update, candidate; of the head a kernel ``(units, outputs)`` and a bias.
        """
        input_key, state_key, head_key = jax.random.split(key, 3)
        units, orthogonal = self.units, jax.nn.initializers.orthogonal()
        scale = self.channels**-0.5
        blocks = [orthogonal(part, (units, units), jnp.float32) for part in jax.random.split(state_key, 3)]
        cell = {
            "input": jax.random.normal(input_key, (self.channels, 3 * units), jnp.float32) * scale,
            "input_bias": jnp.zeros(3 * units, jnp.float32),
            "state": jnp.concatenate(blocks, axis=1),
            "state_bias": jnp.zeros(3 * units, jnp.float32),
        }
        return {"cell": cell, "head": _head(head_key, units, self.outputs)}

    def forward(self, parameters: Parameters, inputs: Array, statistics: Tree = None) -> tuple[Array, Tree]:
        """Return the outputs.

        Args:
            parameters: As `init` returns them.
            inputs: Windows ``(n, time, channels)``.
            statistics: Returned unchanged, as the network has none.

        Returns:
            Outputs ``(n, outputs)``, and ``statistics``.
        """
        cell, units = parameters["cell"], self.units
        driven = inputs @ cell["input"] + cell["input_bias"]  # of all steps at once, as it needs no state

        def step(state: Array, row: Array) -> tuple[Array, None]:
            recurrent = state @ cell["state"] + cell["state_bias"]
            gates = jax.nn.sigmoid(row[:, : 2 * units] + recurrent[:, : 2 * units])
            reset, update = gates[:, :units], gates[:, units:]
            candidate = jnp.tanh(row[:, 2 * units :] + reset * recurrent[:, 2 * units :])
            return update * state + (1 - update) * candidate, None

        start = jnp.zeros((inputs.shape[0], units), driven.dtype)
        last, _ = lax.scan(step, start, jnp.swapaxes(driven, 0, 1))
        return last @ parameters["head"]["kernel"] + parameters["head"]["bias"], statistics


def _head(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
    """A linear layer whose outputs have unit variance for inputs of unit variance."""
    kernel = jax.random.normal(key, (inputs, outputs), jnp.float32) * inputs**-0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs, jnp.float32)}
