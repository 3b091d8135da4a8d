"""Losses with more structure than a function has: compositions, half squares, joined tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError
from ..core.validation import require_function, require_scalar


@dataclass(frozen=True)
class HalfSquares:
    """1/2 |z|^2, the cost of residuals."""

    def __call__(self, residuals: Any, batch: Any) -> Array:
        """The cost, a scalar."""
        return 0.5 * tree.dot(residuals, residuals)


@dataclass(frozen=True)
class Composed:
    """A loss that is a convex cost of a model's outputs; made by `composed`."""

    outputs: Callable[[Any, Any], Any]
    cost: Callable[[Any, Any], Array]

    def __call__(self, phi: Any, batch: Any) -> Array:
        """The loss, a scalar."""
        return self.cost(self.outputs(phi, batch), batch)


def gauss_newton_slope(loss: Any, phi: Any, full: Callable[[Any], Any], batch: Any) -> Any:
    """The loss's gradient at phi, whose derivative in phi is the Gauss-Newton matrix.

    J(phi)^T cost'(outputs(phi)) with J held fixed: what is dropped is cost' times the outputs' curvature.
    """
    of = lambda p: loss.outputs(full(p), batch)  # noqa: E731
    value = of(phi)
    _, pull = jax.vjp(of, lax.stop_gradient(phi))
    return pull(jax.grad(lambda z: require_scalar("cost", loss.cost(z, batch)))(value))[0]


def composed(outputs: Callable[[Any, Any], Any], cost: Callable[[Any, Any], Array]) -> Composed:
    """The loss cost(outputs(phi, batch), batch), with cost convex in the outputs, for Gauss-Newton curvature.

    A loss of your own with two such methods, `outputs` and `cost`, does as well. outputs: (phi, batch) -> any
    tree. cost: (outputs, batch) -> scalar.

    >>> import jax.numpy as jnp
    >>> fit = lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2)
    >>> loss = composed(lambda phi, batch: jnp.tanh(batch[0] @ phi), fit)
    >>> problem = proximal(loss, 0.5, curvature="gauss-newton")
    """
    require_function("outputs", outputs)
    require_function("cost", cost)
    return Composed(outputs, cost)


def joined(support: Any, query: Any) -> Any:
    """Both batches of a task as one: their leaves, row after row."""
    if jax.tree.structure(support) != jax.tree.structure(query):
        raise ConfigError(
            f"joined: support is {tree.shapes(support)} and query {tree.shapes(query)}; they can be made one "
            "batch only where their trees are alike. Pass whole=(support, query) -> batch."
        )
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query)
