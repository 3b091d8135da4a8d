"""What a stochastic inner loop does to meta-learning, at equal time.

    python -m benchmarks run stochastic_learning

Sinusoids from supports of 20 and of 500 points, implicit MAML with Gauss-Newton curvature; only what solves
the tasks in learning is exchanged. Each solver has three candidates (rates, lengths), each learning for
`seconds` from one seed; the one that is best on validation tasks then does so from the other seeds, too. Test
tasks are solved by Newton-CG for all alike, and by what the theta was learned with. Differences between
solvers are paired, task by task; beside the interval over tasks stands how far seeds are apart.
"""

import math
import tempfile
from pathlib import Path

import numpy as np
import optax

import imaml
from benchmarks.harness import QUIET, benchmark, interval
from imaml.training.evaluation import evaluate_theta
from imaml.training.journal import read_events

STRENGTH, EXACT = 0.1, imaml.NewtonCG(steps=10, linear=imaml.CG(steps=10))
OPTIMISER = imaml.Optimiser("adam", 1e-3, schedule="constant", clip=1.0, average=0.99)


def solvers(rows):
    """The candidates of each solver for supports of so many rows; minibatches of a twentieth, 5 at least."""
    part = max(5, rows // 20)
    steps = rows // part  # an epoch's
    short, long = max(1, 16 // steps), max(1, 64 // steps)
    nesterov = lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True)  # noqa: E731
    three = lambda make, low, high: [make(low, 16), make(low, 64), make(high, 16)]  # noqa: E731
    epochs = lambda make: [make(0.005, short), make(0.005, long), make(0.02, short)]  # noqa: E731
    return {
        "gradient descent": three(lambda r, n: imaml.GradientDescent(r, steps=n), 0.005, 0.02),
        "Nesterov": three(lambda r, n: imaml.Descent(nesterov(r), steps=n), 0.001, 0.005),
        "Adam": three(lambda r, n: imaml.Descent(optax.adam(r), steps=n), 0.003, 0.01),
        "SGD": epochs(lambda r, n: imaml.SGD(r, part, epochs=n)),
        "SGD with decay": epochs(lambda r, n: imaml.SGD(r, part, epochs=n, decay=0.1)),
        "SVRG": epochs(lambda r, n: imaml.SVRG(r, part, epochs=n)),
        "Newton-CG": [imaml.NewtonCG(steps=n, linear=imaml.CG(c)) for n, c in ((1, 5), (3, 5), (3, 10))],
    }


def method_of(domain, inner, solving=None):
    """Implicit MAML with an inner solver; new tasks solved by another."""
    problem = domain.problem(STRENGTH, curvature="gauss-newton")
    new = None if solving is None else imaml.Solving(problem, solving)
    how = {"linear": imaml.CG(steps=8), "new_task": new, "policy": "skip"}
    return imaml.IMAML(problem, domain.query_loss, inner=inner, **how)


def learned(domain, inner, seed, folder, seconds):
    """Returns a run of so many seconds of learning, and facts of it; None where it failed numerically."""
    options = {"steps": 10**6, "tasks": 25, "seed": seed, "minutes": seconds / 60, "checkpoint_every": 10**6}
    try:
        run = imaml.train(domain, method_of(domain, inner), OPTIMISER, out=folder, **options, **QUIET)
    except imaml.NumericalError:  # every task of a step failed
        return None
    steps = [e for e in read_events(folder / "events.jsonl") if e["event"] == "step"]
    failed = sum(e["failed"] for e in steps)
    residual = steps[-1]["inner_residual"] if steps else None  # no step is logged in too short a time
    return run, {"steps": run.step, "inner_residual": residual, "failed": failed}


def trial_loss(domain, method, found):
    """Returns the loss of a run on validation tasks, infinity for one that failed."""
    if found is None:
        return math.inf
    loss = evaluate_theta(domain, method, found[0].theta, split="validation", tasks=200).scores["loss"]
    return loss if math.isfinite(loss) else math.inf


def of_solver(domain, name, candidates, seconds, seeds, tasks):
    """Returns one solver's row, the test losses of its runs among it, by task."""
    exact = method_of(domain, imaml.GradientDescent(0.005, steps=1), EXACT)  # the same for all: compiled once
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        runs = [learned(domain, inner, 0, folder / f"{i}", seconds) for i, inner in enumerate(candidates)]
        trials = [trial_loss(domain, exact, found) for found in runs]
        if min(trials) == math.inf:
            raise SystemExit(f"{name}: no candidate learned for {seconds} s")
        place = int(np.argmin(trials))
        best = candidates[place]
        more = [learned(domain, best, seed, folder / f"{place}-{seed}", seconds) for seed in range(1, seeds)]
    good = [found for found in (runs[place], *more) if found is not None]
    tested = [evaluate_theta(domain, exact, run.theta, tasks=tasks) for run, _ in good]
    own = [evaluate_theta(domain, method_of(domain, best), run.theta, tasks=tasks) for run, _ in good]
    losses = np.stack([found.values["loss"] for found in tested])
    mean, width = interval(losses.mean(0))
    row = {"solver": name, "candidate": place, "trials": [t if math.isfinite(t) else None for t in trials]}
    row |= {"failed_seeds": seeds - len(good), "loss": mean, "loss_ci95": width}
    row |= {"loss_by_seed": losses.mean(1), "runs": [facts for _, facts in good]}
    return row | {"own_loss": np.mean([f.scores["loss"] for f in own]), "by_task": losses.mean(0)}


@benchmark("stochastic_learning", quick={"sizes": [20], "seconds": 0.1, "seeds": 1, "tasks": 4})
def main(run, sizes=(20, 500), seconds=12.0, seeds=2, tasks=500):
    """Measures every solver with every size of the support."""
    for size in sizes:
        domain, first = imaml.sinusoid(shots=size, queries=20), None
        for name, candidates in solvers(size).items():
            row = run.once(f"{size}-{name}", of_solver, domain, name, candidates, seconds, seeds, tasks)
            losses = np.array(row.pop("by_task"))
            first = losses if first is None else first
            row["less_gradient_descent"], row["less_gradient_descent_ci95"] = interval(losses - first)
            run.add({"support": size, **row}, seconds=seconds, seeds=seeds, test_tasks=tasks)
