"""A dense solve, for small problems."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core import tree
from ..core.errors import ConfigError
from ..core.recipes import recipe
from ..core.solution import Ending
from .base import STRUCTURES, Outcome, Solver, System

LARGEST = 20_000  # unknowns, of which a matrix takes 3 GB in float64
ACCURACY = 1e-3  # the relative residual from which on a matrix counts as singular


@recipe("linear")
class Dense(Solver):
    """The exact solution from the whole matrix: n products and n^3 operations, for tests and small problems.

    The matrix is made by `vmap` over the identity and factorised (LU). For symmetric structures its smallest
    eigenvalue is computed, so `stats.negative_curvature` is exact. The value is the exact solution even if A
    is indefinite. A singular matrix ends as STAGNATED. Systems above 20,000 unknowns raise ConfigError.

    Example:
        >>> import jax.numpy as jnp
        >>> Dense()(lambda v: jnp.array([2.0, 4.0]) * v, jnp.ones(2)).value
        Array([0.5 , 0.25], dtype=float32)
    """

    accepts: ClassVar[tuple[str, ...]] = STRUCTURES
    structure: ClassVar[str] = "general"
    factorises: ClassVar[bool] = True

    def accuracy(self, dtype: DTypeLike) -> float:
        """Give the relative residual that counts as solved; see `Solver.accuracy`.

        Args:
            dtype: The dtype of the system.

        Returns:
            1e-3.
        """
        return ACCURACY

    def run(self, system: System) -> Outcome:
        """Solve by LU; see `Solver.run`.

        Args:
            system: The flat, scaled system.

        Returns:
            The Outcome.

        Raises:
            ConfigError: If the system is too large.
        """
        size = system.b.size
        if size > LARGEST:
            raise ConfigError(f"Dense: expected up to 20,000 unknowns, got {size}. Hint: use CG or GMRES.")
        matrix = jax.vmap(system.product, out_axes=1)(jnp.eye(size, dtype=system.b.dtype))
        negative = False
        if system.structure != "general":
            negative = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[0] <= 0
        # A singular matrix gives infinities from finite numbers: it is the matrix, not the data.
        given = tree.finite((matrix, system.b))
        return Outcome(
            x=jnp.linalg.solve(matrix, system.b),
            steps=size,
            ending=int(Ending.STAGNATED),
            nonfinite=jnp.where(given, int(Ending.STAGNATED), int(Ending.NOT_FINITE)),
            negative=negative,
        )
