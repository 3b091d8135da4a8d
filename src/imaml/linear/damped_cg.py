"""Conjugate gradients with damping that the Ritz values determine."""

from typing import ClassVar

import jax.numpy as jnp

from ..core.fields import Checked, PositiveFloat, PositiveInt
from ..core.recipes import recipe
from ..core.solution import Ending
from .base import Outcome, Solver, System
from .lanczos import eigenpairs, krylov


@recipe("linear")
class DampedCG(Checked, Solver):
    """The iterate of conjugate gradients for (A + d I) x = b, where the Ritz values determine d.

    After `steps` of Lanczos from b, with Ritz values theta_1 <= theta_2 ... of A,

        d = max(0, floor - theta_1),        floor = share * the least strength.

    That is the least d that lifts the smallest Ritz value to the floor, and 0 if all are above it. A + d I
    has the same Krylov space as A, so x needs no further products:

        x = |b| V (T + d I)^-1 e_1,         V the Lanczos basis, T tridiagonal.

    Where d > 0 the status is DAMPED, `stats.damping` is d, and the residual reported is that of A itself, not
    of A + d I. The basis takes `steps` times the memory of b. The solver starts at zero, and raises
    ConfigError for a first guess x0.

    It is made for systems that should be positive definite but are not, such as those of deep networks
    adapted in few steps. Setting the damping by the Ritz values is our own method. The resulting
    meta-gradient is not the gradient of a loss; docs/indefinite.md compares the alternatives.

    Args:
        steps: The steps of Lanczos.
        share: The floor of the Ritz values, as a share of the least strength.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> curvature = jnp.array([2.0, -3.0])
        >>> found = DampedCG(steps=2)(lambda v: curvature * v, jnp.ones(2), anchor=1.0 * jnp.ones(2))
        >>> round(float(found.stats.damping), 3), found.status.ending.name
        (3.5, 'DAMPED')

    References:
        Martens (2010), Deep learning via Hessian-free optimization, section 4.1, has damping.
    """

    steps: PositiveInt = 5
    share: PositiveFloat = 0.5
    accepts: ClassVar[tuple[str, ...]] = ("spd",)
    factorises: ClassVar[bool] = True
    uses_anchor: ClassVar[bool] = True
    takes_guess: ClassVar[bool] = False

    def run(self, system: System) -> Outcome:
        """Solve the damped system; see `Solver.run`.

        Args:
            system: The flat, scaled system.

        Returns:
            The Outcome.
        """
        b = system.b
        assert system.anchor is not None  # `Solver.__call__` raises first
        floor = self.share * jnp.min(system.anchor)
        # Lanczos needs a start that is finite and not zero; without one e_1 stands in, and x is zero.
        size = jnp.linalg.norm(b)
        some = jnp.isfinite(size) & (size > 0)
        unit = jnp.where(some, b / jnp.where(some, size, 1), jnp.zeros_like(b).at[0].set(1))
        found = krylov(system.product, unit, self.steps)
        # (T + d I)^-1 e_1 = U (Theta + d)^-1 U^T e_1, with T = U Theta U^T.
        values, turn = eigenpairs(found.diagonal, found.off_diagonal)
        damping = jnp.maximum(floor - values[0], 0)
        x = size * (found.basis.T @ (turn @ (turn[0] / (values + damping))))
        return Outcome(
            x=jnp.where(some, x, 0),
            steps=jnp.where(some, found.steps, 0),
            ending=jnp.where(damping > 0, int(Ending.DAMPED), int(Ending.STEPS_DONE)),
            final=True,
            negative=values[0] <= 0,
            damping=damping,
        )
