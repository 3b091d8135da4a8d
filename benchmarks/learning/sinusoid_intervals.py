"""Do 90 % intervals of sinusoids from 5 points cover 90 %, and is the prediction as good as without them?

    imaml train sinusoid-evidence --out runs/waves-evidence
    imaml train sinusoid --domain.shots=5 --out runs/waves
    python -m benchmarks.sinusoid_intervals runs/waves-evidence runs/waves

writes benchmarks/results/sinusoid_intervals.json and docs/figures/sinusoid_intervals.svg: over the same 1,000
test tasks, the share of query points within the intervals, how wide they are near the support and away from
it, and the root-mean-square error of both runs, their squared errors paired by task.
"""

import json
import sys
from pathlib import Path
from statistics import NormalDist

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import imaml
from benchmarks.intervals import interval
from benchmarks.machine import describe_machine
from imaml.bayes.laplace import posterior, summed
from imaml.training.evaluation import task_keys

ROOT = Path(__file__).parents[1]
LEVEL, TASKS, CLOSE = 0.9, 1000, 0.5


def answers(run, known):
    """For each test task and query point: error, variance, distance from the nearest support point."""
    domain, method, theta = run.domain, run.method, run.theta

    def one(key):
        task = domain.sample(key, "test")
        phi, solution = method.adapt(theta, task.support, key)
        mean, variance = domain.network.forward(phi, task.query.inputs)[0], None
        if known:
            problem, prior = summed((method.new_task or method).problem, theta, task.support)
            mean, variance = posterior(problem, phi, prior, task.support).predict(task.query)
            variance = variance[:, 0]
        away = jnp.min(jnp.abs(task.query.inputs - task.support.inputs.T), axis=1)
        error = (mean - task.query.targets)[:, 0]
        return error, jnp.zeros_like(error) if variance is None else variance, away, solution.stats.residual

    run_all = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))
    return [np.asarray(part, float) for part in jax.device_get(run_all(task_keys(0, 0, TASKS)))]


def picture(run):
    """Three test tasks: the wave, its five points, what is predicted between what, and how wide that is."""
    matplotlib.rcParams["svg.hashsalt"] = "imaml"
    figure, (axes, below) = plt.subplots(
        2, 3, figsize=(11, 5), sharey="row", sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    grid = np.linspace(-7, 7, 281)
    for axis, under, key in zip(axes, below, task_keys(0, 0, 3), strict=True):
        wave = run.domain.draw(key, "test")
        task = run.domain.gather(wave)
        x, y = (np.asarray(part)[:, 0] for part in task.support)
        found = run.adapt(x, y).predict_interval(grid, LEVEL)
        axis.fill_between(grid, found.low, found.high, color="tab:blue", alpha=0.25, label="90 % interval")
        axis.plot(grid, found.mean, color="tab:blue", label="prediction")
        axis.plot(grid, wave.amplitude * np.sin(grid + wave.phase), "k--", lw=1, label="the wave")
        axis.plot(x, y, "ko", ms=5, label="the five points")
        axis.axvspan(-7, -5, color="0.93", zorder=0)
        axis.axvspan(5, 7, color="0.93", zorder=0, label="where no task has points")
        axis.set(xlim=(-7, 7), ylim=(-8, 8))
        under.semilogy(grid, np.asarray(found.high) - np.asarray(found.low), color="tab:blue")
        under.axvspan(-7, -5, color="0.93", zorder=0)
        under.axvspan(5, 7, color="0.93", zorder=0)
        for point in x:
            under.axvline(point, color="black", lw=0.8, ls=":")
        under.set_xlabel("x")
    axes[0].set_ylabel("y")
    below[0].set_ylabel("width of the interval")
    axes[2].legend(fontsize=7, loc="upper right")
    figure.savefig(ROOT / "docs/figures/sinusoid_intervals.svg", metadata={"Date": None})


def main():
    """Measures, prints, writes and draws."""
    sure, plain = map(imaml.load, sys.argv[1:3])
    error, variance, away, residual = answers(sure, True)
    inside = np.abs(error) <= NormalDist().inv_cdf((1 + LEVEL) / 2) * np.sqrt(variance)
    other = answers(plain, False)[0]
    width = 2 * NormalDist().inv_cdf((1 + LEVEL) / 2) * np.sqrt(variance)
    near = away < CLOSE
    squares = [np.square(part).mean(1) for part in (error, other)]
    result = {
        "command": "python -m benchmarks.sinusoid_intervals runs/waves-evidence runs/waves",
        "machine": describe_machine(),
        "tasks": TASKS,
        "level": LEVEL,
        "covered": interval(inside.mean(1)),
        "covered_near": float(inside[near].mean()),
        "covered_away": float(inside[~near].mean()),
        "median_width_near": float(np.median(width[near])),
        "median_width_away": float(np.median(width[~near])),
        "close": CLOSE,
        "rmse": float(np.sqrt(squares[0].mean())),
        "rmse_imaml": float(np.sqrt(squares[1].mean())),
        "squared_error_less_imaml": interval(squares[0] - squares[1]),
        "largest_inner_residual": float(residual.max()),
        "noise_variance": float(jnp.exp(sure.theta.log_noise)),
    }
    (ROOT / "benchmarks/results/sinusoid_intervals.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    picture(sure)


if __name__ == "__main__":
    main()
