"""Inner solvers that see a few rows of the support set at a time: minibatch SGD and SVRG."""

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.fields import Checked, NonNegativeFloat, PositiveFloat, PositiveInt
from ..core.solution import Solution
from ..core.tree import Tree
from .base import Instance, Solver, check_stopping, of_fixed_length, until


class _Epoch(NamedTuple):
    """Phi at the start of an epoch, and F there on all rows."""

    snapshot: Tree
    slope: Tree


@dataclass(frozen=True)
class _Minibatch(Checked, Solver):
    """The base of solvers that see minibatches; a subclass defines `_step`."""

    learning_rate: PositiveFloat
    rows: PositiveInt
    epochs: PositiveInt | None = None
    tolerance: PositiveFloat | None = None
    steps: ClassVar[None] = None
    most: ClassVar[int] = 1000  # epochs
    needs_slope: ClassVar[bool] = False  # whether an epoch begins with F on all rows

    def __post_init__(self) -> None:
        """Check the fields, and that it has something to stop at (ConfigError)."""
        super().__post_init__()
        check_stopping(type(self).__name__, self.epochs, self.tolerance, steps_name="epochs")

    def _step(self, task: Instance, rows: Tree, phi: Tree, epoch: _Epoch, count: Array) -> Tree:
        """Phi after a step on a minibatch; count: the steps before."""
        raise NotImplementedError

    def _solve(self, task: Instance) -> Solution:
        """Repeat epochs; F on all rows is computed between them if there is a tolerance."""
        name = type(self).__name__
        loss = task.problem.loss
        if getattr(loss, "summed", False) or getattr(loss, "averages", None) is False:
            raise StructureError(
                f"{name}: expected a loss that is a mean over rows, got {type(loss).__name__}, which is a "
                "sum. Hint: use a solver of the whole batch, such as NewtonCG."
            )
        count = _row_count(name, task.batch, self.rows)
        length = count // self.rows
        key = jax.random.key(0) if task.key is None else task.key

        # Every epoch has a permutation of its own, which depends on its number alone; the last rows that fill
        # no minibatch are not seen in it.
        def once(phi: Tree, slope: Tree, number: Array) -> Tree:
            order = jax.random.permutation(jax.random.fold_in(key, number), count)
            chosen = lambda i: lax.dynamic_slice_in_dim(order, i * self.rows, self.rows)  # noqa: E731
            part = lambda i: jax.tree.map(lambda leaf: leaf[chosen(i)], task.batch)  # noqa: E731
            epoch = _Epoch(phi, slope)
            step = lambda i, p: self._step(task, part(i), p, epoch, number * length + i)  # noqa: E731
            return lax.fori_loop(0, length, step, phi)

        if self.tolerance is not None:
            step = lambda slope, phi, number: (once(phi, slope, number), number + 1)  # noqa: E731
            found = until(task, jnp.asarray(0), step, self.epochs or self.most, self.tolerance)
            return replace(found, stats=replace(found.stats, steps=found.stats.steps * length))
        assert self.epochs is not None
        repeat = lambda i, phi: once(phi, task.residual(phi) if self.needs_slope else None, i)  # noqa: E731
        first = task.size(task.start)
        phi = lax.fori_loop(0, self.epochs, repeat, task.start)
        return of_fixed_length(task, phi, self.epochs * length, first)


@dataclass(frozen=True)
class SGD(_Minibatch):
    """Stochastic gradient descent, phi <- phi - rate_t F(phi, theta, `rows` rows of the batch).

    Each epoch goes through a fresh permutation of the support set's rows, as many minibatches as fit. The
    loss must be a *mean* over the rows, the leading axis of every leaf of the batch, without weights: then
    the minibatch's F is an unbiased estimate of F. `stats.steps` counts minibatches. The order of the rows is
    drawn from the key of the call, key(0) where none is given.

    The rate after t steps is rate_t = learning_rate / (1 + decay t). Without decay it ends in a ball around
    the solution, whose radius grows with the rate; `stats.residual`, which is |F| on all rows, shows this.
    With decay it converges like 1/t.

    Args:
        learning_rate: A positive number.
        rows: The rows of a minibatch.
        epochs: The number of epochs; with a tolerance, the most (by default 1,000).
        tolerance: Stop where |F| on all rows is at most this, which is checked after every epoch; or None.
        decay: The decay of the rate, a number of at least 0.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, x: 0.5 * jnp.mean((phi - x) ** 2), 1.0)
        >>> solver = SGD(0.5, rows=1, epochs=1)
        >>> solver(problem, jnp.zeros(()), jnp.ones(3)).value
        Array(0.5, dtype=float32)

    References:
        Robbins and Monro (1951), A stochastic approximation method.
    """

    decay: NonNegativeFloat = 0.0

    def _step(self, task: Instance, rows: Tree, phi: Tree, epoch: _Epoch, count: Array) -> Tree:
        """Step by rate_t against F on the minibatch."""
        rate = self.learning_rate / (1 + self.decay * count)
        slope = task.problem.residual(phi, task.theta, rows)
        return jax.tree.map(lambda p, g: p - jnp.asarray(rate, p.dtype) * g, phi, slope)


@dataclass(frozen=True)
class SVRG(_Minibatch):
    """Stochastic variance-reduced gradients.

        phi <- phi - rate (F(phi, rows) - F(snapshot, rows) + F(snapshot, all))

    The snapshot is taken at the start of every epoch. The estimate is unbiased, and its variance vanishes at
    the solution, so it converges linearly at a constant rate. An epoch costs three passes over the rows. The
    loss must be a mean over rows, as for `SGD`. F on all rows is known at every snapshot, so checking the
    tolerance costs nothing.

    Args:
        learning_rate: A positive number.
        rows: The rows of a minibatch.
        epochs: The number of epochs; with a tolerance, the most (by default 1,000).
        tolerance: Stop where |F| on all rows is at most this, which is checked after every epoch; or None.

    Raises:
        ConfigError: If it has nothing to stop at, or an argument is out of range.

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

    needs_slope: ClassVar[bool] = True

    def _step(self, task: Instance, rows: Tree, phi: Tree, epoch: _Epoch, count: Array) -> Tree:
        """Step against the estimate whose variance is reduced."""
        now, then = (task.problem.residual(p, task.theta, rows) for p in (phi, epoch.snapshot))
        rate = lambda p: jnp.asarray(self.learning_rate, p.dtype)  # noqa: E731
        change = tree.minus(now, then)
        return jax.tree.map(lambda p, c, w: p - rate(p) * (c + w), phi, change, epoch.slope)


def _row_count(name: str, batch: Tree, rows: int) -> int:
    """How many rows a batch has; ConfigError where its leaves disagree, or it has fewer than asked for."""
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(counts) != 1 or counts == {()}:
        raise ConfigError(
            f"{name}: expected a support set of rows, the leading axis of each of its arrays, got "
            f"{tree.shapes(batch)}. Hint: use a solver of the whole batch, such as GradientDescent."
        )
    count = counts.pop()[0]
    if count < rows:
        raise ConfigError(f"{name}: rows: expected at most {count}, the rows of the support set, got {rows}.")
    return count
