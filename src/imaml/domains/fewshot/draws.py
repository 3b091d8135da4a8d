"""Which classes and images an episode has: random ones, those of training, those of a study with people."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

from . import distortion
from .episodes import Indices, distinct, then

if TYPE_CHECKING:
    from .domain import FewShot

DRAWINGS = 1 << 20  # drawings a character, for those drawn on the fly
OWN = 1 << 24  # fold_in(key, i) is split(key, n)[i], whatever n; no key is split into so many


def draw_random(domain: FewShot, key: Array, ids: Array) -> Indices:
    """Draw an episode of random classes and random images; turned ones with the protocol "turned".

    Args:
        domain: The domain.
        key: A random key.
        ids: The classes of the split.

    Returns:
        The indices.
    """
    class_key, example_key = jax.random.split(key)
    classes = ids[distinct(class_key, ids.shape[0], domain.recipe.ways)]
    turns = jnp.zeros_like(classes)
    if domain.recipe.protocol == "turned":
        turns = jax.random.randint(jax.random.fold_in(key, OWN), classes.shape, 0, 4)
    return _indices(classes, examples_of(domain, example_key, classes), turns)


def draw_training(domain: FewShot, key: Array, ids: Array) -> Indices:
    """Draw an episode of training, with the turns, symmetries, distortions and groups of the recipe.

    Args:
        domain: The domain.
        key: A random key.
        ids: The training classes.

    Returns:
        The indices.
    """
    recipe = domain.recipe
    class_key, example_key = jax.random.split(key)
    number = ids.shape[0] * (4 if recipe.rotations else 1)  # a quarter turn of a class is one of its own
    virtual = distinct(class_key, number, recipe.ways)
    classes, turns = ids[virtual % ids.shape[0]], virtual // ids.shape[0]
    if recipe.within:
        share_key, group_key, own_key = jax.random.split(jax.random.fold_in(key, OWN + 1), 3)
        chosen = classes_within(domain, group_key, own_key, ids)
        classes = jnp.where(jax.random.uniform(share_key) < recipe.within, chosen, classes)
    if recipe.symmetries:
        turns = then(turns, jax.random.randint(jax.random.fold_in(key, OWN), (), 0, 8, jnp.int32))
    maps = None
    if recipe.distortion:
        map_key = jax.random.fold_in(key, OWN + 2)
        maps = distortion.draw(map_key, recipe.ways, recipe.shots + recipe.queries, recipe.distortion)
    return _indices(classes, examples_of(domain, example_key, classes), turns, maps)


def draw_as_people(domain: FewShot, key: Array, ids: Array, place: Array) -> Indices:
    """Draw an episode of the study with people: one alphabet, support by one drawer, queries by another.

    Args:
        domain: The domain; the i-th image of each class of a group is by the same person.
        key: A random key.
        ids: The classes of the split.
        place: The number of the episode, by which groups come in turn.

    Returns:
        The indices.

    References:
        Lake, Salakhutdinov and Tenenbaum (2015), Human-level concept learning, one-shot classification.
    """
    assert domain.groups is not None
    ways, wanted = domain.recipe.ways, domain.recipe.shots + domain.recipe.queries
    order, begin, size = _sorted_by_group(domain, ids)
    # The first class of each group that is large enough: groups in the order of their numbers.
    first = (begin == jnp.arange(ids.shape[0])) & (size >= ways)
    rank = jnp.cumsum(first) - 1
    turn = place % jnp.maximum(first.sum(), 1)
    start = jnp.argmax(first & (rank == turn))
    class_key, drawer_key = jax.random.split(key)
    classes = ids[order[start + distinct(class_key, size[start], ways)]]
    drawers = distinct(drawer_key, domain.counts[classes].min(), wanted)  # type: ignore[index]
    return _indices(classes, jnp.broadcast_to(drawers, (ways, wanted)), jnp.zeros_like(classes))


def examples_of(domain: FewShot, key: Array, classes: Array) -> Array:
    """Draw distinct images of each class.

    Args:
        domain: The domain.
        key: A random key.
        classes: The classes, ``(ways,)``.

    Returns:
        Their numbers, ``(ways, shots + queries)``.
    """
    wanted = domain.recipe.shots + domain.recipe.queries
    if domain.counts is None:
        share = DRAWINGS // wanted  # each from a range of its own, so that no two are the same drawing
        examples = jax.random.randint(key, (classes.shape[0], wanted), 0, share, jnp.int32)
        return examples + share * jnp.arange(wanted, dtype=jnp.int32)[None]
    # The images of the least scores, of which those that a class does not have are the largest.
    scores = jax.random.uniform(key, (classes.shape[0], domain.most), jnp.float32)
    scores = jnp.where(jnp.arange(domain.most)[None] < domain.counts[classes][:, None], scores, 2.0)
    return jnp.argsort(scores, axis=1)[:, :wanted]


def classes_within(domain: FewShot, group_key: Array, class_key: Array, ids: Array) -> Array:
    """Draw distinct classes of one group.

    A group with fewer classes than ways is never drawn, any other as often as it has classes.

    Args:
        domain: The domain.
        group_key: A random key for the group.
        class_key: A random key for its classes.
        ids: The classes of the split.

    Returns:
        The classes, ``(ways,)``.
    """
    order, begin, size = _sorted_by_group(domain, ids)
    # The group of a random class among those of groups large enough, then classes of that group.
    enough = size >= domain.recipe.ways
    one = jax.random.choice(group_key, ids.shape[0], p=enough / enough.sum())
    return ids[order[begin[one] + distinct(class_key, size[one], domain.recipe.ways)]]


def _sorted_by_group(domain: FewShot, ids: Array) -> tuple[Array, Array, Array]:
    """The order of classes by group, and for each in that order where its group begins and its size."""
    assert domain.groups is not None
    groups = domain.groups[ids]
    order = jnp.argsort(groups)
    begin = jnp.searchsorted(groups[order], groups[order], side="left")
    size = jnp.searchsorted(groups[order], groups[order], side="right") - begin
    return order, begin, size


def _indices(classes: Array, examples: Array, turns: Array, maps: distortion.Maps | None = None) -> Indices:
    """The indices, as int32."""
    return Indices(*(array.astype(jnp.int32) for array in (classes, examples, turns)), maps=maps)
