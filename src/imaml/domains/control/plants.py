"""Plants controlled by trajectory optimisation: each task is a plant that was observed for a few seconds.

The task's parameters phi are those of a network that predicts a plant's accelerations. The inner problem fits
them to measured accelerations, near theta, the mean of a prior over models. Iterative LQR (`ILQR`) plans with
the adapted model. The plan and its feedback gains are then followed in the true plant, and the cost is the
score of phi:

    query_loss = J(true plant, followed(plan(phi))),   d plan / d phi by one Riccati sweep

or, which is cheaper and common for learned models, the error of other accelerations (judge="prediction").
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from ...core.fields import NonNegativeFloat, PositiveFloat, PositiveInt
from ...core.recipes import recipe
from ...core.solution import Solution
from ...core.tree import Tree
from ...inner.ilqr import ILQR, Trajectory
from ...problems.base import Task
from ..arrays import Field
from ..networks import MLP
from ..recipes import DomainRecipe, builder
from ..regression import NetworkLoss, Points, RegressionDomain
from ..scenes import Scene
from .physics import KINDS, Kind


@recipe("domain")
class PlantsRecipe(DomainRecipe):
    """Plants of one kind to be modelled and controlled.

    Args:
        plant: "pendulum", "cart-pole" or "quadrotor".
        walks: Runs under random controls of a support set.
        length: Steps of each run.
        noise: The noise of the measured accelerations, as a share of a typical one.
        queries: States elsewhere that predictions are judged by.
        horizon: Steps that are planned.
        iterations: The most iterations of iterative LQR (`ILQR`).
        tolerance: The tolerance of iterative LQR.
        hidden: Units of the model's hidden layers.
        judge: "prediction" or "control".

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.plants("pendulum", walks=1, length=10)
        >>> jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0)).support.inputs.shape
        (10, 4)
    """

    plant: Literal["pendulum", "cart-pole", "quadrotor"] = "pendulum"
    walks: PositiveInt = 2
    length: PositiveInt = 20
    noise: NonNegativeFloat = 0.02
    queries: PositiveInt = 64
    horizon: PositiveInt = 60
    iterations: PositiveInt = 60
    tolerance: PositiveFloat = 1e-4
    hidden: tuple[PositiveInt, ...] = (48, 48)
    judge: Literal["prediction", "control"] = "prediction"

    def build(self) -> Plants:
        """Return the domain."""
        return Plants(self)

    @property
    def kind(self) -> Kind:
        """The kind of plant."""
        return KINDS[self.plant]

    @property
    def network(self) -> MLP:
        """The model: scaled state and control to scaled accelerations."""
        return MLP((self.kind.inputs, *self.hidden, self.kind.freedoms), "tanh")


plants = builder(PlantsRecipe)


class Flight(NamedTuple):
    """A query batch: states elsewhere with their accelerations, and the true plant's physics ``(k,)``."""

    points: Points
    physics: Array


@functools.lru_cache(maxsize=64)
def _optimiser(recipe: PlantsRecipe, modelled: bool) -> ILQR:
    """Return iterative LQR of a kind of plant; one object for a recipe, so that it is traced once."""
    kind = recipe.kind

    def dynamics(state: Array, control: Array, parameters: Tree) -> Array:
        if not modelled:
            return kind.onward(state, kind.accelerate(state, control, parameters))
        outputs = recipe.network.forward(parameters, kind.features(state, control)[None])[0][0]
        return kind.onward(state, outputs * jnp.array(kind.accelerations, outputs.dtype))

    def running(state: Array, control: Array, parameters: Tree) -> Array:
        return kind.seconds * (kind.distance(state) + kind.effort * control @ control)

    def final(state: Array, parameters: Tree) -> Array:
        return kind.distance(state)

    limits = (-kind.most, kind.most)
    return ILQR(dynamics, running, final, *limits, steps=recipe.iterations, tolerance=recipe.tolerance)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Plants(RegressionDomain):
    """Pendulums, cart-poles or quadrotors, each with masses and lengths of its own."""

    recipe: PlantsRecipe

    headline: ClassVar[str] = "cost"
    oracles: ClassVar[frozenset[str]] = frozenset({"optimal"})

    @property
    def loss(self) -> NetworkLoss:
        """Half the mean squared error of accelerations."""
        return NetworkLoss(self.recipe.network)

    @property
    def true(self) -> ILQR:
        """Iterative LQR with the true accelerations of a plant with given physics."""
        return _optimiser(self.recipe, modelled=False)

    def _start(self, dtype: DTypeLike) -> tuple[Array, Array]:
        """Return the first state of plans, and the controls that planning starts from."""
        kind = self.recipe.kind
        state = jnp.concatenate([jnp.array(kind.begin, dtype), jnp.zeros(kind.freedoms, dtype)])
        push = 0.2 * kind.most * jnp.sin(jnp.arange(self.recipe.horizon) * 4 * kind.seconds)
        return state, jnp.tile(push[:, None], (1, kind.actuators)).astype(dtype)

    def plan(self, phi: Tree) -> Solution:
        """Plan with a model, differentiably in phi by a Riccati sweep.

        Args:
            phi: The model's parameters.

        Returns:
            The plan, a `Trajectory`, with the status of its solution. Its derivative is exact at a solution.
        """
        start, guess = self._start(phi["layer1"]["kernel"].dtype)
        optimiser = _optimiser(self.recipe, modelled=True)
        found = lax.stop_gradient(optimiser(phi, start, guess))
        controls = optimiser.through(phi, start, found.value)
        states = optimiser.rollout(phi, start, controls)
        gains, cost = optimiser.feedback(phi, states, controls), optimiser.cost(phi, states, controls)
        return replace(found, value=Trajectory(states, controls, gains, cost))

    def followed(self, plan: Trajectory, physics: Array) -> tuple[Array, Array, Array]:
        """Follow a plan in a true plant.

        Args:
            plan: The plan, with its feedback gains.
            physics: The plant's physics, ``(k,)``.

        Returns:
            The states, the controls, and the cost, a scalar.
        """
        plant = self.true
        states, controls = plant.follow(physics, self._start(plan.controls.dtype)[0], plan)
        return states, controls, plant.cost(physics, states, controls)

    def best(self, physics: Array) -> Trajectory:
        """Return the plan for a plant with known physics.

        Args:
            physics: The plant's physics, ``(k,)``.

        Returns:
            The plan of iterative LQR with the true accelerations.
        """
        return self.true(physics, *self._start(physics.dtype)).value

    def query_loss(self, phi: Tree, theta: Tree, batch: Flight) -> Array:
        """Return half the mean squared error elsewhere, or the true cost of the plan; see the recipe."""
        if self.recipe.judge == "prediction":
            return self.loss(phi, batch.points)
        return self.followed(self.plan(phi).value, batch.physics)[2]

    def _points(self, states: Array, controls: Array, physics: Array, noise: ArrayLike = 0.0) -> Points:
        """Return scaled accelerations at states (n, 2 d) under controls (n, m), with noise (n, d)."""
        kind = self.recipe.kind
        inputs = jax.vmap(kind.features)(states, controls)
        true = jax.vmap(lambda x, u: kind.accelerate(x, u, physics))(states, controls)
        return Points(inputs, true / jnp.array(kind.accelerations, true.dtype) + noise)

    def _states(self, key: Array, count: int) -> Array:
        """Return random states (count, 2 d) in the range of the kind's data."""
        kind = self.recipe.kind
        reach = jnp.array((*kind.around, *kind.speeds), jnp.float32)
        return reach * jax.random.uniform(key, (count, reach.size), jnp.float32, -1, 1)

    def gather(self, indices: Array) -> Task:
        """Return a random plant, drawn by a key: runs under random controls, and states elsewhere."""
        recipe, kind = self.recipe, self.recipe.kind
        physics_key, seen = jax.random.split(indices)
        low, high = (jnp.array(bound, jnp.float32) for bound in (kind.lowest, kind.highest))
        physics = low + (high - low) * jax.random.uniform(physics_key, low.shape, jnp.float32)
        begin, push, noise, elsewhere, others = jax.random.split(seen, 5)
        # The support: runs under random controls, with noisy accelerations.
        size = (recipe.walks, recipe.length, kind.actuators)
        controls = kind.most * jax.random.uniform(push, size, jnp.float32, -1, 1)
        true = self.true
        starts = 0.5 * self._states(begin, recipe.walks)
        runs = jax.vmap(lambda x, u: true.rollout(physics, x, u)[:-1])(starts, controls)
        states, controls = (part.reshape(-1, part.shape[-1]) for part in (runs, controls))
        errors = recipe.noise * jax.random.normal(noise, (states.shape[0], kind.freedoms), jnp.float32)
        support = self._points(states, controls, physics, errors)
        # The query: random states and controls, with exact accelerations.
        there = self._states(elsewhere, recipe.queries)
        others = kind.most * jax.random.uniform(others, (recipe.queries, kind.actuators), jnp.float32, -1, 1)
        return Task(support, Flight(self._points(there, others, physics), physics))

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the true cost of the adapted model's plan, whether it converged, and the model's error."""
        plan, error = self.plan(phi), self.measure(phi, None, task.query)["error"]
        cost = self.followed(plan.value, task.query.physics)[2]
        return {"cost": cost, "error": error, "converged": plan.status.ok.astype(error.dtype)}

    def measure(self, phi: Tree, theta: Tree, batch: Flight) -> dict[str, Array]:
        """Return the mean squared error of accelerations."""
        return {"error": 2 * self.loss(phi, batch.points)}

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return the first position over time, with plans followed in the true plant, and the best one."""
        physics, seconds = task.query.physics, self.recipe.kind.seconds
        follow = jax.jit(lambda phi: self.followed(self.plan(phi).value, physics))
        best = jax.jit(self.best)(physics)
        best = (best.states, best.controls, best.cost)
        runs = {"best": best, "before": follow(before), "after": follow(after)}
        lines = {
            name: (seconds * np.arange(len(states)), np.asarray(states[:, 0]))
            for name, (states, _, _) in runs.items()
        }
        costs = {name: float(cost) for name, (_, _, cost) in runs.items()}
        note = "cost {before:.1f} before, {after:.1f} after, {best:.1f} where the plant is known"
        return [Scene(f"{self.recipe.plant}, first position", note.format(**costs), lines, "time, s")]

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the costs of doing nothing, and of the plans for the middle plant and for the true one."""
        kind, physics = self.recipe.kind, task.query.physics
        middle = (jnp.array(kind.lowest, physics.dtype) + jnp.array(kind.highest, physics.dtype)) / 2
        plans = lax.map(self.best, jnp.stack([middle, physics]))  # compiled once for both
        plans = jax.tree.map(lambda leaf: jnp.concatenate([jnp.zeros_like(leaf[:1]), leaf]), plans)
        costs = lax.map(lambda plan: self.followed(plan, physics)[2], plans)
        return dict(zip(("no_control", "plan_for_the_middle_plant", "optimal"), costs, strict=True))

    def support_fields(self) -> dict[str, Field]:
        """Return what measurements are: `Kind.features` of states and controls, and scaled accelerations."""
        kind = self.recipe.kind
        return {"inputs": Field((kind.inputs,)), "targets": Field((kind.freedoms,))}
