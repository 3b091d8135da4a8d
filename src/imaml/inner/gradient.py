"""Gradient descent, proximal gradient, and any Optax optimiser."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.fields import PositiveFloat, PositiveInt
from ..core.recipes import recipe
from ..core.tree import Tree
from ..problems.base import Problem
from ..problems.precision import Learned, Theta, logs_in
from .base import Instance, Rated, Step, Stepping

if TYPE_CHECKING:
    from optax import GradientTransformation  # takes long to import
else:
    GradientTransformation = object


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
class GradientDescent(Rated[None]):
    """Gradient descent, phi <- phi - learning_rate * F(phi, theta, batch).

    For a proximal problem that is the paper's inner loop (Algorithm 2, line 2). It converges for a
    learning_rate below 2 / the largest curvature of the problem, strength included.

    Args:
        learning_rate: A positive number, or `learned(...)`. In that case it is part of theta. `unrolled()`
            learns it by the query loss (Meta-SGD). At a solution that loss does not depend on it, so
            `implicit()` learns it by how far one more step lowers the inner objective; see `rate_gradient`.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> GradientDescent(0.5, steps=1)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Rajeswaran et al. (2019), Meta-learning with implicit gradients, Algorithm 2.
        Li et al. (2017), Meta-SGD: learning to learn quickly for few-shot learning.
        Baydin et al. (2018), Online learning rate adaptation with hypergradient descent.
    """

    learning_rate: PositiveFloat | Learned

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        if isinstance(self.learning_rate, Learned) and not self.learning_rate.diagonal:
            raise ConfigError(
                "GradientDescent: learning_rate: expected learned(..., per='all', 'leaf' or 'parameter'), "
                f"as a rate is not a matrix, got per={self.learning_rate.per!r}."
            )

    def parameters(self, problem: Problem, theta: Tree) -> Tree:
        """Add what this solver learns to theta.

        Args:
            problem: The inner problem.
            theta: Meta-parameters.

        Returns:
            A `Theta` with the logarithm of the rate, if that is `learned`; otherwise theta itself.
        """
        if not isinstance(self.learning_rate, Learned):
            return theta
        whole = Theta.of(theta)
        return whole._replace(log_rate=self.learning_rate.logs(problem.split(whole.mean)))

    def iteration(self, task: Instance) -> tuple[None, Step[None]]:
        """Prepare the iteration; see `Stepping.iteration`."""
        rates = self.rates(task.theta, task.start)

        def step(slope: Tree, phi: Tree, memory: None) -> tuple[Tree, None]:
            return jax.tree.map(lambda p, g, r: p - r * g, phi, slope, rates), memory

        return None, step

    def rates(self, theta: Tree, phi: Tree) -> Tree:
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
        logs = logs_in("GradientDescent", theta, "log_rate", "inner.parameters(problem, theta)")
        return rate.values(logs, phi)

    @property
    def learns_rates(self) -> bool:
        """Whether the rate is learned."""
        return isinstance(self.learning_rate, Learned)

    def rate_gradient(self, task: Instance, phi: Tree) -> Tree:
        """Give the derivative of the inner objective after one more step in the logarithms of the rates.

        ```
        d/d log r  objective(phi - r F) / |F|^2  =  -r F(phi - r F) . F / |F|^2        F = F(phi), held fixed
        ```

        It is negative if the next gradient has the same direction, and the rate then grows. At a minimum
        along F it is zero. The division by |F|^2 gives all tasks the same weight, however close each is to
        its solution.

        Args:
            task: The problem of one task.
            phi: The adapted parameters after the steps.

        Returns:
            A tree like `Theta.log_rate`; zero where F is.
        """
        slope, rates = task.residual(phi), self.rates(task.theta, phi)
        next_slope = task.residual(jax.tree.map(lambda p, g, r: p - r * g, phi, slope, rates))
        square = tree.dot(slope, slope)
        unit = jnp.where(square > 0, square, 1)
        found = jax.tree.map(lambda r, g, n: -r * n * g / unit, rates, slope, next_slope)
        logs = logs_in("GradientDescent", task.theta, "log_rate")
        if self.learning_rate.per == "all":  # type: ignore[union-attr]
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(found))
        # A rate of several parameters, as of a leaf or of a head with one column, has the sum of theirs.
        return jax.tree.map(lambda log, leaf: tree.collapse(leaf, jnp.shape(log)), logs, found)


def as_descent(solver: object) -> GradientDescent | None:
    """Return the solver if it is plain gradient descent.

    Args:
        solver: Any inner solver.

    Returns:
        The same solver; None if it is another one.
    """
    return solver if isinstance(solver, GradientDescent) else None


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
class ProximalGradient(Rated[None]):
    """Proximal gradient descent: a step on the loss, then the anchor's exact proximal step.

        phi <- argmin_p strength/2 |p - theta|^2 + |p - (phi - learning_rate * grad loss(phi))|^2 / (2 rate)
             = phi - learning_rate * F / (1 + learning_rate * strength)      in every parameter

    It converges for a learning_rate below 2 / the largest curvature of the *loss*, however large a strength
    is. So it suits strengths that are learned per leaf or parameter, and prior precisions that differ by
    orders of magnitude. `GradientDescent` would need a rate below 2 / the largest. The problem's strength
    must be one number, one per leaf or one per parameter.

    Args:
        learning_rate: A positive number.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), jnp.array([1.0, 1e4]))
        >>> ProximalGradient(0.5, tolerance=1e-4)(problem, jnp.zeros(2), jnp.array([1.0, 2.0])).value.round(4)
        Array([5.e-01, 2.e-04], dtype=float32)

    References:
        Parikh and Boyd (2014), Proximal algorithms, section 4.2.
    """

    def iteration(self, task: Instance) -> tuple[None, Step[None]]:
        """Prepare the iteration; see `Stepping.iteration`."""
        if not task.problem.has_precision:
            raise StructureError(
                "ProximalGradient: expected a proximal or equilibrium problem, which has an anchor, got "
                f"{task.problem.kind}. Hint: use GradientDescent."
            )
        rate = self.learning_rate
        shares = jax.tree.map(lambda s: rate / (1 + rate * s), task.problem.strengths(task.start, task.theta))

        def step(slope: Tree, phi: Tree, memory: None) -> tuple[Tree, None]:
            return jax.tree.map(lambda p, g, share: p - share * g, phi, slope, shares), memory

        return None, step


@dataclass(frozen=True)
class Descent(Stepping[Tree]):
    """Any Optax transform fed with F.

    Args:
        transform: An Optax gradient transformation, such as `optax.adam(1e-2)`.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
    >>> import imaml, optax, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> solver = Descent(optax.sgd(0.2, momentum=0.5), tolerance=1e-4)
    >>> round(float(solver(problem, jnp.zeros(1), jnp.ones(1)).value[0]), 3)
    0.5
    """

    transform: GradientTransformation
    steps: PositiveInt | None = None
    tolerance: PositiveFloat | None = None

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        if not (hasattr(self.transform, "init") and hasattr(self.transform, "update")):
            raise ConfigError(
                f"Descent: transform: expected an Optax transform, got {self.transform!r}. Hint: pass one "
                "such as optax.adam(1e-2), or use GradientDescent(learning_rate)."
            )

    def iteration(self, task: Instance) -> tuple[Tree, Step[Tree]]:
        """Prepare the iteration; see `Stepping.iteration`."""

        def step(slope: Tree, phi: Tree, memory: Tree) -> tuple[Tree, Tree]:
            try:
                updates, memory = self.transform.update(slope, memory, phi)
            except TypeError as error:  # such as optax.lbfgs, which asks for the value as well
                raise ConfigError(
                    f"Descent: transform: expected an Optax transform that needs the gradient alone, got an "
                    f"error ({error}). Hint: use one such as optax.adam(1e-2), or imaml.LBFGS."
                ) from error
            return jax.tree.map(jnp.add, phi, updates), memory

        return self.transform.init(task.start), step
