"""Means and paired differences with confidence intervals."""

from collections.abc import Mapping

import numpy as np

NORMAL_QUANTILE = 1.96  # the 97.5 % quantile of the normal distribution


def mean_intervals(
    values: Mapping[str, np.ndarray], number: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Computes means with 95 % confidence intervals over tasks.

    Args:
        values: Scores by name, shape ``(tasks,)``. Scores that are not finite are ignored.
        number: Which task each score is of, where tasks were drawn repeatedly, shape ``(tasks,)``. Scores of
            one task are averaged first. The interval is then Student's, as the tasks may be few.

    Returns:
        Means and half-widths of the intervals by name. A mean of no score is NaN, and so is the half-width
        for fewer than two.
    """
    means, widths = {}, {}
    for name, column in values.items():
        there = np.isfinite(column)
        known = column[there]
        if number is not None:
            known = np.array([known[number[there] == task].mean() for task in np.unique(number[there])])
        quantile = NORMAL_QUANTILE if number is None else student_quantile(known.size)
        means[name] = float(known.mean()) if known.size else np.nan
        widths[name] = float(quantile * known.std(ddof=1) / np.sqrt(known.size)) if known.size > 1 else np.nan
    return means, widths


def paired_differences(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], number: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Computes mean differences on the same tasks with 95 % confidence intervals.

    Args:
        first: Scores by name, shape ``(tasks,)``.
        second: Scores of the same names on the same tasks in the same order.
        number: See `mean_intervals`.

    Returns:
        Means of ``first - second`` and half-widths of their intervals, by name.
    """
    return mean_intervals({name: first[name] - second[name] for name in first}, number)


def student_quantile(count: int) -> float:
    """Looks up the 97.5 % quantile of Student's distribution.

    Args:
        count: How many values the mean is of.

    Returns:
        The quantile for ``count - 1`` degrees of freedom.
    """
    from scipy.stats import t  # late: it takes a while

    return float(t.ppf(0.975, max(count - 1, 1)))
