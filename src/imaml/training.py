"""The outer loop: one jitted step, tasks sharded over devices, events, validation, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from . import __version__, tree
from .adaptation import Predictor, adapt, save
from .checkpoint import Checkpoints
from .config import Config, Method, Optimiser, Training, load_config, to_json
from .errors import ConfigError, NumericalError
from .evaluation import Evaluation, evaluate_theta
from .journal import Journal
from .methods import AXIS, IMAML

VALIDATION_SEED = 20_190_910  # validation tasks are the same in every run, so that runs can be paired


@dataclass(frozen=True)
class Run:
    """What a training run has learned; what `train` returns.

    theta: the meta-parameters, the moving average where one is kept. step: outer steps taken. reason: why it
    stopped ("steps", "minutes", "converged", "gradient", "interrupted"). config: None where the run has no JSON form.
    folder: where it was written, or None. last: the latest validation, or None.
    """

    theta: Any
    domain: Any
    method: IMAML
    config: Config | None
    step: int
    reason: str
    folder: Path | None = None
    last: Evaluation | None = None

    def adapt(self, x: Any, y: Any) -> Predictor:
        """A Predictor for a new task from its support set; see `imaml.load(...).adapt`."""
        if self.config is None:
            raise ConfigError(
                "adapt: this run was made from objects without a JSON form, so its inputs are not known; solve the "
                "task with imaml.solve(run.method.problem, run.theta, support, inner=run.method.inner, rule=...)."
            )
        return adapt(self.theta, self.config, self.method, x, y)


def describe(domain: Any, method: Any, optimiser: Any, training: Training) -> Config | None:
    """The Config that a run from Python objects amounts to, or None where one of them has no JSON form."""
    if not (isinstance(optimiser, Optimiser) and isinstance(method, IMAML) and method.problem.kind == "proximal"):
        return None
    problem = method.problem
    choice = problem.adapt.choice
    learns = problem.learns
    strength = learns.initial if learns is not None else problem.strength
    recipe = getattr(domain, "recipe", None)
    if recipe is None or not isinstance(strength, (int, float)) or not (choice is None or isinstance(choice, tuple)):
        return None
    if problem.loss != domain.problem(1.0).loss or getattr(method.query_loss, "__func__", None) is not getattr(
        type(domain), "query_loss", None
    ):
        return None
    try:
        described = Method(
            strength=float(strength),
            learned=None if learns is None else learns.per,
            adapt=choice,
            inner=method.inner,  # type: ignore[arg-type]
            linear=method.linear,  # type: ignore[arg-type]
            policy=method.policy,
            chunk=method.chunk,
        )
        config = Config(recipe, described, optimiser, training)
        to_json(config)
    except ConfigError:
        return None
    return config


def devices_mesh(tasks: int) -> Mesh | None:
    """A mesh over all devices that can share `tasks` evenly, or None where there is just one."""
    found = jax.devices()
    while len(found) > 1 and tasks % len(found):
        found = found[:-1]
    return Mesh(np.array(found), (AXIS,)) if len(found) > 1 else None


def make_step(method: IMAML, transform: Any, tasks: int, average: float) -> Callable:
    """The jitted (domain, state, key) -> (state, report): sample, meta-gradient, update.

    Episodes come from `fold_in(key, step)`, so step k is the same whatever came before. Where no task is usable or
    the gradient is not finite the state keeps its parameters; the host then raises.
    """
    import optax

    def step(domain: Any, state: dict[str, Any], key: Array) -> tuple[dict[str, Any], dict[str, Any]]:
        sample_key, method_key = jax.random.split(jax.random.fold_in(key, state["step"]))
        keys = jax.random.split(sample_key, tasks)
        if method.mesh is not None:
            keys = jax.lax.with_sharding_constraint(keys, NamedSharding(method.mesh, PartitionSpec(AXIS)))
        batch = jax.vmap(lambda k: domain.sample(k, "train"))(keys)
        gradient, metrics = method(state["theta"], batch, method_key)
        size = tree.norm(gradient)
        good = jnp.isfinite(size) & jnp.any(metrics.used)
        updates, memory = transform.update(gradient, state["optimiser"], state["theta"])
        theta = optax.apply_updates(state["theta"], updates)
        new = {"theta": theta, "optimiser": memory, "average": {}}
        if average:
            new["average"] = jax.tree.map(lambda a, t: average * a + (1 - average) * t, state["average"], theta)
        kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, {k: state[k] for k in new})
        kept["step"] = state["step"] + good.astype(jnp.int32)
        return kept, {"gradient_norm": size, "metrics": metrics}

    return jax.jit(step)


def initial_state(domain: Any, method: IMAML, transform: Any, key: Array, average: float, start: Any) -> dict:
    """The state of step 0: a tree of arrays. start: theta to go on from, or None for a fresh one."""
    theta = method.problem.parameters(domain.init(key)) if start is None else jax.tree.map(jnp.asarray, start)
    return {
        "theta": theta,
        "optimiser": transform.init(theta),
        "average": jax.tree.map(jnp.copy, theta) if average else {},
        "step": jnp.zeros((), jnp.int32),
    }


class _Window:
    """Reports since the last line of the journal, averaged when one is due."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []

    def summary(self) -> dict[str, float]:
        """The means over the window's steps and tasks, as event fields."""
        metrics = [report["metrics"] for report in self.reports]
        used = np.concatenate([np.asarray(m.used) for m in metrics])

        def mean(values: list[Any]) -> float:
            joined = np.concatenate([np.asarray(v, np.float64) for v in values])[used]
            return float(joined.mean()) if joined.size else math.nan

        fields = {
            "loss": mean([m.loss for m in metrics]),
            "gradient_norm": float(np.mean([np.asarray(r["gradient_norm"]) for r in self.reports])),
            "inner_residual": mean([m.inner_residual for m in metrics]),
            "inner_steps": mean([m.inner_steps for m in metrics]),
            "inner_steps_max": float(max(np.asarray(m.inner_steps).max() for m in metrics)),
            "linear_residual": mean([m.linear_residual for m in metrics]),
            "linear_steps": mean([m.linear_steps for m in metrics]),
            "negative_curvature": float(np.mean([np.asarray(m.negative_curvature).mean() for m in metrics])),
            "failed": int((~used).sum()),
        }
        for name in metrics[0].measures:
            fields[name] = mean([m.measures[name] for m in metrics])
        self.reports.clear()
        return fields


def train(
    domain: Any,
    method: IMAML,
    optimiser: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    start: Any = None,
    progress: bool | None = None,
    **options: Any,
) -> Run:
    """The Run of learning theta on a domain's training tasks by a method's meta-gradient.

    optimiser: an `Optimiser` recipe, or any Optax transform (then the command line cannot resume the run). out:
    the run's folder (config.json, events.jsonl, checkpoints/, artefact.safetensors), or None to write nothing.
    resume: go on from the newest sound checkpoint in `out`; the parameters that result are bit for bit those of
    an uninterrupted run on the same machine and devices. start: theta to begin from, by default fresh. options: the
    fields of `imaml.config.Training`: steps, tasks, seed, minutes, validate_every, patience, ...

    Errors: ConfigError for what does not fit, NumericalError where no task of a step is usable or the policy is
    "raise" (the last good state is kept in the checkpoint), CheckpointError where nothing sound is left to resume.

    >>> import imaml
    >>> domain = imaml.sinusoid()
    >>> method = imaml.IMAML(domain.problem(0.5), domain.query_loss,
    ...                      inner=imaml.GradientDescent(0.02, steps=5), linear=imaml.CG(steps=3))
    >>> imaml.train(domain, method, imaml.Optimiser("adam", 1e-3), steps=2, tasks=4, validate_every=0,
    ...             progress=False).step
    2
    """
    optimiser = Optimiser() if optimiser is None else optimiser
    try:
        training = Training(**options)
    except TypeError as error:
        known = ", ".join(f.name for f in dataclasses.fields(Training))
        raise ConfigError(f"train: {error}. Accepted options: {known}.") from error
    if method.mesh is None:
        method = dataclasses.replace(method, mesh=devices_mesh(training.tasks))
    config = describe(domain, method, optimiser, training)
    folder = None if out is None else prepare_folder(Path(out), config, resume)
    return _Loop(domain, method, optimiser, training, config, folder).run(resume, start, progress)


def prepare_folder(folder: Path, config: Config | None, resume: bool) -> Path:
    """The run's folder, made, with config.json; ConfigError where it cannot be written or holds another run."""
    file = folder / "config.json"
    if resume:
        if not file.exists():
            raise ConfigError(f"resume: {folder} holds no run (no config.json); leave out resume to start one there.")
        stored = load_config(file.read_text(), str(file))
        if config is None:
            raise ConfigError("resume: this run's objects have no JSON form, so it cannot be checked that they match.")
        difference = first_difference(to_json(stored), to_json(config))
        if difference:
            raise ConfigError(f"resume: {folder} was started with another configuration: {difference}.")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} exists and is not empty; resume the run in it (--resume), or choose another folder (--out)."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = {"kind": "Python", "repr": "objects without a JSON form"} if config is None else to_json(config)
        file.write_text(json.dumps(text, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}. Choose another folder (--out).") from error
    return folder


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """A sentence on the first field in which two JSON configurations differ, or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(set(old) | set(new)):
            if path == ".domain" and name == "data":
                continue
            found = first_difference(old.get(name), new.get(name), f"{path}.{name}")
            if found:
                return found
        return None
    return None if old == new else f"{path.lstrip('.')} was {old!r} and is now {new!r}"


class _Loop:
    """One call of `train`: what it holds while it goes."""

    def __init__(
        self, domain: Any, method: IMAML, optimiser: Any, training: Training, config: Config | None, folder: Path | None
    ) -> None:
        self.domain, self.method, self.training = domain, method, training
        self.config, self.folder = config, folder
        recipe = isinstance(optimiser, Optimiser)
        self.transform = optimiser.build(training.steps) if recipe else optimiser
        self.rate = optimiser.rate(training.steps) if recipe else None
        self.average = optimiser.average if recipe else 0.0
        self.checkpoints = None if folder is None else Checkpoints(folder / "checkpoints", training.keep)
        self.step = make_step(method, self.transform, training.tasks, self.average)
        self.window = _Window()
        self.best, self.stale = math.nan, 0
        self.last: Evaluation | None = None
        self.failing = 0  # steps with failed tasks
        self.spent = 0.0  # seconds of training before this call

    def run(self, resume: bool, start: Any, progress: bool | None) -> Run:
        init_key, self.key = jax.random.split(jax.random.key(self.training.seed))
        state = initial_state(self.domain, self.method, self.transform, init_key, self.average, start)
        if start is not None:
            _check_theta(start, initial_state(self.domain, self.method, self.transform, init_key, 0.0, None)["theta"])
        if self.method.mesh is not None:  # placed once, so that the second step finds what the first one compiled
            state = jax.device_put(state, NamedSharding(self.method.mesh, PartitionSpec()))
        journal = Journal(
            self.folder,
            progress=progress,
            total=self.training.steps,
            minutes=self.training.minutes,
            append=resume,
        )
        with journal:
            self.journal = journal
            state = self._resumed(state) if resume else self._started(state)
            state, reason = self._steps(state)
            count = int(state["step"])
            journal.write("end", step=count, reason=reason, seconds=self._seconds())
        theta = self._theta(state)
        if self.folder is not None:
            save(self.folder / "artefact.safetensors", theta, self.config)
        return Run(theta, self.domain, self.method, self.config, count, reason, self.folder, self.last)

    def _started(self, state: dict) -> dict:
        theta = state["theta"]
        kind = jax.devices()[0].platform
        mesh = self.method.mesh
        self.journal.write(
            "start",
            version=__version__,
            steps=self.training.steps,
            tasks=self.training.tasks,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(theta)),
            headline=self.domain.headline,
            higher_is_better=self.domain.higher_is_better,
            devices=f"{1 if mesh is None else mesh.size} x {kind}",
        )
        return state

    def _resumed(self, state: dict) -> dict:
        assert self.checkpoints is not None
        restored = self.checkpoints.restore(state)
        for sentence in restored.skipped:
            self.journal.write("warning", message=sentence)
        self.spent = float(restored.note.get("seconds", 0.0))
        self.best = restored.note["best"] if restored.note.get("best") is not None else math.nan
        self.stale = int(restored.note.get("stale", 0))
        self.journal.write("resume", step=restored.step)
        return restored.state

    def _steps(self, state: dict) -> tuple[dict, str]:
        training = self.training
        self.began = time.monotonic()
        count = int(state["step"])
        saved = count if self.checkpoints is not None and self.checkpoints.steps() else -1
        reason = "steps"
        try:
            while count < training.steps:
                state, report = self._advance(state)
                count += 1
                stop = self._after(state, report, count)
                if stop is None and training.minutes is not None and self._seconds() >= 60 * training.minutes:
                    stop = "minutes"
                if count % training.checkpoint_every == 0:
                    saved = self._save(state, count)
                if stop is not None:
                    reason = stop
                    break
        except KeyboardInterrupt:
            reason = "interrupted"
            count = int(state["step"])
        except NumericalError:
            self._save(state, int(state["step"]))
            raise
        if saved != count:
            self._save(state, count)
        return state, reason

    def _advance(self, state: dict) -> tuple[dict, dict]:
        """One step; failed tasks are dealt with by the method's policy before the new state is taken."""
        new, report = self.step(self.domain, state, self.key)
        used = np.asarray(report["metrics"].used)
        if not used.all():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.method.check(report["metrics"])
            # Said at the first step that shows it, then at twice as many each time; `failed` counts them all.
            self.failing += bool(caught)
            if caught and self.failing.bit_count() == 1:
                message = f"step {int(state['step']) + 1}: {caught[0].message}"
                self.journal.write("warning", message=f"{message} ({self.failing} such steps so far.)")
        if not np.isfinite(np.asarray(report["gradient_norm"])):
            raise NumericalError(
                f"step {int(state['step']) + 1}: the meta-gradient is not finite although every task's is; lower the "
                "learning rate, or set --optimiser.clip."
            )
        return new, report

    def _after(self, state: dict, report: dict, count: int) -> str | None:
        """Writes what is due after a step; the reason to stop, or None."""
        training = self.training
        self.window.reports.append(report)
        if count % training.log_every == 0 or count == training.steps:
            fields = self.window.summary()
            if self.rate is not None:
                fields["learning_rate"] = float(self.rate(count - 1))
            self.journal.write("step", step=count, seconds=self._seconds(), **fields)
            if training.gradient_below is not None and fields["gradient_norm"] < training.gradient_below:
                return "gradient"
        due = training.validate_every and (count % training.validate_every == 0 or count == training.steps)
        return self._validate(state, count) if due else None

    def _validate(self, state: dict, count: int) -> str | None:
        training = self.training
        self.last = evaluate_theta(
            self.domain,
            self.method,
            self._theta(state),
            split="validation",
            tasks=training.validation_tasks,
            seed=VALIDATION_SEED,
        )
        score = self.last.scores[self.domain.headline]
        sign = 1 if self.domain.higher_is_better else -1
        better = math.isnan(self.best) or sign * score > sign * self.best
        self.best, self.stale = (score, 0) if better else (self.best, self.stale + 1)
        self.journal.write(
            "validation",
            step=count,
            seconds=self._seconds(),
            scores=dict(self.last.scores),
            ci95=dict(self.last.ci95),
            before=dict(self.last.before),
            tasks=self.last.tasks,
            best=better,
        )
        return "converged" if training.patience is not None and self.stale >= training.patience else None

    def _theta(self, state: dict) -> Any:
        return state["average"] if self.average else state["theta"]

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def _save(self, state: dict, count: int) -> int:
        if self.checkpoints is not None:
            best = None if math.isnan(self.best) else self.best
            note = {"seconds": self._seconds(), "best": best, "stale": self.stale}
            self.checkpoints.save(count, state, note)
            self.journal.write("checkpoint", step=count)
        return count


def _check_theta(start: Any, fresh: Any) -> None:
    """Refuses a theta to go on from that is not shaped like a fresh one (ConfigError)."""
    if not tree.same(start, fresh):
        raise ConfigError(
            f"start: theta is {tree.shapes(start)}; this domain and method need {tree.shapes(fresh)}. Ways, filters "
            "and how the strength is learned must be those of the run that it comes from."
        )
