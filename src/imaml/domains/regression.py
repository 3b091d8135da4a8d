"""Regression tasks: sinusoids, and linear-Gaussian tasks where everything is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.errors import ConfigError, DataError
from ..core.recipes import recipe
from ..core.validation import require_whole
from ..problems.base import Problem, Task
from ..problems.likelihoods import Gaussian
from ..problems.losses import joined
from ..problems.proximal import plain, proximal
from .arrays import Field, given
from .base import DomainBase, Encoded, Predicts
from .networks import MLP
from .recipes import DomainRecipe
from .scenes import Example, Scene, compared


class Points(NamedTuple):
    """A batch of rows.

    Attributes:
        inputs: ``(n, features)``, floats.
        targets: ``(n, outputs)``, floats.
    """

    inputs: Array
    targets: Array

    def task(self, shots: int) -> Task:
        """The task whose support is the first `shots` rows, and whose query is the rest."""
        support, query = (Points(*(part[cut] for part in self)) for cut in (slice(shots), slice(shots, None)))
        return Task(support, query)


def _half_mean_square(outputs: Array, batch: Points) -> Array:
    return 0.5 * jnp.mean(jnp.square(outputs - batch.targets))


@dataclass(frozen=True)
class NetworkLoss:
    """Half the mean squared error of a network, (phi, batch) -> scalar; hashable."""

    network: MLP
    likelihood: ClassVar[Gaussian] = Gaussian()

    def outputs(self, phi: Any, batch: Points) -> Array:
        """The network's outputs, shaped like the targets."""
        return self.network.forward(phi, batch.inputs)[0]

    def cost(self, outputs: Array, batch: Points) -> Array:
        """The loss of outputs, a scalar."""
        return _half_mean_square(outputs, batch)

    def __call__(self, phi: Any, batch: Points) -> Array:
        """The loss of parameters `phi` on `batch`."""
        return self.cost(self.outputs(phi, batch), batch)


@recipe("domain")
@dataclass(frozen=True)
class SinusoidRecipe(DomainRecipe):
    """The recipe of a sinusoid domain.

    Args:
        shots: Points of a support set.
        queries: Points of a query set.
        hidden: Units of each of the two hidden layers.

    Raises:
        ConfigError: If a field is out of its range.
    """

    shots: int = 10
    queries: int = 10
    hidden: int = 40

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("domain", 1, shots=self.shots, queries=self.queries, hidden=self.hidden)

    def build(self) -> Sinusoid:
        """The domain."""
        return Sinusoid(self)


class Wave(NamedTuple):
    """The indices of a sinusoid task.

    Attributes:
        amplitude: A scalar.
        phase: A scalar.
        inputs: Where it is seen, ``(shots + queries,)``.
    """

    amplitude: Array
    phase: Array
    inputs: Array


@jax.tree_util.register_static
@dataclass(frozen=True)
class Sinusoid(DomainBase):
    """Waves a sin(x + p) with a in [0.1, 5], p in [0, pi], x in [-5, 5] (Finn et al. 2017, section 5.1)."""

    recipe: SinusoidRecipe

    headline: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    support_type: ClassVar[type] = Points

    @property
    def network(self) -> MLP:
        """The network that learns these tasks: 1-40-40-1 with ReLU by default."""
        return MLP((1, self.recipe.hidden, self.recipe.hidden, 1))

    def init(self, key: Array) -> Any:
        """Fresh parameters of the network."""
        return self.network.init(key)

    def problem(self, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """Half the mean squared error on the support + strength/2 |phi - theta|^2; no anchor for None."""
        loss = NetworkLoss(self.network)
        if strength is None:
            return plain(loss, adapt)
        return proximal(loss, strength, adapt, curvature=curvature)

    @staticmethod
    def whole(support: Points, query: Points) -> Points:
        """All of a task's points as one batch, for methods that learn from it unsplit."""
        return joined(support, query)

    def shared_loss(self, theta: Any, batch: Points) -> Array:
        """Half the mean squared error of one function for all tasks, a scalar."""
        return NetworkLoss(self.network)(theta, batch)

    def query_loss(self, phi: Any, theta: Any, batch: Points) -> Array:
        """Half the mean squared error on the query points, a scalar."""
        return NetworkLoss(self.network)(phi, batch)

    def draw(self, key: Array, split: str) -> Wave:
        """The numbers of one random wave; each split has a stream of its own."""
        salt = ("train", "validation", "test").index(split)
        a, p, x = jax.random.split(jax.random.fold_in(key, salt), 3)
        number = self.recipe.shots + self.recipe.queries
        return Wave(
            jax.random.uniform(a, (), jnp.float32, 0.1, 5.0),
            jax.random.uniform(p, (), jnp.float32, 0.0, np.pi),
            jax.random.uniform(x, (number,), jnp.float32, -5.0, 5.0),
        )

    def gather(self, indices: Wave) -> Task:
        """The task of a wave: its first points are the support."""
        targets = indices.amplitude * jnp.sin(indices.inputs + indices.phase)
        points = Points(indices.inputs[:, None], targets[:, None])
        return points.task(self.recipe.shots)

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """The mean squared error on the query points."""
        return {"loss": 2 * self.query_loss(phi, None, task.query)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """The mean squared error of the support's mean, and of its nearest point."""
        support, query = task
        mean = jnp.mean(jnp.square(query.targets - support.targets.mean()))
        nearest = support.targets[jnp.argmin(jnp.abs(query.inputs - support.inputs.T), axis=1)]
        return {"support_mean": mean, "nearest_point": jnp.mean(jnp.square(query.targets - nearest))}

    def encode(self, x: Any, y: Any = None) -> Encoded:
        """Return points as a batch.

        Args:
            x: Inputs ``(n,)`` or ``(n, 1)``; or a batch of `Points`; or a mapping to ``inputs`` and
                ``targets``.
            y: As many targets.

        Returns:
            The batch.

        Raises:
            DataError: If inputs or targets are missing, do not fit together, or are no finite numbers.
        """
        arrays = given(x, y, Points._fields)
        inputs, targets = (_column(arrays.get(name), name) for name in Points._fields)
        if inputs.size != targets.size:
            raise DataError(
                f"adapt: expected as many targets as inputs, got {targets.size} and {inputs.size}."
            )
        return Encoded(Points(jnp.asarray(inputs.reshape(-1, 1)), jnp.asarray(targets.reshape(-1, 1))))

    def encode_query(self, x: Any) -> np.ndarray:
        """Return inputs ``(n,)`` or ``(n, 1)`` as ``(n, 1)``."""
        return _column(x.inputs if isinstance(x, Points) else x, "x").reshape(-1, 1)

    def forward(self, phi: Any, rows: Array, statistics: Any = None) -> Array:
        """Return the network's outputs ``(n, 1)``."""
        return self.network.forward(phi, rows, statistics)[0]

    def decode(self, outputs: np.ndarray, x: Any) -> np.ndarray:
        """Return outputs in the shape of the inputs."""
        return outputs.reshape(np.shape(x.inputs if isinstance(x, Points) else x))

    def query_batch(self, rows: Array) -> Points:
        """Return inputs as a batch with blank targets."""
        return Points(rows, jnp.zeros_like(rows))

    def examples(self, before: Any, predictor: Predicts, task: Task) -> list[Example]:
        """Return the curve over [-5, 5], predicted before and after adaptation."""
        line = np.linspace(-5, 5, 101, dtype=np.float32)
        support, query = jax.device_get(task)
        return [
            Example(
                support=support.inputs,
                support_labels=support.targets,
                query=line,
                query_labels=_through(
                    np.concatenate([support.inputs, query.inputs]),
                    np.concatenate([support.targets, query.targets]),
                    line,
                ),
                predicted=predictor.predict(line),
                before=np.asarray(self.network.forward(before, jnp.asarray(line[:, None]))[0])[:, 0],
            )
        ]


def _column(values: Any, name: str) -> np.ndarray:
    """Values as float32 (n,) or (n, 1); DataError for anything else."""
    try:
        shape = (1,) if np.ndim(values) == 2 else ()
    except ValueError:  # rows of different lengths, which `check` refuses
        shape = ()
    return Field(shape).check(values, name)


def _through(inputs: np.ndarray, targets: np.ndarray, line: np.ndarray) -> np.ndarray:
    """The sinusoid a sin(x) + b cos(x) through points (n, 1), by least squares, at `line`."""
    design = lambda x: np.column_stack([np.sin(x), np.cos(x)]).astype(np.float64)  # noqa: E731
    return design(line) @ np.linalg.lstsq(design(inputs[:, 0]), targets[:, 0], rcond=None)[0]


def sinusoid(shots: int = 10, queries: int = 10, hidden: int = 40) -> Sinusoid:
    """Return sinusoid regression from `shots` points, the field's smallest standard problem.

    Args:
        shots: Points of a support set.
        queries: Points of a query set.
        hidden: Units of each of the two hidden layers.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> imaml.sinusoid(shots=5).sample(jax.random.key(0), "train").support.inputs.shape
        (5, 1)
    """
    return SinusoidRecipe(shots, queries, hidden).build()


@recipe("domain")
@dataclass(frozen=True)
class LinearGaussianRecipe(DomainRecipe):
    """The recipe of a linear-Gaussian domain.

    Args:
        features: Inputs of a row.
        shots: Rows of a support set.
        queries: Rows of a query set.
        noise: The standard deviation of the targets' noise.
        spread: The standard deviation of the tasks' weights.

    Raises:
        ConfigError: If a field is out of its range.
    """

    features: int = 5
    shots: int = 8
    queries: int = 8
    noise: float = 0.1
    spread: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("domain", 1, features=self.features, shots=self.shots, queries=self.queries)
        for name in ("noise", "spread"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < np.inf:
                raise ConfigError(f"domain: {name}={value!r}; accepted is a finite number of at least 0.")

    def build(self) -> LinearGaussian:
        """The domain."""
        return LinearGaussian(self)


class Line(NamedTuple):
    """The indices of a linear task.

    Attributes:
        weights: ``(features,)``.
        inputs: ``(n, features)``.
        noise: ``(n,)``.
    """

    weights: Array
    inputs: Array
    noise: Array


@dataclass(frozen=True)
class LinearLoss:
    """Half the mean squared error of a linear model without intercept, (phi, batch) -> scalar."""

    likelihood: ClassVar[Gaussian] = Gaussian()

    def outputs(self, phi: Array, batch: Points) -> Array:
        """The model's outputs, shaped like the targets."""
        return batch.inputs @ phi

    def cost(self, outputs: Array, batch: Points) -> Array:
        """The loss of outputs, a scalar."""
        return _half_mean_square(outputs, batch)

    def __call__(self, phi: Array, batch: Points) -> Array:
        """The loss of weights `phi` (features,) on `batch`."""
        return self.cost(self.outputs(phi, batch), batch)


@jax.tree_util.register_static
@dataclass(frozen=True)
class LinearGaussian(DomainBase):
    """Linear tasks y = x.w + noise with w ~ N(1, spread^2 I): the oracle, everything in closed form.

    With H = X^T X / n and c = X^T y / n of the support, the inner solution is (H + s I)^-1 (c + s theta), and
    the meta-gradient s (H + s I)^-1 (H_q phi* - c_q), averaged over tasks.
    """

    recipe: LinearGaussianRecipe

    headline: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    support_type: ClassVar[type] = Points

    def init(self, key: Array) -> Array:
        """Zero weights (features,)."""
        return jnp.zeros(self.recipe.features)

    def problem(self, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """Half the mean squared error on the support + strength/2 |phi - theta|^2; no anchor for None."""
        loss = LinearLoss()
        if strength is None:
            return plain(loss, adapt)
        return proximal(loss, strength, adapt, curvature=curvature, convex=True)

    @staticmethod
    def whole(support: Points, query: Points) -> Points:
        """All of a task's points as one batch, for methods that learn from it unsplit."""
        return joined(support, query)

    def shared_loss(self, theta: Any, batch: Points) -> Array:
        """Half the mean squared error of one function for all tasks, a scalar."""
        return LinearLoss()(theta, batch)

    def query_loss(self, phi: Array, theta: Any, batch: Points) -> Array:
        """Half the mean squared error on the query rows, a scalar."""
        return LinearLoss()(phi, batch)

    def draw(self, key: Array, split: str) -> Line:
        """The numbers of one random task; each split has a stream of its own."""
        recipe = self.recipe
        salt = ("train", "validation", "test").index(split)
        w, x, e = jax.random.split(jax.random.fold_in(key, salt), 3)
        number = recipe.shots + recipe.queries
        return Line(
            1.0 + recipe.spread * jax.random.normal(w, (recipe.features,)),
            jax.random.normal(x, (number, recipe.features)),
            recipe.noise * jax.random.normal(e, (number,)),
        )

    def gather(self, indices: Line) -> Task:
        """The task of a line: its first rows are the support."""
        points = Points(indices.inputs, indices.inputs @ indices.weights + indices.noise)
        return points.task(self.recipe.shots)

    def metrics(self, phi: Array, task: Task) -> dict[str, Array]:
        """The mean squared error on the query rows."""
        return {"loss": 2 * self.query_loss(phi, None, task.query)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """The mean squared error of the task's own least squares (minimum norm)."""
        weights = jnp.linalg.lstsq(task.support.inputs, task.support.targets)[0]
        return {"least_squares": 2 * self.query_loss(weights, None, task.query)}

    def support_fields(self) -> dict[str, Field]:
        """Return what inputs ``(n, features)`` and targets ``(n,)`` are."""
        return {"inputs": Field((self.recipe.features,)), "targets": Field()}

    def query_field(self) -> Field:
        """Return what inputs ``(n, features)`` are."""
        return Field((self.recipe.features,))

    def forward(self, phi: Array, rows: Array, statistics: Any = None) -> Array:
        """Return the predicted targets ``(n,)``."""
        return rows @ phi

    def query_batch(self, rows: Array) -> Points:
        """Return inputs as a batch with blank targets."""
        return Points(rows, jnp.zeros(len(rows), rows.dtype))

    def scenes(self, before: Array, after: Array, task: Task) -> list[Scene]:
        """Return the query's predictions over its targets."""
        first, then = (self.forward(phi, task.query.inputs) for phi in (before, after))
        return [compared("predicted rows", task.query.targets, first, then, "target")]

    def solution(self, theta: Array, support: Points, strength: Any) -> Array:
        """Return the inner solution in closed form.

        Args:
            theta: Meta-parameters ``(features,)``.
            support: The support rows.
            strength: The regularisation strength.

        Returns:
            Weights ``(features,)``.
        """
        rows = support.targets.shape[0]
        matrix = support.inputs.T @ support.inputs / rows + strength * jnp.eye(theta.shape[0])
        return jnp.linalg.solve(matrix, support.inputs.T @ support.targets / rows + strength * theta)

    def meta_gradient(self, theta: Array, task: Task, strength: Any) -> Array:
        """Return one task's meta-gradient in closed form; that of several tasks is the mean.

        Args:
            theta: Meta-parameters ``(features,)``.
            task: The task.
            strength: The regularisation strength.

        Returns:
            The meta-gradient ``(features,)``.
        """
        support, query = task
        rows = support.targets.shape[0]
        matrix = support.inputs.T @ support.inputs / rows + strength * jnp.eye(theta.shape[0])
        error = query.inputs @ self.solution(theta, support, strength) - query.targets
        return strength * jnp.linalg.solve(matrix, query.inputs.T @ error / query.targets.shape[0])


def linear_gaussian(features: int = 5, shots: int = 8, **options: Any) -> LinearGaussian:
    """Return linear tasks with Gaussian weights and noise.

    Args:
        features: Inputs of a row.
        shots: Rows of a support set.
        **options: The other fields of `LinearGaussianRecipe`.

    Returns:
        The domain.
    """
    return LinearGaussianRecipe(features, shots, **options).build()
