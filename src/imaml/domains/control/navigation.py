"""Points to be steered to a goal by actor and critic: each task a goal and a wind, known from a few episodes.

The episodes are of random moves, and the inner problem is that of `imaml.domains.control.actor_critic` on
their transitions. phi is judged by the return of the policy's means in the true task, where they are followed
from the middle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...core.errors import ConfigError
from ...core.recipes import recipe
from ...core.validation import require_number, require_whole
from ...problems.base import Task
from ..arrays import Field
from ..networks import MLP
from ..recipes import DomainRecipe
from ..scenes import Scene
from .actor_critic import ActorCritic, Steered, Transitions

NEAREST, FARTHEST = 0.5, 1.0  # of a goal from the middle


@recipe("domain")
@dataclass(frozen=True)
class NavigationRecipe(DomainRecipe):
    """The recipe of a domain of navigation.

    Args:
        episodes: Random walks of a support or query set.
        length: Moves of each walk.
        horizon: Moves that a policy is judged by.
        most: The largest length of a move in each direction.
        wind: How far it may carry.
        discount: Of the critic.
        noise: The standard deviation of the actor's moves, in `most`.
        exploration: The standard deviation of the random moves, in `most`.
        hidden: Units of the hidden layers of both networks.

    Raises:
        ConfigError: If a field is out of its range.
    """

    episodes: int = 4
    length: int = 16
    horizon: int = 20
    most: float = 0.15
    wind: float = 0.05
    discount: float = 0.8
    noise: float = 0.7
    exploration: float = 1.0
    hidden: tuple[int, ...] = (32, 32)

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("domain", 1, episodes=self.episodes, length=self.length, horizon=self.horizon)
        require_number("domain", 0, open=True, most=self.most, noise=self.noise, exploration=self.exploration)
        require_number("domain", 0, wind=self.wind, discount=self.discount)
        if self.discount >= 1:
            raise ConfigError(f"domain: discount={self.discount!r}; accepted are numbers from 0 to below 1.")
        if self.noise**2 >= 2 * self.exploration**2:
            raise ConfigError(
                f"domain: noise={self.noise!r} and exploration={self.exploration!r}; accepted is noise below "
                "1.41 times exploration, as the weights of actions have no variance otherwise."
            )
        for units in self.hidden:
            require_whole("domain", 1, hidden=units)

    def build(self) -> Navigation:
        """The domain."""
        return Navigation(self)

    @property
    def actor(self) -> MLP:
        """Places to mean moves, before they are limited."""
        return MLP((2, *self.hidden, 2), "tanh")

    @property
    def critic(self) -> MLP:
        """Places to values."""
        return MLP((2, *self.hidden, 1), "tanh")


class Place(NamedTuple):
    """A task: where the goal is (2,), how the wind blows (2,), the episodes' key."""

    goal: Array
    wind: Array
    key: Array


class Judged(NamedTuple):
    """A query: more transitions, and the goal and wind of the true task, (2,) each."""

    transitions: Transitions
    goal: Array
    wind: Array


@dataclass(frozen=True)
class Means:
    """The actor's log probabilities: normal around the network's moves; hashable."""

    recipe: NavigationRecipe

    def moves(self, actor: Any, states: Array) -> Array:
        """Mean moves (n, 2) in units of `most`."""
        return jnp.tanh(self.recipe.actor.forward(actor, states)[0])

    def __call__(self, actor: Any, states: Array, actions: Array) -> Array:
        """Log probabilities (n,) of actions (n, 2) in units of `most`."""
        return _normal(actions - self.moves(actor, states), self.recipe.noise)


@dataclass(frozen=True)
class Worth:
    """The critic's values; hashable."""

    recipe: NavigationRecipe

    def __call__(self, critic: Any, states: Array) -> Array:
        """Values (n,) of states (n, 2)."""
        return self.recipe.critic.forward(critic, states)[0][:, 0]


def _normal(away: Array, spread: float) -> Array:
    """Log densities (n,) of two independent normal numbers each."""
    return -0.5 * jnp.sum(jnp.square(away / spread), -1) - 2 * jnp.log(spread) - jnp.log(2 * jnp.pi)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Navigation(Steered):
    """Points in the plane that go to a goal against a wind; a reward is minus the distance that is left."""

    recipe: NavigationRecipe

    @property
    def field(self) -> ActorCritic:
        """What the inner problem goes against."""
        return ActorCritic(Means(self.recipe), Worth(self.recipe), self.recipe.discount)

    @staticmethod
    def whole(support: Transitions, query: Judged) -> Transitions:
        """All of a task's transitions, for methods that learn from them unsplit."""
        return Transitions(*(jnp.concatenate(pair) for pair in zip(support, query.transitions, strict=True)))

    def walked(self, move: Callable[[Array], Array], goal: Array, wind: Array) -> Array:
        """Return where a policy goes from the middle.

        Args:
            move: The policy, from a place ``(2,)`` to a move ``(2,)`` in `most`.
            goal: ``(2,)``.
            wind: ``(2,)``.

        Returns:
            Places ``(horizon + 1, 2)``.
        """

        def onward(place: Array, _: Any) -> tuple[Array, Array]:
            new = place + self.recipe.most * move(place) + wind
            return new, new

        start = jnp.zeros_like(goal)
        return jnp.concatenate([start[None], lax.scan(onward, start, None, self.recipe.horizon)[1]])

    def _return(self, places: Array, goal: Array) -> Array:
        """The mean reward of a walk, its start left out."""
        return jnp.mean(-_apart(places[1:], goal))

    def _judged(self, phi: Any, query: Judged) -> Array:
        """The return of the policy's means."""
        means = Means(self.recipe)
        places = self.walked(lambda x: means.moves(phi["actor"], x[None])[0], query.goal, query.wind)
        return self._return(places, query.goal)

    def query_loss(self, phi: Any, theta: Any, batch: Judged) -> Array:
        """Minus the return of the policy's means in the true task."""
        return -self._judged(phi, batch)

    def draw(self, key: Array, split: str) -> Place:
        """One random task; each split has a stream of its own."""
        salt = ("train", "validation", "test").index(split)
        goal, wind, episodes = jax.random.split(jax.random.fold_in(key, salt), 3)
        angle, far = jax.random.uniform(goal, (2,), jnp.float32)
        way = jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)])
        reach = self.recipe.wind
        blowing = jax.random.uniform(wind, (2,), jnp.float32, -1, 1) * reach
        return Place((NEAREST + (FARTHEST - NEAREST) * far) * way, blowing, episodes)

    def _episodes(self, key: Array, goal: Array, wind: Array) -> Transitions:
        """Random walks from random places."""
        recipe = self.recipe
        begin, moves = jax.random.split(key)
        start = jax.random.uniform(begin, (recipe.episodes, 2), jnp.float32, -FARTHEST, FARTHEST)
        size = (recipe.episodes, recipe.length, 2)
        actions = recipe.exploration * jax.random.normal(moves, size, jnp.float32)
        after = start[:, None] + jnp.cumsum(recipe.most * actions + wind, axis=1)
        before = jnp.concatenate([start[:, None], after[:, :-1]], axis=1)
        states, actions, following = (part.reshape(-1, 2) for part in (before, actions, after))
        chances = _normal(actions, recipe.exploration)
        return Transitions(states, actions, -_apart(following, goal), following, chances)

    def gather(self, indices: Place) -> Task:
        """The task of a goal and a wind: random episodes to learn from, others to be judged by."""
        goal, wind, key = indices
        support, query = (self._episodes(each, goal, wind) for each in jax.random.split(key))
        return Task(support, Judged(query, goal, wind))

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """The return of the policy's means, and the critic's mean squared temporal difference."""
        advantages = self.field.advantages(phi["critic"], task.query.transitions)
        return {"return": self._judged(phi, task.query), "difference": jnp.mean(jnp.square(advantages))}

    def scenes(self, before: Any, after: Any, task: Task) -> list[Scene]:
        """The paths of the policy's means before and after adaptation, and the straight one."""
        goal, wind, most = task.query.goal, task.query.wind, self.recipe.most
        means = Means(self.recipe)
        path = lambda phi: self.walked(lambda x: means.moves(phi["actor"], x[None])[0], goal, wind)  # noqa: E731
        straight = self.walked(lambda place: jnp.clip((goal - place - wind) / most, -1, 1), goal, wind)
        paths = {"best": straight, "before": path(before), "after": path(after), "goal": goal[None]}
        lines = {name: (np.asarray(p[:, 0]), np.asarray(p[:, 1])) for name, p in paths.items()}
        gone = " to ".join(f"{float(self._return(paths[name][:], goal)):.2f}" for name in ("before", "after"))
        note = f"from the middle, {self.recipe.horizon} moves; return {gone}"
        return [Scene("paths in the plane", note, lines, "first coordinate")]

    def measure(self, phi: Any, theta: Any, batch: Judged) -> dict[str, Array]:
        """The return of the policy's means; for a method's `measure`."""
        return {"return": self._judged(phi, batch)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Returns: of not moving, and of going straight to the goal against the wind."""
        goal, wind, most = task.query.goal, task.query.wind, self.recipe.most
        still = self.walked(jnp.zeros_like, goal, wind)
        straight = self.walked(lambda place: jnp.clip((goal - place - wind) / most, -1, 1), goal, wind)
        return {"no_moves": self._return(still, goal), "straight": self._return(straight, goal)}

    def support_fields(self) -> dict[str, Field]:
        """Return what transitions are: places, moves in `most`, rewards, and log densities of the moves."""
        place = Field((2,))
        return {"states": place, "actions": place, "rewards": Field(), "following": place, "chances": Field()}

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return the log densities of normal moves as wide as `exploration`."""
        if "actions" not in arrays:
            return {}
        return {"chances": _normal(jnp.asarray(arrays["actions"]), self.recipe.exploration)}

    def query_field(self) -> Field:
        """Return what places ``(n, 2)`` are."""
        return Field((2,))

    def forward(self, phi: Any, rows: Array, statistics: Any = None) -> Array:
        """Return the policy's mean moves ``(n, 2)`` in `most`, at places ``(n, 2)``."""
        return Means(self.recipe).moves(phi["actor"], rows)


def _apart(places: Array, goal: Array) -> Array:
    """Distances (n,), smooth at none."""
    return jnp.sqrt(jnp.sum(jnp.square(places - goal), -1) + 1e-6)


def navigation(**options: Any) -> Navigation:
    """Return points to be steered to goals.

    Args:
        **options: The fields of `NavigationRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.navigation(episodes=2, length=5)
        >>> domain.sample(jax.random.key(0), "train").support.states.shape
        (10, 2)
    """
    return NavigationRecipe(**options).build()
