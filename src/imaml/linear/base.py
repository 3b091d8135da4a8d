"""What solvers of A x = b share that need A only through products; each says which structures it accepts.

Structures: "spd" (symmetric, declared positive definite), "symmetric" (perhaps indefinite), "general".
The residual reported is relative, |b - A x| / |b|, and 0 for b = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.solution import Ending, Solution, Stats, Status

Matvec = Callable[[Any], Any]
STRUCTURES = ("spd", "symmetric", "general")
ACCEPTS: dict[str, tuple[str, ...]] = {  # which solver is made for which
    "CG": ("spd",),
    "DampedCG": ("spd",),
    "Nystrom": ("spd",),
    "MINRES": ("spd", "symmetric"),
    "Neumann": ("spd", "general"),
    "GMRES": STRUCTURES,
    "BiCGStab": STRUCTURES,
    "Dense": STRUCTURES,
}


class LinearSolver(Protocol):
    """A recipe for solving A x = b; see `CG`."""

    accepts: ClassVar[tuple[str, ...]]

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "spd") -> Solution:
        """A Solution whose value is shaped like `b`.

        One whose attribute `uses_anchor` is true also takes `anchor=`, for A = H + diag(anchor): a tree like
        b of arrays that broadcast to its leaves.
        """
        ...


def check_limits(name: str, steps: int | None, tolerance: float | None) -> None:
    """Refuses step counts and tolerances that make no sense, naming the recipe (ConfigError)."""
    whole = isinstance(steps, int) and not isinstance(steps, bool)
    if steps is not None and (not whole or steps < 1):
        raise ConfigError(f"{name}: steps={steps!r}; accepted is a whole number of at least 1, or None.")
    if tolerance is not None:
        number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
        if not number or not 0 < tolerance < float("inf"):
            raise ConfigError(f"{name}: tolerance={tolerance!r}; accepted is a positive number, or None.")


def refuse_structure(solver: Any, structure: str) -> None:
    """Raises StructureError, with advice, where a solver is not made for a system's structure."""
    if structure not in STRUCTURES:
        raise StructureError(f"structure={structure!r}; accepted: {', '.join(STRUCTURES)}.")
    if structure not in solver.accepts:
        able = [name for name, accepted in ACCEPTS.items() if structure in accepted]
        raise StructureError(
            f"{type(solver).__name__} accepts systems of structure {' or '.join(solver.accepts)}; this one "
            f"is {structure!r}. Use {', '.join(able)} instead."
        )


def uses_anchor(solver: Any) -> bool:
    """Whether a solver wants to know what was added to the curvature."""
    return bool(getattr(solver, "uses_anchor", False))


def flat_anchor(solver: Any, anchor: Any, b: Any) -> Array:
    """The anchor as one flat vector like b's; ConfigError where a solver needs it and it was not given."""
    if anchor is None:
        raise ConfigError(
            f"{type(solver).__name__}: needs anchor=, the diagonal that was added to the curvature (of a "
            "proximal problem its strengths), a tree of numbers like b."
        )
    return tree.ravel(tree.spread(anchor, b))[0]


def tolerance_of(asked: float | None, steps: int | None, dtype: Any) -> float:
    """The tolerance in force: as asked; none but roundoff with fixed steps; eps^(3/4) with neither."""
    eps = float(jnp.finfo(dtype).eps)
    if asked is not None:
        return asked
    return eps if steps is not None else eps**0.75


def flat_problem(matvec: Matvec, b: Any, x0: Any) -> tuple[Callable[[Array], Array], Array, Array, Callable]:
    """The system over flat vectors: its product, right-hand side, first guess, and the way back to trees.

    The right-hand side is scaled by a power of two (so without rounding) to entries of at most 1, and the way
    back undoes it: squares of small or large vectors do not leave the range of the dtype.
    """
    flat, unravel = tree.ravel(b)
    if not jnp.issubdtype(flat.dtype, jnp.floating):
        raise ConfigError(f"a linear system needs floating-point numbers; b came as {flat.dtype}.")
    out = jax.eval_shape(matvec, b)
    if not tree.same(out, b):
        raise ConfigError(
            f"matvec(b) must be shaped like b, {tree.shapes(b)}; it returned {tree.shapes(out)}."
        )
    start = jnp.zeros_like(flat) if x0 is None else tree.ravel(x0)[0].astype(flat.dtype)
    if start.shape != flat.shape:
        raise ConfigError(f"x0 must be shaped like b, {tree.shapes(b)}; it came as {tree.shapes(x0)}.")
    power = jnp.frexp(jnp.max(jnp.abs(flat), initial=0))[1]
    power = jnp.where(jnp.all(jnp.isfinite(flat)), power, 0)
    scaled, start = _times_power(flat, -power), start if x0 is None else _times_power(start, -power)
    return (
        lambda x: tree.ravel(matvec(unravel(x)))[0],
        scaled,
        start,
        lambda x: unravel(_times_power(x, power)),
    )


def _times_power(x: Array, power: Array) -> Array:
    """x 2^power by two factors, either of which is in range; `jnp.ldexp` takes a power for every entry."""
    half = power // 2
    one = jnp.ones((), x.dtype)
    return x * jnp.ldexp(one, half) * jnp.ldexp(one, power - half)


def true_residual(product: Callable, b: Array, x: Array) -> Array:
    """|b - A x| / |b|, 0 for b = 0."""
    size = jnp.linalg.norm(b)
    return jnp.where(size > 0, jnp.linalg.norm(b - product(x)) / jnp.where(size > 0, size, 1), 0)


def finish(
    product: Callable,
    b: Array,
    x: Array,
    unravel: Callable,
    steps: Any,
    tolerance: float | None,
    failed: Any,
) -> Solution:
    """A Solution with the true residual; `failed` is the ending where a tolerance was not reached.

    Without a tolerance, an answer that is clearly worse than zero (whose residual is 1) is a breakdown.
    """
    finite = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(b))
    x = jnp.where(finite, x, 0)
    residual = true_residual(product, b, x)
    finite &= jnp.isfinite(residual)
    residual = jnp.where(finite, residual, jnp.inf)
    if tolerance is None:
        code = jnp.where(residual <= 1.01, int(Ending.STEPS_DONE), int(Ending.BREAKDOWN))
    else:
        code = jnp.where(residual <= tolerance, int(Ending.CONVERGED), failed)
    code = jnp.where(finite, code, int(Ending.NOT_FINITE))
    stats = Stats(jnp.asarray(steps), residual, jnp.asarray(False))
    return Solution(unravel(x), stats, Status(code))


def threshold_of(solver: Any, dtype: Any) -> float:
    """The relative tolerance that a recipe is held to, given the dtype it runs in."""
    return 2 * tolerance_of(solver.tolerance, solver.steps, dtype)
