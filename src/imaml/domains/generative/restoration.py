"""Drawings restored by an energy: each task is a character, and each prediction is itself a minimisation.

A drawing that is half hidden or noisy is restored as the minimum

    y* = argmin_y  E(y; phi) + 1/2 sum_i weights_i (y_i - seen_i)^2,   E = (|y|^2 / 2 - f(y; phi)) / sigma^2

with f a network and weights 0 where a pixel is hidden: the energy of a denoising autoencoder, whose output is
df/dy. phi is fitted to a few drawings of the character by denoising score matching, near theta (see
`imaml.domains.generative.score_matching`). So a meta-gradient passes through two stationary points, that of y
and that of phi. The score of phi is the squared error of the hidden pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.errors import ConfigError
from ...core.fields import PositiveFloat, PositiveInt
from ...core.recipes import recipe
from ...core.tree import Tree
from ...inner.gradient import GradientDescent
from ...linear.minres import MINRES
from ...meta.base import solve
from ...meta.implicit import implicit
from ...problems.base import Problem, Task
from ...problems.fixed_points import stationary
from ..arrays import Field
from ..base import cut
from ..fewshot.domain import FewShot
from ..networks import MLP
from ..recipes import builder
from ..scenes import Scene
from .characters import Character, CharactersDomain, CharactersRecipe, Side, Source, rows_of, sheet, shrunk
from .score_matching import EnergyDomain, EnergyRecipe, ScoreMatching

FAITH = 20.0  # weight of a visible pixel
FARTHEST = 8.0  # standard deviations that no noise reaches


@recipe("domain")
class RestorationRecipe(CharactersRecipe, EnergyRecipe):
    """Damaged drawings to be restored.

    Args:
        source: Procedural "characters", or "omniglot".
        shots: Drawings of a support set.
        queries: Drawings of a query set.
        damage: "half": a random half of each query is hidden; "noise": it has noise on it.
        noise: The standard deviation of that noise.
        side: Pixels a side, 7, 14 or 28.
        noises: How many times each support drawing is blurred for score matching.
        sigma: The standard deviation of the blur.
        hidden: Units of the energy's hidden layers.
        steps: Steps of the gradient descent that restores.
        rate: Its learning rate.
        data: Where Omniglot is; None for the usual places.

    Raises:
        ConfigError: If a field is out of its range.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.restoration(shots=2, queries=3)
        >>> task = jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0))  # slow untraced
        >>> task.query.seen.shape
        (3, 196)
    """

    source: Source = "characters"
    shots: PositiveInt = 10
    queries: PositiveInt = 10
    damage: Literal["half", "noise"] = "half"
    noise: PositiveFloat = 0.4
    side: Side = 14
    noises: PositiveInt = 4
    sigma: PositiveFloat = 0.3
    hidden: tuple[PositiveInt, ...] = (128, 64)
    steps: PositiveInt = 40
    rate: PositiveFloat = 0.04
    data: str | None = None

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        super().__post_init__()
        # The curvature where f is linear: gradient descent diverges from twice its inverse on.
        sharp = self.noise**-2 + self.sigma**-2
        if self.damage == "noise" and self.rate * sharp >= 2:
            raise ConfigError(
                f"domain: rate: expected below {2 / sharp:.2g}, as gradient descent diverges otherwise with "
                f"noise={self.noise:g} and sigma={self.sigma:g}, got {self.rate:g}. Hint: set --domain.rate."
            )

    def build(self) -> Restoration:
        """Return the domain, with its data read."""
        return Restoration(self.drawings(2), self)

    def without_data(self) -> Restoration:
        """Return the domain with its network, but no drawings."""
        return Restoration(None, self)  # type: ignore[arg-type]

    @property
    def network(self) -> MLP:
        """The network f of the energy."""
        return MLP((self.side**2, *self.hidden, 1), "silu")


restoration = builder(RestorationRecipe)


class Blurred(NamedTuple):
    """Drawings ``(n, pixels)``, and standard normal noise ``(n, m, pixels)``: each is blurred m times."""

    drawings: Array
    noise: Array


class Damaged(NamedTuple):
    """A query batch: drawings with noise for score matching, what is seen of them, and weights of pixels."""

    blurred: Blurred
    seen: Array
    weights: Array


@dataclass(frozen=True)
class Denoising(ScoreMatching):
    """E(y; phi) = (|y|^2 / 2 - f(y; phi)) / sigma^2, with f a network; hashable."""

    def at(self, phi: Tree, points: Array) -> Array:
        """Return the energies ``(n,)`` of drawings ``(n, pixels)``."""
        quadratic = jnp.sum(jnp.square(points), -1) / 2
        return (quadratic - self.network.forward(phi, points)[0][:, 0]) / self.sigma**2

    def cost(self, outputs: Array, batch: Blurred) -> Array:
        """Return half the squared distance of the outputs from the noise, the mean over all pixels."""
        return 0.5 * jnp.mean(jnp.square(outputs - batch.noise))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Restoration(CharactersDomain, EnergyDomain):
    """Damaged drawings of a character to be restored after seeing a few whole ones; made by `restoration`."""

    drawings: FewShot
    recipe: RestorationRecipe = field(metadata={"static": True})

    headline: ClassVar[str] = "mse"
    support_type: ClassVar[type] = Blurred

    @property
    def loss(self) -> Denoising:
        """The loss of score matching; its `at` is the energy."""
        return Denoising(self.recipe.network, self.recipe.sigma)

    def restoring(self) -> Problem:
        """Return the problem that y* solves, of all drawings ``(n, pixels)`` at once; its theta is phi."""

        def objective(y: Array, phi: Tree, batch: Damaged) -> Array:
            kept = 0.5 * jnp.sum(batch.weights * jnp.square(y - batch.seen))
            return jnp.sum(self.loss.at(phi, y)) + kept

        return stationary(objective, lambda phi, batch, key: batch.seen, structure="symmetric")

    def restored(self, phi: Tree, batch: Damaged) -> Array:
        """Return the query's restored drawings y*, differentiable in phi by the implicit rule.

        Args:
            phi: The energy's parameters.
            batch: Damaged drawings.

        Returns:
            Drawings ``(n, pixels)``.
        """
        inner, rule = GradientDescent(self.recipe.rate, steps=self.recipe.steps), implicit(MINRES(steps=20))
        return solve(self.restoring(), phi, batch, inner=inner, rule=rule)

    def error(self, drawings: Array, batch: Damaged) -> Array:
        """Return the mean squared error of drawings where they were damaged.

        Args:
            drawings: ``(n, pixels)``.
            batch: The query batch.

        Returns:
            A scalar.
        """
        squares = jnp.square(drawings - batch.blurred.drawings)
        if self.recipe.damage == "noise":  # on all pixels, however little of it
            return jnp.mean(squares)
        hidden = (batch.weights == 0).astype(drawings.dtype)
        return jnp.sum(hidden * squares) / jnp.sum(hidden)

    def query_loss(self, phi: Tree, theta: Tree, batch: Damaged) -> Array:
        """Return the squared error of the restored drawings where they were damaged."""
        return self.error(self.restored(phi, batch), batch)

    def measure(self, phi: Tree, theta: Tree, batch: Damaged) -> dict[str, Array]:
        """Return the squared error of the restored drawings."""
        return {"mse": self.query_loss(phi, theta, batch)}

    def gather(self, indices: Character) -> Task:
        """Return the task of a character: drawings to learn from, and damaged ones to be restored."""
        recipe, task = self.recipe, self.drawings.gather(indices.episode)
        count, pixels = recipe.shots + recipe.queries, recipe.side**2
        images = jnp.concatenate([task.support.images[: recipe.shots], task.query.images[: recipe.queries]])
        drawings = shrunk(images, recipe.side)
        blur, damage = jax.random.split(indices.key)
        noise = jax.random.normal(blur, (count, recipe.noises, pixels), jnp.float32)
        support, query = cut(Blurred(drawings, noise), recipe.shots)
        return Task(support, Damaged(query, *self._damaged(damage, query.drawings)))

    def _damaged(self, key: Array, drawings: Array) -> tuple[Array, Array]:
        """Return what is seen of drawings (n, pixels), and the weights of their pixels."""
        recipe, side = self.recipe, self.recipe.side
        if recipe.damage == "noise":
            noise = jax.random.normal(key, drawings.shape, drawings.dtype)
            return drawings + recipe.noise * noise, jnp.full_like(drawings, recipe.noise**-2)
        # One of four halves of each drawing is hidden: upper, lower, left or right.
        line = jnp.arange(side) < side // 2
        rows = jnp.broadcast_to(line[:, None], (side, side))
        halves = jnp.stack([rows, ~rows, rows.T, ~rows.T]).reshape(4, -1)
        hidden = halves[jax.random.randint(key, drawings.shape[:1], 0, 4)]
        return jnp.where(hidden, 0, drawings), jnp.where(hidden, 0, FAITH).astype(drawings.dtype)

    def metrics(self, phi: Tree, task: Task) -> dict[str, Array]:
        """Return the squared error where drawings were damaged, the loss of score matching, and convergence.

        "unrestored" is |F| at the restored drawings, over |F| at what was seen; 0 where each is a minimum.
        """
        made, residual = self.restored(phi, task.query), self.restoring().residual
        ends = [jnp.linalg.norm(residual(y, phi, task.query)) for y in (made, task.query.seen)]
        return {
            "mse": self.error(made, task.query),
            "score": self.loss(phi, task.query.blurred),
            "unrestored": ends[0] / jnp.maximum(ends[1], jnp.finfo(made.dtype).tiny),
        }

    def baselines(self, task: Task) -> dict[str, Array]:
        """Return the error of what is seen, of the support's mean, and of the drawing nearest where seen."""
        known, query = task.support.drawings, task.query
        away = jnp.sum(query.weights[:, None] * jnp.square(query.seen[:, None] - known), -1)
        return {
            "as_it_is": self.error(query.seen, query),
            "mean_of_support": self.error(jnp.tile(known.mean(0), (query.seen.shape[0], 1)), query),
            "nearest_of_support": self.error(known[jnp.argmin(away, 1)], query),
        }

    def scenes(self, before: Tree, after: Tree, task: Task) -> list[Scene]:
        """Return drawings that were learned from, and damaged ones: restored before and after, and whole."""
        query = task.query
        shown = {"learned from": task.support.drawings, "damaged": query.seen}
        shown |= {"before": self.restored(before, query), "after": self.restored(after, query)}
        shown["whole"] = query.blurred.drawings
        images = {name: sheet(each, self.recipe.side) for name, each in shown.items()}
        note = f"squared error where damaged: {self.change(before, after, task, '.3f')}"
        return [Scene("restored drawings", note, images=images)]

    def support_fields(self) -> dict[str, Field]:
        """Return what drawings ``(n, pixels)`` and their noise ``(n, m, pixels)`` are."""
        pixels = self.recipe.side**2
        return {"drawings": Field((pixels,)), "noise": Field((None, pixels))}

    def encode_query(self, x: Tree) -> tuple[np.ndarray, np.ndarray]:
        """Return damaged drawings and the weights of their pixels, ``(n, pixels)`` each.

        Args:
            x: Drawings ``(n, side, side)`` or ``(n, side^2)``, NaN where a pixel is hidden; or a sampled
                batch of `Damaged`.

        Returns:
            What is seen, and the weights.
        """
        field, side = Field((self.recipe.side**2,)), self.recipe.side
        if isinstance(x, Damaged):
            return field.check(x.seen, "seen"), field.check(x.weights, "weights")
        noisy = self.recipe.damage == "noise"
        drawings = rows_of(x, side, FARTHEST * self.recipe.noise if noisy else 0.0)
        hidden = np.isnan(drawings) if getattr(drawings, "dtype", np.dtype(int)).kind == "f" else False
        seen = field.check(drawings if hidden is False else np.where(hidden, 0, drawings), "x")
        faith = self.recipe.noise**-2 if noisy else FAITH
        return seen, np.where(np.broadcast_to(hidden, seen.shape), 0, faith).astype(np.float32)

    def query_rows(self, query: Damaged) -> np.ndarray:
        """Return damaged drawings ``(n, side^2)``, NaN where a pixel is hidden."""
        seen, weights = self.encode_query(query)
        return np.where(weights > 0, seen, np.nan)

    def forward(self, phi: Tree, rows: tuple[Array, Array], statistics: None = None) -> Array:
        """Return restored drawings ``(n, pixels)``."""
        seen, weights = rows
        blank = Blurred(jnp.zeros_like(seen), jnp.zeros_like(seen)[:, None])
        return self.restored(phi, Damaged(blank, seen, weights))
