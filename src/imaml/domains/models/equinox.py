"""Equinox modules as models.

An instance is already initialised: its float arrays are the start of meta-training for every seed, so that
pretrained weights are kept. All other leaves are constants. A module takes one example, so it is called by
`jax.vmap` over rows.

Layers of batch normalisation (`eqx.nn.BatchNorm`) need their state: pass ``(model, state)``, as
`eqx.nn.make_with_state` returns them. They normalise by the batch, or by statistics that an earlier call
returned, never by running averages. The statistics are those that the layers compute themselves: with a
momentum of 0 the running average after a batch is the batch's own. All other state is constant.

Dropout is off. A required argument `key` gets one fixed key.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from ...core.errors import ConfigError
from ...core.tree import Tree
from .calls import switches, warn_of_dropout
from .leaves import Leaves, is_float, widened

if TYPE_CHECKING:
    import equinox as eqx


@dataclass(frozen=True, eq=False)
class EquinoxModule:
    """An Equinox module, and its state; `held` makes it.

    Attributes:
        source: The module and the state that the user passed.
        leaves: The parts of the module, whose dropout is off.
        start: Its parameters, by path.
        state: Its state; None of a module without.
        axis: The name of the batch's axis.
        arguments: Keyword arguments of each call.
    """

    source: tuple
    leaves: Leaves
    start: dict[str, Array]
    state: Tree
    axis: str | None
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self.source[0]).__name__

    @property
    def identity(self) -> tuple:
        """The objects; Equinox modules do not change."""
        return tuple(map(id, self.source))

    @property
    def fixed(self) -> Tree:
        """What is not a parameter."""
        return self.leaves.constants, self.state

    @property
    def normalises(self) -> bool:
        """Whether there are layers of batch normalisation."""
        return self.axis is not None

    def init(self, key: Array) -> dict[str, Array]:
        """Return the module's own parameters, whatever the key."""
        return dict(self.start)

    def forward(
        self, parameters: dict[str, Array], inputs: Tree, statistics: Tree = None
    ) -> tuple[Array, Tree]:
        """Return the outputs, and the mean and variance that each layer of batch normalisation used."""
        import equinox as eqx

        module = self.leaves.join(parameters)
        if self.state is None:
            return widened(jax.vmap(lambda row: module(row, **self.arguments))(inputs)), None
        state = self.state
        if self.normalises:
            flag = statistics is not None
            module = eqx.tree_at(_flags, module, replace_fn=lambda _: flag, is_leaf=lambda leaf: leaf is None)
        dtype = jnp.result_type(*(leaf for leaf in jax.tree.leaves((parameters, inputs)) if is_float(leaf)))
        state = _with(state, {}, dtype)
        layers = _norms(module)
        if statistics is not None:
            given = {}
            for layer, pair in zip(layers, statistics, strict=True):
                given[_index(layer).marker] = pair
            state = _with(state, given, dtype)

        def call(row: Tree) -> tuple[Array, list]:
            outputs, after = module(row, _with(state, {}, dtype), **self.arguments)
            # With given statistics the layers write nothing, so that these are those that were given.
            return outputs, [after.get(_index(layer)) for layer in layers]

        outputs, found = jax.vmap(call, axis_name=self.axis, out_axes=(0, None))(inputs)
        return widened(outputs), found if self.normalises else None

    def chosen(self, adapt: object) -> None:
        """Return None: a filter of Equinox is a tree of booleans, as any library's."""


def held(model: object, given: tuple, example: Tree) -> EquinoxModule:
    """Return an Equinox module as a model.

    Args:
        model: The module.
        given: Its state, or nothing.
        example: One row of inputs.

    Returns:
        The model.

    Raises:
        ConfigError: If it is not a module, has no parameters, or its state is missing.
    """
    import equinox as eqx

    name = type(model).__name__
    if not isinstance(model, eqx.Module):
        raise ConfigError(f"model: expected a module of Equinox, got a {name}.")
    state = _state(model, given, name)
    module = eqx.nn.delete_init_state(model)
    layers = _norms(module)
    axes = {layer.axis_name for layer in layers}
    if len(axes) > 1 or not all(isinstance(axis, str) for axis in axes):
        raise ConfigError(f"model: {name}: expected layers of batch normalisation over one axis, got {axes}.")
    dropouts = _instances(module, eqx.nn.Dropout)
    if any(layer.p != 0 and not layer.inference for layer in dropouts):
        warn_of_dropout(name)
    if dropouts:
        where = lambda tree: [layer.inference for layer in _instances(tree, eqx.nn.Dropout)]  # noqa: E731
        module = eqx.tree_at(where, module, replace_fn=lambda _: True)
    module = jax.tree.map(lambda node: _by_batch(node) if _is_norm(node) else node, module, is_leaf=_is_norm)
    leaves = Leaves.of(module, f"model: {name}")
    arguments: dict[str, Any] = dict(switches(type(model).__call__))  # type: ignore[attr-defined]
    keys = inspect.signature(type(model).__call__).parameters.get("key")  # type: ignore[attr-defined]
    if keys is not None and keys.default is keys.empty:
        arguments["key"] = jax.random.key(0)
    axis = axes.pop() if axes else None
    return EquinoxModule((model, *given), leaves, leaves.select(module), state, axis, arguments)


def _state(model: object, given: tuple, name: str) -> Tree:
    """The state of a module: given, or made of the initial values that it still holds."""
    import equinox as eqx

    if not _instances(model, eqx.nn.StateIndex):
        return None
    if given:
        if not isinstance(given[0], eqx.nn.State):
            raise ConfigError(
                f"model: {name}: expected (model, state), got a {type(given[0]).__name__} as state."
            )
        return copy.copy(given[0])  # a call that sets a value makes the object itself unusable
    try:
        return eqx.nn.State(model)
    except ValueError as error:
        raise ConfigError(
            f"model: {name}: expected the module and its state, got the module alone. Hint: pass "
            "(model, state), as eqx.nn.make_with_state returns them."
        ) from error


def _with(state: eqx.nn.State, values: dict, dtype: Any) -> eqx.nn.State:
    """A new state with other values, its floats at least as wide as a dtype."""
    found, markers = state.tree_flatten()
    replaced = [values.get(marker, value) for marker, value in zip(markers, found, strict=True)]

    def wide(leaf: Array) -> Array:
        return leaf.astype(jnp.promote_types(leaf.dtype, dtype)) if is_float(leaf) else leaf

    return type(state).tree_unflatten(markers, jax.tree.map(wide, tuple(replaced)))


def _instances(tree: Tree, kind: type) -> list:
    """The nodes of a tree that are instances of a class, outermost first."""
    is_leaf = lambda node: isinstance(node, kind)  # noqa: E731
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_leaf) if is_leaf(leaf)]


def _is_norm(node: object) -> bool:
    import equinox as eqx

    return isinstance(node, eqx.nn.BatchNorm)


def _norms(tree: Tree) -> list:
    import equinox as eqx

    return _instances(tree, eqx.nn.BatchNorm)


def _flags(tree: Tree) -> list[bool]:
    return [layer.inference for layer in _norms(tree)]


def _index(layer: eqx.nn.BatchNorm) -> eqx.nn.StateIndex:
    """The index of a layer's mean and variance."""
    index = layer.ema_state_index if layer.mode == "ema" else layer.batch_state_index
    assert index is not None
    return index


def _by_batch(layer: eqx.nn.BatchNorm) -> eqx.nn.BatchNorm:
    """A layer whose own `inference` alone says what it normalises by, with a momentum of 0."""
    kind = _forced(type(layer))
    found = object.__new__(kind)
    for one in fields(layer):
        value = 0.0 if one.name == "momentum" else getattr(layer, one.name)
        object.__setattr__(found, one.name, value)
    return found


@cache
def _forced(kind: type) -> type:
    """A class of batch normalisation that ignores the argument `inference`."""

    class Forced(kind):
        def __call__(self, x: Array, state: Tree, *, key: Tree = None, inference: Tree = None) -> Any:
            return super().__call__(x, state, key=key, inference=self.inference)

    return Forced
