"""Newton steps and linear solves that continue until the meta-gradient has the requested accuracy."""

from dataclasses import replace
from typing import Annotated

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError
from ..core.fields import Checked, PositiveFloat, PositiveFraction
from ..core.recipes import recipe
from ..core.solution import Certification, Ending, Solution, Stats, Status, bounded
from ..core.validation import Interval
from .base import StepNumber
from .certificate import Certificate, certified, curvature_guess, sensitivity
from .newton_step import Aim, Constants, Point, refine, remaining_error, sampler
from .system import Case, System

ROUNDS = 20
MOST = 1000  # steps of conjugate gradients in one solve


@recipe()
class Tightening(Checked):
    """An accuracy that becomes stricter during training: max(last, first / (1 + step / pace)^power).

    Far from the optimum a rough meta-gradient suffices. Meta-training converges if the sum of the accuracies
    is finite, so power > 1. At step None (a gradient outside of training) the accuracy is `last`.

    Attributes:
        first: The accuracy at step 0, relative to a task's meta-gradient.
        last: The smallest accuracy.
        pace: The time scale of the decrease, in steps.
        power: The rate of decrease.

    Example:
        >>> Tightening(first=0.1, last=1e-3, pace=10).at(10)
        0.025

    References:
        Pedregosa (2016), Hyperparameter optimization with approximate gradient, Theorem 2 and section 4.
    """

    first: PositiveFraction = 0.1
    last: PositiveFraction = 1e-4
    pace: PositiveFloat = 100.0
    power: Annotated[float, Interval(1, open=True)] = 2.0

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        if self.last > self.first:
            raise ConfigError(f"Tightening: last: expected at most first={self.first!r}, got {self.last!r}.")

    def at(self, step: StepNumber) -> float | Array:
        """The accuracy at a step of training.

        Args:
            step: The step, from 0; None for the end of training.

        Returns:
            The accuracy, a number or an array.
        """
        if step is None:
            return self.last
        now = self.first / (1 + step / self.pace) ** self.power
        return max(self.last, now) if isinstance(step, int) else jnp.maximum(self.last, now)


def until_accurate(
    accuracy: float | Array,
    certificate: Certificate | None,
    case: Case,
    system: System,
    begun: Point,
    key: Array,
) -> tuple[Point, Solution]:
    """Newton steps until the meta-gradient's error is at most `accuracy` times its norm.

    Each round takes a Newton step and solves the linear system there further; see `newton_step.refine`. Where
    a certificate is asked for, or where the problem is declared convex and |B| is known, the rounds go on
    until the bound is small enough, and CONVERGED means that it is. Else an estimate stops them: mu is then
    the least Ritz value seen, or the least strength if that is less, and |B^T u| / |u| stands for |B|.

    Args:
        accuracy: What is asked for, relative to the norm of the meta-gradient.
        certificate: How the error is bounded, or None if no bound was asked for.
        case: The task.
        system: The linear system at the inner solution.
        begun: The point of the inner solution and of a rough solution of the system.
        key: For the certificate's random probes.

    Returns:
        The point reached, and the linear Solution there: its steps count all products with A, the first
        solve's among them; its status is CONVERGED, or says why not.
    """
    asked = lambda point: accuracy * tree.norm(point.gradient)  # noqa: E731
    free = case.problem.convex and case.problem.coupling_norm(begun.adapted, case.theta) is not None
    if certificate is not None or free:  # the bound decides when to stop
        recipe = replace(certificate or Certificate(), rounds=ROUNDS)
        point, constants, bound, certified_as = certified(recipe, case, begun, asked, MOST, key)
        good = bounded(certified_as) & (bound <= asked(point))
        above = bounded(certified_as) & ~good
        certified_as = jnp.where(above, int(Certification.ABOVE_REQUEST), certified_as)
        estimate = remaining_error(point, constants)
    else:  # an estimate does
        constants = lambda point: _guess(case, system, point)  # noqa: E731
        aim = Aim(asked, constants, None)
        point = refine(case, begun, aim, sampler(case), MOST, ROUNDS, jax.random.split(key, 3)[1])
        estimate, bound = remaining_error(point, constants(point)), None
        good = estimate <= asked(point)
        certified_as = jnp.full(good.shape, int(Certification.ESTIMATED))
    code = jnp.where(good, int(Ending.CONVERGED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(point.negative, int(Ending.NEGATIVE_CURVATURE), code)
    code = jnp.where(tree.finite(point.gradient), code, int(Ending.NOT_FINITE))
    share = point.mismatch / jnp.where(point.size > 0, point.size, 1)
    stats = Stats(point.products, share, point.negative, error_estimate=estimate, error_bound=bound)
    return point, Solution(point.u, stats, Status(code, certified_as))


def _guess(case: Case, system: System, point: Point) -> Constants:
    """The constants of an estimate at a point."""
    mu = curvature_guess(case, point)
    known = case.problem.coupling_norm(point.adapted, case.theta)
    return Constants(mu, mu, sensitivity(system, point.u) if known is None else known)
