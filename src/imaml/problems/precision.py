"""The anchor as a Gaussian prior: its mean theta and its precision P, fixed or learned.

    anchored term  1/2 (phi - theta)^T P (phi - theta)        P positive definite by construction

    per                    P                              in Theta.log_strength
    "all"                  s I                            log s
    "leaf", "parameter"    diag(s)                        log s, a tree
    "dense"                L L^T, L lower triangular      a matrix: L's, with the logarithms of its diagonal
    "low-rank"             diag(s) + W W^T                `Spread(log_diagonal, factor)`

Strengths are precisions where the loss is a sum of negative log likelihoods; see `likelihoods` for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import cho_factor, cho_solve

from ..core import tree
from ..core.errors import ConfigError
from ..core.fields import Checked, PositiveFloat, PositiveInt
from ..core.tree import Selection, Tree
from .matrices import Factored, LowRank, Precision, Strengths

Per = Literal["all", "leaf", "parameter", "dense", "low-rank"]
PER: tuple[Per, ...] = get_args(Per)
DENSE_MOST = 2_000  # parameters that a dense precision is learned for: 32 MB in float64


class Theta(NamedTuple):
    """Meta-parameters with more learned quantities than the starting point of tasks.

    A learned quantity is stored as the logarithm of its values; one that is not learned is None. With
    ``per="all"`` that is a scalar, with ``per="leaf"`` a tree of one scalar for each adapted leaf, and with
    ``per="parameter"`` a tree shaped like the adapted parameters.

    Attributes:
        mean: A tree shaped like phi, which tasks start at or are anchored to.
        log_strength: Of the regularisation strength; with ``per="dense"`` a matrix ``(n, n)`` over the n
            adapted parameters, with ``per="low-rank"`` a `Spread`.
        log_rate: Of the inner learning rate.
        log_noise: Of the noise variance, a scalar.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, batch: jnp.sum(phi**2), imaml.learned(1.0, per="all"))
        >>> float(problem.parameters(jnp.zeros(2)).log_strength)
        0.0
    """

    mean: Tree
    log_strength: Tree = None
    log_rate: Tree = None
    log_noise: Tree = None

    @classmethod
    def of(cls, theta: Tree) -> Theta:
        """Return meta-parameters as a `Theta`; parameters that are not a `Theta` become its mean.

        Args:
            theta: Meta-parameters.

        Returns:
            ``theta`` itself if it is a `Theta`, otherwise one with ``theta`` as its mean.
        """
        return theta if isinstance(theta, Theta) else cls(theta)


def logs_in(owner: str, theta: Tree, name: str, maker: str = "problem.parameters(mean)") -> Tree:
    """Return the logarithms of a learned quantity from theta.

    Args:
        owner: Who needs them, for the message.
        theta: The meta-parameters.
        name: The field of `Theta`, such as "log_strength".
        maker: What makes such a theta, for the message.

    Returns:
        The logarithms.

    Raises:
        ConfigError: If theta does not hold them.
    """
    logs = getattr(theta, name, None)
    if logs is None:
        raise ConfigError(
            f"{owner}: theta: expected a Theta with {name}, which is learned, got {type(theta).__name__}. "
            f"Hint: make it with {maker}."
        )
    return logs


class Spread(NamedTuple):
    """A learned precision of low rank.

    Attributes:
        log_diagonal: log s, ``(n,)``.
        factor: W, ``(n, rank)``.
    """

    log_diagonal: Array
    factor: Array


@dataclass(frozen=True)
class Learned(Checked):
    """A strength, an inner learning rate or a noise variance that is learned with theta; made by `learned`.

    Attributes:
        initial: The initial value.
        per: How many numbers there are; see `learned`.
        rank: The rank, for ``per="low-rank"``.
    """

    initial: PositiveFloat
    per: Per
    rank: PositiveInt = 5
    owner: ClassVar[str] = "learned"

    @property
    def diagonal(self) -> bool:
        """Whether there is one number for every parameter, and no matrix."""
        return self.per in ("all", "leaf", "parameter")

    def logs(self, adapted: Tree) -> Tree:
        """Return the initial logarithms.

        Args:
            adapted: The adapted parameters.

        Returns:
            A scalar, a tree, a matrix or a `Spread`; see `Theta`.

        Raises:
            ConfigError: If ``per="dense"`` and there are too many parameters.
        """
        value = float(np.log(self.initial))
        if self.per == "all":
            return jnp.asarray(value, jnp.result_type(*jax.tree.leaves(adapted)))
        if not self.diagonal:
            return self._matrix(value, tree.ravel(adapted)[0])
        shape = (lambda _: ()) if self.per == "leaf" else jnp.shape
        return jax.tree.map(lambda leaf: jnp.full(shape(leaf), value, jnp.result_type(leaf)), adapted)

    def _matrix(self, value: float, flat: Array) -> Array | Spread:
        """The initial logarithms of a precision that is a matrix: `initial` times I, or nearly."""
        if self.per == "dense":
            if flat.size > DENSE_MOST:
                raise ConfigError(
                    f"learned: per='dense': expected at most {DENSE_MOST} parameters, got {flat.size}. Hint: "
                    "use per='low-rank' or 'parameter', or adapt fewer leaves."
                )
            return jnp.diag(jnp.full(flat.size, value / 2, flat.dtype))
        # W = 0 would be a saddle, as the derivative in W is 2 (d/dP) W: it begins with a hundredth of S.
        rank = min(self.rank, flat.size)
        start = jax.random.normal(jax.random.key(0), (flat.size, rank), flat.dtype)
        return Spread(jnp.full(flat.size, value, flat.dtype), (0.01 * self.initial / rank) ** 0.5 * start)

    def values(self, logs: Tree, adapted: Tree) -> Tree:
        """Return the learned values.

        Args:
            logs: Their logarithms, a scalar or a tree.
            adapted: The adapted parameters.

        Returns:
            A tree like `adapted` of arrays that broadcast to its leaves.
        """
        if self.per == "all":
            return jax.tree.map(lambda _: jnp.exp(logs), adapted)
        return jax.tree.map(lambda _, log: jnp.exp(log), adapted, logs)

    def precision(self, logs: Tree, adapted: Tree) -> Precision:
        """Return the precision for given logarithms.

        Args:
            logs: The logarithms; see `Theta`.
            adapted: The adapted parameters.

        Returns:
            The precision.
        """
        if self.per == "dense":
            return Factored(jnp.tril(logs, -1) + jnp.diag(jnp.exp(jnp.diagonal(logs))))
        if self.per == "low-rank":
            return LowRank(jnp.exp(logs.log_diagonal), logs.factor)
        return Strengths(self.values(logs, adapted), adapted)

    def fitted(self, second: Array, adapted: Tree) -> Tree:
        """Fit the logarithms of the precision to second moments about the mean, by maximum likelihood.

        ```
        "all"  n / trace        "leaf"  its n / its trace        "parameter"  1 / diagonal        "dense"  ^-1
        ```

        These are the maxima of log |P| - tr(P second). There is no closed form for "low-rank".

        Args:
            second: E (phi - mean)(phi - mean)^T, ``(n, n)``; its diagonal ``(n,)`` suffices where `diagonal`.
            adapted: The adapted parameters.

        Returns:
            The logarithms; see `Theta`.
        """
        if self.per == "dense":
            identity = jnp.eye(second.shape[0], dtype=second.dtype)
            inverse = cho_solve(cho_factor((second + second.T) / 2), identity)
            lower = jnp.linalg.cholesky((inverse + inverse.T) / 2)
            return jnp.tril(lower, -1) + jnp.diag(jnp.log(jnp.diagonal(lower)))
        if self.per == "all":
            return -jnp.log(jnp.mean(second))
        spread = tree.ravel(adapted)[1](second)
        average = jnp.mean if self.per == "leaf" else lambda leaf: leaf
        return jax.tree.map(lambda leaf: -jnp.log(average(leaf)), spread)


def learned(initial: float, per: str = "leaf", rank: int = 5) -> Learned:
    """Declare a number that is learned with theta, as its logarithm, so that it stays positive.

    It is a strength of `proximal`, the learning rate of `GradientDescent`, or (``per="all"``) the noise
    variance of a `likelihood`. Theta is then a `Theta`, which `MetaGradient.init` makes, or
    `Problem.parameters(mean)` for a strength.

    Args:
        initial: The initial value, positive.
        per: "all" (one number), "leaf" (one for each leaf) or "parameter". Of a strength also "dense", any
            positive definite matrix over the adapted parameters (at most 2,000), or "low-rank", a diagonal
            plus a matrix of rank `rank`: the precision P of 1/2 (phi - theta)^T P (phi - theta).
        rank: The rank, for ``per="low-rank"``.

    Returns:
        The declaration, to be passed instead of a number.

    Raises:
        ConfigError: If an argument is not valid.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = imaml.proximal(lambda phi, batch: jnp.sum(phi**2), imaml.learned(0.5, per="dense"))
        >>> problem.parameters(jnp.zeros(2)).log_strength.shape
        (2, 2)
    """
    number = isinstance(initial, (int, np.number)) and not isinstance(initial, bool)
    return Learned(float(initial) if number else initial, cast(Per, per), rank)


def spread_over(strength: Tree, phi: Tree, adapt: Selection) -> Tree:
    """Spread a strength over a tree like phi.

    Args:
        strength: One number, or a tree with one number for each leaf or each parameter.
        phi: The adapted parameters.
        adapt: Which leaves are adapted.

    Returns:
        A tree like `phi` of arrays that broadcast to its leaves.

    Raises:
        ConfigError: If the strength fits neither the leaves of phi nor their shapes.
    """
    found, structure = strength, jax.tree.structure(phi)
    if jax.tree.structure(strength) == jax.tree.structure(0) and jnp.ndim(strength) == 0:
        found = jax.tree.map(lambda _: strength, phi)
    elif jax.tree.structure(strength) != structure and adapt.choice is not None:
        found = adapt.split(strength)[0]
    if jax.tree.structure(found) != structure:
        raise ConfigError(
            "strength: expected one number, or a tree like the adapted parameters with one number for each "
            f"leaf or each parameter, {tree.shapes(phi)}, got {tree.shapes(found)}."
        )

    def fit(value: Tree, leaf: Tree) -> Array:
        if jnp.shape(value) not in ((), jnp.shape(leaf)):
            raise ConfigError(
                "strength: expected for each leaf one number, or an array of the parameter's shape, "
                f"{jnp.shape(leaf)}, got shape {jnp.shape(value)}."
            )
        return jnp.asarray(value, jnp.result_type(leaf))

    return jax.tree.map(fit, found, phi)
