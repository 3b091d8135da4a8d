"""`fit`: from a user's tasks to a run, with choices that the data suggest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from optax import GradientTransformation

from ..config.method import ImplicitMethod, IMAMLRecipe, MethodRecipe
from ..config.optimiser import Optimiser
from ..config.run import Config
from ..config.training import Training
from ..core.errors import ConfigError, NumericalError
from ..core.tree import Tree
from ..core.validation import require_number
from ..domains.tasks.build import Choice, domain_of
from ..domains.tasks.collection import Tasks
from ..domains.tasks.domain import LEVELS, TasksDomain, normalises
from ..domains.tasks.losses import RowLoss
from ..inner.gradient import GradientDescent
from ..inner.newton import NewtonCG
from ..linear.cg import CG
from .evaluation import evaluate_theta
from .experiment import assemble
from .loop import Run

SMALL = 20_000  # parameters up to which Newton's method solves a task
STRENGTHS = (0.1, 1.0, 10.0)  # tried: the precision of the prior, in units of a row's loss
RATES = (0.5, 0.1, 0.02)  # tried for large networks, over the rows of a support set
TRIAL = 100  # steps of a trial
CALIBRATION = 200  # validation tasks whose errors calibrate the intervals


def fit(
    tasks: Tasks,
    model: object = None,
    loss: str | RowLoss | Callable[[Array, Array], Array] | None = None,
    *,
    shots: float | None = None,
    queries: int | None = None,
    order: Literal["random", "first"] | None = None,
    ways: int | None = None,
    method: MethodRecipe | None = None,
    optimiser: Optimiser | GradientTransformation | None = None,
    strength: float | None = None,
    adapt: Tree = None,
    minutes: float | None = None,
    steps: int | None = None,
    tasks_per_step: int | None = None,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    standardise: bool = True,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Run:
    """Learn from a user's tasks how to learn a new one.

    What is not given is chosen from the data, and the run's `choices` say what and why.
    """
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
    )
    if minutes is None and steps is None:
        minutes = 1.0
        choices.append(Choice("minutes", minutes, "a time to try"))
    began = time.monotonic()
    if optimiser is None:
        optimiser = Optimiser("adam", 3e-3, clip=10.0)
    training = _training(domain, steps, minutes, tasks_per_step, seed, choices)
    if method is None:
        method, found = _searched(domain, optimiser, training, strength, adapt, choices)
    config = Config(domain.recipe, method, optimiser, training)
    if minutes is not None:
        left = max(minutes - (time.monotonic() - began) / 60, 0.2 * minutes)
        config = replace(config, training=replace(training, minutes=left))
    run = assemble(config, domain).train(out=out, progress=progress)
    run = _calibrated(run, domain)
    return replace(run, choices=tuple(choices))


def _training(domain, steps, minutes, tasks_per_step, seed, choices) -> Training:
    size = domain.size("train")
    if tasks_per_step is None:
        tasks_per_step = 8 if normalises(domain.recipe.model) else min(25, size or 25)
        choices.append(Choice("tasks_per_step", tasks_per_step, "small batches of tasks"))
    steps = steps if steps is not None else 5000
    held = domain.size("validation")
    return Training(
        steps=steps,
        tasks=tasks_per_step,
        seed=seed,
        minutes=minutes,
        validate_every=max(100, steps // 20) if domain.held_out("validation") else 0,
        validation_tasks=200 if held is None else max(2, min(200, 4 * held)),
        checkpoint_every=500,
    )


def _candidates(domain: TasksDomain, strength: float | None, adapt: Tree) -> dict[str, MethodRecipe]:
    """The methods that are tried, by what distinguishes them."""
    count = sum(
        math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(domain.init, jax.random.key(0)))
    )
    strengths = STRENGTHS if strength is None else (strength,)
    if count <= SMALL:
        solver = CG(steps=10)
        return {
            f"strength={value:g}": IMAMLRecipe(
                strength=value,
                inner=NewtonCG(steps=3, linear=solver),
                linear=solver,
                curvature="gauss-newton",
                adapt=adapt,
            )
            for value in strengths
        }
    rows = domain.recipe.support * max(domain.recipe.ways, 1)
    return {
        f"rate={rate:g}": IMAMLRecipe(
            strength=0.01 * rows if strength is None else strength,
            inner=GradientDescent(rate / rows, steps=8),
            linear=CG(steps=3),
            adapt=adapt,
        )
        for rate in RATES
    }


def _searched(domain, optimiser, training, strength, adapt, choices) -> tuple[MethodRecipe, dict]:
    """The method whose trial has the best validation score."""
    candidates = _candidates(domain, strength, adapt)
    if len(candidates) == 1 or not training.validate_every:
        name, method = next(iter(candidates.items()))
        choices.append(Choice("method", name, "nothing to choose from"))
        return method, {}
    trial = replace(
        training,
        steps=min(TRIAL, max(training.steps // 10, 1)),
        validate_every=0,
        minutes=None if training.minutes is None else training.minutes / 12,
    )
    scores: dict[str, float] = {}
    for name, method in candidates.items():
        try:
            run = assemble(Config(domain.recipe, method, optimiser, trial), domain).train(progress=False)
            result = evaluate_theta(
                domain, run.method, run.theta, split="validation", tasks=training.validation_tasks, seed=1
            )
            scores[name] = result.scores[domain.headline] if not result.failed else math.nan
        except NumericalError:
            scores[name] = math.nan
    sign = -1 if domain.higher_is_better else 1
    sound = {name: sign * score for name, score in scores.items() if math.isfinite(score)}
    if not sound:
        raise ConfigError(
            f"fit: method: expected a method without failed tasks, got failures with {', '.join(scores)}. Hint: pass method=."
        )
    best = min(sound, key=sound.__getitem__)
    told = ", ".join(f"{name}: {score:.4g}" for name, score in scores.items())
    choices.append(Choice("method", best, f"validation {domain.headline} of short trials: {told}"))
    return candidates[best], scores


def _calibrated(run: Run, domain: TasksDomain) -> Run:
    """The run with the quantiles of its errors on validation tasks, in predicted standard deviations.

    An interval of a level then covers that share of new tasks' rows, whatever the model gets wrong, as far as
    validation tasks are like new ones (split conformal prediction; Papadopoulos et al. 2002).
    """
    if domain.recipe.loss.kind != "squared" or not domain.held_out("validation"):
        return run
    learner, errors = run.learner, []
    draw = jax.jit(lambda domain, key: domain.sample(key, "validation"))
    size = domain.size("validation") or CALIBRATION
    for i in range(min(max(size, 20), CALIBRATION)):
        task = draw(domain, jax.random.fold_in(jax.random.key(run.config.training.seed), i))
        predictor = learner.adapt(task.support)
        query = task.query._replace(reference=None)
        found, noise = jax.device_get((predictor.posterior.outputs(query), predictor.posterior.noise))
        variance = np.diagonal(found.covariance, axis1=1, axis2=2) + noise
        scaled = np.abs(found.mean - np.asarray(query.targets)) / np.sqrt(variance)
        errors.append(scaled[np.asarray(query.weights) > 0].ravel())
    known = np.sort(np.concatenate(errors))
    if known.size < 50:
        return run
    # The k-th smallest of n errors is not exceeded by a new one with probability k / (n + 1).
    ranks = np.minimum(np.ceil(np.array(LEVELS) * (known.size + 1)).astype(int), known.size) - 1
    recipe = replace(domain.recipe, quantiles=tuple(np.maximum(known[ranks], 1e-6).tolist()))
    return replace(run, domain=replace(domain, recipe=recipe), config=replace(run.config, domain=recipe))
