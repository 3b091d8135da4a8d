"""New tasks arrive: learn on half of the training alphabets, go on with the other half.

    python -m benchmarks run new_tasks --data PATH_TO_OMNIGLOT

A fifth of the characters of each half are held out; accuracy on tasks of held-out characters of the old and
of the new alphabets, before and after going on from the earlier theta, beside learning anew on all
alphabets, and beside each test task learned from scratch (a fresh network, the same inner solver). Every
accuracy is over the same tasks, so differences are paired. Steps to equal accuracy: going on is done four
times over, for an eighth, a quarter, a half and all of the steps that learning anew takes, each annealed; the
shortest that is as good on new tasks as learning anew on all.
"""

import dataclasses

import jax
import numpy as np

from benchmarks.harness import benchmark, say, trained
from imaml.config.presets import preset
from imaml.domains.fewshot import omniglot as reader
from imaml.domains.fewshot.domain import table_of
from imaml.domains.fewshot.images import by_group
from imaml.training.evaluation import evaluate_theta
from imaml.training.scores import paired
from imaml.training.step import devices_mesh

TASKS = 8


def learn(config, method, domain, start, steps):
    """Returns theta after so many steps of the preset's method, and the seconds taken."""
    optimiser = dataclasses.replace(config.optimiser, warmup=20, average=0.98)  # these runs are short
    return trained(domain, method, optimiser, start=start, steps=steps, tasks=TASKS)


@benchmark("new_tasks", quick={"steps": 8, "tasks": 4})
def main(run, data=None, steps=1000, tasks=1000):
    """Learns on the first half, goes on with both, and scores on held-out characters."""
    table = reader.read(reader.locate(data), split="vinyals")
    config = preset("omniglot-5w1s")
    parts = []
    for ids in by_group(table, "train", fraction=0.5, seed=0):
        held = np.random.default_rng(0).permutation(ids)[: len(ids) // 5]
        parts.append({"train": np.setdiff1d(ids, held), "test": np.sort(held)})

    def domain_of(train, test):
        splits = {"train": train, "test": test, "validation": table.ids("validation")}
        return table_of(config.domain, table.with_splits(**splits))

    old, new = parts
    domains = {"old": domain_of(**old), "new": domain_of(**new)}
    everything = domain_of(np.concatenate([old["train"], new["train"]]), new["test"])
    method = config.method.build(everything, devices_mesh(TASKS))
    score = lambda theta, which: evaluate_theta(domains[which], method, theta, split="test", tasks=tasks)  # noqa: E731
    fresh = everything.init(jax.random.key(0))
    before, _ = learn(config, method, domains["old"], None, steps)
    anew, _ = learn(config, method, everything, None, steps)
    target = score(anew, "new").scores["accuracy"]
    curve = []
    for count in sorted({steps // 8, steps // 4, steps // 2, steps}):
        theta, seconds = learn(config, method, domains["new"], before, count)
        result = score(theta, "new")
        curve.append({"steps": count, "seconds": seconds, "accuracy": result.scores["accuracy"]})
        curve[-1]["accuracy_ci95"] = result.ci95["accuracy"]
    reached = [row["steps"] for row in curve if row["accuracy"] >= target]
    thetas = {"before": before, "went_on": theta, "anew_on_all": anew, "from_scratch": fresh}
    results = {(name, which): score(at, which) for name, at in thetas.items() for which in domains}
    rows = [{"theta": name, "tasks_of": which, **r.to_json()} for (name, which), r in results.items()]
    differences = []
    for which in domains:
        for other in ("before", "anew_on_all", "from_scratch"):
            mean, width = paired(results["went_on", which], results[other, which])
            differences.append({"tasks_of": which, "went_on_minus": other, "mean": mean, "ci95": width})
    counts = [{split: len(ids) for split, ids in part.items()} for part in parts]
    equal = {"target": target, "curve": curve, "first": min(reached, default=None)}
    run.write(
        rows,
        steps=steps,
        characters=dict(zip(domains, counts, strict=True)),
        paired_differences=differences,
        steps_to_equal_accuracy=equal,
    )
    for row in [*rows, *differences, equal]:
        say(row)
