"""Inner solvers given as functions, traced or not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core import tree
from ..core.fields import Checked, PositiveFloat
from ..core.solution import Solution
from ..core.tree import Tree
from ..problems.base import Problem
from .base import Instance, Solver, to_tolerance

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]  # x -> (value, gradient)


@dataclass(frozen=True)
class _Given(Checked, Solver):
    """The base of solvers that are a function, of which nothing but a solution is asked."""

    function: Callable
    tolerance: PositiveFloat

    def _judged(self, task: Instance, phi: Tree) -> Solution:
        """The Solution of an answer of which nothing else is known."""
        return to_tolerance(phi, jnp.asarray(1), task.size(phi), self.tolerance)


@dataclass(frozen=True)
class External(_Given):
    """A solver that JAX can neither differentiate nor trace: a function of NumPy arrays, run on the host.

    The implicit rule needs only its solution to compute the meta-gradient. Under vmap it is called for one
    task after another. Its errors are passed on.

    Args:
        function: (objective, x0) -> x, with x0 and x flat vectors of shape (n,) and objective: x -> (value,
            gradient), as `scipy.optimize.minimize(objective, x0, jac=True).x` takes it.
        tolerance: The |F| up to which the answer counts as converged; above it ends as OUT_OF_STEPS.

    Raises:
        ConfigError: If `function` is not a function, or `tolerance` no positive number.

    Example:
        >>> import imaml, jax.numpy as jnp, scipy.optimize
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> solver = External(lambda f, x: scipy.optimize.minimize(f, x, jac=True).x, tolerance=1e-3)
        >>> round(float(solver(problem, jnp.zeros(1), jnp.ones(1)).value[0]), 3)
        0.5
    """

    function: Callable[[Objective, np.ndarray], np.ndarray]
    steps: ClassVar[None] = None
    reversible: ClassVar[bool] = False
    minimises: ClassVar[bool] = True

    def _solve(self, task: Instance) -> Solution:
        """Call the function on the host; the task goes there as arrays, as it may be traced."""
        flat, unravel = tree.ravel(task.start)

        @jax.jit
        def objective(x: Array, given: tuple[Problem, Tree, Tree]) -> tuple[Array, Array]:
            problem, theta, batch = given
            return jax.value_and_grad(lambda v: problem.objective(unravel(v), theta, batch))(x)

        def host(x0: Array, given: tuple[Problem, Tree, Tree]) -> np.ndarray:
            def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
                value, slope = objective(jnp.asarray(x, flat.dtype), given)
                return float(value), np.asarray(slope, np.float64)

            found = np.asarray(self.function(evaluate, np.asarray(x0, np.float64)), flat.dtype)
            tree.require_like("External: function", found, x0, "x0")
            return found

        given, kind = (task.problem, task.theta, task.batch), jax.ShapeDtypeStruct(flat.shape, flat.dtype)
        phi = unravel(jax.pure_callback(host, kind, flat, given, vmap_method="sequential"))
        return self._judged(task, phi)


@dataclass(frozen=True)
class Custom(_Given):
    """Your own algorithm: a function (problem, theta, batch, phi0) -> phi that JAX can trace.

    Only its solution is needed: the path to the solution is neither stored nor differentiated. For functions
    of NumPy arrays see `External`.

    Args:
        function: It returns phi, shaped like phi0, the problem's adapted parameters. F is
            `problem.residual(phi, theta, batch)`.
        tolerance: The |F| up to which the answer counts as converged; above it ends as OUT_OF_STEPS.

    Raises:
        ConfigError: If `function` is not a function, or `tolerance` no positive number.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> middle = Custom(lambda problem, theta, x, phi0: (x + theta) / 2, tolerance=1e-6)
        >>> middle(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)
    """

    function: Callable[[Problem, Tree, Tree, Tree], Tree]

    def _solve(self, task: Instance) -> Solution:
        """Call the function."""
        phi = self.function(task.problem, task.theta, task.batch, task.start)
        tree.require_like("Custom: function", phi, task.start, "phi0")
        return self._judged(task, phi)
