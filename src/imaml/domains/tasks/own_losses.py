"""Losses that a user brought, and the loss that a name or a function means."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError, ImamlError
from ...core.recipes import recipe
from ...core.tree import Tree
from ...core.validation import not_one_of
from ...problems.likelihoods import Density, by_row
from ..models.imported import unwrapped
from .counts import NegativeBinomial, Poisson
from .layout import Rows
from .losses import Binary, CrossEntropy, Ordinal, RowLoss, Squared


class Own(RowLoss):
    """The base of losses that a user brought. A recipe holds a name, this process the object.

    Attributes:
        name: What messages call it.
        token: Which object it is; two of one name have different tokens.
    """

    kind: ClassVar[str] = "own"
    of_user: ClassVar[bool] = True  # see core.recipes.text_of

    name: str
    token: str

    @property
    def held(self) -> Density | Callable[[Array, Array], Array]:
        """The object; ConfigError if this process has none of that token."""
        if self.token not in _HELD:
            place = self.name if ":" in self.name else "FILE.py:NAME"
            raise ConfigError(
                f"loss: expected the user's loss {self.name!r}, which this process does not "
                f"have. Hint: pass it, as in imaml.load(path, loss=...), or on the command line "
                f"--loss {place}."
            )
        return _HELD[self.token]


@recipe("loss", fresh={"name": "loss", "token": "loss#0"})
@dataclass(frozen=True)
class OwnLoss(Own):
    """A function of the user's own, ``(outputs, targets) -> (n,)``; made by `hold_loss`.

    Args:
        name: What messages call it.
        token: Which function it is.
    """

    name: str
    token: str

    def outputs(self, outputs: Array) -> Array:
        """Return the outputs, one number for each row as a column, as targets are."""
        return outputs[:, None] if outputs.ndim == 1 else outputs

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return what the function returns; ConfigError if that is not one number for each row."""
        wanted = "(outputs, targets) -> one number for each row"
        found = _called(wanted, self.held, outputs, batch.targets)  # type: ignore[arg-type]
        rows = batch.weights.shape
        if getattr(found, "shape", None) != rows or not jnp.issubdtype(found.dtype, jnp.floating):
            raise ConfigError(
                "loss: expected a function (outputs, targets) that returns one real number for each row, "
                f"shape {rows}, got {_what(found)}. Hint: sum over columns, axis=1, and leave the mean over "
                "rows to imaml."
            )
        return found


@recipe("loss", fresh={"name": "density", "token": "density#0"})
@dataclass(frozen=True)
class OwnDensity(Own):
    """A log density of the user's own; made by `hold_loss` of an `imaml.Density`.

    Args:
        name: What messages call it.
        token: Which density it is.
    """

    name: str
    token: str

    @property
    def likelihood(self) -> Density:
        """The density."""
        assert isinstance(self.held, Density)
        return self.held

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the negative log density of each row; ConfigError if it is not a scalar for a row."""
        density = jax.vmap(self.likelihood.log_density)
        found = _called("(outputs, target) -> log density of one row", density, outputs, batch.targets)
        if getattr(found, "shape", None) != batch.weights.shape:
            one = jax.tree.map(lambda leaf: leaf[0], found)
            raise ConfigError(
                f"loss: expected a log density that returns one number for one row, got {_what(one)}."
            )
        return -found

    def mean(self, outputs: np.ndarray) -> np.ndarray:
        """Return the expected targets; the outputs if the density does not say."""
        if self.likelihood.mean is None:
            return outputs
        return np.asarray(by_row(jax.vmap(self.likelihood.mean)(jnp.asarray(outputs))))

    def draw(self, key: Array, outputs: Array) -> Array:
        """Draw targets; ConfigError if the density does not say how."""
        if self.likelihood.draw is None:
            raise ConfigError(
                "predict_interval: expected a density that draws targets, got one without. Hint: pass "
                "imaml.Density(log_density, mean=..., draw=...)."
            )
        drawn = jax.vmap(self.likelihood.draw)(jax.random.split(key, len(outputs)), outputs)
        return by_row(drawn)[:, 0]


_HELD: dict[str, Density | Callable[[Array, Array], Array]] = {}


def hold_loss(
    loss: Density | Callable[[Array, Array], Array], token: str | None = None, place: str = ""
) -> Own:
    """Keep a loss in this process, and return the recipe that refers to it.

    Args:
        loss: A log density, or a function ``(outputs, targets) -> (n,)``.
        token: The token of a recipe that was loaded, to be found again under it; by default a new one.
        place: Where it was imported from, its name in messages and saved runs; by default its own name.

    Returns:
        The recipe.
    """
    function = loss.log_density if isinstance(loss, Density) else loss
    name = place or getattr(function, "__name__", type(function).__name__)
    if token is None:
        token = next(
            (known for known, held in _HELD.items() if held is loss), f"{name}#{uuid.uuid4().hex[:12]}"
        )
    _HELD[token] = loss
    return OwnDensity(name, token) if isinstance(loss, Density) else OwnLoss(name, token)


def _called(wanted: str, function: Callable[..., Tree], *arguments: Array) -> Tree:
    """What a user's function returns; ConfigError if it fails."""
    try:
        return function(*arguments)
    except ImamlError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"loss: expected a function {wanted}, of JAX arrays, got an error "
            f"({type(error).__name__}: {lines[0] if lines else ''})."
        ) from error


def _what(found: Tree) -> str:
    if hasattr(found, "shape") and hasattr(found, "dtype"):
        return f"shape {found.shape} of {found.dtype}"
    return "None" if found is None else f"a {type(found).__name__}"


NAMED: dict[str, type[RowLoss]] = {
    kind.kind: kind for kind in (Squared, CrossEntropy, Binary, Ordinal, Poisson, NegativeBinomial)
}


def loss_of(loss: str | RowLoss | Density | Callable[[Array, Array], Array]) -> RowLoss:
    """Return the loss that a user means.

    Args:
        loss: A name, a loss, an `imaml.Density`, or a function ``(outputs, targets) -> (n,)``.

    Returns:
        The loss.

    Raises:
        ConfigError: If it is none of these.

    Example:
        >>> loss_of("poisson").outputs_for(1), loss_of("negative_binomial").outputs_for(1)
        (1, 2)
    """
    loss, place = unwrapped(loss)  # type: ignore[assignment]
    if isinstance(loss, RowLoss):
        return loss
    if isinstance(loss, Density) or (callable(loss) and not isinstance(loss, type)):
        return hold_loss(loss, place=place)
    if not isinstance(loss, str) or loss not in NAMED:
        raise ConfigError(not_one_of("fit: loss", loss, NAMED))
    return NAMED[loss]()
