"""What new tasks are solved by, for the Hessian-free row of the comparison: is that what holds it back?

    python -m benchmarks.new_task_solvers --data PATH    # -> benchmarks/results/new_task_solvers.json

The theta that `imaml compare` has learned by Newton-CG (runs/compare-omniglot-5w1s, or where --run says),
scored on the same test tasks: new tasks solved as they are in learning, by more Newton steps, and at weaker
anchors; the comparison itself has gradient descent at strength 0.01.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import imaml
from benchmarks.machine import describe_machine
from imaml.compare.runner import _theta
from imaml.compare.variants import ROWS
from imaml.config.method import NewTask
from imaml.core.recipes import from_json
from imaml.training.evaluation import evaluate_theta

RESULT = Path(__file__).parent / "results" / "new_task_solvers.json"
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


def main():
    """Prints and writes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", type=Path, default=Path("runs") / "compare-omniglot-5w1s")
    parser.add_argument("--tasks", type=int, default=1000)
    arguments = parser.parse_args()
    base = from_json(json.loads((arguments.run / "plan.json").read_text())["config"])
    base = dataclasses.replace(base, domain=dataclasses.replace(base.domain, data=arguments.data))
    domain, folder = base.domain.build(), arguments.run / ROW / "seed-0"
    config = ROWS[ROW].config(base, 5.0, 0)
    step = json.loads((folder / "result.json").read_text())["step"]
    rows = []
    for name, new_task in SOLVERS.items():
        recipe = (
            config.method if new_task == "as it is" else dataclasses.replace(config.method, new_task=new_task)
        )
        method, theta = _theta(domain, dataclasses.replace(config, method=recipe), folder, step)
        found = evaluate_theta(domain, method, theta, split="test", tasks=arguments.tasks)
        rows.append({"new_tasks_by": name, "step": step, "failed": found.failed})
        for score in ("accuracy", "accuracy_inductive", "loss"):
            rows[-1] |= {score: found.scores[score], f"{score}_ci95": found.ci95[score]}
        print(rows[-1], flush=True)
    command = "python -m benchmarks.new_task_solvers --data PATH"
    result = {"command": command, "machine": describe_machine(), "tasks": arguments.tasks, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
