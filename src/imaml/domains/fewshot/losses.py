"""The inner losses of few-shot classification: cross-entropy, and squares for a head in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ...core.tree import Tree
from ...problems.likelihoods import Categorical
from ...problems.linear_outputs import LinearSquares
from ...problems.losses import CompositeLoss
from ..networks import Conv4
from .distortion import with_copies
from .episodes import Labelled, cross_entropy

By: TypeAlias = Literal["batch", "support", "running"]
LAYERS = ("conv1", "conv2", "conv3", "conv4")


def expand_head(mean: Tree, batch: Labelled) -> Tree:
    """Give a head of one column, shared by all classes, a column for each class of a task.

    Args:
        mean: The adapted parameters of theta.
        batch: The support set, whose targets have as many columns as the task has classes; or none where each
            class has a column of its own in theta.

    Returns:
        A tree like ``mean`` that starts the task.
    """
    if batch.targets is None or mean.get("head") is None:
        return mean
    ways = batch.targets.shape[1]
    wide = lambda leaf: None if leaf is None else jnp.broadcast_to(leaf, (*leaf.shape[:-1], ways))  # noqa: E731
    return {**mean, "head": {name: wide(leaf) for name, leaf in mean["head"].items()}}


def measured(network: Conv4, phi: Tree, images: Callable[[Array], Array], keys: Array) -> Tree:
    """Measure what each layer of a network is normalised by, over the images of many tasks.

    Args:
        network: The network.
        phi: The full tree of parameters.
        images: A random key -> the images of a task, ``(n, side, side, channels)``.
        keys: A key for each task.

    Returns:
        For each layer its mean and variance, ``(filters,)``.
    """
    found = jax.lax.map(lambda key: network.embed(phi, images(key))[1], keys)
    # The variance of all images is the mean of the tasks' variances, and the variance of their means.
    return {
        name: {"mean": means.mean(0), "variance": variances.mean(0) + means.var(0)}
        for name, (means, variances) in zip(LAYERS, found, strict=True)
    }


@dataclass(frozen=True)
class ImagesLoss(CompositeLoss):
    """The mean cross-entropy of labelled images, (phi, batch) -> scalar; hashable.

    Attributes:
        network: The network.
        by: What images are normalised by: the statistics of their own batch, of the support set, or the ones
            that phi holds, of many training tasks.
        copies: How many distorted copies of each image count beside it, with its label. The statistics of a
            batch are those of the images themselves.
    """

    network: Conv4
    by: By
    copies: int = 0
    likelihood: ClassVar[Categorical] = Categorical()
    averages: ClassVar[bool] = True

    @property
    def outputs_per_row(self) -> int:
        """One for the image itself, and one for each copy."""
        return 1 + self.copies

    def outputs(self, phi: Tree, batch: Labelled) -> Array:
        """Return logits ``(n, ways)``."""
        return self.network.forward(phi, *shown(self, phi, batch))[0]

    def cost(self, outputs: Array, batch: Labelled) -> Array:
        """Return the mean cross-entropy of logits."""
        return cross_entropy(outputs, labels_shown(self, batch))

    expand_head = staticmethod(expand_head)


@dataclass(frozen=True)
class SquaredImagesLoss(LinearSquares):
    """Half the mean squared distance of outputs from labels as unit vectors, for a head in closed form.

    Attributes:
        network: The network.
        by: As in `ImagesLoss`.
        copies: As in `ImagesLoss`.

    References:
        Bertinetto et al. (2019), Meta-learning with differentiable closed-form solvers.
    """

    network: Conv4
    by: By
    copies: int = 0
    linear_in: ClassVar[tuple[str, ...]] = ("head",)

    @property
    def outputs_per_row(self) -> int:
        """One for the image itself, and one for each copy."""
        return 1 + self.copies

    def design(self, phi: Tree, batch: Labelled) -> Tree:
        """Return the features of the images, and ones for the biases."""
        features = self.network.embed(phi, *shown(self, phi, batch))[0]
        return {"head": {"bias": jnp.ones((features.shape[0], 1), features.dtype), "kernel": features}}

    def targets(self, batch: Labelled, columns: int) -> Array:
        """Return a unit vector for each label."""
        return jax.nn.one_hot(labels_shown(self, batch), columns, dtype=batch.images.dtype)

    def outputs(self, phi: Tree, batch: Labelled) -> Array:
        """Return the outputs, ``(n, ways)``."""
        return self.network.forward(phi, *shown(self, phi, batch))[0]

    expand_head = staticmethod(expand_head)


def shown(loss: ImagesLoss | SquaredImagesLoss, phi: Tree, batch: Labelled) -> tuple[Array, Tree]:
    """Return the images of a batch that a loss counts, and what they are normalised by.

    Args:
        loss: The loss.
        phi: The full tree of parameters.
        batch: The batch, ``n`` images.

    Returns:
        The images with their copies, ``(n (1 + copies), side, side, channels)``; and what `Conv4.forward`
        takes.
    """
    statistics = statistics_of(loss.network, loss.by, phi, batch)
    if not loss.copies:
        return batch.images, statistics
    if statistics is None:
        statistics = loss.network.embed(phi, batch.images)[1]
    return with_copies(batch.images, loss.copies), statistics


def labels_shown(loss: ImagesLoss | SquaredImagesLoss, batch: Labelled) -> Array:
    """Return the label of each image that `shown` returns.

    Args:
        loss: The loss.
        batch: The batch, ``n`` images.

    Returns:
        Labels, ``(n (1 + copies),)``.
    """
    return jnp.repeat(batch.labels, loss.outputs_per_row)


def statistics_of(network: Conv4, by: By, phi: Tree, batch: Labelled) -> Tree:
    """Return what a batch is normalised by.

    Args:
        network: The network.
        by: As in `ImagesLoss`.
        phi: The full tree of parameters.
        batch: The images.

    Returns:
        What `Conv4.forward` takes; None for the batch's own statistics, which a support set always has if
        there are no running ones.
    """
    if by == "running":
        return [(phi["statistics"][name]["mean"], phi["statistics"][name]["variance"]) for name in LAYERS]
    if by == "support" and batch.reference is not None:
        return network.embed(phi, batch.reference)[1]
    return None
