"""Mazes learned by soft Q-learning: each task is a Markov decision process, known from a few walks in it.

Inner problem: the anchored fixed point of the soft Bellman operator on the walks' transitions,

    F = mean_i  dq(s_i, a_i)/dphi  ( q(s_i, a_i) - r_i - gamma V(s'_i) )  +  strength (phi - theta)
    V(s) = temperature log mean_a exp(q(s, a) / temperature),  0 where a walk has ended

which is not a gradient (the target depends on phi, and is not differentiated): dF/dphi is not symmetric. If
q is linear in phi, this is least-squares temporal differences with a ridge penalty towards theta (Bradtke,
Barto 1996). With one number for each state and action, it is tabular soft Q-learning (Haarnoja et al. 2017,
eq. 3).
The score of phi is the return of the policy softmax(q / temperature) in the task's true process, which is the
solution of a linear system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...core.errors import ConfigError
from ...core.fields import Fraction, PositiveFloat, PositiveFraction, PositiveInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...core.validation import require_whole
from ...problems.base import Task
from ..arrays import Field
from ..base import EquilibriumDomain, split_key
from ..networks import MLP
from ..recipes import DomainRecipe, builder
from ..scenes import Scene
from .markov import Process, Walks, optimal, soft_value, value_of, walk

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left: rows and columns


@recipe("domain")
class MazesRecipe(DomainRecipe):
    """Mazes of side x side cells, each known from a few random walks.

    Args:
        side: Cells of a side.
        walks: Random walks of a support set.
        walls: The share of cells that cannot be entered.
        holes: The share of cells that end a walk without a reward.
        slip: The largest probability of moving aside, half to either side; each task has its own below it.
        length: Steps of each walk.
        discount: The discount gamma.
        temperature: The temperature of the soft value and of the policy.
        hidden: Units of each hidden layer; () for tabular action values.
        judge: What meta-learning minimises: minus the "return" of the adapted policy, or the "bellman" errors
            on as many walks more.
        maps: "mazes", or "lakes" as in Gymnasium's FrozenLake: no walls, from the first corner to the last,
            and at slip=2/3 as slippery.

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.mazes(side=4, walks=2, length=5)
        >>> jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0)).support.states.shape
        (10,)
    """

    side: PositiveInt = 6
    walks: PositiveInt = 8
    walls: Fraction = 0.15
    holes: Fraction = 0.1
    slip: Fraction = 0.2
    length: PositiveInt = 25
    discount: PositiveFraction = 0.95
    temperature: PositiveFloat = 0.05
    hidden: tuple[PositiveInt, ...] = (64, 64)
    judge: Literal["return", "bellman"] = "return"
    maps: Literal["mazes", "lakes"] = "mazes"

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        require_whole("domain", 3, side=self.side)
        if self.walls + self.holes > 0.8:
            raise ConfigError(
                f"domain: walls + holes: expected at most 0.8, got {self.walls!r} + {self.holes!r}. Hint: "
                "leave more free cells."
            )

    def build(self) -> Mazes:
        """Return the domain."""
        return Mazes(self)

    @property
    def network(self) -> MLP:
        """The network of the action values: cells as one number for each row and column, to four values."""
        inputs = 2 * self.side if self.hidden else self.side**2
        return MLP((inputs, *self.hidden, len(MOVES)))


mazes = builder(MazesRecipe)


class Maze(NamedTuple):
    """The indices of a maze: the probability to slip, walls and holes (cells,), the goal, the walks' key."""

    slip: Array
    walls: Array
    holes: Array
    goal: Array
    key: Array


class Seen(NamedTuple):
    """A query batch: more walks, and the true process."""

    walks: Walks
    process: Process


@dataclass(frozen=True)
class TemporalDifferences:
    """The vector field of soft Q-learning, ``(phi, walks) -> a tree like phi``; hashable."""

    recipe: MazesRecipe

    def values(self, phi: Tree) -> Array:
        """Return the action values q of every cell and action.

        Args:
            phi: The network's parameters.

        Returns:
            ``(cells, 4)``, cells row by row.
        """
        side = self.recipe.side
        cells = jnp.arange(side**2)
        coded = jax.nn.one_hot(cells, side**2)
        if self.recipe.hidden:
            row, column = (jax.nn.one_hot(part, side) for part in (cells // side, cells % side))
            coded = jnp.concatenate([row, column], 1)
        kernel = phi["layer1"]["kernel"]
        return self.recipe.network.forward(phi, coded.astype(kernel.dtype))[0]

    def errors(self, q: Array, walks: Walks) -> Array:
        """Return the Bellman errors of transitions.

        Args:
            q: Action values ``(cells, 4)``.
            walks: The transitions.

        Returns:
            ``q(x_i, u_i) - r_i - gamma V(x'_i)``, ``(n,)``; V is 0 where the walk ended.
        """
        value = soft_value(q, self.recipe.temperature)
        target = walks.rewards + self.recipe.discount * jnp.where(walks.ended, 0, value[walks.following])
        return q[walks.states, walks.actions] - target

    def mean_square(self, q: Array, walks: Walks) -> Array:
        """Return half the mean squared Bellman error.

        Args:
            q: Action values ``(cells, 4)``.
            walks: The transitions.

        Returns:
            A scalar.
        """
        return 0.5 * jnp.mean(jnp.square(self.errors(q, walks)))

    def __call__(self, phi: Tree, walks: Walks) -> Tree:
        """Return the mean over transitions of dq/dphi times the Bellman error, a tree like ``phi``."""
        q, values_vjp = jax.vjp(self.values, phi)
        errors = self.errors(q, walks) / walks.states.shape[0]
        return values_vjp(jnp.zeros_like(q).at[walks.states, walks.actions].add(errors))[0]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Mazes(EquilibriumDomain):
    """Mazes with walls, holes and a goal, or lakes, with slippery floors; each known from a few walks."""

    recipe: MazesRecipe

    headline: ClassVar[str] = "return"
    higher_is_better: ClassVar[bool] = True
    support_type: ClassVar[type] = Walks
    actions: ClassVar[int] = len(MOVES)
    oracles: ClassVar[frozenset[str]] = frozenset({"optimal"})

    @property
    def field(self) -> TemporalDifferences:
        """The vector field of the inner problem."""
        return TemporalDifferences(self.recipe)

    def shared_loss(self, theta: Tree, batch: Walks) -> Array:
        """Return half the mean squared Bellman error of one q for all tasks, its target held fixed."""
        q = self.field.values(theta)
        own = q[batch.states, batch.actions]
        target = lax.stop_gradient(own - self.field.errors(q, batch))
        return 0.5 * jnp.mean(jnp.square(own - target))

    def query_loss(self, phi: Tree, theta: Tree, batch: Seen) -> Array:
        """Return minus the soft policy's return, or half the mean squared Bellman error; see the recipe."""
        if self.recipe.judge == "bellman":
            return self.field.mean_square(self.field.values(phi), batch.walks)
        return -self.measure(phi, theta, batch)["return"]

    def measure(self, phi: Tree, theta: Tree, batch: Seen) -> dict[str, Array]:
        """Return the return of the adapted soft policy."""
        policy = jax.nn.softmax(self.field.values(phi) / self.recipe.temperature)
        return {"return": self._return(policy, batch.process)}

    def _return(self, policy: Array, process: Process) -> Array:
        """Return the discounted return of a policy (cells, 4), the mean over where walks start."""
        return process.start @ value_of(process, policy, self.recipe.discount)

    def _greedy_return(self, q: Array, process: Process) -> Array:
        """Return the discounted return of the policy that takes the best of action values (cells, 4)."""
        return self._return(jax.nn.one_hot(jnp.argmax(q, 1), len(MOVES)), process)

    def draw(self, key: Array, split: str) -> Maze:
        """Return one random maze."""
        recipe, cells = self.recipe, self.recipe.side**2
        kinds, goal, slip, walks = jax.random.split(split_key(key, split), 4)
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
        """Return which cells are on a random path from the first corner down and right to the last."""
        side = self.recipe.side
        downs = jax.random.permutation(key, jnp.arange(2 * side - 2) < side - 1)
        passed = jnp.cumsum(jnp.where(downs, side, 1))
        return jnp.zeros((side**2,), bool).at[passed].set(True).at[0].set(True)

    def process(self, maze: Maze) -> Process:
        """Return the Markov decision process of a maze: a reward of 1 for entering the goal, where walks end.

        Args:
            maze: The maze.

        Returns:
            The process, with one state for each cell.
        """
        side = self.recipe.side
        cells = jnp.arange(side**2)
        over = maze.holes | (cells == maze.goal)
        # The cell that each move leads to; one stays before walls and edges.
        down, right = jnp.array(MOVES).T[:, None]  # (1, 4) each
        row, column = cells[:, None] // side + down, cells[:, None] % side + right
        inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
        there = jnp.where(inside, row * side + column, cells[:, None])
        there = jnp.where(maze.walls[there], cells[:, None], there)
        steps = jax.nn.one_hot(there, side**2, dtype=jnp.float32)  # (cells, 4, cells)
        aside = 0.5 * (jnp.roll(steps, 1, axis=1) + jnp.roll(steps, -1, axis=1))
        # With probability slip/2 each, the move is the one to the left or to the right of the chosen one.
        moves = (1 - maze.slip) * steps + maze.slip * aside
        moves = jnp.where(over[:, None, None], jnp.eye(side**2, dtype=jnp.float32)[:, None], moves)
        free = (cells == 0) if self.recipe.maps == "lakes" else ~over & ~maze.walls
        start = free.astype(jnp.float32)
        entering = jax.nn.one_hot(maze.goal, side**2, dtype=jnp.float32)
        return Process(moves, entering, over, start / jnp.maximum(start.sum(), 1))

    def gather(self, indices: Maze) -> Task:
        """Return the task of a maze: random walks to learn from; other walks and the process as the query."""
        process, recipe = self.process(indices), self.recipe
        support, query = (
            walk(key, process, recipe.walks, recipe.length) for key in jax.random.split(indices.key)
        )
        return Task(support, Seen(query, process))

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the greedy policy's return, and half the mean squared Bellman error, on the query."""
        q, query = self.field.values(phi), task.query
        return {
            "return": self._greedy_return(q, query.process),
            "bellman": self.field.mean_square(q, query.walks),
        }

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return the maze, the walks, values of cells before, after and true, and greedy paths.

        Paths go by likeliest moves, from the cell that is farthest from the goal.
        """
        process, shape = task.query.process, (self.recipe.side, self.recipe.side)
        best, goal = optimal(process, self.recipe.discount).max(1), np.asarray(process.entering)
        # Cells that nothing enters and where no walk starts are walls; ends other than the goal are holes.
        entered = np.asarray(process.moves).sum(1) * (1 - np.eye(goal.size))
        free = np.asarray(process.start > 0) | (entered.sum(0) > 0)
        holes = np.asarray(process.over, np.float64) * (1 - goal)
        walls = np.where(holes > 0, 0.6, np.where(free | (goal > 0), 0.0, 1.0))
        walked = np.bincount(np.asarray(task.support.states), minlength=goal.size)
        images = {"walls, holes": walls, "goal": goal, "walked": walked / max(walked.max(), 1)}
        values = {"before": self.field.values(before).max(1), "after": self.field.values(after).max(1)}
        for name, each in {**values, "true": best}.items():
            images[name] = np.clip(np.asarray(each) / max(float(best.max()), 1e-6), 0, 1)
        images |= {"path before": self._path(before, process), "path after": self._path(after, process)}
        images = {name: image.reshape(shape) for name, image in images.items()}
        note = f"return of the greedy policy: {self.change(before, after, task, '.2f')}"
        return [Scene("values of cells", note, images=images)]

    def _path(self, phi: Tree, process: Process) -> np.ndarray:
        """Return the cells (cells,) that the greedy policy visits by likeliest moves, darker the later."""
        true = np.asarray(optimal(process, self.recipe.discount).max(1))
        free = np.asarray(process.start > 0) & (true > 1e-3)
        greedy = np.asarray(self.field.values(phi)).argmax(1)
        following = np.asarray(process.moves).argmax(2)
        cells, cell = [], int(np.argmin(np.where(free, true, np.inf)))
        while cell not in cells:  # until it comes back, or stays where the walk is over
            cells.append(cell)
            cell = int(following[cell, greedy[cell]])
        path = np.zeros(true.size)
        path[cells] = 0.3 + 0.7 * np.arange(len(cells)) / true.size
        if process.over[cells[-1]]:
            path[cells[-1]] = 1.0
        return path

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the returns of random moves, of planning by the walks' counts, and of the best policy."""
        process, discount = task.query.process, self.recipe.discount
        uniform = jnp.full((process.over.size, len(MOVES)), 1 / len(MOVES))
        known = task.support.as_process(process)
        return {
            "random_moves": self._return(uniform, process),
            "planned_by_counts": self._greedy_return(optimal(known, discount), process),
            "optimal": self._greedy_return(optimal(process, discount), process),
        }

    def support_fields(self) -> dict[str, Field]:
        """Return what transitions are: cells are numbered row by row, actions as in `MOVES`."""
        cell, action = Field((), "int", self.recipe.side**2), Field((), "int", len(MOVES))
        fields = (cell, action, Field(), cell, Field((), "bool"))
        return dict(zip(Walks._fields, fields, strict=True))

    def statistics(self, phi: Tree, support: Walks) -> Array:
        """Return the action values of every cell, ``(cells, 4)``."""
        return self.field.values(phi)

    def forward(self, phi: Tree, rows: Array, statistics: Array | None = None) -> Array:
        """Return the logits ``(n, 4)`` of the policy softmax(q / temperature) in states ``(n,)``."""
        q = self.field.values(phi) if statistics is None else statistics
        return q[rows] / self.recipe.temperature
