"""Compares methods under one protocol.

All methods have the same domain, network, initialisation (by seed), outer optimiser and test tasks. They are
compared at equal wall-clock time and at an equal number of tasks seen; differences are paired task by task.
The outer learning rate is constant and theta averaged, so that a run is comparable at every moment: what
annealing gives depends on when it ends. Of a run's checkpoints the best on validation tasks is tested.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..config.run import Config, load_config
from ..core.errors import ConfigError, DataError, NumericalError
from ..core.recipes import to_json
from ..storage.atomic import replacing, write_json
from ..storage.checkpoint import Checkpoints
from ..training.directory import first_difference
from ..training.evaluation import evaluate_theta, valid
from ..training.experiment import assemble
from ..training.journal import FILE, clock, read_events
from ..training.loop import Run
from .measurements import adaptation_ms, sweep
from .results import Result, Scores, summarise
from .variants import GRID, rows_of

SWEEP_TASKS = 200


class Interrupted(Exception):
    """Ctrl-C or SIGTERM stopped a run; its checkpoint has what it learned."""


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
    """Trains and evaluates methods in turn.

    Args:
        base: A preset's configuration, which each row of `ROWS` changes.
        names: Keys of `ROWS`; none means all.
        out: The directory of the comparison. Finished runs in it are kept, interrupted ones continue.
        minutes: Training time of each run, without validations.
        tasks: Number of test tasks, the same for all.
        seeds: Number of runs of each method, from seeds 0, 1, ... Their scores are averaged task by task.
        progress: None or True shows each run on stderr; False shows warnings only.
        say: Receives a line about each run.

    Returns:
        The content of ``out/comparison.json``.

    Raises:
        ConfigError: If a name is unknown, or ``out`` holds something else.
        DataError: If a file in ``out`` is damaged.
        Interrupted: If Ctrl-C or SIGTERM stopped a run.
    """
    out, rows = Path(out), rows_of(names)
    domain = base.domain.build()
    _check_plan(out, base, minutes, tasks)
    found: dict[str, list[Result]] = {}
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
    summary = summarise(base, minutes, tasks, seeds, domain, rows, found, common * base.training.tasks)
    write_json(out / "comparison.json", summary)
    return summary


def _check_plan(out: Path, base: Config, minutes: float, tasks: int) -> None:
    """Writes what is compared; ConfigError for a folder that holds something else."""
    file, plan = out / "plan.json", {"config": to_json(base), "budget": minutes, "tasks": tasks}
    if file.is_file():
        try:
            old = json.loads(file.read_text())
        except ValueError as error:
            raise DataError(
                f"{file} is damaged: expected JSON ({error}). Hint: restore it, or choose another --out."
            ) from error
        before, now = ({f"--{k}": v for k, v in given.items() if k != "config"} for given in (old, plan))
        difference = first_difference(old.get("config"), plan["config"]) or first_difference(before, now)
        if difference:
            raise ConfigError(
                f"{out} holds another comparison: {difference}. Hint: repeat the same options, or choose "
                "another --out."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and holds no comparison. Hint: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, plan)


def _row(domain: Any, name: str, config: Config, folder: Path, tasks: int, progress: bool | None) -> Result:
    """One method's run, trained and tested; finished results are read."""
    file = folder / "result.json"
    if not file.is_file():
        run, failure = _trained(domain, config, folder / "run", progress)
        step = _best(domain, folder, run.step)
        tested = _tested(domain, config, folder, step, tasks)
        content = _measured(domain, config, folder, run, step) | {"failure": failure}
        write_json(file, {"method": name, **content, **tested.content})
    content = json.loads(file.read_text())
    return Result(folder, config, content, _tested(domain, config, folder, content["step"], tasks))


def _trained(domain: Any, config: Config, folder: Path, progress: bool | None) -> tuple[Run, str | None]:
    """The run, new or continued; and why it failed numerically, or None.

    One method's failure does not stop the others: its checkpoints until then are tested like theirs.
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


def _tested(domain: Any, config: Config, folder: Path, step: int, tasks: int) -> Scores:
    """The test scores of a run as it was after `step` steps; read where they exist already."""
    file, arrays = folder / f"step-{step}.json", folder / f"step-{step}.npz"
    if not file.is_file():
        method, theta = _theta(domain, config, folder, step)
        found = evaluate_theta(domain, method, theta, split="test", tasks=tasks)
        stored: dict[str, Any] = {name: v.astype(np.float32) for name, v in found.values.items()}
        with replacing(arrays) as part, part.open("wb") as opened:
            np.savez(opened, **stored)
        summaries = ("scores", "ci95", "before", "baselines")
        content = valid({name: dict(getattr(found, name)) for name in summaries})
        # Last: where this file is, the scores are complete.
        write_json(file, {"step": step, **content, "failed": found.failed})
    with np.load(arrays) as values:
        return Scores(json.loads(file.read_text()), {key: values[key] for key in values.files})


def _measured(domain: Any, config: Config, folder: Path, run: Run, step: int) -> dict[str, Any]:
    """What result.json says beside the test scores: facts of the run, and of theta after `step` steps."""
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
