"""Drawings to be restored by an energy: each task one character, prediction an inner minimisation of its own.

A drawing of which half is hidden, or that noise lies on, is completed as the least of

    y* = argmin_y  E(y; phi) + 1/2 sum_i weights_i (y_i - seen_i)^2,   E = (|y|^2 / 2 - f(y; phi)) / sigma^2

with f a network and weights 0 where a pixel is hidden: the energy of a denoising autoencoder, whose output is
df/dy. phi is fitted to a few drawings of the character by denoising score matching (Vincent 2011, eq. 11),
near theta:

    loss = 1/2 mean |e - sigma dE/dy(y + sigma e; phi)|^2,   e standard normal, drawn once

so that a meta-gradient goes through two stationary points, that of y and that of phi. phi is judged by the
squared error of what was hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.recipes import recipe
from ...core.validation import require_number, require_one_of, require_whole
from ...inner.gradient import GradientDescent
from ...linear.minres import MINRES
from ...meta.base import solve
from ...meta.implicit import implicit
from ...problems.base import Problem, Task
from ...problems.fixed_points import stationary
from ...problems.proximal import plain, proximal
from ..arrays import Field
from ..base import DomainBase, Encoded
from ..fewshot.domain import FewShot, FewShotRecipe
from ..networks import MLP
from ..recipes import ReadsData
from ..scenes import Scene
from .characters import SIDES, SOURCES, Character, draw, rows_of, sheet, shrunk

DAMAGES = ("half", "noise")
FAITH = 20.0  # weight of a pixel that is seen


@recipe("domain")
@dataclass(frozen=True)
class RestorationRecipe(ReadsData):
    """The recipe of a domain of restoration.

    Args:
        source: Procedural "characters", or "omniglot".
        shots: Drawings of a support set.
        queries: Drawings of a query set.
        damage: A random "half" of each query is hidden, or "noise" lies on it.
        noise: The standard deviation of that noise.
        side: Pixels a side, 7, 14 or 28.
        noises: How many times each support drawing is blurred for score matching.
        sigma: By how much.
        hidden: Units of the energy's hidden layers.
        steps: Of the gradient descent that restores.
        rate: Its rate.
        data: Where Omniglot is; None for the usual places.

    Raises:
        ConfigError: If a field is out of its range.
    """

    source: str = "characters"
    shots: int = 10
    queries: int = 10
    damage: str = "half"
    noise: float = 0.4
    side: int = 14
    noises: int = 4
    sigma: float = 0.3
    hidden: tuple[int, ...] = (128, 64)
    steps: int = 40
    rate: float = 0.04
    data: str | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_one_of("domain", "source", self.source, SOURCES)
        require_one_of("domain", "damage", self.damage, DAMAGES)
        require_one_of("domain", "side", self.side, SIDES)
        require_whole("domain", 1, shots=self.shots, queries=self.queries)
        require_whole("domain", 1, noises=self.noises, steps=self.steps)
        require_number("domain", 0, open=True, noise=self.noise, sigma=self.sigma, rate=self.rate)
        for units in self.hidden:
            require_whole("domain", 1, hidden=units)

    def build(self) -> Restoration:
        """The domain, with its data read."""
        drawings = FewShotRecipe(self.source, 2, self.shots, self.queries, data=self.data)
        return Restoration(drawings.build(), self)

    def without_data(self) -> Restoration:
        """Return the domain with its network, but no drawings."""
        return Restoration(None, self)  # type: ignore[arg-type]

    @property
    def energy(self) -> Denoising:
        """The energy, which is the inner loss as well."""
        pixels = self.side**2
        return Denoising(MLP((pixels, *self.hidden, 1), "silu"), self.sigma)


class Blurred(NamedTuple):
    """Drawings (n, pixels), and standard normal noise (n, m, pixels): each is blurred m times."""

    drawings: Array
    noise: Array


class Damaged(NamedTuple):
    """A query: whole drawings with noise, what is seen of them, and the weights of pixels, (n, pixels)."""

    blurred: Blurred
    seen: Array
    weights: Array


@dataclass(frozen=True)
class Denoising:
    """E(y; phi), and the loss of score matching, (phi, batch) -> scalar; hashable."""

    network: MLP
    sigma: float

    def at(self, phi: Any, drawings: Array) -> Array:
        """Energies (n,) of drawings (n, pixels)."""
        bowl = jnp.sum(jnp.square(drawings), -1) / 2
        return (bowl - self.network.forward(phi, drawings)[0][:, 0]) / self.sigma**2

    def outputs(self, phi: Any, batch: Blurred) -> Array:
        """Return sigma dE/dy at blurred drawings, ``(n, m, pixels)``."""
        blurred = batch.drawings[:, None] + self.sigma * batch.noise
        slopes = jax.grad(lambda y: jnp.sum(self.at(phi, y)))(blurred.reshape(-1, blurred.shape[-1]))
        return self.sigma * slopes.reshape(blurred.shape)

    def cost(self, outputs: Array, batch: Blurred) -> Array:
        """Half the squared distance of the outputs from the noise, the mean over blurred drawings' pixels."""
        return 0.5 * jnp.mean(jnp.square(outputs - batch.noise))

    def __call__(self, phi: Any, batch: Blurred) -> Array:
        """The loss of score matching of parameters `phi` on `batch`."""
        return self.cost(self.outputs(phi, batch), batch)

    def restoring(self) -> Problem:
        """The problem that y* solves, of all drawings (n, pixels) at once: its theta is phi."""

        def objective(y: Array, phi: Any, batch: Damaged) -> Array:
            kept = 0.5 * jnp.sum(batch.weights * jnp.square(y - batch.seen))
            return jnp.sum(self.at(phi, y)) + kept

        return stationary(objective, lambda phi, batch, key: batch.seen, structure="symmetric")

    def restored(self, phi: Any, batch: Damaged, steps: int, rate: float) -> Array:
        """Return restored drawings y*, differentiable in phi by the implicit rule.

        Args:
            phi: The energy's parameters.
            batch: Damaged drawings.
            steps: Of gradient descent.
            rate: Its rate.

        Returns:
            Drawings ``(n, pixels)``.
        """
        inner, rule = GradientDescent(rate, steps=steps), implicit(MINRES(steps=20))
        return solve(self.restoring(), phi, batch, inner=inner, rule=rule)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Restoration(DomainBase):
    """Damaged drawings of a character to be restored after seeing a few whole ones; by `restoration`."""

    drawings: FewShot
    recipe: RestorationRecipe = field(metadata={"static": True})

    headline: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    support_type: ClassVar[type] = Blurred

    @property
    def energy(self) -> Denoising:
        """The energy, which is the inner loss as well."""
        return self.recipe.energy

    def init(self, key: Array) -> Any:
        """Fresh parameters of the network."""
        return self.energy.network.init(key)

    def problem(self, strength: Any, adapt: Any = None, curvature: str = "hessian") -> Problem:
        """The loss of score matching on the support + strength/2 |phi - theta|^2; no anchor for None."""
        if strength is None:
            return plain(self.energy, adapt)
        return proximal(self.energy, strength, adapt, curvature=curvature)

    @staticmethod
    def whole(support: Blurred, query: Damaged) -> Blurred:
        """All drawings of a task as one batch, for methods that learn from it unsplit."""
        return Blurred(*(jnp.concatenate(pair) for pair in zip(support, query.blurred, strict=True)))

    def shared_loss(self, theta: Any, batch: Blurred) -> Array:
        """The loss of one energy for all tasks, a scalar."""
        return self.energy(theta, batch)

    def restored(self, phi: Any, batch: Damaged) -> Array:
        """The query's drawings (n, pixels) as restored."""
        return self.energy.restored(phi, batch, self.recipe.steps, self.recipe.rate)

    def error(self, drawings: Array, batch: Damaged) -> Array:
        """The mean squared error of drawings (n, pixels) where something was hidden or noisy, a scalar."""
        hidden = (batch.weights < FAITH).astype(drawings.dtype)
        return jnp.sum(hidden * jnp.square(drawings - batch.blurred.drawings)) / jnp.sum(hidden)

    def query_loss(self, phi: Any, theta: Any, batch: Damaged) -> Array:
        """The squared error of the restored drawings where they were damaged."""
        return self.error(self.restored(phi, batch), batch)

    def draw(self, key: Array, split: str) -> Character:
        """One random character of a split."""
        return draw(self.drawings, key, split)

    def gather(self, indices: Character) -> Task:
        """The task of a character: drawings to learn from, and damaged ones to be restored."""
        recipe, task = self.recipe, self.drawings.gather(indices.episode)
        count, pixels = recipe.shots + recipe.queries, recipe.side**2
        images = jnp.concatenate([task.support.images[: recipe.shots], task.query.images[: recipe.queries]])
        drawings = shrunk(images, recipe.side)
        blur, damage = jax.random.split(indices.key)
        noise = jax.random.normal(blur, (count, recipe.noises, pixels), jnp.float32)
        support, query = (
            Blurred(drawings[cut], noise[cut]) for cut in (slice(recipe.shots), slice(recipe.shots, None))
        )
        return Task(support, Damaged(query, *self._damaged(damage, query.drawings)))

    def _damaged(self, key: Array, drawings: Array) -> tuple[Array, Array]:
        """What is seen of drawings (n, pixels), and the weights of their pixels."""
        recipe, side = self.recipe, self.recipe.side
        if recipe.damage == "noise":
            noise = jax.random.normal(key, drawings.shape, drawings.dtype)
            return drawings + recipe.noise * noise, jnp.full_like(drawings, recipe.noise**-2)
        line = jnp.arange(side) < side // 2
        rows = jnp.broadcast_to(line[:, None], (side, side))
        halves = jnp.stack([rows, ~rows, rows.T, ~rows.T]).reshape(4, -1)
        hidden = halves[jax.random.randint(key, drawings.shape[:1], 0, 4)]
        return jnp.where(hidden, 0, drawings), jnp.where(hidden, 0, FAITH).astype(drawings.dtype)

    def metrics(self, phi: Any, task: Task) -> dict[str, Array]:
        """The squared error where drawings were damaged, the loss of score matching, and how near y* is.

        unrestored: |F| at what came out, over that at what was seen; 0 where every drawing is a least.
        """
        made, residual = self.restored(phi, task.query), self.energy.restoring().residual
        ends = [jnp.linalg.norm(residual(y, phi, task.query)) for y in (made, task.query.seen)]
        return {
            "mse": self.error(made, task.query),
            "score": self.energy(phi, task.query.blurred),
            "unrestored": ends[0] / jnp.maximum(ends[1], jnp.finfo(made.dtype).tiny),
        }

    def measure(self, phi: Any, theta: Any, batch: Damaged) -> dict[str, Array]:
        """The squared error; for a method's `measure`."""
        return {"mse": self.query_loss(phi, theta, batch)}

    def baselines(self, task: Task) -> dict[str, Array]:
        """The error of what is seen, of the support's mean, and of its drawing that is nearest where seen."""
        known, query = task.support.drawings, task.query
        away = jnp.sum(query.weights[:, None] * jnp.square(query.seen[:, None] - known), -1)
        return {
            "as_it_is": self.error(query.seen, query),
            "mean_of_support": self.error(jnp.tile(known.mean(0), (query.seen.shape[0], 1)), query),
            "nearest_of_support": self.error(known[jnp.argmin(away, 1)], query),
        }

    def scenes(self, before: Any, after: Any, task: Task) -> list[Scene]:
        """Drawings that were learned from; damaged ones, restored before and after adaptation, and whole."""
        query = task.query
        shown = {"learned from": task.support.drawings, "damaged": query.seen}
        shown |= {"before": self.restored(before, query), "after": self.restored(after, query)}
        shown["whole"] = query.blurred.drawings
        images = {name: sheet(each, self.recipe.side) for name, each in shown.items()}
        gone = " to ".join(f"{float(self.metrics(phi, task)['mse']):.3f}" for phi in (before, after))
        return [Scene("restored drawings", f"squared error where damaged: {gone}", images=images)]

    def support_fields(self) -> dict[str, Field]:
        """Return what drawings ``(n, pixels)`` and their noise ``(n, m, pixels)`` are."""
        pixels = self.recipe.side**2
        return {"drawings": Field((pixels,)), "noise": Field((None, pixels))}

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return standard normal noise, the same for the same number of drawings."""
        count, pixels = next(iter(arrays.values())).shape[0], self.recipe.side**2
        shape = (count, self.recipe.noises, pixels)
        return {"noise": jax.random.normal(jax.random.key(0), shape, jnp.float32)}

    def encode(self, x: Any, y: Any = None) -> Encoded:
        """Return whole drawings as a batch.

        Args:
            x: Drawings ``(n, side, side)``, ``(n, 28, 28)`` or ``(n, side^2)``, 1 = ink; or a sampled batch
                of `Blurred`; or a mapping to ``drawings`` and ``noise``.
            y: Standard normal noise ``(n, m, side^2)``; by default drawn.

        Returns:
            The batch.
        """
        named = hasattr(x, "_fields") or isinstance(x, Mapping)
        return super().encode(x if named else rows_of(x, self.recipe.side), y)

    def encode_query(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
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
        drawings = rows_of(x, side)
        hidden = np.isnan(drawings) if getattr(drawings, "dtype", np.dtype(int)).kind == "f" else False
        seen = field.check(drawings if hidden is False else np.where(hidden, 0, drawings), "x")
        faith = FAITH if self.recipe.damage == "half" else self.recipe.noise**-2
        return seen, np.where(np.broadcast_to(hidden, seen.shape), 0, faith).astype(np.float32)

    def query_rows(self, query: Damaged) -> np.ndarray:
        """Return damaged drawings ``(n, side^2)``, NaN where a pixel is hidden."""
        seen, weights = self.encode_query(query)
        return np.where(weights > 0, seen, np.nan)

    def forward(self, phi: Any, rows: Any, statistics: Any = None) -> Array:
        """Return restored drawings ``(n, pixels)``."""
        seen, weights = rows
        blank = Blurred(jnp.zeros_like(seen), jnp.zeros_like(seen)[:, None])
        return self.restored(phi, Damaged(blank, seen, weights))

    def decode(self, outputs: np.ndarray, x: Any) -> np.ndarray:
        """Return drawings ``(n, side, side)``."""
        return outputs.reshape(-1, self.recipe.side, self.recipe.side)


def restoration(source: str = "characters", **options: Any) -> Restoration:
    """Return damaged drawings to be restored.

    Args:
        source: "characters" or "omniglot".
        **options: The other fields of `RestorationRecipe`.

    Returns:
        The domain.

    Example:
        >>> import imaml, jax
        >>> domain = imaml.restoration(shots=2, queries=3)
        >>> task = jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0))  # slow untraced
        >>> task.query.seen.shape
        (3, 196)
    """
    return RestorationRecipe(source, **options).build()
