"""What a row's target is, given the network's outputs: the losses that a user can name, and their own.

Each is a recipe. `outputs_for` says how many outputs a network needs, `cost` is the loss of each row, and
`likelihood` is the distribution that it is the negative logarithm of, if there is one.
"""

from __future__ import annotations

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
from ...problems.likelihoods import Categorical, Density, Gaussian, by_row
from ...problems.losses import CompositeLoss
from ..networks import Network
from .layout import Rows


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
class Ordinal(CrossEntropy):
    """Classes in an order, by cumulative logits: P(class <= j) = sigmoid(t_j - z).

    Of K outputs the first is z, the second the first threshold, and the others the logarithms of the
    distances to the next thresholds.

    References:
        McCullagh (1980), Regression models for ordinal data, section 2.
    """

    kind: ClassVar[str] = "ordinal"

    def outputs(self, outputs: Array) -> Array:
        """Return the logarithms of the classes' probabilities, ``(n, K)``."""
        columns = by_row(outputs)
        z, start, steps = columns[:, :1], columns[:, 1:2], jnp.exp(columns[:, 2:])
        places = jnp.cumsum(jnp.concatenate([start, steps], axis=1), axis=1) - z
        above, below = jax.nn.log_sigmoid(-places), jax.nn.log_sigmoid(places)
        # Between thresholds a < b: sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a - b))
        between = below[:, 1:] + above[:, :-1] + jnp.log(-jnp.expm1(-steps))
        return jnp.concatenate([below[:, :1], between, above[:, -1:]], axis=1)


@dataclass(frozen=True)
class TaskLoss(CompositeLoss):
    """The loss of a task's rows, a sum over those that count; hashable.

    A sum, so that the strength is the precision of a prior, the same for tasks of 2 rows and of 200.

    Args:
        network: Gives the outputs.
        row: The loss of a row.
    """

    network: Network
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
        statistics = None if batch.reference is None else self.network.forward(phi, batch.reference)[1]
        return self.formed(self.network.forward(phi, batch.inputs, statistics)[0], batch.offset)

    def formed(self, outputs: Array, offset: Array | None) -> Array:
        """Return the network's outputs with an offset, in the form that the loss takes.

        Args:
            outputs: The network's outputs.
            offset: What is added to each row's first output, ``(n,)``, or None.

        Returns:
            ``(n, k)``.
        """
        if offset is not None:
            outputs = by_row(outputs)
            outputs = outputs.at[:, 0].add(offset.astype(outputs.dtype))
        return self.row.outputs(outputs)

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the weighted sum of the rows' losses.

        Args:
            outputs: ``(n, k)``, as `outputs` returns them.
            batch: The rows.

        Returns:
            A scalar.
        """
        return jnp.sum(batch.weights * self.row.cost(outputs, batch))
