"""Conjugate gradients, for symmetric positive definite systems."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.recipes import recipe
from ..core.solution import Ending
from ..core.tree import Tree
from .base import Iteration, Iterative, Matvec, Outcome, Product, System, flat_system, iterate, quotient
from .preconditioners import Diagonal, Nystrom


class CGState(NamedTuple):
    """The state of conjugate gradients; vectors have shape (n,).

    Attributes:
        x: The iterate.
        residual: r = b - A x, as the recursion carries it along.
        direction: p.
        weight: r.z, with z = M^-1 r.
        square: r.r.
        steps: The steps taken.
        negative: Whether a direction showed p.Ap <= 0.
        broken: Whether a number was not finite.
        coefficients: a_k and b_k, shape (2, most), zero where no step was taken.
    """

    x: Array
    residual: Array
    direction: Array
    weight: Array
    square: Array
    steps: Array
    negative: Array
    broken: Array
    coefficients: Array

    @property
    def size(self) -> Array:
        """|r|."""
        return jnp.sqrt(self.square)

    @property
    def ended(self) -> Array:
        """Whether the last step was not taken."""
        return self.negative | self.broken


def _iteration(system: System, most: int, inverse: Product) -> Iteration[CGState]:
    """The state before the first step, and the step; inverse: r -> M^-1 r."""
    residual, flag = system.residual(), jnp.asarray(False)
    turned = inverse(residual)
    begin = CGState(
        x=system.start,
        residual=residual,
        direction=turned,
        weight=residual @ turned,
        square=residual @ residual,
        steps=jnp.asarray(0),
        negative=flag,
        broken=flag,
        coefficients=jnp.zeros((2, most), residual.dtype),
    )
    return begin, lambda state: _step(system.product, inverse, state)


def _step(product: Product, inverse: Product, state: CGState) -> CGState:
    """One step (Hestenes and Stiefel 1952; with M: Saad 2003, Algorithm 9.1).

        a = r.z / p.Ap      x' = x + a p      r' = r - a A p      b = r'.z' / r.z      p' = z' + b p

    Departures from the textbook:
    - p.Ap <= 0 ends the iteration *before* the step, whose length would be of the wrong sign.
    - A step that is not finite is not taken either, so that x stays the last usable iterate.
    - |r|^2 is kept as well as r.z: with a preconditioner they differ, and the stopping test is on |r|.
    - The residual is never recomputed as b - A x. That would take a product; the driver does it once, at the
      end, where a tolerance was asked for.
    """
    image = product(state.direction)
    curvature = state.direction @ image
    positive = curvature > 0
    # Divided by 1 instead of a curvature <= 0: a NaN in a branch not taken would still spoil derivatives.
    length = jnp.where(positive, state.weight / jnp.where(positive, curvature, 1), 0)
    residual = state.residual - length * image
    turned = inverse(residual)
    weight, square = residual @ turned, residual @ residual
    good = positive & jnp.isfinite(length) & jnp.isfinite(weight) & jnp.isfinite(square)
    ratio = weight / state.weight
    keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
    # a and b are Lanczos' coefficients in other words; `ritz` makes eigenvalue bounds of them.
    coefficients = state.coefficients.at[:, state.steps].set(jnp.stack([length, ratio]))
    return CGState(
        x=keep(state.x + length * state.direction, state.x),
        residual=keep(residual, state.residual),
        direction=keep(turned + ratio * state.direction, state.direction),
        weight=keep(weight, state.weight),
        square=keep(square, state.square),
        steps=state.steps + good.astype(state.steps.dtype),
        negative=curvature <= 0,
        broken=~good & ~(curvature <= 0),
        coefficients=keep(coefficients, state.coefficients),
    )


def _unchanged(r: Array) -> Array:
    """M^-1 r without a preconditioner."""
    return r


def conjugate_gradients(matvec: Matvec, b: Tree, most: int, threshold: Array) -> CGState:
    """Solve A x = b to an absolute accuracy that may be traced, unlike the tolerance of `CG`.

    Args:
        matvec: The product x -> A x, A symmetric positive definite.
        b: The right-hand side, a tree of float arrays.
        most: The most steps.
        threshold: Stop where |b - A x| <= threshold; a scalar in the units of b.

    Returns:
        The state as far as `most` steps get, starting at zero; its `x` is a tree like b in the units of b.
    """
    system, unravel = flat_system(matvec, b)
    # The threshold in the units of the scaled system.
    scale = jnp.linalg.norm(tree.ravel(b)[0])
    here = jnp.linalg.norm(system.b)
    unit = jnp.where(scale > 0, here / jnp.where(scale > 0, scale, 1), 1)
    end = iterate(*_iteration(system, most, _unchanged), most, threshold * unit)
    return end._replace(x=unravel(system.unscaled(end.x)))


@recipe("linear", fresh={"steps": 5})
class CG(Iterative[CGState]):
    """Conjugate gradients, for A symmetric positive definite; one product a step.

    It stops when |r| <= tolerance |b|, after `steps`, or at a direction p with p.Ap <= 0. In the last case
    the system is not positive definite: `stats.negative_curvature` is True, the status is NEGATIVE_CURVATURE,
    and the value is the iterate *before* that direction (zero where it was the first). It never divides by a
    nonpositive curvature and never returns NaN.

    A may be indefinite even if no direction has negative curvature: docs/gotchas.md measures how often. For
    symmetric indefinite systems use `MINRES`, for general ones `GMRES`, `BiCGStab` or `Dense`.

    Args:
        steps: The most steps; with no tolerance, the number of steps.
        tolerance: The relative residual to reach. With a tolerance, the reported residual is the true one,
            which costs one more product. Without, it is that of the recursion. With both None it iterates to
            eps^(3/4) of the dtype.
        precondition: `Diagonal()`, `Nystrom(rank)`, whose sketch takes `rank` more products, or None.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> float(CG(steps=1)(lambda v: 2.0 * v, jnp.ones(3)).value[0])
        0.5

    References:
        Hestenes and Stiefel (1952), Methods of conjugate gradients for solving linear systems.
        Saad (2003), Iterative methods for sparse linear systems, Algorithm 9.1.
    """

    precondition: Diagonal | Nystrom | None = None
    accepts: ClassVar[tuple[str, ...]] = ("spd",)
    never_worse: ClassVar[bool] = True  # in the norm of A

    @property
    def uses_anchor(self) -> bool:  # type: ignore[override]
        """Whether it needs the anchor, from which its preconditioner is built."""
        return self.precondition is not None

    @property
    def factorises(self) -> bool:  # type: ignore[override]
        """Whether its preconditioner factorises."""
        return self.precondition is not None and self.precondition.factorises

    def iteration(self, system: System) -> Iteration[CGState]:
        """Prepare the iteration; see `Iterative.iteration`.

        Args:
            system: The flat, scaled system.

        Returns:
            The first state and the step.
        """
        inverse = _unchanged
        if self.precondition is not None and system.anchor is not None:
            inverse = self.precondition.inverse(system.product, system.anchor)
        return _iteration(system, self.most(system.b.size), inverse)

    def outcome(self, system: System, state: CGState) -> Outcome:
        """Say how the iteration ended; see `Iterative.outcome`.

        Args:
            system: The flat, scaled system.
            state: The last state.

        Returns:
            The Outcome. Its coefficients are None for a preconditioned system, as they are not of A itself.
        """
        relative = quotient(state.size, jnp.linalg.norm(system.b))
        # Where the recursion believes that it has converged, and the true residual says no, rounding has won.
        believed = state.size <= self.threshold(system.b)
        unreached = jnp.where(believed, int(Ending.STAGNATED), int(Ending.OUT_OF_STEPS))
        ending = int(Ending.STEPS_DONE) if self.fixed else unreached
        return Outcome(
            x=state.x,
            steps=state.steps,
            ending=jnp.where(state.negative, int(Ending.NEGATIVE_CURVATURE), ending),
            final=self.fixed | state.negative,
            finite=~state.broken & jnp.isfinite(state.square),
            residual=relative if self.fixed else None,
            negative=state.negative,
            lanczos=tuple(state.coefficients) if self.precondition is None else None,
        )
