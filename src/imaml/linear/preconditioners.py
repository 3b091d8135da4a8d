"""Preconditioners, and the solver that is one: the anchor's diagonal, and a curvature of low rank.

A = H + S with S = diag(anchor) > 0. With S^(1/2) taken out on both sides what is left is I + K, where
K = S^(-1/2) H S^(-1/2), and a sketch of K from `rank` products with orthonormal random Omega is

    K  ~  U diag(kappa) U^T     from  Y = K Omega,  Y (Omega^T Y)^+ Y^T
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core.recipes import recipe
from ..core.solution import Ending, Solution, Stats
from ..core.validation import require_whole
from .base import ACCEPTS, Matvec, finish, flat_anchor, flat_problem, refuse_structure


@recipe("preconditioner")
@dataclass(frozen=True)
class Diagonal:
    """The preconditioner M = diag(anchor): worth its while where strengths differ much, as learned ones do.

    >>> import imaml, jax.numpy as jnp
    >>> strengths = jnp.array([1.0, 100.0, 10_000.0])
    >>> solver = imaml.CG(tolerance=1e-5, precondition=imaml.Diagonal())
    >>> int(solver(lambda v: strengths * v, jnp.ones(3), anchor=strengths).stats.steps)
    1
    """

    def inverse(self, product: Callable[[Array], Array], anchor: Array) -> Callable[[Array], Array]:
        """r -> M^-1 r."""
        return lambda r: r / anchor


@recipe("linear", "preconditioner")
@dataclass(frozen=True)
class Nystrom:
    """A from its largest directions, by the randomised Nystrom approximation; also a preconditioner.

    As a solver: x = (H_r + S)^-1 b with H_r of rank `rank`, by Woodbury's formula (Hataya and Yamada 2023).
    It takes `rank` products, all at once, one more for the residual that it reports, and no steps: right
    where the curvature has few large directions beside the anchor, and else its residual says how wrong.

    As `CG(precondition=Nystrom(rank))`: M^-1 with the least of the curvatures found for all others
    (Frangella, Tropp and Udell 2023, equation 1.3). `stats.steps` of the solver counts the products. seed: of
    the sketch.

    Made for H positive semidefinite; negative directions that the sketch shows are left out of it, and where
    they are steeper than the anchor, `stats.negative_curvature` says so.

    >>> import jax.numpy as jnp
    >>> curvature = jnp.array([9.0, 0.0, 0.0])
    >>> solver = Nystrom(rank=1)
    >>> solver(lambda v: (curvature + 1) * v, jnp.ones(3), anchor=jnp.ones(3)).value.round(3)
    Array([0.1, 1. , 1. ], dtype=float32)
    """

    rank: int = 10
    seed: int = 0
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["Nystrom"]
    uses_anchor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("Nystrom", 1, rank=self.rank)
        require_whole("Nystrom", 0, seed=self.seed)

    def __call__(
        self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "spd", anchor: Any = None
    ) -> Solution:
        """The Solution from products `matvec(x)`; `b` any tree of floats, x0 is of no use to it."""
        refuse_structure(self, structure)
        strengths = flat_anchor(self, anchor, b)
        product, b, _, unravel = flat_problem(matvec, b, None)
        root = jnp.sqrt(strengths)
        basis, values, smallest = self.sketch(product, strengths)
        scaled = b / root
        within = basis.T @ scaled
        x = (scaled - basis @ (values / (1 + values) * within)) / root
        found = finish(product, b, x, unravel, min(self.rank, b.size), None, int(Ending.STEPS_DONE))
        stats = Stats(found.stats.steps, found.stats.residual, smallest <= -1)
        return Solution(found.value, stats, found.status)

    def inverse(self, product: Callable[[Array], Array], anchor: Array) -> Callable[[Array], Array]:
        """r -> M^-1 r."""
        basis, values, _ = self.sketch(product, anchor)
        root, last = jnp.sqrt(anchor), jnp.min(values)
        shares = (1 + last) / (1 + values) - 1

        def apply(r: Array) -> Array:
            scaled = r / root
            return (scaled + basis @ (shares * (basis.T @ scaled))) / root

        return apply

    def sketch(self, product: Callable[[Array], Array], anchor: Array) -> tuple[Array, Array, Array]:
        """U (n, rank); kappa (rank,), zero where nothing was found; the least value of Omega^T K Omega."""
        root, size = jnp.sqrt(anchor), anchor.size
        rank = min(self.rank, size)
        start = jax.random.normal(jax.random.key(self.seed), (size, rank), anchor.dtype)
        omega = jnp.linalg.qr(start)[0]
        images = jax.vmap(lambda v: product(v / root) / root - v, in_axes=1, out_axes=1)(omega)
        core = omega.T @ images
        good = jnp.all(jnp.isfinite(core))
        core = jnp.where(good, (core + core.T) / 2, 0)
        values, turn = jnp.linalg.eigh(core)
        # Directions that the sketch does not show clearly, or shows as falling, are left out.
        clear = values > 100 * jnp.finfo(core.dtype).eps * jnp.max(jnp.abs(values))
        widths = jnp.where(clear, 1 / jnp.sqrt(jnp.where(clear, values, 1)), 0)
        basis, singular, _ = jnp.linalg.svd(
            (jnp.where(good, images, 0) @ turn) * widths[None, :], full_matrices=False
        )
        return basis, singular**2, jnp.where(good, values[0], jnp.nan)
