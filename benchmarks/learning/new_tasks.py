"""New tasks arrive: learn on half of the training alphabets, go on with the other half.

    python -m benchmarks.new_tasks --data PATH_TO_OMNIGLOT        # writes benchmarks/results/new_tasks.json

A fifth of the characters of each half are held out; accuracy on tasks of held-out characters of the old and
of the new alphabets, before and after going on from the earlier theta, beside learning anew on all
alphabets, and beside each test task learned from scratch (a fresh network, the same inner solver). Every
accuracy is over the same tasks, so differences are paired. Steps to equal accuracy: going on is done four
times over, for an eighth, a quarter, a half and all of the steps that learning anew takes, each annealed; the
shortest that is as good on new tasks as learning anew on all.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np

import imaml
from benchmarks.machine import describe_machine
from imaml.config.presets import preset
from imaml.domains.fewshot import omniglot as reader
from imaml.domains.fewshot.domain import table_of
from imaml.domains.fewshot.images import by_group
from imaml.training.evaluation import evaluate_theta, paired
from imaml.training.step import devices_mesh

TASKS = 8
COMMAND = "python -m benchmarks.new_tasks --data PATH"


def main():
    """Runs the experiment and writes its results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=1000)
    options = parser.parse_args()
    table = reader.read(reader.locate(options.data), split="vinyals")
    config = preset("omniglot-5w1s")
    halves = by_group(table, "train", fraction=0.5, seed=0)
    parts = []
    for ids in halves:
        held = np.random.default_rng(0).permutation(ids)[: len(ids) // 5]
        parts.append({"train": np.setdiff1d(ids, held), "test": np.sort(held)})

    def domain_of(train, test):
        return table_of(
            config.domain, table.with_splits(train=train, test=test, validation=table.ids("validation"))
        )

    old, new = parts
    both = np.concatenate([old["train"], new["train"]])
    domains = {"old": domain_of(old["train"], old["test"]), "new": domain_of(new["train"], new["test"])}
    everything = domain_of(both, new["test"])
    method = config.method.build(everything, devices_mesh(TASKS))

    def score(theta, which, seed=0, tasks=None):
        return evaluate_theta(
            domains[which], method, theta, split="test", tasks=tasks or options.tasks, seed=seed
        )

    def learn(domain, start, steps):
        """The theta after so many steps of the preset's method, and the seconds taken."""
        optimiser = dataclasses.replace(config.optimiser, warmup=20, average=0.98)  # these runs are short
        began = time.perf_counter()
        run = imaml.train(
            domain, method, optimiser, start=start, steps=steps, tasks=TASKS, validate_every=0, progress=False
        )
        return run.theta, time.perf_counter() - began

    fresh = everything.init(jax.random.key(0))
    before, _ = learn(domains["old"], None, options.steps)
    anew, _ = learn(everything, None, options.steps)
    target = score(anew, "new")
    curve = []
    for steps in sorted({options.steps // 8, options.steps // 4, options.steps // 2, options.steps}):
        theta, seconds = learn(domains["new"], before, steps)
        result = score(theta, "new")
        curve.append(
            {
                "steps": steps,
                "seconds": seconds,
                "accuracy": result.scores["accuracy"],
                "accuracy_ci95": result.ci95["accuracy"],
            }
        )
    reached = [row["steps"] for row in curve if row["accuracy"] >= target.scores["accuracy"]]
    thetas = {"before": before, "went_on": theta, "anew_on_all": anew, "from_scratch": fresh}
    rows, results = [], {}
    for name, parameters in thetas.items():
        for which in ("old", "new"):
            result = results[name, which] = score(parameters, which)
            rows.append({"theta": name, "tasks_of": which, **result.to_json()})
    differences = []
    for which in ("old", "new"):
        for other in ("before", "anew_on_all", "from_scratch"):
            mean, width = paired(results["went_on", which], results[other, which])
            differences.append({"tasks_of": which, "went_on_minus": other, "mean": mean, "ci95": width})
    result = {
        "command": f"{COMMAND} --steps {options.steps} --tasks {options.tasks}",
        "machine": describe_machine(),
        "steps": options.steps,
        "characters": {
            name: {split: len(ids) for split, ids in part.items()}
            for name, part in zip(("old", "new"), parts, strict=True)
        },
        "rows": rows,
        "paired_differences": differences,
        "steps_to_equal_accuracy": {
            "target": target.scores["accuracy"],
            "curve": curve,
            "first": min(reached, default=None),
        },
    }
    Path("benchmarks/results/new_tasks.json").write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(
            f"{row['theta']:<14}{row['tasks_of']:<5}{row['accuracy']:.4f} +- {row['accuracy_ci95']:.4f}  "
            f"inductive {row['accuracy_inductive']:.4f}"
        )
    for row in differences:
        difference = f"{row['mean']:+.4f} +- {row['ci95']:.4f}"
        print(f"went on - {row['went_on_minus']:<14}on {row['tasks_of']} tasks: {difference}")
    print("steps to the accuracy of learning anew on all:", result["steps_to_equal_accuracy"]["first"])


if __name__ == "__main__":
    main()
