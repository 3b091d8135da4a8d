"""Solvers of A x = b that need A only through products; each a recipe that says which structures it accepts.

Structures: "spd" (symmetric, declared positive definite), "symmetric" (perhaps indefinite), "general".
The residual reported is relative, |b - A x| / |b|, and 0 for b = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import tree
from .errors import ConfigError, StructureError
from .loops import repeat_while
from .solution import Ending, Solution, Stats, Status

Matvec = Callable[[Any], Any]
STRUCTURES = ("spd", "symmetric", "general")
ACCEPTS: dict[str, tuple[str, ...]] = {  # which solver is made for which
    "CG": ("spd",),
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
        """A Solution whose value is shaped like `b`."""
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
    scaled, start = jnp.ldexp(flat, -power), jnp.ldexp(start, -power)
    return lambda x: tree.ravel(matvec(unravel(x)))[0], scaled, start, lambda x: unravel(jnp.ldexp(x, power))


def _true_residual(product: Callable, b: Array, x: Array) -> Array:
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
    residual = _true_residual(product, b, x)
    finite &= jnp.isfinite(residual)
    residual = jnp.where(finite, residual, jnp.inf)
    if tolerance is None:
        code = jnp.where(residual <= 1.01, int(Ending.STEPS_DONE), int(Ending.BREAKDOWN))
    else:
        code = jnp.where(residual <= tolerance, int(Ending.CONVERGED), failed)
    code = jnp.where(finite, code, int(Ending.NOT_FINITE))
    stats = Stats(jnp.asarray(steps), residual, jnp.asarray(False))
    return Solution(unravel(x), stats, Status(code))


def _iterate(
    product: Callable[[Array], Array], start: Array, residual: Array, most: int, threshold: Array | float
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Conjugate gradients from `start` until |r| <= threshold; see `CG`.

    Returns x, |r|^2, the steps taken, whether negative curvature was met, whether a number was not finite,
    and the coefficients (2, most).
    """
    flag = jnp.asarray(False)
    coefficients = jnp.zeros((2, most), residual.dtype)
    state = (start, residual, residual, residual @ residual, jnp.asarray(0), flag, flag, coefficients)

    def going(state: tuple) -> Array:
        _, _, _, square, step, negative, broken, _ = state
        return (step < most) & ~negative & ~broken & (jnp.sqrt(square) > threshold)

    def advance(state: tuple) -> tuple:
        x, r, p, square, step, _, _, coefficients = state
        image = product(p)
        curvature = p @ image
        positive = curvature > 0
        length = jnp.where(positive, square / jnp.where(positive, curvature, 1), 0)
        following = r - length * image
        next_square = following @ following
        good = positive & jnp.isfinite(length) & jnp.isfinite(next_square)
        ratio = next_square / square
        keep = lambda new, old: jnp.where(good, new, old)  # noqa: E731
        coefficients = keep(coefficients.at[:, step].set(jnp.stack([length, ratio])), coefficients)
        return (
            keep(x + length * p, x),
            keep(following, r),
            keep(following + ratio * p, p),
            keep(next_square, square),
            step + good.astype(step.dtype),
            curvature <= 0,
            ~good & ~(curvature <= 0),
            coefficients,
        )

    x, _, _, square, step, negative, broken, coefficients = repeat_while(going, advance, state)
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


@dataclass(frozen=True)
class CG:
    """Conjugate gradients, for A symmetric positive definite (Hestenes and Stiefel 1952).

    ```
    a_k = r.r / p.Ap      x += a_k p      r -= a_k A p      b_k = r'.r' / r.r      p = r' + b_k p
    ```

    Stops when |r| <= tolerance |b|, after `steps`, or where a direction shows p.Ap <= 0: then the system is
    not positive definite, `stats.negative_curvature` is True, the status says so, and the value is the
    iterate *before* that direction (zero where it was the first). Never divides by such a curvature, never
    returns NaN. With both None it iterates to eps^(3/4) of the dtype. The coefficients a_k, b_k stay in
    `stats.lanczos`. With a tolerance the residual reported is computed anew, at the price of one product.

    Not for symmetric indefinite systems (MINRES), or general ones (GMRES, BiCGStab, Dense). That no direction
    showed negative curvature does not prove that there is none: docs/gotchas.md has how often it is unseen.

    >>> import jax.numpy as jnp
    >>> float(CG(steps=1)(lambda v: 2.0 * v, jnp.ones(3)).value[0])
    0.5
    """

    steps: int | None = None
    tolerance: float | None = None
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["CG"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("CG", self.steps, self.tolerance)

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "spd") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        product, b, start, unravel = flat_problem(matvec, b, x0)
        most = self.steps or min(5 * b.size + 50, 10_000)
        threshold = tolerance_of(self.tolerance, self.steps, b.dtype) * jnp.linalg.norm(b)
        residual = b if x0 is None else b - product(start)
        run = _iterate(product, start, residual, most, threshold)
        x, square, step, negative, broken, coefficients = run
        broken |= ~jnp.isfinite(square) | ~jnp.all(jnp.isfinite(b))
        x = jnp.where(jnp.all(jnp.isfinite(x)), x, 0)
        size = jnp.linalg.norm(b)
        if self.steps is not None and self.tolerance is None:
            relative = jnp.where(size > 0, jnp.sqrt(square) / jnp.where(size > 0, size, 1), 0)
            code = jnp.asarray(int(Ending.STEPS_DONE))
        else:
            relative = _true_residual(product, b, x)
            asked = tolerance_of(self.tolerance, self.steps, b.dtype)
            believed = jnp.sqrt(square) <= threshold
            unreached = jnp.where(believed, int(Ending.STAGNATED), int(Ending.OUT_OF_STEPS))
            code = jnp.where(relative <= 2 * asked, int(Ending.CONVERGED), unreached)
        code = jnp.where(negative, int(Ending.NEGATIVE_CURVATURE), code)
        code = jnp.where(broken, int(Ending.NOT_FINITE), code)
        relative = jnp.where(broken, jnp.inf, relative).astype(b.dtype)
        stats = Stats(step, relative, negative, (coefficients[0], coefficients[1]))
        return Solution(unravel(x), stats, Status(code))


@dataclass(frozen=True)
class Neumann:
    """The Neumann series, x += scale (b - A x): plain fixed-point iteration.

    Converges where |I - scale A| < 1 (spectral radius). With `scale=None` and structure "spd", the scale is
    1 / (1.05 * the largest eigenvalue estimated by 20 power iterations), which converges for any positive
    definite A; for structure "general" it is 1, the series of a contraction (A = I - J). Needs on the order
    of the condition number of products where CG needs its square root: it is here to compare with.
    Source: Lorraine, Vicol, Duvenaud 2020, Algorithm 3.
    """

    steps: int | None = None
    tolerance: float | None = None
    scale: float | None = None
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["Neumann"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("Neumann", self.steps, self.tolerance)
        if self.scale is not None and not 0 < self.scale < float("inf"):
            raise ConfigError(
                f"Neumann: scale={self.scale!r}; accepted is a positive number, or None to estimate."
            )

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "spd") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        product, b, start, unravel = flat_problem(matvec, b, x0)
        most = self.steps or 100_000
        threshold = tolerance_of(self.tolerance, self.steps, b.dtype) * jnp.linalg.norm(b)
        if self.scale is not None:
            scale = jnp.asarray(self.scale, b.dtype)
        elif structure == "general":
            scale = jnp.ones((), b.dtype)
        else:
            scale = 1 / (1.05 * _largest(product, b))
        first = b - product(start)

        def going(state: tuple) -> Array:
            _, r, step = state
            size = jnp.linalg.norm(r)
            return (step < most) & (size > threshold) & jnp.isfinite(size)

        def advance(state: tuple) -> tuple:
            x, r, step = state
            x = x + scale * r
            return x, b - product(x), step + 1

        x, _, step = repeat_while(going, advance, (start, first, jnp.asarray(0)))
        asked = None if self.steps is not None and self.tolerance is None else threshold_of(self, b.dtype)
        return finish(product, b, x, unravel, step, asked, int(Ending.OUT_OF_STEPS))


def threshold_of(solver: Any, dtype: Any) -> float:
    """The relative tolerance that a recipe is held to, given the dtype it runs in."""
    return 2 * tolerance_of(solver.tolerance, solver.steps, dtype)


def _largest(product: Callable[[Array], Array], b: Array) -> Array:
    """An estimate of the largest eigenvalue of A, from 20 power iterations on a fixed start."""
    start = jax.random.normal(jax.random.key(0), b.shape, b.dtype)

    def iterate(_: Any, v: Array) -> Array:
        image = product(v)
        return image / jnp.maximum(jnp.linalg.norm(image), jnp.finfo(b.dtype).tiny)

    v = lax.fori_loop(0, 20, iterate, start / jnp.linalg.norm(start))
    return jnp.maximum(jnp.linalg.norm(product(v)), jnp.finfo(b.dtype).tiny)


@dataclass(frozen=True)
class GMRES:
    """Generalised minimal residuals, for any invertible A (Saad and Schultz 1986), through Lineax.

    `restart` vectors are kept; `steps` counts products, in whole restarts.
    """

    steps: int | None = None
    tolerance: float | None = None
    restart: int = 50
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["GMRES"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("GMRES", self.steps, self.tolerance)
        if not isinstance(self.restart, int) or self.restart < 1:
            raise ConfigError(f"GMRES: restart={self.restart!r}; accepted is a whole number of at least 1.")

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "general") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        import lineax

        refuse_structure(self, structure)
        product, b, start, unravel = flat_problem(matvec, b, x0)
        most = self.steps or min(5 * b.size + 50, 10_000)
        # Lineax compares entry by entry, |r_i| <= atol + rtol |b_i|, which zeros in b make unreachable with
        # atol = 0. So it solves for the correction to x0 in a system scaled to |b| = 1, with
        # atol = tolerance / sqrt(n): what it accepts has |r| of the order of the tolerance.
        right = b if x0 is None else b - product(start)
        size = jnp.linalg.norm(right)
        some = (size > 0) & jnp.isfinite(size)
        unit = jnp.where(some, right / jnp.where(some, size, 1), jnp.zeros_like(b).at[0].set(1))
        operator = lineax.FunctionLinearOperator(product, jax.ShapeDtypeStruct(b.shape, b.dtype))
        tolerance = tolerance_of(self.tolerance, self.steps, b.dtype) / 2
        restart = min(self.restart, b.size, most)
        absolute = tolerance / b.size**0.5
        solver = lineax.GMRES(tolerance, absolute, max_steps=most, restart=restart, stagnation_iters=most)
        answer = lineax.linear_solve(operator, unit, solver, throw=False)
        x = jnp.where(some, start + cast(Array, answer.value) * size, start)
        steps = jnp.where(some, answer.stats["num_steps"], 0)
        asked = None if self.steps is not None and self.tolerance is None else threshold_of(self, b.dtype)
        failed = jnp.where(steps < most, int(Ending.BREAKDOWN), int(Ending.OUT_OF_STEPS))
        return finish(product, b, x, unravel, steps, asked, failed)


@dataclass(frozen=True)
class BiCGStab:
    """Stabilised biconjugate gradients, for any invertible A (van der Vorst 1992); two products a step.

    ```
    rho' = s.r           p = r + (rho'/rho) (alpha/omega) (p - omega v)      v = A p      alpha = rho' / s.v
    h = r - alpha v      t = A h      omega = t.h / t.t      x += alpha p + omega h      r = h - omega t
    ```

    with the shadow s, the first residual. Where a step is not finite (a breakdown), the iterate before it
    stays. Of our own: Lineax 0.1.1 divides 0 by 0 for A = I, and in float32 takes a negative alpha or omega,
    which indefinite systems have, for a breakdown.
    """

    steps: int | None = None
    tolerance: float | None = None
    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["BiCGStab"]

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        check_limits("BiCGStab", self.steps, self.tolerance)

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "general") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        refuse_structure(self, structure)
        product, b, start, unravel = flat_problem(matvec, b, x0)
        most = self.steps or min(5 * b.size + 50, 10_000)
        threshold = tolerance_of(self.tolerance, self.steps, b.dtype) * jnp.linalg.norm(b)
        shadow = b if x0 is None else b - product(start)
        one, nothing = jnp.ones((), b.dtype), jnp.zeros_like(b)
        state = (start, shadow, nothing, nothing, one, one, one, jnp.asarray(0), jnp.asarray(False))

        def going(state: tuple) -> Array:
            _, r, _, _, _, _, _, step, broken = state
            return (step < most) & ~broken & (jnp.linalg.norm(r) > threshold)

        def advance(state: tuple) -> tuple:
            x, r, p, v, rho, alpha, omega, step, _ = state
            following = shadow @ r
            p = r + (following / rho) * (alpha / omega) * (p - omega * v)
            v = product(p)
            alpha = following / (shadow @ v)
            half = r - alpha * v
            t = product(half)
            square = t @ t
            omega = jnp.where(square > 0, (t @ half) / jnp.where(square > 0, square, 1), 0)
            new_x, new_r = x + alpha * p + omega * half, half - omega * t
            good = jnp.all(jnp.isfinite(new_x)) & jnp.all(jnp.isfinite(new_r))
            x, r = jnp.where(good, new_x, x), jnp.where(good, new_r, r)
            return x, r, p, v, following, alpha, omega, step + good.astype(step.dtype), ~good

        x, *_, step, broken = repeat_while(going, advance, state)
        asked = None if self.steps is not None and self.tolerance is None else threshold_of(self, b.dtype)
        failed = jnp.where(broken, int(Ending.BREAKDOWN), int(Ending.OUT_OF_STEPS))
        return finish(product, b, x, unravel, step, asked, failed)


@dataclass(frozen=True)
class Dense:
    """The exact solve by the whole matrix, n products and n^3 work: the oracle for tests and small problems.

    The matrix is made by `vmap` over the identity and factored through Lineax (LU). For symmetric structures
    its smallest eigenvalue is looked at, so `stats.negative_curvature` is the truth, and the value is the
    exact solution all the same. Refused above 20,000 unknowns (3 GB in float64).
    """

    accepts: ClassVar[tuple[str, ...]] = ACCEPTS["Dense"]

    def __call__(self, matvec: Matvec, b: Any, x0: Any = None, *, structure: str = "general") -> Solution:
        """The Solution of A x = b from products `matvec(x)`; `b` any tree of floats."""
        import lineax

        refuse_structure(self, structure)
        product, b, _, unravel = flat_problem(matvec, b, x0)
        if b.size > 20_000:
            raise ConfigError(f"Dense: {b.size} unknowns; accepted are up to 20,000. Use CG or GMRES.")
        matrix = jax.vmap(product, out_axes=1)(jnp.eye(b.size, dtype=b.dtype))
        answer = lineax.linear_solve(lineax.MatrixLinearOperator(matrix), b, lineax.LU(), throw=False)
        solution = finish(product, b, cast(Array, answer.value), unravel, b.size, 1e-3, int(Ending.STAGNATED))
        singular = ~jnp.isfinite(solution.stats.residual) & tree.finite((matrix, b))
        status = Status(jnp.where(singular, int(Ending.STAGNATED), solution.status.code))
        if structure == "general":
            return Solution(solution.value, solution.stats, status)
        smallest = jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[0]
        stats = Stats(solution.stats.steps, solution.stats.residual, smallest <= 0)
        return Solution(solution.value, stats, status)
