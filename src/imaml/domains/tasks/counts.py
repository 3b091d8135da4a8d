"""Losses of counts: Poisson and negative binomial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.recipes import recipe
from ...problems.likelihoods import Density
from .layout import Rows
from .losses import RowLoss

SHIFT = 8  # from where on Stirling's series is taken
LOG_MOST = 20.0  # of the mean of a count, half a thousand million: draws are whole numbers of 32 bits


class Counts(RowLoss):
    """The base of losses of counts, whose first output is the logarithm of the mean."""

    targets: ClassVar[Literal["numbers", "counts", "classes"]] = "counts"
    log_density: ClassVar[Callable[[Array, Array], Array]]

    @property
    def likelihood(self) -> Density:
        """Rows with that log density."""
        return Density(type(self).log_density)

    def cost(self, outputs: Array, batch: Rows) -> Array:
        """Return the negative log probability of each row."""
        return -jax.vmap(type(self).log_density)(outputs, batch.targets)

    def mean(self, outputs: np.ndarray) -> np.ndarray:
        """Return the expected counts."""
        return np.exp(np.minimum(outputs[:, :1].astype(np.float64), LOG_MOST))


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


def negative_binomial_log_density(outputs: Array, target: Array) -> Array:
    """Return log p(y) of mean m = exp(z) and size r = exp(-a), a the logarithm of the dispersion.

    ```
    log G(y + r) - log G(r) - log y!  +  r log(r / (r + m))  +  y log(m / (r + m))
    ```

    With L = log(1 + m / r), the last two terms are -r L + y (z + a - L). In the limit of r to infinity it is
    the Poisson distribution.

    Args:
        outputs: ``(z, a)``.
        target: y, ``(1,)``.

    Returns:
        A scalar.

    References:
        Cameron, Trivedi (2013), Regression analysis of count data, section 3.3.1 (NB2).
    """
    z, y = outputs[0], target[0]
    a = jnp.clip(outputs[1], -30, 30)  # further out exp(-a) would overflow, and nothing changes
    r = jnp.exp(-a)
    total = jax.nn.softplus(z + a)
    return _rising(y, r) - jax.lax.lgamma(y + 1) + y * (z - total) - r * total


def _rising(y: Array, r: Array) -> Array:
    """Log G(y + r) - log G(r) - y log r, without differences of large logarithms.

    By log G(x) = log G(x + 8) - sum_j<8 log(x + j), and Stirling's series for G(x + 8). With R = r + 8 and
    s(x) = 1 / (12 x) - 1 / (360 x^3) + 1 / (1260 x^5), whose error is below 1e-9 from 8 on, it is

        (y + R - 1/2) log(1 + y / R) - y + s(y + R) - s(R)  +  y log(R / r)  -  sum_j<8 log(1 + y / (r + j))

    Unlike the gamma function's, all derivatives are elementary and quick to compile.
    """
    shifted = r + SHIFT
    rest = lambda x: (1 / 12 - (1 / 360 - 1 / (1260 * x * x)) / (x * x)) / x  # noqa: E731
    series = (y + shifted - 0.5) * jnp.log1p(y / shifted) - y + rest(y + shifted) - rest(shifted)
    return series + y * jnp.log1p(SHIFT / r) - jnp.sum(jnp.log1p(y / (r + jnp.arange(SHIFT, dtype=r.dtype))))


@recipe("loss")
@dataclass(frozen=True)
class Poisson(Counts):
    """Counts with mean exp(output + offset): the offset is the logarithm of the exposure."""

    kind: ClassVar[str] = "poisson"
    log_density: ClassVar[Callable[[Array, Array], Array]] = staticmethod(poisson_log_density)

    def draw(self, key: Array, outputs: Array) -> Array:
        """Draw counts."""
        return _poisson(key, outputs[:, 0])


@recipe("loss")
@dataclass(frozen=True)
class NegativeBinomial(Counts):
    """Counts with mean m = exp(first output + offset) and variance m + m^2 exp(second output).

    The second output is the logarithm of the dispersion.
    """

    kind: ClassVar[str] = "negative_binomial"
    log_density: ClassVar[Callable[[Array, Array], Array]] = staticmethod(negative_binomial_log_density)

    def outputs_for(self, wanted: int) -> int:
        """Return 2: the logarithms of mean and dispersion."""
        return 2

    def draw(self, key: Array, outputs: Array) -> Array:
        """Draw counts: Poisson with a gamma-distributed mean."""
        first, second = jax.random.split(key)
        size = jnp.exp(-jnp.clip(outputs[:, 1], -15, 15))
        # The logarithm of a gamma variable: of a small size the variable itself is 0 in float32.
        return _poisson(second, outputs[:, 0] + jax.random.loggamma(first, size) - jnp.log(size))


def _poisson(key: Array, logs: Array) -> Array:
    """Counts of means exp(logs); means are below what a whole number of 32 bits can hold."""
    return jax.random.poisson(key, jnp.exp(jnp.minimum(logs, LOG_MOST))).astype(logs.dtype)
