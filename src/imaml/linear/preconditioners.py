"""Preconditioners, and the solver that is one: the anchor's diagonal, and a curvature of low rank.

A = H + S with S = diag(anchor) > 0. With S^(1/2) taken out on both sides what is left is I + K, where
K = S^(-1/2) H S^(-1/2). A sketch of K from `rank` products with orthonormal random Omega is

    K  ~  U diag(kappa) U^T     from  Y = K Omega,  Y (Omega^T Y)^+ Y^T
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core.fields import Checked, NonNegativeInt, PositiveInt
from ..core.recipes import recipe
from .base import Outcome, Product, Solver, System


@recipe("preconditioner")
class Diagonal:
    """The preconditioner M = diag(anchor): useful if strengths differ much, as learned strengths do.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> strengths = jnp.array([1.0, 100.0, 10_000.0])
        >>> solver = imaml.CG(tolerance=1e-5, precondition=imaml.Diagonal())
        >>> int(solver(lambda v: strengths * v, jnp.ones(3), anchor=strengths).stats.steps)
        1
    """

    factorises: ClassVar[bool] = False

    def inverse(self, product: Product, anchor: Array) -> Product:
        """Make the function r -> M^-1 r.

        Args:
            product: x -> A x over flat vectors; not used.
            anchor: The diagonal, shape (n,).

        Returns:
            The function, from shape (n,) to shape (n,).
        """
        return lambda r: r / anchor


class Sketch(NamedTuple):
    """The approximation K ~ U diag(kappa) U^T.

    Attributes:
        basis: U, shape (n, rank).
        values: kappa, shape (rank,), zero where nothing was found.
        smallest: The least eigenvalue of Omega^T K Omega, a scalar; NaN where a product was not finite.
    """

    basis: Array
    values: Array
    smallest: Array


@recipe("linear", "preconditioner")
class Nystrom(Checked, Solver):
    """The randomised Nystrom approximation of A by its largest directions; also a preconditioner.

    As a solver it gives x = (H_r + S)^-1 b with H_r of rank `rank`, by Woodbury's formula. It takes `rank`
    products, all at once, and one more for the reported residual, but no steps. It is accurate if the
    curvature has few large directions; otherwise its residual measures the error. `stats.steps` counts the
    products, and a first guess x0 has no effect.

    In `CG(precondition=Nystrom(rank))` it gives M^-1; all other directions get the smallest curvature found.

    It is made for positive semidefinite H. Negative directions that the sketch finds are excluded. If their
    curvature exceeds the anchor in magnitude, `stats.negative_curvature` is True.

    Args:
        rank: The number of directions, and of products.
        seed: The seed of the sketch.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> curvature = jnp.array([9.0, 0.0, 0.0])
        >>> solver = Nystrom(rank=1)
        >>> solver(lambda v: (curvature + 1) * v, jnp.ones(3), anchor=jnp.ones(3)).value.round(3)
        Array([0.1, 1. , 1. ], dtype=float32)

    References:
        Hataya and Yamada (2023), Nystrom method for accurate and scalable implicit differentiation.
        Frangella, Tropp and Udell (2023), Randomized Nystrom preconditioning, equation 1.3.
    """

    rank: PositiveInt = 10
    seed: NonNegativeInt = 0
    accepts: ClassVar[tuple[str, ...]] = ("spd",)
    factorises: ClassVar[bool] = True
    uses_anchor: ClassVar[bool] = True

    def run(self, system: System) -> Outcome:
        """Solve with the sketch of the curvature; see `Solver.run`.

        Args:
            system: The flat, scaled system, with its anchor.

        Returns:
            The Outcome.
        """
        assert system.anchor is not None  # `Solver.__call__` raises first
        root = jnp.sqrt(system.anchor)
        sketch = self.sketch(system.product, system.anchor)
        # Woodbury: (I + U kappa U^T)^-1 = I - U (kappa / (1 + kappa)) U^T, within S^(-1/2) on both sides.
        scaled = system.b / root
        within = sketch.basis.T @ scaled
        x = (scaled - sketch.basis @ (sketch.values / (1 + sketch.values) * within)) / root
        return Outcome(x, min(self.rank, system.b.size), negative=sketch.smallest <= -1)

    def inverse(self, product: Product, anchor: Array) -> Product:
        """Make the function r -> M^-1 r.

        Args:
            product: x -> A x over flat vectors.
            anchor: The diagonal that is part of A, shape (n,).

        Returns:
            The function, from shape (n,) to shape (n,); the products are taken once, here.
        """
        sketch = self.sketch(product, anchor)
        root, last = jnp.sqrt(anchor), jnp.min(sketch.values)
        # Frangella et al. (2023), equation 1.3: (kappa_r + 1) U (kappa + 1)^-1 U^T + (I - U U^T).
        shares = (1 + last) / (1 + sketch.values) - 1

        def apply(r: Array) -> Array:
            scaled = r / root
            return (scaled + sketch.basis @ (shares * (sketch.basis.T @ scaled))) / root

        return apply

    def sketch(self, product: Product, anchor: Array) -> Sketch:
        """Approximate the curvature, relative to the anchor.

        Args:
            product: x -> A x over flat vectors.
            anchor: The diagonal that is part of A, shape (n,).

        Returns:
            The Sketch.
        """
        root, size = jnp.sqrt(anchor), anchor.size
        rank = min(self.rank, size)
        start = jax.random.normal(jax.random.key(self.seed), (size, rank), anchor.dtype)
        omega = jnp.linalg.qr(start)[0]
        # Y = K Omega, all products at once.
        images = jax.vmap(lambda v: product(v / root) / root - v, in_axes=1, out_axes=1)(omega)
        core = omega.T @ images
        good = jnp.all(jnp.isfinite(core))
        core = jnp.where(good, (core + core.T) / 2, 0)
        # The textbook takes a Cholesky factor of the core, which must be positive definite. Its eigenvectors
        # let directions that the sketch does not show clearly, or shows as falling, be excluded.
        values, turn = jnp.linalg.eigh(core)
        clear = values > 100 * jnp.finfo(core.dtype).eps * jnp.max(jnp.abs(values))
        widths = jnp.where(clear, 1 / jnp.sqrt(jnp.where(clear, values, 1)), 0)
        # Y (Omega^T Y)^+ Y^T = B B^T with B = Y turn widths, whose singular vectors are U.
        basis, singular, _ = jnp.linalg.svd(
            (jnp.where(good, images, 0) @ turn) * widths[None, :], full_matrices=False
        )
        return Sketch(basis, singular**2, jnp.where(good, values[0], jnp.nan))
