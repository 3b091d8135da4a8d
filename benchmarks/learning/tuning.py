"""Trials of every compared method on validation tasks, as many for each.

    python -m benchmarks.tuning --preset omniglot-5w1s --data PATH     # -> benchmarks/results/tuning.json

Each method is trained three times on the same number of tasks: with the preset's inner learning rate, a half
and a quarter of it; a method that has none in learning with the preset's outer rate, twice and half of it.
Each result is scored on the same validation tasks, with new tasks solved as in learning, and by more and more
steps of the preset's solver of new tasks. What is in the result file already is not run again.
The preset itself was chosen by earlier trials of iMAML: that method has had more of them.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "tuning.json"


def trials(row):
    """What each of the three trials multiplies: the inner learning rate, the outer one."""
    has_rate = row.method.get("name") not in ("transfer", "multitask") and "inner" not in row.method
    return [(1.0, 1.0), (0.5, 1.0), (0.25, 1.0)] if has_rate else [(1.0, 1.0), (1.0, 2.0), (1.0, 0.5)]


def trial(domain, base, row, rates, steps, tasks):
    """One training's scores on validation tasks, new ones solved as in learning, and by more steps."""
    from imaml.compare.runner import sweep
    from imaml.config.method import NewTask
    from imaml.training.evaluation import evaluate_theta
    from imaml.training.loop import train
    from imaml.training.step import devices_mesh

    inner, outer = rates
    row = dataclasses.replace(row, rate=inner, outer=outer, fine=None)
    config = row.config(base, 1.0, 0)
    build = lambda method: method.build(domain, devices_mesh(base.training.tasks))  # noqa: E731
    options = {"steps": steps, "tasks": base.training.tasks, "validate_every": 0, "seed": 0}
    began = time.monotonic()
    method = build(config.method)
    run = train(domain, method, config.optimiser, progress=False, **options)
    if run.reason == "interrupted":
        raise KeyboardInterrupt
    seconds = time.monotonic() - began
    as_learned = evaluate_theta(domain, method, run.theta, split="validation", tasks=tasks)
    given = base.method.new_task or NewTask(base.method.inner)
    anchored = config.method.strength is not None and config.method.learned is None
    new = NewTask(given.inner, given.strength if anchored else None)
    swept = sweep(
        domain, build(dataclasses.replace(config.method, new_task=new)), run.theta, "validation", tasks
    )
    return {
        "inner": inner,
        "outer": outer,
        "seconds": round(seconds, 1),
        "as_in_learning": {name: as_learned.scores[name] for name in as_learned.scores},
        "failed": as_learned.failed,
        "more_steps": swept,
    }


def main():
    """Runs what is missing and writes every trial."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", default="omniglot-5w1s")
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tasks", type=int, default=256)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    from imaml.cli.startup import use_all_cores

    use_all_cores()
    from benchmarks.machine import describe_machine
    from imaml.compare.variants import rows_of
    from imaml.config.overrides import replace_data
    from imaml.config.presets import preset

    base = replace_data(preset(arguments.preset), arguments.data)
    domain = base.domain.build()
    command = f"python -m benchmarks.tuning --preset {arguments.preset} --steps {arguments.steps}"
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if result.get("command") != command:
        result = {"command": command, "machine": describe_machine(), "validation_tasks": arguments.tasks}
        result["methods"] = {}
    for name, row in rows_of(arguments.methods or []).items():
        if not row.learns:
            continue
        done = result["methods"].setdefault(name, [])
        for rates in trials(row)[len(done) :]:
            try:
                done.append(trial(domain, base, row, rates, arguments.steps, arguments.tasks))
            except ArithmeticError as error:
                done.append({"inner": rates[0], "outer": rates[1], "error": str(error)})
            print(name, json.dumps(done[-1]), flush=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
