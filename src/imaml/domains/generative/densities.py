"""Densities in the plane, each learned from a few points as an energy, p(x) ~ exp(-E(x; phi)).

The inner problem fits the energy's parameters phi to a task's points by denoising score matching, near theta
(see `imaml.domains.generative.score_matching`). exp(-E) is integrated on a grid, so the likelihood of
held-out points, the score of phi, is exact (judge="likelihood"; "score" uses the loss of score matching on
them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.stats import multivariate_normal
from jax.typing import ArrayLike, DTypeLike

from ...core.fields import PositiveFloat, PositiveInt, SeveralInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...problems.base import Task
from ..arrays import Field
from ..base import cut
from ..networks import MLP
from ..recipes import builder
from ..scenes import Scene
from .score_matching import EnergyDomain, EnergyRecipe, ScoreMatching

Family = Literal["curves", "modes"]
REACH = 3.0  # densities are in the square from -REACH to REACH
PIECES = 128  # normal distributions along a curve
CELLS = 64  # cells of a picture's side
BANDWIDTHS = 16  # bandwidths that the kernel density estimate tries


@recipe("domain")
class DensitiesRecipe(EnergyRecipe):
    """Densities of one family in the plane.

    Args:
        family: "curves", points near closed curves of two to four lobes, or "modes", four normal
            distributions.
        shots: Points of a support set.
        queries: Points of a query set.
        noises: How many times each point is blurred for score matching.
        sigma: The standard deviation of the blur.
        spread: The standard deviation around curve or mode.
        grid: Cells of a side of the grid that likelihoods are integrated on.
        hidden: Units of the energy's hidden layers.
        judge: "likelihood" or "score".

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.densities("modes", shots=5)
        >>> domain.sample(jax.random.key(0), "train").support.points.shape
        (5, 2)
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
        """Return the domain."""
        return Densities(self)

    @property
    def network(self) -> MLP:
        """The network from a point to its energy, without the quadratic term."""
        return MLP((2, *self.hidden, 1), "silu")


densities = builder(DensitiesRecipe)


class Cloud(NamedTuple):
    """Points ``(n, 2)``, and standard normal noise ``(n, m, 2)``: each point is blurred m times."""

    points: Array
    noise: Array


class Held(NamedTuple):
    """A query batch: points with noise, and the centres ``(k, 2)`` of the true density's normal parts."""

    cloud: Cloud
    centres: Array


@dataclass(frozen=True)
class Energy(ScoreMatching):
    """E(x; phi) = f(x; phi) + |x|^2 / (2 REACH^2), with f a network; hashable."""

    def at(self, phi: Tree, points: Array) -> Array:
        """Return the energies ``(n,)`` of points ``(n, 2)``."""
        quadratic = 0.5 * jnp.sum(jnp.square(points), -1) / REACH**2
        return self.network.forward(phi, points)[0][:, 0] + quadratic

    def cost(self, outputs: Array, batch: Cloud) -> Array:
        """Return half the squared distance of the outputs from the noise, the mean over blurred points."""
        return 0.5 * jnp.mean(jnp.sum(jnp.square(outputs - batch.noise), -1))


def logs_of_mixture(points: Array, centres: Array, spread: ArrayLike) -> Array:
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


def normal_fit(points: Array, ridge: float) -> tuple[Array, Array]:
    """Return the mean and the covariance of points.

    Args:
        points: ``(n, 2)``.
        ridge: A number that is added to the covariance's diagonal.

    Returns:
        The mean ``(2,)`` and the covariance ``(2, 2)``.
    """
    covariance = jnp.cov(points, rowvar=False, bias=True)
    return points.mean(0), covariance + ridge * jnp.eye(2, dtype=points.dtype)


def dots(points: Array, radius: int = 0) -> np.ndarray:
    """Return an image of the square with points in it.

    Args:
        points: ``(n, 2)``; those outside the square are not drawn.
        radius: How many cells a dot covers to each side of its middle.

    Returns:
        An image ``(CELLS, CELLS)``, 1 where a point is.
    """
    image = np.zeros((CELLS, CELLS))
    places = np.rint((np.asarray(points) + REACH) * (CELLS - 1) / (2 * REACH)).astype(int)
    for column, row in places[np.all((places >= radius) & (places < CELLS - radius), axis=1)]:
        image[CELLS - 1 - row - radius : CELLS - row + radius, column - radius : column + radius + 1] = 1
    return image


@jax.tree_util.register_static
@dataclass(frozen=True)
class Densities(EnergyDomain):
    """Densities in the square [-3, 3]^2 around curves or modes, to be learned from a few points of each."""

    recipe: DensitiesRecipe

    headline: ClassVar[str] = "nll"
    oracles: ClassVar[frozenset[str]] = frozenset({"true"})
    support_type: ClassVar[type] = Cloud

    @property
    def loss(self) -> Energy:
        """The loss of score matching; its `at` is the energy."""
        return Energy(self.recipe.network, self.recipe.sigma)

    def normaliser(self, phi: Tree, dtype: DTypeLike) -> Array:
        """Return the log of the integral of exp(-E) over the square, a sum over the middles of its cells.

        Args:
            phi: The energy's parameters.
            dtype: The dtype of points.

        Returns:
            A scalar.
        """
        cells, width = self.recipe.grid, 2 * REACH / self.recipe.grid
        line = -REACH + width * (jnp.arange(cells, dtype=dtype) + 0.5)
        grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
        return jax.nn.logsumexp(-self.loss.at(phi, grid)) + 2 * math.log(width)

    def support_fields(self) -> dict[str, Field]:
        """Return what points ``(n, 2)`` and their noise ``(n, m, 2)`` are."""
        return {"points": Field((2,)), "noise": Field((None, 2))}

    def statistics(self, phi: Tree, support: Cloud) -> Array:
        """Return the log of the normaliser."""
        return self.normaliser(phi, support.points.dtype)

    def forward(self, phi: Tree, rows: Array, statistics: Array | None = None) -> Array:
        """Return log densities ``(n,)`` at points ``(n, 2)``, exact up to the grid's resolution."""
        logarithm = self.normaliser(phi, rows.dtype) if statistics is None else statistics
        return -self.loss.at(phi, rows) - logarithm

    def query_loss(self, phi: Tree, theta: Tree, batch: Held) -> Array:
        """Return minus the mean log likelihood of held-out points, nats; or their loss of score matching."""
        if self.recipe.judge == "score":
            return self.loss(phi, batch.cloud)
        return self.measure(phi, theta, batch)["nll"]

    def measure(self, phi: Tree, theta: Tree, batch: Held) -> dict[str, Array]:
        """Return minus the mean log likelihood of held-out points, nats."""
        return {"nll": -jnp.mean(self.forward(phi, batch.cloud.points))}

    def _centres(self, place: Array, lobes: Array, form: Array) -> Array:
        """Return the centres (k, 2) of a random density's normal parts, drawn by three keys."""
        if self.recipe.family == "modes":
            return jax.random.uniform(place, (4, 2), jnp.float32, -2, 2)
        # A closed curve: its distance from the middle is a cosine of the angle, of two to four lobes.
        middle = jax.random.uniform(place, (2,), jnp.float32, -0.5, 0.5)
        radius, depth, phase = jax.random.uniform(form, (3,), jnp.float32)
        angles = 2 * jnp.pi * jnp.arange(PIECES, dtype=jnp.float32) / PIECES
        waves = jnp.cos(jax.random.randint(lobes, (), 2, 5) * angles + 2 * jnp.pi * phase)
        far = (0.9 + 0.6 * radius) * (1 + 0.4 * depth * waves)
        return middle + far[:, None] * jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)

    def gather(self, indices: Array) -> Task:
        """Return the task of a random density, drawn by a key: points to learn from, and others."""
        recipe = self.recipe
        *shape, seen = jax.random.split(indices, 4)
        centres = self._centres(*shape)
        which, around, noise = jax.random.split(seen, 3)
        count = recipe.shots + recipe.queries
        parts = jax.random.randint(which, (count,), 0, centres.shape[0])
        points = centres[parts] + recipe.spread * jax.random.normal(around, (count, 2), jnp.float32)
        cloud = Cloud(points, jax.random.normal(noise, (count, recipe.noises, 2), jnp.float32))
        support, query = cut(cloud, recipe.shots)
        return Task(support, Held(query, centres))

    def _true_loss(self, query: Held) -> Array:
        """Return minus the mean log likelihood of held-out points by the true density."""
        return -jnp.mean(logs_of_mixture(query.cloud.points, query.centres, self.recipe.spread))

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return minus the mean log likelihood of held-out points, nats, and its excess over the truth's."""
        found = self.measure(phi, None, task.query)["nll"]
        return {"nll": found, "excess": found - self._true_loss(task.query)}

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return densities over the square: the true one, the points, and the energy's before and after."""
        line = np.linspace(-REACH, REACH, CELLS, dtype=np.float32)
        grid = jnp.stack(jnp.meshgrid(line, line[::-1]), -1).reshape(-1, 2)
        true = logs_of_mixture(grid, task.query.centres, self.recipe.spread)
        logs = {"true": true, "before": self.forward(before, grid), "after": self.forward(after, grid)}
        images = {
            name: np.clip(np.exp(np.asarray(each)) / float(jnp.exp(true.max())), 0, 1).reshape(CELLS, CELLS)
            for name, each in logs.items()
        }
        shown = {"true": images.pop("true"), "seen": dots(task.support.points, 1), **images}
        note = f"minus mean log likelihood of other points: {self.change(before, after, task, '.2f')}"
        return [Scene("a density", note, images=shown)]

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the nll of a normal distribution, a kernel density estimate, and the true density.

        The estimate's bandwidth is that of the most likely leave-one-out predictions of the support.
        """
        seen, points = task.support.points, task.query.cloud.points
        normal, count = multivariate_normal.logpdf(points, *normal_fit(seen, 1e-3)), seen.shape[0]
        # The kernel density estimate of each point from the others, for a range of bandwidths.
        others = jnp.array([[j for j in range(count) if j != i] for i in range(count)])

        def left_out(width: Array) -> Array:
            each = jax.vmap(lambda x, rest: logs_of_mixture(x[None], seen[rest], width)[0])
            return jnp.mean(each(seen, others))

        widths = jnp.geomspace(0.1, 2.0, BANDWIDTHS, dtype=seen.dtype)
        width = widths[jnp.argmax(lax.map(left_out, widths))]
        return {
            "normal": -jnp.mean(normal),
            "kernels": -jnp.mean(logs_of_mixture(points, seen, width)),
            "true": self._true_loss(task.query),
        }
