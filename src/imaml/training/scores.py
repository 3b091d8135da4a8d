"""The results of an evaluation: scores, baselines and their comparison, as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..core.errors import ConfigError
from ..core.statistics import mean_intervals, paired_differences
from .journal import draws_text, json_values


@dataclass(frozen=True)
class Evaluation:
    """Scores over tasks: means and half-widths of 95 % intervals (1.96 standard errors over tasks).

    Attributes:
        scores: Means after adaptation, with `calibration_error` for predictions with a confidence.
        ci95: Half-widths of their intervals.
        before: Means before adaptation.
        before_ci95: Half-widths of their intervals.
        baselines: Means of methods without learning across tasks.
        baselines_ci95: Half-widths of their intervals.
        tasks: Number of tasks drawn.
        split: The split that they come from.
        seed: The seed that they were drawn with.
        failed: Number of tasks whose inner solve or scores were not finite. They count as wrong in every
            accuracy, and are excluded from every loss.
        values: Scores of each task.
        headline: The score that a validation is judged by.
        higher_is_better: Whether more of it is better.
        baseline_values: The baselines' scores of each task.
        different: For a domain with a fixed number of tasks, the number of different tasks that were drawn.
            Draws of one task are averaged first, so that intervals are over different tasks.
        number: For such a domain, and for one whose draws are not all different, the task of each draw.
        held_out: False if the split has no tasks of its own, and those of training were scored.
        unscored: Number of tasks without a finite score, for "before" and for each baseline that has such
            tasks.
        before_values: Scores of each task before adaptation.
        coverage: For calibrated prediction intervals, their level, the share of query rows that they cover (a
            mean over tasks), and the half-width of its interval; otherwise None.
        oracles: The baselines that use information that no method has. No verdict names them.
        names: Names for the numbers of tasks if scores are listed by group: alphabets, for example.
    """

    scores: Mapping[str, float]
    ci95: Mapping[str, float]
    before: Mapping[str, float]
    before_ci95: Mapping[str, float]
    baselines: Mapping[str, float]
    baselines_ci95: Mapping[str, float]
    tasks: int
    split: str
    seed: int
    failed: int
    values: Mapping[str, np.ndarray]
    headline: str
    higher_is_better: bool
    baseline_values: Mapping[str, np.ndarray]
    different: int = 0
    number: np.ndarray | None = None
    held_out: bool = True
    unscored: Mapping[str, int] = field(default_factory=dict)
    before_values: Mapping[str, np.ndarray] = field(default_factory=dict)
    coverage: tuple[float, float, float] | None = None
    oracles: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def unseen(self) -> bool:
        """Whether the tasks were not used in training."""
        return self.held_out and self.split != "train"

    def to_json(self) -> dict[str, object]:
        """Return the evaluation as JSON values.

        Returns:
            The figures by name: `accuracy`, `accuracy_ci95`, `accuracy_inductive`, `before`, ...
        """
        name, flat = self.headline, {}
        for score, mean in self.scores.items():
            flat |= {score: mean, f"{score}_ci95": self.ci95[score]}
        flat |= {"before": self.before[name], "before_ci95": self.before_ci95[name]}
        flat |= {"before_scores": self.before, "baselines": self.baselines}
        flat["baselines_ci95"] = self.baselines_ci95
        if self.number is not None:
            flat["different_tasks"] = self.different
        flat["held_out"] = self.unseen
        if self.names:
            flat["groups"] = self.by_group()
        if self.oracles:
            flat["oracles"] = list(self.oracles)
        flat |= {"tasks": self.tasks, "split": self.split, "seed": self.seed, "failed": self.failed}
        if self.unscored:
            flat["unscored"] = self.unscored
        if self.coverage is not None:
            flat["interval"] = dict(zip(("level", "coverage", "coverage_ci95"), self.coverage, strict=True))
        better = "higher" if self.higher_is_better else "lower"
        flat |= {"score": self.scores[name], "better": better, "paired": self.paired()}
        return json_values(flat)

    def by_group(self) -> dict[str, dict[str, float]]:
        """Return the scores of each group of tasks, such as those of one alphabet.

        Returns:
            For each group's name the means, and half-widths of their intervals over its draws, by name:
            `accuracy`, `accuracy_ci95`, ...; empty if tasks have no groups with names.
        """
        found = {}
        for number, name in sorted(self.names.items(), key=lambda item: item[1]):
            assert self.number is not None
            own = {score: values[self.number == number] for score, values in self.values.items()}
            draws = np.arange(np.sum(self.number == number))  # few: Student's intervals
            means, widths = mean_intervals(own, draws)
            found[name] = means | {f"{score}_ci95": width for score, width in widths.items()}
        return found

    def paired(self) -> dict[str, tuple[float, float]]:
        """Compare the headline with each baseline's, task by task.

        Returns:
            Mean differences and half-widths of their 95 % intervals, by name.
        """
        own = dict.fromkeys(self.baseline_values, self.values[self.headline])
        means, widths = paired_differences(own, self.baseline_values, self.number)
        return {name: (means[name], widths[name]) for name in means}

    def worse_than(self) -> list[str]:
        """Return the baselines that are significantly better: zero is outside the paired 95 % interval.

        Returns:
            Their names, the best one first, without oracles.
        """
        sign, gaps = 1 if self.higher_is_better else -1, self._attainable()
        found = [name for name, (gap, half) in gaps.items() if sign * gap < -half]
        return sorted(found, key=lambda name: -sign * self.baselines[name])

    def _attainable(self) -> dict[str, tuple[float, float]]:
        """Return what `paired` does, without oracles."""
        return {name: found for name, found in self.paired().items() if name not in self.oracles}

    def gained(self, name: str) -> tuple[float, float]:
        """Compare a score after adaptation with that before, task by task.

        Args:
            name: The score.

        Returns:
            The mean difference, after minus before, and the half-width of its 95 % interval.
        """
        after, before = {name: self.values[name]}, {name: self.before_values[name]}
        means, widths = paired_differences(after, before, self.number)
        return means[name], widths[name]

    def verdicts(self) -> list[str]:
        """Say what the differences show: which baselines are better, and which do not differ significantly.

        Returns:
            Sentences; none if adaptation is better than all.
        """
        found = []
        better, gaps = self.worse_than(), self._attainable()
        if better:
            found.append(f"{better[0].replace('_', ' ')} is better than adaptation here: use it instead")
        if self.headline in self.before_values:
            gaps = {"before adaptation": self.gained(self.headline), **gaps}
        alike = [name.replace("_", " ") for name, (gap, half) in gaps.items() if abs(gap) <= half]
        if alike:
            found.append(f"no significant difference from: {', '.join(alike)}")
        if "loss" in self.before_values and self.headline != "loss":
            gap, half = self.gained("loss")
            if gap > half:
                found.append("the loss is larger after adaptation than before: raise the strength")
        return found

    def beside(self, others: Mapping[str, Evaluation]) -> Evaluation:
        """Add the scores of other runs on the same tasks to the baselines.

        Args:
            others: Evaluations by name.

        Returns:
            An evaluation with more baselines.

        Raises:
            ConfigError: If the tasks are not the same, or a baseline has that name.
        """
        for name, other in others.items():
            paired(self, other)  # refuses other tasks
            if name in self.baselines:
                raise ConfigError(
                    f"evaluate: expected a name that no baseline has, got {name!r}. Hint: choose another."
                )

        def added(own: Mapping[str, Any], group: str) -> dict[str, Any]:
            return {**own, **{name: getattr(other, group)[other.headline] for name, other in others.items()}}

        return replace(
            self,
            baselines=added(self.baselines, "scores"),
            baselines_ci95=added(self.baselines_ci95, "ci95"),
            baseline_values=added(self.baseline_values, "values"),
            unscored={**self.unscored, **{n: other.failed for n, other in others.items() if other.failed}},
        )

    def __str__(self) -> str:
        """Return a few lines of text: before, after, baselines, each with its interval."""
        name, inductive = self.headline, f"{self.headline}_inductive"
        percent, gaps, alone = "accuracy" in name, self.paired(), "(one task: no interval)"

        def show(mean: float, half: float) -> str:
            if not np.isfinite(mean):
                return "no task has a finite score"
            if not percent:
                return plain(mean, half)
            return (
                f"{100 * mean:.2f} % +- {100 * half:.2f}"
                if np.isfinite(half)
                else f"{100 * mean:.2f} % {alone}"
            )

        def plain(mean: float, half: float) -> str:
            return f"{mean:.4f} +- {half:.4f}" if np.isfinite(half) else f"{mean:.4f} {alone}"

        what = f"{self.tasks} tasks{' never seen in training' * self.unseen}"
        if self.number is not None:
            what = draws_text(self.tasks, self.different)
        lines = [f"{what} ({self.split} split, seed {self.seed})"]
        if self.split == "train":
            lines[0] += "; these are training tasks"
        elif not self.held_out:
            lines[0] += "; none was held out for that split: these are training tasks"
        facts = [(f"{name} before adaptation", self.before[name], self.before_ci95[name])]
        kinds = {name: "after adaptation"}
        if inductive in self.scores:
            kinds = {name: "after, transductive", inductive: "after, inductive"}
        facts += [(f"{name} {words}", self.scores[kind], self.ci95[kind]) for kind, words in kinds.items()]
        for other, mean in self.baselines.items():
            facts.append((other.replace("_", " "), mean, self.baselines_ci95[other]))
            if np.isfinite(gaps[other][1]):
                facts.append((f"  {name} minus this, paired", *gaps[other]))
        rows = [(label, show(mean, half)) for label, mean, half in facts]
        if percent and "loss" in self.before:
            rows.append(("loss before adaptation", plain(self.before["loss"], self.before_ci95["loss"])))
            rows.append(("loss after adaptation", plain(self.scores["loss"], self.ci95["loss"])))
        if "calibration_error" in self.scores:
            sure = plain(self.scores["calibration_error"], self.ci95["calibration_error"])
            rows.append(("calibration error after adaptation", sure))
        width = max(len(label) for label, _ in rows)
        lines += [f"  {label:<{width}}  {text}" for label, text in rows]
        if self.names:
            width = max(map(len, self.names.values()))
            lines.append("  ".join([" " * (width + 2), *kinds.values()]))
            for group, own in self.by_group().items():
                shown = (f"{show(own[kind], own[kind + '_ci95']):>{len(kinds[kind])}}" for kind in kinds)
                lines.append("  ".join([f"  {group:<{width}}", *shown]))
        if self.coverage is not None:
            level, share, half = (100 * part for part in self.coverage)
            lines.append(f"  {level:g} % intervals cover {share:.1f} % +- {half:.1f} of a task's query rows")
        lines += [f"  {verdict}" for verdict in self.verdicts()]
        if self.failed:
            counted = "counted as wrong in every accuracy, and " if percent else ""
            lines.append(
                f"  {self.failed} of {self.tasks} tasks failed numerically: {counted}excluded from every loss"
            )
        for other, count in self.unscored.items():
            label = "before adaptation" if other == "before" else other.replace("_", " ")
            lines.append(f"  {label}: {count} of {self.tasks} tasks have no finite score")
        return "\n".join(lines)


def paired(first: Evaluation, second: Evaluation, name: str | None = None) -> tuple[float, float]:
    """Compare two evaluations on the same tasks.

    Args:
        first: An evaluation.
        second: Another one.
        name: The score to compare, by default the headline.

    Returns:
        The mean difference first - second, and the half-width of its 95 % interval.

    Raises:
        ConfigError: If the tasks are not the same, or one has no such score.
    """
    name = name or first.headline
    if name not in first.values or name not in second.values:
        raise ConfigError(
            f"paired: expected a score of both evaluations, got {name!r}; the second has "
            f"{', '.join(second.values)}."
        )
    if (first.tasks, first.split, first.seed) != (second.tasks, second.split, second.seed):
        raise ConfigError(
            "paired: expected evaluations on the same tasks (same split, tasks and seed), got different ones."
        )
    own, other = ({name: each.values[name]} for each in (first, second))
    means, widths = paired_differences(own, other, first.number)
    return means[name], widths[name]
