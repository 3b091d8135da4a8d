"""What new tasks are solved by, for the Hessian-free row of the comparison: is that what holds it back?

    python -m benchmarks run new_task_solvers --data PATH

The theta that `imaml compare` has learned by Newton-CG (runs/compare-omniglot-5w1s, or where --folder says),
scored on the same test tasks: new tasks solved as they are in learning, by more Newton steps, and at weaker
anchors; the comparison itself has gradient descent at strength 0.01.
"""

import dataclasses
import json
from pathlib import Path

import imaml
from benchmarks.harness import benchmark, say
from imaml.compare.runner import _theta
from imaml.compare.variants import ROWS
from imaml.config.method import NewTask
from imaml.core.recipes import from_json
from imaml.training.evaluation import evaluate_theta

ROW = "imaml-hessian-free"


def newton(steps, products):
    """Newton-CG of so many steps and products a step."""
    return imaml.NewtonCG(steps=steps, linear=imaml.CG(steps=products))


SOLVERS = {
    "as in the comparison": "as it is",
    "as in learning: 3 Newton steps of 5 products, strength 0.1": None,
    "10 Newton steps of 10 products, strength 0.1": NewTask(newton(10, 10)),
    "3 Newton steps of 5 products, strength 0.01": NewTask(newton(3, 5), 0.01),
    "10 Newton steps of 10 products, strength 0.01": NewTask(newton(10, 10), 0.01),
}


@benchmark("new_task_solvers", quick={"tasks": 4})
def main(run, data, folder="runs/compare-omniglot-5w1s", tasks=1000):
    """Scores the learned theta with each solver of new tasks."""
    base = from_json(json.loads((Path(folder) / "plan.json").read_text())["config"])
    base = dataclasses.replace(base, domain=dataclasses.replace(base.domain, data=data))
    domain, learned = base.domain.build(), Path(folder) / ROW / "seed-0"
    config = ROWS[ROW].config(base, 5.0, 0)
    step = json.loads((learned / "result.json").read_text())["step"]
    rows = []
    for name, new_task in SOLVERS.items():
        changed = {} if new_task == "as it is" else {"new_task": new_task}
        recipe = dataclasses.replace(config.method, **changed)
        method, theta = _theta(domain, dataclasses.replace(config, method=recipe), learned, step)
        found = evaluate_theta(domain, method, theta, split="test", tasks=tasks)
        rows.append({"new_tasks_by": name, "step": step, "failed": found.failed})
        for score in ("accuracy", "accuracy_inductive", "loss"):
            rows[-1] |= {score: found.scores[score], f"{score}_ci95": found.ci95[score]}
        say(rows[-1])
        run.write(rows, tasks=tasks)
