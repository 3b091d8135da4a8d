"""Gradient descent, proximal gradient, and any Optax optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.recipes import recipe
from ..core.solution import Ending, Solution, Stats, Status
from ..problems.base import Problem
from ..problems.precision import Learned, Theta
from .base import (
    check_stopping,
    iterate,
    start_of,
)


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
@dataclass(frozen=True)
class GradientDescent:
    """Gradient descent, phi <- phi - learning_rate * F(phi, theta, batch).

    For `steps` steps, or until |F| <= tolerance (then at most `steps`, by default 10,000). For a proximal
    problem that is the paper's inner loop (Algorithm 2, line 2). Converges for learning_rate < 2 / largest
    curvature of the problem, strength included. learning_rate: a positive number, or `learned(...)`: then it
    is part of theta, and only a rule that goes through the steps, `unrolled()`, learns it (Meta-SGD).

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> GradientDescent(0.5, steps=1)(problem, jnp.zeros(1), jnp.ones(1)).value
    Array([0.5], dtype=float32)
    """

    learning_rate: float | Learned
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("GradientDescent", self.steps, self.tolerance)
        rate = self.learning_rate
        if not isinstance(rate, Learned):
            check_rate("GradientDescent", rate, ", or learned(...)")
        if isinstance(rate, Learned) and not rate.diagonal:
            raise ConfigError(
                f"GradientDescent: a rate learned per={rate.per!r}; accepted is per 'all', 'leaf' or "
                "'parameter', as a rate is no matrix."
            )

    def parameters(self, problem: Problem, theta: Any) -> Any:
        """Theta with what this solver learns: the logarithm of its rate, where that is `learned`."""
        if not isinstance(self.learning_rate, Learned):
            return theta
        whole = theta if isinstance(theta, Theta) else Theta(theta)
        return whole._replace(log_rate=self.learning_rate.logs(problem.split(whole.mean)))

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after descending; its value holds the problem's adapted leaves."""

        phi0 = start_of(problem, theta, batch, phi0, key)
        rates = self.rates(theta, phi0)

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            return jax.tree.map(lambda p, g, r: p - r * g, phi, slope, rates), memory

        return iterate(problem, theta, batch, phi0, None, step, self.steps, self.tolerance)

    def rates(self, theta: Any, phi: Any) -> Any:
        """The learning rate of every adapted leaf, a tree like phi."""
        rate = self.learning_rate
        if not isinstance(rate, Learned):
            return jax.tree.map(lambda _: rate, phi)
        if getattr(theta, "log_rate", None) is None:
            raise ConfigError(
                "GradientDescent: the rate is learned, so theta must be a Theta with log_rate; it came as "
                f"{type(theta).__name__}. Make it with inner.parameters(problem, theta)."
            )
        return rate.values(theta.log_rate, phi)


def as_descent(solver: object) -> GradientDescent | None:
    """Returns the solver where it is plain gradient descent.

    Args:
        solver: Any inner solver.

    Returns:
        The same solver, or None where it is another one.
    """
    return solver if isinstance(solver, GradientDescent) else None


def check_rate(name: str, rate: Any, more: str = "") -> None:
    """Refuses a learning rate that is neither a positive number nor traced (ConfigError)."""
    number = isinstance(rate, (int, float)) and not isinstance(rate, bool)
    if not isinstance(rate, Tracer) and not (number and 0 < rate < float("inf")):
        raise ConfigError(f"{name}: learning_rate={rate!r}; accepted is a positive number{more}.")


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
@dataclass(frozen=True)
class ProximalGradient:
    """Proximal gradient descent: a step on the loss, then the anchor's exact proximal step.

    phi <- argmin_p strength/2 |p - theta|^2 + |p - (phi - learning_rate * grad loss(phi))|^2 / (2 rate)
         = phi - learning_rate * F / (1 + learning_rate * strength)

    in every parameter (Parikh and Boyd 2014, section 4.2). Converges for learning_rate < 2 / largest
    curvature of the *loss*, however large a strength is: for strengths learned per leaf or parameter, or
    prior precisions that lie decades apart, where `GradientDescent` needs a rate below 2 / the largest.
    For problems anchored at theta by one number, one a leaf or one a parameter. `steps` and `tolerance` as
    in `GradientDescent`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), jnp.array([1.0, 1e4]))
    >>> ProximalGradient(0.5, tolerance=1e-4)(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).value.round(4)
    Array([5.e-01, 2.e-04], dtype=float32)
    """

    learning_rate: float
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("ProximalGradient", self.steps, self.tolerance)
        check_rate("ProximalGradient", self.learning_rate)

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after descending; its value holds the problem's adapted leaves."""
        if not problem.has_precision:
            raise StructureError(
                f"ProximalGradient: the problem is {problem.kind}; accepted are proximal and equilibrium "
                "problems, which have an anchor to step towards. Use GradientDescent."
            )
        phi0 = start_of(problem, theta, batch, phi0, key)
        rate = self.learning_rate
        shares = jax.tree.map(lambda s: rate / (1 + rate * s), problem.strengths(phi0, theta))

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            return jax.tree.map(lambda p, g, share: p - share * g, phi, slope, shares), memory

        return iterate(problem, theta, batch, phi0, None, step, self.steps, self.tolerance)


@dataclass(frozen=True)
class Descent:
    """Any Optax transform fed with F, for `steps` steps or until |F| <= tolerance; see `GradientDescent`.

    >>> import imaml, optax, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> solver = Descent(optax.sgd(0.2, momentum=0.5), tolerance=1e-4)
    >>> round(float(solver(problem, jnp.zeros(1), jnp.ones(1)).value[0]), 3)
    0.5
    """

    transform: Any
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_stopping("Descent", self.steps, self.tolerance)
        if not (hasattr(self.transform, "init") and hasattr(self.transform, "update")):
            raise ConfigError(
                f"Descent: {self.transform!r} is no Optax transform; pass one such as optax.adam(1e-2), "
                "or use GradientDescent(learning_rate)."
            )

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after descending; its value holds the problem's adapted leaves."""

        def step(slope: Any, phi: Any, memory: Any) -> tuple:
            updates, memory = self.transform.update(slope, memory, phi)
            return jax.tree.map(jnp.add, phi, updates), memory

        phi0 = start_of(problem, theta, batch, phi0, key)
        return iterate(
            problem, theta, batch, phi0, self.transform.init(phi0), step, self.steps, self.tolerance
        )


def looked_at(problem: Problem, theta: Any, batch: Any, phi: Any, tolerance: float) -> Solution:
    """The Solution of a solver of which only its answer is known: judged by |F| there."""
    size = tree.norm(problem.residual(phi, theta, batch))
    code = jnp.where(size <= tolerance, int(Ending.CONVERGED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(phi, Stats(jnp.asarray(1), size, jnp.asarray(False)), Status(code))
