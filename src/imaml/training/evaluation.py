"""Evaluation: adapt to each task's support set, score on its query set, average with 95 % intervals."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from ..core import tree
from ..core.compile import whole_program
from ..core.errors import ConfigError
from ..core.statistics import mean_intervals
from ..core.validation import not_one_of
from ..domains.base import SPLITS, Domain, require_domain
from ..meta.gradient import AXIS, MetaGradient

BATCH = 64  # tasks in a call, so that memory stays bounded and progress can be shown


class Learned(Protocol):
    """What can be evaluated: `imaml.Run`, what `imaml.load` returns, or anything like them."""

    @property
    def theta(self) -> Any:
        """The meta-parameters, the moving average where one is kept."""
        ...

    @property
    def method(self) -> MetaGradient:
        """Adapts to each task."""
        ...

    @property
    def domain(self) -> Domain:
        """Where tasks come from."""
        ...


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
        different: Of a domain with a fixed number of tasks: how many different ones were drawn. Draws of one
            task are averaged first, so that intervals are over different tasks.
        number: Of such a domain: which task each draw is.
        held_out: False if the split has no tasks of its own, and those of training were scored.
        unscored: Number of tasks without a finite score, of "before" and of each baseline that has such.
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

    def to_json(self) -> dict[str, Any]:
        """The evaluation as JSON values.

        Returns:
            The figures by name: `accuracy`, `accuracy_ci95`, `accuracy_inductive`, `before`, ...
        """
        flat: dict[str, Any] = {}
        for name in self.scores:
            flat[name] = self.scores[name]
            flat[f"{name}_ci95"] = self.ci95[name]
        flat["before"] = self.before[self.headline]
        flat["before_ci95"] = self.before_ci95[self.headline]
        flat["before_scores"] = dict(self.before)
        flat["baselines"] = dict(self.baselines)
        flat["baselines_ci95"] = dict(self.baselines_ci95)
        if self.number is not None:
            flat |= {"different_tasks": self.different, "held_out": self.held_out}
        flat |= {"tasks": self.tasks, "split": self.split, "seed": self.seed, "failed": self.failed}
        if self.unscored:
            flat["unscored"] = dict(self.unscored)
        flat |= {
            "score": self.scores[self.headline],
            "better": "higher" if self.higher_is_better else "lower",
        }
        flat["paired"] = {name: list(pair) for name, pair in self.paired().items()}
        return valid(flat)

    def paired(self) -> dict[str, tuple[float, float]]:
        """Compares the headline with each baseline's, task by task.

        Returns:
            Mean differences and half-widths of their 95 % intervals, by name.
        """
        own = self.values[self.headline]
        gaps = {name: own - values for name, values in self.baseline_values.items()}
        means, widths = mean_intervals(gaps, self.number)
        return {name: (means[name], widths[name]) for name in gaps}

    def beside(self, others: Mapping[str, Evaluation]) -> Evaluation:
        """Adds the scores of other runs on the same tasks to the baselines.

        Args:
            others: Evaluations by name.

        Returns:
            An evaluation with more baselines.

        Raises:
            ConfigError: If the tasks are not the same, or a baseline has that name.
        """
        means, widths = dict(self.baselines), dict(self.baselines_ci95)
        values, unscored = dict(self.baseline_values), dict(self.unscored)
        for name, other in others.items():
            paired(self, other)
            if name in means:
                raise ConfigError(
                    f"evaluate: expected a name that no baseline has, got {name!r}. Hint: choose another."
                )
            means[name], widths[name] = other.scores[other.headline], other.ci95[other.headline]
            values[name] = other.values[other.headline]
            if other.failed:
                unscored[name] = other.failed
        return replace(
            self, baselines=means, baselines_ci95=widths, baseline_values=values, unscored=unscored
        )

    def __str__(self) -> str:
        """A few lines of text: before, after, baselines, each with its interval."""
        percent = "accuracy" in self.headline

        def show(mean: float, half: float) -> str:
            if not np.isfinite(mean):
                return "no task has a finite score"
            if percent:
                return f"{100 * mean:.2f} % +- {100 * half:.2f}"
            return f"{mean:.4f} +- {half:.4f}" if np.isfinite(half) else f"{mean:.4f} (one task: no interval)"

        name = self.headline
        lines = [f"{self.tasks} tasks never seen in training ({self.split} split, seed {self.seed})"]
        if self.number is not None:
            lines = [f"{self.tasks} draws from {self.different} tasks ({self.split} split, seed {self.seed})"]
        if not self.held_out:
            lines[0] += "; none was held out for that split: these are tasks of training"
        facts = [(f"{name} before adaptation", self.before[name], self.before_ci95[name])]
        inductive = f"{name}_inductive"
        if inductive in self.scores:
            facts.append((f"{name} after, transductive", self.scores[name], self.ci95[name]))
            facts.append((f"{name} after, inductive", self.scores[inductive], self.ci95[inductive]))
        else:
            facts.append((f"{name} after adaptation", self.scores[name], self.ci95[name]))
        gaps = self.paired()
        for other, mean in self.baselines.items():
            facts.append((other.replace("_", " "), mean, self.baselines_ci95[other]))
            if np.isfinite(gaps[other][1]):
                facts.append((f"  {name} less that, paired", *gaps[other]))
        width = max(len(what) for what, _, _ in facts)
        lines += [f"  {what:<{width}}  {show(mean, half)}" for what, mean, half in facts]
        if self.failed:
            counted = "counted as wrong in every accuracy, and " if percent else ""
            lines.append(
                f"  {self.failed} of {self.tasks} tasks failed numerically: {counted}excluded from every loss"
            )
        for other, count in self.unscored.items():
            what = "before adaptation" if other == "before" else other.replace("_", " ")
            lines.append(f"  {what}: {count} of {self.tasks} tasks have no finite score")
        return "\n".join(lines)


def valid(value: Any) -> Any:
    """Replaces numbers that are not finite by None, as JSON has none.

    Args:
        value: JSON values.

    Returns:
        The same with None where a number was not finite.
    """
    if isinstance(value, dict):
        return {name: valid(item) for name, item in value.items()}
    if isinstance(value, list):
        return [valid(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def same_tasks(domain: Domain, other: Domain, split: str) -> bool:
    """Compares the first tasks that two domains draw.

    Args:
        domain: A domain.
        other: Another one.
        split: The split that tasks are drawn from.

    Returns:
        Whether they are the same.
    """
    first, second = (
        jax.device_get(whole_program(lambda key, d=d: d.sample(key, split))(task_keys(0, 0, 1)[0]))
        for d in (domain, other)
    )
    if jax.tree.structure(first) != jax.tree.structure(second):
        return False
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def score(
    domain: Any, method: MetaGradient, theta: Any, keys: Array, split: str
) -> dict[str, dict[str, Array]]:
    """Scores the tasks that are drawn with ``keys``.

    Args:
        domain: Where tasks come from.
        method: Adapts to each task.
        theta: The meta-parameters.
        keys: Random keys, one for each task.
        split: The split that tasks are drawn from.

    Returns:
        Scores by group ("after", "before", "baselines", "calibration", "finite", "number") and name, arrays
        with a leading axis of tasks.
    """

    def one(key: Array) -> dict[str, dict[str, Array]]:
        drawn = domain.draw(key, split)
        task, number = domain.gather(drawn), domain.number(drawn)
        phi, solution = method.adapt(theta, task.support, key)
        both = jax.tree.map(lambda *pair: jnp.stack(pair), phi, method.mean(theta))
        scores = lax.map(lambda given: domain.metrics(given, task), both)  # compiled once for the two
        after, before = (jax.tree.map(lambda leaf, i=i: leaf[i], scores) for i in (0, 1))
        # An accuracy is finite even where outputs are NaN; the losses beside it show that they are.
        sound = {"after": tree.finite((after, solution.stats.residual)), "before": tree.finite(before)}
        return {
            "after": after,
            "before": before,
            "baselines": domain.baselines(task),
            "calibration": domain.calibration(phi, task),
            "finite": sound,
            "number": {} if number is None else {"task": number},
        }

    chunk = method.chunk or keys.shape[0]
    return lax.map(one, keys, batch_size=None if chunk == 1 else chunk)


def over_devices(run: Callable, mesh: Mesh | None) -> Callable:
    """Compiles a function of (domain, theta, keys), its keys shared between the devices of a mesh.

    Args:
        run: The function; its results have a leading axis of keys.
        mesh: The mesh, or None for one device.

    Returns:
        The compiled function.
    """
    if mesh is not None:
        whole, spread = PartitionSpec(), PartitionSpec(AXIS)
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(whole, whole, spread), out_specs=spread, check_vma=False
        )
    return whole_program(run)


def task_keys(seed: int, start: int, count: int) -> Array:
    """Makes the keys of tasks, the same for every method.

    Args:
        seed: The seed of all tasks.
        start: Number of the first task.
        count: How many keys to make.

    Returns:
        Keys of the tasks ``start``, ``start + 1``, ...
    """
    root = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(start, start + count))


@functools.lru_cache(maxsize=8)
def compiled(method: MetaGradient, split: str, mesh: Mesh | None) -> Callable:
    """Compiles the scores of a method; see `score`.

    Args:
        method: Adapts to each task.
        split: The split that tasks are drawn from.
        mesh: Devices that share the tasks, or None for one device.

    Returns:
        The compiled function (domain, theta, keys) -> scores.
    """
    return over_devices(lambda domain, theta, keys: score(domain, method, theta, keys, split), mesh)


def evaluate(
    run: Learned,
    domain: Domain | None = None,
    *,
    split: str = "test",
    tasks: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates what a run has learned, on random tasks of a split.

    The same seed gives the same tasks for every run, so that differences can be paired through `values`.

    Args:
        run: What `train` or `load` returned: anything with theta, method and domain.
        domain: Another domain with the same network to evaluate on.
        split: "train", "validation" or "test".
        tasks: Number of tasks.
        seed: Seed of the tasks.
        progress: Called with (tasks done, tasks) from time to time.

    Returns:
        The evaluation. Tasks without a finite score are counted in `failed`.

    Raises:
        ConfigError: If an argument is not accepted.
    """
    domain = run.domain if domain is None else domain
    require_domain("evaluate", domain)
    asked = {"split": split, "tasks": tasks, "seed": seed, "progress": progress}
    return evaluate_theta(domain, run.method, run.theta, **asked)


def evaluate_theta(
    domain: Domain,
    method: MetaGradient,
    theta: Any,
    *,
    split: str = "test",
    tasks: int = 1000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluates given meta-parameters; see `evaluate`.

    Args:
        domain: Where tasks come from.
        method: Adapts to each task.
        theta: The meta-parameters.
        split: "train", "validation" or "test".
        tasks: Number of tasks.
        seed: Seed of the tasks.
        progress: Called with (tasks done, tasks) from time to time.

    Returns:
        The evaluation.

    Raises:
        ConfigError: If an argument is not accepted.
    """
    if split not in SPLITS:
        raise ConfigError(not_one_of("split", split, SPLITS))
    if isinstance(tasks, bool) or not isinstance(tasks, int) or tasks < 2:
        raise ConfigError(
            f"evaluate: expected a whole number of at least 2 (an interval needs two), got tasks={tasks!r}."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"evaluate: expected a whole number from 0 below 2**32, got seed={seed!r}.")
    mesh = method.mesh
    batch = BATCH * (mesh.size if mesh is not None else 1)
    batch = min(batch, -(-tasks // (mesh.size if mesh else 1)) * (mesh.size if mesh else 1))
    run = compiled(method, split, mesh)
    parts = []
    for start in range(0, tasks, batch):
        parts.append(jax.device_get(run(domain, theta, task_keys(seed, start, batch))))
        if progress is not None:
            progress(min(start + batch, tasks), tasks)
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:tasks].astype(np.float64), *parts)
    failed, spoilt = (joined["finite"][group] == 0 for group in ("after", "before"))
    after, before = _without(joined["after"], failed), _without(joined["before"], spoilt)
    baselines = {name: np.where(np.isfinite(v), v, np.nan) for name, v in joined["baselines"].items()}
    unscored = {"before": int(spoilt.sum())}
    unscored |= {name: int(np.isnan(values).sum()) for name, values in baselines.items()}
    errors, widths = _calibration(joined["calibration"], ~failed)
    number = joined["number"].get("task")
    scores, ci95 = mean_intervals(after, number)
    return Evaluation(
        {**scores, **errors},
        {**ci95, **widths},
        *mean_intervals(before, number),
        *mean_intervals(baselines, number),
        tasks=tasks,
        split=split,
        seed=seed,
        failed=int(failed.sum()),
        values=after,
        headline=domain.headline,
        higher_is_better=domain.higher_is_better,
        baseline_values=baselines,
        different=tasks if number is None else len(np.unique(number)),
        number=number,
        held_out=domain.held_out(split),  # type: ignore[attr-defined]
        unscored={name: count for name, count in unscored.items() if count},
    )


def _without(scores: Mapping[str, np.ndarray], failed: np.ndarray) -> dict[str, np.ndarray]:
    """The scores with those of failed tasks (booleans, (tasks,)) 0 in accuracies and NaN in all others."""
    return {
        name: np.where(failed, 0.0 if "accuracy" in name else np.nan, values)
        for name, values in scores.items()
    }


def _calibration(
    parts: Mapping[str, np.ndarray], good: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Expected calibration errors of all tasks' predictions together, with 95 % intervals.

    The mean over predictions of |accuracy - confidence|, by bins of confidence (Guo et al. 2017, eq. 3). An
    interval is 1.96 standard deviations over bootstrap samples of the tasks.
    """
    count = int(good.sum())
    if not count:  # a multinomial has at least one outcome
        return dict.fromkeys(parts, np.nan), dict.fromkeys(parts, np.nan)
    errors, widths = {}, {}
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 200)

    def error(sums: np.ndarray) -> np.ndarray:
        rows = np.maximum(sums[..., 0].sum(-1), 1)
        return np.abs(sums[..., 2] - sums[..., 1]).sum(-1) / rows

    for name, column in parts.items():
        kept = column[good]
        errors[name] = float(error(kept.sum(0)))
        samples = np.einsum("st,tbc->sbc", draws, kept)
        widths[name] = float(1.96 * error(samples).std(ddof=1))
    return errors, widths


def paired(first: Evaluation, second: Evaluation, name: str | None = None) -> tuple[float, float]:
    """Compares two evaluations on the same tasks.

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
    difference = first.values[name] - second.values[name]
    means, widths = mean_intervals({name: difference}, first.number)
    return means[name], widths[name]
