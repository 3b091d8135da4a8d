"""What tasks are drawn from: the Domain protocol and its laws.

Laws, held by one table-driven test over all domains:

1. `sample(key, split)` depends on its arguments alone, and works under jit and vmap;
2. `sample(key, split) == gather(draw(key, split))`: indices first, data second, so that data may live
   elsewhere;
3. splits share no class and no task;
4. `query_loss`, and the problem's residual and objective (where it has one) on the support batch and on
   `whole`, are finite at `init(key)` on every sampled task.

A domain with only so many tasks also has `draws(key, split, count)`, indices of that many tasks of which none
comes twice before all have come, `number(indices)`, which task was drawn, `size(split)`, how many there are,
and `held_out(split)`, whether the split has tasks that are not those of another.

A domain is a tree: its data are leaves (so they are arguments of a compiled step, not constants in it), all
else is static.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
from jax import Array

from ..core.errors import ConfigError
from ..problems.base import Problem, Task

SPLITS = ("train", "validation", "test")


def in_step(domain: Any, tasks: int) -> int:
    """How many tasks a step of training has: as many as asked for, and for 0 every training task."""
    if tasks:
        return tasks
    if not hasattr(domain, "size"):
        raise ConfigError(
            f"training: tasks=0 means every training task, and {type(domain).__name__} draws new ones "
            "without end; accepted is a whole number of at least 1."
        )
    return domain.size("train")


def sample_many(domain: Any, key: Array, split: str, count: int, place: Callable[[Any], Any]) -> Task:
    """So many tasks of a split, leaves (count, ...); place: puts what they are drawn by on devices."""
    if hasattr(domain, "draws"):
        return jax.vmap(domain.gather)(place(domain.draws(key, split, count)))
    return jax.vmap(lambda k: domain.sample(k, split))(place(jax.random.split(key, count)))


@runtime_checkable
class Domain(Protocol):
    """A family of tasks with a network to learn them by."""

    @property
    def recipe(self) -> Any:
        """The frozen dataclass that this domain was built from; goes to JSON; `recipe.build()` undoes it."""
        ...

    def init(self, key: Array) -> Any:
        """Fresh parameters of the network, shaped like phi."""
        ...

    def problem(self, strength: Any, adapt: Any = None) -> Problem:
        """The problem of one task's support set: anchored, or `plain` where strength is None."""
        ...

    def whole(self, support: Any, query: Any) -> Any:
        """All of a task's data as one batch of the problem's, for methods that learn from it unsplit."""
        ...

    def wide(self, key: Array) -> Any:
        """Fresh parameters of the network that learns all training tasks at once."""
        ...

    def narrow(self, theta: Any) -> Any:
        """What a new task starts at after joint learning, shaped like phi; narrow(narrow(t)) is narrow(t)."""
        ...

    def joint_loss(self, theta: Any, batch: Any, grouped: bool = False) -> Array:
        """The loss of wide parameters on a task's whole batch; grouped: each group a task of its own."""
        ...

    def draw(self, key: Array, split: str) -> Any:
        """Indices of one random task."""
        ...

    def gather(self, indices: Any) -> Task:
        """The task that indices mean."""
        ...

    def sample(self, key: Array, split: str) -> Task:
        """One random task."""
        ...

    def query_loss(self, phi: Any, theta: Any, batch: Any) -> Array:
        """The loss on a query batch, a scalar; what meta-learning minimises."""
        ...

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """Scores of adapted parameters on a task's query set: scalars, by name; `headline` is among them."""
        ...

    def calibration(self, phi: Any, task: Task) -> dict[str, Array]:
        """What calibration errors are made of, by name (`confidences`); nothing where no class is told."""
        ...

    def baselines(self, task: Task) -> dict[str, Array]:
        """Scores of simple methods without learning across tasks, by name, on the headline's scale."""
        ...

    @property
    def headline(self) -> str:
        """Which metric a validation is judged by."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Whether more of the headline is better."""
        ...
