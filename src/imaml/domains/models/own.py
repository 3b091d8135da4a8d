"""Models of a user's own, by reference: a recipe holds a name, this process the object."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from ...core.errors import ConfigError
from ...core.fields import Checked
from ...core.recipes import recipe
from ...core.tree import Tree, name

_HELD: dict[str, Held] = {}


class Held(Protocol):
    """A model as pure functions; what the adapters of this package make of a user's model."""

    normalises: bool  # whether outputs for a row depend on the batch's statistics

    def init(self, key: Array) -> dict[str, Array]:
        """Return fresh parameters, float arrays by path.

        Args:
            key: A random key.

        Returns:
            For example ``{"layers/0/weight": ...}``.
        """
        ...

    def forward(
        self, parameters: dict[str, Array], inputs: Tree, statistics: Tree = None
    ) -> tuple[Array, Tree]:
        """Return outputs, and the statistics that they were computed with; see `imaml.domains.networks`.

        Args:
            parameters: As `init` returns them.
            inputs: A tree of arrays ``(n, ...)``.
            statistics: None to normalise by the batch's own statistics, or what an earlier call returned.

        Returns:
            Outputs ``(n, ...)``, and the statistics, a tree.
        """
        ...


@recipe("network")
@dataclass(frozen=True)
class OwnModel(Checked):
    """A model that the user brought, by its name; the process holds the object itself.

    Args:
        name: What messages call it, such as "my_models.py:Net".
        token: Which object it is; two models of one name have different tokens.
        signature: A digest of the names and shapes of its parameters.

    Raises:
        ConfigError: If a field is not valid.
    """

    owner: ClassVar[str] = "model"

    name: str
    token: str
    signature: str

    @property
    def held(self) -> Held:
        """The object; ConfigError if this process has none of that token."""
        if self.token not in _HELD:
            raise ConfigError(
                f"model: expected the model {self.name!r}, which was brought by a user and is not in this process. "
                "Hint: pass it, as in imaml.load(path, model=...), or on the command line --model FILE.py:NAME."
            )
        return _HELD[self.token]

    @property
    def normalises(self) -> bool:
        """Whether outputs for a row depend on the batch's statistics."""
        return self.held.normalises

    def init(self, key: Array) -> dict[str, Array]:
        """Return fresh parameters, by path; see `Held.init`.

        Args:
            key: A random key.

        Returns:
            Float arrays by path.
        """
        return self.held.init(key)

    def forward(
        self, parameters: dict[str, Array], inputs: Tree, statistics: Tree = None
    ) -> tuple[Array, Tree]:
        """Return outputs and statistics; see `Held.forward`.

        Args:
            parameters: As `init` returns them.
            inputs: A tree of arrays ``(n, ...)``.
            statistics: None, or what an earlier call returned.

        Returns:
            Outputs ``(n, ...)``, and the statistics.
        """
        return self.held.forward(parameters, inputs, statistics)


def hold(held: Held, name: str, token: str | None = None) -> OwnModel:
    """Keep a model in this process, and return the recipe that refers to it.

    Args:
        held: The model.
        name: What messages call it.
        token: The token of a recipe that was loaded, to be found again under it; by default a new one.

    Returns:
        The recipe.

    Raises:
        ConfigError: If its parameters are not float arrays.
    """
    shapes = jax.eval_shape(held.init, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ConfigError(f"model: {path}: expected parameters that are floats, got {leaf.dtype}.")
    parts = sorted((path, leaf.shape, str(leaf.dtype)) for path, leaf in shapes.items())
    signature = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    if token is None:
        token = next((known for known, other in _HELD.items() if other is held), f"{name}#{len(_HELD)}")
    _HELD[token] = held
    return OwnModel(name, token, signature)


@dataclass(frozen=True, eq=False)
class Functions:
    """A model as two functions.

    Args:
        initial: ``key -> parameters``, a pytree.
        apply: ``(parameters, inputs) -> outputs``.
        normalises: Whether outputs for a row depend on the batch.
    """

    initial: Callable[[Array], Tree]
    apply: Callable[[Tree, Tree], Array]
    normalises: bool = False

    def init(self, key: Array) -> dict[str, Array]:
        """Return fresh parameters by path; see `Held.init`.

        Args:
            key: A random key.

        Returns:
            Float arrays by path.
        """
        return by_path(self.initial(key), "model: init(key)")

    def forward(
        self, parameters: dict[str, Array], inputs: Tree, statistics: Tree = None
    ) -> tuple[Array, Tree]:
        """Return the outputs; there are no statistics.

        Args:
            parameters: As `init` returns them.
            inputs: A tree of arrays ``(n, ...)``.
            statistics: None.

        Returns:
            Outputs, and None.
        """
        like = jax.eval_shape(self.initial, jax.random.key(0))
        leaves = [parameters[path] for path in paths_of(like)]
        return self.apply(jax.tree.unflatten(jax.tree.structure(like), leaves), inputs), None


def paths_of(tree: Tree) -> list[str]:
    """Return the paths of a tree's leaves, in their order.

    Args:
        tree: The tree.

    Returns:
        For example "layers/0/weight"; "value" of a tree that is one leaf.
    """
    return [name(path) or "value" for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def by_path(tree: Tree, what: str) -> dict[str, Array]:
    """Return a tree's leaves by path.

    Args:
        tree: A tree of float arrays.
        what: What messages call it.

    Returns:
        The arrays by path.

    Raises:
        ConfigError: If a leaf is no float array.
    """
    found = {}
    for path, leaf in zip(paths_of(tree), jax.tree.leaves(tree), strict=True):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            got = str(leaf.dtype) if hasattr(leaf, "dtype") else f"a {type(leaf).__name__}"
            raise ConfigError(
                f"{what}: {path}: expected float arrays, got {got}. Hint: keep whole numbers, flags and "
                "functions out of the parameters."
            )
        found[path] = jnp.asarray(leaf)
    return found
