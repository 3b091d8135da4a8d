"""Measurements of a trained method beside its scores: more inner steps, and the time to adapt."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.errors import NumericalError
from ..core.statistics import mean_intervals
from ..core.tree import Tree
from ..domains.base import Domain
from ..inner.gradient import as_descent
from ..meta.gradient import MetaGradient
from ..predict import Learner
from ..training.evaluation import number_of, numbers, over_devices, task_keys
from ..training.journal import JsonObject, json_values
from ..training.loop import Run
from ..training.step import mesh_size

SWEEP = (0, 1, 2, 4, 8, 16, 32, 64)  # inner steps at test time


def sweep(
    domain: Domain, method: MetaGradient, theta: Tree, split: str, tasks: int, seed: int = 0
) -> JsonObject:
    """Score meta-parameters after each of the `SWEEP` numbers of gradient descent steps.

    Uses the problem and the gradient descent that solve new tasks, or those of training where new tasks are
    solved otherwise. Each number of steps continues from the one before, so one program does them all.

    Args:
        domain: Where tasks come from.
        method: The meta-gradient method.
        theta: Meta-parameters.
        split: Which tasks: ``"train"``, ``"validation"`` or ``"test"``.
        tasks: How many.
        seed: Random seed of the tasks.

    Returns:
        Lists under ``"steps"``, the name of the headline score, and ``"ci95"``; empty where no solver is
        gradient descent. Numbers of steps after which a score is not finite are excluded.
    """
    trained = (method.problem, method.inner)
    for problem, solver in (method.new_task or trained, trained):  # noqa: B007
        if (inner := as_descent(solver)) is not None:
            break
    else:
        return {}
    headline = domain.headline

    def one(domain: Domain, start: Tree, key: Array, place: Array) -> tuple[Array, dict[str, Array]]:
        drawn = domain.draw_in_turn(key, split, place)
        task = domain.gather(drawn)
        phi = problem.init(start, task.support, key)
        rates = inner.rates(start, phi)

        def descend(_: Array, phi: Tree) -> Tree:
            slope = problem.residual(phi, start, task.support)
            return jax.tree.map(lambda p, g, r: p - r * g, phi, slope, rates)

        def further(phi: Tree, steps: Array) -> tuple[Tree, Array]:
            phi = lax.fori_loop(0, steps, descend, phi)
            return phi, domain.metrics(problem.full(phi, start), task)[headline]

        scores = lax.scan(further, phi, jnp.diff(jnp.asarray(SWEEP), prepend=0))[1]
        return scores, number_of(domain, drawn, task)

    every = lambda domain, start, given: lax.map(lambda each: one(domain, start, *each), given)  # noqa: E731
    run = over_devices(every, method.mesh)
    size = mesh_size(method.mesh)
    count = -(-tasks // size) * size
    found = jax.device_get(run(domain, method.start(theta), (task_keys(seed, 0, count), jnp.arange(count))))
    scores, drawn = jax.tree.map(lambda leaf: leaf[:tasks].astype(np.float64), found)
    columns = zip(map(str, SWEEP), scores.T, strict=True)
    finite = {steps: column for steps, column in columns if np.isfinite(column).all()}
    means, widths = mean_intervals(finite, numbers(drawn))
    listed = {"steps": [*map(int, finite)], headline: list(means.values()), "ci95": list(widths.values())}
    return json_values(listed)


def adaptation_ms(domain: Domain, run: Run | Learner, calls: int = 20) -> float | None:
    """Measure how long adapting to a new task takes.

    Args:
        domain: Where tasks come from.
        run: A training run, or a learner.
        calls: How many tasks, after one that compiles.

    Returns:
        The median in milliseconds; None where adaptation fails numerically.
    """
    times = []
    sample = jax.jit(lambda domain, key: domain.sample(key, "test").support)
    for i in range(calls + 1):
        support = jax.device_get(sample(domain, jax.random.fold_in(jax.random.key(1), i)))
        began = time.perf_counter()
        try:
            jax.block_until_ready(run.adapt(support).phi)
        except NumericalError:  # the scores say so
            return None
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.median(times[1:]))
