"""Problems given by an objective, an update or a game."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError
from ..core.validation import require_function
from .base import Problem, guarded


def stationary(objective: Callable, init: Callable | None = None, structure: str = "spd") -> Problem:
    """The problem d/dphi objective(phi, theta, batch) = 0.

    init: (theta, batch, key) -> phi, by default theta itself. structure: "spd" at a strict minimum,
    "symmetric" at a saddle.
    """
    require_function("objective", objective)
    if structure not in ("spd", "symmetric"):
        raise ConfigError(
            f"stationary: structure={structure!r}; accepted: 'spd' (a minimum), 'symmetric' (a saddle)."
        )

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        return guarded("stationary", init, lambda: jax.grad(objective)(phi, theta, batch), phi)

    def value(problem: Problem, phi: Any, theta: Any, batch: Any) -> Array:
        return objective(phi, theta, batch)

    return Problem(None, "stationary", structure, residual, value, start=init)


def fixed_point(update: Callable, init: Callable | None = None) -> Problem:
    """The problem phi = update(phi, theta, batch), with F = phi - update(phi, theta, batch), "general".

    init: (theta, batch, key) -> phi, by default theta itself. `GradientDescent(1.0, ...)` is then plain
    fixed-point iteration.
    """
    require_function("update", update)

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        new = guarded("fixed_point", init, lambda: update(phi, theta, batch), phi)
        return jax.tree.map(jnp.subtract, phi, new)

    return Problem(None, "fixed_point", "general", residual, start=init)


def game(loss_x: Callable, loss_y: Callable, init: Callable | None = None) -> Problem:
    """The two-player game: x minimises loss_x(x, y, theta, batch), y minimises loss_y(x, y, theta, batch).

    phi = (x, y); F = (d/dx loss_x, d/dy loss_y); "general". init: (theta, batch, key) -> (x, y), by default
    theta, which must then be such a pair.
    """
    require_function("loss_x", loss_x)
    require_function("loss_y", loss_y)

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        if not (isinstance(phi, tuple) and len(phi) == 2):
            raise ConfigError(
                f"game: phi must be a pair (x, y); it came as {tree.shapes(phi)}. By default it starts at "
                "theta: pass init=(theta, batch, key) -> (x, y) where theta is no such pair."
            )
        x, y = phi
        parts = (jax.grad(loss_x, argnums=0), jax.grad(loss_y, argnums=1))
        return guarded("game", init, lambda: tuple(part(x, y, theta, batch) for part in parts), phi)

    return Problem(None, "game", "general", residual, start=init)
