"""A truncated Neumann series."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.fields import PositiveFloat
from ..core.recipes import recipe
from .base import Iteration, Iterative, Product, System

POWER_ITERATIONS = 20
MARGIN = 1.05  # power iterations find the largest eigenvalue from below


class NeumannState(NamedTuple):
    """The state of the series: the partial sum and its residual, of shape (n,), and the steps taken."""

    x: Array
    residual: Array
    steps: Array

    @property
    def size(self) -> Array:
        """|r|."""
        return jnp.linalg.norm(self.residual)

    @property
    def ended(self) -> Array:
        """Never: a fixed-point iteration can always go on."""
        return jnp.asarray(False)


@recipe("linear", fresh={"steps": 5})
class Neumann(Iterative[NeumannState]):
    """The Neumann series, x += scale (b - A x): plain fixed-point iteration.

    It converges if the spectral radius of I - scale A is below 1. The number of products grows with the
    condition number; that of `CG` grows with its square root. It is provided for comparison.

    Args:
        steps: The most steps; with no tolerance, the number of steps.
        tolerance: The relative residual to reach. With both None, eps^(3/4) of the dtype; the most steps are
            then 100,000.
        scale: A positive number. With None and structure "spd" it is 1 / (1.05 times the largest eigenvalue,
            estimated by 20 power iterations), which converges for any positive definite A. With None and
            structure "general" it is 1, the series of a contraction (A = I - J).

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> Neumann(steps=2, scale=0.5)(lambda v: 1.0 * v, jnp.ones(2)).value
        Array([0.75, 0.75], dtype=float32)

    References:
        Lorraine, Vicol and Duvenaud (2020), Optimizing millions of hyperparameters by implicit
        differentiation, Algorithm 3.
    """

    scale: PositiveFloat | None = None
    accepts: ClassVar[tuple[str, ...]] = ("spd", "general")

    def most(self, size: int) -> int:
        """Give the largest number of steps; see `Iterative.most`.

        Args:
            size: The number of unknowns.

        Returns:
            `steps`, or 100,000.
        """
        return self.steps or 100_000

    def iteration(self, system: System) -> Iteration[NeumannState]:
        """Prepare the iteration; see `Iterative.iteration`.

        Args:
            system: The flat, scaled system.

        Returns:
            The first state and the step.
        """
        b = system.b
        if self.scale is not None:
            scale = jnp.asarray(self.scale, b.dtype)
        elif system.structure == "general":
            scale = jnp.ones((), b.dtype)
        else:
            scale = 1 / (MARGIN * _largest(system.product, b))

        def step(state: NeumannState) -> NeumannState:
            x = state.x + scale * state.residual
            # Unlike CG's, this residual is computed anew: (I - scale A) r would take a product just the same.
            return NeumannState(x, b - system.product(x), state.steps + 1)

        return NeumannState(system.start, b - system.product(system.start), jnp.asarray(0)), step


def _largest(product: Product, b: Array) -> Array:
    """An estimate of the largest eigenvalue of A, from power iterations on a fixed random start."""
    start = jax.random.normal(jax.random.key(0), b.shape, b.dtype)
    tiny = jnp.finfo(b.dtype).tiny

    def repeat(_: Array, v: Array) -> Array:
        image = product(v)
        return image / jnp.maximum(jnp.linalg.norm(image), tiny)

    v = lax.fori_loop(0, POWER_ITERATIONS, repeat, start / jnp.linalg.norm(start))
    return jnp.maximum(jnp.linalg.norm(product(v)), tiny)
