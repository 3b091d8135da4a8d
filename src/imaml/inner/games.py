"""Inner solvers for games and other fields that are not gradients: extragradient, and optimistic descent.

If the players' gradients oppose each other, simultaneous gradient steps circle around the solution, or move
away from it. Both methods here step against a prediction of the next field instead of the current one.
"""

import jax

from ..core.recipes import recipe
from ..core.tree import Tree
from .base import Instance, Rated, Step
from .gradient import Descent


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
class ExtraGradient(Rated[None]):
    """The extragradient method, phi <- phi - rate F(phi - rate F(phi)); two evaluations of F a step.

    It converges for monotone F, as of convex-concave games, at rates below 1 / its Lipschitz constant.

    Args:
        learning_rate: The rate, a positive number.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> circling = imaml.game(lambda x, y, t, b: x * y + 0 * t[0], lambda x, y, t, b: -x * y)
        >>> solver = ExtraGradient(0.3, tolerance=1e-3)
        >>> bool(solver(circling, (jnp.array(1.0), jnp.array(1.0)), None).status.ok)
        True

    References:
        Korpelevich (1976), The extragradient method for finding saddle points and other problems.
    """

    def iteration(self, task: Instance) -> tuple[None, Step[None]]:
        """Prepare the iteration; see `Stepping.iteration`."""

        def step(slope: Tree, phi: Tree, memory: None) -> tuple[Tree, None]:
            ahead = _against(phi, slope, self.learning_rate)
            return _against(phi, task.residual(ahead), self.learning_rate), memory

        return None, step


@recipe("inner", fresh={"learning_rate": 0.1, "steps": 5})
class OptimisticDescent(Rated[Tree]):
    """Optimistic descent, phi <- phi - rate (2 F - F of the previous step); one evaluation of F per step.

    It converges for the same problems as `ExtraGradient`, at rates below half of that method's.

    Args:
        learning_rate: The rate, a positive number.
        steps: The number of steps; with a tolerance, the most (by default 10,000).
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> circling = imaml.game(lambda x, y, t, b: x * y + 0 * t[0], lambda x, y, t, b: -x * y)
        >>> solver = OptimisticDescent(0.3, tolerance=1e-3)
        >>> bool(solver(circling, (jnp.array(1.0), jnp.array(1.0)), None).status.ok)
        True

    References:
        Daskalakis et al. (2018), Training GANs with optimism.
    """

    def iteration(self, task: Instance) -> tuple[Tree, Step[Tree]]:
        """Prepare the iteration; see `Stepping.iteration`."""
        import optax  # late: it takes long

        # Optax's first step, which has no F before it, is one of gradient descent.
        transform = optax.optimistic_gradient_descent(self.learning_rate)
        return Descent(transform, self.steps, self.tolerance).iteration(task)


def _against(phi: Tree, slope: Tree, rate: float) -> Tree:
    """A step against a slope."""
    return jax.tree.map(lambda p, g: p - rate * g, phi, slope)
