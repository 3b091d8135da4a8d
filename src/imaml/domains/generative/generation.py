"""Few-shot generation: each task is a character; from a few drawings of it, the model learns to draw more.

The game is that of `imaml.domains.generative.adversarial`, on drawings shrunk to `side` x `side` pixels:
generator and discriminator near theta, scored by the kernel two-sample statistic between generated and
held-out drawings. A second score is the share of generated drawings that a nearest-neighbour classifier
assigns to this character. The classifier uses held-out drawings of this character and of others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...core.fields import NonNegativeFloat, PositiveFloat, PositiveInt, SeveralInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...problems.base import Task
from ..fewshot.domain import FewShot
from ..networks import MLP
from ..recipes import builder
from ..scenes import Scene
from .adversarial import AdversarialDomain, AdversarialRecipe, Players, Samples
from .characters import Character, CharactersDomain, CharactersRecipe, Side, Source, sheet, shrunk


@dataclass(frozen=True)
class Sketches:
    """A generator from latent points to ink before its sigmoid, smoothed over neighbouring pixels; hashable.

    Without the smoothing it makes specks, which neither the statistic nor the discriminator penalises much.
    """

    network: MLP
    side: int

    def init(self, key: Array) -> Tree:
        """Return fresh parameters of the network, with a last bias that leaves most of a drawing blank."""
        made = self.network.init(key)
        last = f"layer{len(self.network.sizes) - 1}"
        made[last]["bias"] = made[last]["bias"] - 2
        return made

    def forward(self, parameters: Tree, inputs: Array, statistics: Tree = None) -> tuple[Array, Tree]:
        """Return ink (n, side^2), smoothed by the weights 1/4, 1/2, 1/4 along rows, then along columns."""
        ink = self.network.forward(parameters, inputs)[0].reshape(-1, self.side, self.side)
        for axis in (1, 2):
            padded = jnp.pad(ink, [(1, 1) if i == axis else (0, 0) for i in range(3)])
            before, after = (lax.slice_in_dim(padded, i, i + self.side, axis=axis) for i in (0, 2))
            ink = 0.5 * ink + 0.25 * (before + after)
        return ink.reshape(-1, self.side**2), statistics


@recipe("domain")
class GenerationRecipe(CharactersRecipe, AdversarialRecipe):
    """Characters to be drawn after seeing a few drawings of each.

    Args:
        source: Procedural "characters", or "omniglot".
        shots: Drawings of a support set.
        queries: Drawings of a query set.
        made: How many drawings a generator makes for a support or query set.
        others: How many other characters a task has, for the classifier alone.
        side: Pixels a side, 7, 14 or 28.
        latent: The number of entries of a latent point.
        penalty: The weight of the discriminator's squared slope at drawings.
        weight: The weight of the generator's loss; with less it hardly moves within few steps.
        generator: Units of the generator's hidden layers.
        discriminator: Units of the discriminator's hidden layers.
        data: Where Omniglot is; None for the usual places.

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.generation(shots=2, queries=2, made=3, others=1)
        >>> task = jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0))  # slow untraced
        >>> task.support.points.shape, task.query.others.shape
        ((2, 196), (2, 196))
    """

    source: Source = "characters"
    shots: SeveralInt = 10
    queries: SeveralInt = 10
    made: SeveralInt = 20
    others: PositiveInt = 4
    side: Side = 14
    latent: PositiveInt = 8
    penalty: NonNegativeFloat = 1.0
    weight: PositiveFloat = 10.0
    generator: tuple[PositiveInt, ...] = (64, 64)
    discriminator: tuple[PositiveInt, ...] = (64,)
    data: str | None = None

    def build(self) -> Generation:
        """Return the domain, with its data read."""
        return Generation(self.drawings(1 + self.others), self)

    def without_data(self) -> Generation:
        """Return the domain with its networks, but no drawings."""
        return Generation(None, self)  # type: ignore[arg-type]

    @property
    def players(self) -> Players:
        """The generator and the discriminator."""
        generator = Sketches(MLP((self.latent, *self.generator, self.side**2)), self.side)
        discriminator = MLP((self.side**2, *self.discriminator, 1), "softplus")
        return Players(generator, discriminator, self.penalty, self.weight, bounded=True)


generation = builder(GenerationRecipe)


class Drawn(NamedTuple):
    """A query batch.

    Attributes:
        points: Held-out drawings ``(n, pixels)``.
        latents: Latent points ``(m, latent)``.
        others: Drawings of other characters ``(k, pixels)``.
    """

    points: Array
    latents: Array
    others: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generation(CharactersDomain, AdversarialDomain):
    """Characters to be drawn after seeing a few drawings of each; made by `generation`."""

    drawings: FewShot
    recipe: GenerationRecipe = field(metadata={"static": True})

    widths: ClassVar[tuple[float, ...]] = (1.5, 3.0, 6.0)

    def gather(self, indices: Character) -> Task:
        """Return the task of a character: drawings to learn from, others, and latent points for both."""
        recipe = self.recipe
        task = self.drawings.gather(indices.episode)
        shape = (2, recipe.made, recipe.latent)
        latents = jax.random.normal(indices.key, shape, jnp.float32)
        held = shrunk(task.query.images, recipe.side)
        return Task(
            Samples(shrunk(task.support.images[: recipe.shots], recipe.side), latents[0]),
            Drawn(held[: recipe.queries], latents[1], held[recipe.queries :]),
        )

    def _recognised(self, made: Array, query: Drawn) -> Array:
        """Return the share of drawings whose nearest held-out one is of the task's own character."""
        nearest = [
            jnp.min(jnp.sum(jnp.square(made[:, None] - each), -1), 1) for each in (query.points, query.others)
        ]
        return jnp.mean(nearest[0] < nearest[1], dtype=made.dtype)

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the two-sample statistic, the share recognised, and the discriminator's accuracy."""
        made = self.forward(phi, task.query.latents)
        return {**super().metrics(phi, task), "recognised": self._recognised(made, task.query)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the statistic of the support itself, of its mean repeated, and of another character."""
        seen, query, count = task.support.points, task.query, self.recipe.queries
        return {
            "the_support_itself": self.distance(seen, query),
            "its_mean": self.distance(jnp.tile(seen.mean(0), (count, 1)), query),
            "another_character": self.distance(query.others[:count], query),
        }

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return drawings that were seen and held out, and those generated before and after adaptation."""
        shown = {"seen": task.support.points, "held out": task.query.points}
        latents = task.query.latents
        shown |= {"before": self.forward(before, latents), "after": self.forward(after, latents)}
        images = {name: sheet(each, self.recipe.side) for name, each in shown.items()}
        distances = self.change(before, after, task, ".3f")
        shares = self.change(before, after, task, ".0%", "recognised")
        note = f"two-sample statistic: {distances}; recognised: {shares}"
        return [Scene("drawings", note, images=images)]

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return as many latent points as tasks of training have."""
        return {"latents": self.latents(self.recipe.made)}
