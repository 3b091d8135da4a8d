"""Simple models without meta-learning: of one task's rows alone, or of all training rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core.tree import Tree
from ..fewshot.episodes import BINS
from .layout import ArraySpec, Rows
from .losses import RowLoss

POOLED_FEATURES, POOLED_ROWS = 512, 50_000  # up to which a linear model of all rows is fitted
LEAST = 1e-6  # of sums of weights that something is divided by


def flat(inputs: Tree) -> Array:
    """Return inputs as one matrix.

    Args:
        inputs: A tree of coded arrays ``(n, ...)``.

    Returns:
        float32 ``(n, features)``.
    """
    leaves = jax.tree.leaves(inputs)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(jnp.float32) for leaf in leaves], axis=1)


def weighted_mean(values: Array, weights: Array) -> Array:
    """Return the mean over rows.

    Args:
        values: ``(n, k)``.
        weights: How many times each row counts, ``(n,)``.

    Returns:
        ``(k,)``.
    """
    return jnp.sum(weights[:, None] * values, axis=0) / jnp.maximum(jnp.sum(weights), LEAST)


def ridge(x: Array, asked: Array, support: Rows) -> Array:
    """Predict by ridge regression on the support set, with a penalty of 1; the intercept has none.

    The minimiser of ``|X b - y|^2 + |b|^2`` is ``X^T (X X^T + I)^-1 y``, with as many equations as rows,
    which are few.

    Args:
        x: The support set's inputs ``(n, features)``.
        asked: The query's inputs ``(m, features)``.
        support: The support set, for its targets and weights.

    Returns:
        Predictions ``(m, k)``.
    """
    centre, level = weighted_mean(x, support.weights), weighted_mean(support.targets, support.weights)
    root = jnp.sqrt(support.weights)[:, None]
    rows, targets = root * (x - centre), root * (support.targets - level)
    duals = jnp.linalg.solve(rows @ rows.T + jnp.eye(rows.shape[0]), targets)
    return (asked - centre) @ (rows.T @ duals) + level


def nearest_mean(x: Array, asked: Array, support: Rows, ways: int) -> Array:
    """Predict the class whose mean support input is nearest.

    Args:
        x: The support set's inputs ``(n, features)``.
        asked: The query's inputs ``(m, features)``.
        support: The support set, for its labels and weights.
        ways: How many classes there are.

    Returns:
        ``(m, ways)``, largest for the nearest; least for classes without support rows.
    """
    centre = weighted_mean(x, support.weights)
    marks = jax.nn.one_hot(support.labels, ways) * support.weights[:, None]
    sizes = jnp.sum(marks, axis=0)
    means = marks.T @ (x - centre) / jnp.maximum(sizes, LEAST)[:, None]
    # -|a - m|^2 + |a|^2, without an array (m, ways, features)
    scores = 2 * (asked - centre) @ means.T - jnp.sum(jnp.square(means), axis=1)
    return jnp.where(sizes > 0, scores, -1e30)


def constant_counts(loss: RowLoss, support: Rows, query: Rows) -> Array:
    """Predict counts by the support set's rate, and their dispersion by its moments.

    Args:
        loss: The loss, with one output (the logarithm of the mean) or two (and that of the dispersion).
        support: The support set.
        query: The query.

    Returns:
        Outputs ``(m, 1 or 2)``. Half an event more than there were keeps a rate of 0 finite.
    """
    offsets = [0.0 if rows.offset is None else rows.offset for rows in (support, query)]
    counts, exposure = support.targets[:, 0], jnp.broadcast_to(jnp.exp(offsets[0]), support.weights.shape)
    rate = (jnp.sum(support.weights * counts) + 0.5) / jnp.maximum(jnp.sum(support.weights * exposure), LEAST)
    first = jnp.broadcast_to(jnp.log(rate) + offsets[1], query.weights.shape)
    if loss.outputs_for(1) == 1:
        return first[:, None]
    # The variance is m + dispersion m^2.
    mean = rate * exposure
    excess = jnp.sum(support.weights * (jnp.square(counts - mean) - mean))
    dispersion = excess / jnp.maximum(jnp.sum(support.weights * jnp.square(mean)), LEAST)
    return jnp.stack([first, jnp.broadcast_to(jnp.log(jnp.maximum(dispersion, 0.01)), first.shape)], axis=1)


def confidences(logits: Array, labels: Array, weights: Array) -> Array:
    """Return what calibration errors are made of; as `confidences` of few-shot images, with weights.

    Args:
        logits: ``(n, ways)``.
        labels: Integers ``(n,)``.
        weights: How many times each row counts, ``(n,)``.

    Returns:
        By bin of confidence: rows, the sum of their confidences, and how many are right; ``(bins, 3)``.
    """
    sure = jax.nn.softmax(logits).max(axis=1)
    right = (jnp.argmax(logits, axis=1) == labels).astype(sure.dtype)
    bins = jnp.minimum((sure * BINS).astype(jnp.int32), BINS - 1)
    parts = jnp.stack([jnp.ones_like(sure), sure, right], axis=1) * weights[:, None]
    return jnp.zeros((BINS, 3), sure.dtype).at[bins].add(parts.astype(sure.dtype))


class Pooled(NamedTuple):
    """One linear model of all training rows.

    Attributes:
        coefficients: ``(features + 1, outputs)``, intercept first.
        rows: Of numbers: to how many rows without a level of their own the model's level for a task amounts,
            ``(outputs,)``; else None. It is the variance within tasks over that between tasks.
    """

    coefficients: Array
    rows: Array | None

    @classmethod
    def of(cls, coefficients: Sequence[Sequence[float]], rows: Sequence[float]) -> Pooled:
        """Return the model of stored numbers.

        Args:
            coefficients: As the attribute.
            rows: Likewise; empty for None.

        Returns:
            The model.
        """
        return cls(jnp.asarray(coefficients, jnp.float32), jnp.asarray(rows, jnp.float32) if rows else None)

    def numbers(self) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
        """Return what `of` takes.

        Returns:
            The coefficients, and the rows.
        """
        rows = () if self.rows is None else tuple(np.asarray(self.rows).tolist())
        return tuple(map(tuple, np.asarray(self.coefficients).tolist())), rows

    def level(self, support: Rows, predicted: Array) -> Array:
        """Return a task's level above the model: its mean residual, shrunk towards zero.

        That is the best linear unbiased predictor of a random intercept (Robinson 1991, eq. 1.2).

        Args:
            support: The task's support set.
            predicted: The model's predictions for it, ``(n, outputs)``.

        Returns:
            ``(outputs,)``.
        """
        assert self.rows is not None
        total = jnp.sum(support.weights[:, None] * (support.targets - predicted), axis=0)
        return total / (jnp.sum(support.weights) + self.rows)


def pooled_model(
    coded: Sequence[np.ndarray],
    inputs: Sequence[ArraySpec],
    targets: np.ndarray,
    weights: np.ndarray,
    offset: np.ndarray | None,
    loss: RowLoss,
    classes: int,
    owner: np.ndarray,
) -> Pooled | None:
    """Fit one linear model of all training rows: of classes their indicators, of counts their logarithms.

    Args:
        coded: The coded inputs of training rows, bytes not divided yet.
        inputs: Their specifications.
        targets: Coded targets ``(rows, k)``, or classes ``(rows,)``.
        weights: ``(rows,)``.
        offset: ``(rows,)``, or None.
        loss: The loss.
        classes: How many classes there are; 0 of numbers.
        owner: The task of each row, ``(rows,)``.

    Returns:
        The model; None if there are too many features.
    """
    features = sum(int(np.prod(spec.shape)) for spec in inputs)
    if features > POOLED_FEATURES:
        return None
    every = -(-len(targets) // POOLED_ROWS)
    columns = [
        array[::every].reshape(len(array[::every]), -1).astype(np.float64)
        / (255 if spec.form == "bytes" else 1)
        for array, spec in zip(coded, inputs, strict=True)
    ]
    design = np.column_stack([np.ones(len(columns[0])), *columns])
    wanted = np.eye(classes)[targets[::every]] if classes else targets[::every].astype(np.float64)
    weights, shift = weights[::every], np.zeros(len(design)) if offset is None else offset[::every]
    if loss.targets == "counts":
        found = _log_linear(design, wanted[:, 0], weights, shift, loss.outputs_for(1))
        return Pooled(jnp.asarray(found, jnp.float32), None)
    if not classes:
        wanted[:, 0] -= shift
    root = np.sqrt(weights)[:, None]
    found = np.linalg.lstsq(root * design, root * wanted, rcond=None)[0]
    rows = None if classes else _ratio(wanted - design @ found, owner[::every])
    return Pooled(jnp.asarray(found, jnp.float32), None if rows is None else jnp.asarray(rows, jnp.float32))


def _ratio(residuals: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The variance within tasks over that between them, by analysis of variance (Searle et al. 1992, 3.6)."""
    task, counts = np.unique(owner, return_inverse=True, return_counts=True)[1:]
    total, groups = len(residuals), len(counts)
    means = np.stack([np.bincount(task, column) for column in residuals.T], 1) / counts[:, None]
    within = np.sum((residuals - means[task]) ** 2, axis=0) / max(total - groups, 1)
    spread = counts @ (means - residuals.mean(axis=0)) ** 2 / max(groups - 1, 1)
    usual = (total - np.sum(counts**2) / total) / max(groups - 1, 1)  # rows of a task
    between = (spread - within) / max(usual, 1.0)
    return np.clip(within / np.maximum(between, 1e-12), 1e-6, 1e6)


def _log_linear(
    design: np.ndarray, counts: np.ndarray, weights: np.ndarray, offset: np.ndarray, outputs: int
) -> np.ndarray:
    """Poisson regression by Newton's method, slightly penalised; the dispersion, if asked for, by moments."""
    total = max(float(weights.sum()), LEAST)
    penalty = 1e-3 * np.eye(design.shape[1])
    rate = (float((weights * counts).sum()) + 0.5) / max(float((weights * np.exp(offset)).sum()), LEAST)
    found = np.zeros(design.shape[1])
    found[0] = np.log(rate)
    for _ in range(25):
        mean = np.exp(np.clip(design @ found + offset, -30, 30))
        slope = design.T @ (weights * (counts - mean)) - penalty @ found
        step = np.linalg.solve(design.T @ (design * (weights * mean)[:, None]) + penalty, slope)
        found += step / max(
            1.0, float(np.abs(design @ step).max())
        )  # no mean changes by more than a factor e
        if np.abs(slope).max() < 1e-8 * total:
            break
    if outputs == 1:
        return found[:, None]
    mean = np.exp(np.clip(design @ found + offset, -30, 30))
    excess = (weights * ((counts - mean) ** 2 - mean)).sum() / max(float((weights * mean**2).sum()), LEAST)
    second = np.zeros_like(found)
    second[0] = np.log(max(float(excess), 0.01))
    return np.column_stack([found, second])
