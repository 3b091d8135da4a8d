"""Tasks that are one character each, with drawings shrunk to rows of pixels: the base of two domains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import DataError
from ...core.fields import PositiveInt
from ...core.tree import Tree
from ..base import DomainBase, Encoded
from ..fewshot.domain import FewShot, FewShotRecipe
from ..fewshot.episodes import Indices
from ..fewshot.interface import ROUNDING
from ..recipes import ReadsData

Source = Literal["characters", "omniglot"]
Side = Literal[7, 14, 28]  # what 28 pixels are averaged to


class Character(NamedTuple):
    """The indices of a task: drawings of characters, an episode of few-shot learning, and a key."""

    episode: Indices
    key: Array


class CharactersRecipe(ReadsData):
    """The base of recipes whose tasks are characters; a subclass has the fields below.

    Attributes:
        source: Procedural "characters", or "omniglot".
        shots: Drawings of a support set.
        queries: Drawings of a query set.
        side: Pixels of a drawing's side.
    """

    source: Source
    shots: PositiveInt
    queries: PositiveInt
    side: Side

    def drawings(self, ways: int) -> FewShot:
        """Return the few-shot domain that drawings are taken from.

        Args:
            ways: How many characters an episode has.

        Returns:
            The domain, with its data read.
        """
        return FewShotRecipe(self.source, ways, self.shots, self.queries, data=self.data).build()


class CharactersDomain(DomainBase):
    """The base of domains whose tasks are characters.

    Attributes:
        drawings: The few-shot domain that drawings are taken from.
    """

    drawings: FewShot
    recipe: CharactersRecipe

    def draw(self, key: Array, split: str) -> Character:
        """Return the indices of one random character."""
        episode, rest = jax.random.split(key)
        return Character(self.drawings.draw(episode, split), rest)

    def encode(self, x: Tree, y: object = None) -> Encoded:
        """Return drawings as a batch.

        Args:
            x: Drawings ``(n, side, side)``, ``(n, 28, 28)`` or ``(n, side^2)``, 1 = ink; or a sampled support
                batch; or a mapping to its arrays.
            y: The batch's second array; by default drawn at random.

        Returns:
            The batch.
        """
        named = hasattr(x, "_fields") or isinstance(x, Mapping)
        return super().encode(x if named else rows_of(x, self.recipe.side), y)

    def decode(self, outputs: np.ndarray, x: Tree) -> np.ndarray:
        """Return drawings ``(n, side, side)``."""
        return outputs.reshape(-1, self.recipe.side, self.recipe.side)


def shrunk(images: Array, side: int) -> Array:
    """Return images averaged to fewer pixels.

    Args:
        images: ``(n, 28, 28, 1)``.
        side: Pixels a side, a divisor of 28.

    Returns:
        Rows ``(n, side^2)``.
    """
    parts = 28 // side
    return images.reshape(-1, side, parts, side, parts).mean((2, 4)).reshape(-1, side**2)


def rows_of(drawings: Tree, side: int, beyond: float = 0.0) -> Tree:
    """Return drawings as rows of pixels.

    Args:
        drawings: ``(n, 28, 28)`` or ``(n, side, side)``, with or without an axis of one channel; anything
            else is returned as it is.
        side: Pixels a side.
        beyond: How far values may lie outside [0, 1], as those of drawings with noise on them.

    Returns:
        Rows ``(n, side^2)``.

    Raises:
        DataError: If values lie farther outside, as those of 8-bit images do. NaN is not looked at.
    """
    try:
        array = np.asarray(drawings)
    except ValueError:  # drawings of different shapes
        return drawings
    if array.dtype.kind in "iuf" and array.size:
        low, high = np.nanmin(array, initial=0), np.nanmax(array, initial=0)
        rounding = max(ROUNDING, 4 * float(np.finfo(array.dtype).eps)) if array.dtype.kind == "f" else 0
        whole = array.dtype.kind != "f" and high > 1  # noise has fractions
        if whole or low < -beyond - rounding or high > 1 + beyond + rounding:
            raise DataError(
                f"x: expected drawings in [0, 1], 1 = ink, got {array.dtype} from {low!s} to {high!s}. Hint: "
                "divide 8-bit images by 255, and invert dark ink on light paper, 1 - x / 255."
            )
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.shape[1:] == (side, side):
        return array.reshape(-1, side**2)
    return np.asarray(shrunk(jnp.asarray(array), side)) if array.shape[1:] == (28, 28) else array


def sheet(drawings: Array, side: int) -> np.ndarray:
    """Return the first 16 drawings as one image, four in a row.

    Args:
        drawings: ``(n, side^2)``.
        side: Pixels a side.

    Returns:
        An image.
    """
    shown = np.clip(np.asarray(drawings, np.float64)[:16], 0, 1)
    filled = np.pad(shown, ((0, -len(shown) % 4), (0, 0))).reshape(-1, 4, side, side)
    return filled.swapaxes(1, 2).reshape(-1, 4 * side)
