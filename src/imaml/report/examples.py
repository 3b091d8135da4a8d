"""Example tasks with what was learned of them, for the report."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ..core.compile import whole_program
from ..domains.fewshot.domain import FewShotRecipe
from ..domains.regression import SinusoidRecipe
from .run_page import Example


def examples(run: Any, number: int = 4) -> list[Any]:
    """Example tasks of the test split with what a run or learner predicts, for the report."""
    recipe = None if run.config is None else run.config.domain
    sample = jax.jit(lambda domain, key: domain.sample(key, "test"))
    made: list[Any] = []
    if hasattr(run.domain, "scenes"):
        return _scenes(run, sample, number)
    for index in range(number if isinstance(recipe, FewShotRecipe | SinusoidRecipe) else 0):
        key = jax.random.fold_in(jax.random.key(7), index)
        if isinstance(recipe, SinusoidRecipe):
            made.append(_wave(run, key))
            continue
        task = jax.device_get(sample(run.domain, key))
        probabilities = run.adapt(task.support.images, task.support.labels).predict_proba(task.query.images)
        made.append(
            Example(
                support=task.support.images,
                support_labels=task.support.labels,
                query=task.query.images,
                query_labels=task.query.labels,
                predicted=np.argmax(probabilities, axis=1),
                probabilities=probabilities,
            )
        )
    return made


def _scenes(run: Any, sample: Any, number: int) -> list[Any]:
    """What the domain shows of its first test tasks, at theta and adapted."""
    mean = run.method.mean(run.theta)
    adapt = whole_program(lambda theta, support: run.method.adapt(theta, support)[0])
    made = []
    for index in range(number):
        task = sample(run.domain, jax.random.fold_in(jax.random.key(7), index))
        made += run.domain.scenes(mean, adapt(run.theta, task.support), task)
    return made


def _wave(run: Any, key: Any) -> Any:
    """One sinusoid as an Example: the curve, and what is predicted before and after adaptation."""
    wave = run.domain.draw(key, "test")
    support = run.domain.gather(wave).support
    line = np.linspace(-5, 5, 101, dtype=np.float32)
    mean = run.method.mean(run.theta)
    return Example(
        support=np.asarray(support.inputs),
        support_labels=np.asarray(support.targets),
        query=line,
        query_labels=float(wave.amplitude) * np.sin(line + float(wave.phase)),
        predicted=run.adapt(support.inputs, support.targets).predict(line),
        before=np.asarray(run.domain.network.forward(mean, line[:, None])[0])[:, 0],
    )
