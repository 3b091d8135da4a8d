"""Conjugate gradients, and the Neumann series to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError
from ..core.loops import repeat_while
from ..core.recipes import recipe
from ..core.solution import Ending, Solution, Stats, Status
from .base import (
    ACCEPTS,
    Matvec,
    check_limits,
    flat_anchor,
    flat_problem,
    refuse_structure,
    tolerance_of,
    true_residual,
)
from .preconditioners import Diagonal, Nystrom


def _iterate(
    product: Callable[[Array], Array],
    start: Array,
    residual: Array,
    most: int,
    threshold: Array | float,
    inverse: Callable[[Array], Array] = lambda r: r,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Conjugate gradients from `start` until |r| <= threshold; see `CG`. inverse: r -> M^-1 r.

    Returns x, |r|^2, the steps taken, whether negative curvature was met, whether a number was not finite,
    and the coefficients (2, most).
    """
    flag = jnp.asarray(False)
    coefficients = jnp.zeros((2, most), residual.dtype)
    first = inverse(residual)
    state = (
        start,
        residual,
        first,
        residual @ first,
        residual @ residual,
        jnp.asarray(0),
        flag,
        flag,
        coefficients,
    )

    def going(state: tuple) -> Array:
        _, _, _, _, square, step, negative, broken, _ = state
        return (step < most) & ~negative & ~broken & (jnp.sqrt(square) > threshold)

    def advance(state: tuple) -> tuple:
        x, r, p, weight, square, step, _, _, coefficients = state
        image = product(p)
        curvature = p @ image
        positive = curvature > 0
        length = jnp.where(positive, weight / jnp.where(positive, curvature, 1), 0)
        following = r - length * image
        turned = inverse(following)
        next_weight, next_square = following @ turned, following @ following
        good = positive & jnp.isfinite(length) & jnp.isfinite(next_weight) & jnp.isfinite(next_square)
        ratio = next_weight / weight
        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        coefficients = keep(coefficients.at[:, step].set(jnp.stack([length, ratio])), coefficients)
        return (
            keep(x + length * p, x),
            keep(following, r),
            keep(turned + ratio * p, p),
            keep(next_weight, weight),
            keep(next_square, square),
            step + good.astype(step.dtype),
            curvature <= 0,
            ~good & ~(curvature <= 0),
            coefficients,
        )

    x, _, _, _, square, step, negative, broken, coefficients = repeat_while(going, advance, state)
    return x, square, step, negative, broken, coefficients


@dataclass(frozen=True)
class Iterated:
    """What `conjugate_gradients` returns: the value, steps taken, |r| as it believes it, and what it saw."""

    value: Any
    steps: Array
    residual: Array
    negative: Array
    coefficients: tuple[Array, Array]


def conjugate_gradients(matvec: Matvec, b: Any, most: int, threshold: Array) -> Iterated:
    """x with |b - A x| <= threshold, an array, unlike the tolerance of `CG`; as far as `most` steps get."""
    product, flat, start, unravel = flat_problem(matvec, b, None)
    scale = jnp.linalg.norm(tree.ravel(b)[0])
    here = jnp.linalg.norm(flat)
    unit = jnp.where(scale > 0, here / jnp.where(scale > 0, scale, 1), 1)
    run = _iterate(product, start, flat, most, threshold * unit)
    x, square, steps, negative, _, coefficients = run
    return Iterated(unravel(x), steps, jnp.sqrt(square) / unit, negative, (coefficients[0], coefficients[1]))


@recipe("linear", fresh={"steps": 5})
@dataclass(frozen=True)
class CG:
    """Conjugate gradients, for A symmetric positive definite (Hestenes and Stiefel 1952).

    ```
    a_k = r.z / p.Ap      x += a_k p      r -= a_k A p      b_k = r'.z' / r.z      p = z' + b_k p
    ```

    with z = r, or z = M^-1 r where there is a preconditioner M: `Diagonal()`, or `Nystrom(rank)`, whose rank
    is so many products more. Stops when |r| <= tolerance |b|, after `steps`, or where a direction shows
    p.Ap <= 0: then the system is not positive definite, `stats.negative_curvature` is True, the status says
    so, and the value is the iterate *before* that direction (zero where it was the first). Never divides by
    such a curvature, never returns NaN. With both None it iterates to eps^(3/4) of the dtype. The
    coefficients a_k, b_k stay in `stats.lanczos`, but for those of a preconditioned system, which are not of
    A itself. With a tolerance the residual reported is computed anew, at the price of one product.

    Not for symmetric indefinite systems (MINRES), or general ones (GMRES, BiCGStab, Dense). That no direction
    showed negative curvature does not prove that there is none: docs/gotchas.md has how often it is unseen.

    >>> import jax.numpy as jnp
    >>> float(CG(steps=1)(lambda v: 2.0 * v, jnp.ones(3)).value[0])
    0.5
    """

    steps: int | None = None
    tolerance: float | None = None
    precondition: Diagonal | Nystrom | None = None
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["CG"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("CG", self.steps, self.tolerance)
        if self.precondition is not None and not hasattr(self.precondition, "inverse"):
            raise ConfigError(
                f"CG: precondition={self.precondition!r}; accepted are Diagonal(), Nystrom(rank), or None."
            )

    @property
    def uses_anchor(self) -> bool:
        """Whether it wants to know what was added to the curvature."""
        return self.precondition is not None

    def __call__(
        self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "spd", anchor: Any = None
    ) -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats. anchor: for M."""
        refuse_structure(self, structure)
        shaped = b
        product, b, start, unravel = flat_problem(matvec, b, x0)
        inverse = {}
        if self.precondition is not None:
            inverse["inverse"] = self.precondition.inverse(product, flat_anchor(self, anchor, shaped))
        most = self.steps or min(5 * b.size + 50, 10_000)
        threshold = tolerance_of(self.tolerance, self.steps, b.dtype) * jnp.linalg.norm(b)
        residual = b if x0 is None else b - product(start)
        run = _iterate(product, start, residual, most, threshold, **inverse)
        x, square, step, negative, broken, coefficients = run
        broken |= ~jnp.isfinite(square) | ~jnp.all(jnp.isfinite(b))
        x = jnp.where(jnp.all(jnp.isfinite(x)), x, 0)
        size = jnp.linalg.norm(b)
        if self.steps is not None and self.tolerance is None:
            relative = jnp.where(size > 0, jnp.sqrt(square) / jnp.where(size > 0, size, 1), 0)
            code = jnp.asarray(int(Ending.STEPS_DONE))
        else:
            relative = true_residual(product, b, x)
            asked = tolerance_of(self.tolerance, self.steps, b.dtype)
            believed = jnp.sqrt(square) <= threshold
            unreached = jnp.where(believed, int(Ending.STAGNATED), int(Ending.OUT_OF_STEPS))
            code = jnp.where(relative <= 2 * asked, int(Ending.CONVERGED), unreached)
        code = jnp.where(negative, int(Ending.NEGATIVE_CURVATURE), code)
        code = jnp.where(broken, int(Ending.NOT_FINITE), code)
        relative = jnp.where(broken, jnp.inf, relative).astype(b.dtype)
        seen = None if inverse else (coefficients[0], coefficients[1])
        return Solution(unravel(x), Stats(step, relative, negative, seen), Status(code))
