"""Inner solvers given as functions, traced or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.solution import Solution
from ..core.tree import PyTree
from ..problems.base import Problem
from .base import Solver, check_stopping, looked_at

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]  # x -> (value, gradient)


@dataclass(frozen=True)
class External(Solver):
    """A solver that JAX can neither differentiate nor trace: a function of NumPy arrays, run on the host.

    Only a solution is asked of it: the implicit rule has the meta-gradient from that alone. Under vmap it is
    called task after task. An error that it raises is raised.

    Args:
        function: (objective, x0) -> x, with x0 and x flat vectors of shape (n,) and objective: x -> (value,
            gradient), as `scipy.optimize.minimize(objective, x0, jac=True).x` takes it.
        tolerance: The |F| up to which the answer counts as converged; above it ends as OUT_OF_STEPS.

    Raises:
        ConfigError: If `function` is no function, or `tolerance` no positive number.

    Example:
        >>> import imaml, jax.numpy as jnp, scipy.optimize
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> solver = External(lambda f, x: scipy.optimize.minimize(f, x, jac=True).x, tolerance=1e-3)
        >>> round(float(solver(problem, jnp.zeros(1), jnp.ones(1)).value[0]), 3)
        0.5
    """

    function: Callable[[Objective, np.ndarray], np.ndarray]
    tolerance: float
    steps: ClassVar[None] = None
    reversible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        check_stopping("External", None, self.tolerance)
        if not callable(self.function):
            raise ConfigError(f"External: {self.function!r} is no function (objective, x0) -> x.")

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""
        if not problem.has_objective:
            raise StructureError(
                f"External: hands an objective to its function, and a {problem.kind} problem has none."
            )
        flat, unravel = tree.ravel(phi0)

        def objective(x: Array, given: PyTree) -> tuple[Array, Array]:
            problem, theta, batch = given
            return jax.value_and_grad(lambda v: problem.objective(unravel(v), theta, batch))(x)

        compiled = jax.jit(objective)
        given = (problem, theta, batch)

        def host(x0: Array, given: PyTree) -> np.ndarray:
            def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
                value, slope = compiled(jnp.asarray(x, flat.dtype), given)
                return float(value), np.asarray(slope, np.float64)

            found = np.asarray(self.function(evaluate, np.asarray(x0, np.float64)), flat.dtype)
            if found.shape != flat.shape:
                raise ConfigError(
                    f"External: the function returned shape {found.shape}; accepted is that of x0, "
                    f"{flat.shape}."
                )
            return found

        kind = jax.ShapeDtypeStruct(flat.shape, flat.dtype)
        phi = unravel(jax.pure_callback(host, kind, flat, given, vmap_method="sequential"))
        return looked_at(problem, theta, batch, phi, self.tolerance)


@dataclass(frozen=True)
class Custom(Solver):
    """Your own algorithm: a function (problem, theta, batch, phi0) -> phi that JAX can trace.

    Nothing but a solution is asked of it: how it got there is neither stored nor differentiated. For
    functions of NumPy arrays see `External`.

    Args:
        function: It returns phi, shaped like phi0, the problem's adapted parameters. F is
            `problem.residual(phi, theta, batch)`.
        tolerance: The |F| up to which the answer counts as converged; above it ends as OUT_OF_STEPS.

    Raises:
        ConfigError: If `function` is no function, or `tolerance` no positive number.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> middle = Custom(lambda problem, theta, x, phi0: (x + theta) / 2, tolerance=1e-6)
        >>> middle(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)
    """

    function: Callable[[Problem, PyTree, PyTree, PyTree], PyTree]
    tolerance: float

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        check_stopping("Custom", None, self.tolerance)
        if not callable(self.function):
            raise ConfigError(
                f"Custom: {self.function!r} is no function (problem, theta, batch, phi0) -> phi."
            )

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""
        phi = self.function(problem, theta, batch, phi0)
        if not tree.same(phi, phi0):
            raise ConfigError(
                f"Custom: the function returned {tree.shapes(phi)}; accepted is what is shaped like phi0, "
                f"{tree.shapes(phi0)}."
            )
        return looked_at(problem, theta, batch, phi, self.tolerance)
