"""What a row's target is, given the network's outputs: the losses that a user can name, and their own.

Each is a recipe. `outputs_for` says how many outputs a network needs, `cost` is the loss of each row, and
`likelihood` is the distribution that it is the negative logarithm of, if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError
from ...core.fields import Checked
from ...core.recipes import recipe
from ...core.tree import Tree
from ...core.validation import not_one_of
from ...problems.likelihoods import Categorical, Density, Gaussian, by_row
from .layout import Rows

LOG_2PI = float(np.log(2 * np.pi))


class RowLoss(Checked):
    """The base of a loss of rows.

    Attributes:
        kind: What the user calls it.
        targets: "numbers", "counts" or "classes".
        headline: The score that runs are judged by: "rmse", "accuracy" or "loss".
    """

    owner: ClassVar[str] = "loss"
    kind: ClassVar[str]
    targets: ClassVar[Literal["numbers", "counts", "classes"]] = "numbers"
    headline: ClassVar[str] = "loss"

    @property
    def likelihood(self) -> Gaussian | Categorical | Density | None:
        """The distribution of a row, or None if the loss declares none."""
        return None

    def outputs_for(self, wanted: int) -> int:
        """Return how many outputs the network needs.

        Args:
            wanted: The columns of the targets, or the number of classes.

        Returns:
            The number of outputs of a row.
        """
        return wanted

    def outputs(self, outputs: Array) -> Array:
        """Return the network's outputs in the form that `cost` takes.

        Args:
            outputs: ``(n, ...)``.

        Returns:
            ``(n, k)``.
        """
        return by_row(outputs)

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the loss of each row.

        Args:
            outputs: ``(n, k)``, as `outputs` returns them.
            batch: The rows.

        Returns:
            ``(n,)``.
        """
        raise NotImplementedError

    def mean(self, outputs: np.ndarray) -> np.ndarray:
        """Return the expected target of each row.

        Args:
            outputs: ``(n, k)``.

        Returns:
            ``(n, columns)``, as targets are coded.
        """
        return outputs

    def draw(self, key: Array, outputs: Array) -> Array:
        """Draw targets given outputs, for predictive intervals.

        Args:
            key: A random key.
            outputs: ``(n, k)``.

        Returns:
            ``(n,)``.
        """
        raise ConfigError(
            f"predict_interval: expected a loss with a distribution of rows, got {self.kind!r}. Hint: choose "
            "loss='squared', 'poisson' or 'negative_binomial'."
        )


@recipe("loss")
@dataclass(frozen=True)
class Squared(RowLoss):
    """Half the squared error: rows are Gaussian, with a variance of 1 in the coded units."""

    kind: ClassVar[str] = "squared"
    headline: ClassVar[str] = "rmse"

    @property
    def likelihood(self) -> Gaussian:
        """Gaussian rows."""
        return Gaussian()

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return half the squared error of each row, summed over columns."""
        return 0.5 * jnp.sum(jnp.square(outputs - batch.targets), axis=1)


@recipe("loss")
@dataclass(frozen=True)
class CrossEntropy(RowLoss):
    """The cross-entropy of classes, with an output (a logit) for each class."""

    kind: ClassVar[str] = "cross_entropy"
    targets: ClassVar[Literal["numbers", "counts", "classes"]] = "classes"
    headline: ClassVar[str] = "accuracy"

    @property
    def likelihood(self) -> Categorical:
        """Categorical rows."""
        return Categorical()

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the cross-entropy of each row."""
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch.labels[:, None], axis=1)[:, 0]


@recipe("loss")
@dataclass(frozen=True)
class Binary(CrossEntropy):
    """The cross-entropy of two classes, with one output: the logit of the second."""

    kind: ClassVar[str] = "binary"

    def outputs_for(self, wanted: int) -> int:
        """Return 1; ConfigError if there are not two classes."""
        if wanted != 2:
            raise ConfigError(
                f"loss: expected two classes with 'binary', got {wanted}. Hint: choose loss='cross_entropy'."
            )
        return 1

    def outputs(self, outputs: Array) -> Array:
        """Return the logits ``(n, 2)`` of both classes, the first 0."""
        column = by_row(outputs)
        return jnp.concatenate([jnp.zeros_like(column), column], axis=1)


@recipe("loss")
@dataclass(frozen=True)
class Poisson(RowLoss):
    """Counts with mean exp(output + offset): the offset is the logarithm of the exposure."""

    kind: ClassVar[str] = "poisson"
    targets: ClassVar[Literal["numbers", "counts", "classes"]] = "counts"

    @property
    def likelihood(self) -> Density:
        """Poisson rows."""
        return Density(poisson_log_density)

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the negative log probability of each row."""
        return -jax.vmap(poisson_log_density)(outputs, batch.targets)

    def mean(self, outputs: np.ndarray) -> np.ndarray:
        """Return the expected counts."""
        return np.exp(outputs[:, :1].astype(np.float64))

    def draw(self, key: Array, outputs: Array) -> Array:
        """Draw counts."""
        return jax.random.poisson(key, jnp.exp(outputs[:, 0])).astype(outputs.dtype)


def poisson_log_density(outputs: Array, target: Array) -> Array:
    """Return log p(y) = y z - exp(z) - log y!, z the logarithm of the mean.

    Args:
        outputs: z, ``(1,)``.
        target: y, ``(1,)``.

    Returns:
        A scalar.
    """
    z, y = outputs[0], target[0]
    return y * z - jnp.exp(z) - jax.lax.lgamma(y + 1)


@recipe("loss")
@dataclass(frozen=True)
class NegativeBinomial(RowLoss):
    """Counts with mean m = exp(first output + offset) and variance m + m^2 exp(second output).

    The second output is the logarithm of the dispersion.
    """

    kind: ClassVar[str] = "negative_binomial"
    targets: ClassVar[Literal["numbers", "counts", "classes"]] = "counts"

    @property
    def likelihood(self) -> Density:
        """Negative binomial rows."""
        return Density(negative_binomial_log_density)

    def outputs_for(self, wanted: int) -> int:
        """Return 2: the logarithms of mean and dispersion."""
        return 2

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the negative log probability of each row."""
        return -jax.vmap(negative_binomial_log_density)(outputs, batch.targets)

    def mean(self, outputs: np.ndarray) -> np.ndarray:
        """Return the expected counts."""
        return np.exp(outputs[:, :1].astype(np.float64))

    def draw(self, key: Array, outputs: Array) -> Array:
        """Draw counts: Poisson with a gamma-distributed mean."""
        first, second = jax.random.split(key)
        size = jnp.exp(-outputs[:, 1])
        rate = jnp.exp(outputs[:, 0]) * jax.random.gamma(first, size) / size
        return jax.random.poisson(second, rate).astype(outputs.dtype)


def negative_binomial_log_density(outputs: Array, target: Array) -> Array:
    """Return log p(y) of mean m = exp(z) and size r = exp(-a), a the logarithm of the dispersion.

    ```
    log G(y + r) - log G(r) - log y!  +  r log(r / (r + m))  +  y log(m / (r + m))
    ```

    Args:
        outputs: ``(z, a)``.
        target: y, ``(1,)``.

    Returns:
        A scalar.
    """
    z, a, y = outputs[0], outputs[1], target[0]
    r = jnp.exp(-a)
    log_sum = jnp.logaddexp(z, -a)  # log(r + m)
    gammas = jax.lax.lgamma(y + r) - jax.lax.lgamma(r) - jax.lax.lgamma(y + 1)
    return gammas + r * (-a - log_sum) + y * (z - log_sum)


@dataclass(frozen=True)
class OwnLoss(RowLoss):
    """A function of the user's own, ``(outputs, targets) -> (n,)``; it has no JSON form.

    Args:
        function: The function.
    """

    kind: ClassVar[str] = "own"

    function: Callable[[Array, Array], Array]

    def outputs(self, outputs: Array) -> Array:
        """Return the outputs unchanged."""
        return outputs

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return what the function returns; ConfigError if that is not one number for each row."""
        found = self.function(outputs, batch.targets)
        rows = batch.weights.shape
        if not hasattr(found, "shape") or found.shape != rows:
            got = f"shape {found.shape}" if hasattr(found, "shape") else f"a {type(found).__name__}"
            raise ConfigError(
                f"loss: expected a function (outputs, targets) -> one number for each row, shape {rows}, got "
                f"{got}. Hint: leave the mean over rows to imaml."
            )
        return found


NAMED: dict[str, type[RowLoss]] = {
    kind.kind: kind for kind in (Squared, CrossEntropy, Binary, Poisson, NegativeBinomial)
}


def loss_of(loss: str | RowLoss | Callable[[Array, Array], Array]) -> RowLoss:
    """Return the loss that a user means.

    Args:
        loss: A name, a loss, or a function ``(outputs, targets) -> (n,)``.

    Returns:
        The loss.

    Raises:
        ConfigError: If it is none of these.
    """
    if isinstance(loss, RowLoss):
        return loss
    if callable(loss):
        return OwnLoss(loss)
    if loss not in NAMED:
        raise ConfigError(not_one_of("loss", loss, NAMED))
    return NAMED[loss]()


@dataclass(frozen=True)
class TaskLoss:
    """The loss of a task's rows, a sum over those that count; hashable.

    A sum, so that the strength is the precision of a prior, the same for tasks of 2 rows and of 200.

    Args:
        network: Gives the outputs.
        row: The loss of a row.
    """

    network: object
    row: RowLoss
    averages: ClassVar[bool] = False

    @property
    def likelihood(self) -> Gaussian | Categorical | Density | None:
        """The distribution of a row."""
        return self.row.likelihood

    def outputs(self, phi: Tree, batch: Rows) -> Array:
        """Return the outputs for a batch.

        Args:
            phi: Adapted parameters.
            batch: The rows.

        Returns:
            ``(n, k)``. A network that normalises uses the statistics of the batch's reference, or of the
            batch where it has none.
        """
        forward = self.network.forward  # type: ignore[attr-defined]
        statistics = None if batch.reference is None else forward(phi, batch.reference)[1]
        found = self.row.outputs(forward(phi, batch.inputs, statistics)[0])
        if batch.offset is None:
            return found
        return found.at[:, 0].add(batch.offset)

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the weighted sum of the rows' losses, a scalar."""
        return jnp.sum(batch.weights * self.row.cost(outputs, batch))

    def __call__(self, phi: Tree, batch: Rows) -> Array:
        """Return the loss of parameters ``phi`` on ``batch``."""
        return self.cost(self.outputs(phi, batch), batch)
