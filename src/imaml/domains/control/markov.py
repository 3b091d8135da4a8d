"""Finite Markov decision processes: walks in them, values and best policies, all exact."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


class Process(NamedTuple):
    """A finite Markov decision process.

    Attributes:
        moves: Probabilities of moves, ``(states, actions, states)``.
        entering: The reward for entering a state, ``(states,)``.
        over: States that are never left and give no more rewards, booleans ``(states,)``.
        start: The probabilities of the first state, ``(states,)``.
    """

    moves: Array
    entering: Array
    over: Array
    start: Array

    @property
    def gains(self) -> Array:
        """The expected reward of an action, (states, actions)."""
        return jnp.where(self.over[:, None], 0, self.moves @ self.entering)


class Walks(NamedTuple):
    """Transitions, each ``(n,)``: state, action, reward, following state, whether the walk ended there."""

    states: Array
    actions: Array
    rewards: Array
    following: Array
    ended: Array

    def as_process(self, like: Process) -> Process:
        """Return the process that the walks show, by counts; an action that was never taken does nothing.

        Args:
            like: A process of as many states and actions, whose first state is as likely.

        Returns:
            The process.
        """
        shape, dtype = like.moves.shape, like.moves.dtype
        seen = jnp.zeros(shape, dtype).at[self.states, self.actions, self.following].add(1)
        entering = jnp.zeros(shape[0], dtype).at[self.following].max(self.rewards)
        over = jnp.zeros(shape[0], bool).at[self.following].max(self.ended)
        times = seen.sum(2, keepdims=True)
        stay = jnp.broadcast_to(jnp.eye(shape[0], dtype=dtype)[:, None], shape)
        known = (times > 0) & ~over[:, None, None]
        return Process(jnp.where(known, seen / jnp.maximum(times, 1), stay), entering, over, like.start)


def soft_value(q: Array, temperature: float) -> Array:
    """Return the soft value, temperature log mean_a exp(q / temperature), between the mean and the largest q.

    Args:
        q: Action values ``(states, actions)``.
        temperature: Above 0.

    Returns:
        Values ``(states,)``.
    """
    return temperature * (jax.nn.logsumexp(q / temperature, axis=-1) - jnp.log(q.shape[-1]))


def value_of(process: Process, policy: Array, discount: float) -> Array:
    """Return a policy's values: v = (I - discount P)^-1 r with P, r the process under the policy.

    By doubling, v = (I + M^(2^k)) ... (I + M^2) (I + M) r with M = discount P, until the rest is below the
    dtype's rounding. It takes products alone, as batched factorisations may wait for ever where tasks are
    shared between cores (docs/gotchas.md, 14).

    Args:
        process: The process.
        policy: Probabilities ``(states, actions)``.
        discount: Below 1.

    Returns:
        Values ``(states,)``.
    """
    moves = discount * jnp.einsum("sa,sat->st", policy, process.moves)
    values = jnp.sum(policy * process.gains, 1)
    # The sum of discount^t r over t >= terms is below rounding; k doublings sum the first 2^k terms.
    terms = math.log(float(jnp.finfo(moves.dtype).eps) * (1 - discount) / 10) / math.log(discount)
    for _ in range(max(1, math.ceil(math.log2(terms)))):
        values, moves = values + moves @ values, moves @ moves
    return values


def optimal(process: Process, discount: float, steps: int = 200) -> Array:
    """Return the best policy's action values, by value iteration.

    Args:
        process: The process.
        discount: Below 1.
        steps: How many iterations.

    Returns:
        Action values ``(states, actions)``.
    """
    gains = process.gains

    def step(_: Array, q: Array) -> Array:
        return gains + discount * process.moves @ q.max(1)

    return lax.fori_loop(0, steps, step, jnp.zeros_like(gains))


def walk(key: Array, process: Process, walks: int, length: int) -> Walks:
    """Return random walks, one after another, with uniform actions; a walk that ends starts again.

    Args:
        key: A random key.
        process: The process.
        walks: How many walks.
        length: Steps of each.

    Returns:
        Transitions, leaves ``(walks * length,)``.
    """
    start_key, key = jax.random.split(key)
    starts = jax.random.choice(start_key, process.start.size, (walks, length), p=process.start)

    def one(key: Array, starts: Array) -> Walks:
        def step(state: Array, given: tuple[Array, Array]) -> tuple[Array, Walks]:
            key, fresh = given
            action_key, move_key = jax.random.split(key)
            action = jax.random.randint(action_key, (), 0, process.moves.shape[1])
            following = jax.random.choice(move_key, process.start.size, p=process.moves[state, action])
            ended, reward = process.over[following], process.entering[following]
            return jnp.where(ended, fresh, following), Walks(state, action, reward, following, ended)

        return lax.scan(step, starts[0], (jax.random.split(key, length), starts))[1]

    found = jax.vmap(one)(jax.random.split(key, walks), starts)
    return jax.tree.map(lambda part: part.reshape(-1), found)
