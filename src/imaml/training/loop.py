"""The outer loop: steps, events, validations, checkpoints, resuming."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jax.stages import Wrapped

from ..config.run import Config
from ..core.compile import whole_program
from ..core.errors import ConfigError, NumericalError
from ..core.interrupts import Interrupted, Interrupts
from ..core.tree import Tree
from ..core.version import __version__
from ..domains.base import SPLITS, Domain, in_step, sample_many
from ..domains.tasks.build import Choice
from ..domains.tasks.collection import Tasks
from ..meta.gradient import MetaGradient
from ..meta.marginal import Fitted, fitted
from ..predict import Learner, Predictor, adapt, save
from ..storage.checkpoint import Checkpoints
from .directory import write_config
from .evaluation import Progress, evaluate, evaluate_theta, lower_evaluation
from .journal import Journal
from .scores import Evaluation
from .step import Report, State, mesh_size
from .step_statistics import Window

if TYPE_CHECKING:
    from .experiment import Experiment

FINAL_SEED = 7  # of the training tasks that normalisation is measured on
VALIDATION_SEED = 20_190_910  # validation tasks are the same in every run, so that runs can be paired


Watch: TypeAlias = Callable[[dict[str, Any]], bool | None]  # returns True to stop the run


@dataclass(frozen=True)
class Run:
    """What a training run has learned.

    Attributes:
        theta: The meta-parameters; their moving average if there is one.
        domain: Where tasks came from.
        method: How the meta-parameters were learned.
        config: The configuration, or None for a run of objects that were not built from recipes.
        step: Outer steps taken.
        reason: Why it stopped: "steps", "minutes", "converged", "gradient", "callback" or "interrupted".
        folder: The run directory, or None.
        last: The latest validation, or None.
        choices: What `imaml.fit` chose, and why.
        untrained: Whether theta is still the random initialisation, before the first step.
    """

    theta: Tree
    domain: Domain
    method: MetaGradient
    config: Config | None
    step: int
    reason: str
    folder: Path | None = None
    last: Evaluation | None = None
    choices: tuple[Choice, ...] = ()
    untrained: bool = False

    def adapt(self, x: Tree = None, y: Tree = None) -> Predictor:
        """Adapt to a new task; see `imaml.load(...).adapt`.

        Args:
            x: Inputs of the support set.
            y: Targets of the support set.

        Returns:
            A predictor for the task.

        Raises:
            ConfigError: If the run has no configuration.
            DataError: If the support set does not fit.
        """
        if self.config is None:
            raise ConfigError(
                "adapt: expected a run with a configuration, got one of objects without a JSON form. Hint: "
                "train with a recipe, imaml.config.Method(...), or solve the task with "
                "imaml.solve(run.method.problem, run.theta, support, inner=run.method.inner, "
                "rule=imaml.first_order())."
            )
        return adapt(self.theta, self.config, x, y)

    @property
    def learner(self) -> Learner:
        """The learner, as `imaml.load` returns it; ConfigError if the run has no configuration."""
        if self.config is None:
            raise ConfigError(
                "run: expected a run with a configuration, got one of objects without a JSON form. Hint: "
                "train with imaml.fit, or with a recipe, imaml.config.Method(...)."
            )
        return Learner(self.method.start(self.theta), self.config, untrained=self.untrained)

    def save(self, path: str | Path) -> None:
        """Write an artefact, one file that `imaml.load` reads.

        Args:
            path: The file.

        Raises:
            ConfigError: If the run has no configuration.
            ArtefactError: If the file cannot be written.
        """
        self.learner.save(path)

    def likelihood(self) -> Fitted:
        """Return the likelihood of all rows of the training tasks at theta, by Laplace's method.

        Returns:
            The log likelihood, standard errors, and how far theta is from the maximum, in the units of the
            coded data.

        Raises:
            StructureError: If the loss is not a sum of negative log likelihoods, or the model is not linear.
            ConfigError: If tasks are drawn with only a part of their rows.
        """
        if not self.domain.draws_all("train"):
            raise ConfigError(
                "likelihood: expected a run whose tasks are drawn with all of their rows, got one that draws "
                'a part of them. Hint: fit with optimiser=imaml.Optimiser("newton"), or with larger queries=.'
            )
        tasks = sample_many(
            self.domain, jax.random.key(0), "train", in_step(self.domain, 0), lambda drawn: drawn
        )
        return fitted(self.method.problem, self.theta, jax.vmap(self.domain.whole)(*tasks))

    def evaluate(
        self,
        on: Domain | Tasks | None = None,
        *,
        split: str = "test",
        tasks: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Score the run; see `imaml.evaluate`.

        Args:
            on: Other tasks than those of the run, `imaml.Tasks` for a run of `imaml.fit`; or a domain.
            split: "train", "validation" or "test".
            tasks: Number of tasks; by default 1,000, or of a fixed number of tasks at most 20 draws of each.
            seed: Seed of the tasks.
            progress: Called with (tasks done, tasks) from time to time.

        Returns:
            The evaluation.

        Raises:
            ConfigError: If an argument is not valid.
            DataError: If the tasks do not fit.
        """
        return evaluate(self, on, split=split, tasks=tasks, seed=seed, progress=progress)


@functools.cache
def _finalising() -> Wrapped:
    """The compiled `DomainBase.finalise`."""
    return whole_program(lambda domain, theta: domain.finalise(theta, jax.random.key(FINAL_SEED)))


def finalise(domain: Domain, theta: Tree) -> Tree:
    """Return meta-parameters as new tasks need them; see `DomainBase.finalise`.

    Args:
        domain: The domain, with its data.
        theta: The meta-parameters.

    Returns:
        The meta-parameters.
    """
    return _finalising()(domain, theta) if domain.finalises else theta


class Loop:
    """One call of `Experiment.train`.

    Args:
        experiment: What is run.
        directory: The run directory, or None to write nothing.
        on_step: Called after each step; see `Experiment.train`.
        on_validation: Called after each validation.

    Raises:
        ConfigError: If meta-gradients are to be certified and the method has no certificate.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: Path | None,
        on_step: Watch | None = None,
        on_validation: Watch | None = None,
    ) -> None:
        """Make the steps, which are compiled when first called."""
        self.experiment, self.directory = experiment, directory
        self.on_step, self.on_validation = on_step, on_validation
        self.stopped = False  # whether a callback has asked for the end
        self.training = training = experiment.training
        self.checkpoints = (
            None if directory is None else Checkpoints(directory / "checkpoints", training.keep)
        )
        self.step = experiment.step()
        self.certifying = experiment.step(certify=True) if training.certify_every else self.step
        self.window = Window()
        self.best, self.stale = math.nan, 0  # the best validation, and how many came since
        self.failed = 0  # its tasks that failed
        self.kept: tuple[int, Tree] | None = None  # its step and parameters, if the run ends with them
        self.last: Evaluation | None = None
        self.failing = 0  # steps with failed tasks
        self.spent = 0.0  # seconds of training before this call
        self.flat = False  # whether the meta-gradient's norm has fallen below its threshold
        self.fresh = True  # whether the parameters of step 0 are random ones
        self.saved = -1  # the step of the newest checkpoint
        self.compiled: list[tuple[Wrapped, Any]] = []  # the steps that this call has compiled
        self.owed = False  # whether a validation was interrupted, and is due when the run goes on

    def run(self, resume: bool, start: Tree, progress: bool | None) -> Run:
        """Take the steps.

        Args:
            resume: Whether to continue from the newest sound checkpoint.
            start: Meta-parameters to start from, or None for fresh ones.
            progress: None or True shows the run on stderr; False shows warnings only.

        Returns:
            What was learned.

        Raises:
            NumericalError: If no task of a step is usable, or one is not and the policy is "raise".
        """
        experiment, training, directory = self.experiment, self.training, self.directory
        self.domain, state, self.key = experiment.begin(start)
        # What does not fit is refused before anything is written.
        self.step.eval_shape(self.domain.training_domain(0), state, self.key)  # type: ignore[attr-defined]
        described, self.fresh = experiment.config or experiment.reason, start is None
        shown = {"progress": progress, "total": training.steps, "minutes": training.minutes}
        # From the directory's first file to its last, so that every interrupt leaves a run to be resumed.
        with Interrupts(progress is not False) as self.interrupts:
            with Journal(directory, append=resume, **shown) as journal:
                self.journal = journal
                self.began = time.monotonic()
                state = self._resumed(state) if resume else self._started(state)
                if directory is not None:
                    write_config(directory, described)
                state, reason = self._steps(state)
                count = int(state["step"])
                asked = training.gradient_below is not None
                facts: dict[str, Any] = {"converged": reason == "gradient"} if asked else {}
                at, theta = count, self._theta(state)
                if self.kept is not None and reason != "interrupted":
                    at, theta = self.kept
                    facts |= {} if at == count else {"kept": at}
                journal.write("end", step=count, reason=reason, seconds=self._seconds(), **facts)
            untrained = self.fresh and at == 0
            if directory is not None:
                kept = experiment.method.start(theta)
                save(directory / "artefact.safetensors", kept, described, untrained)
            self.interrupts.answered = reason == "interrupted"
        made = experiment.domain, experiment.method, experiment.config
        return Run(theta, *made, count, reason, directory, self.last, untrained=untrained)

    def _theta(self, state: State) -> Tree:
        """Return the meta-parameters for new tasks, the moving average where one is kept."""
        theta = state["average"] if self.experiment.outer.average else state["theta"]
        return finalise(self.domain, theta)

    def _started(self, state: State) -> State:
        """Return the state that a new run begins with."""
        domain, devices = self.experiment.domain, mesh_size(self.experiment.method.mesh)
        self.journal.write(
            "start",
            version=__version__,
            steps=self.training.steps,
            tasks=self.experiment.tasks,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(state["theta"])),
            headline=domain.headline,
            higher_is_better=domain.higher_is_better,
            held_out=[split for split in SPLITS if domain.held_out(split)],
            devices=f"{devices} x {jax.devices()[0].platform}",
        )
        self._save(state, 0)  # so that a run can be resumed from its first moment, whatever it starts from
        return state

    def _resumed(self, state: State) -> State:
        """Return the state of the newest sound checkpoint; state: one of the same shapes."""
        assert self.checkpoints is not None
        restored = self.checkpoints.restore(self._with_best(state))
        note, warned = restored.note, restored.skipped
        if self.training.restore_best:
            best = restored.state.pop("best")
            self.kept = None if note["kept"] is None else (note["kept"], best)
        self.spent, self.best = note["seconds"], math.nan if note["best"] is None else note["best"]
        self.stale, self.flat, self.window.norms = note["stale"], note["flat"], note["norms"]
        self.failed = note.get("failed", 0)
        # Not in checkpoints of earlier versions.
        self.owed, self.fresh = note.get("owed", False), note.get("fresh", True)
        self.saved = restored.step
        if self.experiment.reason:
            unknown = "Whether the configuration is that of the interrupted run cannot be checked"
            warned = [*warned, f"{unknown}: {self.experiment.reason}."]
        for message in warned:
            self.journal.write("warning", message=message)
        self.journal.write("resume", step=restored.step)
        return restored.state

    def _steps(self, state: State) -> tuple[State, str]:
        """Take the steps that are left; return the last state, and why the run is over."""
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
                if reason in ("minutes", "gradient", "callback") and every and count % every:
                    self._validate(state, count)
                if reason is not None or count % self.training.checkpoint_every == 0:
                    self._save(state, count)
        except Interrupted:  # `state` is that of `count`: what was interrupted is given up
            reason = "interrupted"
            self._save(state, count)
        return state, reason

    def _over(self, count: int) -> str | None:
        """Return why the run is over after `count` steps, or None; a resumed run that was over still is."""
        training = self.training
        if count >= training.steps:
            return "steps"
        if self.stopped:
            return "callback"
        if self.flat and training.gradient_below is not None:
            return "gradient"
        if training.patience is not None and self.stale >= training.patience:
            return "converged"
        if training.minutes is not None and count and self._seconds() >= 60 * training.minutes:
            return "minutes"
        return None

    def _advance(self, state: State, count: int) -> tuple[State, Report]:
        """Take one step; failed tasks are dealt with by the method's policy before the new state is taken."""
        began = time.monotonic()
        every = self.training.certify_every
        step = self.certifying if every and (count + 1) % every == 0 else self.step
        # Steps whose tasks have other shapes are other programs.
        domain = self.domain.training_domain(count)
        program = step, jax.tree.structure(domain)
        fresh = program not in self.compiled
        if fresh:
            self._compile(step, domain, state)
        if self.training.restore_best and count == 0:
            self.began += time.monotonic() - began
            self._validate(state, 0)
            began = time.monotonic()
        new, report = step(domain, state, self.key)
        used = np.asarray(report["metrics"].used)
        if fresh:  # else a time budget would be spent on compiling, anew at every resume
            self.began += time.monotonic() - began
            self.compiled.append(program)
        if not used.all():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.experiment.method.check(report["metrics"])
            # Said at the first step that shows it, then at twice as many each time; `failed` counts them all.
            self.failing += bool(caught)
            if caught and self.failing.bit_count() == 1:
                message = f"step {count + 1}: {caught[0].message}"
                self.journal.write("warning", message=f"{message} ({self.failing} such steps so far.)")
        if not np.isfinite(np.asarray(report["gradient_norm"])):
            raise NumericalError(
                f"step {count + 1}: expected a finite meta-gradient, as that of every task is, got NaN or "
                "infinity. Hint: lower the learning rate, or set --optimiser.clip."
            )
        return new, report

    def _compile(self, step: Wrapped, domain: Domain, state: State) -> None:
        """Compile a step, so that calling it does not; Interrupted where an interrupt came meanwhile.

        Traced and lowered here, where JAX's configuration contexts hold, and compiled in another thread:
        within XLA this one could not answer an interrupt. JAX finds the executable again in the call. With
        the first step, the validation is compiled at the same time.
        """
        lower = getattr(step, "lower", None)  # a function that is not jitted is compiled where it is called
        if lower is not None:
            with self.interrupts.stoppable():
                programs = [lower(domain, state, self.key)]
                if self.training.validate_every and not self.compiled:
                    given = self.experiment.domain, self.experiment.method, self._theta(state)
                    programs.append(lower_evaluation(*given, **self._validation()))
            self.interrupts.wait_for(*(program.compile for program in programs))

    def _after(self, state: State, report: Report, count: int) -> None:
        """Write what is due after a step."""
        training = self.training
        self.window.add(report)
        fields: dict[str, Any] = {}
        if count % training.log_every == 0 or count == training.steps:
            fields = self.window.summary()
            if self.experiment.outer.rate is not None:
                fields["learning_rate"] = float(self.experiment.outer.rate(count - 1))  # type: ignore[arg-type]
            self.journal.write("step", step=count, seconds=self._seconds(), **fields)
            if training.gradient_below is not None:
                norm = fields["gradient_norm"]
                self.flat = norm is not None and norm < training.gradient_below
        self._tell(self.on_step, state, count, **fields)
        if training.validate_every and (count % training.validate_every == 0 or count == training.steps):
            self._validate(state, count)

    def _validate(self, state: State, count: int) -> None:
        """Score the meta-parameters on the validation tasks."""
        began, domain, method = time.monotonic(), self.experiment.domain, self.experiment.method
        self.owed = True
        with self.interrupts.stoppable():
            result = evaluate_theta(domain, method, self._theta(state), **self._validation())
        self.last, self.owed = result, False
        name, higher = domain.criterion
        score, sign = result.scores[name], 1 if higher else -1
        # Losses are of the tasks that did not fail: with more failures a smaller one is not an improvement.
        fewer = result.failed < self.failed
        better = not math.isnan(score) and (
            math.isnan(self.best)
            or fewer
            or (result.failed == self.failed and sign * score > sign * self.best)
        )
        self.stale = 0 if better else self.stale + 1
        if better:
            self.best, self.failed = score, result.failed
        if better and self.training.restore_best:
            self.kept = count, self._theta(state)
        self.began += time.monotonic() - began  # a validation is not training time
        found = {name: getattr(result, name) for name in ("scores", "ci95", "before", "tasks", "failed")}
        facts = {**found, "different": result.different, "best": better}
        self.journal.write("validation", step=count, seconds=self._seconds(), **facts)
        self._tell(self.on_validation, state, count, **found, best=better)

    def _with_best(self, state: State) -> State:
        """Return the state as checkpoints hold it: with the best parameters, if the run ends with them."""
        if not self.training.restore_best:
            return state
        return {**state, "best": self._theta(state) if self.kept is None else self.kept[1]}

    def _tell(self, watch: Watch | None, state: State, count: int, **found: Any) -> None:
        """Call a callback, if there is one; the run ends after this step if it returns True."""
        if watch is not None:
            record = {"step": count, "seconds": self._seconds(), "theta": self._theta(state), **found}
            asked = watch(record)
            if isinstance(asked, np.generic | np.ndarray | jax.Array):  # as a comparison of numbers gives
                asked = asked.ndim == 0 and asked.dtype == bool and bool(asked)
            self.stopped |= asked is True

    def _validation(self) -> dict[str, Any]:
        """Return which tasks a validation scores."""
        return {"split": "validation", "tasks": self.training.validation_tasks, "seed": VALIDATION_SEED}

    def _seconds(self) -> float:
        return self.spent + time.monotonic() - self.began

    def _save(self, state: State, count: int) -> None:
        """Save a checkpoint, unless there is one of this step."""
        if self.checkpoints is None or self.saved == count:
            return
        note = {"seconds": self._seconds(), "best": None if math.isnan(self.best) else self.best}
        note |= {"stale": self.stale, "flat": self.flat, "owed": self.owed, "fresh": self.fresh}
        note |= {"norms": self.window.norms, "failed": self.failed}
        note["kept"] = None if self.kept is None else self.kept[0]
        self.checkpoints.save(count, self._with_best(state), note)
        self.saved = count
        self.journal.write("checkpoint", step=count)
