"""Tasks that are one character each, a few of its drawings shrunk to rows of pixels; sheets of such rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
    """Return the indices of one random character.

    Args:
        drawings: The few-shot domain that it is of.
        key: A random key.
        split: Which split.

    Returns:
        The character.
    """
    episode, rest = jax.random.split(key)
    return Character(drawings.draw(episode, split), rest)


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
    return np.asarray(shrunk(jnp.asarray(array), side)) if array.shape[1:] == (28, 28) else array


def sheet(drawings: Array, side: int, columns: int = 4) -> np.ndarray:
    """Return drawings side by side on one sheet.

    Args:
        drawings: ``(n, side^2)``.
        side: Pixels a side.
        columns: Drawings in a row; at most ``columns^2`` are shown.

    Returns:
        An image.
    """
    shown = np.asarray(drawings)[: columns**2]
    rows = -(-len(shown) // columns)
    filled = np.zeros((rows * columns, side, side))
    filled[: len(shown)] = np.clip(shown, 0, 1).reshape(-1, side, side)
    return filled.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
