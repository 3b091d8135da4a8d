"""MINRES: minimal residuals for symmetric systems, definite or not."""

from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jax import Array

from ..core.recipes import recipe
from ..core.solution import Ending
from .base import Iteration, Iterative, Outcome, Product, System


class MINRESState(NamedTuple):
    """The state of MINRES after k steps; vectors have shape (n,), all else is a scalar.

    Attributes:
        x: The iterate.
        vector: Lanczos' v_(k+1).
        before: v_k.
        direction: w_k, by which x moved last.
        older: w_(k-1).
        beta: beta_(k+1), the norm of v_(k+1) before it was normalised.
        rotations: The last two Givens rotations, the last first, each a cosine and a sine.
        right: The last entry of the rotated right-hand side; its size is |r|.
        scale: The largest row sum of the tridiagonal matrix seen, a measure of |A|.
        steps: The steps taken.
        pivot: The last pivot of the tridiagonal matrix. Pivots stay positive as long as all Ritz values do.
        negative: Whether a pivot was not positive.
        ended: Whether the Krylov space is exhausted.
    """

    x: Array
    vector: Array
    before: Array
    direction: Array
    older: Array
    beta: Array
    rotations: tuple[tuple[Array, Array], tuple[Array, Array]]
    right: Array
    scale: Array
    steps: Array
    pivot: Array
    negative: Array
    ended: Array

    @property
    def size(self) -> Array:
        """|r|."""
        return jnp.abs(self.right)


def _step(product: Product, eps: float, s: MINRESState) -> MINRESState:
    """One step of Lanczos, and one Givens rotation of its tridiagonal matrix (Paige and Saunders 1975).

        alpha_k = v_k.A v_k           beta_(k+1) v_(k+1) = A v_k - alpha_k v_k - beta_k v_(k-1)

    The column (beta_k, alpha_k, beta_(k+1)) of T is turned by the last two rotations, and by a new one that
    makes its last entry zero. With R the triangle that T becomes, the columns of V R^-1 are the directions w.

    Departures from the textbook:
    - The pivots of T = L D L^T come along. The first that is not positive says that T, and so A, is not
      positive definite, after as many products as conjugate gradients take to see it.
    - An invariant space (beta_(k+1) = 0 but for rounding) ends the iteration with an exact answer in it.
      Where R's new entry is zero as well, A is singular there, and the step is not taken.
    """
    (cos, sin), (cos_old, sin_old) = s.rotations
    image = product(s.vector) - s.beta * s.before
    alpha = s.vector @ image
    image = image - alpha * s.vector
    pivot = alpha - s.beta * s.beta / jnp.where(s.pivot > 0, s.pivot, 1)
    beta = jnp.linalg.norm(image)
    # The new column, turned by the rotation before the last, then by the last.
    above = sin_old * s.beta
    middle = cos_old * s.beta
    upper = cos * middle + sin * alpha
    corner = -sin * middle + cos * alpha
    # The new rotation, (corner, beta) -> (radius, 0).
    radius = jnp.hypot(corner, beta)
    scale = jnp.maximum(s.scale, jnp.abs(alpha) + s.beta + beta)
    solid = radius > 10 * eps * scale
    safe = jnp.where(solid, radius, 1)
    rotation = cos, sin = corner / safe, beta / safe
    direction = (s.vector - upper * s.direction - above * s.older) / safe
    length = cos * s.right
    keep = lambda new, old: jnp.where(solid, new, old)  # noqa: E731
    exhausted = beta <= 10 * eps * scale
    return MINRESState(
        x=keep(s.x + length * direction, s.x),
        vector=jnp.where(exhausted, s.vector, image / jnp.where(exhausted, 1, beta)),
        before=s.vector,
        direction=keep(direction, s.direction),
        older=s.direction,
        beta=beta,
        rotations=(rotation, s.rotations[0]),
        right=keep(-sin * s.right, s.right),
        scale=scale,
        steps=s.steps + 1,
        pivot=pivot,
        negative=s.negative | (pivot <= 0),
        ended=exhausted | ~solid,
    )


@recipe("linear", fresh={"steps": 5})
class MINRES(Iterative[MINRESState]):
    """Minimal residuals, for A symmetric, also indefinite; one product a step.

    |b - A x| falls at every step. It solves the system even if A is indefinite. The meta-gradient may then be
    of little use, because phi is not a minimum. `stats.negative_curvature` reports a Ritz value that is not
    positive; it is detected if `CG` with as many steps would detect it.

    Args:
        steps: The most steps; with no tolerance, the number of steps.
        tolerance: The relative residual to reach. With both None, eps^(3/4) of the dtype.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> MINRES(steps=2)(lambda v: jnp.array([1.0, -2.0]) * v, jnp.ones(2)).value.round(3)
        Array([ 1. , -0.5], dtype=float32)

    References:
        Paige and Saunders (1975), Solution of sparse indefinite systems of linear equations.
    """

    accepts: ClassVar[tuple[str, ...]] = ("spd", "symmetric")
    structure: ClassVar[str] = "symmetric"

    def iteration(self, system: System) -> Iteration[MINRESState]:
        """Prepare the iteration; see `Iterative.iteration`.

        Args:
            system: The flat, scaled system.

        Returns:
            The first state and the step.
        """
        # v_1 = r / |r|. With the identity for the rotations before the first, and beta_1 = 0, the first step
        # needs no case of its own.
        first = system.residual()
        size = jnp.linalg.norm(first)
        nothing = jnp.zeros_like(first)
        one, zero, flag = jnp.ones((), first.dtype), jnp.zeros((), first.dtype), jnp.asarray(False)
        begin = MINRESState(
            x=system.start,
            vector=first / jnp.where(size > 0, size, 1),
            before=nothing,
            direction=nothing,
            older=nothing,
            beta=zero,
            rotations=((one, zero), (one, zero)),
            right=size,
            scale=zero,
            steps=jnp.asarray(0),
            pivot=one,
            negative=flag,
            ended=flag,
        )
        eps = float(jnp.finfo(first.dtype).eps)
        return begin, lambda state: _step(system.product, eps, state)

    def outcome(self, system: System, state: MINRESState) -> Outcome:
        """Say how the iteration ended; see `Iterative.outcome`.

        Args:
            system: The flat, scaled system.
            state: The last state.

        Returns:
            The Outcome; STAGNATED if it stopped early with a large residual.
        """
        early = state.steps < self.most(system.b.size)
        ending = jnp.where(early, int(Ending.STAGNATED), int(Ending.OUT_OF_STEPS))
        return Outcome(state.x, state.steps, ending, negative=state.negative)
