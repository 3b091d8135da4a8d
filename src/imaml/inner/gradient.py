"""Gradient descent, proximal gradient, and any Optax optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from ..core.errors import ConfigError, StructureError
from ..core.recipes import recipe
from ..core.solution import Solution
from ..core.tree import PyTree
from ..problems.base import Problem
from ..problems.precision import Learned, Theta
from .base import Solver, check_stopping, iterate

if TYPE_CHECKING:
    import optax  # takes long to import


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
@dataclass(frozen=True)
class GradientDescent(Solver):
    """Gradient descent, phi <- phi - learning_rate * F(phi, theta, batch).

    For a proximal problem that is the paper's inner loop (Algorithm 2, line 2). It converges for a
    learning_rate below 2 / the largest curvature of the problem, strength included.

    Args:
        learning_rate: A positive number, or `learned(...)`. In that case it is part of theta, and only a rule
            that goes through the steps, `unrolled()`, learns it (Meta-SGD).
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> GradientDescent(0.5, steps=1)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Rajeswaran et al. (2019), Meta-learning with implicit gradients, Algorithm 2.
        Li et al. (2017), Meta-SGD: learning to learn quickly for few-shot learning.
    """

    learning_rate: float | Learned
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        check_stopping("GradientDescent", self.steps, self.tolerance)
        rate = self.learning_rate
        if not isinstance(rate, Learned):
            check_rate("GradientDescent", rate, ", or learned(...)")
        if isinstance(rate, Learned) and not rate.diagonal:
            raise ConfigError(
                f"GradientDescent: a rate learned per={rate.per!r}; accepted is per 'all', 'leaf' or "
                "'parameter', as a rate is no matrix."
            )

    def parameters(self, problem: Problem, theta: PyTree) -> PyTree:
        """Add what this solver learns to theta.

        Args:
            problem: The inner problem.
            theta: Meta-parameters.

        Returns:
            A `Theta` with the logarithm of the rate, where that is `learned`; else theta as it is.
        """
        if not isinstance(self.learning_rate, Learned):
            return theta
        whole = theta if isinstance(theta, Theta) else Theta(theta)
        return whole._replace(log_rate=self.learning_rate.logs(problem.split(whole.mean)))

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""
        rates = self.rates(theta, phi0)

        def step(slope: PyTree, phi: PyTree, memory: None) -> tuple[PyTree, None]:
            return jax.tree.map(lambda p, g, r: p - r * g, phi, slope, rates), memory

        return iterate(problem, theta, batch, phi0, None, step, self.steps, self.tolerance)

    def rates(self, theta: PyTree, phi: PyTree) -> PyTree:
        """Give the learning rate of every adapted parameter.

        Args:
            theta: Meta-parameters; a `Theta` with `log_rate` where the rate is learned.
            phi: The adapted parameters.

        Returns:
            A tree like phi, of numbers or arrays that broadcast to its leaves.

        Raises:
            ConfigError: If the rate is learned, and theta has none.
        """
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


def check_rate(name: str, rate: object, more: str = "") -> None:
    """Check a learning rate.

    Args:
        name: The solver's name, for the message.
        rate: The rate; a traced number passes.
        more: What else is expected, for the message.

    Raises:
        ConfigError: If it is no positive number.
    """
    number = rate if isinstance(rate, (int, float)) and not isinstance(rate, bool) else 0
    if not isinstance(rate, Tracer) and not 0 < number < float("inf"):
        raise ConfigError(f"{name}: learning_rate: expected a finite number above 0{more}, got {rate!r}.")


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
@dataclass(frozen=True)
class ProximalGradient(Solver):
    """Proximal gradient descent: a step on the loss, then the anchor's exact proximal step.

        phi <- argmin_p strength/2 |p - theta|^2 + |p - (phi - learning_rate * grad loss(phi))|^2 / (2 rate)
             = phi - learning_rate * F / (1 + learning_rate * strength)      in every parameter

    It converges for a learning_rate below 2 / the largest curvature of the *loss*, however large a strength
    is. So it suits strengths learned per leaf or parameter, and prior precisions that lie decades apart,
    where `GradientDescent` needs a rate below 2 / the largest. It is for problems anchored at theta by one
    number, one a leaf or one a parameter.

    Args:
        learning_rate: A positive number.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), jnp.array([1.0, 1e4]))
        >>> ProximalGradient(0.5, tolerance=1e-4)(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).value.round(4)
        Array([5.e-01, 2.e-04], dtype=float32)

    References:
        Parikh and Boyd (2014), Proximal algorithms, section 4.2.
    """

    learning_rate: float
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        check_stopping("ProximalGradient", self.steps, self.tolerance)
        check_rate("ProximalGradient", self.learning_rate)

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""
        if not problem.has_precision:
            raise StructureError(
                f"ProximalGradient: the problem is {problem.kind}; accepted are proximal and equilibrium "
                "problems, which have an anchor to step towards. Use GradientDescent."
            )
        rate = self.learning_rate
        shares = jax.tree.map(lambda s: rate / (1 + rate * s), problem.strengths(phi0, theta))

        def step(slope: PyTree, phi: PyTree, memory: None) -> tuple[PyTree, None]:
            return jax.tree.map(lambda p, g, share: p - share * g, phi, slope, shares), memory

        return iterate(problem, theta, batch, phi0, None, step, self.steps, self.tolerance)


@dataclass(frozen=True)
class Descent(Solver):
    """Any Optax transform fed with F.

    Args:
        transform: An Optax gradient transformation, such as `optax.adam(1e-2)`.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
    >>> import imaml, optax, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> solver = Descent(optax.sgd(0.2, momentum=0.5), tolerance=1e-4)
    >>> round(float(solver(problem, jnp.zeros(1), jnp.ones(1)).value[0]), 3)
    0.5
    """

    transform: optax.GradientTransformation
    steps: int | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        check_stopping("Descent", self.steps, self.tolerance)
        if not (hasattr(self.transform, "init") and hasattr(self.transform, "update")):
            raise ConfigError(
                f"Descent: {self.transform!r} is no Optax transform; pass one such as optax.adam(1e-2), "
                "or use GradientDescent(learning_rate)."
            )

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""

        def step(slope: PyTree, phi: PyTree, memory: PyTree) -> tuple[PyTree, PyTree]:
            updates, memory = self.transform.update(slope, memory, phi)
            return jax.tree.map(jnp.add, phi, updates), memory

        return iterate(
            problem, theta, batch, phi0, self.transform.init(phi0), step, self.steps, self.tolerance
        )
