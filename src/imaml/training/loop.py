"""The outer loop: one jitted step, tasks sharded over devices, events, validation, checkpoints, resume."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ..config.description import describe
from ..config.optimiser import Optimiser
from ..config.run import PYTHON, Config
from ..config.training import Training
from ..core.errors import ConfigError, NumericalError
from ..core.interrupts import Interrupted, Interrupts
from ..core.recipes import to_json
from ..core.validation import meant
from ..core.version import __version__
from ..domains.base import in_step
from ..meta.gradient import MetaGradient
from ..predict import Predictor, adapt, save
from ..storage.checkpoint import Checkpoints
from .directory import check_new, check_resumable
from .evaluation import Evaluation, evaluate_theta
from .journal import Journal
from .step import devices_mesh, initial_state, make_step
from .step_statistics import Window

VALIDATION_SEED = 20_190_910  # validation tasks are the same in every run, so that runs can be paired


@dataclass(frozen=True)
class Run:
    """What a training run has learned; what `train` returns.

    theta: the meta-parameters, the moving average where one is kept. step: outer steps taken. reason: why it
    stopped ("steps", "minutes", "converged", "gradient", "interrupted"). config: None where the run has no
    JSON form. folder: where it was written, or None. last: the latest validation, or None.
    """

    theta: Any
    domain: Any
    method: MetaGradient
    config: Config | None
    step: int
    reason: str
    folder: Path | None = None
    last: Evaluation | None = None

    def adapt(self, x: Any, y: Any = None) -> Predictor:
        """A Predictor for a new task from its support set; see `imaml.load(...).adapt`."""
        if self.config is None:
            raise ConfigError(
                "adapt: this run was made from objects without a JSON form, so its inputs are not known; "
                "solve the task with imaml.solve(run.method.problem, run.theta, support, "
                "inner=run.method.inner, rule=imaml.first_order())."
            )
        return adapt(self.theta, self.config, x, y)


def train(
    domain: Any,
    method: MetaGradient,
    optimiser: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    start: Any = None,
    progress: bool | None = None,
    **options: Any,
) -> Run:
    """The Run of learning theta on a domain's training tasks by a method's meta-gradient.

    optimiser: an `Optimiser` recipe, or any Optax transform (then the command line cannot resume the run).
    out: the run's folder (config.json, events.jsonl, checkpoints/, artefact.safetensors), or None to write
    nothing. resume: go on from the newest sound checkpoint in `out`; the parameters that result are bit for
    bit those of an uninterrupted run on the same machine and devices. start: theta to begin from, by default
    a fresh one. options: the fields of `Training` (imaml.config), steps, tasks, seed, minutes, patience, ...
    Ctrl-C, or SIGTERM, stops the run after the step with a checkpoint; before the first step, while that is
    compiled, and during a validation, which a resumed run then repeats, it stops at once.

    Errors: ConfigError for what does not fit, NumericalError where no task of a step is usable or the policy
    is "raise" (the last good state is in the checkpoint), CheckpointError where nothing sound is left.

    >>> import imaml
    >>> domain = imaml.sinusoid()
    >>> method = imaml.IMAML(domain.problem(0.5), domain.query_loss,
    ...                      inner=imaml.GradientDescent(0.02, steps=5), linear=imaml.CG(steps=3))
    >>> imaml.train(domain, method, imaml.Optimiser("adam", 1e-3), steps=2, tasks=4, validate_every=0,
    ...             progress=False).step
    2
    """
    optimiser = Optimiser() if optimiser is None else optimiser
    if not isinstance(method, MetaGradient):
        raise ConfigError(
            f"train: method={method!r}; accepted is one made by imaml.IMAML(problem, query_loss, ...), MAML, "
            "FOMAML, Reptile or Joint."
        )
    if not isinstance(optimiser, Optimiser) and not hasattr(optimiser, "update"):
        raise ConfigError(
            f"train: optimiser={optimiser!r}; accepted: imaml.Optimiser, or an Optax transform."
        )
    known = [f.name for f in dataclasses.fields(Training)]
    for name in options:
        if name not in known:
            raise ConfigError(f"train: there is no option {name!r}{meant(name, known)}")
    training = Training(**options)
    tasks = in_step(domain, training.tasks)
    if resume and out is None:
        raise ConfigError("train: resume=True needs out=, the run's folder.")
    if resume and start is not None:
        raise ConfigError("train: resume=True goes on from a checkpoint, so start= has no place there.")
    if method.mesh is None:
        method = dataclasses.replace(method, mesh=devices_mesh(tasks))
    described = describe(domain, method, optimiser, training)
    folder = None if out is None else Path(out)
    if folder is not None:
        check_resumable(folder, described) if resume else check_new(folder)
    return _Loop(domain, method, optimiser, training, described, folder).run(resume, start, progress)


class _Loop:
    """One call of `train`: what it holds while it goes."""

    def __init__(
        self,
        domain: Any,
        method: MetaGradient,
        optimiser: Any,
        training: Training,
        described: Config | str,
        folder: Path | None,
    ) -> None:
        self.domain, self.method, self.training = domain, method, training
        self.described, self.folder = described, folder
        self.tasks = tasks = in_step(domain, training.tasks)
        recipe = isinstance(optimiser, Optimiser)
        self.transform = optimiser.build(training.steps) if recipe else optimiser
        self.rate = optimiser.rate(training.steps) if recipe else None
        self.average = optimiser.average if recipe else 0.0
        self.checkpoints = None if folder is None else Checkpoints(folder / "checkpoints", training.keep)
        logged = (training.log_every, training.steps)  # lines of the journal have an estimate of the error
        build = lambda method: make_step(method, self.transform, tasks, self.average, *logged)  # noqa: E731
        self.step = build(method)
        self.certifying = build(method.certifying()) if training.certify_every else self.step
        self.window = Window()
        self.best, self.stale = math.nan, 0  # the best validation, and how many came since
        self.last: Evaluation | None = None
        self.failing = 0  # steps with failed tasks
        self.spent = 0.0  # seconds of training before this call
        self.flat = False  # whether the meta-gradient's norm has fallen below its threshold
        self.saved = -1  # the step of the newest checkpoint
        self.compiled: list[Callable] = []  # the steps that this call has compiled
        self.owed = False  # whether a validation was interrupted, and is due when the run goes on

    def run(self, resume: bool, start: Any, progress: bool | None) -> Run:
        training, self.visible = self.training, progress is not False
        init_key, self.key = jax.random.split(jax.random.key(training.seed))
        state = initial_state(self.domain, self.method, self.transform, init_key, self.average, start)
        self.placed = self.domain
        if self.method.mesh is not None:
            # Placed once: the second step finds what the first compiled, and data are not copied at each.
            whole = NamedSharding(self.method.mesh, PartitionSpec())
            self.placed, state, self.key = jax.device_put((self.domain, state, self.key), whole)
        self.step.eval_shape(self.placed, state, self.key)  # what does not fit is told before writing
        shown = {"progress": progress, "total": training.steps, "minutes": training.minutes}
        config = None if isinstance(self.described, str) else self.described
        # From the folder's first file to its last, so that every interrupt leaves a run that can be resumed.
        with Interrupts(self.visible) as self.interrupts:
            with Journal(self.folder, append=resume, **shown) as journal:
                self.journal = journal
                self.began = time.monotonic()
                state = self._resumed(state) if resume else self._started(state)
                if self.folder is not None:
                    self._write_config(self.folder / "config.json")
                state, reason = self._steps(state)
                count = int(state["step"])
                journal.write("end", step=count, reason=reason, seconds=self._seconds())
            theta = state["average"] if self.average else state["theta"]
            if self.folder is not None:
                save(self.folder / "artefact.safetensors", self.method.start(theta), self.described)
            self.interrupts.answered = reason == "interrupted"
        return Run(theta, self.domain, self.method, config, count, reason, self.folder, self.last)

    def _started(self, state: dict) -> dict:
        mesh = self.method.mesh
        self.journal.write(
            "start",
            version=__version__,
            steps=self.training.steps,
            tasks=self.tasks,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(state["theta"])),
            headline=self.domain.headline,
            higher_is_better=self.domain.higher_is_better,
            devices=f"{1 if mesh is None else mesh.size} x {jax.devices()[0].platform}",
        )
        self._save(state, 0)  # so that a run can be resumed from its first moment, whatever it starts from
        return state

    def _resumed(self, state: dict) -> dict:
        assert self.checkpoints is not None
        restored = self.checkpoints.restore(state)
        for sentence in restored.skipped:
            self.journal.write("warning", message=sentence)
        note = restored.note
        self.spent = float(note["seconds"])
        self.best = math.nan if note["best"] is None else note["best"]
        self.stale, self.flat, self.saved = int(note["stale"]), bool(note["flat"]), restored.step
        self.window.norms = [float(norm) for norm in note["norms"]]
        self.owed = bool(note.get("owed"))  # not in checkpoints of earlier versions
        if isinstance(self.described, str):
            self.journal.write(
                "warning",
                message=f"Whether the run goes on as it began cannot be checked: {self.described}.",
            )
        self.journal.write("resume", step=restored.step)
        return restored.state

    def _write_config(self, file: Path) -> None:
        """Nothing; config.json is then there, whole: from that moment on the run can be resumed."""
        described = self.described
        if isinstance(described, str):
            content: Any = {"kind": PYTHON, "reason": described}
        else:
            content = to_json(described)
        part = file.with_name("config.json.part")
        try:
            part.write_text(json.dumps(content, indent=2) + "\n")
            os.replace(part, file)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written ({error.strerror}); make it writable.") from error

    def _steps(self, state: dict) -> tuple[dict, str]:
        count = int(state["step"])
        try:
            if self.owed:
                self._validate(state, count)
                self.saved = -1  # the checkpoint of this step says that the validation is still due
                self._save(state, count)
            reason = self._over(count)
            while reason is None:
                if self.interrupts.asked:
                    raise Interrupted
                try:
                    state, report = self._advance(state, count)
                except NumericalError:
                    self._save(state, count)
                    self.journal.write("end", step=count, reason="failed", seconds=self._seconds())
                    raise
                count += 1
                self._after(state, report, count)
                reason = self._over(count) or ("interrupted" if self.interrupts.asked else None)
                every = self.training.validate_every
                if reason in ("minutes", "gradient") and every and count % every:
                    self._validate(state, count)
                if reason is not None or count % self.training.checkpoint_every == 0:
                    self._save(state, count)
        except Interrupted:  # `state` is that of `count`: what was interrupted is given up
            reason = "interrupted"
            self._save(state, count)
        return state, reason

    def _over(self, count: int) -> str | None:
        """Why the run is over after `count` steps, or None; a resumed run that was over still is."""
        training = self.training
        if count >= training.steps:
            return "steps"
        if self.flat and training.gradient_below is not None:
            return "gradient"
        if training.patience is not None and self.stale >= training.patience:
            return "converged"
        if training.minutes is not None and count and self._seconds() >= 60 * training.minutes:
            return "minutes"
        return None

    def _advance(self, state: dict, count: int) -> tuple[dict, dict]:
        """One step; failed tasks are dealt with by the method's policy before the new state is taken."""
        began = time.monotonic()
        every = self.training.certify_every
        step = self.certifying if every and (count + 1) % every == 0 else self.step
        if step not in self.compiled:
            self._compile(step, state)
        new, report = step(self.placed, state, self.key)
        used = np.asarray(report["metrics"].used)
        if not self.compiled:  # else a time budget would be spent on compiling, anew at every resume
            self.began += time.monotonic() - began
        if step not in self.compiled:
            self.compiled.append(step)
        if not used.all():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.method.check(report["metrics"])
            # Said at the first step that shows it, then at twice as many each time; `failed` counts them all.
            self.failing += bool(caught)
            if caught and self.failing.bit_count() == 1:
                message = f"step {count + 1}: {caught[0].message}"
                self.journal.write("warning", message=f"{message} ({self.failing} such steps so far.)")
        if not np.isfinite(np.asarray(report["gradient_norm"])):
            raise NumericalError(
                f"step {count + 1}: the meta-gradient is not finite although every task's is; lower the "
                "learning rate, or set --optimiser.clip."
            )
        return new, report

    def _compile(self, step: Callable, state: dict) -> None:
        """Compiles a step, so that calling it does not; Interrupted where an interrupt came meanwhile.

        Traced and lowered here, where JAX's configuration contexts hold, and compiled in another thread:
        within XLA this one could not answer an interrupt. JAX finds the executable again in the call.
        """
        lower = getattr(step, "lower", None)  # a function that is not jitted is compiled where it is called
        if lower is not None:
            with self.interrupts.stoppable():
                lowered = lower(self.placed, state, self.key)
            self.interrupts.wait_for(lowered.compile)

    def _after(self, state: dict, report: dict, count: int) -> None:
        """Writes what is due after a step."""
        training = self.training
        self.window.add(report)
        if count % training.log_every == 0 or count == training.steps:
            fields = self.window.summary()
            if self.rate is not None:
                fields["learning_rate"] = float(self.rate(count - 1))
            self.journal.write("step", step=count, seconds=self._seconds(), **fields)
            if training.gradient_below is not None:
                norm = fields["gradient_norm"]
                self.flat = norm is not None and norm < training.gradient_below
        if training.validate_every and (count % training.validate_every == 0 or count == training.steps):
            self._validate(state, count)

    def _validate(self, state: dict, count: int) -> None:
        began = time.monotonic()
        theta = state["average"] if self.average else state["theta"]
        drawn = {"split": "validation", "tasks": self.training.validation_tasks, "seed": VALIDATION_SEED}
        self.owed = True
        with self.interrupts.stoppable():
            result = evaluate_theta(self.domain, self.method, theta, **drawn)
        self.last, self.owed = result, False
        score = result.scores[self.domain.headline]
        sign = 1 if self.domain.higher_is_better else -1
        better = not math.isnan(score) and (math.isnan(self.best) or sign * score > sign * self.best)
        self.best, self.stale = (score, 0) if better else (self.best, self.stale + 1)
        self.began += time.monotonic() - began  # a validation is no training time
        self.journal.write(
            "validation",
            step=count,
            seconds=self._seconds(),
            scores=dict(result.scores),
            ci95=dict(result.ci95),
            before=dict(result.before),
            tasks=result.tasks,
            best=better,
        )

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def _save(self, state: dict, count: int) -> None:
        if self.checkpoints is None or self.saved == count:
            return
        best = None if math.isnan(self.best) else self.best
        note = {"seconds": self._seconds(), "best": best, "stale": self.stale, "flat": self.flat}
        note["owed"] = self.owed
        self.checkpoints.save(count, state, {**note, "norms": self.window.norms})
        self.saved = count
        self.journal.write("checkpoint", step=count)
