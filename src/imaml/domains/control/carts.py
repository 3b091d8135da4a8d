"""Gymnasium's cart-pole, stepped outside of JAX: each task is a cart, known from a few random episodes.

Every cart has its own pole, gravity and motor, and its motor may be wired either way: only data from the cart
show which push is to the left. The inner problem is that of `imaml.domains.control.actor_critic` on the
transitions of random pushes. Because the true environment has no derivative, theta learns from other episodes
of the same cart with random pushes:

    loss = - mean_i w_i (G_i - b(x_i)),     G_i = r_i + gamma r_i+1 + ... until the pole falls

with b the best quadratic fit of G to the state, over all training carts. The score of phi is how long its
more likely pushes keep the pole up in the environment itself.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError
from ...core.fields import Fraction, NonNegativeInt, PositiveInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...problems.base import Task
from ..base import SPLITS
from ..recipes import builder
from ..scenes import Scene
from .actor_critic import ActorCritic, ActorCriticDomain, ActorCriticRecipe, Transitions

if TYPE_CHECKING:
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv  # type: ignore[import-not-found]

# Scales of a state. An episode ends where its first or third entry is beyond 1 of them.
SCALES = np.array([2.4, 3.0, 12 * np.pi / 180, 3.0], np.float32)
RANGES = {"length": (0.25, 1.0), "masspole": (0.05, 0.3), "gravity": (7.0, 13.0), "force_mag": (6.0, 14.0)}
PUSHES = 2


@recipe("domain")
class CartsRecipe(ActorCriticRecipe):
    """Gymnasium's carts, each known from a few random pushes.

    Args:
        steps: Random pushes of a support set, about twenty to an episode.
        queries: Random pushes of a query set.
        horizon: Pushes of an episode that a policy is judged by.
        episodes: The number of such episodes.
        discount: The critic's discount.
        hidden: Units of the hidden layers of both networks.
        training: Carts for training.
        validation: Carts for validation.
        test: Carts for testing.
        seed: The seed that carts are drawn by.

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.carts(steps=10, queries=10, training=2, validation=1, test=1)
        >>> domain.sample(jax.random.key(0), "train").support.states.shape
        (10, 4)
    """

    steps: PositiveInt = 100
    queries: PositiveInt = 200
    horizon: PositiveInt = 200
    episodes: PositiveInt = 2
    discount: Fraction = 0.95
    hidden: tuple[PositiveInt, ...] = (32, 32)
    training: PositiveInt = 512
    validation: PositiveInt = 64
    test: PositiveInt = 256
    seed: NonNegativeInt = 0

    state_size: ClassVar[int] = len(SCALES)
    actor_outputs: ClassVar[int] = PUSHES

    def build(self) -> Carts:
        """Return the domain, its carts driven at random; ConfigError if Gymnasium is not installed."""
        return _drive(self)

    def without_data(self) -> Carts:
        """Return the domain with its networks, but no episodes."""
        return Carts(None, None, self)  # type: ignore[arg-type]


carts = builder(CartsRecipe)


class Driven(NamedTuple):
    """A query batch.

    Attributes:
        transitions: Transitions, leaves ``(n, ...)``.
        surplus: The discounted rewards from each transition on, minus the quadratic fit, ``(n,)``.
        physics: The cart's physics, ``(k,)``.
    """

    transitions: Transitions
    surplus: Array
    physics: Array


@dataclass(frozen=True)
class RandomPushes(ActorCritic):
    """The field of a policy that pushes at random, with the actor's outputs as logits."""

    def log_chance(self, actor: Tree, states: Array, actions: Array) -> Array:
        """Return the log probabilities of pushes ``(n,)`` in states ``(n, 4)``."""
        logits = self.recipe.actor.forward(actor, states)[0]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], 1)[:, 0]

    def value(self, critic: Tree, states: Array) -> Array:
        """Return the values of states ``(n, 4)``, 0 where the episode is over."""
        running = (jnp.abs(states[:, 0]) <= 1) & (jnp.abs(states[:, 2]) <= 1)
        return jnp.where(running, super().value(critic, states), 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carts(ActorCriticDomain):
    """Carts with poles to be kept up; leaves (carts, ...), those of training first."""

    support: Transitions
    query: Driven
    recipe: CartsRecipe = dataclasses.field(metadata={"static": True})

    actions: ClassVar[int] = PUSHES
    oracles: ClassVar[frozenset[str]] = frozenset({"wiring_known"})

    @property
    def field(self) -> RandomPushes:
        """The vector field of the inner problem."""
        return RandomPushes(self.recipe)

    def query_loss(self, phi: Tree, theta: Tree, batch: Driven) -> Array:
        """Return minus the mean surplus, weighted by the importance of the actor's pushes."""
        return -jnp.mean(self.field.weights(phi["actor"], batch.transitions) * batch.surplus)

    def size(self, split: str) -> int:
        """Return how many carts a split has."""
        recipe = self.recipe
        return {"train": recipe.training, "validation": recipe.validation, "test": recipe.test}[split]

    def number(self, indices: Array) -> Array:
        """Return which cart was drawn."""
        return indices

    def _first(self, split: str) -> int:
        return sum(self.size(each) for each in SPLITS[: SPLITS.index(split)])

    def draw(self, key: Array, split: str) -> Array:
        """Return the number of one random cart of a split, a scalar."""
        return self._first(split) + jax.random.randint(key, (), 0, self.size(split))

    def draws(self, key: Array, split: str, count: int) -> Array:
        """Return the numbers of carts, (count,): every one of the split before any comes twice."""
        rounds = -(-count // self.size(split))
        mixed = [jax.random.permutation(k, self.size(split)) for k in jax.random.split(key, rounds)]
        return self._first(split) + jnp.concatenate(mixed)[:count]

    def gather(self, indices: Array) -> Task:
        """Return the task of a cart: random episodes to learn from, others to be judged by."""
        return Task(*jax.tree.map(lambda leaf: leaf[indices], (self.support, self.query)))

    def _kept_up(self, policy: Callable[..., int], physics: Array, *inputs: Tree) -> Array:
        """Return for how many pushes policy(state, physics, *inputs) keeps the pole up, the mean of episodes.

        Gymnasium says it, outside of JAX, for one task after another.
        """

        def outside(*arguments: Tree) -> np.float32:
            physics, *inputs = jax.tree.map(np.asarray, arguments)
            push = lambda state: policy(state, physics, *inputs)  # noqa: E731
            episodes = range(self.recipe.episodes)
            return np.float32(np.mean([len(ride(physics, push, self.recipe.horizon, n)) for n in episodes]))

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(outside, shape, physics, *inputs, vmap_method="sequential")

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return for how many pushes the likelier ones keep the pole up, and minus the query loss."""
        up = self._kept_up(likelier, task.query.physics, phi["actor"])
        return {"return": up, "gain": -self.query_loss(phi, None, task.query)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the pushes with the pole up: at random, and by a rule that knows how the motor is wired."""
        policies = {"random_pushes": random, "wiring_known": upright}
        return {name: self._kept_up(policy, task.query.physics) for name, policy in policies.items()}

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return the pole's angle over time before and after adaptation, in the first judged episode."""
        physics, (before, after) = np.asarray(task.query.physics), jax.device_get((before, after))
        policies = {
            "wiring known": lambda x: upright(x, physics),
            "before": lambda x: likelier(x, physics, before["actor"]),
            "after": lambda x: likelier(x, physics, after["actor"]),
        }
        states = {name: ride(physics, policy, self.recipe.horizon, 0) for name, policy in policies.items()}
        lines = {name: (0.02 * np.arange(len(each)), 12 * each[:, 2]) for name, each in states.items()}
        up = f"{len(states['before'])} pushes before, {len(states['after'])} after"
        note = f"it falls at 12 degrees; up for {up}, of {self.recipe.horizon}"
        return [Scene("angle of the pole, degrees", note, lines, "time, s")]

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Tree]:
        """Return rewards of 1, and the log probabilities of random pushes."""
        return _of_random_pushes(len(next(iter(arrays.values()))))


def likelier(state: np.ndarray, physics: np.ndarray, actor: Tree) -> int:
    """Return the likelier push of an actor. In NumPy, as a callback must not call JAX.

    Args:
        state: A state ``(4,)`` in `SCALES`.
        physics: Not used.
        actor: The actor's parameters, NumPy arrays.

    Returns:
        0 or 1.
    """
    hidden = state
    for i, (_, layer) in enumerate(sorted(actor.items())):
        hidden = (np.tanh(hidden) if i else hidden) @ layer["kernel"] + layer["bias"]
    return int(hidden[1] > hidden[0])


def random(state: np.ndarray, physics: np.ndarray) -> int:
    """Return a random push, the same for the same state.

    Args:
        state: A state ``(4,)``.
        physics: Not used.

    Returns:
        0 or 1.
    """
    return int(np.random.default_rng(state.view(np.uint32)).integers(PUSHES))


def upright(state: np.ndarray, physics: np.ndarray) -> int:
    """Return the push that goes under the pole, as one who knows the wiring chooses it.

    Args:
        state: A state ``(4,)`` in `SCALES`.
        physics: The cart's physics, ``(k,)``.

    Returns:
        0 or 1.
    """
    angle, angular, place, speed = state[2] * SCALES[2], state[3] * SCALES[3], state[0], state[1]
    lean = angle + 0.3 * angular + 0.05 * place + 0.1 * speed
    return int((lean > 0) == (physics[-1] > 0))


def cart_of(physics: np.ndarray) -> CartPoleEnv:
    """Return Gymnasium's environment with a cart's physics.

    Args:
        physics: ``(k,)``, as in `RANGES`.

    Returns:
        The environment.

    Raises:
        ConfigError: If Gymnasium is not installed.
    """
    try:
        from gymnasium.envs.classic_control.cartpole import CartPoleEnv  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError(
            "domain: expected Gymnasium, which steps carts, got no such package. Hint: pip install gymnasium."
        ) from error
    cart = CartPoleEnv()
    for name, value in zip(RANGES, physics, strict=True):
        setattr(cart, name, float(value))
    cart.total_mass = cart.masspole + cart.masscart
    cart.polemass_length = cart.masspole * cart.length
    return cart


def ride(physics: np.ndarray, policy: Callable[[np.ndarray], int], horizon: int, seed: int) -> np.ndarray:
    """Return the states that one episode goes through before its end.

    Args:
        physics: The cart's physics, ``(k,)``.
        policy: Returns a push for a state.
        horizon: The most pushes.
        seed: The seed of the first state.

    Returns:
        States ``(n, 4)`` in `SCALES`.
    """
    steps = itertools.islice(_episode(cart_of(physics), policy, seed), horizon)
    return np.array([state for state, _, _ in steps])


def _episode(
    cart: CartPoleEnv, policy: Callable[[np.ndarray], int], seed: int
) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Yield state, push and following state of each step until the pole falls, states in `SCALES`."""
    (state, _), ended = cart.reset(seed=seed), False
    while not ended:
        push = policy(state / SCALES)
        following, _, ended, _, _ = cart.step(push)
        yield state / SCALES, push, following / SCALES
        state = following


def _of_random_pushes(count: int) -> dict[str, Tree]:
    """Return the rewards and the log probabilities of random pushes."""
    chances = np.full(count, -np.log(PUSHES), np.float32)
    return {"rewards": np.ones(count, np.float32), "chances": chances}


def _episodes(
    cart: CartPoleEnv, random: np.random.Generator, count: int, discount: float
) -> tuple[Transitions, np.ndarray]:
    """Return transitions of random pushes, and the discounted rewards ``(count,)`` until the pole fell."""
    rows, gains = [], []
    while len(rows) < count:
        seed = int(random.integers(2**31))
        steps = list(_episode(cart, lambda _: int(random.integers(PUSHES)), seed))
        rows += steps
        # A reward of 1 for each of the pushes left: 1 + gamma + ... + gamma^(left - 1).
        left = np.arange(len(steps), 0, -1)
        gains.extend((1 - discount**left) / (1 - discount))
    states, pushes, following = (np.array(part[:count]) for part in zip(*rows, strict=True))
    seen: Tree = {"states": states, "actions": pushes.astype(np.int32), "following": following}
    return Transitions(**seen, **_of_random_pushes(count)), np.array(gains[:count], np.float32)


@functools.lru_cache(maxsize=4)
def _drive(recipe: CartsRecipe) -> Carts:
    """Return the domain of a recipe, its carts driven at random."""
    each = []
    for number in range(recipe.training + recipe.validation + recipe.test):
        random = np.random.default_rng((recipe.seed, number))
        physics = np.array([random.uniform(*bounds) for bounds in RANGES.values()], np.float32)
        physics[-1] *= random.choice([-1, 1])  # a negative force is a motor wired the other way
        cart = cart_of(physics)
        support, _ = _episodes(cart, random, recipe.steps, recipe.discount)
        each.append((support, *_episodes(cart, random, recipe.queries, recipe.discount), physics))
    support, query, gains, physics = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    # b, the quadratic fit of discounted rewards to states, over the query sets of training carts
    features = _features(query.states)
    rows, targets = (part[: recipe.training] for part in (features, gains))
    fit = np.linalg.lstsq(rows.reshape(-1, rows.shape[-1]), targets.ravel(), rcond=None)[0]
    driven = Driven(query, gains - features @ fit, physics)
    return Carts(*jax.tree.map(jnp.asarray, (support, driven)), recipe=recipe)


def _features(states: np.ndarray) -> np.ndarray:
    """Return 1, the state, and the products of its entries: (..., 15)."""
    ones = np.concatenate([np.ones_like(states[..., :1]), states], -1)
    row, column = np.triu_indices(ones.shape[-1])
    return ones[..., row] * ones[..., column]
