"""What a user brings as a model, as a network."""

from __future__ import annotations

from ...core.errors import ConfigError
from ...core.tree import Tree
from ..networks import Network
from .own import Functions, hold


def as_network(model: object, example: Tree) -> Network:
    """Return a user's model as a network.

    Args:
        model: A network (an object with `init` and `forward`), or two functions ``(init, apply)``.
        example: One blank row of inputs, leaves ``(1, ...)``.

    Returns:
        The network.

    Raises:
        ConfigError: If it is none of these.
    """
    if hasattr(model, "init") and hasattr(model, "forward"):
        return model  # type: ignore[return-value]
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return hold(Functions(*model), getattr(model[1], "__name__", "model"))
    raise ConfigError(
        f"model: expected imaml.MLP, imaml.Conv4, functions (init, apply), or a module of Equinox, Flax or Haiku, "
        f"got a {type(model).__name__}."
    )
