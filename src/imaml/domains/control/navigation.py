"""Navigation by actor and critic: each task is a goal and a wind, known from a few episodes.

The episodes consist of random moves, and the inner problem is that of `imaml.domains.control.actor_critic` on
their transitions. The score of phi is the return of the policy's mean moves in the true task, from the
origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...core.errors import ConfigError
from ...core.fields import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...problems.base import Task
from ..recipes import builder
from ..scenes import Scene
from .actor_critic import ActorCritic, ActorCriticDomain, ActorCriticRecipe, Transitions

NEAREST, FARTHEST = 0.5, 1.0  # of a goal from the middle


@recipe("domain")
class NavigationRecipe(ActorCriticRecipe):
    """Points to be steered to goals.

    Args:
        episodes: Random episodes of a support or query set.
        length: Moves of each episode.
        horizon: Moves that a policy is judged by.
        most: The largest length of a move in each direction.
        wind: The largest length of the wind in each direction.
        discount: The critic's discount.
        noise: The standard deviation of the actor's moves, in units of `most`.
        exploration: The standard deviation of the random moves, in units of `most`.
        hidden: Units of the hidden layers of both networks.

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.navigation(episodes=2, length=5)
        >>> domain.sample(jax.random.key(0), "train").support.states.shape
        (10, 2)
    """

    episodes: PositiveInt = 4
    length: PositiveInt = 16
    horizon: PositiveInt = 20
    most: PositiveFloat = 0.15
    wind: NonNegativeFloat = 0.05
    discount: Fraction = 0.8
    noise: PositiveFloat = 0.7
    exploration: PositiveFloat = 1.0
    hidden: tuple[PositiveInt, ...] = (32, 32)

    state_size: ClassVar[int] = 2

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        if self.noise**2 >= 2 * self.exploration**2:
            raise ConfigError(
                f"domain: noise: expected less than 1.41 times exploration ({self.exploration!r}), got "
                f"{self.noise!r}. Otherwise the importance weights have no variance."
            )

    def build(self) -> Navigation:
        """Return the domain."""
        return Navigation(self)


navigation = builder(NavigationRecipe)


class Judged(NamedTuple):
    """A query: more transitions, and the goal and wind of the true task, (2,) each."""

    transitions: Transitions
    goal: Array
    wind: Array


@dataclass(frozen=True)
class NormalMoves(ActorCritic):
    """The field of a policy whose moves are normal around the actor's; moves are in units of `most`."""

    recipe: NavigationRecipe

    def moves(self, actor: Tree, states: Array) -> Array:
        """Return the actor's mean moves.

        Args:
            actor: The actor's parameters.
            states: Places ``(n, 2)``.

        Returns:
            Moves ``(n, 2)`` in units of `most`, each entry between -1 and 1.
        """
        return jnp.tanh(self.recipe.actor.forward(actor, states)[0])

    def log_chance(self, actor: Tree, states: Array, actions: Array) -> Array:
        """Return the log densities of moves ``(n, 2)``."""
        return _normal(actions - self.moves(actor, states), self.recipe.noise)


def _normal(away: Array, spread: float) -> Array:
    """Return the log densities (n,) of pairs (n, 2) of independent normal numbers."""
    return -0.5 * jnp.sum(jnp.square(away / spread), -1) - 2 * jnp.log(spread) - jnp.log(2 * jnp.pi)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Navigation(ActorCriticDomain):
    """Points in the plane that go to a goal against a wind; a reward is minus the distance that is left."""

    recipe: NavigationRecipe

    oracles: ClassVar[frozenset[str]] = frozenset({"straight"})

    @property
    def field(self) -> NormalMoves:
        """The vector field of the inner problem."""
        return NormalMoves(self.recipe)

    def walked(self, move: Callable[[Array], Array], query: Judged) -> Array:
        """Return the places that a policy goes through from the origin.

        Args:
            move: The policy, from a place ``(2,)`` to a move ``(2,)`` in units of `most`.
            query: The true task.

        Returns:
            Places ``(horizon + 1, 2)``.
        """

        def onward(place: Array, _: None) -> tuple[Array, Array]:
            new = place + self.recipe.most * move(place) + query.wind
            return new, new

        start = jnp.zeros_like(query.goal)
        return jnp.concatenate([start[None], lax.scan(onward, start, None, self.recipe.horizon)[1]])

    def _path(self, phi: Tree, query: Judged) -> Array:
        """Return the places that the policy's mean moves go through."""
        return self.walked(lambda place: self.field.moves(phi["actor"], place[None])[0], query)

    def _straight(self, query: Judged) -> Array:
        """Return the places on the way straight to the goal, against the wind."""
        most = self.recipe.most
        return self.walked(lambda place: jnp.clip((query.goal - place - query.wind) / most, -1, 1), query)

    def _return(self, places: Array, query: Judged) -> Array:
        """Return the mean reward of a path, without that of its start."""
        return jnp.mean(-_distances(places[1:], query.goal))

    def query_loss(self, phi: Tree, theta: Tree, batch: Judged) -> Array:
        """Return minus the return of the policy's mean moves in the true task."""
        return -self._return(self._path(phi, batch), batch)

    def _episodes(self, key: Array, goal: Array, wind: Array) -> Transitions:
        """Return random episodes from random places."""
        recipe = self.recipe
        begin, moves = jax.random.split(key)
        start = jax.random.uniform(begin, (recipe.episodes, 2), jnp.float32, -FARTHEST, FARTHEST)
        size = (recipe.episodes, recipe.length, 2)
        actions = recipe.exploration * jax.random.normal(moves, size, jnp.float32)
        after = start[:, None] + jnp.cumsum(recipe.most * actions + wind, axis=1)
        before = jnp.concatenate([start[:, None], after[:, :-1]], axis=1)
        states, actions, following = (part.reshape(-1, 2) for part in (before, actions, after))
        chances = _normal(actions, recipe.exploration)
        return Transitions(states, actions, -_distances(following, goal), following, chances)

    def gather(self, indices: Array) -> Task:
        """Return a random task, drawn by a key: random episodes to learn from, others to be judged by."""
        goal_key, wind_key, key = jax.random.split(indices, 3)
        angle, far = jax.random.uniform(goal_key, (2,), jnp.float32)
        direction = jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)])
        goal = (NEAREST + (FARTHEST - NEAREST) * far) * direction
        wind = jax.random.uniform(wind_key, (2,), jnp.float32, -1, 1) * self.recipe.wind
        support, query = (self._episodes(each, goal, wind) for each in jax.random.split(key))
        return Task(support, Judged(query, goal, wind))

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the return of the policy's mean moves, and the critic's mean squared temporal difference."""
        advantages = self.field.advantages(phi["critic"], task.query.transitions)
        return {**self.measure(phi, None, task.query), "difference": jnp.mean(jnp.square(advantages))}

    def measure(self, phi: Tree, theta: Tree, batch: Judged) -> dict[str, Array]:
        """Return the return of the policy's mean moves."""
        return {"return": -self.query_loss(phi, theta, batch)}

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return the paths of the policy's mean moves before and after adaptation, and the straight one."""
        query = task.query
        paths = {"best": self._straight(query), "before": self._path(before, query)}
        paths |= {"after": self._path(after, query), "goal": query.goal[None]}
        lines = {name: (np.asarray(p[:, 0]), np.asarray(p[:, 1])) for name, p in paths.items()}
        returns = self.change(before, after, task, ".2f")
        note = f"from the middle, {self.recipe.horizon} moves; return {returns}"
        return [Scene("paths in the plane", note, lines, "first coordinate")]

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the returns of not moving, and of going straight to the goal against the wind."""
        paths = {"no_moves": self.walked(jnp.zeros_like, task.query), "straight": self._straight(task.query)}
        return {name: self._return(path, task.query) for name, path in paths.items()}

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return the log densities of normal moves as wide as `exploration`."""
        if "actions" not in arrays:
            return {}
        return {"chances": _normal(jnp.asarray(arrays["actions"]), self.recipe.exploration)}

    def forward(self, phi: Tree, rows: Array, statistics: None = None) -> Array:
        """Return the policy's mean moves ``(n, 2)`` in units of `most`, at places ``(n, 2)``."""
        return self.field.moves(phi["actor"], rows)


def _distances(places: Array, goal: Array) -> Array:
    """Return distances (n,) from a goal, smooth where they are 0."""
    return jnp.sqrt(jnp.sum(jnp.square(places - goal), -1) + 1e-6)
