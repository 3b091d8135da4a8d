"""How often 90 % intervals of `imaml.fit` cover new rows: over data sets, by the number of validation tasks.

    python -m benchmarks run coverage

The sensors of examples/own/arrays.py, drawn anew for each run: 36 training tasks, 12 or 48 validation tasks,
and 192 tasks that measure the coverage. Each run has one calibration, which all its test tasks share. So a
run's coverage is not that of another, even with many test tasks.
"""

import numpy as np

import imaml
from benchmarks.harness import benchmark
from imaml.training.intervals import LEVEL, scaled_errors

TRAINING, TEST, ROWS = 36, 192, 20


def sensors(seed, count):
    """Inputs, targets and sensors, each ``(20 count,)``; a sensor has a gain and an offset."""
    rng = np.random.default_rng(seed)
    sensor = np.repeat(np.arange(count), ROWS)
    gain, offset = rng.normal(2, 0.5, count), rng.normal(0, 1, count)
    x = rng.uniform(-1, 1, len(sensor))
    return x, gain[sensor] * np.sin(2 * x) + offset[sensor] + rng.normal(0, 0.1, len(sensor)), sensor


def covered(seed, validation, steps):
    """The share of the query rows of new tasks that lie in their calibrated intervals."""
    ends = np.cumsum([0, TRAINING, validation, TEST])
    splits = zip(("train", "validation", "test"), ends, ends[1:], strict=False)
    split = {name: list(range(start, end)) for name, start, end in splits}
    tasks = imaml.Tasks.from_arrays(*sensors(seed, ends[-1]), split=split)
    model = imaml.MLP((1, 32, 32, 1))
    run = imaml.fit(tasks, model, shots=5, strength=0.03, steps=steps, seed=seed, progress=False)
    errors = np.concatenate(scaled_errors(run.learner, run.domain, "test", TEST, seed))
    return float(np.mean(errors <= run.domain.interval_widths[LEVEL]))


@benchmark("coverage", quick={"runs": 2, "steps": 10})
def main(run, runs=12, steps=100):
    """Fits and counts."""
    for validation in (12, 48):
        found = [covered(seed, validation, steps) for seed in range(runs)]
        facts = {"mean": float(np.mean(found)), "least": min(found), "most": max(found)}
        run.add({"level": LEVEL, "validation_tasks": validation, "runs": runs, **facts, "coverage": found})
