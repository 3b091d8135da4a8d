"""Mazes to be learned by soft Q-learning: each task a Markov decision process known from a few walks in it.

Inner problem: the anchored fixed point of the soft Bellman operator on the walks' transitions,

    F = mean_i  dq(s_i, a_i)/dphi  ( q(s_i, a_i) - r_i - gamma V(s'_i) )  +  strength (phi - theta)
    V(s) = temperature log mean_a exp(q(s, a) / temperature),  0 where a walk has ended

which is no gradient (the target moves with phi, and is not differentiated): dF/dphi is not symmetric. For q
linear in phi it is least-squares temporal differences with a ridge towards theta (Bradtke, Barto 1996), and
for one number a state and action the tabular soft Q-learning (Haarnoja et al. 2017, eq. 3). What phi is
judged by is the return of the policy softmax(q / temperature) in the task's true process, a linear system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...core.errors import ConfigError
from ...core.recipes import recipe
from ...core.validation import require_number, require_one_of, require_whole
from ...problems.base import Problem, Task
from ...problems.proximal import equilibrium
from ..arrays import Field
from ..base import DomainBase, Encoded
from ..networks import MLP
from ..recipes import DomainRecipe
from ..scenes import Scene
from .markov import Process, Walks, optimal, soft_value, value_of, walk

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left: rows and columns
JUDGES = ("return", "bellman")
MAPS = ("mazes", "lakes")


@recipe("domain")
@dataclass(frozen=True)
class MazesRecipe(DomainRecipe):
    """The recipe of a domain of mazes.

    Args:
        side: Cells of a side.
        walls: The share of cells that cannot be entered.
        holes: The share of cells that end a walk for nothing.
        slip: The largest probability of moving aside, half to either side; every task has its own below it.
        walks: Random walks of a support set.
        length: Steps of each walk.
        discount: The discount gamma.
        temperature: Of the soft value and the policy.
        hidden: Units of each hidden layer; () for tabular action values.
        judge: What learning goes by: the "return" of the adapted policy, or its "bellman" errors on as many
            walks more.
        maps: "mazes", or "lakes" as in Gymnasium's FrozenLake: no walls, from the first corner to the last,
            and at slip=2/3 as slippery.

    Raises:
        ConfigError: If a field is out of its range.
    """

    side: int = 6
    walls: float = 0.15
    holes: float = 0.1
    slip: float = 0.2
    walks: int = 8
    length: int = 25
    discount: float = 0.95
    temperature: float = 0.05
    hidden: tuple[int, ...] = (64, 64)
    judge: str = "return"
    maps: str = "mazes"

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("domain", 3, side=self.side)
        require_whole("domain", 1, walks=self.walks, length=self.length)
        require_number("domain", 0, 1, walls=self.walls, holes=self.holes, slip=self.slip)
        require_number("domain", 0, 1, open=True, discount=self.discount)
        require_number("domain", 0, open=True, temperature=self.temperature)
        require_one_of("domain", "judge", self.judge, JUDGES)
        require_one_of("domain", "maps", self.maps, MAPS)
        if self.walls + self.holes > 0.8:
            raise ConfigError(
                f"domain: walls={self.walls!r} and holes={self.holes!r}; accepted are shares of together at "
                "most 0.8, so that there is somewhere to go."
            )
        for units in self.hidden:
            require_whole("domain", 1, hidden=units)

    def build(self) -> Mazes:
        """The domain."""
        return Mazes(self)

    @property
    def network(self) -> MLP:
        """The network of the action values: cells as one number for each row and column, to four values."""
        inputs = 2 * self.side if self.hidden else self.side**2
        return MLP((inputs, *self.hidden, len(MOVES)))


class Maze(NamedTuple):
    """A maze: the probability to slip, walls and holes (cells,), the goal's cell, the walks' key."""

    slip: Array
    walls: Array
    holes: Array
    goal: Array
    key: Array


class Seen(NamedTuple):
    """A query: more walks, and the true process that they are of."""

    walks: Walks
    process: Process


@dataclass(frozen=True)
class TemporalDifferences:
    """The field of soft Q-learning, (phi, walks) -> like phi; hashable."""

    recipe: MazesRecipe

    def values(self, phi: Any) -> Array:
        """Return the action values q of every cell and action, ``(cells, 4)``."""
        side = self.recipe.side
        cells = jnp.arange(side**2)
        coded = jax.nn.one_hot(cells, side**2)
        if self.recipe.hidden:
            row, column = (jax.nn.one_hot(part, side) for part in (cells // side, cells % side))
            coded = jnp.concatenate([row, column], 1)
        kernel = phi["layer1"]["kernel"]
        return self.recipe.network.forward(phi, coded.astype(kernel.dtype))[0]

    def errors(self, q: Array, walks: Walks) -> Array:
        """The Bellman errors of the transitions, (n,)."""
        value = soft_value(q, self.recipe.temperature)
        target = walks.rewards + self.recipe.discount * jnp.where(walks.ended, 0, value[walks.following])
        return q[walks.states, walks.actions] - target

    def __call__(self, phi: Any, walks: Walks) -> Any:
        """The mean over transitions of dq/dphi times the Bellman error."""
        q, pull = jax.vjp(self.values, phi)
        errors = self.errors(q, walks) / walks.states.shape[0]
        return pull(jnp.zeros_like(q).at[walks.states, walks.actions].add(errors))[0]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Mazes(DomainBase):
    """Mazes with walls, holes and a goal, or lakes, with slippery floors; each known from a few walks."""

    recipe: MazesRecipe

    headline: ClassVar[str] = "return"
    higher_is_better: ClassVar[bool] = True
    support_type: ClassVar[type] = Walks

    @property
    def field(self) -> TemporalDifferences:
        """What the inner problem goes against."""
        return TemporalDifferences(self.recipe)

    def init(self, key: Array) -> Any:
        """Fresh parameters of the network."""
        return self.recipe.network.init(key)

    def problem(self, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """The anchored fixed point of soft Q-learning on a support's walks; no anchor for None.

        ConfigError for curvature="gauss-newton": what is no gradient has none.
        """
        require_one_of("mazes", "curvature", curvature, ("hessian",))
        return equilibrium(self.field, strength, adapt)

    @staticmethod
    def whole(support: Walks, query: Seen) -> Walks:
        """All of a task's walks, for methods that learn from them unsplit."""
        return Walks(*(jnp.concatenate(pair) for pair in zip(support, query.walks, strict=True)))

    def shared_loss(self, theta: Any, batch: Walks) -> Array:
        """Half the mean squared Bellman error of one q for all tasks, its target held fixed; a scalar."""
        q = self.field.values(theta)
        own = q[batch.states, batch.actions]
        target = lax.stop_gradient(own - self.field.errors(q, batch))
        return 0.5 * jnp.mean(jnp.square(own - target))

    def query_loss(self, phi: Any, theta: Any, batch: Seen) -> Array:
        """Minus the soft policy's return, or half the mean squared Bellman error, as the recipe judges."""
        q = self.field.values(phi)
        if self.recipe.judge == "bellman":
            return 0.5 * jnp.mean(jnp.square(self.field.errors(q, batch.walks)))
        policy = jax.nn.softmax(q / self.recipe.temperature)
        return -self._return(policy, batch.process)

    def _return(self, policy: Array, process: Process) -> Array:
        """The discounted return of a policy (cells, 4), the mean over where walks start."""
        return process.start @ value_of(process, policy, self.recipe.discount)

    def draw(self, key: Array, split: str) -> Maze:
        """One random maze; each split has a stream of its own."""
        recipe, cells = self.recipe, self.recipe.side**2
        salt = ("train", "validation", "test").index(split)
        kinds, goal, slip, walks = jax.random.split(jax.random.fold_in(key, salt), 4)
        chance = jax.random.uniform(kinds, (cells,), jnp.float32)
        slips = jax.random.uniform(slip, (), jnp.float32, 0, recipe.slip)
        if recipe.maps == "lakes":
            holes = (chance < recipe.holes) & ~self._way(goal)
            return Maze(slips, jnp.zeros((cells,), bool), holes, jnp.asarray(cells - 1), walks)
        here = jax.random.randint(goal, (), 0, cells)
        free = jnp.arange(cells) == here
        walls = (chance < recipe.walls) & ~free
        holes = (chance >= recipe.walls) & (chance < recipe.walls + recipe.holes) & ~free
        return Maze(slips, walls, holes, here, walks)

    def _way(self, key: Array) -> Array:
        """Cells (cells,) of one random way from the first corner to the last, down and right: booleans."""
        side = self.recipe.side
        downs = jax.random.permutation(key, jnp.arange(2 * side - 2) < side - 1)
        passed = jnp.cumsum(jnp.where(downs, side, 1))
        return jnp.zeros((side**2,), bool).at[passed].set(True).at[0].set(True)

    def process(self, maze: Maze) -> Process:
        """The Markov decision process of a maze: a reward of 1 for entering the goal, where walks end."""
        side = self.recipe.side
        cells = jnp.arange(side**2)
        over = maze.holes | (cells == maze.goal)
        places = []
        for down, right in MOVES:
            row, column = cells // side + down, cells % side + right
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            there = jnp.where(inside, row * side + column, cells)
            places.append(jnp.where(maze.walls[there], cells, there))
        steps = jax.nn.one_hot(jnp.stack(places, 1), side**2, dtype=jnp.float32)  # (cells, 4, cells)
        aside = 0.5 * (jnp.roll(steps, 1, axis=1) + jnp.roll(steps, -1, axis=1))
        moves = (1 - maze.slip) * steps + maze.slip * aside
        moves = jnp.where(over[:, None, None], jnp.eye(side**2, dtype=jnp.float32)[:, None], moves)
        free = (cells == 0) if self.recipe.maps == "lakes" else ~over & ~maze.walls
        start = free.astype(jnp.float32)
        entering = jax.nn.one_hot(maze.goal, side**2, dtype=jnp.float32)
        return Process(moves, entering, over, start / jnp.maximum(start.sum(), 1))

    def gather(self, indices: Maze) -> Task:
        """The task of a maze: random walks to learn from, others and the process itself to be judged by."""
        process, recipe = self.process(indices), self.recipe
        support, query = (
            walk(key, process, recipe.walks, recipe.length) for key in jax.random.split(indices.key)
        )
        return Task(support, Seen(query, process))

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """The greedy policy's discounted return, and half the mean squared Bellman error on the query."""
        q = self.field.values(phi)
        process = task.query.process
        greedy = jax.nn.one_hot(jnp.argmax(q, 1), len(MOVES))
        errors = self.field.errors(q, task.query.walks)
        return {"return": self._return(greedy, process), "bellman": 0.5 * jnp.mean(jnp.square(errors))}

    def scenes(self, before: Any, after: Any, task: Task) -> list[Scene]:
        """The maze, where walks have been, values of its cells before, after and in truth, and greedy paths.

        Paths go by likeliest moves, from the cell that is farthest from the goal.
        """
        process, side, recipe = task.query.process, self.recipe.side, self.recipe
        best = optimal(process, recipe.discount).max(1)
        values = {"before": self.field.values(before).max(1), "after": self.field.values(after).max(1)}
        values["true"] = best
        most = max(float(best.max()), 1e-6)
        goal = np.asarray(process.entering).reshape(side, side)
        over = np.asarray(process.over, np.float64).reshape(side, side) * (1 - goal)
        others = np.asarray(process.moves).sum(1) * (1 - np.eye(side**2))
        free = (np.asarray(process.start > 0) | (others.sum(0) > 0)).reshape(side, side)
        walls = np.where(over > 0, 0.6, np.where(free | (goal > 0), 0.0, 1.0))
        walked = np.bincount(np.asarray(task.support.states), minlength=side**2).reshape(side, side)
        images = {"walls, holes": walls, "goal": goal, "walked": walked / max(walked.max(), 1)}
        images |= {n: np.clip(np.asarray(v) / most, 0, 1).reshape(side, side) for n, v in values.items()}
        for name, phi in (("path before", before), ("path after", after)):
            images[name] = self._path(phi, process).reshape(side, side)
        gone = " to ".join(f"{float(self.metrics(phi, task)['return']):.2f}" for phi in (before, after))
        return [Scene("values of cells", f"return of the greedy policy: {gone}", images=images)]

    def _path(self, phi: Any, process: Process) -> np.ndarray:
        """The cells (cells,) that the greedy policy goes through by likeliest moves, darker the later."""
        true = np.asarray(optimal(process, self.recipe.discount).max(1))
        free = np.asarray(process.start > 0) & (true > 1e-3)
        greedy = np.asarray(self.field.values(phi)).argmax(1)
        following = np.asarray(process.moves).argmax(2)
        path = np.zeros(true.size)
        cell = int(np.argmin(np.where(free, true, np.inf)))
        for step in range(true.size):
            if path[cell]:
                break  # it goes around
            path[cell] = 0.3 + 0.7 * step / true.size
            if bool(process.over[cell]):
                path[cell] = 1.0
                break
            cell = int(following[cell, greedy[cell]])
        return path

    def measure(self, phi: Any, theta: Any, batch: Seen) -> dict[str, Array]:
        """The return of the adapted soft policy; for a method's `measure`."""
        policy = jax.nn.softmax(self.field.values(phi) / self.recipe.temperature)
        return {"return": self._return(policy, batch.process)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Returns: of random moves, of planning in the process as the walks show it, of the best policy."""
        process, discount = task.query.process, self.recipe.discount
        uniform = jnp.full((process.over.size, len(MOVES)), 1 / len(MOVES))
        known = task.support.as_process(process)
        planned = jax.nn.one_hot(jnp.argmax(optimal(known, discount), 1), len(MOVES))
        best = jax.nn.one_hot(jnp.argmax(optimal(process, discount), 1), len(MOVES))
        policies = {"random_moves": uniform, "planned_by_counts": planned, "optimal": best}
        return {name: self._return(policy, process) for name, policy in policies.items()}

    def support_fields(self) -> dict[str, Field]:
        """Return what transitions are: cells are numbered row by row, actions as in `MOVES`."""
        cell, action = Field((), "int", self.recipe.side**2), Field((), "int", len(MOVES))
        return {
            "states": cell,
            "actions": action,
            "rewards": Field(),
            "following": cell,
            "ended": Field((), "bool"),
        }

    def query_field(self) -> Field:
        """Return what states, the cells' numbers ``(n,)``, are."""
        return Field((), "int", self.recipe.side**2)

    def asked(self, query: Seen) -> Array:
        """Return the states of the query's walks."""
        return query.walks.states

    def encode(self, x: Any, y: Any = None) -> Encoded:
        """Return transitions as a batch; predictions are actions, by the policy softmax(q / temperature)."""
        return super().encode(x, y)._replace(classes=np.arange(len(MOVES)))

    def statistics(self, phi: Any, support: Walks) -> Array:
        """Return the action values of every cell, ``(cells, 4)``."""
        return self.field.values(phi)

    def forward(self, phi: Any, rows: Array, statistics: Any = None) -> Array:
        """Return the policy's logits ``(n, 4)`` in states ``(n,)``."""
        q = self.field.values(phi) if statistics is None else statistics
        return q[rows] / self.recipe.temperature


def mazes(side: int = 6, walks: int = 8, **options: Any) -> Mazes:
    """Return mazes of side x side cells, each known from a few random walks.

    Args:
        side: Cells of a side.
        walks: Random walks of a support set.
        **options: The other fields of `MazesRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.mazes(side=4, walks=2, length=5)
        >>> jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0)).support.states.shape
        (10,)
    """
    return MazesRecipe(side, walks=walks, **options).build()
