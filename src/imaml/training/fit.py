"""`fit`: from a user's tasks to a run. It chooses unset options from the data, and reports its choices."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax import Array
from optax import GradientTransformation

from ..config.method import EvidenceRecipe, IMAMLRecipe, MethodRecipe
from ..config.optimiser import Optimiser, described
from ..config.run import Config
from ..config.training import Training
from ..core.errors import ConfigError, StructureError
from ..core.streams import note
from ..core.tree import Tree
from ..domains.models.selection import adapt_names
from ..domains.tasks.build import Choice, domain_of
from ..domains.tasks.collection import Tasks
from ..domains.tasks.domain import LEVELS, TasksDomain, normalises
from ..domains.tasks.losses import RowLoss
from ..inner.newton import NewtonCG
from ..linear.cg import CG
from ..predict import save
from ..problems.precision import Theta
from .choosing import choose
from .directory import write_config
from .experiment import assemble
from .intervals import scaled_errors
from .loop import Run, Watch

MOST_STEPS = 5000
SPARE = 0.95  # of the time that is left is planned
OPTIMISERS = {
    "adam": Optimiser("adam", 1e-3, clip=10.0, log_scale=20.0),  # a strength has decades to go
    "muon": Optimiser("muon", 7e-3, warmup=20, clip=1.0),
}
CALIBRATION = 200  # validation tasks whose errors calibrate the intervals
ENOUGH = 50  # errors for a calibration
SOLVER = NewtonCG(steps=20, linear=CG(20))  # of a task of a mixed model


def fit(
    tasks: Tasks,
    model: object = None,
    loss: str | RowLoss | Callable[[Array, Array], Array] | None = None,
    *,
    shots: float | None = None,
    queries: int | None = None,
    order: Literal["random", "first"] | None = None,
    ways: int | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    standardise: bool = True,
    method: MethodRecipe | None = None,
    strength: float | None = None,
    adapt: Tree = None,
    optimiser: Optimiser | GradientTransformation | None = None,
    pretrain: int | None = None,
    tasks_per_step: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    start: Tree = None,
    progress: bool | None = None,
    on_step: Watch | None = None,
    on_validation: Watch | None = None,
) -> Run:
    """Learn from many tasks a starting point from which a new task is learned from few rows.

    Options that are not given are chosen from the data; `Run.choices` lists the choices and their reasons.

    Args:
        tasks: The tasks; see `imaml.Tasks`.
        model: The network: "linear", "mlp", "conv1d" or "conv4"; `imaml.MLP`, `imaml.Conv4`, ...; functions
            ``(init, apply)`` with ``init(key) -> parameters`` and ``apply(parameters, x) -> outputs``; or a
            module of Equinox, Flax or Haiku (docs/own_tasks.md). By default "mlp" for vectors, "conv1d" for
            signals ``(time, channels)`` and "conv4" for images.
        loss: The loss of a row: "squared", "cross_entropy", "binary", "poisson", "negative_binomial", or a
            function ``(outputs, targets) -> (rows,)``. By default "squared" for numbers and "cross_entropy"
            for texts and booleans.
        shots: Rows of a support set: a whole number, or a share of the task's rows between 0 and 1. Of
            episodes: rows of each class. By default half of a task's rows.
        queries: The most rows of a query set; of episodes: rows of each class.
        order: Whether a support set has "random" rows of a task (the default) or its "first" rows.
        ways: Classes of an episode.
        validation: The share of tasks for validation, unless `tasks` has its own splits.
        test: The share of tasks for testing.
        standardise: Whether numbers are coded by the mean and the standard deviation of training rows.
        method: How to learn, a recipe such as ``imaml.config.Method("maml", ...)``. By default implicit MAML,
            with the strength or the inner learning rate of the best of a few short trials; the strength is
            then learned.
        strength: The regularisation strength: the precision of the prior, for rows whose loss is summed. With
            "squared" it is in units of one over the variance of the targets.
        adapt: Which parameters a task adapts: names, or what the model's library uses (docs/own_tasks.md).
        optimiser: The outer optimiser, or an Optax transform. By default Adam.
            ``imaml.Optimiser("newton")`` fits a mixed model to all rows of the training tasks by maximum
            likelihood: the parameters that `adapt` names vary between tasks, and `Run.likelihood` has
            standard errors (docs/tables.md).
        pretrain: The most steps of pretraining on all rows, without adaptation. Meta-training starts from the
            pretrained parameters that fit validation tasks best. By default at most 2,000, and none for
            episodes or with `method`.
        tasks_per_step: Tasks in each step.
        steps: The most steps.
        minutes: The most minutes of training, trials included; compiling and scoring take additional time. By
            default 1 if `steps` is not given either.
        seed: Draws splits, initial parameters and tasks.
        out: A run directory to write, or None.
        start: Meta-parameters to start from, such as ``imaml.load(path).theta``, or None for fresh ones.
        progress: None or True shows the choices and the run on stderr; False shows warnings only.
        on_step: Called after each step with a dict ("step", "seconds", "theta"; at logged steps also "loss"
            and others); the run ends if it returns True. `imaml.loggers` has loggers.
        on_validation: Called after each validation, with a dict that also has "scores", "ci95" and "best".

    Returns:
        The run. `run.evaluate()` scores it on the test tasks, `run.adapt(x, y)` adapts to a new one, and
        `run.save(path)` writes what `imaml.load` reads.

    Raises:
        ConfigError: If an argument is not valid, or the model does not fit the data.
        DataError: If the tasks do not fit the loss, or are too few.
        NumericalError: If every task of a step fails numerically.

    Warns:
        RuntimeWarning: If tasks are excluded, as they have too few rows.

    Example:
        >>> import imaml, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> groups = np.repeat(np.arange(30), 8)
        >>> x = rng.normal(size=240)
        >>> y = rng.normal(size=30)[groups] + 2 * x
        >>> tasks = imaml.Tasks.from_arrays(x, y, groups)
        >>> run = imaml.fit(tasks, "linear", shots=4, strength=1.0, steps=20, progress=False)
        >>> run.adapt([0.0, 1.0], [5.0, 7.0]).predict([2.0]).shape
        (1,)

    References:
        Rajeswaran et al. (2019), Meta-learning with implicit gradients.
    """
    newton = isinstance(optimiser, Optimiser) and optimiser.name == "newton"
    if newton and queries is None and isinstance(tasks, Tasks) and not tasks.episodes:
        queries = int(tasks.counts.max())  # the likelihood is of all rows
    domain, choices = domain_of(
        tasks,
        model,
        loss,
        shots=shots,
        queries=queries,
        order=order,
        ways=ways,
        validation=validation,
        test=test,
        seed=seed,
        standardise=standardise,
        start=start,
    )
    if minutes is None and steps is None:
        minutes = 1.0
        choices.append(Choice("minutes", minutes, "enough for a first look"))
    if newton and not domain.draws_all("train"):
        raise ConfigError(
            "fit: queries: expected None with Newton's method, which takes all rows of a task, got "
            f"{queries}."
        )
    training = _training(domain, steps, minutes, 0 if newton else tasks_per_step, seed, choices)
    if optimiser is None:
        images = domain.recipe.episodes and normalises(domain.recipe.model)
        name, why = ("muon", "suits episodes of images") if images else ("adam", "suits most networks")
        optimiser = OPTIMISERS[name]
        choices.append(Choice("optimiser", f"{name}, {optimiser.learning_rate:g}", why))
    transform = None if isinstance(optimiser, Optimiser) else optimiser
    plan = Config(domain.recipe, IMAMLRecipe(), described(optimiser), training)
    if method is None:
        names = adapt_names(domain.recipe.model, adapt, jax.eval_shape(domain.init, jax.random.key(0)))
        began = time.monotonic()
        if newton:
            given = {"adapt": names, "inner": SOLVER, "linear": CG(20), "learned": "dense"}
            method = EvidenceRecipe(strength=strength or 1.0, **given)
            choices.append(Choice("method", "evidence", "the likelihood is what Newton's method maximises"))
        else:
            found = choose(plan, domain, transform, strength, names, pretrain, start, choices, progress)
            method, start = found.method, found.start
            if minutes is not None:
                # At least half of what was asked for, whatever the trials took.
                left = max(minutes - (time.monotonic() - began) / 60, minutes / 2)
                training = replace(training, minutes=left)
                if steps is None and found.seconds:  # so that the learning rate falls to zero in that time
                    planned = max(10, min(MOST_STEPS, int(SPARE * 60 * left / found.seconds)))
                    training = replace(training, **_rhythm(domain, planned))
    elif strength is not None or adapt is not None or pretrain is not None:
        raise ConfigError(
            "fit: method: expected None with strength=, adapt= or pretrain=, which are options of the "
            f"default method, got {type(method).__name__}. Hint: pass strength and adapt to the method."
        )
    if progress is not False:
        for choice in choices:
            note(f"chosen   {choice}")
    experiment = assemble(replace(plan, method=method, training=training), domain, transform)
    run = experiment.train(
        out=out, start=start, progress=progress, on_step=on_step, on_validation=on_validation
    )
    if run.reason != "interrupted":
        logs = Theta.of(run.theta).log_strength
        if logs is not None and np.ndim(logs) == 0:
            choices.append(Choice("strength", f"{float(np.exp(logs)):.3g}", "learned"))
            if progress is not False:
                note(f"learned  {choices[-1]}")
        run = finish(run)
    return replace(run, choices=tuple(choices))


def finish(run: Run) -> Run:
    """Calibrate the intervals of a run on a user's own tasks, and write its directory again.

    Args:
        run: What `Experiment.train` returned for a domain of own tasks.

    Returns:
        The run.
    """
    run = _calibrated(run, run.domain)  # type: ignore[arg-type]
    if run.folder is not None and run.config is not None:  # both now hold the calibration
        write_config(run.folder, run.config)
        save(run.folder / "artefact.safetensors", run.method.start(run.theta), run.config, run.untrained)
    return run


def _training(
    domain: TasksDomain,
    steps: int | None,
    minutes: float | None,
    tasks_per_step: int | None,
    seed: int,
    choices: list[Choice],
) -> Training:
    size, held = domain.size("train"), domain.size("validation")
    if tasks_per_step is None:
        # A minute on a CPU is better spent on many steps of few episodes (docs/design.md).
        images = normalises(domain.recipe.model)
        most = 2 if images else 25
        tasks_per_step = most if size is None else min(most, size)
        many = "many steps of few tasks" if images else "small steps of many tasks"
        why = many if size is None or size > most else "all training tasks"
        choices.append(Choice("tasks_per_step", tasks_per_step, why))
    if steps is None:
        steps = MOST_STEPS
    if not tasks_per_step:  # Newton's method, whose step is a norm in standard errors
        return Training(
            steps=steps,
            tasks=0,
            seed=seed,
            minutes=minutes,
            validate_every=0,
            log_every=1,
            gradient_below=1e-3,
        )
    return Training(
        tasks=tasks_per_step,
        seed=seed,
        minutes=minutes,
        **_rhythm(domain, steps),
        validation_tasks=100 if held is None or domain.recipe.episodes else max(2, min(200, 4 * held)),
        checkpoint_every=500,
    )


def _rhythm(domain: TasksDomain, steps: int) -> dict[str, Any]:
    """The steps of a run, how often it validates, and whether it ends with the best validation."""
    every = -(-steps // 5) if domain.held_out("validation") else 0
    return {"steps": steps, "validate_every": every, "restore_best": every > 0}


def _calibrated(run: Run, domain: TasksDomain) -> Run:
    """The run with the quantiles of its errors on validation tasks, in predicted standard deviations.

    An interval of a level then covers that share of a new task's rows, whatever the model gets wrong, as far
    as validation tasks are like new ones (split conformal prediction; Papadopoulos et al. 2002).
    """
    if run.config is None or domain.recipe.loss.kind != "squared" or not domain.held_out("validation"):
        return run
    count = min(domain.size("validation") or CALIBRATION, CALIBRATION)
    try:
        errors = scaled_errors(run.learner, domain, "validation", count, run.config.training.seed)
    except StructureError:  # of a method without a prior, such as MAML, or with one that is not a precision
        return run
    failed = sum(not each.size for each in errors)
    if failed:
        warnings.warn(
            f"fit: {failed} of {count} validation tasks fail numerically; intervals are calibrated on the "
            "others. Hint: raise the strength.",
            RuntimeWarning,
            stacklevel=3,
        )
    known = np.sort(np.concatenate(errors))
    if known.size < ENOUGH:
        return run
    # The k-th smallest of n errors is exceeded by a new one with probability 1 - k / (n + 1).
    ranks = np.minimum(np.ceil(np.array(LEVELS) * (known.size + 1)).astype(int), known.size) - 1
    recipe = replace(domain.recipe, quantiles=tuple(np.maximum(known[ranks], 1e-6).tolist()))
    return replace(run, domain=replace(domain, recipe=recipe), config=replace(run.config, domain=recipe))
