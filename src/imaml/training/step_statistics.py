"""Summaries of training steps for the log."""

import math
from operator import attrgetter

import jax
import numpy as np

from ..core.solution import Certification
from ..meta.gradient import Metrics
from .step import Report


def _joined(metrics: list[Metrics], name: str) -> np.ndarray:
    """Return a field of all steps' tasks; name: with dots for one within another, as "inner_status.code"."""
    return np.concatenate([np.asarray(attrgetter(name)(m), np.float64) for m in metrics])


def _median(name: str, metrics: list[Metrics]) -> float | None:
    """Return the median over tasks of |error| / |g_i|, g_i the task's own meta-gradient.

    A task with NaN (it failed, or both are infinite) counts as infinite: nothing is known of it. None where
    that holds for half of the tasks.
    """
    with np.errstate(invalid="ignore"):
        shares = _joined(metrics, name) / np.maximum(_joined(metrics, "gradient_norm"), 1e-300)
    median = float(np.median(np.nan_to_num(shares, nan=np.inf, posinf=np.inf)))
    return median if math.isfinite(median) else None


def _errors(metrics: list[Metrics]) -> dict[str, float | None]:
    """Return errors of the meta-gradients, relative to each task's own norm: medians over tasks."""
    fields: dict[str, float | None] = {}
    # The steps whose errors were not estimated have NaN in all tasks.
    looked = [m for m in metrics if m.error_estimate is not None and not np.isnan(m.error_estimate).all()]
    if looked:
        codes = _joined(looked, "linear_status.certificate")
        fields["error_estimate"] = _median("error_estimate", looked)
        fields["error_unreliable"] = float((codes == Certification.ESTIMATE_UNRELIABLE).mean())
    bounded = [m for m in metrics if m.error_bound is not None]
    if bounded:
        fields["certified"] = float(_joined(bounded, "certified").mean())
        fields["error_bound"] = _median("error_bound", bounded)
    return fields


class Window:
    """The reports of the steps since the last line of the log."""

    def __init__(self) -> None:
        """Start without reports."""
        self.reports: list[Report] = []
        # Of the meta-gradient; they travel with a checkpoint, as runs may stop by them.
        self.norms: list[float] = []

    def add(self, report: Report) -> None:
        """Add the report of a step.

        Args:
            report: What the training step returned beside the state.
        """
        self.reports.append(report)
        self.norms.append(float(report["gradient_norm"]))

    def summary(self) -> dict[str, float | None]:
        """Average the reports over steps and tasks, and forget them.

        Returns:
            The fields of a step event; see `imaml.training.journal`.
        """
        metrics: list[Metrics] = [jax.device_get(report["metrics"]) for report in self.reports]
        used = np.concatenate([m.used for m in metrics])

        def mean(values: np.ndarray) -> float:  # over the tasks that are not excluded
            return float(values[used].mean()) if used.any() else math.nan

        fields: dict[str, float | None] = {
            "loss": mean(_joined(metrics, "loss")),
            "gradient_norm": math.fsum(self.norms) / len(self.norms),
            "failed": int((~used).sum()),
        }
        for kind in ("inner", "linear"):
            if getattr(metrics[0], f"{kind}_status") is None:
                continue
            fields[f"{kind}_residual"] = mean(_joined(metrics, f"{kind}_residual"))
            name = f"{kind}_steps"
            steps = _joined(metrics, name)
            middle, most = np.quantile(steps, (0.5, 0.9))
            fields |= {name: float(steps.mean()), f"{name}_median": float(middle)}
            fields |= {f"{name}_p90": float(most), f"{name}_max": float(steps.max())}
        if metrics[0].linear_status is not None:
            fields["negative_curvature"] = float(_joined(metrics, "negative_curvature").mean())
        fields |= _errors(metrics)
        for name in metrics[0].measures:
            fields[name] = mean(np.concatenate([np.asarray(m.measures[name], np.float64) for m in metrics]))
        self.reports.clear()
        self.norms.clear()
        return fields
