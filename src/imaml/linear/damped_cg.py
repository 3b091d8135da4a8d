"""Conjugate gradients with as much damping as the Ritz values ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp

from ..core.errors import ConfigError
from ..core.recipes import recipe
from ..core.solution import Ending, Solution, Stats, Status
from ..core.validation import require_number, require_whole
from .base import ACCEPTS, Matvec, flat_anchor, flat_problem, refuse_structure, true_residual
from .lanczos import eigenpairs, krylov


@recipe("linear")
@dataclass(frozen=True)
class DampedCG:
    """The iterate of conjugate gradients for (A + d I) x = b, d the least that the Ritz values ask for.

    After `steps` of Lanczos from b, with Ritz values theta_1 <= theta_2 ... of A, d = max(0, floor - theta_1)
    with floor = share * the least strength: no more than what lifts the smallest Ritz value to the floor, and
    nothing where all are above it. As A + d I has the same Krylov space, that takes no products more:

    ```
    x = |b| V (T + d I)^-1 e_1             V the Lanczos basis, T tridiagonal
    ```

    Where d > 0 the status is DAMPED, `stats.damping` is d, and the residual reported is that of A itself, not
    of A + d I. The basis takes `steps` times the memory of b. Starts at zero: x0 is refused.

    For systems that ought to be positive definite and are not, as those of deep networks adapted in few steps
    (Martens 2010, section 4.1, has damping; that the Ritz values set it is ours). What is returned is the
    gradient of no loss; docs/indefinite.md has the other choices.

    >>> import jax.numpy as jnp
    >>> curvature = jnp.array([2.0, -3.0])
    >>> found = DampedCG(steps=2)(lambda v: curvature * v, jnp.ones(2), anchor=1.0 * jnp.ones(2))
    >>> round(float(found.stats.damping), 3), found.status.ending.name
    (3.5, 'DAMPED')
    """

    steps: int = 5
    share: float = 0.5
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["DampedCG"]
    uses_anchor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("DampedCG", 1, steps=self.steps)
        require_number("DampedCG", 0, open=True, share=self.share)

    def __call__(
        self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "spd", anchor: Any = None
    ) -> Solution:
        """The Solution of (A + d I) x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        if x0 is not None:
            raise ConfigError("DampedCG: starts at zero, as d is known only afterwards; leave x0 out.")
        floor = self.share * jnp.min(flat_anchor(self, anchor, b))
        product, b, _, unravel = flat_problem(matvec, b, None)
        size = jnp.linalg.norm(b)
        good = jnp.isfinite(size)
        some = good & (size > 0)
        unit = jnp.where(some, b / jnp.where(some, size, 1), jnp.zeros_like(b).at[0].set(1))
        basis, diagonal, beside, taken = krylov(product, unit, self.steps)
        values, turn = eigenpairs(diagonal, beside)
        damping = jnp.maximum(floor - values[0], 0)
        x = size * (basis.T @ (turn @ (turn[0] / (values + damping))))
        finite = good & jnp.all(jnp.isfinite(x))
        x = jnp.where(finite & some, x, 0)
        residual = jnp.where(finite, true_residual(product, b, x), jnp.inf)
        code = jnp.where(damping > 0, int(Ending.DAMPED), int(Ending.STEPS_DONE))
        code = jnp.where(finite | ~some & good, code, int(Ending.NOT_FINITE))
        stats = Stats(jnp.where(some, taken, 0), residual, values[0] <= 0, damping=damping)
        return Solution(unravel(x), stats, Status(code))
