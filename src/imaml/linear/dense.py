"""A dense solve, for small problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..core import tree
from ..core.errors import ConfigError
from ..core.recipes import recipe
from ..core.solution import Ending, Solution, Stats, Status
from .base import (
    ACCEPTS,
    Matvec,
    finish,
    flat_problem,
    refuse_structure,
)


@recipe("linear")
@dataclass(frozen=True)
class Dense:
    """The exact solve by the whole matrix, n products and n^3 work: the oracle for tests and small problems.

    The matrix is made by `vmap` over the identity and factored (LU). For symmetric structures
    its smallest eigenvalue is looked at, so `stats.negative_curvature` is the truth, and the value is the
    exact solution all the same. Refused above 20,000 unknowns (3 GB in float64).
    """

    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["Dense"]

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "general") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        product, b, _, unravel = flat_problem(matvec, b, x0)
        if b.size > 20_000:
            raise ConfigError(f"Dense: {b.size} unknowns; accepted are up to 20,000. Use CG or GMRES.")
        matrix = jax.vmap(product, out_axes=1)(jnp.eye(b.size, dtype=b.dtype))
        found = jnp.linalg.solve(matrix, b)
        solution = finish(product, b, found, unravel, b.size, 1e-3, int(Ending.STAGNATED))
        singular = ~jnp.isfinite(solution.stats.residual) & tree.finite((matrix, b))
        status = Status(jnp.where(singular, int(Ending.STAGNATED), solution.status.code))
        if structure == "general":
            return Solution(solution.value, solution.stats, status)
        smallest = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[0]
        stats = Stats(solution.stats.steps, solution.stats.residual, smallest <= 0)
        return Solution(solution.value, stats, status)
