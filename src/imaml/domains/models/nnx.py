"""Flax NNX modules as models.

An instance is already initialised: its `nnx.Param` variables that are float arrays are the start of
meta-training for every seed, so that pretrained weights are kept. All other variables and attributes, such as
`nnx.RngState`, are constants, and the module itself is never changed.

Layers of batch normalisation (`nnx.BatchNorm`) normalise by the batch, or by statistics that an earlier call
returned, never by running averages. The statistics are those that the layers compute themselves: with a
momentum of 0 the running average after a batch is the batch's own. Other variables of `nnx.BatchStat` are
constant, and a warning names them.

Modules are called as for evaluation, and dropout is off.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...core.errors import ConfigError
from ...core.tree import Tree
from .calls import switches, warn_of_constants, warn_of_dropout
from .leaves import Leaves, is_float, widened


@dataclass(frozen=True, eq=False)
class NNXModule:
    """A Flax NNX module; `held` makes it.

    Attributes:
        source: The user's module.
        arrays: The arrays that it held when this model was made.
        by_batch: The graph that normalises by the batch.
        by_statistics: The graph that normalises by given statistics.
        variables: The module's variables and arrays by path.
        leaves: The parts of the dict of its `nnx.Param` arrays.
        start: Its parameters, by path.
        statistics: The paths of the batch statistics.
        arguments: Keyword arguments of each call.
    """

    source: Any
    arrays: tuple
    by_batch: Any
    by_statistics: Any
    variables: dict[str, tuple]
    leaves: Leaves
    start: dict[str, Array]
    statistics: tuple[str, ...]
    arguments: dict[str, bool]

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self.source).__name__

    @property
    def identity(self) -> tuple:
        """The module and its arrays: a module can be changed, arrays cannot."""
        return (id(self.source), self.by_batch, *map(id, self.arrays))

    @property
    def fixed(self) -> Tree:
        """What is not a parameter."""
        return self.arrays

    @property
    def normalises(self) -> bool:
        """Whether there are layers of batch normalisation."""
        return bool(self.statistics)

    def init(self, key: Array) -> dict[str, Array]:
        """Return the module's own parameters, whatever the key."""
        return dict(self.start)

    def forward(
        self, parameters: dict[str, Array], inputs: Tree, statistics: Tree = None
    ) -> tuple[Array, Tree]:
        """Return the outputs, and the statistics of each layer of batch normalisation, by path."""
        from flax import nnx

        values = {**self.leaves.join(parameters), **self._averages(parameters, inputs), **(statistics or {})}
        state = nnx.from_flat_state(
            [
                (path, variable.replace(values[name]) if name in values else variable)
                for name, (path, variable) in self.variables.items()
            ]
        )
        graph = self.by_batch if statistics is None else self.by_statistics
        module = nnx.merge(graph, state, copy=True)  # a call may write to variables: to copies of them
        outputs = widened(module(inputs, **self.arguments))
        if not self.statistics:
            return outputs, None
        found = {_name(path): variable for path, variable in nnx.to_flat_state(nnx.state(module))}
        return outputs, {name: _array(found[name]) for name in self.statistics}

    def _averages(self, parameters: dict[str, Array], inputs: Tree) -> dict[str, Array]:
        """The module's running averages, wide enough for a batch's to be written to."""
        floats = [leaf for leaf in jax.tree.leaves((parameters, inputs)) if is_float(leaf)]
        found = {name: _array(self.variables[name][1]) for name in self.statistics}
        return {name: value.astype(jnp.result_type(value, *floats)) for name, value in found.items()}

    def chosen(self, adapt: object) -> tuple[str, ...] | None:
        """Return the paths of the parameters that a filter of NNX means."""
        from flax import nnx

        parts = adapt if isinstance(adapt, (tuple, list)) else (adapt,)
        if not parts or not all(_is_filter(part) for part in parts):
            return None
        predicate = nnx.filterlib.to_predicate(adapt)  # type: ignore[arg-type]
        return tuple(name for name in self.start if predicate(*self.variables[name]))


def held(model: object, given: tuple, example: Tree) -> NNXModule:
    """Return a Flax NNX module as a model.

    Args:
        model: The module.
        given: Nothing.
        example: One row of inputs.

    Returns:
        The model.

    Raises:
        ConfigError: If it is not a module, or has no parameters.
    """
    from flax import nnx

    kind = type(model).__name__
    if not isinstance(model, nnx.Module) or given:
        raise ConfigError(f"model: expected one module of Flax NNX, got a {kind}.")
    arrays = tuple(_array(variable) for _, variable in nnx.to_flat_state(nnx.split(model)[1]))
    state = nnx.split(nnx.clone(model))[1]  # the user's variables may change later
    variables = {_name(path): (path, variable) for path, variable in nnx.to_flat_state(state)}
    layers = {_name(path) for path, one in nnx.iter_modules(model) if isinstance(one, nnx.BatchNorm)}
    stats = [
        name
        for name, (_, variable) in variables.items()
        if isinstance(variable, nnx.BatchStat) and is_float(_array(variable))
    ]
    known = tuple(name for name in stats if name.rpartition("/")[0] in layers)
    warn_of_constants(kind, set(stats) - set(known))
    if any(_drops(one) for _, one in nnx.iter_modules(model)):
        warn_of_dropout(kind)
    # One leaf each: what a variable holds besides float arrays is constant, and stays in `variables`.
    weights = {
        name: _array(variable)
        for name, (_, variable) in variables.items()
        if isinstance(variable, nnx.Param) and is_float(_array(variable))
    }
    leaves = Leaves.of(weights, f"model: {kind}")
    return NNXModule(
        model,
        arrays,
        _graph(model, False),
        _graph(model, True),
        variables,
        leaves,
        leaves.select(weights),
        known,
        switches(type(model).__call__),  # type: ignore[attr-defined]
    )


def _graph(model: Any, given: bool) -> Any:
    """The graph of a copy whose dropout is off, and that normalises by given statistics or by the batch."""
    from flax import nnx

    clone = nnx.clone(model)
    clone.set_attributes(deterministic=True, raise_if_not_found=False)
    for _, layer in list(nnx.iter_modules(clone)):
        if isinstance(layer, nnx.BatchNorm):
            layer.momentum, layer.use_running_average = 0.0, given
            object.__setattr__(layer, "__class__", _forced(type(layer)))
        for rate in ("rate",) if isinstance(layer, nnx.Dropout) else ("dropout_rate",):
            if hasattr(layer, rate):
                setattr(layer, rate, 0.0)
    return nnx.split(clone)[0]


def _drops(layer: Any) -> bool:
    """Whether a layer drops units at random unless that is switched off."""
    from flax import nnx

    rate = layer.rate if isinstance(layer, nnx.Dropout) else getattr(layer, "dropout_rate", 0.0)
    return isinstance(rate, (int, float)) and rate > 0 and not getattr(layer, "deterministic", False)


@cache
def _forced(kind: type) -> type:
    """A class of batch normalisation that ignores the argument `use_running_average`."""

    class Forced(kind):
        def __call__(self, x: Array, use_running_average: Any = None, **options: Any) -> Array:
            return super().__call__(x, use_running_average=self.use_running_average, **options)

    return Forced


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def _array(variable: Any) -> Any:
    """The value of a variable, or an array that is an attribute."""
    return variable.get_value() if hasattr(variable, "get_value") else variable


def _is_filter(part: object) -> bool:
    """Whether something is a filter of NNX: a type, `...`, or one of `nnx.filterlib`."""
    return isinstance(part, type) or part is ... or type(part).__module__.startswith("flax.nnx.filterlib")
