"""Means with their intervals, as every benchmark over tasks gives them."""

import numpy as np


def interval(values):
    """Mean and half-width of the 95 % interval over independent values, a pair of floats."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(1.96 * values.std(ddof=1) / len(values) ** 0.5)
