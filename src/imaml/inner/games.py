"""Inner solvers for games and other fields that turn: extragradient, and optimistic descent.

Where players pull against each other, simultaneous gradient steps circle around the solution, or away from
it. Both methods here step against the field as it will be rather than as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.recipes import recipe
from ..core.solution import Solution
from ..core.validation import require_number
from ..problems.base import Problem
from .base import check_stopping, iterate, start_of


@dataclass(frozen=True)
class _Ahead:
    """A rate, and when to stop."""

    learning_rate: float
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        name = type(self).__name__
        check_stopping(name, self.steps, self.tolerance)
        require_number(name, 0, open=True, learning_rate=self.learning_rate)


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
@dataclass(frozen=True)
class ExtraGradient(_Ahead):
    """The extragradient method, phi <- phi - rate F(phi - rate F(phi)): two fields a step (Korpelevich 1976).

    For `steps` steps, or until |F| <= tolerance (then at most `steps`, by default 10,000). Converges for
    monotone F, as of convex-concave games, at rates below 1 / its Lipschitz constant. ConfigError where it is
    not told when to stop.

    >>> import imaml, jax.numpy as jnp
    >>> circling = imaml.game(lambda x, y, t, b: x * y + 0 * t[0], lambda x, y, t, b: -x * y)
    >>> solver = ExtraGradient(0.3, tolerance=1e-3)
    >>> bool(solver(circling, (jnp.array(1.0), jnp.array(1.0)), None).status.ok)
    True
    """

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution; its value holds the problem's adapted leaves."""

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            ahead = _against(phi, slope, self.learning_rate)
            return _against(phi, problem.residual(ahead, theta, batch), self.learning_rate), memory

        phi0 = start_of(problem, theta, batch, phi0, key)
        return iterate(problem, theta, batch, phi0, None, step, self.steps, self.tolerance)


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
@dataclass(frozen=True)
class OptimisticDescent(_Ahead):
    """Optimistic descent, phi <- phi - rate (2 F - F before): one field a step (Daskalakis et al. 2018).

    For `steps` steps, or until |F| <= tolerance, as `ExtraGradient`; rates below half of those.

    >>> import imaml, jax.numpy as jnp
    >>> circling = imaml.game(lambda x, y, t, b: x * y + 0 * t[0], lambda x, y, t, b: -x * y)
    >>> solver = OptimisticDescent(0.3, tolerance=1e-3)
    >>> bool(solver(circling, (jnp.array(1.0), jnp.array(1.0)), None).status.ok)
    True
    """

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution; its value holds the problem's adapted leaves."""

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            before, begun = memory
            change = jax.tree.map(lambda now, then: jnp.where(begun, 2 * now - then, now), slope, before)
            return _against(phi, change, self.learning_rate), (slope, jnp.asarray(True))

        phi0 = start_of(problem, theta, batch, phi0, key)
        memory = (jax.tree.map(jnp.zeros_like, phi0), jnp.asarray(False))
        return iterate(problem, theta, batch, phi0, memory, step, self.steps, self.tolerance)


def _against(phi: Any, slope: Any, rate: float) -> Any:
    return jax.tree.map(lambda p, g: p - rate * g, phi, slope)
