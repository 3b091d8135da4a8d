"""Tasks that are one character each, a few of its drawings shrunk to rows of pixels; sheets of such rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from ..fewshot.domain import FewShot
from ..fewshot.episodes import Indices

SOURCES = ("characters", "omniglot")
SIDES = (7, 14, 28)  # what 28 pixels are averaged to


class Character(NamedTuple):
    """Drawings of a character and of others, an episode of few-shot learning; a key for what is random."""

    episode: Indices
    key: Array


def draw(drawings: FewShot, key: Array, split: str) -> Character:
    """One random character of a split."""
    episode, rest = jax.random.split(key)
    return Character(drawings.draw(episode, split), rest)


def shrunk(images: Array, side: int) -> Array:
    """Images (n, 28, 28, 1) averaged to (n, side^2)."""
    parts = 28 // side
    return images.reshape(-1, side, parts, side, parts).mean((2, 4)).reshape(-1, side**2)


def rows_of(drawings: Any, side: int) -> Any:
    """Return drawings as rows of pixels.

    Args:
        drawings: ``(n, 28, 28)`` or ``(n, side, side)``, with or without an axis of one channel; anything
            else is returned as it is.
        side: Pixels a side.

    Returns:
        Rows ``(n, side^2)``.
    """
    try:
        array = np.asarray(drawings)
    except ValueError:  # drawings of different shapes
        return drawings
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.shape[1:] == (side, side):
        return array.reshape(-1, side**2)
    return np.asarray(shrunk(array, side)) if array.shape[1:] == (28, 28) else array


def sheet(drawings: Array, side: int, columns: int = 4) -> np.ndarray:
    """Drawings (n, side^2) side by side on one sheet, at most columns^2 of them."""
    shown = np.asarray(drawings)[: columns**2]
    rows = -(-len(shown) // columns)
    filled = np.zeros((rows * columns, side, side))
    filled[: len(shown)] = np.clip(shown, 0, 1).reshape(-1, side, side)
    return filled.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
