"""Results of a comparison: the runs' scores, and their summary with paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.run import Config
from ..core.recipes import to_json
from ..core.statistics import mean_intervals, paired_differences
from ..training.journal import clock, score_text
from .variants import Row

REFERENCE = "imaml"


@dataclass
class Scores:
    """Test scores of meta-parameters.

    Attributes:
        content: Summaries as JSON values.
        values: Scores by name, each of shape ``(tasks,)``.
    """

    content: dict[str, Any]
    values: dict[str, np.ndarray]


@dataclass
class Result:
    """One run of a method.

    Attributes:
        folder: Where its files are.
        config: Its configuration.
        content: What result.json says.
        time: Scores after equal training time.
        equal: Scores after an equal number of tasks, where the method learns.
    """

    folder: Path
    config: Config
    content: dict[str, Any]
    time: Scores
    equal: Scores | None = None

    def line(self, headline: str) -> str:
        """Describes the run in a line.

        Args:
            headline: The name of the score to state.

        Returns:
            The score, the steps and the time.
        """
        scores, ci95 = self.time.content["scores"], self.time.content["ci95"]
        steps, spent = self.content["steps"], clock(self.content["seconds"])
        score = score_text(headline, scores[headline], ci95[headline])
        failed = self.content.get("failure")
        ended = f", then FAILED; tested at step {self.content['step']}" if failed else ""
        return f"{headline} {score} after {steps} steps, {spent}{ended}"


def summarise(
    base: Config,
    minutes: float,
    tasks: int,
    seeds: int,
    domain: Any,
    rows: Mapping[str, Row],
    found: Mapping[str, list[Result]],
    common: int,
) -> dict[str, Any]:
    """Collects everything that the table and the page show.

    Args:
        base: The preset's configuration.
        minutes: Training time of each run.
        tasks: Number of test tasks.
        seeds: Number of runs of each method.
        domain: Where tasks come from.
        rows: The methods by name.
        found: The runs of each method.
        common: Number of tasks after which methods are compared at equal tasks; 0 for none.

    Returns:
        JSON values, the content of comparison.json.
    """
    recipe = to_json(base)
    recipe["domain"].pop("data", None)
    reference = REFERENCE if REFERENCE in found else next(iter(found))
    listed = []
    for name, results in found.items():
        first = results[0].content
        entry = {
            "method": name,
            "about": rows[name].about,
            "runs": [{k: v for k, v in r.content.items() if k != "config"} for r in results],
            "config": first["config"],
            "equal_time": _mean([r.time.values for r in results]),
            "difference_at_equal_time": _difference(
                [r.time.values for r in results], [r.time.values for r in found[reference]]
            ),
        }
        snapshots = [r.equal.values for r in results if r.equal is not None]
        others = [r.equal.values for r in found[reference] if r.equal is not None]
        if snapshots:
            entry["equal_tasks"] = _mean(snapshots)
            entry["difference_at_equal_tasks"] = _difference(snapshots, others) if others else {}
        listed.append(entry)
    return {
        "minutes": minutes,
        "test_tasks": tasks,
        "seeds": seeds,
        "equal_tasks": common,
        "reference": reference,
        "headline": domain.headline,
        "higher_is_better": domain.higher_is_better,
        "config": recipe,
        "rows": listed,
    }


def _over_seeds(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The scores of every test task, averaged over seeds."""
    return {name: np.mean([run[name].astype(np.float64) for run in runs], axis=0) for name in runs[0]}


def _mean(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Each score's mean with its interval over tasks, and the seeds' own means."""
    summary = _known(*mean_intervals(_over_seeds(runs)))
    for name, entry in summary.items():
        entry["seeds"] = [float(np.nanmean(run[name])) for run in runs]
    return summary


def _difference(
    runs: Sequence[Mapping[str, np.ndarray]], others: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Each score less that of the reference on the same tasks, with the interval over tasks."""
    return _known(*paired_differences(_over_seeds(runs), _over_seeds(others)))


def _known(means: Mapping[str, float], widths: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Means with their intervals as JSON values; scores without an interval are omitted."""
    return {n: {"mean": means[n], "ci95": widths[n]} for n in means if np.isfinite(widths[n])}
