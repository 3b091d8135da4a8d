"""Models of a user's own, by reference: a recipe holds a name, this process the object."""

from __future__ import annotations

import hashlib
import inspect
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError
from ...core.fields import Checked
from ...core.recipes import recipe
from ...core.tree import Tree
from .leaves import Leaves, widened

_HELD: dict[str, Held] = {}


class Held(Protocol):
    """A model as pure functions; what the adapters of this package make of a user's model."""

    @property
    def name(self) -> str:
        """What messages call the model."""
        ...

    @property
    def normalises(self) -> bool:
        """Whether outputs for a row depend on the batch's statistics."""
        ...

    @property
    def identity(self) -> tuple:
        """What the model is made of, hashable: two of one class with equal identities are the same model."""
        ...

    @property
    def fixed(self) -> Tree:
        """What is not a parameter, arrays and others."""
        ...

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

    def chosen(self, adapt: object) -> tuple[str, ...] | None:
        """Return the paths of the parameters that a filter of the model's library means.

        Args:
            adapt: What the user passed.

        Returns:
            Their paths; None if it is not a filter of the library's own.
        """
        ...


@recipe("network", fresh={"name": "model", "token": "", "signature": ""})
@dataclass(frozen=True)
class OwnModel(Checked):
    """A model that the user brought, by its name; the process holds the object itself.

    Args:
        name: What messages call it, such as "my_models.py:Net".
        token: Which object it is; two models of one name have different tokens.
        signature: A digest of the names and shapes of its parameters, and of constant arrays of whole
            numbers or booleans, such as a permutation.

    Raises:
        ConfigError: If a field is not valid.
    """

    owner: ClassVar[str] = "model"
    of_user: ClassVar[bool] = True  # see core.recipes.text_of

    name: str
    token: str
    signature: str

    @property
    def held(self) -> Held:
        """The object; ConfigError if this process has none of that token."""
        if self.token not in _HELD:
            place = self.name if ":" in self.name else "FILE.py:NAME"
            raise ConfigError(
                f"model: expected the user's model {self.name!r}, which this process does not "
                f"have. Hint: pass it, as in imaml.load(path, model=...), or on the command line "
                f"--model {place}."
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


def hold(held: Held, token: str | None = None, place: str = "") -> OwnModel:
    """Keep a model in this process, and return the recipe that refers to it.

    Args:
        held: The model.
        token: The token of a recipe that was loaded, to be found again under it. By default that of an equal
            model, so that passing a model twice compiles once, or a new one.
        place: Where it was imported from, its name in messages and saved runs; by default its own name.

    Returns:
        The recipe.
    """
    shapes = jax.eval_shape(held.init, jax.random.key(0))
    parts = sorted((path, leaf.shape, str(leaf.dtype)) for path, leaf in shapes.items())
    said = repr(parts).encode() + b"".join(map(_bytes, jax.tree.leaves(held.fixed)))
    signature = hashlib.sha256(said).hexdigest()[:16]
    if token is None:
        equal = (known for known, other in _HELD.items() if _key(other) == _key(held))
        token = next(equal, f"{held.name}#{uuid.uuid4().hex[:12]}")
    _HELD[token] = held
    return OwnModel(place or held.name, token, signature)


def _bytes(leaf: object) -> bytes:
    """A constant as bytes, if other values make another model: no counters, no random keys."""
    kinds = (np.integer, np.bool_)
    if not isinstance(leaf, np.ndarray | Array) or not leaf.ndim:
        return b""
    if not any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds):
        return b""
    return repr((leaf.shape, str(leaf.dtype))).encode() + np.asarray(leaf).tobytes()


def _key(held: Held) -> tuple:
    return type(held), held.identity


@dataclass(frozen=True, eq=False)
class Functions:
    """A model as two functions; `functions` makes it.

    Attributes:
        initial: ``key -> parameters``, a pytree. Leaves that are not float arrays are constants.
        apply: ``(parameters, inputs) -> outputs``.
        leaves: The parts of the pytree.
        name: What messages call it.
    """

    initial: Callable[[Array], Tree]
    apply: Callable[[Tree, Tree], Array]
    leaves: Leaves
    name: str

    @property
    def fixed(self) -> Tree:
        """What is not a parameter."""
        return self.leaves.constants

    @property
    def normalises(self) -> bool:
        """False, as there are no statistics."""
        return False

    @property
    def identity(self) -> tuple:
        """The two functions."""
        return self.initial, self.apply

    def init(self, key: Array) -> dict[str, Array]:
        """Return fresh parameters by path."""
        return self.leaves.select(self.initial(key))

    def forward(
        self, parameters: dict[str, Array], inputs: Tree, statistics: Tree = None
    ) -> tuple[Array, Tree]:
        """Return the outputs; there are no statistics."""
        return widened(self.apply(self.leaves.join(parameters), inputs)), None

    def chosen(self, adapt: object) -> None:
        """Return None: functions have no filters of their own."""


def functions(initial: Callable[[Array], Tree], apply: Callable[[Tree, Tree], Array], name: str) -> Functions:
    """Return a model of two functions.

    Args:
        initial: ``key -> parameters``, a pytree. Leaves that are not float arrays (whole numbers, flags,
            keys, texts, functions) are constants, those of ``initial(jax.random.key(0))``.
        apply: ``(parameters, inputs) -> outputs``.
        name: What messages call it.

    Returns:
        The model.

    Raises:
        ConfigError: If `initial` takes more than a key, or returns no float arrays.
    """
    required = [one for one in inspect.signature(initial).parameters.values() if one.default is one.empty]
    if len([one for one in required if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]) != 1:
        raise ConfigError(
            f"model: {name}: expected init(key) with one argument, got init{inspect.signature(initial)}. "
            "Hint: bind the others, as in lambda key: init(key, shape)."
        )
    return Functions(initial, apply, Leaves.of(initial(jax.random.key(0)), f"model: {name}"), name)
