"""Methods side by side under one protocol, so that their differences mean something.

The same domain, network, initialisation (by seed), outer optimiser and test tasks for all; equal wall-clock,
and equal number of tasks seen. Differences are paired task by task. The outer learning rate is constant and
theta averaged, so that a run is comparable at every moment: what annealing gives depends on when it ends.
Of a run's checkpoints the one with the best validation score is tested.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..config.run import Config, load_config
from ..core.errors import ConfigError, DataError, NumericalError
from ..core.recipes import to_json
from ..inner.gradient import GradientDescent
from ..storage.checkpoint import Checkpoints
from ..training.directory import first_difference
from ..training.evaluation import evaluate_theta, over_devices, task_keys, valid
from ..training.experiment import assemble
from ..training.journal import FILE, clock, read_events, score_text
from ..training.loop import Run
from .variants import GRID, Row, rows_of

SWEEP = (0, 1, 2, 4, 8, 16, 32, 64)  # inner steps at test time
SWEEP_TASKS = 200
REFERENCE = "imaml"


class Interrupted(Exception):
    """Ctrl-C or SIGTERM stopped a row; what it had is in its checkpoint."""


def compare(
    base: Config,
    names: Sequence[str] = (),
    *,
    out: str | Path,
    minutes: float,
    tasks: int = 1000,
    seeds: int = 1,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains and evaluates methods in turn; returns what `out`/comparison.json then holds.

    base: a preset's configuration, which each row of `ROWS` changes. names: which rows, by default all.
    minutes: of training for each, without validations. tasks: test tasks, the same for all. seeds: so many
    runs of each, from seeds 0, 1, ...; their scores are averaged task by task. out: what is done already is
    kept, what was cut off goes on. say: told a line about each row.
    """
    out, rows = Path(out), rows_of(names)
    domain = base.domain.build()
    _check_plan(out, base, minutes, tasks)
    found: dict[str, list[_Result]] = {}
    for seed in range(seeds):
        for name, row in rows.items():
            began = time.monotonic()
            config = row.config(base, minutes, seed)
            done = (out / name / f"seed-{seed}" / "result.json").is_file()
            if row.learns and not done:
                say(f"{name:<20} seed {seed}  training for {minutes:g} min, then {tasks:,} test tasks ...")
            result = _row(domain, name, config, out / name / f"seed-{seed}", tasks, progress)
            found.setdefault(name, []).append(result)
            took = " (done before)" if done else f" ({clock(time.monotonic() - began)} in all)"
            say(f"{name:<20} seed {seed}  {result.line(domain.headline)}{took}")
    learned = [r for results in found.values() for r in results if r.content["steps"]]
    common = min((r.content["steps"] for r in learned), default=0) // GRID * GRID
    for result in learned:
        if common:
            step = _best(domain, result.folder, common)
            result.equal = _tested(domain, result.config, result.folder, step, tasks)
    summary = _summary(base, minutes, tasks, seeds, domain, rows, found, common * base.training.tasks)
    _write(out / "comparison.json", summary)
    return summary


def _check_plan(out: Path, base: Config, minutes: float, tasks: int) -> None:
    """Writes what is compared, or refuses a folder in which something else is (ConfigError)."""
    file, plan = out / "plan.json", {"config": to_json(base), "budget": minutes, "tasks": tasks}
    if file.is_file():
        try:
            old = json.loads(file.read_text())
        except ValueError as error:
            raise DataError(
                f"{file} is no JSON ({error}); put back a copy, or choose another --out."
            ) from error
        before, now = ({f"--{k}": v for k, v in given.items() if k != "config"} for given in (old, plan))
        difference = first_difference(old.get("config"), plan["config"]) or first_difference(before, now)
        if difference:
            raise ConfigError(
                f"{out} holds another comparison: {difference}. Leave that as it was, or choose another "
                "--out."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and holds no comparison; choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    _write(file, plan)


def _write(file: Path, content: Any) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(part, file)


@dataclass
class _Scores:
    """What a theta scores on the test tasks: summaries as JSON values, and the scores task by task."""

    content: dict[str, Any]
    values: dict[str, np.ndarray]


@dataclass
class _Result:
    """One run: its recipe, what result.json says, and its scores at equal time and at equal tasks."""

    folder: Path
    config: Config
    content: dict[str, Any]
    time: _Scores
    equal: _Scores | None = None

    def line(self, headline: str) -> str:
        scores, ci95 = self.time.content["scores"], self.time.content["ci95"]
        steps, spent = self.content["steps"], clock(self.content["seconds"])
        score = score_text(headline, scores[headline], ci95[headline])
        ended = (
            f", where it FAILED; tested is step {self.content['step']}" if self.content.get("failure") else ""
        )
        return f"{headline} {score} after {steps} steps, {spent}{ended}"


def _row(domain: Any, name: str, config: Config, folder: Path, tasks: int, progress: bool | None) -> _Result:
    """One row's run, trained and tested; what was done before is read."""
    file = folder / "result.json"
    if not file.is_file():
        run, failure = _trained(domain, config, folder / "run", progress)
        step = _best(domain, folder, run.step)
        tested = _tested(domain, config, folder, step, tasks)
        content = _measured(domain, config, folder, run, step) | {"failure": failure}
        _write(file, {"method": name, **content, **tested.content})
    content = json.loads(file.read_text())
    return _Result(folder, config, content, _tested(domain, config, folder, content["step"], tasks))


def _trained(domain: Any, config: Config, folder: Path, progress: bool | None) -> tuple[Run, str | None]:
    """The run, begun or gone on with; and why it failed numerically, or None.

    A method that fails is one that failed, and no reason to break off the others: its checkpoints until then
    are tested like theirs.
    """
    resume = (folder / "config.json").is_file()
    if resume:
        load_config((folder / "config.json").read_text(), str(folder / "config.json"))
    try:
        run = assemble(config, domain).train(out=folder, resume=resume, progress=progress)
    except NumericalError as error:
        ends = [event for event in read_events(folder / FILE) if event["event"] == "end"]
        step = ends[-1]["step"]
        method, theta = _theta(domain, config, folder.parent, step)
        return Run(theta, domain, method, config, step, "failed", folder), str(error)
    if run.reason == "interrupted":
        raise Interrupted
    return run, None


def _validations(folder: Path) -> dict[int, dict[str, Any]]:
    """The validations of a run's journal, by step; of a step validated twice the last."""
    events = read_events(folder / "run" / FILE)
    return {event["step"]: event for event in events if event["event"] == "validation"}


def _best(domain: Any, folder: Path, most: int) -> int:
    """The step, of the first `most`, with the best validation score; `most` where none has one."""
    sign = 1 if domain.higher_is_better else -1
    scores = {
        step: sign * event["scores"][domain.headline]
        for step, event in _validations(folder).items()
        if step <= most and event["scores"][domain.headline] is not None
    }
    return max(scores, key=lambda step: scores[step], default=most)


def _theta(domain: Any, config: Config, folder: Path, step: int) -> tuple[Any, Any]:
    """The method, and theta (the moving average where one is kept) as it was after `step` steps."""
    experiment = assemble(config, domain)
    like = jax.eval_shape(experiment.initial_state, jax.random.key(0))
    state = Checkpoints(folder / "run" / "checkpoints").restore(like, step).state
    return experiment.method, state["average"] if experiment.outer.average else state["theta"]


def _tested(domain: Any, config: Config, folder: Path, step: int, tasks: int) -> _Scores:
    """The test scores of a run as it was after `step` steps; read where they are there already."""
    file, arrays = folder / f"step-{step}.json", folder / f"step-{step}.npz"
    if not file.is_file():
        method, theta = _theta(domain, config, folder, step)
        found = evaluate_theta(domain, method, theta, split="test", tasks=tasks)
        stored: dict[str, Any] = {name: v.astype(np.float32) for name, v in found.values.items()}
        np.savez(arrays, **stored)
        summaries = ("scores", "ci95", "before", "baselines")
        content = valid({name: dict(getattr(found, name)) for name in summaries})
        # Last: scores that are there are whole.
        _write(file, {"step": step, **content, "failed": found.failed})
    with np.load(arrays) as values:
        return _Scores(json.loads(file.read_text()), {key: values[key] for key in values.files})


def _measured(domain: Any, config: Config, folder: Path, run: Run, step: int) -> dict[str, Any]:
    """What is said of a finished run beside its test scores, some of it of theta after `step` steps."""
    method, theta = _theta(domain, config, folder, step)
    checks = _validations(folder)
    curve = [
        {"tasks": at * config.training.tasks, "seconds": checks[at]["seconds"], **checks[at]["scores"]}
        for at in sorted(checks)
    ]
    events = read_events(folder / "run" / FILE)
    ends = [event for event in events if event["event"] == "end"]
    recipe = to_json(config)
    recipe["domain"].pop("data", None)
    content = {
        "steps": run.step,
        "tasks_seen": run.step * config.training.tasks,
        "seconds": ends[-1]["seconds"] if run.step else 0.0,
        "reason": run.reason,
        "curve": curve,
        "inner_steps": sweep(domain, method, theta, "test", SWEEP_TASKS),
        "adaptation_ms": adaptation_ms(domain, replace(run, theta=theta)),
        "failed_in_training": sum(e["failed"] for e in events if e["event"] == "step"),
        "config": recipe,
    }
    if config.method.name == "multitask":
        content["groups"] = domain.trade_off(theta)
    return content


def sweep(domain: Any, method: Any, theta: Any, split: str, tasks: int, seed: int = 0) -> dict[str, Any]:
    """The headline on tasks of a split after more and more inner steps: {"steps", the headline, "ci95"}.

    The problem and gradient descent are those that solve new tasks; another inner solver is passed over for
    gradient descent at its place in the preset. Steps go on from one another, so one program does them all.
    """
    problem, inner = (method.problem, method.inner) if method.new_task is None else method.new_task
    if not isinstance(inner, GradientDescent):
        problem, inner = method.problem, method.inner
    if not isinstance(inner, GradientDescent):
        return {}
    headline = domain.headline

    def one(domain: Any, start: Any, key: Array) -> Array:
        task = domain.sample(key, split)
        phi = problem.init(start, task.support, key)
        rates = inner.rates(start, phi)

        def descend(_: Any, phi: Any) -> Any:
            slope = problem.residual(phi, start, task.support)
            return jax.tree.map(lambda p, g, r: p - r * g, phi, slope, rates)

        def further(phi: Any, steps: Array) -> tuple[Any, Array]:
            phi = lax.fori_loop(0, steps, descend, phi)
            return phi, domain.metrics(problem.full(phi, start), task)[headline]

        return lax.scan(further, phi, jnp.diff(jnp.asarray(SWEEP), prepend=0))[1]

    run = over_devices(
        lambda domain, start, keys: lax.map(lambda k: one(domain, start, k), keys), method.mesh
    )
    size = 1 if method.mesh is None else method.mesh.size
    keys = task_keys(seed, 0, -(-tasks // size) * size)
    scores = np.asarray(run(domain, method.start(theta), keys), np.float64)[:tasks]
    width = 1.96 * scores.std(axis=0, ddof=1) / np.sqrt(tasks)
    known = np.atleast_1d(np.isfinite(scores).all(axis=0))
    return {
        "steps": [s for s, good in zip(SWEEP, known, strict=True) if good],
        headline: scores.mean(axis=0)[known].tolist(),
        "ci95": width[known].tolist(),
    }


def adaptation_ms(domain: Any, run: Run, calls: int = 20) -> float | None:
    """Milliseconds that a new task takes to adapt to, in use: the median of `calls` after the first."""
    times = []
    sample = jax.jit(lambda domain, key: domain.sample(key, "test").support)
    for i in range(calls + 1):
        support = jax.device_get(sample(domain, jax.random.fold_in(jax.random.key(1), i)))
        began = time.perf_counter()
        try:
            jax.block_until_ready(run.adapt(support[0], support[1]).phi)
        except NumericalError:  # told by the scores
            return None
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times[1:]))


def _summary(
    base: Config,
    minutes: float,
    tasks: int,
    seeds: int,
    domain: Any,
    rows: Mapping[str, Row],
    found: Mapping[str, list[_Result]],
    common: int,
) -> dict[str, Any]:
    """Everything that the table and the page show."""
    recipe = to_json(base)
    recipe["domain"].pop("data", None)
    reference = REFERENCE if REFERENCE in found else next(iter(found))
    listed = []
    for name, results in found.items():
        first = results[0].content
        entry = {
            "method": name,
            "about": rows[name].about,
            "runs": [_without(r.content, "config") for r in results],
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


def _without(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in names}


def _over_seeds(runs: Sequence[Mapping[str, np.ndarray]], name: str) -> np.ndarray:
    """The score of every test task, averaged over seeds."""
    return np.mean([run[name].astype(np.float64) for run in runs], axis=0)


def _mean(runs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Each score's mean with its interval over tasks, and the seeds' own means."""
    summary = {}
    for name in runs[0]:
        values = _over_seeds(runs, name)
        known = values[np.isfinite(values)]
        if known.size < 2:
            continue
        width = 1.96 * known.std(ddof=1) / np.sqrt(known.size)
        means = [float(np.nanmean(run[name])) for run in runs]
        summary[name] = {"mean": float(known.mean()), "ci95": float(width), "seeds": means}
    return summary


def _difference(
    runs: Sequence[Mapping[str, np.ndarray]], others: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """Each score less that of the reference on the same tasks, with the interval over tasks."""
    summary = {}
    for name in runs[0]:
        gap = _over_seeds(runs, name) - _over_seeds(others, name)
        gap = gap[np.isfinite(gap)]
        if gap.size > 1:
            width = 1.96 * gap.std(ddof=1) / np.sqrt(gap.size)
            summary[name] = {"mean": float(gap.mean()), "ci95": float(width)}
    return summary
