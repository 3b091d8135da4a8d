"""Test tasks with what was learned of them, for the report."""

from __future__ import annotations

import jax

from ..domains.scenes import Example, Scene
from ..predict import Learner
from ..training.loop import Run


def examples(run: Run | Learner, number: int = 4) -> list[Example | Scene]:
    """Adapt to test tasks, and return what the domain shows of them.

    Args:
        run: What `imaml.train` or `imaml.load` returns.
        number: How many tasks.

    Returns:
        Examples or scenes; none for a run without a configuration, as it cannot adapt.
    """
    if run.config is None:
        return []
    sample = jax.jit(lambda domain, key: domain.sample(key, "test"))
    before = run.method.mean(run.theta)
    made: list[Example | Scene] = []
    for index in range(number):
        task = sample(run.domain, jax.random.fold_in(jax.random.key(7), index))
        predictor = run.adapt(task.support)
        made += run.domain.examples(before, predictor, task)
    return made
