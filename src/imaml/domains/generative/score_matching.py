"""Energies fitted by denoising score matching, as an inner problem: the base of two domains.

An energy E(x; phi) stands for the density p(x) in proportion to exp(-E(x; phi)). Denoising score matching
(Vincent 2011, eq. 11) fits its slope to blurred points, without a normaliser:

    loss = 1/2 mean |e - sigma dE/dx(x + sigma e; phi)|^2,   e standard normal, drawn once
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.fields import PositiveInt
from ...core.tree import Tree
from ...problems.losses import CompositeLoss
from ..base import DomainBase
from ..networks import MLP
from ..recipes import DomainRecipe


@dataclass(frozen=True)
class ScoreMatching(CompositeLoss):
    """The base of losses of score matching, ``(phi, batch) -> scalar``; a subclass defines `at` and `cost`.

    A batch is a pair: points ``(n, d)``, and standard normal noise ``(n, m, d)``. Each point is blurred m
    times.

    Attributes:
        network: The network that the energy is made of.
        sigma: The standard deviation of the blur.
    """

    network: MLP
    sigma: float

    def at(self, phi: Tree, points: Array) -> Array:
        """Return the energies of points.

        Args:
            phi: The network's parameters.
            points: ``(n, d)``.

        Returns:
            Energies ``(n,)``, up to one constant.
        """
        raise NotImplementedError

    def outputs(self, phi: Tree, batch: tuple[Array, Array]) -> Array:
        """Return sigma dE/dx at blurred points, ``(n, m, d)``."""
        points, noise = batch
        blurred = (points[:, None] + self.sigma * noise).reshape(-1, points.shape[-1])
        slopes = jax.grad(lambda x: jnp.sum(self.at(phi, x)))(blurred)
        return self.sigma * slopes.reshape(noise.shape)


class EnergyRecipe(DomainRecipe):
    """The base of recipes of energies; a subclass has the field ``noises``.

    Attributes:
        noises: How many times each point of a support set is blurred.
    """

    noises: PositiveInt


class EnergyDomain(DomainBase):
    """The base of domains whose tasks are learned by an energy; a subclass defines `loss`."""

    recipe: EnergyRecipe

    def completed(self, arrays: dict[str, np.ndarray]) -> dict[str, Array]:
        """Return standard normal noise, the same for the same number of points."""
        points = next(iter(arrays.values()))
        shape = (len(points), self.recipe.noises, points.shape[1])
        return {"noise": jax.random.normal(jax.random.key(0), shape, jnp.float32)}
