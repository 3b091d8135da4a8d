"""How `fit` chooses its method and its initial parameters, unless the user gives them.

Pretraining on all rows, without adaptation, takes a small share of the time. Short trials then choose the
regularisation strength, and whether pretrained parameters are better than random ones.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.stages import Wrapped
from optax import GradientTransformation

from ..config.method import IMAMLRecipe, NewTask
from ..config.run import Config
from ..core import tree
from ..core.compile import whole_program
from ..core.errors import NumericalError
from ..core.streams import note
from ..core.tree import Tree
from ..domains.base import sample_many
from ..domains.tasks.build import Choice
from ..domains.tasks.domain import TasksDomain, normalises
from ..inner.gradient import GradientDescent
from ..inner.newton import NewtonCG
from ..linear.cg import CG
from ..problems.base import Task
from ..problems.precision import Theta
from .evaluation import evaluate_theta
from .experiment import Experiment, assemble
from .loop import VALIDATION_SEED
from .step import check_theta

SMALL = 20_000  # parameters up to which inner problems are solved thoroughly
THOROUGH, BRIEF = (3, 10), (2, 4)  # Newton steps, and products with the curvature in each
# A new task is solved to the end: it is one task, and users expect the same answer for rows in any order.
SOLVED = NewtonCG(steps=10, linear=CG(steps=10))
# For episodes of images: strength, learning rate and steps in meta-training and for a new task, of the mean
# loss of a row. Meta-training takes large steps, as it can afford few.
LEARNING, NEW = (0.1, 0.4, 8), (0.01, 0.2, 32)
STRENGTHS = (0.3, 0.03, 3.0, 30.0, 300.0)  # tried: the precision of the prior, in units of a row's loss
TRIAL_STEPS, TRIAL_SHARE = 100, 0.06  # of each trial: its most steps, and its share of the time
PRETRAIN_STEPS, PRETRAIN_SHARE, PRETRAIN_RATE = 2000, 0.25, 5e-3
RANDOM = "from random parameters"  # how the name of such a trial ends
CALL = 20  # steps of pretraining in a call
MOST_HELD = 50  # validation tasks that are scored after it
PATIENCE = 25  # calls without a better validation after which it ends
# A step that solves inner problems thoroughly takes about as long as so many steps without adaptation, and
# fewer than so many in half of the time are too few.
NEWTON, FEWEST = 100, 100


class Chosen(NamedTuple):
    """What was chosen.

    Attributes:
        method: The method.
        start: The meta-parameters that training starts from.
        seconds: What a step of it takes, or None if none was timed.
    """

    method: IMAMLRecipe
    start: Tree
    seconds: float | None = None


def choose(
    plan: Config,
    domain: TasksDomain,
    transform: GradientTransformation | None,
    strength: float | None,
    adapt: tuple[str, ...] | None,
    pretrain: int | None,
    given: Tree,
    choices: list[Choice],
    progress: bool | None,
) -> Chosen:
    """Choose the method and where it starts.

    Args:
        plan: The configuration, but for its method.
        domain: The tasks.
        transform: An Optax transform in place of the configuration's optimiser, or None.
        strength: The regularisation strength, or None to choose and learn it.
        adapt: Names of the parameters that a task adapts, or None for all.
        pretrain: The most steps without adaptation, or None to choose them.
        given: Meta-parameters to start from, or None.
        choices: Choices so far, to which these are added.
        progress: False shows no trial.

    Returns:
        What was chosen.

    Raises:
        ConfigError: If the given meta-parameters are others than the model's.
        NumericalError: If no candidate can adapt to validation tasks.
    """
    training = plan.training
    minutes = training.minutes
    fresh = domain.init(jax.random.split(jax.random.key(training.seed))[0])
    start = fresh if given is None else Theta.of(given).mean
    check_theta(start, fresh)
    if given is not None and pretrain is None:
        pretrain = 0
    if pretrain is None:  # without adaptation, classes that are new in each episode cannot be classified
        pretrain = 0 if domain.recipe.episodes else min(PRETRAIN_STEPS, 10 * training.steps)
    each = None
    if pretrain:
        limit = None if minutes is None else PRETRAIN_SHARE * 60 * minutes
        found, taken, each = pretrained(domain, start, training.tasks or 1, pretrain, limit, training.seed)
        if bool(tree.finite(found)):
            start = found
            choices.append(Choice("pretrain", taken, "steps on all rows, without adaptation, come first"))
    trials = _Trials(plan, domain, transform, progress)
    if domain.recipe.episodes and normalises(domain.recipe.model):
        rows = domain.recipe.support * domain.recipe.ways  # the loss is their sum
        method = IMAMLRecipe(
            strength=LEARNING[0] * rows if strength is None else strength,
            inner=GradientDescent(LEARNING[1] / rows, steps=LEARNING[2]),
            new_task=NewTask(
                strength=NEW[0] * rows if strength is None else None,
                inner=GradientDescent(NEW[1] / rows, steps=NEW[2]),
            ),
            linear=CG(steps=2),
            # Where the Hessian is indefinite a task fails, and a step with few tasks may lose all of them.
            curvature="gauss-newton",
            chunk=1,
            adapt=adapt,
        )
        choices.append(Choice("method", "imaml, gradient descent", "suits episodes of images"))
        return trials.timed(method, start)
    cheap = sum(leaf.size for leaf in jax.tree.leaves(fresh)) <= SMALL
    if cheap and each is not None and minutes is not None:
        cheap = NEWTON * each * FEWEST <= 30 * minutes
    steps, products = THOROUGH if cheap else BRIEF
    method = IMAMLRecipe(
        strength=STRENGTHS[0] if strength is None else strength,
        learned="all" if strength is None else None,
        inner=NewtonCG(steps=steps, linear=CG(steps=products)),
        new_task=NewTask(inner=SOLVED),
        linear=CG(steps=products),
        curvature="gauss-newton",
        adapt=adapt,
    )
    if strength is not None:
        return trials.timed(method, start)
    at = lambda mean, value: Theta(mean, log_strength=jnp.log(jnp.float32(value)))  # noqa: E731
    if not training.validate_every:
        why = "there are no validation tasks to choose by; it is learned"
        choices.append(Choice("method", f"imaml, strength={STRENGTHS[0]:g} at first", why))
        return trials.timed(method, at(start, STRENGTHS[0]))
    for value in STRENGTHS:
        trials.run(f"strength={value:g}", method, at(start, value))
    if start is not fresh:
        values = sorted(STRENGTHS)

        def better(place: int) -> bool:
            name = f"strength={values[place]:g} {RANDOM}"
            trials.run(name, method, at(fresh, values[place]))
            return trials.best == name

        middle = values.index(STRENGTHS[list(trials.tried).index(trials.best)])
        if better(middle):  # from there another strength may be the best
            for way in (range(middle - 1, -1, -1), range(middle + 1, len(values))):
                for place in way:
                    if not better(place):
                        break
    return trials.chosen(choices)


class Tried(NamedTuple):
    """The outcome of a trial.

    Attributes:
        method: The method.
        theta: The meta-parameters at its end.
        score: Its score on validation tasks; NaN if tasks fail.
        seconds: What a step took.
    """

    method: IMAMLRecipe
    theta: Tree
    score: float
    seconds: float


def step_seconds(times: Sequence[float]) -> float:
    """Return how long a step takes, from the times at which steps ended.

    Args:
        times: When training began, and when each step ended.

    Returns:
        The median over all steps but the first, which may compile; 0 if there are none. The first logged step
        compiles as well, so a mean over few steps would be too large.
    """
    return float(np.median(np.diff(times[1:]))) if len(times) > 2 else 0.0


class _Trials:
    """Short trials; those of one method share its compiled programs."""

    def __init__(
        self,
        plan: Config,
        domain: TasksDomain,
        transform: GradientTransformation | None,
        progress: bool | None,
    ) -> None:
        self.plan, self.domain, self.transform, self.progress = plan, domain, transform, progress
        self.experiments: dict[IMAMLRecipe, Experiment] = {}
        self.tried: dict[str, Tried] = {}

    def timed(self, method: IMAMLRecipe, start: Tree) -> Chosen:
        """The only candidate, with what a step takes if the run has a time."""
        if self.plan.training.minutes is None:
            return Chosen(method, start)
        found = self.run("timing", method, start, scored=False)
        return Chosen(method, found.theta, found.seconds)

    def run(self, name: str, method: IMAMLRecipe, start: Tree, scored: bool = True) -> Tried:
        """Train for a few steps, and score on validation tasks."""
        training = self.plan.training
        steps = min(TRIAL_STEPS, -(-training.steps // 10))
        if self.progress is not False:
            note(f"trial    {name}: at most {steps} steps")
        if method not in self.experiments:
            minutes = None if training.minutes is None else TRIAL_SHARE * training.minutes
            # With the run's number of steps, so that it shares the compiled step where it is known.
            trial = replace(training, minutes=minutes, validate_every=0, restore_best=False)
            plan = replace(self.plan, method=method, training=trial)
            self.experiments[method] = assemble(plan, self.domain, self.transform)
        score, theta, times = math.nan, start, [time.monotonic()]

        def watch(record: dict[str, Any]) -> bool:
            times.append(time.monotonic())
            return record["step"] >= steps

        try:
            run = self.experiments[method].train(start=start, progress=False, on_step=watch)
        except NumericalError:
            run = None
        if run is not None and run.reason == "interrupted":
            raise KeyboardInterrupt
        if run is not None:
            theta, count = run.theta, training.validation_tasks
        if run is not None and scored:
            given = {"split": "validation", "tasks": count, "seed": VALIDATION_SEED}
            found = evaluate_theta(self.domain, run.method, theta, **given)
            score = math.nan if found.failed else found.scores[self.domain.criterion[0]]
        each = step_seconds(times) if run else 0.0
        self.tried[name] = Tried(method, theta, score, each)
        return self.tried[name]

    @property
    def best(self) -> str:
        """The name of the best trial; NumericalError if none can adapt."""
        sign = -1 if self.domain.criterion[1] else 1
        sound = {name: sign * one.score for name, one in self.tried.items() if math.isfinite(one.score)}
        if not sound:
            raise NumericalError(
                "fit: expected a method that can adapt to validation tasks, got failures with "
                f"{', '.join(self.tried)}. Hint: check the data and the model, or pass method=."
            )
        return min(sound, key=sound.__getitem__)

    def chosen(self, choices: list[Choice]) -> Chosen:
        """The best trial, from whose end training goes on."""
        name = self.best
        scores = ", ".join(f"{one.score:.4g} with {other}" for other, one in self.tried.items())
        why = f"validation {self.domain.criterion[0]} of short trials: {scores}"
        if name.endswith(RANDOM):
            why_not = "random parameters are a better start than the pretrained ones"
            choices[:] = [Choice("pretrain", 0, why_not) if c.name == "pretrain" else c for c in choices]
        choices.append(Choice("method", f"imaml, {name}", why))
        best = self.tried[name]
        return Chosen(best.method, best.theta, best.seconds)


def pretrained(
    domain: TasksDomain, theta: Tree, tasks: int, steps: int, seconds: float | None, seed: int
) -> tuple[Tree, int, float]:
    """Train on the rows of all tasks without adaptation, by Adam with a rate that falls to zero.

    Few tasks are soon fitted too closely, so that their network is too sure of others. Where there are
    validation tasks, what is returned are the parameters with the smallest loss on their rows.

    Args:
        domain: The tasks.
        theta: The parameters to start from.
        tasks: Tasks in each step.
        steps: The most steps.
        seconds: The most time after the first steps, which compile; None for no limit.
        seed: Draws tasks.

    Returns:
        The parameters, the number of steps after which they were so, and the seconds of a step.
    """
    state, memory, key = theta, optax.scale_by_adam().init(theta), jax.random.fold_in(jax.random.key(seed), 1)
    advance, done, began = _advance(tasks), 0, time.monotonic()
    held = domain.held_out("validation")
    least, best, at, share = math.inf, theta, 0, 0.0
    while share < 1 and (not held or done - at <= CALL * PATIENCE):
        state, memory, loss = jax.block_until_ready(
            advance(domain, state, memory, jax.random.fold_in(key, done), PRETRAIN_RATE * (1 - share))
        )
        done += CALL
        if not held or float(loss) < least:
            least, best, at = float(loss), state, done
        if done == CALL:
            began = time.monotonic()
        spent = time.monotonic() - began
        share = max(done / steps, 0.0 if seconds is None else spent / seconds)
    return best, at, (time.monotonic() - began) / max(done - CALL, 1)


@functools.cache
def _advance(tasks: int) -> Wrapped:
    """Steps of pretraining and the loss on validation tasks, compiled once for each shape of domain."""
    scale = optax.scale_by_adam()

    def loss(theta: Tree, domain: TasksDomain, drawn: Task) -> Array:
        one = lambda task: (  # noqa: E731
            domain.query_loss(theta, theta, task.support) + domain.query_loss(theta, theta, task.query)
        )
        return jnp.mean(jax.vmap(one)(drawn)) / 2

    def advance(domain: TasksDomain, theta: Tree, memory: Tree, key: Array, rate: float) -> tuple[Tree, ...]:
        def step(i: int, state: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            theta, memory = state
            drawn = sample_many(domain, jax.random.fold_in(key, i), "train", tasks, lambda x: x)
            updates, memory = scale.update(jax.grad(loss)(theta, domain, drawn), memory)
            return jax.tree.map(lambda t, u: t - rate * u, theta, updates), memory

        theta, memory = jax.lax.fori_loop(0, CALL, step, (theta, memory))
        held = min(domain.size("validation") or tasks, MOST_HELD)
        drawn = sample_many(domain, jax.random.key(0), "validation", held, lambda x: x)
        return theta, memory, loss(theta, domain, drawn)

    return whole_program(advance)
