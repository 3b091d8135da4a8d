"""Do 90 % intervals of sinusoids from 5 points cover 90 %, and is the prediction as good as without them?

    imaml train sinusoid-evidence --out runs/waves-evidence
    imaml train sinusoid --domain.shots=5 --out runs/waves
    python -m benchmarks run sinusoid_intervals runs/waves-evidence runs/waves

also draws docs/figures/sinusoid_intervals.svg: over the same 1,000
test tasks, the share of query points within the intervals, how wide they are near the support and away from
it, and the root-mean-square error of both runs, their squared errors paired by task.
"""

from statistics import NormalDist

import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.harness import benchmark, figure, interval, mapped
from imaml.bayes.laplace import summed
from imaml.training.evaluation import task_keys

LEVEL, CLOSE = 0.9, 0.5


def answers(run, known, tasks):
    """For each test task and query point: error, variance, distance from the nearest support point."""
    domain, method, theta = run.domain, run.method, run.theta

    def one(key):
        task = domain.sample(key, "test")
        phi, solution = method.adapt(theta, task.support, key)
        mean, variance = domain.network.forward(phi, task.query.inputs)[0], None
        if known:
            problem, prior = summed((method.new_task or method).problem, theta, task.support)
            mean, variance = imaml.posterior(problem, phi, prior, task.support).predict(task.query)
            variance = variance[:, 0]
        away = jnp.min(jnp.abs(task.query.inputs - task.support.inputs.T), axis=1)
        error = (mean - task.query.targets)[:, 0]
        return error, jnp.zeros_like(error) if variance is None else variance, away, solution.stats.residual

    return [part.astype(float) for part in mapped(one, batch_size=50)(task_keys(0, 0, tasks))]


def draw(path, run):
    """Draws three test tasks: the wave, its five points, the prediction, and its interval and width."""
    size = {"figsize": (11, 5), "sharey": "row", "sharex": True, "height_ratios": (3, 2)}
    with figure(path, 2, 3, **size) as (_, panels):
        grid = np.linspace(-7, 7, 281)
        for axis, under, key in zip(*panels, task_keys(0, 0, 3), strict=True):
            x, y = (np.asarray(part)[:, 0] for part in run.domain.sample(key, "test").support)
            design = lambda at: np.column_stack([np.sin(at), np.cos(at)]).astype(np.float64)  # noqa: E731
            wave = design(grid) @ np.linalg.lstsq(design(x), y)[0]  # a sin x + b cos x: exact without noise
            found = run.adapt(x, y).predict_interval(grid, LEVEL)
            band = {"color": "tab:blue", "alpha": 0.25, "label": "90 % interval"}
            axis.fill_between(grid, found.low, found.high, **band)
            axis.plot(grid, found.mean, color="tab:blue", label="prediction")
            axis.plot(grid, wave, "k--", lw=1, label="the wave")
            axis.plot(x, y, "ko", ms=5, label="the five points")
            axis.set(xlim=(-7, 7), ylim=(-8, 8))
            under.semilogy(grid, np.asarray(found.high) - np.asarray(found.low), color="tab:blue")
            for panel in (axis, under):
                panel.axvspan(-7, -5, color="0.93", zorder=0)
                panel.axvspan(5, 7, color="0.93", zorder=0, label="where no task has points")
            for point in x:
                under.axvline(point, color="black", lw=0.8, ls=":")
            under.set_xlabel("x")
        panels[0, 0].set_ylabel("y")
        panels[1, 0].set_ylabel("width of the interval")
        panels[0, 2].legend(fontsize=7, loc="upper right")


@benchmark("sinusoid_intervals", quick={"tasks": 4}, positional=("evidence", "plain"))
def main(run, evidence="runs/waves-evidence", plain="runs/waves", tasks=1000):
    """Measures and draws."""
    sure = imaml.load(evidence)
    error, variance, away, residual = answers(sure, True, tasks)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * np.sqrt(variance)
    inside, near = np.abs(error) <= half, away < CLOSE
    squares = [np.square(part).mean(1) for part in (error, answers(imaml.load(plain), False, tasks)[0])]
    row = {
        "tasks": tasks,
        "level": LEVEL,
        "covered": interval(inside.mean(1)),
        "covered_near": inside[near].mean(),
        "covered_away": inside[~near].mean(),
        "median_width_near": 2 * np.median(half[near]),
        "median_width_away": 2 * np.median(half[~near]),
        "close": CLOSE,
        "rmse": np.sqrt(squares[0].mean()),
        "rmse_imaml": np.sqrt(squares[1].mean()),
        "squared_error_less_imaml": interval(squares[0] - squares[1]),
        "largest_inner_residual": residual.max(),
        "noise_variance": jnp.exp(sure.theta.log_noise),
    }
    run.add(row)
    draw(run.place("sinusoid_intervals.svg"), sure)
