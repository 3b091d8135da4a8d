"""A generator against a discriminator, as an inner problem: the base of domains of imitation.

The inner problem is the simultaneous stationary point of both players, near theta (Goodfellow et al. 2014,
the non-saturating losses; with the gradient penalty of Mescheder et al. 2018, eq. 9, which makes simultaneous
gradient descent converge):

    generator      weight mean softplus(-D(G(z)))
    discriminator  mean softplus(D(G(z))) + mean softplus(-D(x)) + penalty/2 mean |dD/dx|^2
    F = (d/dG of the first, d/dD of the second) + strength (phi - theta)

The latent points z are drawn once for a task. phi is judged by how far G's points are from others of the
task: the kernel two-sample statistic (Gretton et al. 2012, eq. 3, without its diagonal).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.fields import PositiveInt
from ...core.tree import Tree
from ...core.validation import require_whole
from ...problems.base import Task
from ...problems.losses import joined
from ..arrays import Field
from ..base import EquilibriumDomain
from ..networks import MLP, Network, init_each
from ..recipes import DomainRecipe


class Samples(NamedTuple):
    """A batch of a game.

    Attributes:
        points: True points ``(n, d)``.
        latents: Latent points ``(m, latent)``.
    """

    points: Array
    latents: Array


@dataclass(frozen=True)
class Players:
    """The vector field of the game, ``({"generator", "discriminator"}, samples) -> a tree like the first``.

    It is hashable.

    Attributes:
        generator: The network from latent points to points.
        discriminator: The network from points to one number, large for true points.
        penalty: The weight of the discriminator's squared slope at points.
        weight: The weight of the generator's loss; that of the discriminator's is 1.
        bounded: Whether points lie between 0 and 1, as ink does.
    """

    generator: Network
    discriminator: MLP
    penalty: float
    weight: float = 1.0
    bounded: bool = False

    def made(self, generator: Tree, latents: Array) -> Array:
        """Return the generator's points, G(z).

        Args:
            generator: The generator's parameters.
            latents: Latent points ``(m, latent)``.

        Returns:
            Points ``(m, d)``, between 0 and 1 if `bounded`.
        """
        points = self.generator.forward(generator, latents)[0]
        return jax.nn.sigmoid(points) if self.bounded else points

    def judged(self, discriminator: Tree, points: Array) -> Array:
        """Return the discriminator's outputs, D(x).

        Args:
            discriminator: The discriminator's parameters.
            points: ``(n, d)``.

        Returns:
            Logits ``(n,)`` that points are true.
        """
        return self.discriminator.forward(discriminator, points)[0][:, 0]

    def fooling(self, generator: Tree, discriminator: Tree, batch: Samples) -> Array:
        """Return the generator's loss.

        Args:
            generator: The generator's parameters.
            discriminator: The discriminator's parameters.
            batch: Its latent points are used.

        Returns:
            A scalar, ``weight mean softplus(-D(G(z)))``.
        """
        taken = self.judged(discriminator, self.made(generator, batch.latents))
        return self.weight * jnp.mean(jax.nn.softplus(-taken))

    def telling(self, generator: Tree, discriminator: Tree, batch: Samples) -> Array:
        """Return the discriminator's loss.

        Args:
            generator: The generator's parameters.
            discriminator: The discriminator's parameters.
            batch: True and latent points.

        Returns:
            A scalar, with the gradient penalty at true points.
        """
        false = jnp.mean(jax.nn.softplus(self.judged(discriminator, self.made(generator, batch.latents))))
        true = jnp.mean(jax.nn.softplus(-self.judged(discriminator, batch.points)))
        slopes = jax.grad(lambda x: jnp.sum(self.judged(discriminator, x)))(batch.points)
        return false + true + 0.5 * self.penalty * jnp.mean(jnp.sum(jnp.square(slopes), -1))

    def told_apart(self, phi: Tree, batch: Samples) -> Array:
        """Return the discriminator's accuracy on true and generated points.

        Args:
            phi: Both networks' parameters.
            batch: True and latent points.

        Returns:
            A scalar, the mean of both accuracies: 1/2 by chance.
        """
        made = self.made(phi["generator"], batch.latents)
        right = self.judged(phi["discriminator"], batch.points) > 0
        wrong = self.judged(phi["discriminator"], made) > 0
        return (0.5 * (jnp.mean(right) + jnp.mean(~wrong))).astype(made.dtype)

    def __call__(self, phi: Tree, batch: Samples) -> Tree:
        """Return F without its regularisation: each player's own slope, a tree like ``phi``."""
        generator, discriminator = phi["generator"], phi["discriminator"]
        return {
            "generator": jax.grad(self.fooling)(generator, discriminator, batch),
            "discriminator": jax.grad(self.telling, argnums=1)(generator, discriminator, batch),
        }


def two_samples(left: Array, right: Array, widths: tuple[float, ...]) -> Array:
    """Return the kernel two-sample statistic, 0 on average if both samples have one density.

    The kernel is the mean of Gaussian kernels, without its diagonal.

    Args:
        left: Points ``(n, d)``.
        right: Points ``(m, d)``.
        widths: The kernels' standard deviations.

    Returns:
        A scalar.

    References:
        Gretton et al. (2012), equation 3.
    """

    def kernel(a: Array, b: Array) -> Array:
        apart = jnp.sum(jnp.square(a[:, None] - b), -1)
        return jnp.mean(jnp.exp(-apart[..., None] / (2 * jnp.array(widths, a.dtype) ** 2)), -1)

    def within(a: Array) -> Array:
        n = a.shape[0]
        return (jnp.sum(kernel(a, a)) - n) / (n * (n - 1))

    return within(left) + within(right) - 2 * jnp.mean(kernel(left, right))


class AdversarialRecipe(DomainRecipe):
    """The base of recipes with a generator and a discriminator; a subclass has the field ``latent``.

    Attributes:
        latent: The number of entries of a latent point.
        players: The generator and the discriminator.
    """

    latent: PositiveInt
    players: Players


class AdversarialDomain(EquilibriumDomain):
    """The base of domains of imitation, by their recipe's players.

    Attributes:
        widths: The standard deviations of the two-sample statistic's kernels.
    """

    recipe: AdversarialRecipe
    headline: ClassVar[str] = "mmd"
    widths: ClassVar[tuple[float, ...]]
    support_type: ClassVar[type] = Samples

    @property
    def field(self) -> Players:
        """The vector field of the inner problem."""
        return self.recipe.players

    def init(self, key: Array) -> Tree:
        """Return fresh parameters of both networks."""
        return init_each(key, generator=self.field.generator, discriminator=self.field.discriminator)

    @staticmethod
    def whole(support: Samples, query: Samples) -> Samples:
        """Return all points of a task as one batch."""
        return joined(support, Samples(query.points, query.latents))

    def distance(self, points: Array, query: Samples) -> Array:
        """Return the two-sample statistic of points and the query's.

        Args:
            points: ``(m, d)``.
            query: The query batch.

        Returns:
            A scalar.
        """
        return two_samples(points, query.points, self.widths)

    def query_loss(self, phi: Tree, theta: Tree, batch: Samples) -> Array:
        """Return the two-sample statistic of the generator's points and the query's."""
        return self.distance(self.forward(phi, batch.latents), batch)

    def measure(self, phi: Tree, theta: Tree, batch: Samples) -> dict[str, Array]:
        """Return the two-sample statistic."""
        return {"mmd": self.query_loss(phi, theta, batch)}

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the two-sample statistic on the query, and the discriminator's accuracy there."""
        told_apart = self.field.told_apart(phi, task.query)
        return {**self.measure(phi, None, task.query), "told_apart": told_apart}

    def support_fields(self) -> dict[str, Field]:
        """Return what points ``(n, d)`` and latent points ``(m, latent)`` are."""
        return {"points": Field(self.field.discriminator.sizes[:1]), "latents": self.query_field()}

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return as many latent points as there are points, the same for the same number."""
        return {"latents": self.latents(len(next(iter(arrays.values()))))}

    def latents(self, count: int) -> Array:
        """Return standard normal latent points, the same for the same number.

        Args:
            count: How many.

        Returns:
            ``(count, latent)``.
        """
        return jax.random.normal(jax.random.key(0), (count, self.recipe.latent), jnp.float32)

    def query_field(self) -> Field:
        """Return what latent points are."""
        return Field((self.recipe.latent,), rows="m")

    def encode_query(self, x: Tree) -> np.ndarray:
        """Return latent points.

        Args:
            x: Latent points ``(m, latent)``, a sampled query batch, or how many points to generate.

        Returns:
            Latent points ``(m, latent)``.
        """
        if isinstance(x, int) and not isinstance(x, bool):
            require_whole("predict", 1, x=x)
            return np.asarray(self.latents(x))
        return super().encode_query(x)

    def asked(self, query: Samples) -> Array:
        """Return the query's latent points."""
        return query.latents

    def forward(self, phi: Tree, rows: Array, statistics: None = None) -> Array:
        """Return the generator's points ``(m, d)`` for latent points."""
        return self.field.made(phi["generator"], rows)
