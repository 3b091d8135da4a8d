"""Random smooth distortions of drawings: one for a task as a whole, and one for each of its drawings.

A task's distortion, shared by all of its images, shows its classes as another alphabet might have them; a
drawing's own is one more way to draw the same. None is shared by a class alone: by its slant a network could
then tell a class without reading it.

maps = draw(key, ways=5, each=6, amount=1.0)     # float32 (5, 6, 2, 3) and (5, 6, 2, 5)
images = warp(images, jax.tree.map(lambda m: m[0], maps))     # six drawings of the first class
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .. import resampling

# Standard deviations at amount 1: of a rotation (radians), of the logarithm of a stretch along each axis, and
# of a shear. Lengths are in units of half the side.
TASK_ROTATION, TASK_STRETCH, TASK_SHEAR, TASK_BEND = 0.2, 0.2, 0.25, 0.08
ROTATION, STRETCH, SHEAR, SHIFT = 0.1, 0.08, 0.1, 0.08


class Maps(NamedTuple):
    """Maps from points of a distorted image to points of the original; (down, across) from the middle.

    Attributes:
        drawing: A matrix and a shift, ``(..., 2, 3)``.
        shape: A matrix and the coefficients of down^2, down * across and across^2, ``(..., 2, 5)``, applied
            after it.
    """

    drawing: Array
    shape: Array


def draw(key: Array, ways: int, each: int, amount: float) -> Maps:
    """Return random maps.

    Args:
        key: A random key.
        ways: Classes.
        each: Images of each.
        amount: Scales all standard deviations; 0 gives the identity.

    Returns:
        Maps, float32 ``(ways, each, ...)``.
    """
    task_key, bend_key, drawing_key, shift_key = jax.random.split(key, 4)
    deviations = (amount * TASK_ROTATION, amount * TASK_STRETCH, amount * TASK_SHEAR)
    # the task's map, shared by its classes: a matrix, and bends by squares of coordinates
    matrices = _matrices(task_key, (), *deviations)
    bends = amount * TASK_BEND * jax.random.normal(bend_key, (2, 3), jnp.float32)
    shape = jnp.concatenate([matrices, bends], axis=-1)
    # each drawing's own: a matrix and a shift
    matrices = _matrices(drawing_key, (ways, each), amount * ROTATION, amount * STRETCH, amount * SHEAR)
    shifts = amount * SHIFT * jax.random.normal(shift_key, (ways, each, 2, 1), jnp.float32)
    drawing = jnp.concatenate([matrices, shifts], axis=-1)
    return Maps(drawing, jnp.broadcast_to(shape, (ways, each, 2, 5)))


def with_copies(images: Array, number: int) -> Array:
    """Return each image, followed by distorted copies of it.

    Each copy is by a map of a drawing, of amount 1. All images have the same maps, which are the same in
    every call, so that what is learned from the copies depends neither on chance nor on the images' order.

    Args:
        images: ``(n, side, side, channels)``.
        number: How many copies.

    Returns:
        ``(n * (1 + number), side, side, channels)``, of the dtype of ``images``.
    """
    if not number:
        return images
    keys = jax.random.split(jax.random.key(number), 2)
    matrices = _matrices(keys[0], (number,), ROTATION, STRETCH, SHEAR)
    shifts = SHIFT * jax.random.normal(keys[1], (number, 2, 1), jnp.float32)
    shape = jnp.broadcast_to(jnp.eye(2, 5, dtype=jnp.float32), (number, 2, 5))
    maps = Maps(jnp.concatenate([matrices, shifts], axis=-1), shape)
    distorted = jax.vmap(lambda image: warp(jnp.broadcast_to(image, (number, *image.shape)), maps))(images)
    distorted = distorted.astype(images.dtype)
    return jnp.concatenate([images[:, None], distorted], axis=1).reshape(-1, *images.shape[1:])


def warp(images: Array, maps: Maps) -> Array:
    """Return images distorted by maps, bilinearly; 0 comes in from outside.

    Args:
        images: ``(n, side, side, channels)``.
        maps: ``(n, ...)``.

    Returns:
        Images of the same shape.
    """
    # where each pixel of the result comes from
    side = images.shape[1]
    points = jnp.concatenate([resampling.positions(side), jnp.ones((1, side * side), jnp.float32)])
    points = jnp.einsum("nij,jp->nip", maps.drawing, points)
    squares = jnp.stack([points[:, 0] ** 2, points[:, 0] * points[:, 1], points[:, 1] ** 2], axis=1)
    points = jnp.einsum("nij,njp->nip", maps.shape, jnp.concatenate([points, squares], axis=1))
    return resampling.resampled(images, points)


def _matrices(key: Array, shape: tuple[int, ...], rotation: float, stretch: float, shear: float) -> Array:
    """A rotation after a shear and a stretch along each axis, (*shape, 2, 2)."""
    angle, down, across, slant = jnp.moveaxis(jax.random.normal(key, (*shape, 4), jnp.float32), -1, 0)
    angle, slant = rotation * angle, shear * slant
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([cos, -sin, sin, cos], -1).reshape(*shape, 2, 2)
    tall, wide = jnp.exp(stretch * down), jnp.exp(stretch * across)
    rest = jnp.stack([tall, slant, jnp.zeros_like(tall), wide], -1).reshape(*shape, 2, 2)
    return jnp.einsum("...ij,...jk->...ik", turn, rest)
