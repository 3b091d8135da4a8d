"""What an episode of few-shot classification is made of: batches, indices, symmetries, losses."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from . import distortion


class Labelled(NamedTuple):
    """Images with labels.

    Attributes:
        images: float32 ``(n, side, side, channels)`` in [0, 1], 1 = ink.
        labels: int32 ``(n,)``, the class's number in the task.
        reference: For a query batch the support images that inductive normalisation refers to; else None.
        classes: int32 ``(n,)``, the class's number in the domain; None for images that come from none.
        targets: float32 ``(n, ways)``, the labels as unit vectors, where a task may have any number of
            classes; else None.
    """

    images: Array
    labels: Array
    reference: Array | None = None
    classes: Array | None = None
    targets: Array | None = None


class Indices(NamedTuple):
    """The indices of one episode, int32.

    Attributes:
        classes: ``(ways,)``.
        examples: ``(ways, shots + queries)``.
        turns: ``(ways,)``, quarter turns anticlockwise, 0 to 3; 4 to 7 are 0 to 3 after a mirroring top to
            bottom.
        maps: Distortions ``(ways, shots + queries, ...)``, or None for images as they are.
    """

    classes: Array
    examples: Array
    turns: Array
    maps: distortion.Maps | None = None


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Return the mean negative log-likelihood.

    Args:
        logits: ``(n, ways)``.
        labels: Integers ``(n,)``.

    Returns:
        A scalar.
    """
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def accuracy(logits: Array, labels: Array) -> Array:
    """Return the share of rows whose largest logit is the label's.

    Args:
        logits: ``(n, ways)``.
        labels: Integers ``(n,)``.

    Returns:
        A scalar.
    """
    return jnp.mean((jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))


BINS = 15  # of confidence, as in Guo et al. 2017


def confidences(logits: Array, labels: Array) -> Array:
    """Return what calibration errors are made of.

    Confidence is the largest probability; bins are equally wide.

    Args:
        logits: ``(n, ways)``.
        labels: Integers ``(n,)``.

    Returns:
        By bin of confidence: rows, the sum of their confidences, and how many are right; ``(bins, 3)``.

    References:
        Guo et al. (2017), equation 3.
    """
    probabilities = jax.nn.softmax(logits)
    sure = probabilities.max(axis=1)
    right = (jnp.argmax(logits, axis=1) == labels).astype(sure.dtype)
    bins = jnp.minimum((sure * BINS).astype(jnp.int32), BINS - 1)
    parts = jnp.stack([jnp.ones_like(sure), sure, right], axis=1)
    return jnp.zeros((BINS, 3), sure.dtype).at[bins].add(parts)


def distinct(key: Array, number: int | Array, wanted: int) -> Array:
    """Return distinct whole numbers below another, uniform. No work grows with that number.

    The i-th is drawn from those left, `number - i`, and then moved past the ones taken before it.

    Args:
        key: A random key.
        number: Above all numbers.
        wanted: How many.

    Returns:
        int32 ``(wanted,)``.
    """
    order = jnp.arange(wanted, dtype=jnp.int32)

    def draw(taken: Array, turn: tuple[Array, Array]) -> tuple[Array, None]:
        i, one = turn
        rank = jax.random.randint(one, (), 0, number - i, jnp.int32)
        value = rank + jnp.sum(rank >= jnp.sort(taken) - order, dtype=jnp.int32)
        return taken.at[i].set(value), None

    # A loop, as a program of 200 draws one after another takes minutes to compile.
    none = jnp.full(wanted, number + wanted, jnp.int32)
    return jax.lax.scan(draw, none, (order, jax.random.split(key, wanted)))[0]


def then(turns: Array, last: Array) -> Array:
    """Return the one of the square's eight symmetries that is one and then another.

    Args:
        turns: The first, numbered as in `Indices`.
        last: The second.

    Returns:
        The symmetry, numbered likewise.
    """
    mirrored = (turns // 4 + last // 4) % 2
    quarters = jnp.where(last >= 4, -turns, turns) + last  # a mirroring turns quarter turns about
    return 4 * mirrored + quarters % 4


def turn(images: Array, turns: Array) -> Array:
    """Return images in another symmetry.

    Args:
        images: ``(n, side, side, channels)``.
        turns: The symmetry, numbered as in `Indices`.

    Returns:
        Images of the same shape.
    """
    images = jnp.where(turns >= 4, images[:, ::-1], images)
    turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)])
    return turned[turns % 4]
