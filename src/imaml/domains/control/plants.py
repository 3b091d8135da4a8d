"""Plants to be controlled by trajectory optimisation: each task one plant, a few seconds of which are seen.

The task's parameters phi are a network's that tells a plant's accelerations; the inner problem fits them to
measured ones, near theta, which so is a prior of models. With the adapted model iterative LQR (trajectory.py)
plans; the plan and its feedback gains are then followed in the true plant, and what that costs judges phi:

    query_loss = J(true plant, followed(plan(phi))),   d plan / d phi by one Riccati sweep

or, cheaper and what most learn models by, the error of accelerations elsewhere (judge="prediction").
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...core.recipes import recipe
from ...core.solution import Solution
from ...core.validation import require_number, require_one_of, require_whole
from ...inner.ilqr import ILQR, Trajectory
from ...problems.base import Problem, Task
from ...problems.proximal import plain, proximal
from ..arrays import Field
from ..base import DomainBase
from ..networks import MLP
from ..recipes import DomainRecipe
from ..regression import NetworkLoss, Points
from ..scenes import Scene
from .physics import KINDS, Kind

JUDGES = ("prediction", "control")


@recipe("domain")
@dataclass(frozen=True)
class PlantsRecipe(DomainRecipe):
    """The recipe of a domain of plants.

    Args:
        plant: pendulum, cart-pole or quadrotor.
        walks: Runs under random controls of a support set.
        length: Steps of each run.
        noise: Of the measured accelerations, as a share of a typical one.
        queries: States elsewhere that predictions are judged by.
        horizon: Steps that are planned.
        iterations: The most iterations of iterative LQR (`ILQR`).
        tolerance: Where it stops.
        hidden: Units of the model's hidden layers.
        judge: "prediction" or "control".

    Raises:
        ConfigError: If a field is out of its range.
    """

    plant: str = "pendulum"
    walks: int = 2
    length: int = 20
    noise: float = 0.02
    queries: int = 64
    horizon: int = 60
    iterations: int = 60
    tolerance: float = 1e-4
    hidden: tuple[int, ...] = (48, 48)
    judge: str = "prediction"

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_one_of("domain", "plant", self.plant, tuple(KINDS))
        require_one_of("domain", "judge", self.judge, JUDGES)
        require_whole("domain", 1, walks=self.walks, length=self.length, queries=self.queries)
        require_whole("domain", 1, horizon=self.horizon, iterations=self.iterations)
        require_number("domain", 0, noise=self.noise)
        require_number("domain", 0, open=True, tolerance=self.tolerance)
        for units in self.hidden:
            require_whole("domain", 1, hidden=units)

    def build(self) -> Plants:
        """The domain."""
        return Plants(self)

    @property
    def kind(self) -> Kind:
        """The kind of plant."""
        return KINDS[self.plant]

    @property
    def network(self) -> MLP:
        """The model: scaled state and control to scaled accelerations."""
        return MLP((self.kind.inputs, *self.hidden, self.kind.freedoms), "tanh")


class Plant(NamedTuple):
    """A plant: its physics (k,), and the key of what is seen of it."""

    physics: Array
    key: Array


class Flight(NamedTuple):
    """A query: states elsewhere with their accelerations, and the physics of the true plant, (k,)."""

    points: Points
    physics: Array


@functools.lru_cache(maxsize=64)
def _optimiser(recipe: PlantsRecipe, modelled: bool) -> ILQR:
    """Iterative LQR of a kind of plant; the same object for the same recipe, so that it is traced once."""
    kind = recipe.kind

    def accelerations(state: Array, control: Array, parameters: Any) -> Array:
        if not modelled:
            return kind.accelerate(state, control, parameters)
        outputs = recipe.network.forward(parameters, kind.features(state, control)[None])[0][0]
        return outputs * jnp.array(kind.accelerations, outputs.dtype)

    def dynamics(state: Array, control: Array, parameters: Any) -> Array:
        return kind.onward(state, accelerations(state, control, parameters))

    def running(state: Array, control: Array, parameters: Any) -> Array:
        return kind.seconds * (kind.distance(state) + kind.effort * control @ control)

    def final(state: Array, parameters: Any) -> Array:
        return kind.distance(state)

    limits = (-kind.most, kind.most)
    return ILQR(dynamics, running, final, *limits, steps=recipe.iterations, tolerance=recipe.tolerance)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Plants(DomainBase):
    """Pendulums, cart-poles or quadrotors, each of its own masses and lengths."""

    recipe: PlantsRecipe

    headline: ClassVar[str] = "cost"
    higher_is_better: ClassVar[bool] = False
    support_type: ClassVar[type] = Points

    @property
    def loss(self) -> NetworkLoss:
        """Half the mean squared error of accelerations."""
        return NetworkLoss(self.recipe.network)

    def init(self, key: Array) -> Any:
        """Fresh parameters of the network."""
        return self.recipe.network.init(key)

    def problem(self, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """Half the mean squared error on the support + strength/2 |phi - theta|^2; no anchor for None."""
        if strength is None:
            return plain(self.loss, adapt)
        return proximal(self.loss, strength, adapt, curvature=curvature)

    @staticmethod
    def whole(support: Points, query: Flight) -> Points:
        """All that is seen of a plant as one batch, for methods that learn from it unsplit."""
        return Points(*(jnp.concatenate(pair) for pair in zip(support, query.points, strict=True)))

    def shared_loss(self, theta: Any, batch: Points) -> Array:
        """Half the mean squared error of one model for all plants, a scalar."""
        return self.loss(theta, batch)

    @property
    def planner(self) -> ILQR:
        """Iterative LQR with a model's accelerations, of parameters phi."""
        return _optimiser(self.recipe, True)

    @property
    def true(self) -> ILQR:
        """Iterative LQR with the true accelerations, of a plant's physics."""
        return _optimiser(self.recipe, False)

    def _start(self, dtype: Any) -> tuple[Array, Array]:
        """The state that plans begin at, and the controls that they begin with."""
        kind = self.recipe.kind
        state = jnp.concatenate([jnp.array(kind.begin, dtype), jnp.zeros(kind.freedoms, dtype)])
        push = 0.2 * kind.most * jnp.sin(jnp.arange(self.recipe.horizon) * 4 * kind.seconds)
        return state, jnp.tile(push[:, None], (1, kind.actuators)).astype(dtype)

    def plan(self, phi: Any) -> Solution:
        """The plan that a model makes, a `Trajectory`, to be differentiated in phi by a Riccati sweep.

        As good as the plan is a solution, which the status says.
        """
        start, guess = self._start(phi["layer1"]["kernel"].dtype)
        optimiser = self.planner
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
        """The plan for a plant that is known."""
        return self.true(physics, *self._start(physics.dtype)).value

    def query_loss(self, phi: Any, theta: Any, batch: Flight) -> Array:
        """Half the mean squared error elsewhere, or the true cost of the model's plan; see the recipe."""
        if self.recipe.judge == "prediction":
            return self.loss(phi, batch.points)
        return self.followed(self.plan(phi).value, batch.physics)[2]

    def draw(self, key: Array, split: str) -> Plant:
        """One random plant; each split has a stream of its own."""
        kind = self.recipe.kind
        salt = ("train", "validation", "test").index(split)
        physics, seen = jax.random.split(jax.random.fold_in(key, salt))
        low, high = (jnp.array(bound, jnp.float32) for bound in (kind.lowest, kind.highest))
        return Plant(low + (high - low) * jax.random.uniform(physics, low.shape, jnp.float32), seen)

    def _points(self, states: Array, controls: Array, physics: Array, noise: Array) -> Points:
        """Accelerations at states (n, 2 d) under controls (n, m), scaled, with noise (n, d)."""
        kind = self.recipe.kind
        inputs = jax.vmap(kind.features)(states, controls)
        true = jax.vmap(lambda x, u: kind.accelerate(x, u, physics))(states, controls)
        return Points(inputs, true / jnp.array(kind.accelerations, true.dtype) + noise)

    def _states(self, key: Array, count: int) -> Array:
        """Random states (count, 2 d), as far as the kind's data reach."""
        kind = self.recipe.kind
        reach = jnp.array((*kind.around, *kind.speeds), jnp.float32)
        return reach * jax.random.uniform(key, (count, reach.size), jnp.float32, -1, 1)

    def gather(self, indices: Plant) -> Task:
        """The task of a plant: runs under random controls to learn from, and states elsewhere."""
        recipe, kind = self.recipe, self.recipe.kind
        begin, push, noise, elsewhere, others = jax.random.split(indices.key, 5)
        size = (recipe.walks, recipe.length, kind.actuators)
        controls = kind.most * jax.random.uniform(push, size, jnp.float32, -1, 1)
        true = self.true
        starts = 0.5 * self._states(begin, recipe.walks)
        runs = jax.vmap(lambda x, u: true.rollout(indices.physics, x, u)[:-1])(starts, controls)
        states, controls = (part.reshape(-1, part.shape[-1]) for part in (runs, controls))
        errors = recipe.noise * jax.random.normal(noise, (states.shape[0], kind.freedoms), jnp.float32)
        support = self._points(states, controls, indices.physics, errors)
        there = self._states(elsewhere, recipe.queries)
        others = kind.most * jax.random.uniform(others, (recipe.queries, kind.actuators), jnp.float32, -1, 1)
        none = jnp.zeros((recipe.queries, kind.freedoms), jnp.float32)
        return Task(support, Flight(self._points(there, others, indices.physics, none), indices.physics))

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """The true cost of the adapted model's plan, whether that converged, and the accelerations' error."""
        plan = self.plan(phi)
        cost = self.followed(plan.value, task.query.physics)[2]
        error = 2 * self.loss(phi, task.query.points)
        return {"cost": cost, "error": error, "converged": plan.status.ok.astype(error.dtype)}

    def scenes(self, before: Any, after: Any, task: Task) -> list[Scene]:
        """The first position over time where plans are followed in the true plant, and the best one."""
        physics, seconds = task.query.physics, self.recipe.kind.seconds
        flown = jax.jit(lambda phi: self.followed(self.plan(phi).value, physics))
        best = jax.jit(self.best)(physics)
        runs = {"before": flown(before), "after": flown(after)}
        states = {"best": best.states, **{name: run[0] for name, run in runs.items()}}
        lines = {
            name: (seconds * np.arange(len(each)), np.asarray(each[:, 0])) for name, each in states.items()
        }
        costs = [*(float(run[2]) for run in runs.values()), float(best.cost)]
        note = "cost {:.1f} before, {:.1f} after, {:.1f} where the plant is known".format(*costs)
        return [Scene(f"{self.recipe.plant}, first position", note, lines, "time, s")]

    def measure(self, phi: Any, theta: Any, batch: Flight) -> dict[str, Array]:
        """The mean squared error of accelerations; for a method's `measure`."""
        return {"error": 2 * self.loss(phi, batch.points)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Costs: of doing nothing, of the plan for the middle plant, of the plan for the true one."""
        kind, physics = self.recipe.kind, task.query.physics
        middle = (jnp.array(kind.lowest, physics.dtype) + jnp.array(kind.highest, physics.dtype)) / 2
        plans = lax.map(self.best, jnp.stack([middle, physics]))  # compiled once for the two
        plans = jax.tree.map(lambda leaf: jnp.concatenate([jnp.zeros_like(leaf[:1]), leaf]), plans)
        costs = lax.map(lambda plan: self.followed(plan, physics)[2], plans)
        return dict(zip(("no_control", "plan_for_the_middle_plant", "optimal"), costs, strict=True))

    def support_fields(self) -> dict[str, Field]:
        """Return what measurements are: `Kind.features` of states and controls, and scaled accelerations."""
        kind = self.recipe.kind
        return {"inputs": Field((kind.inputs,)), "targets": Field((kind.freedoms,))}

    def query_field(self) -> Field:
        """Return what `Kind.features` of states and controls, ``(n, inputs)``, are."""
        return Field((self.recipe.kind.inputs,))

    def asked(self, query: Flight) -> Array:
        """Return the inputs of states elsewhere."""
        return query.points.inputs

    def forward(self, phi: Any, rows: Array, statistics: Any = None) -> Array:
        """Return scaled accelerations ``(n, freedoms)``; plan with ``domain.plan(predictor.phi)``."""
        return self.recipe.network.forward(phi, rows)[0]

    def query_batch(self, rows: Array) -> Points:
        """Return inputs as a batch with blank targets."""
        return Points(rows, jnp.zeros((len(rows), self.recipe.kind.freedoms), rows.dtype))


def plants(plant: str = "pendulum", **options: Any) -> Plants:
    """Return plants of one kind to be modelled and controlled.

    Args:
        plant: pendulum, cart-pole or quadrotor.
        **options: The other fields of `PlantsRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.plants("pendulum", walks=1, length=10)
        >>> jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0)).support.inputs.shape
        (10, 4)
    """
    return PlantsRecipe(plant, **options).build()
