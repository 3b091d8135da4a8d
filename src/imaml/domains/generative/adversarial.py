"""A generator against a discriminator, as an inner problem: what domains of imitation have in common.

The inner problem is the simultaneous stationary point of both players, near theta (Goodfellow et al. 2014,
the non-saturating losses; with the gradient penalty of Mescheder et al. 2018, eq. 9, which makes the game
turn inwards):

    generator      weight mean softplus(-D(G(z)))
    discriminator  mean softplus(D(G(z))) + mean softplus(-D(x)) + penalty/2 mean |dD/dx|^2
    F = (d/dG of the first, d/dD of the second) + strength (phi - theta)

The latent points z are drawn once for a task. phi is judged by how far G's points are from others of the
task: the kernel two-sample statistic (Gretton et al. 2012, eq. 3, without its diagonal).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.validation import require_one_of, require_whole
from ...problems.base import Problem
from ...problems.proximal import equilibrium
from ..arrays import Field
from ..base import DomainBase
from ..networks import MLP


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
    """The field of the game, ``({"generator", "discriminator"}, samples) -> alike``; hashable.

    Attributes:
        generator: Latent points to points, an `MLP` or alike.
        discriminator: Points to one number, large for true ones.
        penalty: Of the discriminator's slope at points.
        weight: Of the generator's loss; that of the discriminator is 1.
        bounded: Whether points lie between 0 and 1, as ink does.
    """

    generator: Any
    discriminator: MLP
    penalty: float
    weight: float = 1.0
    bounded: bool = False

    @property
    def dimension(self) -> int:
        """How many numbers a point has."""
        return self.discriminator.sizes[0]

    def init(self, key: Array) -> Any:
        """Fresh parameters of both networks."""
        generator, discriminator = jax.random.split(key)
        return {
            "generator": self.generator.init(generator),
            "discriminator": self.discriminator.init(discriminator),
        }

    def made(self, generator: Any, latents: Array) -> Array:
        """The generator's points (m, d)."""
        points = self.generator.forward(generator, latents)[0]
        return jax.nn.sigmoid(points) if self.bounded else points

    def judged(self, discriminator: Any, points: Array) -> Array:
        """The discriminator's numbers (n,)."""
        return self.discriminator.forward(discriminator, points)[0][:, 0]

    def fooling(self, generator: Any, discriminator: Any, batch: Samples) -> Array:
        """What the generator minimises, a scalar."""
        taken = self.judged(discriminator, self.made(generator, batch.latents))
        return self.weight * jnp.mean(jax.nn.softplus(-taken))

    def telling(self, generator: Any, discriminator: Any, batch: Samples) -> Array:
        """What the discriminator minimises, a scalar."""
        false = jnp.mean(jax.nn.softplus(self.judged(discriminator, self.made(generator, batch.latents))))
        true = jnp.mean(jax.nn.softplus(-self.judged(discriminator, batch.points)))
        slopes = jax.grad(lambda x: jnp.sum(self.judged(discriminator, x)))(batch.points)
        return false + true + 0.5 * self.penalty * jnp.mean(jnp.sum(jnp.square(slopes), -1))

    def told_apart(self, phi: Any, batch: Samples) -> Array:
        """The share of points that the discriminator takes for what they are, a scalar: 1/2 by chance."""
        made = self.made(phi["generator"], batch.latents)
        right = self.judged(phi["discriminator"], batch.points) > 0
        wrong = self.judged(phi["discriminator"], made) > 0
        return (0.5 * (jnp.mean(right) + jnp.mean(~wrong))).astype(made.dtype)

    def __call__(self, phi: Any, batch: Samples) -> Any:
        """F without its anchor."""
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


class Adversarial(DomainBase):
    """What domains of imitation do alike, by their recipe's `players` and the `widths` of their kernels."""

    recipe: Any
    headline: ClassVar[str] = "mmd"
    higher_is_better: ClassVar[bool] = False
    widths: ClassVar[tuple[float, ...]]
    support_type: ClassVar[type] = Samples

    @property
    def field(self) -> Players:
        """What the inner problem goes against."""
        return self.recipe.players

    def init(self, key: Array) -> Any:
        """Fresh parameters of both networks."""
        return self.field.init(key)

    def problem(self, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """The anchored game on a support's points; no anchor for None.

        ConfigError for curvature="gauss-newton": what is no gradient has none.
        """
        require_one_of("a game", "curvature", curvature, ("hessian",))
        return equilibrium(self.field, strength, adapt)

    @staticmethod
    def whole(support: Samples, query: Any) -> Samples:
        """All points of a task as one batch, for methods that learn from it unsplit."""
        points = jnp.concatenate([support.points, query.points])
        return Samples(points, jnp.concatenate([support.latents, query.latents]))

    def shared_loss(self, theta: Any, batch: Samples) -> Array:
        """A scalar whose gradient is the field, of one pair of players for all tasks."""
        held = jax.lax.stop_gradient(theta)
        return self.field.fooling(theta["generator"], held["discriminator"], batch) + self.field.telling(
            held["generator"], theta["discriminator"], batch
        )

    def query_loss(self, phi: Any, theta: Any, batch: Any) -> Array:
        """The two-sample statistic of the generator's points and the query's."""
        return two_samples(self.field.made(phi["generator"], batch.latents), batch.points, self.widths)

    def measure(self, phi: Any, theta: Any, batch: Any) -> dict[str, Array]:
        """The two-sample statistic; for a method's `measure`."""
        return {"mmd": self.query_loss(phi, theta, batch)}

    def support_fields(self) -> dict[str, Field]:
        """Return what points ``(n, d)`` and latent points ``(m, latent)`` are."""
        return {"points": Field((self.field.dimension,)), "latents": self.query_field()}

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return as many latent points as there are points, the same for the same number."""
        return {"latents": self.latents(len(next(iter(arrays.values()))))}

    def latents(self, count: int) -> Array:
        """Return standard normal latent points ``(count, latent)``, the same for the same number."""
        return jax.random.normal(jax.random.key(0), (count, self.recipe.latent), jnp.float32)

    def query_field(self) -> Field:
        """Return what latent points are."""
        return Field((self.recipe.latent,), rows="m")

    def encode_query(self, x: Any) -> np.ndarray:
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

    def asked(self, query: Any) -> Array:
        """Return the query's latent points."""
        return query.latents

    def forward(self, phi: Any, rows: Array, statistics: Any = None) -> Array:
        """Return the generator's points ``(m, d)``."""
        return self.field.made(phi["generator"], rows)
