"""Newton's method: with conjugate gradients and a line search (Hessian-free), and plain for any F = 0."""

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.fields import PositiveFloat, PositiveInt, Such
from ..core.loops import halved_while
from ..core.recipes import Role, recipe
from ..core.tree import Tree
from ..linear.base import LinearSolver
from ..linear.cg import CG
from ..linear.dense import Dense
from ..problems.linearised import Known, refuse_system, solve_linear
from .base import Instance, Step, Stepping

SUFFICIENT = 1e-4  # Armijo: the share of the decrease that the slope promises (Nocedal and Wright, eq. 3.4)


@recipe("inner", fresh={"steps": 5})
class NewtonCG(Stepping[None]):
    """Truncated Newton, phi <- phi + a d with H d = -F by conjugate gradients (Hessian-free).

    If CG meets negative curvature, the direction is the iterate before it, or -F if there is none. It is
    always a descent direction. The step length a starts at 1 and is halved, at most `halvings` times, until
    the objective falls by at least 1e-4 of the linear prediction; otherwise phi stays unchanged.

    It is the inner solver of "iMAML, Hessian-free". It needs a problem that minimises something, and has no
    reverse mode, so it is not for `unrolled()`.

    Args:
        steps: The number of steps; with a tolerance, the most (by default 100).
        linear: The conjugate gradients that find a direction.
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.
        halvings: The most halvings of a step.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> NewtonCG(steps=1)(problem, jnp.zeros(1), jnp.ones(1)).value
        Array([0.5], dtype=float32)

    References:
        Rajeswaran et al. (2019), Meta-learning with implicit gradients, section 4 and Appendix C.
        Nocedal and Wright (2006), Numerical optimization, Algorithm 7.1.
    """

    steps: PositiveInt | None = None
    linear: CG = field(default_factory=lambda: CG(steps=5))
    tolerance: PositiveFloat | None = None
    halvings: PositiveInt = 20
    reversible: ClassVar[bool] = False
    minimises: ClassVar[bool] = True
    most: ClassVar[int] = 100

    def iteration(self, task: Instance) -> tuple[None, Step[None]]:
        """Prepare the iteration; see `Stepping.iteration`."""

        def step(slope: Tree, phi: Tree, memory: None) -> tuple[Tree, None]:
            # A direction of descent (Nocedal and Wright 2006, Algorithm 7.1): -F where CG took no step.
            _, product = jax.linearize(task.residual, phi)
            downhill = jax.tree.map(jnp.negative, slope)
            found = self.linear(product, downhill, structure="spd")
            nothing = found.stats.steps == 0
            direction = jax.tree.map(lambda d, g: jnp.where(nothing, g, d), found.value, downhill)
            return _searched(task.objective, phi, slope, direction, self.halvings), memory

        return None, step


def _searched(objective: Callable[[Tree], Array], phi: Tree, slope: Tree, direction: Tree, most: int) -> Tree:
    """Phi after a step along a direction of descent, by backtracking (Armijo).

    The length a is halved from 1 until objective(phi + a d) <= objective(phi) + 1e-4 a F.d + noise. Two
    departures from the textbook: near a solution differences of the objective are rounding, hence the noise;
    and where no length will do, phi stays.
    """
    before = objective(phi)
    promised = tree.dot(slope, direction)
    # In the dtype of phi: the objective's may be wider, as that of data in float64.
    moved = lambda length: jax.tree.map(lambda p, d: p + length.astype(p.dtype) * d, phi, direction)  # noqa: E731
    noise = jnp.finfo(before.dtype).eps * jnp.abs(before)

    def too_long(length: Array) -> Array:
        bound = before + SUFFICIENT * length * promised + noise
        # Not "above the bound", so that a NaN is too long as well.
        return ~(objective(moved(length)) <= bound)

    length = halved_while(too_long, most, before)
    return moved(jnp.where(length > 0.5**most, length, 0))


@recipe("inner", fresh={"steps": 5})
class Newton(Stepping[None]):
    """Newton's method on F = 0, phi <- phi - A^-1 F with A = dF/dphi, for a problem of any structure.

    It has no line search. It converges only if it starts close to a solution, quadratically if `linear` is
    exact. Otherwise it ends as DIVERGED or OUT_OF_STEPS. If the problem minimises something, `NewtonCG` is
    safer. With a fixed number of steps it can be differentiated in both modes, so it suits `unrolled()` and,
    with one step, `one_step()`.

    Args:
        steps: The number of steps; with a tolerance, the most (by default 100).
        linear: The solver of A d = F; it must accept the problem's structure.
        tolerance: Stop where |F| is at most this, in the units of the loss's gradient; or None for all steps.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.fixed_point(lambda phi, theta, batch: jnp.cos(phi) + theta)
        >>> round(float(Newton(tolerance=1e-5)(problem, jnp.asarray(0.0), None).value), 4)
        0.7391
    """

    steps: PositiveInt | None = None
    linear: Annotated[LinearSolver, Role("linear"), Such("a linear solver such as Dense()")] = field(
        default_factory=Dense
    )
    tolerance: PositiveFloat | None = None
    most: ClassVar[int] = 100
    linearises: ClassVar[bool] = True

    @property
    def single_solve(self) -> LinearSolver | None:
        """The linear solver, if the iteration is one step of it; else None."""
        return self.linear if self.steps == 1 else None

    def iteration(self, task: Instance) -> tuple[None, Step[None]]:
        """Prepare the iteration; see `Stepping.iteration`."""
        problem = task.problem
        refuse_system(self.linear, problem)

        def step(slope: Tree, phi: Tree, memory: None) -> tuple[Tree, None]:
            _, product = jax.linearize(task.residual, phi)
            known = Known.of(problem, phi, task.theta, task.batch)
            change = solve_linear(self.linear, product, slope, problem.structure, known)
            return tree.minus(phi, change), memory

        return None, step
