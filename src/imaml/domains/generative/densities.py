"""Densities in the plane from few points, each task's by an energy: p(x) is in proportion to exp(-E(x; phi)).

The inner problem fits the energy's parameters phi to a task's points by denoising score matching (Vincent
2011, eq. 11), which needs no normaliser, and keeps them near theta:

    loss = 1/2 mean |e + sigma s(x + sigma e; phi)|^2,   s = -dE/dx,   e standard normal, drawn once

The plane is small enough to integrate exp(-E) on a grid, so that the likelihood of points that were held out,
which judges phi, is exact (judge="likelihood"; "score" takes the loss above on them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...core.fields import PositiveFloat, PositiveInt, SeveralInt
from ...core.recipes import recipe
from ...problems.base import Problem, Task
from ...problems.proximal import plain, proximal
from ..arrays import Field
from ..base import DomainBase
from ..networks import MLP
from ..recipes import DomainRecipe
from ..scenes import Scene

Family = Literal["curves", "modes"]
REACH = 3.0  # of the square that densities live in, to either side
PIECES = 128  # normal distributions along a curve
CELLS = 64  # a side, of pictures
BANDWIDTHS = 16  # tried by the kernel density estimate


@recipe("domain")
@dataclass(frozen=True)
class DensitiesRecipe(DomainRecipe):
    """The recipe of a domain of densities.

    Args:
        family: "curves", points near closed curves of two to four lobes, or "modes", four normal
            distributions.
        shots: Points of a support set.
        queries: Points of a query set.
        noises: How many times each point is blurred for score matching.
        sigma: By how much.
        spread: The standard deviation around curve or mode.
        grid: Cells a side, where likelihoods are integrated.
        hidden: Units of the energy's hidden layers.
        judge: "likelihood" or "score".

    Raises:
        ConfigError: If a field is out of its range.
    """

    family: Family = "curves"
    shots: SeveralInt = 12
    queries: PositiveInt = 64
    noises: PositiveInt = 16
    sigma: PositiveFloat = 0.15
    spread: PositiveFloat = 0.15
    grid: SeveralInt = 48
    hidden: tuple[PositiveInt, ...] = (48, 48)
    judge: Literal["likelihood", "score"] = "likelihood"

    def build(self) -> Densities:
        """The domain."""
        return Densities(self)

    @property
    def network(self) -> MLP:
        """The energy of a point, but for a bowl around the middle of the square."""
        return MLP((2, *self.hidden, 1), "silu")


class Cloud(NamedTuple):
    """Points (n, 2), and the noise (n, m, 2), standard normal, that each is blurred by m times."""

    points: Array
    noise: Array


class Held(NamedTuple):
    """A query: points with noise, and the centres (k, 2) of the true density's equal normal parts."""

    cloud: Cloud
    centres: Array


class Shape(NamedTuple):
    """A true density: its centres (k, 2), and the key of the points that are seen."""

    centres: Array
    key: Array


@dataclass(frozen=True)
class Energy:
    """E(x; phi), and the loss of score matching, (phi, batch) -> scalar; hashable."""

    network: MLP
    sigma: float

    def at(self, phi: Any, points: Array) -> Array:
        """Energies (n,) of points (n, 2)."""
        bowl = 0.5 * jnp.sum(jnp.square(points), -1) / REACH**2
        return self.network.forward(phi, points)[0][:, 0] + bowl

    def outputs(self, phi: Any, batch: Cloud) -> Array:
        """Return sigma dE/dx at blurred points, ``(n, m, 2)``."""
        blurred = (batch.points[:, None] + self.sigma * batch.noise).reshape(-1, 2)
        slopes = jax.grad(lambda x: jnp.sum(self.at(phi, x)))(blurred)
        return self.sigma * slopes.reshape(batch.noise.shape)

    def cost(self, outputs: Array, batch: Cloud) -> Array:
        """Half the squared distance of the outputs from the noise, the mean over blurred points."""
        return 0.5 * jnp.mean(jnp.sum(jnp.square(outputs - batch.noise), -1))

    def __call__(self, phi: Any, batch: Cloud) -> Array:
        """The loss of score matching of parameters `phi` on `batch`."""
        return self.cost(self.outputs(phi, batch), batch)


def logs_of_mixture(points: Array, centres: Array, spread: Any) -> Array:
    """Return the log density of equal normal distributions.

    Args:
        points: ``(n, 2)``.
        centres: ``(k, 2)``.
        spread: Their standard deviation.

    Returns:
        ``(n,)``.
    """
    apart = jnp.sum(jnp.square(points[:, None] - centres), -1) / (2 * spread**2)
    norm = jnp.log(2 * jnp.pi * spread**2 * centres.shape[0])
    return jax.nn.logsumexp(-apart, axis=1) - norm


@jax.tree_util.register_static
@dataclass(frozen=True)
class Densities(DomainBase):
    """Densities in the square [-3, 3]^2 around curves or modes, to be learned from a few points of each."""

    recipe: DensitiesRecipe

    headline: ClassVar[str] = "nll"
    higher_is_better: ClassVar[bool] = False
    support_type: ClassVar[type] = Cloud

    @property
    def energy(self) -> Energy:
        """The energy, which is the inner loss as well."""
        return Energy(self.recipe.network, self.recipe.sigma)

    def init(self, key: Array) -> Any:
        """Fresh parameters of the network."""
        return self.recipe.network.init(key)

    def problem(self, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """The loss of score matching on the support + strength/2 |phi - theta|^2; no anchor for None."""
        if strength is None:
            return plain(self.energy, adapt)
        return proximal(self.energy, strength, adapt, curvature=curvature)

    @staticmethod
    def whole(support: Cloud, query: Held) -> Cloud:
        """All points of a task as one batch, for methods that learn from it unsplit."""
        return Cloud(*(jnp.concatenate(pair) for pair in zip(support, query.cloud, strict=True)))

    def shared_loss(self, theta: Any, batch: Cloud) -> Array:
        """The loss of one energy for all tasks, a scalar."""
        return self.energy(theta, batch)

    def logs(self, phi: Any, points: Array) -> Array:
        """Return log p(x; phi), ``(n,)``, at points ``(n, 2)``; exact, as exp(-E) is summed over the grid."""
        return -self.energy.at(phi, points) - self.normaliser(phi, points.dtype)

    def normaliser(self, phi: Any, dtype: Any) -> Array:
        """The log of the integral of exp(-E) over the square, a scalar: a sum over the grid."""
        cells, width = self.recipe.grid, 2 * REACH / self.recipe.grid
        line = -REACH + width * (jnp.arange(cells, dtype=dtype) + 0.5)
        grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
        return jax.nn.logsumexp(-self.energy.at(phi, grid)) + 2 * math.log(width)

    def support_fields(self) -> dict[str, Field]:
        """Return what points ``(n, 2)`` and their noise ``(n, m, 2)`` are."""
        return {"points": Field((2,)), "noise": Field((None, 2))}

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return standard normal noise, the same for the same number of points."""
        count = len(next(iter(arrays.values())))
        return {"noise": jax.random.normal(jax.random.key(0), (count, self.recipe.noises, 2), jnp.float32)}

    def query_field(self) -> Field:
        """Return what points ``(n, 2)`` are."""
        return Field((2,))

    def asked(self, query: Held) -> Array:
        """Return the held-out points."""
        return query.cloud.points

    def statistics(self, phi: Any, support: Cloud) -> Array:
        """Return the log of the normaliser."""
        return self.normaliser(phi, support.points.dtype)

    def forward(self, phi: Any, rows: Array, statistics: Any = None) -> Array:
        """Return log densities ``(n,)`` at points ``(n, 2)``."""
        return self.logs(phi, rows) if statistics is None else -self.energy.at(phi, rows) - statistics

    def query_loss(self, phi: Any, theta: Any, batch: Held) -> Array:
        """Minus the mean log likelihood of the held-out points, nats; or their score matching's loss."""
        if self.recipe.judge == "score":
            return self.energy(phi, batch.cloud)
        return -jnp.mean(self.logs(phi, batch.cloud.points))

    def draw(self, key: Array, split: str) -> Shape:
        """One random density; each split has a stream of its own."""
        salt = ("train", "validation", "test").index(split)
        place, lobes, form, seen = jax.random.split(jax.random.fold_in(key, salt), 4)
        if self.recipe.family == "modes":
            return Shape(jax.random.uniform(place, (4, 2), jnp.float32, -2, 2), seen)
        middle = jax.random.uniform(place, (2,), jnp.float32, -0.5, 0.5)
        radius, depth, phase = jax.random.uniform(form, (3,), jnp.float32)
        angles = 2 * jnp.pi * jnp.arange(PIECES, dtype=jnp.float32) / PIECES
        waves = jnp.cos(jax.random.randint(lobes, (), 2, 5) * angles + 2 * jnp.pi * phase)
        far = (0.9 + 0.6 * radius) * (1 + 0.4 * depth * waves)
        return Shape(middle + far[:, None] * jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1), seen)

    def gather(self, indices: Shape) -> Task:
        """The task of a density: points to learn from, and others."""
        recipe = self.recipe
        which, around, noise = jax.random.split(indices.key, 3)
        count = recipe.shots + recipe.queries
        parts = jax.random.randint(which, (count,), 0, indices.centres.shape[0])
        points = indices.centres[parts] + recipe.spread * jax.random.normal(around, (count, 2), jnp.float32)
        cloud = Cloud(points, jax.random.normal(noise, (count, recipe.noises, 2), jnp.float32))
        support, query = (
            Cloud(*(leaf[cut] for leaf in cloud)) for cut in (slice(recipe.shots), slice(recipe.shots, None))
        )
        return Task(support, Held(query, indices.centres))

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """Minus the mean log likelihood of held-out points, nats, and how far it is above the truth's."""
        points, centres = task.query.cloud.points, task.query.centres
        found = -jnp.mean(self.logs(phi, points))
        return {
            "nll": found,
            "excess": found + jnp.mean(logs_of_mixture(points, centres, self.recipe.spread)),
        }

    def scenes(self, before: Any, after: Any, task: Task) -> list[Scene]:
        """Densities over the square: the true one, the points, and the energy's before and after."""
        line = np.linspace(-REACH, REACH, CELLS, dtype=np.float32)
        grid = jnp.stack(jnp.meshgrid(line, line[::-1]), -1).reshape(-1, 2)
        logs = {"true": logs_of_mixture(grid, task.query.centres, self.recipe.spread)}
        logs |= {"before": self.logs(before, grid), "after": self.logs(after, grid)}
        most = float(jnp.exp(logs["true"].max()))
        images = {
            name: np.clip(np.exp(np.asarray(each)) / most, 0, 1).reshape(CELLS, CELLS)
            for name, each in logs.items()
        }
        seen = np.zeros((CELLS, CELLS))
        places = np.rint((np.asarray(task.support.points) + REACH) * (CELLS - 1) / (2 * REACH)).astype(int)
        inside = places[np.all((places > 0) & (places < CELLS - 1), axis=1)]
        for column, row in inside:
            seen[CELLS - 1 - row - 1 : CELLS - row + 1, column - 1 : column + 2] = 1
        shown = {"true": images["true"], "seen": seen, "before": images["before"], "after": images["after"]}
        gone = " to ".join(f"{float(self.metrics(phi, task)['nll']):.2f}" for phi in (before, after))
        return [Scene("a density", f"minus mean log likelihood of other points: {gone}", images=shown)]

    def measure(self, phi: Any, theta: Any, batch: Held) -> dict[str, Array]:
        """Minus the mean log likelihood; for a method's `measure`."""
        return {"nll": -jnp.mean(self.logs(phi, batch.cloud.points))}

    def baselines(self, task: Task) -> dict[str, Array]:
        """The nll of a normal distribution, a kernel density estimate, and the true density.

        The estimate's bandwidth is that of the most likely leave-one-out predictions of the support.
        """
        seen, points = task.support.points, task.query.cloud.points
        count = seen.shape[0]
        middle = seen.mean(0)
        spread = (seen - middle).T @ (seen - middle) / count + 1e-3 * jnp.eye(2, dtype=seen.dtype)
        away = points - middle
        far = jnp.sum(away * jnp.linalg.solve(spread, away.T).T, -1)
        normal = 0.5 * (far + jnp.linalg.slogdet(2 * jnp.pi * spread)[1])
        others = jnp.array([[j for j in range(count) if j != i] for i in range(count)])

        def left_out(width: Array) -> Array:
            each = jax.vmap(lambda x, rest: logs_of_mixture(x[None], seen[rest], width)[0])
            return jnp.mean(each(seen, others))

        widths = jnp.geomspace(0.1, 2.0, BANDWIDTHS, dtype=seen.dtype)
        width = widths[jnp.argmax(lax.map(left_out, widths))]
        return {
            "normal": jnp.mean(normal),
            "kernels": -jnp.mean(logs_of_mixture(points, seen, width)),
            "true": -jnp.mean(logs_of_mixture(points, task.query.centres, self.recipe.spread)),
        }


def densities(family: Family = "curves", **options: Any) -> Densities:
    """Return densities of one family in the plane.

    Args:
        family: "curves" or "modes".
        **options: The other fields of `DensitiesRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.densities("modes", shots=5)
        >>> domain.sample(jax.random.key(0), "train").support.points.shape
        (5, 2)
    """
    return DensitiesRecipe(family, **options).build()
