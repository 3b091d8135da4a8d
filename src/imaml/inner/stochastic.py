"""Inner solvers that see a few rows of the support set at a time: minibatch SGD and SVRG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.loops import repeat_while
from ..core.solution import Ending, Solution, Stats, Status
from ..core.tree import PyTree
from ..core.validation import require_number, require_whole
from ..problems.base import Problem
from .base import Solver, check_stopping, judged

DEFAULT_MOST = 1000  # epochs
# (phi, F on all rows, minibatch by number, minibatches, steps before) -> phi
Epoch = Callable[[PyTree, PyTree, Callable[[Array], PyTree], int, Array], PyTree]


class _Epochs(NamedTuple):
    """The state between epochs: phi, F there on all rows, and the number of epochs done."""

    phi: PyTree
    slope: PyTree
    number: Array


@dataclass(frozen=True)
class SGD(Solver):
    """Stochastic gradient descent, phi <- phi - rate_t F(phi, theta, `rows` rows of the batch).

    Each epoch goes through a fresh permutation of the support set's rows, as many minibatches as fit. The
    loss must be a *mean* over the rows, the leading axis of every leaf of the batch: then the minibatch's F
    is an unbiased estimate of F. `stats.steps` counts minibatches. The order of the rows is drawn from the
    key of the call, key(0) where none is given.

    The rate after t steps is rate_t = learning_rate / (1 + decay t). Without decay it ends in a ball around
    the solution, the larger the rate; `stats.residual`, which is |F| on all rows, says so. With decay it
    converges like 1/t.

    Args:
        learning_rate: A positive number.
        rows: The rows of a minibatch.
        epochs: The number of epochs; with a tolerance, the most (by default 1,000).
        tolerance: Stop where |F| on all rows is at most this, which is looked at after every epoch; or None.
        decay: The decay of the rate, a number of at least 0.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.mean((phi - x) ** 2), 1.0)
        >>> solver = SGD(0.5, rows=1, epochs=1)
        >>> solver(problem, jnp.zeros(()), jnp.ones(3)).value
        Array(0.5, dtype=float32)

    References:
        Robbins and Monro (1951), A stochastic approximation method.
    """

    learning_rate: float
    rows: int
    epochs: int | None = None
    tolerance: float | None = None
    decay: float = 0.0
    steps: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        _check(self)
        require_number("SGD", 0, decay=self.decay)

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""

        def step(phi: PyTree, part: PyTree, count: Array) -> PyTree:
            rate = self.learning_rate / (1 + self.decay * count)
            slope = problem.residual(phi, theta, part)
            return jax.tree.map(lambda p, g: p - jnp.asarray(rate, p.dtype) * g, phi, slope)

        def epoch(phi: PyTree, _: PyTree, parts: Callable, length: int, done: Array) -> PyTree:
            return lax.fori_loop(0, length, lambda i, p: step(p, parts(i), done + i), phi)

        return _epochs(self, problem, theta, batch, phi0, key, epoch)


@dataclass(frozen=True)
class SVRG(Solver):
    """Stochastic variance-reduced gradients.

        phi <- phi - rate (F(phi, rows) - F(snapshot, rows) + F(snapshot, all))

    The snapshot is taken at the start of every epoch. The estimate is unbiased, and its variance vanishes at
    the solution, so it converges linearly at a constant rate. An epoch costs three passes over the rows. The
    loss must be a mean over rows, as for `SGD`. F on all rows is known at every snapshot, so looking at the
    tolerance is free.

    Args:
        learning_rate: A positive number.
        rows: The rows of a minibatch.
        epochs: The number of epochs; with a tolerance, the most (by default 1,000).
        tolerance: Stop where |F| on all rows is at most this, which is looked at after every epoch; or None.

    Raises:
        ConfigError: If it is not told when to stop, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.mean((phi - x) ** 2), 1.0)
        >>> solution = SVRG(0.1, rows=1, tolerance=1e-5)(problem, jnp.zeros(()), jnp.array([0.0, 1.0, 2.0]))
        >>> round(float(solution.value), 3)
        0.5

    References:
        Johnson and Zhang (2013), Accelerating stochastic gradient descent using predictive variance
        reduction, option I.
    """

    learning_rate: float
    rows: int
    epochs: int | None = None
    tolerance: float | None = None
    steps: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check the arguments; raises ConfigError."""
        _check(self)

    def _solve(
        self, problem: Problem, theta: PyTree, batch: PyTree, phi0: PyTree, key: Array | None
    ) -> Solution:
        """See `Solver`."""

        def epoch(phi: PyTree, whole: PyTree, parts: Callable, length: int, done: Array) -> PyTree:
            snapshot = phi

            def step(i: Array, phi: PyTree) -> PyTree:
                rows = parts(i)
                change = tree.minus(
                    problem.residual(phi, theta, rows), problem.residual(snapshot, theta, rows)
                )
                return jax.tree.map(
                    lambda p, c, w: p - jnp.asarray(self.learning_rate, p.dtype) * (c + w),
                    phi, change, whole,
                )  # fmt: skip

            return lax.fori_loop(0, length, step, phi)

        return _epochs(self, problem, theta, batch, phi0, key, epoch)


def _check(solver: SGD | SVRG) -> None:
    """Check what both have in common; raises ConfigError."""
    name = type(solver).__name__
    check_stopping(name, solver.epochs, solver.tolerance, steps_name="epochs")
    require_whole(name, 1, rows=solver.rows)
    require_number(name, 0, open=True, learning_rate=solver.learning_rate)


def _rows(name: str, batch: PyTree, rows: int) -> int:
    """How many rows a batch has; ConfigError where its leaves disagree, or it has fewer than asked for."""
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(counts) != 1 or counts == {()}:
        raise ConfigError(
            f"{name}: takes rows of the support set, the leading axis of each of its arrays; it came as "
            f"{tree.shapes(batch)}. Use a solver of the whole batch, such as GradientDescent."
        )
    count = counts.pop()[0]
    if count < rows:
        raise ConfigError(f"{name}: rows={rows}, and the support set has {count}; accepted are up to that.")
    return count


def _epochs(
    solver: SGD | SVRG,
    problem: Problem,
    theta: PyTree,
    batch: PyTree,
    start: PyTree,
    key: Array | None,
    epoch: Epoch,
) -> Solution:
    """The Solution of repeating `epoch(phi, F on all rows, minibatches, their number, steps before)`."""
    if getattr(problem.loss, "summed", False):
        raise StructureError(
            f"{type(solver).__name__}: takes the mean over a few rows for the loss of all, and this "
            "problem's is a likelihood, which is a sum; use a solver of the whole batch, such as NewtonCG."
        )
    count = _rows(type(solver).__name__, batch, solver.rows)
    length = count // solver.rows
    key = jax.random.key(0) if key is None else key
    residual = lambda phi: problem.residual(phi, theta, batch)  # noqa: E731

    # Every epoch has a permutation of its own, which depends on its number alone; the last rows that fill no
    # minibatch are not seen in it.
    def once(phi: PyTree, whole: PyTree, number: Array) -> PyTree:
        order = jax.random.permutation(jax.random.fold_in(key, number), count)
        part = lambda i: lax.dynamic_slice_in_dim(order, i * solver.rows, solver.rows)  # noqa: E731
        parts = lambda i: jax.tree.map(lambda leaf: leaf[part(i)], batch)  # noqa: E731
        return epoch(phi, whole, parts, length, number * length)

    first = residual(start)
    if solver.tolerance is None:
        assert solver.epochs is not None
        whole = isinstance(solver, SVRG)
        repeat = lambda i, phi: once(phi, residual(phi) if whole else None, i)  # noqa: E731
        phi = lax.fori_loop(0, solver.epochs, repeat, start)
        size = tree.norm(residual(phi))
        steps = jnp.asarray(solver.epochs * length)
        stats = Stats(steps, size, jnp.asarray(False), first=tree.norm(first))
        return judged(Solution(phi, stats, Status(jnp.asarray(0))), size)
    most, tolerance = solver.epochs or DEFAULT_MOST, solver.tolerance

    def going(state: _Epochs) -> Array:
        size = tree.norm(state.slope)
        return (size > tolerance) & (state.number < most) & jnp.isfinite(size)

    def advance(state: _Epochs) -> _Epochs:
        phi = once(state.phi, state.slope, state.number)
        return _Epochs(phi, residual(phi), state.number + 1)

    end = repeat_while(going, advance, _Epochs(start, first, jnp.asarray(0)))
    size = tree.norm(end.slope)
    code = jnp.where(size <= tolerance, int(Ending.CONVERGED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(end.phi, Stats(end.number * length, size, jnp.asarray(False)), Status(code))
