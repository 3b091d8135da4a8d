"""Compares methods under one protocol.

All methods have the same domain, network, initialisation (by seed), outer optimiser and test tasks. They are
compared at equal wall-clock time and at an equal number of tasks seen; differences are paired task by task.
The outer learning rate is constant and theta averaged, so that a run is comparable at every moment: what
annealing gives depends on when it ends. Of a run's checkpoints the best on validation tasks is tested.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ..config.run import Config
from ..core.errors import CheckpointError, ConfigError, NumericalError
from ..core.recipes import to_json
from ..core.tree import Tree
from ..domains.base import Domain, in_step
from ..predict import Learner
from ..storage.atomic import read_json, replacing, write_json
from ..storage.checkpoint import Checkpoints
from ..training.directory import first_difference
from ..training.evaluation import evaluate_theta
from ..training.experiment import Experiment, assemble
from ..training.journal import FILE, JsonObject, clock, json_values, read_events
from .measurements import adaptation_ms, sweep
from .results import Result, Scores, entries, without_data
from .variants import GRID, rows_of

SWEEP_TASKS = 200
REFERENCE = "imaml"
NUMBER = "task number"  # in the files of scores; no score's name has a space
OWN_OBJECTS = {f"domain.{name}.": "token" for name in ("model", "loss")}  # of a process


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
) -> JsonObject:
    """Train and evaluate methods in turn.

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
        ConfigError: If a name is unknown, or ``out`` holds something else, or its plan is damaged.
        DataError: If the log of a run is damaged.
        CheckpointError: If a checkpoint that is to be tested is damaged.
        Interrupted: If Ctrl-C or SIGTERM stopped a run.
    """
    out, rows = Path(out), rows_of(names)  # a misspelt name is refused before anything is read
    configs = {name: [row.config(base, minutes, seed) for seed in range(seeds)] for name, row in rows.items()}
    domain = base.domain.build()
    _check_plan(out, base, minutes, tasks)
    trials: dict[str, list[Trial]] = {name: [] for name in rows}
    for seed in range(seeds):
        for name, row in rows.items():
            began, folder = time.monotonic(), out / name / f"seed-{seed}"
            trial = Trial(domain, configs[name][seed], folder, tasks)
            done = trial.file.is_file()
            if row.learns and not done:
                say(f"{name:<20} seed {seed}  training for {minutes:g} min, then {tasks:,} test tasks ...")
            trial.finish(name, progress)
            trials[name].append(trial)
            took = " (done before)" if done else f" ({clock(time.monotonic() - began)} in all)"
            say(f"{name:<20} seed {seed}  {trial.result.line(domain.headline)}{took}")
    learned = [each for those in trials.values() for each in those if each.result.content["steps"]]
    # Equal tasks: the last step of the validation grid that every method has reached.
    common = min((each.result.content["steps"] for each in learned), default=0) // GRID * GRID
    for trial in learned:
        if common:
            trial.result.equal = trial.tested(trial.best(common))
    found = {name: [trial.result for trial in those] for name, those in trials.items()}
    first = next(iter(found.values()))[0].time.content
    reference = REFERENCE if REFERENCE in found else next(iter(found))
    summary = {
        "minutes": minutes,
        "test_tasks": tasks,
        "different_tasks": first.get("different", tasks),
        "held_out": first.get("held_out", True),
        "seeds": seeds,
        "equal_tasks": common * in_step(domain, base.training.tasks),
        "reference": reference,
        "headline": domain.headline,
        "higher_is_better": domain.higher_is_better,
        "config": without_data(base),
        "rows": entries(rows, found, reference),
    }
    write_json(out / "comparison.json", summary)
    return summary


def _check_plan(out: Path, base: Config, minutes: float, tasks: int) -> None:
    """Write what is compared; ConfigError for a folder that holds something else."""
    file, plan = out / "plan.json", {"config": to_json(base), "budget": minutes, "tasks": tasks}
    if file.is_file():
        old = read_json(file)
        before, now = ({f"--{k}": v for k, v in given.items() if k != "config"} for given in (old, plan))
        configs = old.get("config"), plan["config"]
        # Every field counts: what is done stays as it is, so that it must be what these options would give.
        difference = first_difference(before, now) or first_difference(*configs, may_change=OWN_OBJECTS)
        if difference:
            raise ConfigError(
                f"{out}: expected a comparison with the same options, got another: {difference}. Hint: "
                "repeat its original options, or choose another --out."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "one with other files in it" if out.is_dir() else "a file"
        raise ConfigError(
            f"{out}: expected a new directory, or a comparison to continue, got {found}. Hint: choose "
            "another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, plan)


@dataclass
class Trial:
    """One run of a method: trained, tested and measured once, and then read from its files.

    Attributes:
        domain: Where tasks come from.
        config: The run's configuration.
        folder: Where its files are.
        tasks: Number of test tasks.
    """

    domain: Domain
    config: Config
    folder: Path
    tasks: int

    @property
    def file(self) -> Path:
        """The file with its result, written last."""
        return self.folder / "result.json"

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The objects of the run."""
        return assemble(self.config, self.domain)

    @functools.cached_property
    def result(self) -> Result:
        """What its files say, once it is finished."""
        content = read_json(self.file)
        return Result(content, self.tested(content["step"]))

    def finish(self, name: str, progress: bool | None) -> None:
        """Train, test and measure, unless that was done before.

        One method's failure does not stop the others: its checkpoints until then are tested like theirs.

        Args:
            name: The method.
            progress: None or True shows the run on stderr; False shows warnings only.

        Raises:
            CheckpointError: If the checkpoint that is to be tested is damaged.
            Interrupted: If Ctrl-C or SIGTERM stopped it.
        """
        if self.file.is_file():
            return
        run, failure = self.folder / "run", None
        try:
            resume = (run / "config.json").is_file()
            if self.experiment.train(out=run, resume=resume, progress=progress).reason == "interrupted":
                raise Interrupted
        except NumericalError as error:
            failure = str(error)
        end = self.events("end")[-1]
        step = self.best(end["step"])
        tested = self.tested(step)
        content = {"method": name, **self.measured(end, step), "failure": failure}
        write_json(self.file, {**content, **tested.content})

    def events(self, kind: str) -> list[JsonObject]:
        """Return the events of a kind in the run's log.

        Args:
            kind: The kind, such as "validation".

        Returns:
            The events in order.

        Raises:
            DataError: If the log is damaged.
        """
        return [event for event in read_events(self.folder / "run" / FILE) if event["event"] == kind]

    def validations(self) -> dict[int, JsonObject]:
        """Return the run's validations by step; of a step validated twice the last."""
        return {event["step"]: event for event in self.events("validation")}

    def best(self, most: int) -> int:
        """Return the step with the best validation score.

        Args:
            most: The last step to consider.

        Returns:
            The step; `most` if no validation until then has a finite score.
        """
        sign, headline = 1 if self.domain.higher_is_better else -1, self.domain.headline
        scores = {
            step: sign * event["scores"][headline]
            for step, event in self.validations().items()
            if step <= most and event["scores"][headline] is not None
        }
        return max(scores, key=lambda step: scores[step], default=most)

    def theta(self, step: int) -> Tree:
        """Return theta after a number of steps.

        Args:
            step: A step with a checkpoint.

        Returns:
            The moving average where one is kept, else theta itself.

        Raises:
            CheckpointError: If that checkpoint is missing or damaged.
        """
        like = jax.eval_shape(self.experiment.begin)[1]
        restored = Checkpoints(self.folder / "run" / "checkpoints").restore(like, step)
        if restored.step != step:
            raise CheckpointError(
                f"compare: expected the checkpoint of step {step} in {self.folder / 'run'}, got that of step "
                f"{restored.step}: {' '.join(restored.skipped) or 'it is missing.'} Hint: delete "
                f"{self.folder} and repeat the command, which then trains this run again."
            )
        state = restored.state
        return state["average"] if self.experiment.outer.average else state["theta"]

    def tested(self, step: int) -> Scores:
        """Return the test scores of theta, which are computed and written once, and then read.

        Args:
            step: A step with a checkpoint.

        Returns:
            The scores.
        """
        file, arrays = self.folder / f"step-{step}.json", self.folder / f"step-{step}.npz"
        if not file.is_file():
            method = self.experiment.method
            found = evaluate_theta(self.domain, method, self.theta(step), split="test", tasks=self.tasks)
            values = {name: column.astype(np.float32) for name, column in found.values.items()}
            if found.number is not None:
                values[NUMBER] = found.number
            with replacing(arrays) as part, part.open("wb") as opened:
                np.savez(opened, **values)  # type: ignore[arg-type]
            summaries = {name: getattr(found, name) for name in ("scores", "ci95", "before", "baselines")}
            # Last: where this file is, the scores are complete.
            facts = {"failed": found.failed, "different": found.different, "held_out": found.held_out}
            write_json(file, {"step": step, **json_values(summaries), **facts})
        with np.load(arrays) as stored:
            values = {key: stored[key] for key in stored.files}
        number = values.pop(NUMBER, None)
        return Scores(read_json(file), values, number)

    def measured(self, end: JsonObject, step: int) -> JsonObject:
        """Return the facts of the run beside its test scores, and of theta after `step` steps.

        Args:
            end: The event that ended the run.
            step: The step that is tested.

        Returns:
            JSON values.
        """
        theta, tasks, config = self.theta(step), self.experiment.tasks, self.experiment.config
        assert config is not None  # that of the domain with its data
        checks = sorted(self.validations().items())
        content = {
            "steps": end["step"],
            "tasks_seen": end["step"] * tasks,
            "seconds": end["seconds"] if end["step"] else 0.0,
            "reason": end["reason"],
            "curve": [{"tasks": at * tasks, "seconds": e["seconds"], **e["scores"]} for at, e in checks],
            "inner_steps": sweep(self.domain, self.experiment.method, theta, "test", SWEEP_TASKS),
            "adaptation_ms": adaptation_ms(self.domain, Learner(theta, config)),
            "failed_in_training": sum(event["failed"] for event in self.events("step")),
            "config": without_data(self.config),
        }
        if self.config.method.name == "multitask":
            content["groups"] = self.domain.trade_off(theta)  # type: ignore[attr-defined]
        return content
