"""What a model's outputs say of a task's rows: negative log likelihoods, which are sums.

The convention. A model's loss object has `outputs(phi, batch)` and `cost(outputs, batch)`, as for
Gauss-Newton curvature, and `likelihood`, a `Gaussian()` or a `Categorical()`, which says what its rows are:

    kind "gaussian"      outputs (n,) or (n, k), like `batch.targets`; noise variance in their squared units
    kind "categorical"   outputs (n, ways), logits; `batch.labels` (n,), whole numbers
    batch.weights        (n,), where the batch has such a field that is not None: a row counts so many times
                         (0 for padding); else every row counts once

`likelihood(loss, noise)` makes of it the *sum* over rows, whatever `cost` does, which may be a mean: only so
is a strength the precision of a prior, the same for tasks of 2 rows and of 200. The logarithm of a learned
noise variance is `Theta.log_noise`, a scalar.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core.errors import ConfigError
from ..core.validation import require_number
from .precision import Learned, Theta


def weights_of(batch: Any, rows: int, dtype: Any) -> Array:
    """How many times each row counts, (rows,): `batch.weights`, or ones; ConfigError for another shape."""
    weights = getattr(batch, "weights", None)
    if weights is None:
        return jnp.ones(rows, dtype)
    if jnp.shape(weights) != (rows,):
        raise ConfigError(
            f"likelihood: batch.weights has shape {jnp.shape(weights)} for {rows} rows; accepted is one "
            "number a row."
        )
    return jnp.asarray(weights, dtype)


def _field(batch: Any, name: str, kind: str) -> Any:
    value = getattr(batch, name, None)
    if value is None:
        raise ConfigError(
            f"likelihood: a {kind} one needs batch.{name}; the batch is a {type(batch).__name__} without it."
        )
    return value


@dataclass(frozen=True)
class Gaussian:
    """Rows y_i ~ N(z_i, noise I) with z_i the model's outputs.

    >>> import jax.numpy as jnp
    >>> from imaml.domains.regression import Points
    >>> rows = Points(jnp.zeros((2, 1)), jnp.ones(2))
    >>> round(float(Gaussian().cost(jnp.zeros(2), rows, jnp.asarray(1.0))), 4)  # 1 + log 2 pi
    2.8379
    """

    kind: ClassVar[str] = "gaussian"

    def cost(self, outputs: Array, batch: Any, noise: Array) -> Array:
        """-sum_i w_i log p(y_i | z_i), a scalar, constants included."""
        squares = self.errors(outputs, batch)
        columns = squares.shape[1]
        weights = weights_of(batch, squares.shape[0], squares.dtype)
        return 0.5 * jnp.sum(weights * (jnp.sum(squares, 1) / noise + columns * jnp.log(2 * math.pi * noise)))

    def errors(self, outputs: Array, batch: Any) -> Array:
        """The squared errors, (n, k)."""
        targets = _field(batch, "targets", self.kind)
        if jnp.shape(targets) != jnp.shape(outputs):
            raise ConfigError(
                f"likelihood: outputs of shape {jnp.shape(outputs)} for targets of shape "
                f"{jnp.shape(targets)}; they must be alike."
            )
        return by_row(jnp.square(outputs - targets))

    def half(self, outputs: Array, batch: Any, noise: Array, vector: Array) -> Array:
        """B^T v for v (n, k), where B B^T is the cost's second derivative in the outputs."""
        weights = weights_of(batch, vector.shape[0], vector.dtype)
        return jnp.sqrt(weights)[:, None] * vector / jnp.sqrt(noise)


@dataclass(frozen=True)
class Categorical:
    """Rows whose label is c with probability softmax(z_i)_c, z_i the model's outputs.

    >>> import jax.numpy as jnp
    >>> from imaml.domains.fewshot.episodes import Labelled
    >>> rows = Labelled(jnp.zeros((3, 1)), jnp.array([0, 1, 1]))
    >>> round(float(Categorical().cost(jnp.zeros((3, 2)), rows)), 4)  # 3 log 2
    2.0794
    """

    kind: ClassVar[str] = "categorical"

    def cost(self, outputs: Array, batch: Any, noise: Any = None) -> Array:
        """-sum_i w_i log p(label_i | z_i), a scalar."""
        labels = _field(batch, "labels", self.kind)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], axis=1)[:, 0]
        return -jnp.sum(weights_of(batch, chosen.shape[0], chosen.dtype) * chosen)

    def half(self, outputs: Array, batch: Any, noise: Any, vector: Array) -> Array:
        """B^T v for v (n, k): B = sqrt(w) (diag(sqrt(p)) - p sqrt(p)^T), B B^T = w (diag(p) - p p^T)."""
        logs = jax.nn.log_softmax(outputs)
        average = jnp.sum(jnp.exp(logs) * vector, 1, keepdims=True)
        weights = weights_of(batch, vector.shape[0], vector.dtype)
        return jnp.sqrt(weights)[:, None] * jnp.exp(0.5 * logs) * (vector - average)


def by_row(outputs: Array) -> Array:
    """Outputs as (n, k): a column where they have one number a row."""
    return jnp.reshape(outputs, (outputs.shape[0], -1))


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """The negative log likelihood of a task's rows, a sum; made by `likelihood`.

    model: the loss whose `outputs` they are, with its `likelihood`. noise: the Gaussian's noise variance, a
    number, or `learned(...)`: then it is known only where theta is, see `given`.
    """

    model: Any
    noise: Any = None
    summed: ClassVar[bool] = True  # over rows, so that some of them are no estimate of all

    @property
    def likelihood(self) -> Gaussian | Categorical:
        """What the rows are."""
        return self.model.likelihood

    def outputs(self, phi: Any, batch: Any) -> Array:
        """The model's outputs."""
        return self.model.outputs(phi, batch)

    def cost(self, outputs: Array, batch: Any) -> Array:
        """The sum over rows, a scalar."""
        return self.likelihood.cost(outputs, batch, self.variance)

    def __call__(self, phi: Any, batch: Any) -> Array:
        """The sum over rows at parameters phi, a scalar."""
        return self.cost(self.outputs(phi, batch), batch)

    @property
    def variance(self) -> Any:
        """The noise variance; ConfigError where it is learned and theta is not yet given."""
        if isinstance(self.noise, Learned):
            raise ConfigError(
                "likelihood: the noise variance is learned, so the loss is known only together with theta; "
                "call loss.given(theta), or problem.objective(phi, theta, batch)."
            )
        return self.noise

    def given(self, theta: Any) -> NegativeLogLikelihood:
        """The same where theta, and so a learned noise variance, is known."""
        if not isinstance(self.noise, Learned):
            return self
        if getattr(theta, "log_noise", None) is None:
            raise ConfigError(
                "likelihood: the noise variance is learned, so theta must be a Theta with log_noise; it came "
                f"as {type(theta).__name__}. Make it with problem.parameters(mean)."
            )
        return replace(self, noise=jnp.exp(theta.log_noise))

    def parameters(self, theta: Any) -> Any:
        """Theta with the logarithm of the noise variance to begin with, where it is learned."""
        if not isinstance(self.noise, Learned):
            return theta
        whole = theta if isinstance(theta, Theta) else Theta(theta)
        return whole._replace(log_noise=self.noise.logs(whole.mean))

    def rows(self, outputs: Array, batch: Any) -> Array:
        """How many rows count, the sum of their weights."""
        return jnp.sum(weights_of(batch, outputs.shape[0], outputs.dtype))

    def score(self, query_loss: Callable) -> Callable:
        """What a phi is judged by, (phi, theta, batch) -> scalar: the mean negative log likelihood of a row.

        Where rows are Gaussian it is our own, as a squared error does not say how wide the noise is; where
        they are categorical it is the query_loss given, which is a cross-entropy already.
        """
        if isinstance(self.likelihood, Categorical):
            return query_loss

        def mean(phi: Any, theta: Any, batch: Any) -> Array:
            outputs = self.outputs(phi, batch)
            return self.given(theta).cost(outputs, batch) / jnp.maximum(self.rows(outputs, batch), 1)

        return mean


def likelihood(loss: Any, noise: float | Learned | None = None) -> NegativeLogLikelihood:
    """The negative log likelihood, a sum over a task's rows, of a loss that declares what its rows are.

    loss: with `outputs` and `likelihood`, as those of the domains; its own `cost`, which may be a mean, is
    not used. noise: the variance of Gaussian rows, in squared units of the targets, fixed or
    `learned(initial, per="all")`; a learned one of 1.0 by default. With `proximal`, the strength is then the
    precision of a Gaussian prior and the inner solution the maximum a posteriori:

    ```
    sum_i -log p(y_i | phi, x_i)  +  1/2 (phi - theta)^T P (phi - theta)
    ```

    For a *mean* loss over n rows the strength would be P / n, another one for every task. Not for solvers
    that take a few rows at a time, such as SGD.

    >>> import imaml, jax.numpy as jnp
    >>> from imaml.domains.regression import LinearLoss, Points
    >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=2.0), 1.0)
    >>> problem.residual(jnp.ones(1), jnp.zeros(1), Points(jnp.ones((4, 1)), jnp.zeros(4)))
    Array([3.], dtype=float32)
    """
    declared: Any = getattr(loss, "likelihood", None)
    if not isinstance(declared, Gaussian | Categorical) or not hasattr(loss, "outputs"):
        raise ConfigError(
            f"likelihood: {loss!r} does not declare what its rows are; accepted is a loss object with "
            "outputs(phi, batch) and likelihood = imaml.Gaussian() or imaml.Categorical(). A mean loss alone "
            "does not say how many rows it is a mean of."
        )
    if isinstance(declared, Categorical):
        if noise is not None:
            raise ConfigError(
                f"likelihood: noise={noise!r} with categorical rows, which have none; leave it out."
            )
        return NegativeLogLikelihood(loss)
    if noise is None:
        noise = Learned(1.0, "all")
    if isinstance(noise, Learned):
        if noise.per != "all":
            raise ConfigError(
                f"likelihood: noise learned per {noise.per!r}; accepted is one number, per='all'."
            )
    else:
        require_number("likelihood", 0, open=True, noise=noise)
    return NegativeLogLikelihood(loss, noise)
