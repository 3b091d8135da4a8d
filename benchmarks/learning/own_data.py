"""`imaml.fit` with no option but the data, beside baselines and 20 settings by hand, on three real data sets.

    python -m benchmarks run own_data --data FOLDER [--sets watch ...] [--settings N] [--shots N]

FOLDER has what examples/real/*.py write: watch.npz, pupils.csv, typefaces/ (docs/real_data.md). Every fit has
one minute of training, of processor time, so that other programs take nothing from it; run it on one core
(`taskset -c 0`). All are scored on the same tasks: of `watch` each person is held out once, of the others a
fifth of the tasks. One baseline is fitted beside those that every evaluation has: the same network
on the rows of all tasks, without adaptation.
"""

import time
from pathlib import Path
from unittest import mock

import numpy as np

import imaml
from benchmarks.harness import benchmark
from imaml.config import Method
from imaml.core.statistics import mean_intervals
from imaml.training.evaluation import evaluate_theta

SETS = ("watch", "pupils", "typefaces")
ROWS = {"watch": 128, "pupils": 3, "typefaces": 25}  # of a support set: rates are of the mean loss
DRAWS = {"watch": 18, "pupils": 1000, "typefaces": 300}  # of tasks that are scored
OTHERS = {
    "one network for all tasks": {"strength": 1e4},  # of episodes, whose classes are new, there is none
}
FEATURES = ["year", "grade", "retained", "female", "black", "hispanic", "size", "lowinc", "mobility"]


def parts(name, folder):
    """The tasks of a data set; of watch recordings three times, each with other people held out."""
    if name == "typefaces":
        return [imaml.Tasks.from_folder(folder / "typefaces")]
    if name == "pupils":
        import pandas as pd

        frame = pd.read_csv(folder / "pupils.csv")
        return [imaml.Tasks.from_frame(frame, task="childid", target="math", features=FEATURES)]
    found = np.load(folder / "watch.npz")
    thirds = np.array_split(np.random.default_rng(0).permutation(np.unique(found["groups"])), 3)
    made = []
    for fold, test in enumerate(thirds):
        validation = thirds[fold - 1][:2]
        train = np.setdiff1d(found["groups"], [*test, *validation])
        split = {"train": train.tolist(), "validation": validation.tolist(), "test": test.tolist()}
        made.append(imaml.Tasks.from_arrays(found["x"], found["y"], found["groups"], split=split))
    return made


def by_hand(name):
    """Twenty settings that someone might try."""
    sizes = {
        "watch": {"small": imaml.Conv1D(7, 16, channels=6), "large": imaml.Conv1D(7, 64, channels=6)},
        "pupils": {"small": "linear", "large": imaml.MLP((9, 100, 100, 1))},
        "typefaces": {"small": imaml.Conv4(5, 16), "large": imaml.Conv4(5, 64)},
    }[name]
    inner = lambda rate, steps=5: imaml.GradientDescent(rate / ROWS[name], steps=steps)  # noqa: E731
    found = {
        f"{size} network, strength {value:g}": {"model": model, "strength": value}
        for size, model in {"usual": None, **sizes}.items()
        for value in (0.3, 3.0, 30.0)
    }
    for rate in (3e-4, 3e-3, 1e-2):
        options = {"strength": 3.0, "optimiser": imaml.Optimiser("adam", rate, clip=10.0)}
        found[f"strength 3, outer rate {rate:g}"] = options
    if name == "typefaces":  # whose episodes have no pretraining
        for method in ("maml", "fomaml"):
            options = {"method": Method(method, inner=inner(0.1), strength=None), "tasks_per_step": 2}
            found[f"{method}, inner rate 0.1, 2 tasks a step"] = options
    else:
        found["strength 3, not pretrained"] = {"strength": 3.0, "pretrain": 0}
        found["strength 30, not pretrained"] = {"strength": 30.0, "pretrain": 0}
    found["strength 3, 4 tasks a step"] = {"strength": 3.0, "tasks_per_step": 4}
    for method, rate in (("maml", 0.1), ("maml", 0.4), ("fomaml", 0.1), ("metasgd", 0.1), ("reptile", 0.1)):
        recipe = Method(method, inner=inner(rate), strength=None)
        found[f"{method}, inner rate {rate:g}"] = {"method": recipe}
    # Of images `fit` takes fewer tasks a step than is usual; by hand it is the usual number.
    usual = {"tasks_per_step": 8} if name == "typefaces" else {}
    return {setting: {**usual, **options} for setting, options in found.items()}


def outcome(name, folder, options, shots):
    """The scores of a setting: of each draw of all parts, with which task it is of."""
    sizes = {"shots": shots} if shots else {}
    values, numbers, baselines = [], [], {}
    for part, tasks in enumerate(parts(name, folder)):
        try:
            with mock.patch.object(time, "monotonic", time.process_time):
                run = imaml.fit(tasks, **options, **sizes, progress=False)
        except imaml.NumericalError as error:  # a setting that nobody would keep
            return {"values": [], "error": str(error)}
        if options:  # only its own score is asked for
            result = evaluate_theta(run.domain, run.method, run.theta, tasks=DRAWS[name])
        else:
            result = run.evaluate(tasks=DRAWS[name])
        values += result.values[result.headline].tolist()
        drawn = np.arange(result.tasks) if result.number is None else result.number
        numbers += [1000 * part + int(number) for number in drawn]
        for other, found in result.baseline_values.items():
            baselines.setdefault(other, []).extend(found.tolist())
    kept = {"score": result.headline, "higher": result.higher_is_better, "numbers": numbers}
    return {**kept, "values": values, "baselines": baselines, "choices": [str(one) for one in run.choices]}


def mean(values, numbers):
    """The mean over tasks and the half-width of its interval; draws of one task are averaged first."""
    means, widths = mean_intervals({"": np.array(values)}, np.array(numbers))
    return means[""], widths[""]


def error(values, found):
    """The mean score as an error: of accuracies the share of wrong answers."""
    centre = mean(values, found["numbers"])[0]
    return 1 - centre if found["higher"] else centre


@benchmark("own_data")
def main(run, data, sets=SETS, settings=20, shots=0):
    """Fits, scores and compares."""
    folder = Path(data)
    for name in sets:
        label = f"{name}-{shots}-shots" if shots else name

        def scores(setting, options, label=label, name=name):
            return run.once(f"{label}-{setting}", outcome, name, folder, options, shots)

        usual = scores("usual", {})
        values, numbers, others = np.array(usual["values"]), usual["numbers"], dict(usual["baselines"])
        for other, options in OTHERS.items():
            if found := scores(other, options)["values"]:
                others[other] = found
        same = {"data": label, "score": usual["score"], "tasks": len(set(numbers))}
        tried = {}
        for setting, options in list(by_hand(name).items())[:settings]:
            found = scores(setting, options)
            if found["values"]:
                tried[setting] = found["values"]
            else:
                run.add({**same, "what": setting, "error": found["error"]})
        errors = {setting: error(found, usual) for setting, found in tried.items()}
        ratio = {"choices": usual["choices"]}
        if errors:
            ratio["error_over_best_setting"] = error(values, usual) / min(errors.values())
        run.add({**same, "what": "fit", "mean": mean(values, numbers), **ratio})
        for other, found in others.items():
            gap = mean(values - np.array(found), numbers)
            run.add({**same, "what": other, "mean": mean(found, numbers), "fit_minus_this": gap})
        for setting, found in tried.items():
            run.add({**same, "what": setting, "mean": mean(found, numbers)})
