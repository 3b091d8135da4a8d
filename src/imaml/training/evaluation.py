"""Evaluation: adapt to each task's support set, score on its query set, average with 95 % intervals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec
from jax.stages import Lowered, Wrapped

from ..core import tree
from ..core.compile import whole_program
from ..core.statistics import NORMAL_QUANTILE, mean_intervals, student_quantile
from ..core.tree import Tree
from ..core.validation import require_number, require_one_of, require_whole
from ..domains.base import SPLITS, Domain, require_domain
from ..domains.tasks.collection import Tasks
from ..meta.gradient import AXIS, MetaGradient
from ..predict import Learner
from ..problems.base import Task
from .intervals import with_coverage
from .scores import Evaluation
from .step import mesh_size

BATCH = 64  # tasks in a call, so that memory stays bounded and progress can be shown
Progress = Callable[[int, int], None]  # (tasks done, tasks)


class Learned(Protocol):
    """What can be evaluated: `imaml.Run`, what `imaml.load` returns, or anything like them."""

    @property
    def theta(self) -> Tree:
        """The meta-parameters, the moving average where one is kept."""
        ...

    @property
    def method(self) -> MetaGradient:
        """The method that adapts to each task."""
        ...

    @property
    def domain(self) -> Domain:
        """Where tasks come from."""
        ...


def usual(domain: Domain, split: str) -> int:
    """Return how many tasks are scored by default.

    Args:
        domain: Where tasks come from.
        split: The split that they are drawn from.

    Returns:
        1,000. Of a fixed number of tasks at most 20 draws of each, and at least one; one if all draws of a
        task are the same.
    """
    size = domain.size(split)
    if size is not None and not domain.repeats:
        return max(2, size)
    return 1000 if size is None else max(2, size, min(1000, 20 * size))


def same_tasks(domain: Domain, other: Domain, split: str) -> bool:
    """Compare the tasks that two domains draw in an evaluation.

    Args:
        domain: A domain.
        other: Another one.
        split: The split that tasks are drawn from.

    Returns:
        Whether they are the same: all of a fixed number of tasks, or else the first 64.
    """
    count = domain.size(split)
    if count != other.size(split):
        return False
    count, draw = BATCH if count is None else count, _drawing(split)
    for start in range(0, count, BATCH):
        tasks = _tasks(0, start, min(BATCH, count - start))
        first, second = (jax.device_get(draw(each, tasks)) for each in (domain, other))
        if len(first) != len(second) or not all(map(np.array_equal, first, second)):
            return False
    return True


@functools.lru_cache(maxsize=3)
def _drawing(split: str) -> Wrapped:
    """Compile (domain, (keys, places)) -> arrays of the tasks that an evaluation draws."""

    def drawn(domain: Domain, key: Array, place: Array) -> list[Array]:
        task = domain.gather(domain.draw_in_turn(key, split, place))
        return [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(task)]

    return whole_program(lambda domain, tasks: lax.map(lambda given: drawn(domain, *given), tasks))


def score(
    domain: Domain, method: MetaGradient, theta: Tree, keys: Array, places: Array, split: str
) -> dict[str, dict[str, Array]]:
    """Score the tasks that are drawn with ``keys``.

    Args:
        domain: Where tasks come from.
        method: Adapts to each task.
        theta: The meta-parameters.
        keys: Random keys, one for each task.
        places: The number of each task in the evaluation.
        split: The split that tasks are drawn from.

    Returns:
        Scores by group ("after", "before", "baselines", "calibration", "finite", "number") and name, arrays
        with a leading axis of tasks.
    """

    def one(given: tuple[Array, Array]) -> dict[str, dict[str, Array]]:
        key, place = given
        drawn = domain.draw_in_turn(key, split, place)
        task = domain.gather(drawn)
        phi, solution = method.adapt(theta, task.support, key)
        before = tree.spread(method.mean(theta), phi)  # a head of one column has one for each class
        both = jax.tree.map(lambda *pair: jnp.stack(pair), phi, before)
        scores = lax.map(lambda given: domain.metrics(given, task), both)  # compiled once for the two
        after, before = (jax.tree.map(lambda leaf, i=i: leaf[i], scores) for i in (0, 1))
        # An accuracy is finite even where outputs are NaN; the losses beside it show that they are.
        sound = {"after": tree.finite((after, solution.stats.residual)), "before": tree.finite(before)}
        return {
            "after": after,
            "before": before,
            "baselines": domain.baselines(task),
            "calibration": domain.calibration(phi, task),
            "finite": sound,
            "number": number_of(domain, drawn, task),
        }

    chunk = method.chunk or keys.shape[0]
    return lax.map(one, (keys, places), batch_size=None if chunk == 1 else chunk)


def number_of(domain: Domain, drawn: Tree, task: Task) -> dict[str, Array]:
    """Return which task was drawn, for `numbers`.

    Args:
        domain: Where the task comes from.
        drawn: The indices that it was gathered by.
        task: The task.

    Returns:
        Its number; for a domain that has none, a digest of its content.
    """
    number = domain.number(drawn)
    return {"content": _content(task)} if number is None else {"task": number}


def numbers(found: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Number the tasks of an evaluation.

    Args:
        found: What `number_of` returned, with a leading axis of draws.

    Returns:
        Which task each draw is, shape ``(draws,)``; None if no task comes twice.
    """
    if "task" in found:
        return found["task"]
    number = np.unique(found["content"], axis=0, return_inverse=True)[1].ravel()
    return None if len(np.unique(number)) == len(number) else number.astype(np.float64)


def _content(task: Tree) -> Array:
    """Return two numbers that are equal for tasks of the same rows, in whatever order and halves.

    Tasks of a domain that has no `number` are compared by them: draws of one person are no more independent
    than the persons are.
    """
    leaves = [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(task)]
    total = jnp.zeros(2, jnp.uint32)
    for leaf in map(jnp.asarray, leaves):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        bits = leaf.astype(jnp.uint32).ravel()
        for i, factor in enumerate((0x9E3779B1, 0x85EBCA77)):
            mixed = (bits ^ (bits >> 15)) * jnp.uint32(factor)
            total = total.at[i].add(jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32))
    return total


def _is_key(leaf: Tree) -> bool:
    """Return whether a leaf is an array of typed random keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def over_devices(run: Callable[..., Tree], mesh: Mesh | None) -> Wrapped:
    """Compile a function of (domain, theta, keys), its keys shared between the devices of a mesh.

    Args:
        run: The function; its results have a leading axis of keys.
        mesh: The mesh, or None for one device.

    Returns:
        The compiled function.
    """
    if mesh is not None:
        whole, spread = PartitionSpec(), PartitionSpec(AXIS)
        run = jax.shard_map(
            run, mesh=mesh, in_specs=(whole, whole, spread), out_specs=spread, check_vma=False
        )
    return whole_program(run)


def task_keys(seed: int, start: int, count: int) -> Array:
    """Make the keys of tasks, the same for every method.

    Args:
        seed: The seed of all tasks.
        start: Number of the first task.
        count: How many keys to make.

    Returns:
        Keys of the tasks ``start``, ``start + 1``, ...
    """
    root = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(start, start + count))


@functools.lru_cache(maxsize=8)
def compiled(method: MetaGradient, split: str, mesh: Mesh | None) -> Wrapped:
    """Compile the scores of a method; see `score`.

    Args:
        method: Adapts to each task.
        split: The split that tasks are drawn from.
        mesh: Devices that share the tasks, or None for one device.

    Returns:
        The compiled function (domain, theta, (keys, places)) -> scores.
    """
    return over_devices(
        lambda domain, theta, tasks: score(domain, method, theta, tasks[0], tasks[1], split), mesh
    )


def evaluate(
    run: Learned,
    domain: Domain | object | None = None,
    *,
    split: str = "test",
    tasks: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate what a run has learned, on random tasks of a split.

    The same seed gives the same tasks for every run, so that differences can be paired through `values`.

    Args:
        run: What `train` or `load` returned: anything with theta, method and domain.
        domain: Another domain with the same network to evaluate on, or other tasks, `imaml.Tasks`, for a run
            of `imaml.fit`.
        split: "train", "validation" or "test".
        tasks: Number of tasks; by default `usual`.
        seed: Seed of the tasks.
        progress: Called with (tasks done, tasks) from time to time.

    Returns:
        The evaluation. Tasks without a finite score are counted in `failed`.

    Raises:
        ConfigError: If an argument is not accepted.
    """
    domain = domain_for(run, domain)
    found = evaluate_theta(
        domain, run.method, run.theta, split=split, tasks=tasks, seed=seed, progress=progress, alone=True
    )
    config = getattr(run, "config", None)
    return found if config is None else with_coverage(found, Learner(run.theta, config), domain)


def domain_for(run: Learned, given: object) -> Domain:
    """Return the domain that a run is scored on.

    Args:
        run: What has been learned.
        given: None for the run's own, a domain, or `imaml.Tasks`.

    Returns:
        The domain.

    Raises:
        ConfigError: If it is none of these.
    """
    if given is None:
        return run.domain
    config = getattr(run, "config", None)
    if isinstance(given, Tasks) and config is not None:
        return config.domain.with_tasks(given)
    require_domain("evaluate", given)
    return given  # type: ignore[return-value]


def evaluate_theta(
    domain: Domain,
    method: MetaGradient,
    theta: Tree,
    *,
    split: str = "test",
    tasks: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    alone: bool = False,
) -> Evaluation:
    """Evaluate given meta-parameters; see `evaluate`.

    Args:
        domain: Where tasks come from.
        method: Adapts to each task.
        theta: The meta-parameters.
        split: "train", "validation" or "test".
        tasks: Number of tasks; by default `usual`.
        seed: Seed of the tasks.
        progress: Called with (tasks done, tasks) from time to time.
        alone: Whether the baselines have the network that learns each task alone, where new tasks are solved
            thoroughly enough for that.

    Returns:
        The evaluation.

    Raises:
        ConfigError: If an argument is not accepted.
    """
    require_one_of("evaluate", "split", split, SPLITS)
    tasks = usual(domain, split) if tasks is None else tasks
    require_whole("evaluate", 2, tasks=tasks)  # an interval needs two
    require_number("evaluate", 0, 2**32, kind=int, seed=seed)
    run, batch = compiled(method, split, method.mesh), _batch(method, tasks)
    parts = []
    for start in range(0, tasks, batch):
        parts.append(jax.device_get(run(domain, theta, _tasks(seed, start, batch))))
        if progress is not None:
            progress(min(start + batch, tasks), tasks)
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:tasks].astype(np.float64), *parts)
    failed, spoilt = (joined["finite"][group] == 0 for group in ("after", "before"))
    after, before = _without(joined["after"], failed), _without(joined["before"], spoilt)
    baselines = {name: np.where(np.isfinite(v), v, np.nan) for name, v in joined["baselines"].items()}
    unscored = {"before": int(spoilt.sum())}
    unscored |= {name: int(np.isnan(values).sum()) for name, values in baselines.items()}
    number = numbers(joined["number"])
    errors, widths = _calibration(joined["calibration"], ~failed, number)
    scores, ci95 = mean_intervals(after, number)
    found = Evaluation(
        {**scores, **errors},
        {**ci95, **widths},
        *mean_intervals(before, number),
        *mean_intervals(baselines, number),
        tasks=tasks,
        split=split,
        seed=seed,
        failed=int(failed.sum()),
        values=after,
        headline=domain.headline,
        higher_is_better=domain.higher_is_better,
        baseline_values=baselines,
        different=tasks if number is None else len(np.unique(number)),
        number=number,
        held_out=domain.held_out(split),
        unscored={name: count for name, count in unscored.items() if count},
        before_values=before,
        oracles=tuple(sorted(domain.oracles)),
        names=_names(domain, joined["number"].get("task")),
    )
    solving = method.new_task
    if not alone or not domain.alone or solving is None or solving.problem.adapt.choice is not None:
        return found
    fresh = method.kept(domain, jax.random.key(seed))
    single = evaluate_theta(domain, method, fresh, split=split, tasks=tasks, seed=seed)
    return found.beside({"a network for each task": single})


def _names(domain: Domain, number: np.ndarray | None) -> dict[int, str]:
    """What tasks' numbers stand for, of a domain that lists scores by them."""
    if number is None or not domain.group_names:
        return {}
    return {int(one): domain.group_names[int(one)] for one in np.unique(number)}


def lower_evaluation(
    domain: Domain, method: MetaGradient, theta: Tree, *, split: str, tasks: int, seed: int
) -> Lowered:
    """Trace and lower the program of an evaluation, so that it can be compiled before it is needed.

    Args:
        domain: Where tasks come from.
        method: Adapts to each task.
        theta: The meta-parameters.
        split: "train", "validation" or "test".
        tasks: Number of tasks.
        seed: Seed of the tasks.

    Returns:
        What `evaluate_theta` with the same arguments finds compiled, once its `compile()` was called.
    """
    given = _tasks(seed, 0, _batch(method, tasks))
    return compiled(method, split, method.mesh).lower(domain, theta, given)


def _tasks(seed: int, start: int, count: int) -> tuple[Array, Array]:
    """Return the keys of tasks, and their numbers."""
    return task_keys(seed, start, count), jnp.arange(start, start + count)


def _batch(method: MetaGradient, tasks: int) -> int:
    """Return how many tasks are scored at a time, a multiple of the devices."""
    size = mesh_size(method.mesh)
    return min(BATCH * size, -(-tasks // size) * size)


def _without(scores: Mapping[str, np.ndarray], failed: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores, those of failed tasks (booleans, (tasks,)) 0 in accuracies and else NaN."""
    return {
        name: np.where(failed, 0.0 if "accuracy" in name else np.nan, values)
        for name, values in scores.items()
    }


def _calibration(
    parts: Mapping[str, np.ndarray], good: np.ndarray, number: np.ndarray | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return expected calibration errors of all tasks' predictions together, with 95 % intervals.

    The mean over predictions of |accuracy - confidence|, by bins of confidence (Guo et al. 2017, eq. 3). An
    interval is 1.96 standard deviations over bootstrap samples of the tasks; of tasks that were drawn
    repeatedly (``number``, as in `mean_intervals`) all draws of one together, by Student's distribution.
    """
    count = int(good.sum())
    if not count:  # a multinomial has at least one outcome
        return dict.fromkeys(parts, np.nan), dict.fromkeys(parts, np.nan)
    task = np.arange(count) if number is None else np.unique(number[good], return_inverse=True)[1]
    different = int(task.max()) + 1
    # How often each draw is in each of 200 samples with replacement: (samples, draws).
    sampled = np.random.default_rng(0).multinomial(different, np.full(different, 1 / different), 200)
    draws, quantile = sampled[:, task], NORMAL_QUANTILE
    if number is not None:  # a bootstrap's variance is too small by a factor (n - 1) / n
        quantile = student_quantile(different) * math.sqrt(different / max(different - 1, 1))

    def error(sums: np.ndarray) -> np.ndarray:
        # A bin's sums are of rows, confidence and accuracy: (..., bins, 3).
        rows = np.maximum(sums[..., 0].sum(-1), 1)
        return np.abs(sums[..., 2] - sums[..., 1]).sum(-1) / rows

    kept = {name: column[good] for name, column in parts.items()}
    samples = {name: error(np.einsum("st,tbc->sbc", draws, column)) for name, column in kept.items()}
    return (
        {name: float(error(column.sum(0))) for name, column in kept.items()},
        {
            name: float(quantile * found.std(ddof=1)) if different > 1 else np.nan
            for name, found in samples.items()
        },
    )
