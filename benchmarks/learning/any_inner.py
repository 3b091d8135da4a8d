"""Adaptation by any inner algorithm against its baselines, each with the same number of tuning trials.

    python -m benchmarks run any_inner trajectory q-learning

Every method learns with the preset's optimiser and budget of steps; each has three trials, of its inner rate
or strength, judged on 64 validation tasks, and the best is scored on 200 test tasks, the same for all.
Differences from implicit MAML are paired by task, with 95 % intervals. What is done is kept in
runs/any_inner: the same command resumes.
"""

import dataclasses

import jax
import numpy as np

import imaml
from benchmarks.harness import benchmark, interval, prepared, trained
from imaml.core.recipes import to_json
from imaml.training.evaluation import evaluate_theta

METHODS = ("imaml", "scratch", "transfer", "fomaml")
RATES = {  # of gradient descent, by what a preset's name begins with, the longest first
    "trajectory": (0.03, 0.1, 0.3),
    "energy-inpainting": (0.1, 0.3, 1.0),
    "energy-denoising": (0.1, 0.3, 1.0),
    "energy": (0.03, 0.1, 0.3),
    "gan": (0.03, 0.1, 0.3),
    "actor-critic": (0.03, 0.1, 0.3),
    "game": (0.01, 0.03, 0.1),
    "q-learning-lakes": (0.5, 1.0, 2.0),
    "q-learning": (0.1, 0.2, 0.4),
}
STEPS = {"scratch": 200, "transfer": 32, "fomaml": 16}  # of gradient descent on a new task, or in learning


def kind_of(name):
    """The family of a preset: what is before its variant."""
    return next(kind for kind in RATES if name.startswith(kind))


def trials(name, method):
    """Three recipes of a method, from the preset's."""
    base, _, _ = prepared(name)
    own, plain = base.method, {"strength": None, "new_task": None, "curvature": "hessian"}
    if method == "imaml":
        return [dataclasses.replace(own, strength=own.strength * times) for times in (1, 0.3, 3)]
    if method == "scratch" and hasattr(own.inner, "learning_rate"):  # by the preset's own solver
        rates = [own.inner.learning_rate * times for times in (1, 0.3, 0.1)]
        inner = [dataclasses.replace(own.inner, learning_rate=r, steps=STEPS[method]) for r in rates]
        return [dataclasses.replace(own, inner=each) for each in inner]
    if method == "scratch":  # kept near its random start more or less
        return [dataclasses.replace(own, strength=own.strength * times) for times in (1, 0.1, 0.01)]
    return [
        dataclasses.replace(own, name=method, **plain, inner=imaml.GradientDescent(rate, STEPS[method]))
        for rate in RATES[kind_of(name)]
    ]


def scored(run, name, method, number, recipe, split, tasks):
    """Returns the scores of one trial, task by task."""
    config, domain, mesh = prepared(name)
    built = recipe.build(domain, mesh)
    theta, seconds = domain.init(jax.random.key(1)), 0.0
    if method != "scratch":
        steps = 2 if run.quick else config.training.steps
        out = run.kept / name / f"{method}-{0 if method == 'transfer' else number}"
        try:
            options = {"steps": steps, "tasks": config.training.tasks}
            theta, seconds = trained(domain, built, config.optimiser, out=out, **options)
        except imaml.NumericalError as error:  # a rate that is too large: the trial is lost
            return {"values": [float("nan")], "error": str(error)}
    found = evaluate_theta(domain, built, theta, split=split, tasks=tasks)
    values = {"values": found.values[found.headline], "seconds": seconds, "failed": found.failed}
    return values | {"baselines": found.baseline_values, "before": found.before[found.headline]}


def compared(run, name, validation, test):
    """Returns the row of one preset."""
    config, domain, _ = prepared(name)
    sign = 1 if domain.higher_is_better else -1
    best = {}
    for method in METHODS:
        each, recipes = [], trials(name, method)

        def tried(number, split, tasks, method=method, recipes=recipes):
            key = f"{name}-{method}-{number}-{split}"
            return run.once(key, scored, run, name, method, number, recipes[number], split, tasks)

        for number in range(len(recipes)):
            values = np.array(tried(number, "validation", validation)["values"])
            each.append(float(np.mean(values)) if np.all(np.isfinite(values)) else -sign * np.inf)
            print(name, method, number, each[-1], flush=True)
        number = int(np.argmax(sign * np.array(each)))
        best[method] = {"trial": number, "validation": each, **tried(number, "test", test)}
        best[method]["recipe"] = to_json(dataclasses.replace(config, method=recipes[number]))["method"]
    ours, rows = np.array(best["imaml"]["values"]), []
    for method, found in best.items():
        row = {"method": method} | {key: found[key] for key in ("trial", "validation")}
        row |= {"score": interval(found["values"]), "before": found["before"], "failed": found["failed"]}
        row |= {"imaml_less_this": interval(ours - found["values"]), "learning_seconds": found["seconds"]}
        rows.append(row | {"recipe": found["recipe"]})
        print(name, method, row["score"], row["imaml_less_this"], flush=True)
    others = {k: np.array(v) for k, v in best["imaml"]["baselines"].items()}
    better = "higher" if sign > 0 else "lower"
    about = {"preset": name, "score": domain.headline, "better": better, "tasks": test, "rows": rows}
    about["baselines"] = {k: interval(v) for k, v in others.items()}
    about["imaml_less_baselines"] = {k: interval(ours - v) for k, v in others.items()}
    return about | {"config": to_json(config)}


QUICK = {"presets": ["trajectory"], "validation": 2, "test": 4}


@benchmark("any_inner", quick=QUICK, devices=True, positional=("presets",))
def main(run, presets=(), validation=64, test=200):
    """Compares the methods on each preset, and keeps the rows of others that are in the file."""
    rows = {row["preset"]: row for row in run.before()}
    for name in presets:
        rows[name] = compared(run, name, validation, test)
        run.write(list(rows.values()))
