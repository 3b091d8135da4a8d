"""Points to be imitated by a generator against a discriminator: each task a density in the plane.

The game is that of `imaml.domains.generative.adversarial`: both players near theta, judged by the kernel
two-sample statistic of the generator's points and others of the density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.recipes import recipe
from ...core.validation import require_number, require_one_of, require_whole
from ...problems.base import Task
from ..networks import MLP
from ..recipes import DomainRecipe
from ..scenes import Scene
from .adversarial import Adversarial, Players, Samples, two_samples
from .densities import Densities, DensitiesRecipe, Family, Shape


@recipe("domain")
@dataclass(frozen=True)
class ImitationRecipe(DomainRecipe):
    """The recipe of a domain of imitation.

    Args:
        family: As of `DensitiesRecipe`.
        shots: Points of a support set, and as many latent points.
        queries: Points of a query set, and as many latent points.
        spread: The standard deviation around curve or mode.
        latent: How many numbers a latent point has.
        penalty: Of the discriminator's slope at points.
        hidden: Units of the hidden layers of both networks.

    Raises:
        ConfigError: If a field is out of its range.
    """

    family: Family = "curves"
    shots: int = 24
    queries: int = 64
    spread: float = 0.15
    latent: int = 2
    penalty: float = 0.3
    hidden: tuple[int, ...] = (24, 24)

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_one_of("domain", "family", self.family, ("curves", "modes"))
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
    def players(self) -> Players:
        """The generator and the discriminator."""
        return Players(
            MLP((self.latent, *self.hidden, 2), "tanh"), MLP((2, *self.hidden, 1), "tanh"), self.penalty
        )


@jax.tree_util.register_static
@dataclass(frozen=True)
class Imitation(Adversarial):
    """Densities in the plane, each to be imitated from a few of its points by a generator."""

    recipe: ImitationRecipe

    widths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0)

    @property
    def truth(self) -> Densities:
        """The densities that points are drawn from."""
        recipe = self.recipe
        return DensitiesRecipe(recipe.family, recipe.shots, recipe.queries, 1, spread=recipe.spread).build()

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

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """The two-sample statistic on the query, and how far the discriminator still tells points apart."""
        return {
            "mmd": self.query_loss(phi, None, task.query),
            "told_apart": self.field.told_apart(phi, task.query),
        }

    def baselines(self, task: Task) -> dict[str, Array]:
        """The statistic of the support itself, and of a normal distribution fitted to it."""
        seen, points = task.support.points, task.query.points
        middle = seen.mean(0)
        spread = (seen - middle).T @ (seen - middle) / seen.shape[0] + 1e-6 * jnp.eye(2, dtype=seen.dtype)
        drawn = jax.random.normal(jax.random.key(0), points.shape, points.dtype)
        normal = middle + drawn @ jnp.linalg.cholesky(spread).T
        return {
            "the_support_itself": two_samples(seen, points, self.widths),
            "normal": two_samples(normal, points, self.widths),
        }

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


def imitation(family: Family = "curves", **options: Any) -> Imitation:
    """Return densities to be imitated by a generator.

    Args:
        family: "curves" or "modes".
        **options: The other fields of `ImitationRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.imitation("modes", shots=5)
        >>> domain.sample(jax.random.key(0), "train").support.latents.shape
        (5, 2)
    """
    return ImitationRecipe(family, **options).build()
