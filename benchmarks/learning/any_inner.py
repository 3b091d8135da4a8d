"""Adaptation by any inner algorithm against its baselines, each with the same number of tuning trials.

    python -m benchmarks.any_inner trajectory q-learning     # -> benchmarks/results/any_inner.json

Every method learns with the preset's optimiser and budget of steps; each has three trials, of its inner rate
or strength, judged on 64 validation tasks, and the best is scored on 200 test tasks, the same for all.
Differences from implicit MAML are paired by task, with 95 % intervals. What is done is kept in
runs/any_inner, and gone on with.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np

import imaml
from benchmarks.intervals import interval
from benchmarks.machine import describe_machine
from imaml.cli.startup import prepare_jax
from imaml.config.presets import preset
from imaml.core.recipes import to_json
from imaml.inner.gradient import GradientDescent
from imaml.training.evaluation import evaluate_theta
from imaml.training.step import devices_mesh

RESULT = Path("benchmarks/results/any_inner.json")
KEPT = Path("runs/any_inner")
VALIDATION, TEST = 64, 200
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
    base = preset(name)
    own, plain = base.method, {"strength": None, "new_task": None, "curvature": "hessian"}
    if method == "imaml":
        return [dataclasses.replace(own, strength=own.strength * times) for times in (1, 0.3, 3)]
    if method == "scratch" and hasattr(own.inner, "learning_rate"):  # by the preset's own solver
        inner = [
            dataclasses.replace(own.inner, learning_rate=own.inner.learning_rate * times, steps=STEPS[method])
            for times in (1, 0.3, 0.1)
        ]
        return [dataclasses.replace(own, inner=each) for each in inner]
    if method == "scratch":  # kept near its random start more or less
        return [dataclasses.replace(own, strength=own.strength * times) for times in (1, 0.1, 0.01)]
    return [
        dataclasses.replace(own, name=method, **plain, inner=GradientDescent(rate, STEPS[method]))
        for rate in RATES[kind_of(name)]
    ]


def learned(name, method, number, recipe):
    """Theta of one trial, and the seconds of its learning."""
    config = preset(name)
    domain = config.domain.build()
    built = recipe.build(domain, devices_mesh(config.training.tasks))
    if method == "scratch":
        return domain, built, domain.init(jax.random.key(1)), 0.0
    began = time.perf_counter()
    options = {"steps": config.training.steps, "tasks": config.training.tasks, "validate_every": 0}
    out = KEPT / name / f"{method}-{0 if method == 'transfer' else number}"
    if (out / "seconds").exists():
        return domain, built, imaml.load(out).theta, float((out / "seconds").read_text())
    run = imaml.train(
        domain, built, config.optimiser, out=out, **options, progress=False, resume=out.exists()
    )
    if run.reason == "interrupted":
        raise SystemExit("interrupted; the same command goes on")
    seconds = time.perf_counter() - began
    (out / "seconds").write_text(str(seconds))
    return domain, built, run.theta, seconds


def scored(name, method, number, recipe, split, tasks):
    """The scores of one trial, task by task, kept as a file."""
    file = KEPT / name / f"{method}-{number}-{split}.json"
    if not file.exists():
        try:
            domain, built, theta, seconds = learned(name, method, number, recipe)
        except imaml.NumericalError as error:  # a rate that it does not stand: the trial is lost
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"values": [float("nan")], "error": str(error)}))
            return json.loads(file.read_text())
        found = evaluate_theta(domain, built, theta, split=split, tasks=tasks)
        file.parent.mkdir(parents=True, exist_ok=True)
        values = {"values": found.values[found.headline].tolist(), "seconds": seconds, "failed": found.failed}
        values["baselines"] = {k: v.tolist() for k, v in found.baseline_values.items()}
        values["before"] = found.before[found.headline]
        file.write_text(json.dumps(values))
    return json.loads(file.read_text())


def compared(name, say=print):
    """The rows of one preset."""
    config = preset(name)
    domain = config.domain.build()
    sign = 1 if domain.higher_is_better else -1
    best = {}
    for method in METHODS:
        each = []
        for number, recipe in enumerate(trials(name, method)):
            values = np.array(scored(name, method, number, recipe, "validation", VALIDATION)["values"])
            each.append(float(np.mean(values)) if np.all(np.isfinite(values)) else -sign * np.inf)
            say(name, method, number, each[-1], flush=True)
        number = int(np.argmax(sign * np.array(each)))
        test = scored(name, method, number, trials(name, method)[number], "test", TEST)
        best[method] = {"trial": number, "validation": each, **test}
    ours = np.array(best["imaml"]["values"])
    rows = []
    for method, found in best.items():
        row = {"method": method, "trial": found["trial"], "validation": found["validation"]}
        row |= {"score": interval(found["values"]), "before": found["before"], "failed": found["failed"]}
        row |= {"imaml_less_this": interval(ours - found["values"]), "learning_seconds": found["seconds"]}
        row["recipe"] = to_json(dataclasses.replace(config, method=trials(name, method)[found["trial"]]))[
            "method"
        ]
        rows.append(row)
        say(name, method, row["score"], row["imaml_less_this"], flush=True)
    baselines = {k: interval(v) for k, v in best["imaml"]["baselines"].items()}
    paired = {k: interval(ours - np.array(v)) for k, v in best["imaml"]["baselines"].items()}
    better = "higher" if domain.higher_is_better else "lower"
    return {
        "preset": name, "score": domain.headline, "better": better, "tasks": TEST, "rows": rows,
        "baselines": baselines, "imaml_less_baselines": paired, "config": to_json(config),
    }  # fmt: skip


def main():
    """Runs and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("presets", nargs="+")
    names = parser.parse_args().presets
    prepare_jax()  # before JAX starts: every core a device
    kept = json.loads(RESULT.read_text())["presets"] if RESULT.exists() else {}
    for name in names:
        kept[name] = compared(name) | {"machine": describe_machine()}
        result = {"command": "python -m benchmarks.any_inner PRESET ...", "presets": kept}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
