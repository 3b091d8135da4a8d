"""Points to be imitated by a generator against a discriminator: each task a density in the plane.

The inner problem is the simultaneous stationary point of both players, near theta (Goodfellow et al. 2014,
the non-saturating losses; with the gradient penalty of Mescheder et al. 2018, eq. 9, which makes the game
turn inwards):

    generator      mean softplus(-D(G(z)))
    discriminator  mean softplus(D(G(z))) + mean softplus(-D(x)) + penalty/2 mean |dD/dx|^2
    F = (d/dG of the first, d/dD of the second) + strength (phi - theta)

The latent points z are drawn once for a task. phi is judged by how far G's points are from others of the
density: the kernel two-sample statistic (Gretton et al. 2012, eq. 3, without its diagonal).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..errors import ConfigError, require_number, require_one_of, require_whole
from ..models import MLP
from ..problem import Problem, Task, equilibrium
from ..scenes import Scene
from .densities import FAMILIES, Densities, DensitiesRecipe, Shape

WIDTHS = (0.25, 0.5, 1.0)  # of the kernels that samples are compared by


@dataclass(frozen=True)
class ImitationRecipe:
    """What a domain of imitation is made from; goes to JSON.

    family: as of `DensitiesRecipe`. shots, queries: points of a support and of a query set, and as many
    latent points. spread: the standard deviation around curve or mode. latent: how many numbers a latent
    point has. penalty: of the discriminator's slope at points. hidden: units of the hidden layers of both
    networks.
    """

    family: str = "curves"
    shots: int = 24
    queries: int = 64
    spread: float = 0.15
    latent: int = 2
    penalty: float = 0.3
    hidden: tuple[int, ...] = (24, 24)

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_one_of("domain", "family", self.family, FAMILIES)
        require_whole("domain", 2, shots=self.shots, queries=self.queries)
        require_whole("domain", 1, latent=self.latent)
        require_number("domain", 0, open=True, spread=self.spread)
        require_number("domain", 0, penalty=self.penalty)
        for units in self.hidden:
            require_whole("domain", 1, hidden=units)

    def build(self) -> Imitation:
        """The domain."""
        return Imitation(self)

    @property
    def generator(self) -> MLP:
        """Latent points to points."""
        return MLP((self.latent, *self.hidden, 2), "tanh")

    @property
    def discriminator(self) -> MLP:
        """Points to one number: large where they look true."""
        return MLP((2, *self.hidden, 1), "tanh")


class Samples(NamedTuple):
    """True points (n, 2), and latent points (m, latent)."""

    points: Array
    latents: Array


@dataclass(frozen=True)
class Players:
    """The field of the game, ({"generator", "discriminator"}, samples) -> alike; hashable."""

    recipe: ImitationRecipe

    def made(self, generator: Any, latents: Array) -> Array:
        """The generator's points (m, 2)."""
        return self.recipe.generator.forward(generator, latents)[0]

    def judged(self, discriminator: Any, points: Array) -> Array:
        """The discriminator's numbers (n,)."""
        return self.recipe.discriminator.forward(discriminator, points)[0][:, 0]

    def fooling(self, generator: Any, discriminator: Any, batch: Samples) -> Array:
        """What the generator minimises, a scalar."""
        return jnp.mean(jax.nn.softplus(-self.judged(discriminator, self.made(generator, batch.latents))))

    def telling(self, generator: Any, discriminator: Any, batch: Samples) -> Array:
        """What the discriminator minimises, a scalar."""
        false = jnp.mean(jax.nn.softplus(self.judged(discriminator, self.made(generator, batch.latents))))
        true = jnp.mean(jax.nn.softplus(-self.judged(discriminator, batch.points)))
        slopes = jax.grad(lambda x: jnp.sum(self.judged(discriminator, x)))(batch.points)
        return false + true + 0.5 * self.recipe.penalty * jnp.mean(jnp.sum(jnp.square(slopes), -1))

    def __call__(self, phi: Any, batch: Samples) -> Any:
        """F without its anchor."""
        generator, discriminator = phi["generator"], phi["discriminator"]
        return {
            "generator": jax.grad(self.fooling)(generator, discriminator, batch),
            "discriminator": jax.grad(self.telling, argnums=1)(generator, discriminator, batch),
        }


def two_samples(left: Array, right: Array) -> Array:
    """The kernel two-sample statistic of points (n, 2) and (m, 2), a scalar.

    0 on average where both have one density. The mean of Gaussian kernels of three widths, without its
    diagonal (Gretton et al. 2012, eq. 3).
    """

    def kernel(a: Array, b: Array) -> Array:
        apart = jnp.sum(jnp.square(a[:, None] - b), -1)
        return jnp.mean(jnp.exp(-apart[..., None] / (2 * jnp.array(WIDTHS, a.dtype) ** 2)), -1)

    def within(a: Array) -> Array:
        n = a.shape[0]
        return (jnp.sum(kernel(a, a)) - n) / (n * (n - 1))

    return within(left) + within(right) - 2 * jnp.mean(kernel(left, right))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Imitation:
    """Densities in the plane, each to be imitated from a few of its points by a generator."""

    recipe: ImitationRecipe

    headline: ClassVar[str] = "mmd"
    higher_is_better: ClassVar[bool] = False

    @property
    def field(self) -> Players:
        """What the inner problem goes against."""
        return Players(self.recipe)

    @property
    def truth(self) -> Densities:
        """The densities that points are drawn from."""
        recipe = self.recipe
        return DensitiesRecipe(recipe.family, recipe.shots, recipe.queries, 1, spread=recipe.spread).build()

    def init(self, key: Array) -> Any:
        """Fresh parameters of both networks."""
        generator, discriminator = jax.random.split(key)
        recipe = self.recipe
        return {
            "generator": recipe.generator.init(generator),
            "discriminator": recipe.discriminator.init(discriminator),
        }

    def problem(self, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """The anchored game on a support's points; no anchor for None.

        ConfigError for curvature="gauss-newton": what is no gradient has none.
        """
        require_one_of("imitation", "curvature", curvature, ("hessian",))
        return equilibrium(self.field, strength, adapt)

    @staticmethod
    def whole(support: Samples, query: Samples) -> Samples:
        """All points of a task as one batch, for methods that learn from it unsplit."""
        return Samples(*(jnp.concatenate(pair) for pair in zip(support, query, strict=True)))

    def wide(self, key: Array) -> Any:
        """Fresh parameters, for joint learning: the same networks."""
        return self.init(key)

    def narrow(self, theta: Any) -> Any:
        """What a new task starts at: theta itself, as points mean the same in every task."""
        return theta

    def joint_loss(self, theta: Any, batch: Samples, grouped: bool = False) -> Array:
        """A scalar whose gradient is the field, of one pair of players for all tasks."""
        if grouped:
            raise ConfigError("multi-task learning needs tasks with heads of their own; use transfer.")
        held = jax.lax.stop_gradient(theta)
        return self.field.fooling(theta["generator"], held["discriminator"], batch) + self.field.telling(
            held["generator"], theta["discriminator"], batch
        )

    def query_loss(self, phi: Any, theta: Any, batch: Samples) -> Array:
        """The two-sample statistic of the generator's points and the query's."""
        return two_samples(self.field.made(phi["generator"], batch.latents), batch.points)

    def draw(self, key: Array, split: str) -> Shape:
        """One random density; each split has a stream of its own."""
        return self.truth.draw(key, split)

    def gather(self, indices: Shape) -> Task:
        """The task of a density: points to learn from, others, and latent points for both."""
        recipe = self.recipe
        task = self.truth.gather(indices)
        key = jax.random.fold_in(indices.key, 1)
        latents = jax.random.normal(key, (recipe.shots + recipe.queries, recipe.latent), jnp.float32)
        return Task(
            Samples(task.support.points, latents[: recipe.shots]),
            Samples(task.query.cloud.points, latents[recipe.shots :]),
        )

    def sample(self, key: Array, split: str) -> Task:
        """One random task of a split."""
        return self.gather(self.draw(key, split))

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """The two-sample statistic on the query, and how far the discriminator still tells points apart."""
        made = self.field.made(phi["generator"], task.query.latents)
        right = self.field.judged(phi["discriminator"], task.query.points) > 0
        wrong = self.field.judged(phi["discriminator"], made) > 0
        told = 0.5 * (jnp.mean(right) + jnp.mean(~wrong))
        return {"mmd": two_samples(made, task.query.points), "told_apart": told.astype(made.dtype)}

    def calibration(self, phi: Any, task: Task) -> dict[str, Array]:
        """Nothing: no class is told."""
        return {}

    def measure(self, phi: Any, theta: Any, batch: Samples) -> dict[str, Array]:
        """The two-sample statistic; for a method's `measure`."""
        return {"mmd": self.query_loss(phi, theta, batch)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """The statistic of the support itself, and of a normal distribution fitted to it."""
        seen, points = task.support.points, task.query.points
        middle = seen.mean(0)
        spread = (seen - middle).T @ (seen - middle) / seen.shape[0] + 1e-6 * jnp.eye(2, dtype=seen.dtype)
        drawn = jax.random.normal(jax.random.key(0), points.shape, points.dtype)
        normal = middle + drawn @ jnp.linalg.cholesky(spread).T
        return {"the_support_itself": two_samples(seen, points), "normal": two_samples(normal, points)}

    def scenes(self, before: Any, after: Any, task: Task) -> list[Scene]:
        """The generator's points before and after adaptation, the support and the query."""
        latents = task.query.latents
        clouds = {"before": self.field.made(before["generator"], latents)}
        clouds |= {"after": self.field.made(after["generator"], latents)}
        clouds |= {"seen": task.support.points, "others": task.query.points}
        images = {name: _dots(np.asarray(each)) for name, each in clouds.items()}
        gone = " to ".join(f"{float(self.metrics(phi, task)['mmd']):.3f}" for phi in (before, after))
        return [Scene("points in the plane", f"two-sample statistic: {gone}", images=images)]


def _dots(points: np.ndarray, cells: int = 64, reach: float = 3.0) -> np.ndarray:
    """An image of points, 1 where one lies."""
    image = np.zeros((cells, cells))
    places = np.rint((points + reach) * (cells - 1) / (2 * reach)).astype(int)
    for column, row in places[np.all((places >= 0) & (places < cells), axis=1)]:
        image[cells - 1 - row, column] = 1
    return image


def imitation(family: str = "curves", **options: Any) -> Imitation:
    """Densities to be imitated by a generator; options: fields of `ImitationRecipe`.

    >>> import imaml, jax
    >>> domain = imaml.imitation("modes", shots=5)
    >>> domain.sample(jax.random.key(0), "train").support.latents.shape
    (5, 2)
    """
    return ImitationRecipe(family, **options).build()
