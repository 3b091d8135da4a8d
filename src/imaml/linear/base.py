"""The driver that all linear solvers share: scaling, stopping, status and statistics of A x = b.

A solver sees A only through products, and says which structures of A it accepts: "spd" (symmetric, declared
positive definite), "symmetric" (perhaps indefinite) or "general". The driver flattens and scales the system,
runs the solver on it, and judges the result by the relative residual, |b - A x| / |b|, which is 0 for b = 0.

A new solver is one file: a subclass of `Iterative` with a state and a step, or of `Solver` with a whole
solve. docs/extend/linear_solver.md shows how.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.fields import Checked, PositiveFloat, PositiveInt
from ..core.loops import repeat_while
from ..core.recipes import kinds_of, register_all
from ..core.solution import Ending, Solution, Stats, Status
from ..core.tree import Tree

Matvec = Callable[[Tree], Tree]
Product = Callable[[Array], Array]  # a matvec over flat vectors
STRUCTURES = ("spd", "symmetric", "general")


class LinearSolver(Protocol):
    """Anything that solves A x = b from products with A; see `Solver` for the base class of ours.

    A solver whose attribute `uses_anchor` is true also takes `anchor=`, for A = H + diag(anchor), and one
    whose attribute `uses_inverse` is true takes `inverse=`. One that is registered also has the attribute
    `factorises`.
    """

    accepts: ClassVar[tuple[str, ...]]

    def __call__(
        self, matvec: Matvec, b: Tree, x0: Tree | None = None, *, structure: str = "spd"
    ) -> Solution:
        """Solve A x = b.

        Args:
            matvec: The product x -> A x, from trees shaped like `b` to trees shaped like `b`.
            b: The right-hand side, a tree of float arrays.
            x0: A first guess, shaped like `b`; zero by default.
            structure: What is known of A: "spd", "symmetric" or "general".

        Returns:
            A Solution whose value is shaped like `b`.
        """
        ...


class System(NamedTuple):
    """A x = b over flat vectors of shape (n,), scaled so that the entries of b are at most 1.

    Attributes:
        product: x -> A x.
        b: The right-hand side.
        start: The first guess.
        guessed: Whether a first guess was given; otherwise `start` is zero.
        structure: "spd", "symmetric" or "general".
        power: b and x are 2^-power times those asked for.
        anchor: The diagonal that was added to the curvature, for solvers that use it; else None.
        inverse: b -> A^-1 b, for solvers that use it; else None.
    """

    product: Product
    b: Array
    start: Array
    power: Array
    guessed: bool = False
    structure: str = "spd"
    anchor: Array | None = None
    inverse: Product | None = None

    def residual(self) -> Array:
        """Compute the residual at the first guess.

        Returns:
            b - A x, shape (n,); without a guess it is b, and takes no product.
        """
        return self.b - self.product(self.start) if self.guessed else self.b

    def unscaled(self, x: Array) -> Array:
        """Undo the scaling.

        Args:
            x: A vector of this system, shape (n,).

        Returns:
            The vector of the system that was asked for.
        """
        return _times_power(x, self.power)


class Outcome(NamedTuple):
    """What a solver hands to the driver, which makes a Solution of it.

    Attributes:
        x: The solution of the scaled system, shape (n,).
        steps: The number of steps taken.
        ending: The `Ending` code where the residual is above the tolerance.
        final: Whether `ending` holds whatever the residual is.
        finite: Whether every number that the solver met was finite.
        nonfinite: The `Ending` code of an answer that is not finite.
        residual: The relative residual where the solver knows it; None lets the driver take a product for it.
        negative: Whether a direction of curvature <= 0 was seen.
        lanczos: See `Stats.lanczos`.
        damping: See `Stats.damping`.
    """

    x: Array
    steps: Array | int
    ending: Array | int = int(Ending.STEPS_DONE)
    final: Array | bool = False
    finite: Array | bool = True
    nonfinite: Array | int = int(Ending.NOT_FINITE)
    residual: Array | None = None
    negative: Array | bool = False
    lanczos: tuple[Array, Array] | None = None
    damping: Array | None = None


class Solver:
    """The base of this package's linear solvers; a subclass defines `run`.

    Attributes:
        accepts: The structures that it is made for.
        structure: The structure that a call assumes by default.
        factorises: Whether it may factorise a dense matrix, and so wants threads left for LAPACK.
        uses_anchor: Whether it needs `anchor=`.
        uses_inverse: Whether it needs `inverse=`.
        takes_guess: Whether it accepts `x0`.
        never_worse: Whether no answer is worse than its first guess in some norm, whatever its residual.
            That of another solver whose residual is above 1, which zero has, is a BREAKDOWN.
    """

    accepts: ClassVar[tuple[str, ...]]
    structure: ClassVar[str] = "spd"
    factorises: ClassVar[bool] = False
    uses_anchor: ClassVar[bool] = False
    uses_inverse: ClassVar[bool] = False
    takes_guess: ClassVar[bool] = True
    never_worse: ClassVar[bool] = False

    def __call__(
        self,
        matvec: Matvec,
        b: Tree,
        x0: Tree | None = None,
        *,
        structure: str | None = None,
        anchor: Tree | None = None,
        inverse: Matvec | None = None,
    ) -> Solution:
        """Solve A x = b.

        Args:
            matvec: The product x -> A x, from trees shaped like `b` to trees shaped like `b`.
            b: The right-hand side, a tree of float arrays.
            x0: A first guess, shaped like `b`; zero by default.
            structure: What is known of A: "spd", "symmetric" or "general". By default the class attribute
                `structure`.
            anchor: The diagonal that was added to the curvature, a tree that broadcasts to `b`. Only solvers
                with `uses_anchor` read it.
            inverse: The function b -> A^-1 b over trees. Only solvers with `uses_inverse` call it.

        Returns:
            A Solution whose value is shaped like `b`, and whose residual is |b - A x| / |b|.

        Raises:
            StructureError: If the solver is not made for systems of that structure.
            ConfigError: If `b`, `x0` or the products do not fit, or `anchor` or `inverse` is missing.
        """
        structure = self.structure if structure is None else structure
        refuse_structure(self, structure)
        name = type(self).__name__
        if x0 is not None and not self.takes_guess:
            raise ConfigError(f"{name}: x0: expected None, as it starts at zero. Hint: omit x0.")
        if self.uses_anchor and anchor is None:
            raise ConfigError(
                f"{name}: anchor: expected the diagonal that was added to the curvature, a tree like b, got "
                "None. Hint: for a proximal problem it is the strengths."
            )
        if self.uses_inverse and inverse is None:
            raise ConfigError(
                f"{name}: inverse: expected a function b -> A^-1 b, got None. Hint: use CG() where none is "
                "known."
            )
        # Methods work on flat vectors; b is scaled so that squares of entries stay in range.
        system, unravel = flat_system(matvec, b, x0)
        # A preconditioner needs the diagonal D of A = H + D, one entry a parameter.
        flat = tree.ravel(tree.spread(anchor, b))[0] if self.uses_anchor else None
        known = None
        if self.uses_inverse and inverse is not None:
            known = lambda r: tree.ravel(inverse(unravel(r)))[0]  # noqa: E731
        system = system._replace(structure=structure, anchor=flat, inverse=known)
        return _finish(system, self.run(system), self, unravel)

    def run(self, system: System) -> Outcome:
        """Solve a flat, scaled system.

        Args:
            system: The system.

        Returns:
            The Outcome.
        """
        raise NotImplementedError

    def accuracy(self, dtype: DTypeLike) -> float | None:
        """Give the relative residual that counts as converged.

        Args:
            dtype: The dtype of the system.

        Returns:
            The residual; None where none is promised. Then an answer with a residual above that of x = 0,
            which is 1, ends as BREAKDOWN.
        """
        return None


class State(Protocol):
    """What the driver reads of an iterative solver's state, a NamedTuple."""

    @property
    def x(self) -> Array:
        """The iterate, shape (n,)."""
        ...

    @property
    def steps(self) -> Array:
        """The number of steps taken."""
        ...

    @property
    def size(self) -> Array:
        """The norm of the residual, as the recursion believes it."""
        ...

    @property
    def ended(self) -> Array:
        """Whether the solver cannot go on."""
        ...


S = TypeVar("S", bound=State)
T = TypeVar("T")
Iteration: TypeAlias = tuple[T, Callable[[T], T]]  # a first state, and the step from a state to the next


@dataclass(frozen=True)
class Iterative(Checked, Solver, Generic[S]):
    """The base of iterative solvers; a subclass defines `iteration`, a first state and a step.

    Attributes:
        steps: The most steps; None for as many as the tolerance needs, up to a limit.
        tolerance: Stop where |b - A x| <= tolerance |b|. With None and `steps` given, all steps are taken,
            down to rounding. With both None the tolerance is eps^(3/4) of the dtype.
    """

    steps: PositiveInt | None = None
    tolerance: PositiveFloat | None = None

    def iteration(self, system: System) -> Iteration[S]:
        """Prepare the iteration.

        Args:
            system: The flat, scaled system.

        Returns:
            The first state and the step, which maps a state to the next. What the step reads of its closure
            is computed once; only what changes belongs in the state.
        """
        raise NotImplementedError

    def outcome(self, system: System, state: S) -> Outcome:
        """Say how the iteration ended.

        Args:
            system: The flat, scaled system.
            state: The last state.

        Returns:
            The Outcome. By default a state that has `ended` is a breakdown.
        """
        ending = jnp.where(state.ended, int(Ending.BREAKDOWN), int(Ending.OUT_OF_STEPS))
        return Outcome(state.x, state.steps, ending)

    def most(self, size: int) -> int:
        """Give the largest number of steps.

        Args:
            size: The number of unknowns.

        Returns:
            `steps`, or a limit from which on a solver of n steps has stagnated.
        """
        return self.steps or min(5 * size + 50, 10_000)

    def threshold(self, b: Array) -> Array:
        """Give the norm of the residual at which the iteration stops.

        Args:
            b: The scaled right-hand side, shape (n,).

        Returns:
            The tolerance times |b|, a scalar.
        """
        return self._tolerance(b.dtype) * jnp.linalg.norm(b)

    @property
    def fixed(self) -> bool:
        """Whether only the number of steps is given."""
        return self.steps is not None and self.tolerance is None

    def _tolerance(self, dtype: DTypeLike) -> float:
        """The tolerance in force: as asked; rounding alone with fixed steps; eps^(3/4) with neither."""
        eps = float(jnp.finfo(dtype).eps)
        return self.tolerance or (eps if self.fixed else eps**0.75)

    def accuracy(self, dtype: DTypeLike) -> float | None:
        """Give the relative residual that counts as converged; see `Solver.accuracy`.

        Args:
            dtype: The dtype of the system.

        Returns:
            Twice the tolerance, as the residual that the recursion carries along drifts from the true one;
            None where only `steps` was given.
        """
        return None if self.fixed else 2 * self._tolerance(dtype)

    def run(self, system: System) -> Outcome:
        """Iterate from the first guess until the solver stops; see `Solver.run`.

        Args:
            system: The flat, scaled system.

        Returns:
            The Outcome.
        """
        state, step = self.iteration(system)
        most, threshold = self.most(system.b.size), self.threshold(system.b)
        state = iterate(state, step, most, threshold)
        outcome = self.outcome(system, state)
        if self.steps is None or not self.fixed:
            return outcome
        # Fewer steps than asked for are only right where the residual is down to rounding.
        rounding = float(jnp.finfo(system.b.dtype).eps) ** 0.75 * jnp.linalg.norm(system.b)
        short = (outcome.steps < self.steps) & (state.size > rounding)
        return outcome._replace(final=outcome.final | short)


def iterate(state: S, step: Callable[[S], S], most: int, threshold: Array) -> S:
    """Repeat a step until the residual is small enough, the steps are used up, or the solver has ended.

    Args:
        state: The first state.
        step: Maps a state to the next.
        most: The most steps.
        threshold: The norm of the residual at which to stop, a scalar.

    Returns:
        The last state. It also stops where the residual is not finite.
    """

    def going(state: S) -> Array:
        more = (state.steps < most) & ~state.ended
        return more & (state.size > threshold) & jnp.isfinite(state.size)

    return repeat_while(going, step, state)


def refuse_structure(solver: LinearSolver | Solver, structure: str) -> None:
    """Check that a solver is made for a system's structure.

    Args:
        solver: The solver.
        structure: The structure of the system.

    Raises:
        StructureError: If it is not; the message names the solvers that are.
    """
    if structure not in STRUCTURES:
        raise StructureError(f"structure: expected one of {', '.join(STRUCTURES)}, got {structure!r}.")
    if structure not in solver.accepts:
        raise StructureError(
            f"{type(solver).__name__}: expected a system of structure {' or '.join(solver.accepts)}, got "
            f"{structure!r}. Hint: use {', '.join(_able(structure))}."
        )


def _able(structure: str) -> list[str]:
    """The names of the registered solvers that accept a structure, the most specialised first."""
    register_all(importlib.import_module(__package__ or "imaml.linear"))
    kinds = cast("dict[str, type[Solver]]", kinds_of("linear"))
    able = [name for name, kind in kinds.items() if structure in kind.accepts]
    return sorted(able, key=lambda name: (len(kinds[name].accepts), name))


def uses_anchor(solver: LinearSolver) -> bool:
    """Say whether a solver needs to know what was added to the curvature.

    Args:
        solver: Any linear solver, also one of a user's own.

    Returns:
        Its attribute `uses_anchor`; False where it has none.
    """
    return bool(getattr(solver, "uses_anchor", False))


def uses_inverse(solver: LinearSolver) -> bool:
    """Say whether a solver needs a function that multiplies by the inverse.

    Args:
        solver: Any linear solver, also one of a user's own.

    Returns:
        Its attribute `uses_inverse`; False where it has none.
    """
    return bool(getattr(solver, "uses_inverse", False))


def flat_system(matvec: Matvec, b: Tree, x0: Tree | None = None) -> tuple[System, Callable[[Array], Tree]]:
    """Flatten and scale a system.

    The right-hand side is scaled by a power of two, so without rounding, to entries of at most 1. Squares of
    small or large vectors then stay in the range of the dtype.

    Args:
        matvec: The product x -> A x over trees.
        b: The right-hand side, a tree of float arrays with n entries in all.
        x0: The first guess, shaped like `b`, or None for zero.

    Returns:
        The system, and the function that makes a tree of a flat vector.

    Raises:
        ConfigError: If `b` is empty or not of floating point, or `matvec(b)` or `x0` is not shaped like `b`.
    """
    flat, unravel = tree.ravel(b)
    if not flat.size:
        raise ConfigError("linear system: b: expected numbers, got a tree without any.")
    if not jnp.issubdtype(flat.dtype, jnp.floating):
        raise ConfigError(f"linear system: b: expected floating-point numbers, got {flat.dtype}.")
    tree.require_like("linear system: matvec(b)", jax.eval_shape(matvec, b), b, "b")
    power = jnp.frexp(jnp.max(jnp.abs(flat), initial=0))[1]
    power = jnp.where(jnp.all(jnp.isfinite(flat)), power, 0)
    product = lambda x: tree.ravel(matvec(unravel(x)))[0]  # noqa: E731
    scaled = _times_power(flat, -power)
    start = jnp.zeros_like(flat)
    if x0 is not None:
        tree.require_like("linear system: x0", x0, b, "b")
        start = _times_power(tree.ravel(x0)[0].astype(flat.dtype), -power)
        start = jnp.where(jnp.any(flat != 0), start, 0)  # no residual is small relative to b = 0
    return System(product, scaled, start, power, x0 is not None), unravel


def _times_power(x: Array, power: Array) -> Array:
    """Multiply x by 2^power, by two factors that are each in range; `jnp.ldexp` takes a power an entry."""
    half = power // 2
    one = jnp.ones((), x.dtype)
    return x * jnp.ldexp(one, half) * jnp.ldexp(one, power - half)


def quotient(value: Array, size: Array) -> Array:
    """Divide by a number that may be zero; derivatives stay finite there.

    Args:
        value: The dividend.
        size: The divisor, not negative.

    Returns:
        ``value / size``, and 0 where ``size`` is 0.
    """
    return jnp.where(size > 0, value / jnp.where(size > 0, size, 1), 0)


def _finish(system: System, outcome: Outcome, solver: Solver, unravel: Callable[[Array], Tree]) -> Solution:
    """The Solution of an outcome: its value, its residual, and the status that follows from both."""
    accuracy = solver.accuracy(system.b.dtype)
    # A value that is not finite would spread to the mean over tasks, so it becomes zero; the status says so.
    # Tested without the scaling, which may have been all that kept it in range.
    finite = jnp.all(jnp.isfinite(system.unscaled(outcome.x)) & jnp.isfinite(system.b))
    x = jnp.where(finite, outcome.x, 0)
    # The residual that a recursion carries along drifts from the true one, so one product more computes it.
    residual = outcome.residual
    if residual is None:
        residual = quotient(jnp.linalg.norm(system.b - system.product(x)), jnp.linalg.norm(system.b))
    finite &= jnp.isfinite(residual) & outcome.finite
    residual = jnp.where(finite, residual, jnp.inf).astype(system.b.dtype)
    if accuracy is None:  # x = 0 has the residual 1, so an answer clearly above that is worse than none
        code = jnp.where(residual <= 1.01, int(Ending.STEPS_DONE), int(Ending.BREAKDOWN))
    else:
        ending = jnp.asarray(outcome.ending)
        if not solver.never_worse:
            ending = jnp.where(residual <= 1.01, ending, jnp.maximum(ending, int(Ending.BREAKDOWN)))
        code = jnp.where(residual <= accuracy, int(Ending.CONVERGED), ending)
    code = jnp.where(outcome.final, outcome.ending, code)
    code = jnp.where(finite, code, outcome.nonfinite)
    steps, negative = jnp.asarray(outcome.steps), jnp.asarray(outcome.negative)
    stats = Stats(steps, residual, negative, lanczos=outcome.lanczos, damping=outcome.damping)
    return Solution(unravel(system.unscaled(x)), stats, Status(code))
