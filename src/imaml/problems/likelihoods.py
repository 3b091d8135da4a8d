"""Negative log likelihoods of a task's rows, which are sums.

A model's loss object has `outputs(phi, batch)` and `cost(outputs, batch)`, as for Gauss-Newton curvature. Its
attribute `likelihood` declares the distribution of a row: a `Gaussian()`, `Categorical()` or `Density(...)`:

    kind "gaussian"      outputs (n,) or (n, k), like `batch.targets`; noise variance in their squared units
    kind "categorical"   outputs (n, ways), logits; `batch.labels` (n,), whole numbers
    kind "density"       outputs (n, k) and `batch.targets` (n, ...), as its log density takes them
    batch.weights        (n,), where the batch has such a field that is not None: a row counts so many times
                         (0 for padding); else every row counts once

`likelihood(loss, noise)` returns the *sum* over rows, also where `cost` is a mean. A strength is then the
precision of a prior, the same for tasks of 2 rows and of 200. The logarithm of a learned noise variance is
`Theta.log_noise`, a scalar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.tree import Tree
from ..core.validation import require_function, require_number
from .losses import CompositeLoss
from .precision import Learned, Theta, logs_in

if TYPE_CHECKING:
    from .base import Problem


def weights_of(batch: Tree, rows: int, dtype: DTypeLike) -> Array:
    """Return how many times each row counts.

    Args:
        batch: A batch, perhaps with a field `weights` of shape ``(rows,)``.
        rows: The number of rows.
        dtype: The dtype of the result.

    Returns:
        ``batch.weights``, or ones, shape ``(rows,)``.

    Raises:
        ConfigError: If the weights have another shape.
    """
    weights = getattr(batch, "weights", None)
    if weights is None:
        return jnp.ones(rows, dtype)
    if jnp.shape(weights) != (rows,):
        raise ConfigError(
            f"likelihood: batch.weights: expected shape ({rows},), one number for each row, got "
            f"{jnp.shape(weights)}."
        )
    return jnp.asarray(weights, dtype)


def _field(batch: Tree, name: str, kind: str) -> Array:
    """A field of the batch; ConfigError where there is none."""
    value = getattr(batch, name, None)
    if value is None:
        raise ConfigError(
            f"likelihood: expected a batch with {name}, as rows are {kind}, got a {type(batch).__name__}."
        )
    return value


@dataclass(frozen=True)
class Gaussian:
    """Rows y_i ~ N(z_i, noise I), with z_i the model's outputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from imaml.domains.regression import Points
        >>> rows = Points(jnp.zeros((2, 1)), jnp.ones(2))
        >>> round(float(Gaussian().cost(jnp.zeros(2), rows, jnp.asarray(1.0))), 4)  # 1 + log 2 pi
        2.8379
    """

    kind: ClassVar[str] = "gaussian"

    def cost(self, outputs: Array, batch: Tree, noise: Array) -> Array:
        """Compute the negative log likelihood -sum_i w_i log p(y_i | z_i), constants included.

        Args:
            outputs: z, shaped like ``batch.targets``, ``(n,)`` or ``(n, k)``.
            batch: The rows, with `targets` and perhaps `weights`.
            noise: The noise variance, in squared units of the targets.

        Returns:
            The sum, a scalar.
        """
        squares = self.errors(outputs, batch)
        columns = squares.shape[1]
        weights = weights_of(batch, squares.shape[0], squares.dtype)
        return 0.5 * jnp.sum(weights * (jnp.sum(squares, 1) / noise + columns * jnp.log(2 * math.pi * noise)))

    def errors(self, outputs: Array, batch: Tree) -> Array:
        """Compute the squared errors.

        Args:
            outputs: z, shaped like ``batch.targets``.
            batch: The rows.

        Returns:
            (y - z)^2, shape ``(n, k)``.

        Raises:
            ConfigError: If outputs and targets differ in shape.
        """
        targets = _field(batch, "targets", self.kind)
        tree.require_like("likelihood: outputs", outputs, targets, "the targets")
        return by_row(jnp.square(outputs - targets))

    def half(self, outputs: Array, batch: Tree, noise: Array, vector: Array) -> Array:
        """Compute the product B^T v, where B B^T is the second derivative of `cost` in the outputs.

        Args:
            outputs: z, ``(n, k)``.
            batch: The rows.
            noise: The noise variance.
            vector: v, ``(n, k)``.

        Returns:
            sqrt(w / noise) v, shape ``(n, k)``.
        """
        weights = weights_of(batch, vector.shape[0], vector.dtype)
        return jnp.sqrt(weights)[:, None] * vector / jnp.sqrt(noise)


@dataclass(frozen=True)
class Categorical:
    """Rows whose label is c with probability softmax(z_i)_c, with z_i the model's outputs.

    Example:
        >>> import jax.numpy as jnp
        >>> from imaml.domains.fewshot.episodes import Labelled
        >>> rows = Labelled(jnp.zeros((3, 1)), jnp.array([0, 1, 1]))
        >>> round(float(Categorical().cost(jnp.zeros((3, 2)), rows)), 4)  # 3 log 2
        2.0794
    """

    kind: ClassVar[str] = "categorical"

    def cost(self, outputs: Array, batch: Tree, noise: Array | None = None) -> Array:
        """Compute the negative log likelihood -sum_i w_i log p(label_i | z_i).

        Args:
            outputs: Logits z, ``(n, ways)``.
            batch: The rows, with `labels` and perhaps `weights`.
            noise: Not used.

        Returns:
            The sum, a scalar; NaN if a label is not the number of a class.

        Raises:
            ConfigError: If labels are not whole numbers, one for each row.
        """
        labels = jnp.asarray(_field(batch, "labels", self.kind))
        if labels.shape != outputs.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ConfigError(
                f"likelihood: batch.labels: expected whole numbers of shape {outputs.shape[:1]}, one for "
                f"each row of the outputs, got {labels.dtype} of shape {labels.shape}."
            )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=1)[:, 0]
        weights = weights_of(batch, chosen.shape[0], chosen.dtype)
        # As a label that is too large, one below zero is none: JAX would count it from the last class.
        chosen = jnp.where((labels < 0) & (weights != 0), jnp.nan, chosen)
        return -jnp.sum(weights * chosen)

    def half(self, outputs: Array, batch: Tree, noise: Array | None, vector: Array) -> Array:
        """Compute the product B^T v, where B B^T = w (diag(p) - p p^T) is the second derivative of `cost`.

        ```
        B = sqrt(w) (diag(sqrt(p)) - p sqrt(p)^T)        p = softmax(z)
        ```

        Args:
            outputs: Logits z, ``(n, ways)``.
            batch: The rows.
            noise: Not used.
            vector: v, ``(n, ways)``.

        Returns:
            B^T v, shape ``(n, ways)``.
        """
        logs = jax.nn.log_softmax(outputs)
        average = jnp.sum(jnp.exp(logs) * vector, 1, keepdims=True)
        weights = weights_of(batch, vector.shape[0], vector.dtype)
        return jnp.sqrt(weights)[:, None] * jnp.exp(0.5 * logs) * (vector - average)


@dataclass(frozen=True)
class Density:
    """Rows with a user-defined log density.

    The functions are hashable, and take the values of one row. With `mean` and `draw` a run predicts targets
    and simulates their intervals; without them, it predicts outputs.

    Args:
        log_density: ``(outputs (k,), target (...)) -> log p(target)``, a scalar, twice differentiable in the
            outputs.
        mean: ``outputs (k,) -> the expected target (...)``, or None.
        draw: ``(key, outputs (k,)) -> a random target (...)``, or None.

    Raises:
        ConfigError: If one is not a function.

    Example:
        >>> import jax.numpy as jnp
        >>> from imaml.domains.regression import Points
        >>> laplace = Density(lambda z, y: -jnp.sqrt(1 + jnp.sum((y - z) ** 2)))
        >>> float(laplace.cost(jnp.zeros((2, 1)), Points(jnp.zeros((2, 1)), jnp.zeros((2, 1)))))
        2.0
    """

    log_density: Callable[[Array, Array], Array]
    mean: Callable[[Array], Array] | None = None
    draw: Callable[[Array, Array], Array] | None = None
    kind: ClassVar[str] = "density"

    def __post_init__(self) -> None:
        """Check that what was given are functions (ConfigError)."""
        for name in ("log_density", "mean", "draw"):
            value = getattr(self, name)
            if value is not None or name == "log_density":
                require_function(f"Density: {name}", value)

    def cost(self, outputs: Array, batch: Tree, noise: Array | None = None) -> Array:
        """Compute the negative log likelihood -sum_i w_i log p(y_i | z_i).

        Args:
            outputs: z, ``(n, k)``.
            batch: The rows, with `targets` and perhaps `weights`.
            noise: Not used.

        Returns:
            The sum, a scalar.

        Raises:
            ConfigError: If the log density of a row is not a scalar.
        """
        targets = _field(batch, "targets", self.kind)
        logs = jax.vmap(self.log_density)(by_row(outputs), targets)
        if logs.ndim != 1:
            raise ConfigError(
                "likelihood: expected a log density that returns a scalar for one row, got one of shape "
                f"{logs.shape[1:]}."
            )
        return -jnp.sum(weights_of(batch, logs.shape[0], logs.dtype) * logs)

    def half(self, outputs: Array, batch: Tree, noise: Array | None, vector: Array) -> Array:
        """Compute the product B^T v, where B B^T is the second derivative of `cost` in the outputs.

        ```
        w_i (-d^2 log p / dz^2) = Q diag(l) Q^T        B = Q diag(sqrt(max(l, 0)))
        ```

        Where a row's log density is not concave, its negative eigenvalues count as 0, as in a generalised
        Gauss-Newton matrix.

        Args:
            outputs: z, ``(n, k)``.
            batch: The rows.
            noise: Not used.
            vector: v, ``(n, k)``.

        Returns:
            B^T v, shape ``(n, k)``.
        """
        targets = _field(batch, "targets", self.kind)
        hessians = -jax.vmap(jax.hessian(self.log_density))(outputs, targets)
        values, vectors = jnp.linalg.eigh(hessians)
        weights = weights_of(batch, vector.shape[0], vector.dtype)
        root = jnp.sqrt(jnp.maximum(values, 0) * weights[:, None])
        return root * jnp.einsum("nij,ni->nj", vectors, vector)


def by_row(outputs: Array) -> Array:
    """Make a matrix of outputs.

    Args:
        outputs: ``(n,)`` or ``(n, ...)``.

    Returns:
        ``(n, k)``, a column where there is one number for each row.
    """
    return jnp.reshape(outputs, (outputs.shape[0], -1))


Likelihood: TypeAlias = Gaussian | Categorical | Density


@dataclass(frozen=True)
class NegativeLogLikelihood(CompositeLoss):
    """The negative log likelihood of a task's rows, a sum; made by `likelihood`.

    Attributes:
        model: The loss whose `outputs` and `likelihood` it takes.
        noise: The noise variance of Gaussian rows: a number, None for other rows, or `learned(...)`, whose
            value is part of theta (see `given`).
    """

    model: CompositeLoss
    noise: float | Array | Learned | None = None
    summed: ClassVar[bool] = True  # over rows, so that some of them are not estimate of all

    @property
    def likelihood(self) -> Likelihood:
        """The distribution of a row."""
        return self.model.likelihood

    def outputs(self, phi: Tree, batch: Tree) -> Array:
        """Compute the model's outputs.

        Args:
            phi: The full tree of parameters.
            batch: The rows.

        Returns:
            ``(n,)``, ``(n, k)`` or logits ``(n, ways)``.
        """
        return self.model.outputs(phi, batch)

    def cost(self, outputs: Array, batch: Tree) -> Array:
        """Compute the sum over rows for given outputs.

        Args:
            outputs: The model's outputs.
            batch: The rows.

        Returns:
            The negative log likelihood, a scalar.
        """
        return self.likelihood.cost(outputs, batch, self.variance)

    @property
    def variance(self) -> Any:
        """The noise variance; raises ConfigError where it is learned and theta is not given."""
        if isinstance(self.noise, Learned):
            raise ConfigError(
                "likelihood: expected theta, which holds the learned noise variance. Hint: call "
                "loss.given(theta), or problem.objective(phi, theta, batch)."
            )
        return self.noise

    def given(self, theta: Tree) -> NegativeLogLikelihood:
        """Return the loss with the learned noise variance taken from theta.

        Args:
            theta: The meta-parameters.

        Returns:
            The loss with a known noise; the loss itself if the noise is not learned.

        Raises:
            ConfigError: If the noise is learned and theta does not hold it.
        """
        if not isinstance(self.noise, Learned):
            return self
        return replace(self, noise=jnp.exp(logs_in("likelihood", theta, "log_noise")))

    def parameters(self, theta: Tree) -> Tree:
        """Add the logarithm of the initial noise variance to theta, if that is learned.

        Args:
            theta: The mean, or a `Theta`.

        Returns:
            A `Theta` with `log_noise`, or theta as it is.
        """
        if not isinstance(self.noise, Learned):
            return theta
        known = Theta.of(theta)
        return known._replace(log_noise=self.noise.logs(known.mean))

    def rows(self, outputs: Array, batch: Tree) -> Array:
        """Count the rows, each counted by its weight.

        Args:
            outputs: The model's outputs, ``(n, ...)``.
            batch: The rows.

        Returns:
            The sum of the weights, a scalar.
        """
        return jnp.sum(weights_of(batch, outputs.shape[0], outputs.dtype))

    def score(self, query_loss: Callable) -> Callable:
        """Return the validation loss: the mean negative log likelihood of a query row.

        For categorical rows and those of a density it is the query loss, which is of that kind already. For
        Gaussian rows a squared error would not depend on the noise variance, so the likelihood's own mean
        takes its place.

        Args:
            query_loss: (phi, theta, batch) -> scalar.

        Returns:
            A function (phi, theta, batch) -> scalar.
        """
        if not isinstance(self.likelihood, Gaussian):
            return query_loss

        def mean(phi: Tree, theta: Tree, batch: Tree) -> Array:
            outputs = self.outputs(phi, batch)
            rows = self.rows(outputs, batch)  # the sum of weights, which may be below 1
            return self.given(theta).cost(outputs, batch) / jnp.where(rows > 0, rows, 1)

        return mean


def likelihood(loss: CompositeLoss, noise: float | Learned | None = None) -> NegativeLogLikelihood:
    """Make the negative log likelihood of a task's rows, a sum, from a loss that declares their distribution.

    With `proximal`, the strength is the precision of a Gaussian prior, and the inner solution is the maximum
    a posteriori:

    ```
    sum_i -log p(y_i | phi, x_i)  +  1/2 (phi - theta)^T P (phi - theta)
    ```

    For a *mean* loss over n rows the strength would be P / n, which differs between tasks. Do not use it with
    solvers that take a few rows at a time, such as SGD.

    Args:
        loss: A loss object with `outputs` and `likelihood`, like those of the domains. Its `cost` is not
            used.
        noise: The variance of Gaussian rows, in squared units of the targets: a number, or
            ``learned(initial, per="all")``; by default learned from 1.0.

    Returns:
        The loss, to be passed to `proximal`.

    Raises:
        ConfigError: If the loss declares no distribution or has several outputs for a row, or the noise does
            not fit it.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> from imaml.domains.regression import LinearLoss, Points
        >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=2.0), 1.0)
        >>> problem.residual(jnp.ones(1), jnp.zeros(1), Points(jnp.ones((4, 1)), jnp.zeros(4)))
        Array([3.], dtype=float32)

    References:
        MacKay (1992), A practical Bayesian framework for backpropagation networks.
    """
    declared = getattr(loss, "likelihood", None)
    if not isinstance(declared, Gaussian | Categorical | Density) or not hasattr(loss, "outputs"):
        raise ConfigError(
            "likelihood: loss: expected an object with outputs(phi, batch) and likelihood, imaml.Gaussian(), "
            f"imaml.Categorical() or imaml.Density(...), got {loss!r}. Hint: a mean loss does not say how "
            "many rows it is a mean of."
        )
    if getattr(loss, "outputs_per_row", 1) != 1:
        raise ConfigError(
            "likelihood: loss: expected one output for each row, as each is one observation, got "
            f"{loss.outputs_per_row} for each. Hint: set --domain.copies=0, if rows are images."
        )
    # Only Gaussian rows have a free variance; -log softmax(outputs)[label] has none.
    if not isinstance(declared, Gaussian):
        if noise is not None:
            raise ConfigError(
                f"likelihood: noise: expected None, as {declared.kind} rows have no noise, got {noise!r}."
            )
        return NegativeLogLikelihood(loss)
    # Gaussian rows: -log N(target; output, noise). By default theta holds log noise, learned from 1.
    if noise is None:
        noise = Learned(1.0, "all")
    if isinstance(noise, Learned):
        if noise.per != "all":
            raise ConfigError(f"likelihood: noise: expected learned(..., per='all'), got per={noise.per!r}.")
    else:
        require_number("likelihood", 0, open=True, noise=noise)
    return NegativeLogLikelihood(loss, noise)


def likelihood_of(owner: str, problem: Problem) -> NegativeLogLikelihood:
    """The loss of a problem, which must be a sum of negative log likelihoods.

    Args:
        owner: The name in the message.
        problem: The problem.

    Returns:
        The loss.

    Raises:
        StructureError: If it is no such sum, or the problem has no prior.
    """
    if problem.has_precision and isinstance(problem.loss, NegativeLogLikelihood):
        return problem.loss
    raise StructureError(
        f"{owner}: expected proximal(likelihood(loss), strength), whose strength is a prior's precision, "
        f"got a {problem.kind} problem with the loss {type(problem.loss).__name__}, which is not declared to "
        "be a sum over rows. Hint: a mean loss over n rows with a strength is like a likelihood with n times "
        "that strength as precision."
    )
