"""Problems given by an objective, an update or a game."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError
from ..core.tree import Tree
from ..core.validation import require_function, require_one_of, require_scalar
from .base import Problem, Start

Objective = Callable[[Tree, Tree, Tree], Array]  # (phi, theta, batch) -> scalar
Update = Callable[[Tree, Tree, Tree], Tree]  # (phi, theta, batch) -> phi
PlayerLoss = Callable[[Tree, Tree, Tree, Tree], Array]  # (x, y, theta, batch) -> scalar


@dataclass(frozen=True, eq=False)
class Stationary(Problem):
    """A stationary point of an objective, made by `stationary`: F = d/dphi function(phi, theta, batch)."""

    function: Objective
    start: Start | None = None
    structure: str = "spd"
    kind: ClassVar[str] = "stationary"
    has_objective: ClassVar[bool] = True

    def residual(self, phi: Tree, theta: Tree, batch: Tree) -> Tree:
        """The function's gradient; see `Problem.residual`."""
        return self.guarded(lambda: jax.grad(self.objective)(phi, theta, batch), phi)

    def objective(self, phi: Tree, theta: Tree, batch: Tree) -> Array:
        """The function's value; see `Problem.objective`."""
        return require_scalar("objective", self.function(phi, theta, batch))


@dataclass(frozen=True, eq=False)
class FixedPoint(Problem):
    """A fixed point of an update, made by `fixed_point`: F = phi - update(phi, theta, batch)."""

    update: Update
    start: Start | None = None
    kind: ClassVar[str] = "fixed_point"
    structure: ClassVar[str] = "general"

    def residual(self, phi: Tree, theta: Tree, batch: Tree) -> Tree:
        """What one update would change, negated; see `Problem.residual`."""
        new = self.guarded(lambda: self.update(phi, theta, batch), phi)
        return jax.tree.map(jnp.subtract, phi, new)


@dataclass(frozen=True, eq=False)
class Game(Problem):
    """A two-player game, made by `game`: F = (d/dx loss_x, d/dy loss_y) at phi = (x, y)."""

    loss_x: PlayerLoss
    loss_y: PlayerLoss
    start: Start | None = None
    kind: ClassVar[str] = "game"
    structure: ClassVar[str] = "general"

    def residual(self, phi: Tree, theta: Tree, batch: Tree) -> Tree:
        """Each player's gradient in its own parameters; see `Problem.residual`."""
        if not (isinstance(phi, tuple) and len(phi) == 2):
            raise ConfigError(
                f"game: phi: expected a pair (x, y), got {tree.shapes(phi)}. Hint: phi starts at theta by "
                "default; where theta is no such pair, pass init=(theta, batch, key) -> (x, y)."
            )
        x, y = phi
        slope_x = jax.grad(lambda own: require_scalar("loss_x", self.loss_x(own, y, theta, batch)))
        slope_y = jax.grad(lambda own: require_scalar("loss_y", self.loss_y(x, own, theta, batch)))
        return self.guarded(lambda: (slope_x(x), slope_y(y)), phi)


def stationary(objective: Objective, init: Start | None = None, structure: str = "spd") -> Stationary:
    """Make the problem d/dphi objective(phi, theta, batch) = 0.

    Args:
        objective: (phi, theta, batch) -> scalar.
        init: (theta, batch, key) -> phi, where a solver starts; theta by default.
        structure: "spd" at a strict minimum, "symmetric" at a saddle.

    Returns:
        The problem.

    Raises:
        ConfigError: If `objective` cannot be called, or `structure` is another value.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = stationary(lambda phi, theta, batch: 0.5 * jnp.sum((phi - theta * batch) ** 2))
        >>> problem.residual(jnp.ones(1), jnp.ones(1), 3 * jnp.ones(1))
        Array([-2.], dtype=float32)
    """
    require_function("objective", objective, "phi", "theta", "batch")
    require_one_of("stationary", "structure", structure, ("spd", "symmetric"))
    return Stationary(objective, init, structure)


def fixed_point(update: Update, init: Start | None = None) -> FixedPoint:
    """Make the problem phi = update(phi, theta, batch), whose structure is "general".

    `GradientDescent(1.0, ...)` solves it by plain fixed-point iteration.

    Args:
        update: (phi, theta, batch) -> phi.
        init: (theta, batch, key) -> phi, where a solver starts; theta by default.

    Returns:
        The problem.

    Raises:
        ConfigError: If `update` cannot be called.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = fixed_point(lambda phi, theta, batch: 0.5 * phi + theta)
        >>> imaml.GradientDescent(1.0, steps=20)(problem, jnp.ones(1), None).value.round(4)
        Array([2.], dtype=float32)
    """
    require_function("update", update, "phi", "theta", "batch")
    return FixedPoint(update, init)


def game(loss_x: PlayerLoss, loss_y: PlayerLoss, init: Start | None = None) -> Game:
    """Make the game in which x minimises `loss_x` and y minimises `loss_y`; its structure is "general".

    Args:
        loss_x: (x, y, theta, batch) -> scalar.
        loss_y: (x, y, theta, batch) -> scalar.
        init: (theta, batch, key) -> (x, y), where a solver starts; theta by default, which must then be such
            a pair.

    Returns:
        The problem, with phi = (x, y).

    Raises:
        ConfigError: If a loss cannot be called.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = game(lambda x, y, theta, batch: x * y, lambda x, y, theta, batch: -x * y)
        >>> tuple(map(float, problem.residual((jnp.asarray(2.0), jnp.asarray(3.0)), None, None)))
        (3.0, -2.0)
    """
    require_function("loss_x", loss_x, "x", "y", "theta", "batch")
    require_function("loss_y", loss_y, "x", "y", "theta", "batch")
    return Game(loss_x, loss_y, init)
