"""Inner solvers that see a few rows of the support set at a time: minibatch SGD and SVRG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.loops import repeat_while
from ..core.solution import Ending, Solution, Stats, Status
from ..core.validation import require_number, require_whole
from ..problems.base import Problem
from .base import check_stopping, judged, start_of

DEFAULT_MOST = 1000  # epochs


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, phi <- phi - rate_t F(phi, theta, `rows` rows of the batch).

    Each epoch goes through a fresh permutation of the support set's rows, as many minibatches as fit. The
    loss must be a *mean* over the rows, the leading axis of every leaf of the batch: then the minibatch's F
    is an unbiased estimate of F. rate_t = learning_rate / (1 + decay t) after t steps: without decay it ends
    in a ball around the solution, the larger the rate (and `stats.residual`, which is |F| on all rows, says
    so); with decay it converges like 1/t (Robbins and Monro 1951). For `epochs`, or until |F| <= tolerance,
    which is looked at after every epoch (then at most `epochs`, by default 1,000); `stats.steps` counts
    minibatches. key: the order of the rows, key(0) where none is given.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.mean((phi - x) ** 2), 1.0)
    >>> solver = SGD(0.5, rows=1, epochs=1)
    >>> solver(problem, jnp.zeros(()), jnp.ones(3)).value
    Array(0.5, dtype=float32)
    """

    learning_rate: float
    rows: int
    epochs: int | None = None
    tolerance: float | None = None
    decay: float = 0.0
    steps: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        _check(self)
        require_number("SGD", 0, decay=self.decay)

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after the epochs; its value holds the problem's adapted leaves."""
        start = start_of(problem, theta, batch, phi0, key)

        def step(phi: Any, part: Any, count: Array) -> Any:
            rate = self.learning_rate / (1 + self.decay * count)
            slope = problem.residual(phi, theta, part)
            return jax.tree.map(lambda p, g: p - jnp.asarray(rate, p.dtype) * g, phi, slope)

        def epoch(phi: Any, _: Any, parts: Callable, length: int, done: Array) -> Any:
            return lax.fori_loop(0, length, lambda i, p: step(p, parts(i), done + i), phi)

        return _epochs(self, problem, theta, batch, start, key, epoch)


@dataclass(frozen=True)
class SVRG:
    """Stochastic variance-reduced gradients (Johnson and Zhang 2013, option I).

    ```
    phi <- phi - rate (F(phi, rows) - F(snapshot, rows) + F(snapshot, all))
    ```

    with the snapshot taken at the start of every epoch: unbiased, with a variance that vanishes at the
    solution, so that it converges linearly at a constant rate. An epoch costs three passes over the rows.
    Rows, stopping and the loss as in `SGD`; F on all rows is known at every snapshot, so looking is free.

    >>> import imaml, jax.numpy as jnp
    >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.mean((phi - x) ** 2), 1.0)
    >>> solution = SVRG(0.1, rows=1, tolerance=1e-5)(problem, jnp.zeros(()), jnp.array([0.0, 1.0, 2.0]))
    >>> round(float(solution.value), 3)
    0.5
    """

    learning_rate: float
    rows: int
    epochs: int | None = None
    tolerance: float | None = None
    steps: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        _check(self)

    def __call__(
        self, problem: Problem, theta: Any, batch: Any, phi0: Any = None, key: Array | None = None
    ) -> Solution:
        """The Solution after the epochs; its value holds the problem's adapted leaves."""
        start = start_of(problem, theta, batch, phi0, key)

        def epoch(phi: Any, whole: Any, parts: Callable, length: int, done: Array) -> Any:
            snapshot = phi

            def step(i: Array, phi: Any) -> Any:
                rows = parts(i)
                change = tree.minus(
                    problem.residual(phi, theta, rows), problem.residual(snapshot, theta, rows)
                )
                return jax.tree.map(
                    lambda p, c, w: p - jnp.asarray(self.learning_rate, p.dtype) * (c + w),
                    phi, change, whole,
                )  # fmt: skip

            return lax.fori_loop(0, length, step, phi)

        return _epochs(self, problem, theta, batch, start, key, epoch)


def _check(solver: SGD | SVRG) -> None:
    name = type(solver).__name__
    check_stopping(name, solver.epochs, solver.tolerance, steps_name="epochs")
    require_whole(name, 1, rows=solver.rows)
    require_number(name, 0, open=True, learning_rate=solver.learning_rate)


def _rows(name: str, batch: Any, rows: int) -> int:
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
    theta: Any,
    batch: Any,
    start: Any,
    key: Array | None,
    epoch: Callable,
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

    def once(phi: Any, whole: Any, number: Array) -> Any:
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

    def going(state: tuple) -> Array:
        _, slope, number = state
        size = tree.norm(slope)
        return (size > tolerance) & (number < most) & jnp.isfinite(size)

    def advance(state: tuple) -> tuple:
        phi, slope, number = state
        phi = once(phi, slope, number)
        return phi, residual(phi), number + 1

    phi, slope, number = repeat_while(going, advance, (start, first, jnp.asarray(0)))
    size = tree.norm(slope)
    code = jnp.where(size <= tolerance, int(Ending.CONVERGED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(jnp.isfinite(size), code, int(Ending.NOT_FINITE))
    return Solution(phi, Stats(number * length, size, jnp.asarray(False)), Status(code))
