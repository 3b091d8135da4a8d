"""Regression tasks: sinusoids, and linear-Gaussian tasks where everything is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.fields import NonNegativeFloat, PositiveInt
from ..core.recipes import recipe
from ..core.tree import Tree
from ..problems.base import Task
from ..problems.likelihoods import Gaussian
from ..problems.losses import CompositeLoss
from .arrays import Field
from .base import DomainBase, Predicts, cut
from .networks import MLP
from .recipes import DomainRecipe, builder
from .scenes import Scene, compared


class Points(NamedTuple):
    """A batch of rows.

    Attributes:
        inputs: ``(n, features)``, floats.
        targets: ``(n, outputs)``, floats.
    """

    inputs: Array
    targets: Array


class SquaredError(CompositeLoss):
    """The base of half the mean squared error of a model, ``(phi, batch) -> scalar``."""

    likelihood: ClassVar[Gaussian] = Gaussian()

    def cost(self, outputs: Array, batch: Points) -> Array:
        """Return half the mean squared error of outputs, a scalar."""
        return 0.5 * jnp.mean(jnp.square(outputs - batch.targets))


@dataclass(frozen=True)
class NetworkLoss(SquaredError):
    """Half the mean squared error of a network; hashable."""

    network: MLP

    def outputs(self, phi: Tree, batch: Points) -> Array:
        """Return the network's outputs, shaped like the targets."""
        return self.network.forward(phi, batch.inputs)[0]


@dataclass(frozen=True)
class LinearLoss(SquaredError):
    """Half the mean squared error of a linear model without intercept; phi is its weights ``(features,)``."""

    def outputs(self, phi: Array, batch: Points) -> Array:
        """Return the model's outputs, shaped like the targets."""
        return batch.inputs @ phi


class RegressionDomain(DomainBase):
    """The base of domains whose rows are inputs and targets; a subclass defines `support_fields`."""

    support_type: ClassVar[type] = Points

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the mean squared error on the query rows."""
        return {"loss": 2 * self.query_loss(phi, None, task.query)}

    def query_batch(self, rows: Array) -> Points:
        """Return inputs as a batch with blank targets."""
        target = self.support_fields()["targets"]
        return Points(rows, jnp.zeros((len(rows), *target.shape), rows.dtype))  # type: ignore[arg-type]


@recipe("domain")
class SinusoidRecipe(DomainRecipe):
    """Regression of sinusoids from a few points, the field's smallest standard problem.

    Args:
        shots: Points of a support set.
        queries: Points of a query set.
        hidden: Units of each of the two hidden layers.

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> imaml.sinusoid(shots=5).sample(jax.random.key(0), "train").support.inputs.shape
        (5, 1)
    """

    shots: PositiveInt = 10
    queries: PositiveInt = 10
    hidden: PositiveInt = 40

    def build(self) -> Sinusoid:
        """Return the domain."""
        return Sinusoid(self)

    @property
    def network(self) -> MLP:
        """The network that learns these tasks: 1-40-40-1 with ReLU by default."""
        return MLP((1, self.hidden, self.hidden, 1))


sinusoid = builder(SinusoidRecipe)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Sinusoid(RegressionDomain):
    """Waves a sin(x + p) with a in [0.1, 5], p in [0, pi], x in [-5, 5] (Finn et al. 2017, section 5.1)."""

    recipe: SinusoidRecipe

    @property
    def loss(self) -> NetworkLoss:
        """Half the mean squared error of the network."""
        return NetworkLoss(self.recipe.network)

    def gather(self, indices: Array) -> Task:
        """Return the task of a random wave, drawn by a key: its first points are the support."""
        number = self.recipe.shots + self.recipe.queries
        amplitude_key, phase_key, inputs_key = jax.random.split(indices, 3)
        amplitude = jax.random.uniform(amplitude_key, (), jnp.float32, 0.1, 5.0)
        phase = jax.random.uniform(phase_key, (), jnp.float32, 0.0, np.pi)
        inputs = jax.random.uniform(inputs_key, (number, 1), jnp.float32, -5.0, 5.0)
        return Task(*cut(Points(inputs, amplitude * jnp.sin(inputs + phase)), self.recipe.shots))

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the mean squared error of the support's mean, and of its nearest point."""
        support, query = task
        mean = jnp.mean(jnp.square(query.targets - support.targets.mean()))
        nearest = support.targets[jnp.argmin(jnp.abs(query.inputs - support.inputs.T), axis=1)]
        return {"support_mean": mean, "nearest_point": jnp.mean(jnp.square(query.targets - nearest))}

    def support_fields(self) -> dict[str, Field]:
        """Return what inputs and targets are, ``(n, 1)`` or ``(n,)`` each."""
        return {name: Field((1,), column=True) for name in Points._fields}

    def decode(self, outputs: np.ndarray, x: Tree) -> np.ndarray:
        """Return outputs in the shape of the inputs."""
        return outputs.reshape(np.shape(x.inputs if isinstance(x, Points) else x))

    def examples(self, before: Tree, predictor: Predicts, task: Task) -> list[Scene]:
        """Return the curve over [-5, 5], predicted before and after adaptation."""
        line = np.linspace(-5, 5, 101, dtype=np.float32)
        support = jax.device_get(task.support)
        # The true curve is a sin(x) + b cos(x), fitted to all points by least squares.
        design = lambda x: np.column_stack([np.sin(x), np.cos(x)]).astype(np.float64)  # noqa: E731
        inputs, targets = jax.device_get(self.whole(*task))
        weights = np.linalg.lstsq(design(inputs[:, 0]), targets[:, 0], rcond=None)[0]
        lines = {
            "true": (line, design(line) @ weights),
            "before": (line, self.forward(before, jnp.asarray(line[:, None]))),
            "after": (line, predictor.predict(line)),
            "support": (support.inputs, support.targets),
        }
        return [Scene("sinusoid", lines=lines, x_name="input")]


@recipe("domain")
class LinearGaussianRecipe(DomainRecipe):
    """Linear tasks with Gaussian weights and noise.

    Args:
        features: Inputs of a row.
        shots: Rows of a support set.
        queries: Rows of a query set.
        noise: The standard deviation of the targets' noise.
        spread: The standard deviation of the tasks' weights.

    Raises:
        ConfigError: If a field is out of its range.
    """

    features: PositiveInt = 5
    shots: PositiveInt = 8
    queries: PositiveInt = 8
    noise: NonNegativeFloat = 0.1
    spread: NonNegativeFloat = 1.0

    def build(self) -> LinearGaussian:
        """Return the domain."""
        return LinearGaussian(self)


linear_gaussian = builder(LinearGaussianRecipe)


@jax.tree_util.register_static
@dataclass(frozen=True)
class LinearGaussian(RegressionDomain):
    """Linear tasks y = x.w + noise with w ~ N(1, spread^2 I), where everything has a closed form.

    With H = X^T X / n and c = X^T y / n of the support, the inner solution is (H + s I)^-1 (c + s theta), and
    the meta-gradient s (H + s I)^-1 (H_q phi* - c_q), averaged over tasks.
    """

    recipe: LinearGaussianRecipe

    convex: ClassVar[bool] = True

    @property
    def loss(self) -> LinearLoss:
        """Half the mean squared error of the linear model."""
        return LinearLoss()

    def init(self, key: Array) -> Array:
        """Return zero weights ``(features,)``."""
        return jnp.zeros(self.recipe.features)

    def gather(self, indices: Array) -> Task:
        """Return a random linear task, drawn by a key: its first rows are the support."""
        recipe = self.recipe
        weights_key, inputs_key, noise_key = jax.random.split(indices, 3)
        number = recipe.shots + recipe.queries
        weights = 1.0 + recipe.spread * jax.random.normal(weights_key, (recipe.features,))
        inputs = jax.random.normal(inputs_key, (number, recipe.features))
        targets = inputs @ weights + recipe.noise * jax.random.normal(noise_key, (number,))
        return Task(*cut(Points(inputs, targets), recipe.shots))

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the mean squared error of the task's own least squares (minimum norm)."""
        weights = jnp.linalg.lstsq(task.support.inputs, task.support.targets)[0]
        return {"least_squares": 2 * self.query_loss(weights, None, task.query)}

    def support_fields(self) -> dict[str, Field]:
        """Return what inputs ``(n, features)`` and targets ``(n,)`` are."""
        return {"inputs": Field((self.recipe.features,)), "targets": Field()}

    def forward(self, phi: Array, rows: Array, statistics: None = None) -> Array:
        """Return the predicted targets ``(n,)``."""
        return rows @ phi

    def scenes(self, before: Array, after: Array, task: Task) -> list[Scene]:
        """Return the query's predictions over its targets."""
        first, then = (self.forward(phi, task.query.inputs) for phi in (before, after))
        return [compared("predicted rows", task.query.targets, first, then, "target")]
