"""What a user brings as a model, as a network."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError
from ...core.tree import Tree
from ..networks import Network
from .imported import unwrapped
from .own import Held, OwnModel, functions, hold

# The module of this package for each library, by the package that the classes of its models are defined in.
# Libraries are imported only for a model that is theirs.
ADAPTERS: Mapping[str, str] = {
    "equinox": "equinox",
    "flax.nnx": "nnx",
    "flax.linen": "linen",
    "haiku": "haiku",
}
TRIED = 4  # rows of a batch that batch statistics are checked on
DIFFERENT = 0.05  # of the largest output: more than rounding in bfloat16
EXPECTED = (
    "a network such as imaml.MLP or imaml.Conv4, functions (init, apply), or a module of Equinox, Flax or "
    "Haiku"
)


def as_network(model: object, example: Tree, *, token: str | None = None, place: str = "") -> Network:
    """Return a user's model as a network.

    Args:
        model: One of these:

            - a network (an object with `init` and `forward`), which is returned as it is;
            - two functions ``(init, apply)``, or an object that has them: ``init(key) -> parameters``,
              ``apply(parameters, inputs) -> outputs``;
            - a module of Equinox, or ``(module, state)``;
            - a module of Flax NNX;
            - a module of Flax Linen, or ``(module, variables)``;
            - what Haiku's `hk.transform` or `hk.transform_with_state` returns, or ``(transformed, params)``
              or ``(transformed, params, state)``.

            What becomes of batch statistics, dropout and narrow dtypes is in docs/own_tasks.md, "Models".
        example: One blank row of inputs, leaves ``(1, ...)``.
        token: The token of a saved recipe, to be found again under it; see `hold`.
        place: Where the model was imported from, for messages and saved runs; see `imported`.

    Returns:
        The network. Passing a model twice gives equal networks, which compile once.

    Raises:
        ConfigError: If it is none of these, has no parameters, or does not take the example.
    """
    model, named = unwrapped(model)
    held = _held(model, example)
    if held is None:
        return model  # type: ignore[return-value]
    network = hold(held, token, place or named)
    _try(network, example)
    return network


def library_of(model: object) -> str | None:
    """Return which library a model is of, without importing one.

    Args:
        model: The model.

    Returns:
        A key of `ADAPTERS`; None if it is of none of them.
    """
    modules = [f"{kind.__module__}." for kind in type(model).__mro__]
    for library in ADAPTERS:
        if any(module.startswith(f"{library}.") for module in modules):
            return library
    return None


def _held(model: object, example: Tree) -> Held | None:
    """The model as pure functions; None if it is a network."""
    first, *rest = model if isinstance(model, tuple) and library_of(model) is None and model else (model,)
    library = library_of(first)
    if library is not None:
        adapter = importlib.import_module(f".{ADAPTERS[library]}", __package__)
        try:
            return adapter.held(first, tuple(rest), example)
        except ConfigError:
            raise
        except Exception as error:  # a module's own code may raise anything
            raise _unfit(_name(first), example, error) from error
    if rest and len(rest) == 1 and callable(first) and callable(rest[0]):
        return functions(first, rest[0], _name(rest[0]))  # type: ignore[arg-type]
    own = [getattr(model, method, None) for method in ("init", "forward", "apply")]
    if callable(own[0]) and not isinstance(model, type):
        if callable(own[1]):
            return None
        if callable(own[2]):
            return functions(own[0], own[2], _name(model))  # type: ignore[arg-type]
    got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    hint = " Hint: pass an instance." if isinstance(model, type) else ""
    raise ConfigError(f"model: expected {EXPECTED}, got {got}.{hint}")


def _try(network: OwnModel, example: Tree) -> None:
    """Trace the network on one row, so that an error is met here and not amid training."""
    try:
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        jax.eval_shape(lambda parameters, x: network.forward(parameters, x)[0], shapes, example)
    except ConfigError:
        raise
    except Exception as error:  # a user's own code may raise anything
        raise _unfit(network.name, example, error) from error
    if network.normalises:
        _check_statistics(network, example)


def _check_statistics(network: OwnModel, example: Tree) -> None:
    """Check that outputs stay the same when a batch's own statistics are given back.

    They do not if a layer of batch normalisation is called twice, as it keeps the statistics of one call.
    """
    draws = np.random.default_rng(0)

    def batch(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(draws.normal(size=(TRIED, *leaf.shape[1:])), leaf.dtype)
        return jnp.repeat(jnp.asarray(leaf), TRIED, axis=0)

    first, again = _twice(network, network.init(jax.random.key(0)), jax.tree.map(batch, example))
    scale = max(float(jnp.max(jnp.abs(first))), 1e-6)
    difference = float(jnp.max(jnp.abs(first - again))) / scale
    if not difference < DIFFERENT:
        raise ConfigError(
            f"model: {network.name}: expected layers of batch normalisation that are each called once, got "
            f"outputs that change by {difference:.2g} when a batch's own statistics are given. Hint: use one "
            "layer for each call."
        )


@partial(jax.jit, static_argnums=0)
def _twice(network: OwnModel, parameters: Tree, inputs: Tree) -> tuple[Array, Array]:
    """The outputs for a batch, and those with the statistics of the same batch given."""
    outputs, statistics = network.forward(parameters, inputs)
    return outputs, network.forward(parameters, inputs, statistics)[0]


def _unfit(name: str, example: Tree, error: Exception) -> ConfigError:
    rows = ", ".join(str(tuple(leaf.shape[1:])) for leaf in jax.tree.leaves(example))
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ConfigError(
        f"model: {name}: expected a model that takes rows of shape {rows}, got an error "
        f"({type(error).__name__}: {first[:200]})."
    )


def _name(model: object) -> str:
    return getattr(model, "__name__", type(model).__name__)
