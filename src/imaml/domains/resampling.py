"""Images read between their pixels; and drawings moved and scaled to one place and size.

Two people draw one character at two places and in two sizes. Neither tells the classes of Omniglot apart as
well as it sets drawings of one class apart, so a network that sees aligned drawings has less to learn.

aligned(images)     # the same characters, all in the middle and about as large
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

# The root mean square distance of an aligned drawing's ink from its middle, along an axis, in half sides. A
# straight stroke then has 0.98 of the side.
RADIUS = 0.4
LEAST, MOST = 0.4, 1.5  # how much of the old side the new one shows: a dot is still a dot


def axis(side: int) -> Array:
    """Return the positions of pixels along a side, from the middle, in units of half the side.

    Args:
        side: Pixels of the side.

    Returns:
        float32 ``(side,)``.
    """
    return (jnp.arange(side, dtype=jnp.float32) - (side - 1) / 2) / (side / 2)


def positions(side: int) -> Array:
    """Return the positions of the pixels of an image, in rows: (down, across), in units of half the side.

    Args:
        side: Pixels of the side.

    Returns:
        float32 ``(2, side * side)``.
    """
    down, across = jnp.meshgrid(axis(side), axis(side), indexing="ij")
    return jnp.stack([down.ravel(), across.ravel()])


def resampled(images: Array, places: Array) -> Array:
    """Return images read at other positions, bilinearly; 0 comes in from outside.

    Args:
        images: ``(n, side, side, channels)``.
        places: For each pixel of the results where it comes from, as `positions` numbers them,
            ``(n, 2, side * side)``.

    Returns:
        Images of the same shape.
    """
    number, side, _, _ = images.shape
    source = (places * (side / 2) + (side - 1) / 2).reshape(number, 2, side, side)
    read = lambda image, at: map_coordinates(image, [*at], order=1, mode="constant")  # noqa: E731
    return jax.vmap(jax.vmap(read, (2, None), 2))(images, source)


def aligned(images: Array, detail: int = 1) -> Array:
    """Return drawings with their ink's centre in the middle and its spread along both axes one number.

    Centre and spread are the mean and the root mean square distance of the values as masses. Both axes are
    scaled alike, and by a factor within limits.

    Args:
        images: ``(n, side, side, channels)``, not negative, bright on a dark ground.
        detail: The factor by which the results are averaged down, a divisor of the side. Each pixel is the
            mean of ``detail`` x ``detail``, which avoids aliasing.

    Returns:
        Images ``(n, side // detail, side // detail, channels)`` of the same dtype.
    """
    number, side = images.shape[:2]
    line = axis(side)
    ink = images.astype(jnp.float32).sum(3)
    rows, columns = ink.sum(2), ink.sum(1)
    # what the mean of an empty image would be divided by is no mass, so it stays empty
    mass = jnp.maximum(rows.sum(1), 1e-6)
    centre = jnp.stack([rows @ line, columns @ line], axis=1) / mass[:, None]
    square = (rows + columns) @ line**2 / mass - jnp.square(centre).sum(1)
    shown = jnp.clip(jnp.sqrt(jnp.maximum(square, 0) / 2) / RADIUS, LEAST, MOST)
    places = shown[:, None, None] * jnp.broadcast_to(positions(side), (number, 2, side * side))
    new = resampled(images, places + centre[:, :, None])
    small = side // detail
    return new.reshape(number, small, detail, small, detail, -1).mean((2, 4)).astype(images.dtype)
