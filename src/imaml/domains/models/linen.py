"""Flax Linen modules as models.

A module is a definition: its `init` gives parameters for each seed. With ``(module, variables)`` the given
parameters are the start for every seed, so that pretrained weights are kept. Float arrays of the collection
"params" are the parameters; all other collections are constants.

Layers of batch normalisation (`nn.BatchNorm`) normalise by the batch, or by statistics that an earlier call
returned, never by running averages. The statistics are those that the layers compute themselves: with a
momentum of 0 the running average after a batch is the batch's own. Other variables of the collection
"batch_stats" are constant, and a warning names them.

Modules are called as for evaluation: arguments `train`, `training`, `deterministic` and `use_running_average`
of `__call__` are found by name. Dropout is off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from ...core.errors import ConfigError
from ...core.tree import Tree
from .calls import switches, warn_of_constants, warn_of_dropout
from .leaves import Leaves, is_float, paths_of, widened

RATES = ("rate", "dropout_rate")  # the fields that hold the share of units to drop


@dataclass(frozen=True, eq=False)
class LinenModule:
    """A Flax Linen module; `held` makes it.

    Attributes:
        module: The definition.
        example: One row of inputs, for `init`.
        leaves: The parts of the collection "params".
        start: The given parameters, by path; None to draw them.
        constants: The other collections.
        statistics: The paths of the batch statistics in the collection "batch_stats".
        arguments: Keyword arguments of each call.
    """

    module: Any
    example: Tree
    leaves: Leaves
    start: dict[str, Array] | None
    constants: dict[str, Tree]
    statistics: tuple[str, ...]
    arguments: dict[str, bool]

    @property
    def name(self) -> str:
        """The name of its class."""
        return type(self.module).__name__

    @property
    def identity(self) -> tuple:
        """The definition, the shapes that it was initialised with, and the values that were given."""
        given = () if self.start is None else tuple(map(id, self.start.values()))
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(self.example))
        try:
            hash(self.module)
        except TypeError:  # a field that cannot be hashed, such as an array
            return (id(self.module), shapes, given)
        return (self.module, shapes, given)

    @property
    def fixed(self) -> Tree:
        """What is not a parameter."""
        return self.leaves.constants, self.constants

    @property
    def normalises(self) -> bool:
        """Whether there are layers of batch normalisation."""
        return bool(self.statistics)

    def init(self, key: Array) -> dict[str, Array]:
        """Return fresh parameters, or those that were given."""
        if self.start is not None:
            return dict(self.start)
        with _intercepted(True):
            variables = self.module.init(key, self.example, **self.arguments)
        return self.leaves.select(variables["params"])

    def forward(
        self, parameters: dict[str, Array], inputs: Tree, statistics: Tree = None
    ) -> tuple[Array, Tree]:
        """Return the outputs, and the statistics of each layer of batch normalisation, by path."""
        from flax.core import DenyList

        variables = {**self.constants, "params": self.leaves.join(parameters)}
        if statistics is not None:
            variables["batch_stats"] = _replaced(self.constants["batch_stats"], statistics)
        with _intercepted(statistics is not None):
            # Collections may be written to; what they hold afterwards is not kept.
            outputs, after = self.module.apply(
                variables, inputs, mutable=DenyList("params"), **self.arguments
            )
        if not self.statistics:
            return widened(outputs), None
        found = _by_path(after["batch_stats"])
        return widened(outputs), {path: found[path] for path in self.statistics}

    def chosen(self, adapt: object) -> None:
        """Return None: Linen has no filters of its own."""


def held(model: object, given: tuple, example: Tree) -> LinenModule:
    """Return a Flax Linen module as a model.

    Args:
        model: The module.
        given: Its variables, or nothing.
        example: One row of inputs.

    Returns:
        The model.

    Raises:
        ConfigError: If it is not a module, or has no parameters.
    """
    import flax.linen as nn

    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a module of Flax Linen, got a {name}.")
    arguments = switches(type(model).__call__)  # type: ignore[attr-defined]
    layers: set[str] = set()
    drops: list[bool] = []

    def initial(key: Array) -> Tree:
        with _intercepted(True, layers, drops):
            return model.init(key, example, **arguments)  # type: ignore[arg-type]

    shapes = jax.eval_shape(initial, jax.random.key(0))
    variables = given[0] if given else shapes
    if "params" not in variables:
        raise ConfigError(
            f"model: {name}: expected variables with the collection 'params', got "
            f"{', '.join(variables) or 'none'}."
        )
    if any(drops):
        warn_of_dropout(name)
    leaves = Leaves.of(variables["params"], f"model: {name}")
    if not given and (set(shapes) - {"params"} or any(leaf is not None for leaf in leaves.constants)):
        variables = jax.jit(initial)(jax.random.key(0))  # constants need their values
        leaves = Leaves.of(variables["params"], f"model: {name}")
    constants = {collection: tree for collection, tree in variables.items() if collection != "params"}
    stats = [path for path, leaf in _by_path(constants.get("batch_stats", {})).items() if is_float(leaf)]
    known = tuple(path for path in stats if path.rpartition("/")[0] in layers)
    warn_of_constants(name, set(stats) - set(known))
    start = leaves.select(given[0]["params"]) if given else None
    return LinenModule(model, example, leaves, start, constants, known, arguments)


def _intercepted(given: bool, layers: set[str] | None = None, drops: list[bool] | None = None) -> Any:
    """A context in which layers of batch normalisation use given statistics or the batch's, without dropout.

    Args:
        given: Whether statistics are given.
        layers: Collects the paths of layers of batch normalisation.
        drops: Collects whether a layer drops units in training.
    """
    import flax.linen as nn

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module, fields = context.module, {}
        for rate in RATES:
            if rate == "rate" and not isinstance(module, nn.Dropout):
                continue  # a user's field
            value = getattr(module, rate, None)
            if isinstance(value, (int, float)) and context.method_name == "__call__":
                fields[rate] = 0.0
                if drops is not None:
                    drops.append(value > 0)
        if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
            fields |= {"momentum": 0.0, "use_running_average": given}
            args, kwargs = args[:1], {key: kwargs[key] for key in kwargs if key != "use_running_average"}
            if layers is not None:
                layers.add("/".join(module.path))
        before = {field: getattr(module, field) for field in fields}
        _set(module, fields)
        try:
            return call(*args, **kwargs)
        finally:
            _set(module, before)

    return nn.intercept_methods(intercept)


def _set(module: object, fields: dict) -> None:
    """Set fields of a module that is bound for this call; modules are frozen dataclasses."""
    for field, value in fields.items():
        object.__setattr__(module, field, value)


def _by_path(tree: Tree) -> dict[str, Any]:
    return dict(zip(paths_of(tree), jax.tree.leaves(tree), strict=True))


def _replaced(tree: Tree, values: dict[str, Array]) -> Tree:
    """A tree with other leaves at some paths."""
    leaves = [values.get(path, leaf) for path, leaf in _by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
