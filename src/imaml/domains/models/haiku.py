"""Haiku functions as models: what `hk.transform` and `hk.transform_with_state` return.

Their `init` gives parameters for each seed. With ``(transformed, params)`` or
``(transformed, params, state)`` the given parameters are the start for every seed, so that pretrained weights
are kept. Float arrays of the parameters are learned; state is constant.

Layers of batch normalisation (`hk.BatchNorm`) normalise by the batch, or by statistics that an earlier call
returned, never by running averages. The statistics are those that the layers compute themselves: with a decay
of 0 the moving average after a batch is the batch's own.

Functions are called as for evaluation: an argument such as `is_training` is found by name, and is False,
which must turn dropout off. A function that then still needs a random key is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from ...core.errors import ConfigError
from ...core.tree import Tree
from .calls import switches, warn_of_dropout
from .leaves import Leaves, widened


@dataclass(frozen=True, eq=False)
class HaikuFunction:
    """A transformed Haiku function; `held` makes it.

    Attributes:
        transformed: The pair of `init` and `apply`.
        stateful: Whether it was made by `hk.transform_with_state`.
        example: One row of inputs, for `init`.
        leaves: The parts of the parameters.
        start: The given parameters, by path; None to draw them.
        state: The state; empty of a function without.
        averages: The names of the moving averages that hold batch statistics.
        arguments: Keyword arguments of each call.
    """

    transformed: Any
    stateful: bool
    example: Tree
    leaves: Leaves
    start: dict[str, Array] | None
    state: dict[str, dict[str, Array]]
    averages: tuple[str, ...]
    arguments: dict[str, bool]

    @property
    def name(self) -> str:
        """The name of the function that was transformed."""
        return _name(self.transformed)

    @property
    def identity(self) -> tuple:
        """The two functions, the shapes that they were initialised with, and the values that were given."""
        given = () if self.start is None else tuple(map(id, self.start.values()))
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(self.example))
        return (*self.transformed, shapes, given)

    @property
    def fixed(self) -> Tree:
        """What is not a parameter."""
        return self.leaves.constants, self.state

    @property
    def normalises(self) -> bool:
        """Whether there are layers of batch normalisation."""
        return bool(self.averages)

    def init(self, key: Array) -> dict[str, Array]:
        """Return fresh parameters, or those that were given."""
        if self.start is not None:
            return dict(self.start)
        with _intercepted(True):
            found = self.transformed.init(key, self.example, **self.arguments)
        return self.leaves.select(found[0] if self.stateful else found)

    def forward(
        self, parameters: dict[str, Array], inputs: Tree, statistics: Tree = None
    ) -> tuple[Array, Tree]:
        """Return the outputs, and the average that each layer of batch normalisation used, by name."""
        params = self.leaves.join(parameters)
        keys = {"rng": None} if "rng" in inspect.signature(self.transformed.apply).parameters else {}
        if not self.stateful:
            return widened(self.transformed.apply(params, *keys.values(), inputs, **self.arguments)), None
        state = {name: dict(values) for name, values in self.state.items()}
        for name, average in (statistics or {}).items():
            state[name]["average"] = average
        with _intercepted(statistics is None):
            outputs, after = self.transformed.apply(params, state, *keys.values(), inputs, **self.arguments)
        if not self.averages:
            return widened(outputs), None
        return widened(outputs), {name: after[name]["average"] for name in self.averages}

    def chosen(self, adapt: object) -> tuple[str, ...] | None:
        """Return the paths of the parameters that a predicate (module_name, name, value) means."""
        if not callable(adapt) or isinstance(adapt, type):
            return None
        try:
            required = [p for p in inspect.signature(adapt).parameters.values() if p.default is p.empty]
        except (TypeError, ValueError):
            return None
        if len(required) != 3:
            return None
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return tuple(path for path, leaf in shapes.items() if adapt(*path.rpartition("/")[::2], leaf))


def held(model: object, given: tuple, example: Tree) -> HaikuFunction:
    """Return a transformed Haiku function as a model.

    Args:
        model: What `hk.transform` or `hk.transform_with_state` returned.
        given: Its parameters and its state, or nothing.
        example: One row of inputs.

    Returns:
        The model.

    Raises:
        ConfigError: If it is neither, or has no parameters.
    """
    import haiku as hk

    if not isinstance(model, (hk.Transformed, hk.TransformedWithState)):
        raise ConfigError(
            "model: expected what hk.transform or hk.transform_with_state returns, got a "
            f"{type(model).__name__}."
        )
    stateful = isinstance(model, hk.TransformedWithState)
    name = _name(model)
    arguments = switches(model.apply)
    averages: dict[str, None] = {}

    def initial(key: Array) -> tuple[Tree, Tree]:
        with _intercepted(True, averages):
            found = model.init(key, example, **arguments)
        return found if stateful else (found, {})  # type: ignore[return-value]

    params, state = jax.eval_shape(initial, jax.random.key(0))
    leaves = Leaves.of(given[0] if given else params, f"model: {name}")
    if len(given) > 1:
        state = given[1]
    elif state or any(leaf is not None for leaf in leaves.constants):  # constants need their values
        params, state = jax.jit(initial)(jax.random.key(0))
        leaves = Leaves.of(given[0] if given else params, f"model: {name}")
    start = leaves.select(given[0]) if given else None
    found = HaikuFunction(model, stateful, example, leaves, start, dict(state), tuple(averages), arguments)
    if _random(found):
        warn_of_dropout(name)
    return found


def _intercepted(by_batch: bool, averages: dict[str, None] | None = None) -> Any:
    """A context in which layers of batch normalisation use the batch's statistics or given ones.

    Args:
        by_batch: Whether they use the batch's.
        averages: Collects the names of their moving averages.
    """
    import haiku as hk

    def intercept(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        if not isinstance(module, hk.BatchNorm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        for average in (module.mean_ema, module.var_ema):
            average.decay = 0.0  # modules are made anew in each call
            if averages is not None:
                averages[average.module_name] = None
        bound = inspect.signature(context.orig_method).bind(*args, **kwargs).arguments
        return call(**{**bound, "is_training": by_batch})

    return hk.intercept_methods(intercept)


def _random(model: HaikuFunction) -> bool:
    """Whether the function would use a random key in training."""
    names = inspect.signature(model.transformed.apply).parameters
    training = {argument: not value for argument, value in model.arguments.items()}
    if "rng" not in names or not training:
        return False
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    states = (model.state,) if model.stateful else ()

    def call(parameters: dict[str, Array], key: Array) -> Tree:
        return model.transformed.apply(model.leaves.join(parameters), *states, key, model.example, **training)

    program = jax.make_jaxpr(call)(shapes, jax.random.key(0)).jaxpr
    return any(program.invars[-1] is variable for step in program.eqns for variable in step.invars)


def _name(transformed: Any) -> str:
    function = getattr(transformed.init, "_original_fn", None)
    return getattr(function, "__name__", "Haiku function")
