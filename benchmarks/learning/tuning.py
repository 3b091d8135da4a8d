"""Trials of every compared method on validation tasks, as many for each.

    python -m benchmarks run tuning --preset omniglot-5w1s --data PATH

Each method is trained three times on the same number of tasks: with the preset's inner learning rate, a half
and a quarter of it; a method that has none in learning with the preset's outer rate, twice and half of it.
Each result is scored on the same validation tasks, with new tasks solved as in learning, and by more and more
steps of the preset's solver of new tasks. Trials that are done are kept in runs/tuning.
The preset itself was chosen by earlier trials of iMAML: that method has had more of them.
"""

import dataclasses

from benchmarks.harness import benchmark, prepared, trained
from imaml.compare.runner import sweep
from imaml.compare.variants import rows_of
from imaml.config.method import NewTask
from imaml.training.evaluation import evaluate_theta


def trials(row):
    """What each of the three trials multiplies: the inner learning rate, the outer one."""
    has_rate = row.method.get("name") not in ("transfer", "multitask") and "inner" not in row.method
    return [(1.0, 1.0), (0.5, 1.0), (0.25, 1.0)] if has_rate else [(1.0, 1.0), (1.0, 2.0), (1.0, 0.5)]


def trial(domain, mesh, base, row, rates, steps, tasks):
    """Returns one training's scores on validation tasks, as in learning and by more steps."""
    inner, outer = rates
    config = dataclasses.replace(row, rate=inner, outer=outer, fine=None).config(base, 1.0, 0)
    build = lambda method: method.build(domain, mesh)  # noqa: E731
    method = build(config.method)
    found = {"inner": inner, "outer": outer}
    options = {"steps": steps, "tasks": base.training.tasks, "seed": 0}
    try:
        theta, seconds = trained(domain, method, config.optimiser, **options)
    except ArithmeticError as error:
        return found | {"error": str(error)}
    found["seconds"] = round(seconds, 1)
    learned = evaluate_theta(domain, method, theta, split="validation", tasks=tasks)
    given = base.method.new_task or NewTask(base.method.inner)
    anchored = config.method.strength is not None and config.method.learned is None
    solver = NewTask(given.inner, given.strength if anchored else None)
    new = build(dataclasses.replace(config.method, new_task=solver))
    found |= {"as_in_learning": dict(learned.scores), "failed": learned.failed}
    return found | {"more_steps": sweep(domain, new, theta, "validation", tasks)}


QUICK = {"preset": "characters-5w1s", "methods": ["imaml"], "steps": 2, "tasks": 4}


@benchmark("tuning", quick=QUICK, devices=True)
def main(run, preset="omniglot-5w1s", data=None, steps=300, tasks=256, methods=()):
    """Runs three trials of every method."""
    base, domain, mesh = prepared(preset, data)
    for name, row in rows_of(list(methods)).items():
        if row.learns:
            found = [
                run.once(f"{preset}-{steps}-{name}-{i}", trial, domain, mesh, base, row, rates, steps, tasks)
                for i, rates in enumerate(trials(row))
            ]
            run.add({"method": name, "trials": found}, validation_tasks=tasks)
