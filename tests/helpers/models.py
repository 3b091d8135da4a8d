"""Small models of each library, from 3 inputs to 2 outputs, with and without batch normalisation."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

EXAMPLE = np.zeros((1, 3), np.float32)


class EquinoxNet(eqx.Module):
    """As users of Equinox write it; it also holds whole numbers, keys, a flag, a text and a function."""

    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear
    count: jax.Array
    keys: jax.Array
    flag: bool
    label: str
    activation: object

    def __init__(self, key, mode="batch"):
        keys = jax.random.split(key, 2)
        self.first = eqx.nn.Linear(3, 4, key=keys[0])
        self.norm = eqx.nn.BatchNorm(4, axis_name="rows", mode=mode)
        self.dropout = eqx.nn.Dropout(0.5)
        self.last = eqx.nn.Linear(4, 2, key=keys[1])
        self.count = jnp.arange(3)
        self.keys, self.flag, self.label, self.activation = keys, True, "net", jnp.tanh

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.first(x), state)
        return self.last(self.dropout(self.activation(x), key=key)), state


class NNXNet(nnx.Module):
    """As users of Flax NNX write it: the switch to evaluation is an argument, or a mode of the module."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)
        self.count = jnp.arange(3)
        self.label, self.activation = "net", jnp.tanh

    def __call__(self, x, train=False):
        x = self.activation(self.norm(self.first(x), use_running_average=not train))
        return self.last(self.dropout(x, deterministic=not train))


class LinenNet(nn.Module):
    """As users of Flax Linen write it."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(2)(nn.Dropout(self.rate, deterministic=not train)(x))


def haiku_net(x, is_training):
    """As users of Haiku write it."""
    x = hk.Linear(4)(x)
    x = jnp.tanh(hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(2)(x)


def initial(key):
    """Parameters of a network of two functions; it also has a whole number, a text and a function."""
    first, last = jax.random.split(key)
    return {
        "first": {"weight": jax.random.normal(first, (3, 4)), "bias": jnp.zeros(4)},
        "last": {"weight": jax.random.normal(last, (4, 2)), "bias": jnp.zeros(2)},
        "rest": {"count": 3, "label": "net", "activation": jnp.tanh},
    }


def apply(parameters, x):
    """Outputs of these parameters."""
    hidden = parameters["rest"]["activation"](x @ parameters["first"]["weight"] + parameters["first"]["bias"])
    return hidden @ parameters["last"]["weight"] + parameters["last"]["bias"]


PLAIN = {
    "functions": lambda: (initial, apply),
    "equinox": lambda: eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0)),
    "nnx": lambda: nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(4, 2, rngs=nnx.Rngs(1))
    ),
    "linen": lambda: nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(2)]),
    "haiku": lambda: hk.without_apply_rng(hk.transform(hk_plain)),
}
NORMED = {
    "equinox": lambda: eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0)),
    "nnx": lambda: NNXNet(nnx.Rngs(0)),
    "linen": LinenNet,
    "haiku": lambda: hk.transform_with_state(haiku_net),
}


def hk_plain(x):
    """A Haiku function without state."""
    return hk.Linear(2)(jnp.tanh(hk.Linear(4)(x)))
