"""Means with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def mean_intervals(
    values: Mapping[str, np.ndarray], number: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute means and 95 % confidence intervals over the tasks that have a value.

    Args:
        values: By name, one value a task, NaN where it has none; each of shape (tasks,).
        number: Which task each value is of, shape (tasks,). Those of one task are averaged first, and the
            interval is Student's, as the tasks may be few. None where each is a task of its own.

    Returns:
        The means and the half-widths of the intervals, by name; NaN where there are too few values.
    """
    means, widths = {}, {}
    for name, column in values.items():
        there = np.isfinite(column)
        known = column[there]
        if number is not None:
            known = np.array([known[number[there] == task].mean() for task in np.unique(number[there])])
        quantile = 1.96 if number is None else student_quantile(known.size)
        means[name] = float(known.mean()) if known.size else np.nan
        widths[name] = float(quantile * known.std(ddof=1) / np.sqrt(known.size)) if known.size > 1 else np.nan
    return means, widths


def student_quantile(count: int) -> float:
    """Compute the 97.5 % quantile of Student's distribution.

    Args:
        count: The number of values that the mean is of.

    Returns:
        The quantile with count - 1 degrees of freedom.
    """
    from scipy.stats import t

    return float(t.ppf(0.975, max(count - 1, 1)))
