"""Inner solvers for games and other fields that turn: extragradient, and optimistic descent.

Where players pull against each other, simultaneous gradient steps circle around the solution, or away from
it. Both methods here step against the field as it will be rather than as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core.recipes import recipe
from ..core.solution import Solution
from ..core.tree import PyTree
from ..core.validation import require_number
from ..problems.base import Problem
from .base import Solver, check_stopping, iterate


class _Before(NamedTuple):
    """F at the step before, and whether there was one."""

    slope: PyTree
    known: Array


@dataclass(frozen=True)
class _Ahead(Solver):
    """A rate, and when to stop."""

    learning_rate: float
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        name = type(self).__name__
        check_stopping(name, self.steps, self.tolerance)
        require_number(name, 0, open=True, learning_rate=self.learning_rate)


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
@dataclass(frozen=True)
class ExtraGradient(_Ahead):
    """The extragradient method, phi <- phi - rate F(phi - rate F(phi)); two evaluations of F a step.

    It converges for monotone F, as of convex-concave games, at rates below 1 / its Lipschitz constant.

    Args:
        learning_rate: The rate, a positive number.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> circling = imaml.game(lambda x, y, t, b: x * y + 0 * t[0], lambda x, y, t, b: -x * y)
        >>> solver = ExtraGradient(0.3, tolerance=1e-3)
        >>> bool(solver(circling, (jnp.array(1.0), jnp.array(1.0)), None).status.ok)
        True

    References:
        Korpelevich (1976), The extragradient method for finding saddle points and other problems.
    """

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""

        def step(slope: PyTree, phi: PyTree, memory: None) -> tuple[PyTree, None]:
            ahead = _against(phi, slope, self.learning_rate)
            return _against(phi, problem.residual(ahead, theta, batch), self.learning_rate), memory

        return iterate(problem, theta, batch, phi0, None, step, self.steps, self.tolerance)


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
@dataclass(frozen=True)
class OptimisticDescent(_Ahead):
    """Optimistic descent, phi <- phi - rate (2 F - F before); one evaluation of F a step.

    It converges where `ExtraGradient` does, at rates below half of those.

    Args:
        learning_rate: The rate, a positive number.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> circling = imaml.game(lambda x, y, t, b: x * y + 0 * t[0], lambda x, y, t, b: -x * y)
        >>> solver = OptimisticDescent(0.3, tolerance=1e-3)
        >>> bool(solver(circling, (jnp.array(1.0), jnp.array(1.0)), None).status.ok)
        True

    References:
        Daskalakis et al. (2018), Training GANs with optimism.
    """

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""

        def step(slope: PyTree, phi: PyTree, memory: _Before) -> tuple[PyTree, _Before]:
            # The first step has no F before it, and is one of gradient descent.
            change = jax.tree.map(
                lambda now, then: jnp.where(memory.known, 2 * now - then, now), slope, memory.slope
            )
            return _against(phi, change, self.learning_rate), _Before(slope, jnp.asarray(True))

        memory = _Before(jax.tree.map(jnp.zeros_like, phi0), jnp.asarray(False))
        return iterate(problem, theta, batch, phi0, memory, step, self.steps, self.tolerance)


def _against(phi: PyTree, slope: PyTree, rate: float) -> PyTree:
    """A step against a slope."""
    return jax.tree.map(lambda p, g: p - rate * g, phi, slope)
