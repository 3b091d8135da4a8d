"""Actor and critic on transitions of another policy mu, as an inner problem: what domains of control share.

Transitions are of a policy that moves at random, so they do not depend on theta. The inner problem is the
stationary pair of an actor pi and a critic V near theta's (Konda, Tsitsiklis 2000; off-policy by weights:
Degris et al. 2012),

    A_i = r_i + gamma V(x'_i) - V(x_i),     w_i = pi(u_i | x_i) / mu(u_i | x_i)
    F_actor  = - mean_i A_i dw_i/d actor                 +  strength (actor - theta's)
    F_critic = - mean_i w_i A_i dV(x_i)/d critic         +  strength (critic - theta's)

Neither descends the other's loss, and the critic's target is held fixed: dF/dphi is not symmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ...core.validation import require_one_of
from ...problems.base import Problem
from ...problems.proximal import equilibrium
from ..base import DomainBase


class Transitions(NamedTuple):
    """Transitions of a policy, leaves ``(n, ...)``.

    Attributes:
        states: Where from.
        actions: By what.
        rewards: ``(n,)``.
        following: Where to.
        chances: The log probabilities of the actions under that policy, ``(n,)``.
    """

    states: Array
    actions: Array
    rewards: Array
    following: Array
    chances: Array


@dataclass(frozen=True)
class ActorCritic:
    """The field ``({"actor", "critic"}, transitions) -> alike``, zero where both are stationary; hashable.

    Attributes:
        chance: ``(actor, states, actions)`` -> log probabilities ``(n,)``.
        value: ``(critic, states)`` -> values ``(n,)``.
        discount: The discount gamma.
    """

    chance: Callable[[Any, Array, Array], Array]
    value: Callable[[Any, Array], Array]
    discount: float

    def weights(self, actor: Any, batch: Transitions) -> Array:
        """Return how much likelier the actor makes each action than the policy that took it, w ``(n,)``."""
        return jnp.exp(self.chance(actor, batch.states, batch.actions) - batch.chances)

    def advantages(self, critic: Any, batch: Transitions) -> Array:
        """A (n,), the temporal differences."""
        here, there = self.value(critic, batch.states), self.value(critic, batch.following)
        return batch.rewards + self.discount * there - here

    def __call__(self, phi: Any, batch: Transitions) -> Any:
        """F without its anchor."""
        count = batch.rewards.shape[0]
        weights, pull = jax.vjp(lambda actor: self.weights(actor, batch), phi["actor"])
        advantages = self.advantages(phi["critic"], batch)
        _, back = jax.vjp(lambda critic: self.value(critic, batch.states), phi["critic"])
        return {"actor": pull(-advantages / count)[0], "critic": back(-weights * advantages / count)[0]}

    def surrogate(self, phi: Any, batch: Transitions) -> Array:
        """A scalar whose gradient is the field."""
        advantages = lax.stop_gradient(self.advantages(phi["critic"], batch))
        weights = self.weights(phi["actor"], batch)
        values = self.value(phi["critic"], batch.states)
        return -jnp.mean(advantages * weights) - jnp.mean(lax.stop_gradient(weights) * advantages * values)


class Steered(DomainBase):
    """What domains of actor and critic do alike, by `field` and their recipe's `actor` and `critic`."""

    recipe: Any
    headline: ClassVar[str] = "return"
    higher_is_better: ClassVar[bool] = True
    support_type: ClassVar[type] = Transitions

    def asked(self, query: Any) -> Array:
        """Return the states of the query's transitions."""
        return query.transitions.states

    def init(self, key: Array) -> Any:
        """Fresh parameters of both networks."""
        actor, critic = jax.random.split(key)
        return {"actor": self.recipe.actor.init(actor), "critic": self.recipe.critic.init(critic)}

    def problem(self: Any, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """The anchored stationary pair on a support's transitions; no anchor for None.

        ConfigError for curvature="gauss-newton": what is no gradient has none.
        """
        require_one_of("actor and critic", "curvature", curvature, ("hessian",))
        return equilibrium(self.field, strength, adapt)

    def shared_loss(self: Any, theta: Any, batch: Transitions) -> Array:
        """A scalar whose gradient is the field, of one pair of networks for all tasks."""
        return self.field.surrogate(theta, batch)
