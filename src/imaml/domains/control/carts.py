"""Gymnasium's cart and pole, stepped outside of JAX: each task a cart, known from a few random episodes.

Every cart has its own pole, gravity and motor, and the motor is wired either way: without having seen how
the cart answers, nobody knows which push is to the left. The inner problem is that of
`imaml.domains.control.actor_critic` on the transitions of random pushes. Theta learns from what random pushes
led to in other episodes of the same cart, as the true environment has no derivative:

    loss = - mean_i w_i (G_i - b(x_i)),     G_i = r_i + gamma r_i+1 + ... until the pole falls

with b the best quadratic guess of G from the state, over all training carts. phi is judged by how long its
likelier pushes keep the pole up in the environment itself.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError
from ...core.recipes import recipe
from ...core.validation import require_number, require_whole
from ...problems.base import Task
from ..arrays import Field
from ..base import SPLITS, Encoded
from ..networks import MLP
from ..recipes import DomainRecipe
from ..scenes import Scene
from .actor_critic import ActorCritic, Steered, Transitions

SCALES = np.array(
    [2.4, 3.0, 12 * np.pi / 180, 3.0], np.float32
)  # of a state: the first and third end an episode
RANGES = {"length": (0.25, 1.0), "masspole": (0.05, 0.3), "gravity": (7.0, 13.0), "force_mag": (6.0, 14.0)}
PUSHES = 2


@recipe("domain")
@dataclass(frozen=True)
class CartsRecipe(DomainRecipe):
    """The recipe of a domain of carts.

    Args:
        steps: Random pushes of a support set, about twenty to an episode.
        queries: Random pushes of a query set.
        horizon: Pushes of an episode that a policy is judged by.
        episodes: How many such episodes.
        discount: Of the critic.
        hidden: Units of the hidden layers of both networks.
        training: Carts for training.
        validation: Carts for validation.
        test: Carts for testing.
        seed: Draws the carts.

    Raises:
        ConfigError: If a field is out of its range.
    """

    steps: int = 100
    queries: int = 200
    horizon: int = 200
    episodes: int = 2
    discount: float = 0.95
    hidden: tuple[int, ...] = (32, 32)
    training: int = 512
    validation: int = 64
    test: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("domain", 1, steps=self.steps, queries=self.queries, horizon=self.horizon)
        require_whole("domain", 1, episodes=self.episodes, training=self.training)
        require_whole("domain", 1, validation=self.validation, test=self.test)
        require_whole("domain", 0, seed=self.seed)
        require_number("domain", 0, discount=self.discount)
        if self.discount >= 1:
            raise ConfigError(f"domain: discount={self.discount!r}; accepted are numbers from 0 to below 1.")
        for units in self.hidden:
            require_whole("domain", 1, hidden=units)

    def build(self) -> Carts:
        """The domain, its carts driven at random; ConfigError where Gymnasium is not installed."""
        return _driven(self)

    def without_data(self) -> Carts:
        """Return the domain with its networks, but no episodes."""
        return Carts(None, None, self)  # type: ignore[arg-type]

    @property
    def actor(self) -> MLP:
        """States to the pushes' logits."""
        return MLP((len(SCALES), *self.hidden, PUSHES), "tanh")

    @property
    def critic(self) -> MLP:
        """States to values."""
        return MLP((len(SCALES), *self.hidden, 1), "tanh")


class Driven(NamedTuple):
    """A query: transitions, how much better than guessed they went on, (n,), the cart's physics, (k,)."""

    transitions: Transitions
    surplus: Array
    physics: Array


@dataclass(frozen=True)
class Pushes:
    """The actor's log probabilities; hashable."""

    recipe: CartsRecipe

    def __call__(self, actor: Any, states: Array, actions: Array) -> Array:
        """Log probabilities (n,) of pushes (n,) in states (n, 4)."""
        logits = self.recipe.actor.forward(actor, states)[0]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], 1)[:, 0]


@dataclass(frozen=True)
class Worth:
    """The critic's values, none where the episode is over; hashable."""

    recipe: CartsRecipe

    def __call__(self, critic: Any, states: Array) -> Array:
        """Values (n,) of states (n, 4)."""
        on = (jnp.abs(states[:, 0]) <= 1) & (jnp.abs(states[:, 2]) <= 1)
        return jnp.where(on, self.recipe.critic.forward(critic, states)[0][:, 0], 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Carts(Steered):
    """Carts with poles to be kept up; leaves (carts, ...), those of training first."""

    support: Transitions
    query: Driven
    recipe: CartsRecipe = dataclasses.field(metadata={"static": True})

    @property
    def field(self) -> ActorCritic:
        """What the inner problem goes against."""
        return ActorCritic(Pushes(self.recipe), Worth(self.recipe), self.recipe.discount)

    @staticmethod
    def whole(support: Transitions, query: Driven) -> Transitions:
        """All of a cart's transitions, for methods that learn from them unsplit."""
        return Transitions(*(jnp.concatenate(pair) for pair in zip(support, query.transitions, strict=True)))

    def query_loss(self, phi: Any, theta: Any, batch: Driven) -> Array:
        """Minus the mean of what the actor's pushes gain by weight, a scalar."""
        return -jnp.mean(self.field.weights(phi["actor"], batch.transitions) * batch.surplus)

    def size(self, split: str) -> int:
        """How many carts a split has."""
        recipe = self.recipe
        return {"train": recipe.training, "validation": recipe.validation, "test": recipe.test}[split]

    def number(self, indices: Array) -> Array:
        """Which cart was drawn."""
        return indices

    def _first(self, split: str) -> int:
        return sum(self.size(each) for each in SPLITS[: SPLITS.index(split)])

    def draw(self, key: Array, split: str) -> Array:
        """The number of one random cart of a split, a scalar."""
        return self._first(split) + jax.random.randint(key, (), 0, self.size(split))

    def draws(self, key: Array, split: str, count: int) -> Array:
        """So many carts' numbers, (count,): every one of the split before any comes twice."""
        rounds = -(-count // self.size(split))
        mixed = [jax.random.permutation(k, self.size(split)) for k in jax.random.split(key, rounds)]
        return self._first(split) + jnp.concatenate(mixed)[:count]

    def gather(self, indices: Array) -> Task:
        """The task of a cart: random episodes to learn from, others to be judged by."""
        return Task(*jax.tree.map(lambda leaf: leaf[indices], (self.support, self.query)))

    def _kept_up(self, policy: Any, physics: Array, *inputs: Any) -> Array:
        """How many pushes the pole stays up, by policy(state, physics, *inputs) -> push; mean of episodes.

        Gymnasium says it, outside of JAX, for one task after another.
        """

        def outside(*given: Any) -> np.float32:
            physics, *inputs = jax.tree.map(np.asarray, given)
            push = lambda state: policy(state, physics, *inputs)  # noqa: E731
            episodes = range(self.recipe.episodes)
            return np.float32(np.mean([len(ride(physics, push, self.recipe.horizon, n)) for n in episodes]))

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(outside, shape, physics, *inputs, vmap_method="sequential")

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """For how many pushes the likelier ones keep the pole up, and the query's mean gain by weight."""
        up = self._kept_up(likelier, task.query.physics, phi["actor"])
        return {"return": up, "gain": -self.query_loss(phi, None, task.query)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Pushes kept up: at random, and by a rule for the angle that knows how the motor is wired."""
        physics = task.query.physics
        return {
            "random_pushes": self._kept_up(random, physics),
            "wiring_known": self._kept_up(upright, physics),
        }

    def scenes(self, before: Any, after: Any, task: Task) -> list[Scene]:
        """The pole's angle over time before and after adaptation, in the first of the judged episodes."""
        physics = np.asarray(task.query.physics)
        policies = {"wiring known": lambda x: upright(x, physics)}
        for name, phi in (("before", before), ("after", after)):
            actor = jax.tree.map(np.asarray, phi["actor"])
            policies[name] = lambda x, actor=actor: likelier(x, physics, actor)
        ridden = {n: ride(physics, policy, self.recipe.horizon, 0) for n, policy in policies.items()}
        lines = {n: (0.02 * np.arange(len(r)), 12 * r[:, 2]) for n, r in ridden.items()}
        up = f"{len(ridden['before'])} pushes before, {len(ridden['after'])} after"
        note = f"it falls at 12 degrees; up for {up}, of {self.recipe.horizon}"
        return [Scene("angle of the pole, degrees", note, lines, "time, s")]

    def support_fields(self) -> dict[str, Field]:
        """Return what transitions are: states in `SCALES`, pushes 0 or 1, and log chances of the pushes."""
        state, push = Field((len(SCALES),)), Field((), "int", PUSHES)
        return {"states": state, "actions": push, "rewards": Field(), "following": state, "chances": Field()}

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return rewards of 1, and the log chances of random pushes."""
        count = len(next(iter(arrays.values())))
        chances = np.full(count, -np.log(PUSHES), np.float32)
        return {"rewards": np.ones(count, np.float32), "chances": chances}

    def query_field(self) -> Field:
        """Return what states ``(n, 4)``, in `SCALES`, are."""
        return Field((len(SCALES),))

    def encode(self, x: Any, y: Any = None) -> Encoded:
        """Return transitions as a batch; predictions are pushes, 0 or 1."""
        return super().encode(x, y)._replace(classes=np.arange(PUSHES))

    def forward(self, phi: Any, rows: Array, statistics: Any = None) -> Array:
        """Return the actor's logits ``(n, 2)`` in states ``(n, 4)``."""
        return self.recipe.actor.forward(phi["actor"], rows)[0]


def likelier(state: np.ndarray, physics: np.ndarray, actor: Any) -> int:
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
    angle, turning, place, speed = state[2] * SCALES[2], state[3] * SCALES[3], state[0], state[1]
    lean = angle + 0.3 * turning + 0.05 * place + 0.1 * speed
    return int((lean > 0) == (physics[-1] > 0))


def cart_of(physics: np.ndarray) -> Any:
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
            "domain: carts are stepped by Gymnasium, which is not installed: pip install gymnasium."
        ) from error
    cart = CartPoleEnv()
    for name, value in zip(RANGES, physics, strict=True):
        setattr(cart, name, float(value))
    cart.total_mass = cart.masspole + cart.masscart
    cart.polemass_length = cart.masspole * cart.length
    return cart


def ride(physics: np.ndarray, policy: Any, horizon: int, seed: int) -> np.ndarray:
    """Return the states that one episode goes through before its end.

    Args:
        physics: The cart's physics, ``(k,)``.
        policy: Returns a push for a state.
        horizon: The most pushes.
        seed: Of the first state.

    Returns:
        States ``(n, 4)`` in `SCALES`.
    """
    cart, states = cart_of(physics), []
    state, _ = cart.reset(seed=seed)
    for _ in range(horizon):
        states.append(state / SCALES)
        state, _, ended, _, _ = cart.step(policy(states[-1]))
        if ended:
            break
    return np.array(states)


def _episodes(cart: Any, random: np.random.Generator, count: int, discount: float) -> tuple:
    """So many random pushes: states, pushes, where to, and discounted rewards until the pole fell."""
    rows, gains = [], []
    while len(rows) < count:
        state, _ = cart.reset(seed=int(random.integers(2**31)))
        began, ended = len(rows), False
        while not ended:
            push = int(random.integers(PUSHES))
            after, _, ended, _, _ = cart.step(push)
            rows.append((state / SCALES, push, after / SCALES))
            state = after
        left = np.arange(len(rows) - began, 0, -1)
        gains.extend((1 - discount**left) / (1 - discount))  # a reward of 1 a push
    states, pushes, following = (np.array(part[:count]) for part in zip(*rows, strict=True))
    return states, pushes.astype(np.int32), following, np.array(gains[:count], np.float32)


@functools.lru_cache(maxsize=4)
def _driven(recipe: CartsRecipe) -> Carts:
    """The domain of a recipe, its episodes made."""
    carts = recipe.training + recipe.validation + recipe.test
    all_physics, seen = [], []
    for number in range(carts):
        random = np.random.default_rng((recipe.seed, number))
        physics = np.array([random.uniform(*each) for each in RANGES.values()], np.float32)
        physics[-1] *= random.choice([-1, 1])
        cart = cart_of(physics)
        parts = [_episodes(cart, random, n, recipe.discount) for n in (recipe.steps, recipe.queries)]
        all_physics.append(physics)
        seen.append(parts)
    support, query = (
        [np.stack(part) for part in zip(*each, strict=True)] for each in zip(*seen, strict=True)
    )
    guess = _guess(query[0][: recipe.training], query[3][: recipe.training])
    surplus = query[3] - _features(query[0]) @ guess
    made = [
        Transitions(
            jnp.asarray(states, jnp.float32), jnp.asarray(pushes), jnp.ones(pushes.shape, jnp.float32),
            jnp.asarray(following, jnp.float32), jnp.full(pushes.shape, -np.log(PUSHES), jnp.float32),
        )
        for states, pushes, following, _ in (support, query)
    ]  # fmt: skip
    driven = Driven(made[1], jnp.asarray(surplus, jnp.float32), jnp.asarray(np.stack(all_physics)))
    return Carts(made[0], driven, recipe)


def _features(states: np.ndarray) -> np.ndarray:
    """One, the state, and its products: (..., 15)."""
    ones = np.concatenate([np.ones_like(states[..., :1]), states], -1)
    row, column = np.triu_indices(ones.shape[-1])
    return ones[..., row] * ones[..., column]


def _guess(states: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The coefficients (15,) of the best quadratic guess of gains from states."""
    return np.linalg.lstsq(_features(states.reshape(-1, states.shape[-1])), gains.ravel(), rcond=None)[0]


def carts(steps: int = 100, **options: Any) -> Carts:
    """Return Gymnasium's carts, each seen for a few random pushes.

    Args:
        steps: Random pushes of a support set.
        **options: The other fields of `CartsRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.carts(steps=10, queries=10, training=2, validation=1, test=1)
        >>> domain.sample(jax.random.key(0), "train").support.states.shape
        (10, 4)
    """
    return CartsRecipe(steps, **options).build()
