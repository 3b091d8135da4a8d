"""The solver that multiplies by an inverse that the problem provides."""

from typing import ClassVar

from jax.typing import DTypeLike

from ..core.recipes import recipe
from ..core.solution import Ending
from .base import Outcome, Solver, System
from .dense import ACCURACY


@recipe("linear")
class Inverse(Solver):
    """The exact solution by an inverse in closed form, such as that for a squared loss of a network's head.

    The problem needs a loss that derives from `imaml.LinearSquares`. The unknowns are then the features or
    the rows, whichever are fewer; the number of classes does not matter. The matching inner solver is
    ``Newton(steps=1, linear=Inverse())``, which is also exact. A solution with a relative residual above 1e-3
    ends as STAGNATED.

    Example:
        >>> import jax.numpy as jnp
        >>> curvature = jnp.array([2.0, 4.0])
        >>> Inverse()(lambda v: curvature * v, jnp.ones(2), inverse=lambda v: v / curvature).value
        Array([0.5 , 0.25], dtype=float32)

    References:
        Bertinetto et al. (2019), Meta-learning with differentiable closed-form solvers.
    """

    accepts: ClassVar[tuple[str, ...]] = ("spd",)
    factorises: ClassVar[bool] = True
    uses_inverse: ClassVar[bool] = True
    takes_guess: ClassVar[bool] = False

    def accuracy(self, dtype: DTypeLike) -> float:
        """Give the relative residual that counts as solved; see `Solver.accuracy`.

        Args:
            dtype: The dtype of the system.

        Returns:
            That of `imaml.Dense`.
        """
        return ACCURACY

    def run(self, system: System) -> Outcome:
        """Multiply by the inverse; see `Solver.run`.

        Args:
            system: The flat, scaled system, with its inverse.

        Returns:
            The Outcome.
        """
        assert system.inverse is not None  # `Solver.__call__` raises first
        x = system.inverse(system.b)
        # Woodbury's formula subtracts nearly equal numbers where the strength is small beside the curvature,
        # and leaves a residual of rounding times their ratio. One step of refinement takes most of it away.
        x = x + system.inverse(system.b - system.product(x))
        return Outcome(x, 1, ending=int(Ending.STAGNATED))
