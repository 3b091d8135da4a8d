"""Summaries of training steps for the log."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from ..core.solution import Certification
from ..meta.gradient import Metrics


def _median(shares: np.ndarray) -> float | None:
    """The median, or None where it is infinite: nothing is known of half of the tasks."""
    median = float(
        np.median(np.nan_to_num(shares, nan=np.inf, posinf=np.inf))
    )  # a task that failed: nothing is known
    return median if math.isfinite(median) else None


def _relative(error: Any, metrics: Metrics) -> np.ndarray:
    """An error over the norm of the task's own meta-gradient; NaN where both are infinite."""
    with np.errstate(invalid="ignore"):
        return np.float64(error) / np.maximum(np.float64(metrics.gradient_norm), 1e-300)


def _errors(metrics: list[Metrics]) -> dict[str, float | None]:
    """Errors of the meta-gradients, relative to each task's own norm: medians over tasks."""
    fields: dict[str, float | None] = {}
    # The steps whose errors were not estimated have NaN in all tasks.
    looked = [m for m in metrics if m.error_estimate is not None and not np.isnan(m.error_estimate).all()]
    statuses = [m.linear_status for m in looked if m.linear_status is not None]
    if looked:
        fields["error_estimate"] = _median(np.concatenate([_relative(m.error_estimate, m) for m in looked]))
        codes = np.concatenate([np.asarray(status.certificate) for status in statuses])
        fields["error_unreliable"] = float((codes == int(Certification.ESTIMATE_UNRELIABLE)).mean())
    bounded = [_relative(m.error_bound, m) for m in metrics if m.error_bound is not None]
    if bounded:
        certified = [np.asarray(m.certified) for m in metrics if m.error_bound is not None]
        fields["certified"] = float(np.concatenate(certified).mean())
        fields["error_bound"] = _median(np.concatenate(bounded))
    return fields


def _spread(name: str, metrics: list[Metrics]) -> dict[str, float | None]:
    """The mean, median, ninth decile and maximum over tasks."""
    values = np.concatenate([np.asarray(getattr(m, name), np.float64) for m in metrics])
    middle, most = np.quantile(values, (0.5, 0.9))
    return {
        name: float(values.mean()),
        f"{name}_median": float(middle),
        f"{name}_p90": float(most),
        f"{name}_max": float(values.max()),
    }


class Window:
    """The reports of the steps since the last line of the log."""

    def __init__(self) -> None:
        """Starts without reports."""
        self.reports: list[dict[str, Any]] = []
        # Of the meta-gradient; they travel with a checkpoint, as runs may stop by them.
        self.norms: list[float] = []

    def add(self, report: dict[str, Any]) -> None:
        """Adds the report of a step.

        Args:
            report: What the training step returned beside the state.
        """
        self.reports.append(report)
        self.norms.append(float(report["gradient_norm"]))

    def summary(self) -> dict[str, float | None]:
        """Averages the reports over steps and tasks, and forgets them.

        Returns:
            The fields of a step event; see `imaml.training.journal`.
        """
        metrics = [jax.device_get(report["metrics"]) for report in self.reports]
        used = np.concatenate([m.used for m in metrics])

        def mean(values: list[Any]) -> float:
            joined = np.concatenate([np.asarray(v, np.float64) for v in values])[used]
            return float(joined.mean()) if joined.size else math.nan

        fields: dict[str, float | None] = {
            "loss": mean([m.loss for m in metrics]),
            "gradient_norm": math.fsum(self.norms) / len(self.norms),
            "failed": int((~used).sum()),
        }
        if metrics[0].inner_status is not None:
            fields["inner_residual"] = mean([m.inner_residual for m in metrics])
            fields |= _spread("inner_steps", metrics)
        if metrics[0].linear_status is not None:
            fields["linear_residual"] = mean([m.linear_residual for m in metrics])
            fields |= _spread("linear_steps", metrics)
            fields["negative_curvature"] = float(np.mean([m.negative_curvature.mean() for m in metrics]))
        fields |= _errors(metrics)
        for name in metrics[0].measures:
            fields[name] = mean([m.measures[name] for m in metrics])
        self.reports.clear()
        self.norms.clear()
        return fields
