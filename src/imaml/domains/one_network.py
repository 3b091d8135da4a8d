"""What domains have in common whose tasks one network can answer, as its outputs mean the same in all."""

from __future__ import annotations

from typing import Any

from jax import Array

from ..core.errors import ConfigError
from ..problems.base import Task


class OneNetwork:
    """A domain, but for its own `init`, `draw`, `gather` and so on, and `shared_loss`, (theta, batch)."""

    def wide(self: Any, key: Array) -> Any:
        """Fresh parameters, for joint learning: the same network."""
        return self.init(key)

    def narrow(self, theta: Any) -> Any:
        """What a new task starts at: theta itself."""
        return theta

    def joint_loss(self: Any, theta: Any, batch: Any, grouped: bool = False) -> Array:
        """The `shared_loss` of one network for all tasks, a scalar; ConfigError if each is to have a head."""
        if grouped:
            raise ConfigError("multi-task learning needs tasks with heads of their own; use transfer.")
        return self.shared_loss(theta, batch)

    def sample(self: Any, key: Array, split: str) -> Task:
        """One random task of a split."""
        return self.gather(self.draw(key, split))

    def calibration(self, phi: Any, task: Any) -> dict[str, Array]:
        """Nothing: no class is told."""
        return {}
