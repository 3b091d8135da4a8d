"""Means with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def mean_intervals(
    values: Mapping[str, np.ndarray], number: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Means and half-widths of 95 % intervals over the tasks that have a value; NaN where none has.

    number: which task each value is of; those of one task are averaged first, and the interval is Student's,
    as the tasks may be few.
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
    """The 97.5 % quantile of Student's distribution for a mean of so many."""
    from scipy.stats import t

    return float(t.ppf(0.975, max(count - 1, 1)))
