"""Few-shot generation: each task one character, of which more drawings are to be made after seeing a few.

The game is that of `imaml.domains.generative.adversarial`, on drawings shrunk to `side` x `side` pixels:
generator and discriminator near theta, judged by the kernel two-sample statistic of generated and held-out
drawings. What a generator has learned shows as well in a classifier: the share of its drawings whose nearest
neighbour, among held-out drawings of this character and of others, is of this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...core.recipes import recipe
from ...core.validation import require_number, require_one_of, require_whole
from ...problems.base import Task
from ..base import Encoded
from ..fewshot.domain import FewShot, FewShotRecipe
from ..networks import MLP
from ..recipes import ReadsData
from ..scenes import Scene
from .adversarial import Adversarial, Players, Samples, two_samples
from .characters import SIDES, SOURCES, Character, draw, rows_of, sheet, shrunk


@dataclass(frozen=True)
class Sketches:
    """A generator: from latent points to ink before its sigmoid, smooth from pixel to pixel; hashable.

    Without the smoothing it makes specks, which neither the statistic nor the discriminator minds much.
    """

    network: MLP
    side: int

    def init(self, key: Array) -> Any:
        """Parameters of the network, its last bias such that most of a drawing is paper."""
        made = self.network.init(key)
        last = f"layer{len(self.network.sizes) - 1}"
        made[last]["bias"] = made[last]["bias"] - 2
        return made

    def forward(self, parameters: Any, latents: Array) -> tuple[Array, None]:
        """Ink (n, side^2), each pixel with a quarter of each neighbour's along rows, then along columns."""
        ink = self.network.forward(parameters, latents)[0].reshape(-1, self.side, self.side)
        for axis in (1, 2):
            padded = jnp.pad(ink, [(1, 1) if i == axis else (0, 0) for i in range(3)])
            before, after = (lax.slice_in_dim(padded, i, i + self.side, axis=axis) for i in (0, 2))
            ink = 0.5 * ink + 0.25 * (before + after)
        return ink.reshape(-1, self.side**2), None


@recipe("domain")
@dataclass(frozen=True)
class GenerationRecipe(ReadsData):
    """The recipe of a domain of few-shot generation.

    Args:
        source: Procedural "characters", or "omniglot".
        shots: Drawings of a support set.
        queries: Drawings of a query set.
        made: How many drawings a generator makes of either.
        others: How many other characters a task has, for the classifier alone.
        side: Pixels a side, 7, 14 or 28.
        latent: How many numbers a latent point has.
        penalty: Of the discriminator's slope at drawings.
        weight: Of the generator's loss; by less it hardly moves within few steps.
        generator: Units of its hidden layers.
        discriminator: Units of its hidden layers.
        data: Where Omniglot is; None for the usual places.

    Raises:
        ConfigError: If a field is out of its range.
    """

    source: str = "characters"
    shots: int = 10
    queries: int = 10
    made: int = 20
    others: int = 4
    side: int = 14
    latent: int = 8
    penalty: float = 1.0
    weight: float = 10.0
    generator: tuple[int, ...] = (64, 64)
    discriminator: tuple[int, ...] = (64,)
    data: str | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_one_of("domain", "source", self.source, SOURCES)
        require_one_of("domain", "side", self.side, SIDES)
        require_whole("domain", 2, shots=self.shots, queries=self.queries, made=self.made)
        require_whole("domain", 1, others=self.others, latent=self.latent)
        require_number("domain", 0, penalty=self.penalty)
        require_number("domain", 0, open=True, weight=self.weight)
        for units in (*self.generator, *self.discriminator):
            require_whole("domain", 1, hidden=units)

    def build(self) -> Generation:
        """The domain, with its data read."""
        ways = 1 + self.others
        drawings = FewShotRecipe(self.source, ways, self.shots, self.queries, data=self.data)
        return Generation(drawings.build(), self)

    def without_data(self) -> Generation:
        """Return the domain with its networks, but no drawings."""
        return Generation(None, self)  # type: ignore[arg-type]

    @property
    def players(self) -> Players:
        """The generator and the discriminator."""
        pixels = self.side**2
        return Players(
            Sketches(MLP((self.latent, *self.generator, pixels)), self.side),
            MLP((pixels, *self.discriminator, 1), "softplus"),
            self.penalty,
            self.weight,
            bounded=True,
        )


class Drawn(NamedTuple):
    """Held-out drawings (n, pixels), latent points (m, latent), drawings of other characters (k, pixels)."""

    points: Array
    latents: Array
    others: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generation(Adversarial):
    """Characters to be drawn after seeing a few drawings of each; made by `generation`."""

    drawings: FewShot
    recipe: GenerationRecipe = field(metadata={"static": True})

    widths: ClassVar[tuple[float, ...]] = (1.5, 3.0, 6.0)

    def draw(self, key: Array, split: str) -> Character:
        """One random character of a split."""
        return draw(self.drawings, key, split)

    def gather(self, indices: Character) -> Task:
        """The task of a character: drawings to learn from, others of it, and latent points for both."""
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
        """The share of drawings whose nearest held-out one is of the task's own character."""
        nearest = [
            jnp.min(jnp.sum(jnp.square(made[:, None] - each), -1), 1) for each in (query.points, query.others)
        ]
        return jnp.mean(nearest[0] < nearest[1], dtype=made.dtype)

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """The two-sample statistic on the query; by nearest neighbours and the discriminator, shares."""
        made = self.field.made(phi["generator"], task.query.latents)
        return {
            "mmd": two_samples(made, task.query.points, self.widths),
            "recognised": self._recognised(made, task.query),
            "told_apart": self.field.told_apart(phi, task.query),
        }

    def baselines(self, task: Task) -> dict[str, Array]:
        """The statistic of the support itself, of its mean over and over, and of another character."""
        seen, query, count = task.support.points, task.query, self.recipe.queries
        return {
            "the_support_itself": two_samples(seen, query.points, self.widths),
            "its_mean": two_samples(jnp.tile(seen.mean(0), (count, 1)), query.points, self.widths),
            "another_character": two_samples(query.others[:count], query.points, self.widths),
        }

    def scenes(self, before: Any, after: Any, task: Task) -> list[Scene]:
        """Drawings that were seen and held out, and those generated before and after adaptation."""
        shown = {"seen": task.support.points, "held out": task.query.points}
        for name, phi in (("before", before), ("after", after)):
            shown[name] = self.field.made(phi["generator"], task.query.latents)
        images = {name: sheet(each, self.recipe.side) for name, each in shown.items()}
        found = [self.metrics(phi, task) for phi in (before, after)]
        gone = " to ".join(f"{float(each['mmd']):.3f}" for each in found)
        told = " to ".join(f"{float(each['recognised']):.0%}" for each in found)
        return [Scene("drawings", f"two-sample statistic: {gone}; recognised: {told}", images=images)]

    def encode(self, x: Any, y: Any = None) -> Encoded:
        """Return drawings as a batch.

        Args:
            x: Drawings ``(n, side, side)``, ``(n, 28, 28)`` or ``(n, side^2)``, 1 = ink; or a sampled batch
                of `Samples`; or a mapping to ``points`` and ``latents``.
            y: Latent points ``(m, latent)``; by default random ones.

        Returns:
            The batch.
        """
        named = hasattr(x, "_fields") or isinstance(x, Mapping)
        return super().encode(x if named else rows_of(x, self.recipe.side), y)

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return as many latent points as tasks of training have."""
        return {"latents": self.latents(self.recipe.made)}

    def decode(self, outputs: np.ndarray, x: Any) -> np.ndarray:
        """Return drawings ``(m, side, side)``."""
        return outputs.reshape(-1, self.recipe.side, self.recipe.side)


def generation(source: str = "characters", **options: Any) -> Generation:
    """Return characters to be drawn after seeing a few drawings of each.

    Args:
        source: "characters" or "omniglot".
        **options: The other fields of `GenerationRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.generation(shots=2, queries=2, made=3, others=1)
        >>> task = jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0))  # slow untraced
        >>> task.support.points.shape, task.query.others.shape
        ((2, 196), (2, 196))
    """
    return GenerationRecipe(source, **options).build()
