"""Actor and critic on transitions of another policy mu, as an inner problem: the base of two domains.

Transitions are of a policy that acts at random, so they do not depend on theta. The inner problem is the
stationary pair of an actor pi and a critic V near theta's (Konda, Tsitsiklis 2000; off-policy by importance
weights: Degris et al. 2012),

    A_i = r_i + gamma V(x'_i) - V(x_i),     w_i = pi(u_i | x_i) / mu(u_i | x_i)
    F_actor  = - mean_i A_i dw_i/d actor                 +  strength (actor - theta's)
    F_critic = - mean_i w_i A_i dV(x_i)/d critic         +  strength (critic - theta's)

Neither descends the other's loss, and the critic's target is held fixed: dF/dphi is not symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ...core.fields import Fraction, PositiveInt
from ...core.tree import Tree
from ..arrays import Field
from ..base import EquilibriumDomain
from ..networks import MLP, init_each
from ..recipes import DomainRecipe


class Transitions(NamedTuple):
    """Transitions of a policy, leaves ``(n, ...)``.

    Attributes:
        states: The states.
        actions: The actions taken there.
        rewards: ``(n,)``.
        following: The states that followed.
        chances: The log probabilities of the actions under that policy, ``(n,)``.
    """

    states: Array
    actions: Array
    rewards: Array
    following: Array
    chances: Array


class ActorCriticRecipe(DomainRecipe):
    """The base of recipes with an actor and a critic; a subclass has the fields ``discount`` and ``hidden``.

    Attributes:
        discount: The discount gamma.
        hidden: Units of the hidden layers of both networks.
        state_size: How many numbers a state has.
        actor_outputs: How many numbers the actor returns for a state.
    """

    discount: Fraction
    hidden: tuple[PositiveInt, ...]
    state_size: ClassVar[int]
    actor_outputs: ClassVar[int] = 2

    @property
    def actor(self) -> MLP:
        """The network from states to what the policy is made of."""
        return MLP((self.state_size, *self.hidden, self.actor_outputs), "tanh")

    @property
    def critic(self) -> MLP:
        """The network from states to values."""
        return MLP((self.state_size, *self.hidden, 1), "tanh")


@dataclass(frozen=True)
class ActorCritic:
    """The vector field ``({"actor", "critic"}, transitions) -> a tree like the first``; hashable.

    It is zero where both are stationary. A subclass defines `log_chance`.

    Attributes:
        recipe: The domain's recipe.
    """

    recipe: ActorCriticRecipe

    def log_chance(self, actor: Tree, states: Array, actions: Array) -> Array:
        """Return the policy's log probabilities of actions.

        Args:
            actor: The actor's parameters.
            states: ``(n, ...)``.
            actions: The actions in these states, ``(n, ...)``.

        Returns:
            Log probabilities, or log densities if actions are continuous, ``(n,)``.
        """
        raise NotImplementedError

    def value(self, critic: Tree, states: Array) -> Array:
        """Return the critic's values of states.

        Args:
            critic: The critic's parameters.
            states: ``(n, ...)``.

        Returns:
            Discounted returns, ``(n,)``.
        """
        return self.recipe.critic.forward(critic, states)[0][:, 0]

    def weights(self, actor: Tree, batch: Transitions) -> Array:
        """Return the importance weights w of the actions.

        Args:
            actor: The actor's parameters.
            batch: The transitions.

        Returns:
            ``pi(u_i | x_i) / mu(u_i | x_i)``, ``(n,)``.
        """
        return jnp.exp(self.log_chance(actor, batch.states, batch.actions) - batch.chances)

    def advantages(self, critic: Tree, batch: Transitions) -> Array:
        """Return the temporal differences A.

        Args:
            critic: The critic's parameters.
            batch: The transitions.

        Returns:
            ``r_i + gamma V(x'_i) - V(x_i)``, ``(n,)``.
        """
        here, there = self.value(critic, batch.states), self.value(critic, batch.following)
        return batch.rewards + self.recipe.discount * there - here

    def __call__(self, phi: Tree, batch: Transitions) -> Tree:
        """Return F without its regularisation, a tree like ``phi``."""
        count = batch.rewards.shape[0]
        weights, weights_vjp = jax.vjp(lambda actor: self.weights(actor, batch), phi["actor"])
        advantages = self.advantages(phi["critic"], batch)
        _, values_vjp = jax.vjp(lambda critic: self.value(critic, batch.states), phi["critic"])
        return {
            "actor": weights_vjp(-advantages / count)[0],
            "critic": values_vjp(-weights * advantages / count)[0],
        }


class ActorCriticDomain(EquilibriumDomain):
    """The base of domains with an actor and a critic; a subclass defines `field`."""

    recipe: ActorCriticRecipe
    headline: ClassVar[str] = "return"
    higher_is_better: ClassVar[bool] = True
    support_type: ClassVar[type] = Transitions

    def init(self, key: Array) -> Tree:
        """Return fresh parameters of both networks."""
        return init_each(key, actor=self.recipe.actor, critic=self.recipe.critic)

    def support_fields(self) -> dict[str, Field]:
        """Return what transitions are: states and actions as the domain's recipe has them."""
        state = Field((self.recipe.state_size,))
        action = Field((), "int", self.actions) if self.actions else Field((self.recipe.actor_outputs,))
        return {
            "states": state,
            "actions": action,
            "rewards": Field(),
            "following": state,
            "chances": Field(),
        }

    def forward(self, phi: Tree, rows: Array, statistics: None = None) -> Array:
        """Return the actor's outputs ``(n, actor_outputs)`` in states ``(n, state_size)``."""
        return self.recipe.actor.forward(phi["actor"], rows)[0]
