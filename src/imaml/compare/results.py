"""Results of a comparison: the runs' scores, and their summary with paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..config.run import Config
from ..core.recipes import JsonObject, to_json
from ..core.statistics import mean_intervals, paired_differences
from ..training.journal import clock, score_text
from .variants import Row


@dataclass
class Scores:
    """Test scores of meta-parameters.

    Attributes:
        content: Summaries as JSON values.
        values: Scores by name, each of shape ``(tasks,)``.
        number: Which task each is of, where one comes more than once; see `mean_intervals`.
    """

    content: JsonObject
    values: dict[str, np.ndarray]
    number: np.ndarray | None = None


@dataclass
class Result:
    """One run of a method.

    Attributes:
        content: What result.json says.
        time: Scores after equal training time.
        equal: Scores after an equal number of tasks, where the method learns.
    """

    content: JsonObject
    time: Scores
    equal: Scores | None = None

    def line(self, headline: str) -> str:
        """Describe the run in a line.

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
        if lost := self.time.content["failed"]:
            ended += f"; {lost:,} test tasks failed numerically"
        return f"{headline} {score} after {steps} steps, {spent}{ended}"


def entries(rows: Mapping[str, Row], found: Mapping[str, list[Result]], reference: str) -> list[JsonObject]:
    """Collect what the table and the page show of each method.

    Args:
        rows: The methods by name.
        found: The runs of each method.
        reference: The method that the others are compared with.

    Returns:
        JSON values, the rows of comparison.json.
    """
    against = found[reference]
    listed = []
    for name, results in found.items():
        entry = {
            "method": name,
            "about": rows[name].about,
            "runs": [{k: v for k, v in r.content.items() if k != "config"} for r in results],
            "config": results[0].content["config"],
        }
        for kind, own, others in (
            ("equal_time", [r.time for r in results], [r.time for r in against]),
            ("equal_tasks", [r.equal for r in results if r.equal], [r.equal for r in against if r.equal]),
        ):
            if own:
                entry[kind] = _mean(own)
                entry[f"difference_at_{kind}"] = _difference(own, others) if others else {}
                entry[f"failed_at_{kind}"] = [run.content["failed"] for run in own]
        listed.append(entry)
    return listed


def without_data(config: Config) -> JsonObject:
    """Return a configuration as JSON values, without the location of its data.

    Args:
        config: The configuration.

    Returns:
        JSON values.
    """
    recipe = to_json(config)
    recipe["domain"].pop("data", None)
    return recipe


def _over_seeds(runs: Sequence[Scores]) -> dict[str, np.ndarray]:
    """Return the scores of every test task, averaged over seeds."""
    found = [run.values for run in runs]
    return {name: np.mean([values[name].astype(np.float64) for values in found], axis=0) for name in found[0]}


def _mean(runs: Sequence[Scores]) -> dict[str, JsonObject]:
    """Return each score's mean with its interval over tasks, and the seeds' own means."""
    summary = _known(*mean_intervals(_over_seeds(runs), runs[0].number))
    for name, entry in summary.items():
        entry["seeds"] = [float(np.nanmean(run.values[name])) for run in runs]
    return summary


def _difference(runs: Sequence[Scores], others: Sequence[Scores]) -> dict[str, JsonObject]:
    """Return each score less that of the reference on the same tasks, with the interval over tasks."""
    return _known(*paired_differences(_over_seeds(runs), _over_seeds(others), runs[0].number))


def _known(means: Mapping[str, float], widths: Mapping[str, float]) -> dict[str, JsonObject]:
    """Return means with their intervals as JSON values; scores without an interval are omitted."""
    return {n: {"mean": means[n], "ci95": widths[n]} for n in means if np.isfinite(widths[n])}
