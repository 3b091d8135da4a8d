"""A generator and a discriminator imitate points: each task is a density in the plane.

The game is that of `imaml.domains.generative.adversarial`: both players near theta, scored by the kernel
two-sample statistic between the generator's points and other points of the density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ...core.fields import NonNegativeFloat, PositiveFloat, PositiveInt, SeveralInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...problems.base import Task
from ..base import cut
from ..networks import MLP
from ..recipes import builder
from ..scenes import Scene
from .adversarial import AdversarialDomain, AdversarialRecipe, Players, Samples
from .densities import Densities, DensitiesRecipe, Family, dots, normal_fit


@recipe("domain")
class ImitationRecipe(AdversarialRecipe):
    """Densities in the plane to be imitated by a generator.

    Args:
        family: "curves" or "modes"; see `DensitiesRecipe`.
        shots: Points of a support set, and as many latent points.
        queries: Points of a query set, and as many latent points.
        spread: The standard deviation around curve or mode.
        latent: The number of entries of a latent point.
        penalty: The weight of the discriminator's squared slope at points.
        hidden: Units of the hidden layers of both networks.

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.imitation("modes", shots=5)
        >>> domain.sample(jax.random.key(0), "train").support.latents.shape
        (5, 2)
    """

    family: Family = "curves"
    shots: SeveralInt = 24
    queries: SeveralInt = 64
    spread: PositiveFloat = 0.15
    latent: PositiveInt = 2
    penalty: NonNegativeFloat = 0.3
    hidden: tuple[PositiveInt, ...] = (24, 24)

    def build(self) -> Imitation:
        """Return the domain."""
        return Imitation(self)

    @property
    def players(self) -> Players:
        """The generator and the discriminator."""
        return Players(
            MLP((self.latent, *self.hidden, 2), "tanh"), MLP((2, *self.hidden, 1), "tanh"), self.penalty
        )


imitation = builder(ImitationRecipe)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Imitation(AdversarialDomain):
    """Densities in the plane, each to be imitated from a few of its points by a generator."""

    recipe: ImitationRecipe

    widths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 1.0)

    @property
    def truth(self) -> Densities:
        """The densities that points are drawn from."""
        recipe = self.recipe
        return DensitiesRecipe(recipe.family, recipe.shots, recipe.queries, 1, spread=recipe.spread).build()

    def gather(self, indices: Array) -> Task:
        """Return the task of a random density, drawn by a key, with latent points for support and query."""
        recipe, task = self.recipe, self.truth.gather(indices)
        key = jax.random.fold_in(jax.random.split(indices, 4)[3], 1)
        latents = jax.random.normal(key, (recipe.shots + recipe.queries, recipe.latent), jnp.float32)
        support, query = cut(latents, recipe.shots)
        return Task(Samples(task.support.points, support), Samples(task.query.cloud.points, query))

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the statistic of the support itself, and of a normal distribution fitted to it."""
        seen, query = task.support.points, task.query
        mean, covariance = normal_fit(seen, 1e-6)
        drawn = jax.random.normal(jax.random.key(0), query.points.shape, query.points.dtype)
        normal = mean + drawn @ jnp.linalg.cholesky(covariance).T
        return {"the_support_itself": self.distance(seen, query), "normal": self.distance(normal, query)}

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return the generator's points before and after adaptation, the support and the query."""
        latents = task.query.latents
        clouds = {"before": self.forward(before, latents), "after": self.forward(after, latents)}
        clouds |= {"seen": task.support.points, "others": task.query.points}
        images = {name: dots(points) for name, points in clouds.items()}
        note = f"two-sample statistic: {self.change(before, after, task, '.3f')}"
        return [Scene("points in the plane", note, images=images)]
