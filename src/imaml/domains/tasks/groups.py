"""Groups of rows of any number, and random support and query sets of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.tree import Tree

SORTED = 4096, 64  # rows of the largest group, or of it for each row drawn, up to which all are sorted


class Drawn(NamedTuple):
    """The indices of a task.

    Attributes:
        group: The number of its group, or ``(ways,)`` of its classes.
        support: Rows of the support set, ``(rows,)``.
        query: Rows of the query set.
        known: Which of the support's rows count, booleans, or how many times.
        asked: The same of the query's rows.
    """

    group: Array
    support: Array
    query: Array
    known: Array
    asked: Array


class Grouped:
    """A part of a domain whose tasks are groups of rows, the rows of one group after those of another.

    Groups are not padded to the largest: a draw has at most `sizes` rows.

    Attributes:
        first: The first row of each group, ``(groups,)``.
        counts: The rows of each group, ``(groups,)``.
        supports: The rows of each group's support set, ``(groups,)``.
        splits: Group numbers by split.
        most: The rows of the largest group.
        sizes: The most rows of a support set, and of a query set.
        ordered: Whether a support set has the first rows of its group, and not random ones.
    """

    first: Tree
    counts: Tree
    supports: Tree
    splits: Tree
    most: int
    sizes: tuple[int, int]
    ordered: bool

    def _numbers(self, split: str) -> Array:
        """The groups of a split; if none was held out for it, those of training."""
        chosen = self.splits[split]
        return chosen if chosen.size else self.splits["train"]

    def size(self, split: str) -> int | None:
        """Return how many tasks a split has.

        Args:
            split: "train", "validation" or "test".

        Returns:
            The number.
        """
        return int(self._numbers(split).size)

    def held_out(self, split: str) -> bool:
        """Return whether a split has groups of its own; else those of training stand in for them.

        Args:
            split: "train", "validation" or "test".

        Returns:
            True if it has.
        """
        return bool(self.splits[split].size)

    def draws_all(self, split: str) -> bool:
        """Return whether each task of a split is drawn with all of its rows.

        Args:
            split: "train", "validation" or "test".

        Returns:
            True if none has more rows than a support set and a query set.
        """
        numbers = np.asarray(self._numbers(split))
        left = np.asarray(self.counts)[numbers] - np.asarray(self.supports)[numbers]
        return bool((left <= self.sizes[1]).all())

    def number(self, indices: Drawn) -> Array | None:
        """Return the number of the task's group: draws of the same one are not independent.

        Args:
            indices: What `draw` returned.

        Returns:
            An integer scalar.
        """
        return indices.group

    def draw(self, key: Array, split: str) -> Drawn:
        """Return the indices of one random task of a split.

        Args:
            key: A random key.
            split: "train", "validation" or "test".

        Returns:
            The indices.
        """
        which, how = jax.random.split(key)
        return self._drawn(jax.random.choice(which, self._numbers(split)), how, split)

    def draw_in_turn(self, key: Array, split: str, place: Array) -> Drawn:
        """Return the indices of a task of a split: groups in turn, their rows at random.

        Args:
            key: A random key.
            split: "train", "validation" or "test".
            place: The number of the draw, an integer scalar.

        Returns:
            The indices.
        """
        numbers = self._numbers(split)
        return self._drawn(numbers[place % numbers.size], jax.random.split(key)[1], split)

    def draws(self, key: Array, split: str, count: int) -> Drawn | None:
        """Return the indices of ``count`` tasks: every task of the split before any comes twice.

        Args:
            key: A random key.
            split: "train", "validation" or "test".
            count: How many.

        Returns:
            The indices, leaves ``(count, ...)``.
        """
        which, how = jax.random.split(key)
        numbers = self._numbers(split)
        rounds = -(-count // numbers.size)
        mixed = [jax.random.permutation(k, numbers) for k in jax.random.split(which, rounds)]
        groups = jnp.concatenate(mixed)[:count]
        return jax.vmap(lambda group, k: self._drawn(group, k, split))(groups, jax.random.split(how, count))

    def _drawn(self, group: Array, key: Array, split: str) -> Drawn:
        """The indices of a random task of one group."""
        return Drawn(group, *self._rows(group, key))

    def _rows(self, group: Array, key: Array) -> tuple[Array, Array, Array, Array]:
        """The rows of a group's support and query set, and which of them count."""
        most, queries = self.sizes
        count, known = self.counts[group], self.supports[group]
        wanted = most + queries
        places = jnp.arange(wanted)
        # In order the query set is what follows the support set, or a part of it.
        order = places if self.ordered else self._order(key, count, wanted)
        support = order[:most]
        query = order[jnp.minimum(known + jnp.arange(queries), wanted - 1)]
        if self.ordered and self.most > queries:  # of more rows than a query set takes, random ones
            random = known + self._order(key, count - known, queries)
            query = jnp.where(count - known > queries, random, query)
        kept = jnp.arange(most) < known
        asked = known + jnp.arange(queries) < jnp.minimum(count, wanted)
        # Rows that do not count are copies of the group's first one that does.
        within = lambda rows, flags: self.first[group] + jnp.where(flags, rows, order[0])  # noqa: E731
        return within(support, kept), within(query, asked), kept, asked

    def _order(self, key: Array, count: Array, wanted: int) -> Array:
        """The first ``wanted`` rows of a random order of ``count`` rows; those beyond ``count`` are any."""
        if self.most <= max(SORTED[0], SORTED[1] * wanted):
            rows = jnp.arange(max(self.most, wanted))
            scores = jnp.where(rows < count, jax.random.uniform(key, rows.shape), 2.0 + rows)
            return jnp.argsort(scores)[:wanted]
        return _distinct(key, count, wanted)


def _distinct(key: Array, number: Array, wanted: int) -> Array:
    """As `distinct` of episodes, of many: a loop, as the program of an unrolled one grows with ``wanted``.

    The i-th number is drawn from those left, and then moved past the ones taken before it.
    """
    places = jnp.arange(wanted, dtype=jnp.int32)

    def take(taken: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        i, one = step
        rank = jax.random.randint(one, (), 0, jnp.maximum(number - i, 1), jnp.int32)
        value = rank + jnp.sum(rank >= jnp.sort(taken) - places, dtype=jnp.int32)
        return taken.at[i].set(value), None

    start = jnp.full(wanted, number + wanted, jnp.int32)
    return jax.lax.scan(take, start, (places, jax.random.split(key, wanted)))[0]
