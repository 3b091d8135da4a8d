"""Procedural handwriting: endless characters, each drawn by endless hands, made where they are used.

A character is up to five strokes. A stroke is a chain of circular arcs (a line is an arc that does not
bend) taken from a small library of primitives: lines, hooks, corners, zigzags, bowls, loops, waves, dots.
Strokes hang together by relations: one starts, ends, crosses or lies beside another, joins two points of
others, or repeats the one before it, shifted or mirrored. One drawing of it bends this skeleton with a
smooth warp of the plane, shakes its vertices, slants, stretches, turns and shifts it, and inks it with a pen.

The idea of strokes from primitives, joined by relations, then varied by the hand, is that of Lake,
Salakhutdinov and Tenenbaum 2015 (Human-level concept learning through probabilistic program induction,
Science 350:1332-1338). No image or recording of theirs is in here, but a few dials (ink, size, how much
drawings vary) were set by hand so that these summary figures come near those of Omniglot's training
characters.

Everything is a pure function of counters: drawing `d` of character `c` is the same image whenever and
wherever it is made, up to float32 rounding. Do not use it as a test set: it is a training set that costs
nothing, and what it is worth shows on real handwriting.

    from imaml.domains.fewshot import strokes
    sheet = jax.jit(strokes.draws)(jnp.arange(5), jnp.tile(jnp.arange(20), (5, 1)))    # (5, 20, 28, 28)
"""

from importlib import resources
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

SIDE = 28  # pixels along each side of an image
GAIN = 1.6  # darkness of the ink, see `render`
STROKES, SEGMENTS, POINTS = 5, 5, 96  # most strokes a character, segments a stroke; pen positions an image
PROPOSALS = 3  # places tried for a stroke
SAMPLES = 13  # points along a stroke at which another may hang: ends, middle, thirds, quarters, sixths

# The library of primitives, one a row; the file says what its columns are.
_TABLE = resources.files("imaml.domains.fewshot").joinpath("primitives.txt")
_PRIMITIVES = np.loadtxt(_TABLE.read_text(encoding="utf-8").splitlines())

# Where a stroke sets off to, in degrees from rightwards towards downwards: a hand mostly goes down and right.
_HEADINGS = np.array([0, 0, 0, 0, 0, 90, 90, 90, 90, 90, 90, 50, 120, 135, 180, -60], np.float32)
# Beside what is written: to the right, left, below, above, within, below right.
_SIDES = np.array([(1, 0), (1, 0), (-1, 0), (0, 1), (0, 1), (0, -1), (0, 0), (1, 1)], np.float32)
# At which sample of an earlier stroke one hangs, and by which of its own.
_THERE = np.array([0, 0, 0, 3, 4, 6, 6, 6, 8, 9, 12, 12], np.int32)
_HERE = np.array([0, 0, 0, 0, 0, 3, 6, 6, 6, 9, 12, 12], np.int32)
_COUNTS = np.array([0.18, 0.55, 0.80, 0.93], np.float32)  # share with at most 1, 2, 3, 4 strokes
_BEND = np.float32(5.6)  # most that one arc may turn, radians: at a full turn its chord would be a point
_ONE, _MIRROR = np.array([1, 0], np.float32), np.array([1, -1], np.float32)  # complex: 1, conjugation


class Strokes(NamedTuple):
    """A skeleton, in pixels, its origin in the middle of the image.

    Attributes:
        vertices: ``(STROKES, SEGMENTS + 1, 2)``, as (x, y) with y downwards.
        bend: The angles in radians by which the arcs between vertices turn, ``(STROKES, SEGMENTS)``.
        number: How many of the arcs are there, ``(STROKES,)``.
    """

    vertices: Array
    bend: Array
    number: Array


def draw(character: Array, drawing: Array, seed: int = 0) -> Array:
    """Return one drawing of one character.

    For many images at once use `draws`, which makes the same ones in less time and memory.

    Args:
        character: The character, an int32 scalar, traced or not; any value names one.
        drawing: The drawing, likewise.
        seed: Names a world of other characters.

    Returns:
        Float32 ``(28, 28)`` in [0, 1], 1 = ink, row 0 at the top.

    Example:
        >>> jax.jit(draw)(7, 0).shape
        (28, 28)
    """
    key, hands = _keys(character, seed)
    return drawn_by(jax.random.fold_in(hands, drawing), character_strokes(key))


def draws(characters: Array, drawings: Array, seed: int = 0, chunk: int = 64) -> Array:
    """Return drawings of characters, each as `draw` makes it.

        images = jax.jit(draws)(jnp.arange(5), jnp.tile(jnp.arange(20), (5, 1)))    # (5, 20, 28, 28)

    Args:
        characters: The characters, int32 ``(...)``.
        drawings: The drawings of each, int32 ``(..., d)``.
        seed: Names a world of other characters.
        chunk: How many images to draw at a time. A small chunk stays in a CPU's cache; on a GPU or TPU take
            thousands.

    Returns:
        Images ``(..., d, 28, 28)``.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    if drawings.shape[:-1] != characters.shape:
        raise ValueError(
            f"drawings: expected the shape of characters, {characters.shape}, and one axis more, got "
            f"{drawings.shape}."
        )
    keys, hands = jax.vmap(_keys, (0, None))(characters.reshape(-1), seed)
    skeletons = jax.vmap(character_strokes)(keys)
    which = jnp.repeat(jnp.arange(characters.size), drawings.shape[-1])

    def one(job):
        which, drawing = job
        skeleton = jax.tree.map(lambda leaf: leaf[which], skeletons)
        return drawn_by(jax.random.fold_in(hands[which], drawing), skeleton)

    images = jax.lax.map(one, (which, drawings.reshape(-1)), batch_size=chunk)
    return images.reshape(*drawings.shape, SIDE, SIDE)


def character_strokes(key: Array) -> Strokes:
    """Return the skeleton of a random character, about 18 pixels high or wide and centred.

    Strokes are laid down one after another, each in one of three relations to an earlier one: hanging on it
    by a point, joining two points, lying beside it. A quarter of them repeat the stroke before, as it is or
    mirrored. (Lake et al. 2015 have "independent, at start, at end, along".)

    Args:
        key: A random key.

    Returns:
        The skeleton.
    """
    # one flat draw: several, or one of two axes, compile seconds longer; never 0, so that ndtri is finite
    rows, columns = 9 + 7 * PROPOSALS, 3 * SEGMENTS + 2
    uniform = jax.random.uniform(key, (STROKES * (rows + columns),), jnp.float32, 1e-6, 1.0)
    noise = jax.scipy.special.ndtri(uniform[STROKES * rows :]).reshape(STROKES, columns)
    uniform = uniform[: STROKES * rows].reshape(rows, STROKES)
    order = jnp.arange(STROKES, dtype=jnp.int32)
    present = order <= jnp.sum(uniform[0, 0] > _COUNTS, dtype=jnp.int32)
    repeats = (order > 0) & (uniform[1] < 0.25)
    dots = (order > 0) & (uniform[2] < 0.07)
    source = jax.lax.cummax(jnp.where(repeats, 0, order))  # whose shape each stroke has
    kind, many, heading, hand, size = uniform[3:8, source]
    kind = kind ** (0.5 + 0.35 * jnp.sum(present, dtype=jnp.float32))  # more strokes, simpler ones
    shapes = jax.vmap(_primitive)(kind, many, heading, hand, noise[source])
    number, bend = jnp.where(dots, 1, shapes.number), jnp.where(dots[:, None], 0.0, shapes.bend)

    # each to its size, centred; repetitions perhaps mirrored: left to right, upside down
    own = _samples(Strokes(shapes.vertices, bend, number))
    low, high = jnp.min(own, 1), jnp.max(own, 1)
    size = jnp.where(dots, 0.1, jnp.where(source == 0, 1.0, jnp.exp(-0.9 * size)))
    flips = jnp.stack([repeats & (uniform[8] < 0.35), repeats & (uniform[8] > 0.25) & (uniform[8] < 0.5)], 1)
    flips = 1.0 - 2.0 * flips.astype(jnp.float32)
    scale = (size / jnp.max(high - low, 1))[:, None] * flips
    vertices = (shapes.vertices - ((low + high) / 2)[:, None]) * scale[:, None]
    bend = bend * jnp.prod(flips, 1)[:, None]

    # where it might go, some proposals each: points of earlier strokes (two), own point, side, relation
    proposals = jnp.swapaxes(uniform[9:].reshape(7, PROPOSALS, STROKES), 1, 2)
    relation, first, second, there, then, here, gap = proposals
    earlier = jnp.maximum(order, 1).astype(jnp.float32)[:, None]
    ends = jnp.stack([jnp.int32(first * earlier), jnp.int32(second * earlier)], 1) * SAMPLES
    ends = ends + _choose(_THERE, jnp.stack([there, then], 1))
    aside = _choose(_SIDES, then) * (0.2 + gap)[..., None]
    lies = (relation > 0.65) | dots[:, None]
    may_join = (relation < 0.25) & ~dots[:, None]

    def place(marks, stroke):
        """Put down one stroke at the best of its proposals, given the samples `marks` of those before it."""
        j, vertices, own, size, ends, here, aside, lies, may_join = stroke
        low, high = _box(marks.reshape(-1, 2), jnp.repeat(order < j, SAMPLES))
        target, end = marks.reshape(-1, 2)[ends]
        room = (high - low + jnp.ptp(own, 0)) / 2
        beside = (low + high)[None] / 2 + aside * room[None] + 0.22 * jnp.sign(aside)
        # the similarity (a complex factor) that takes both ends of the stroke to two points
        chord, span = own[-1] - own[0], end - target
        growth = jnp.sqrt(jnp.sum(span**2, 1)) / size
        joins = may_join & (jnp.sum(chord**2) > (0.5 * size) ** 2) & (growth > 0.4) & (growth < 1.6)
        factor = _times(span, (chord * _MIRROR / (jnp.sum(chord**2) + 1e-6))[None])
        factor = jnp.where(joins[:, None], factor, _ONE[None])
        shift = jnp.where(joins[:, None], target - _times(own[:1], factor), target - own[here])
        shift = jnp.where((lies & ~joins)[:, None], beside, shift)
        # writing keeps clear of what is written, within a square
        new = _times(own[None], factor[:, None]) + shift[:, None]
        others = jnp.where((order < j)[:, None, None], marks[:, ::3], 9.0).reshape(1, 1, -1, 2)
        gaps = new[:, ::3, None] - others
        close = jnp.mean(jnp.exp(-jnp.min(jnp.sum(gaps**2, -1), 2) / 0.12**2), 1)
        side = jnp.maximum(high[None], jnp.max(new, 1)) - jnp.minimum(low[None], jnp.min(new, 1)) + 0.3
        best = jnp.argmin(close + 0.3 * jnp.abs(jnp.log(side[:, 0] / side[:, 1])) + 0.3 * jnp.max(side, 1))
        factor = jnp.where(j == 0, _ONE, factor[best])[None]
        shift = jnp.where(j == 0, 0.0, shift[best])[None]
        marks = marks.at[j].set(_times(own, factor) + shift)
        return marks, _times(vertices, factor) + shift

    own = _samples(Strokes(vertices, bend, number))
    job = (order, vertices, own, size, ends, _choose(_HERE, here), aside, lies, may_join)
    marks, vertices = jax.lax.scan(place, jnp.zeros_like(own), job)
    low, high = _box(marks.reshape(-1, 2), jnp.repeat(present, SAMPLES))
    number = jnp.where(present, number, 0)
    spacing = trace(Strokes(vertices, bend, number))[1]
    scale = jnp.clip(18.0 + 3.5 * noise[0, -1], 9.0, 21.0) / jnp.max(high - low)
    scale = jnp.minimum(scale, 0.85 / spacing)  # little enough ink to be drawn without beads
    return Strokes((vertices - ((low + high) / 2)[None, None]) * scale, bend, number)


def drawn_by(key: Array, strokes: Strokes) -> Array:
    """Return the skeleton as one hand draws it, with the hand's pen.

    Args:
        key: A random key, which names the hand.
        strokes: The skeleton.

    Returns:
        The image, ``(28, 28)``.
    """
    vertices, bend, number = strokes
    normal = jax.random.normal(key, (27 + STROKES * (3 * SEGMENTS + 4),), jnp.float32)
    wave, shake = normal[7:27].reshape(4, 5), normal[27:].reshape(STROKES, -1)
    # a smooth warp of the plane: points that touch stay together
    along = 0.12 * jnp.sum(vertices[:, :, None] * wave[None, None, :, :2], -1)
    swell = jnp.sin(along + 3.0 * wave[None, None, :, 2])
    vertices = vertices + 0.6 * jnp.sum(swell[..., None] * wave[None, None, :, 3:], 2)
    # strokes slip as wholes; vertices and bends one by one
    slip, jitter, sway = jnp.split(shake, [2, 2 * SEGMENTS + 4], 1)
    vertices = vertices + 0.45 * slip[:, None] + 0.42 * jitter.reshape(vertices.shape)
    bend = jnp.clip(bend * (1.0 + 0.12 * sway) + 0.05 * sway, -_BEND, _BEND)
    points, spacing = trace(Strokes(vertices, bend, number))
    # turn, slant, stretch, scale, shift: the frame of the whole
    turn, slant, stretch, scale, x, y, pen = normal[:7]
    turn, slant, stretch, scale = 0.08 * turn, 0.14 * slant, 0.08 * stretch, 0.1 * scale
    wide, high = jnp.exp(scale + stretch), jnp.exp(scale - stretch)
    across = wide * jnp.stack([jnp.cos(turn), jnp.sin(turn)])
    down = high * jnp.stack([slant * jnp.cos(turn) - jnp.sin(turn), jnp.cos(turn) + slant * jnp.sin(turn)])
    middle = jnp.stack([13.1 + 1.2 * x, 12.8 + 1.2 * y])
    points = points[:, :1] * across[None] + points[:, 1:] * down[None] + middle[None]
    return render(points, jnp.full((POINTS,), spacing * jnp.sqrt(wide * high)), 0.66 * jnp.exp(0.06 * pen))


def trace(strokes: Strokes) -> tuple[Array, Array]:
    """Return points equally spaced along all the ink.

    Args:
        strokes: The skeleton.

    Returns:
        The points ``(POINTS, 2)``, and their spacing in pixels.
    """
    # the length of each arc, chord / sinc(bend / 2), 0 for arcs that are not there
    ink = jnp.arange(SEGMENTS, dtype=jnp.int32)[None] < strokes.number[:, None]
    begin = strokes.vertices[:, :-1].reshape(-1, 2)
    chord = strokes.vertices[:, 1:].reshape(-1, 2) - begin
    bend = strokes.bend.reshape(-1)
    length = jnp.where(ink.reshape(-1), jnp.sqrt(jnp.sum(chord**2, 1) + 1e-6) / _sinc(bend / 2), 0.0)
    # each point's arc by its distance along all arcs, and the share of that arc before it
    end = jnp.cumsum(length)
    spacing = end[-1] / POINTS
    pen = (jnp.arange(POINTS, dtype=jnp.float32) + 0.5) * spacing
    at = jnp.minimum(jnp.sum(pen[:, None] > end[None], 1), length.size - 1)
    segment = jnp.concatenate([begin, chord, jnp.stack([bend, end, length], 1)], 1)[at]
    along = 1.0 - (segment[:, 5] - pen) / segment[:, 6]
    return _arc(segment[:, :2], segment[:, 2:4], segment[:, 4], along), spacing


def render(points: Array, weights: Array, width: Array) -> Array:
    """Return the image of ink at points.

    A point is a round blot: along each axis (1 - d^2 / (8 width^2))^4, nearly a Gaussian of deviation `width`
    but 0 beyond 2.8 widths. So the image is one matrix product, of factors (SIDE, n) and (n, SIDE), and no
    table of distances from pixels to points is made. With s the ink laid down (about 1 in the middle of a
    long line) a pixel darkens to 1 - exp(-(GAIN s)^2). Points more than about 1.5 widths apart show as beads.

    Args:
        points: The points, ``(n, 2)``.
        weights: The length of line in pixels that each stands for, ``(n,)``.
        width: The deviation of the pen, in pixels.

    Returns:
        The image, ``(SIDE, SIDE)``.
    """
    pixels = jnp.arange(SIDE, dtype=jnp.float32)
    reach = jnp.sqrt(8.0) * width
    across = jnp.maximum(1.0 - ((points[:, :1] - pixels[None]) / reach) ** 2, 0.0) ** 4
    down = jnp.maximum(1.0 - ((points[:, 1][None] - pixels[:, None]) / reach) ** 2, 0.0) ** 4
    ink = (down * (weights / (2.3 * width))[None]) @ across
    return 1.0 - jnp.exp(-((GAIN * ink) ** 2))


def _keys(character: Array, seed: int) -> tuple[Array, Array]:
    """Keys of a character's skeleton and of all its drawings."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), character)
    return tuple(jax.random.split(key))


def _primitive(kind: Array, many: Array, heading: Array, hand: Array, noise: Array) -> Strokes:
    """One stroke of the library: the uniform numbers choose, the normal ones make it this character's own."""
    share = np.cumsum(_PRIMITIVES[:, 0]) / np.sum(_PRIMITIVES[:, 0])
    row = jnp.asarray(_PRIMITIVES[:, 1:], jnp.float32)[jnp.sum(kind > jnp.asarray(share[:-1], jnp.float32))]
    fewest, most, flip, shrink, chorded = row[0], row[1], row[8], row[9], row[10]
    # the row's numbers for each segment, A and B in turn
    number = jnp.int32(fewest + jnp.floor(many * (most - fewest + 1.0)))
    step = jnp.arange(SEGMENTS, dtype=jnp.int32)
    bend, turn, length = row[2:8].reshape(2, 3)[step % 2].T
    # A and B keep their own deviation wherever they recur, so that a repeated part repeats
    noise, start = noise[:-2].reshape(3, SEGMENTS), noise[-2]
    noise = noise[:, :2][:, step % 2] + 0.3 * noise
    sense = 1.0 - 2.0 * ((hand < 0.5) ^ ((flip > 0) & (step % 2 == 1))).astype(jnp.float32)
    bend = jnp.clip(jnp.deg2rad(bend * (1.0 + 0.12 * noise[0]) + 4.0 * noise[0]), -_BEND, _BEND) * sense
    turn = jnp.deg2rad(jnp.where(turn == 0, 0.0, turn + 7.0 * noise[1])) * sense
    length = length * shrink ** step.astype(jnp.float32) * jnp.exp(0.22 * noise[2])
    turn = jnp.where(step == 0, 0.0, turn)
    # chords one after another, then the whole turned to its heading
    middle = jnp.cumsum(turn + bend) - bend / 2  # direction of each chord
    chord = (length * _sinc(bend / 2))[:, None] * jnp.stack([jnp.cos(middle), jnp.sin(middle)], 1)
    vertices = jnp.concatenate([jnp.zeros((1, 2), jnp.float32), jnp.cumsum(chord, 0)])
    first = jnp.deg2rad(_choose(_HEADINGS, heading) + 4.0 * start)
    whole = vertices[number]
    first = first - jnp.where(chorded > 0, jnp.arctan2(whole[1], whole[0]), 0.0)
    return Strokes(_times(vertices, jnp.stack([jnp.cos(first), jnp.sin(first)])[None]), bend, number)


def _samples(strokes: Strokes) -> Array:
    """Points (STROKES, SAMPLES, 2) along each stroke, from its start to its end."""

    def along(vertices, bend, number):
        place = jnp.linspace(0.0, 1.0, SAMPLES, dtype=jnp.float32) * number.astype(jnp.float32)
        at = jnp.minimum(jnp.int32(place), number - 1)
        return _arc(vertices[at], vertices[at + 1] - vertices[at], bend[at], place - at.astype(jnp.float32))

    return jax.vmap(along)(*strokes)


def _arc(begin: Array, chord: Array, bend: Array, along: Array) -> Array:
    """Points (n, 2) the share `along` of the way on circular arcs that turn by `bend`.

    With chords as complex numbers: begin + chord * along * exp(i bend (along - 1) / 2) * sinc(bend along / 2)
    / sinc(bend / 2), where sinc x = sin(x) / x.
    """
    angle = bend * (along - 1.0) / 2.0
    factor = along * _sinc(bend * along / 2) / _sinc(bend / 2)
    return begin + _times(chord, factor[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1))


def _times(a: Array, b: Array) -> Array:
    """Product of complex numbers kept as pairs (..., 2)."""
    sign = jnp.asarray([-1.0, 1.0], jnp.float32).reshape((1,) * (a.ndim - 1) + (2,))
    return a * b[..., :1] + a[..., ::-1] * b[..., 1:] * sign


def _sinc(x: Array) -> Array:
    """sin(x) / x."""
    return jnp.sinc(x / jnp.pi)


def _box(points: Array, counted: Array) -> tuple[Array, Array]:
    """Lowest and highest coordinates (2,) of those points (n, 2) that are counted (n,)."""
    low = jnp.min(jnp.where(counted[:, None], points, 99.0), 0)
    return low, jnp.max(jnp.where(counted[:, None], points, -99.0), 0)


def _choose(table: np.ndarray, uniform: Array) -> Array:
    """Entry of the table that a number in [0, 1) falls on."""
    return jnp.asarray(table)[jnp.int32(uniform * len(table))]
