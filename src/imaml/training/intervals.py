"""Prediction intervals on tasks whose targets are known: for calibration, and how often they cover."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from ..core.errors import NumericalError
from ..core.statistics import mean_intervals
from ..domains.base import DomainBase
from ..predict import Learner
from .scores import Evaluation

LEVEL = 0.9  # of the intervals whose coverage an evaluation shows
MOST = 200  # tasks


def scaled_errors(
    learner: Learner, domain: DomainBase, split: str, tasks: int, seed: int
) -> list[np.ndarray]:
    """Compute absolute errors in predicted standard deviations, noise included.

    Args:
        learner: Adapts to each task.
        domain: Where tasks come from.
        split: The split that they are drawn from.
        tasks: How many.
        seed: Seed of the tasks.

    Returns:
        The errors of each task's query rows, in coded units; none of a task that fails numerically. A fixed
        number of tasks is drawn in turn.

    Raises:
        StructureError: If the method has no prior, so that a task has no posterior.
    """
    key, errors = jax.random.key(seed), []
    # Compiled: the operations of a posterior, dispatched one by one, take far longer.
    spread = jax.jit(lambda posterior, query: (posterior.outputs(query), posterior.noise))
    draw = jax.jit(lambda domain, key, place: domain.gather(domain.draw_in_turn(key, split, place)))
    for i in range(tasks):
        task = draw(domain, jax.random.fold_in(key, i), i)
        query = task.query
        try:
            posterior = learner.adapt(task.support).posterior
        except NumericalError:  # an evaluation counts the task as failed
            errors.append(np.zeros(0))
            continue
        found, noise = jax.device_get(spread(posterior, query))
        variance = np.diagonal(found.covariance, axis1=1, axis2=2) + noise
        scaled = np.abs(found.mean - np.asarray(query.targets)) / np.sqrt(variance)
        scaled = scaled[np.asarray(query.weights) > 0].ravel()
        errors.append(scaled if np.isfinite(scaled).all() else np.zeros(0))
    return errors


def with_coverage(found: Evaluation, learner: Learner, domain: DomainBase) -> Evaluation:
    """Add how often calibrated intervals cover, on at most 200 tasks of an evaluation's split.

    Args:
        found: The evaluation.
        learner: What was evaluated.
        domain: The domain that it was evaluated on.

    Returns:
        The evaluation; unchanged if intervals are not calibrated.
    """
    width = domain.interval_widths.get(LEVEL)
    if width is None:
        return found
    errors = scaled_errors(learner, domain, found.split, min(found.tasks, MOST), found.seed)
    shares = np.array([np.mean(each <= width) if each.size else np.nan for each in errors])
    mean, half = mean_intervals({"": shares}, None if found.number is None else found.number[: len(shares)])
    return replace(found, coverage=(LEVEL, mean[""], half[""]))
