"""What a stochastic inner loop does to meta-learning, at equal time.

    python -m benchmarks.stochastic_learning     # -> benchmarks/results/stochastic_learning.json

Sinusoids from supports of 20 and of 500 points, implicit MAML with Gauss-Newton curvature; only what solves
the tasks in learning is exchanged. Each solver has four trials (two rates and two lengths, Newton-CG two by
two) of TRIAL seconds, chosen by validation tasks; the chosen one learns for FINAL seconds from SEEDS starts,
or the next best where it fails numerically on the way.
Test tasks are solved by Newton-CG for all alike, and by what the theta was learned with.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import optax

import imaml
from benchmarks.machine import describe_machine
from imaml.evaluation import evaluate_theta
from imaml.journal import read_events

RESULT = Path(__file__).parent / "results" / "stochastic_learning.json"
SIZES, TRIAL, FINAL, SEEDS, TASKS = (20, 500), 8.0, 30.0, 2, 500
STRENGTH, EXACT = 0.1, imaml.NewtonCG(steps=10, linear=imaml.CG(steps=10))
OPTIMISER = imaml.Optimiser("adam", 3e-3, schedule="constant", clip=1.0, average=0.99)


def solvers(rows):
    """The trials of each solver for supports of so many rows, minibatches of a twentieth, 5 at least."""
    part = max(5, rows // 20)
    nesterov = lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True)  # noqa: E731
    both = lambda make, rates, lengths: [make(r, n) for r in rates for n in lengths]  # noqa: E731
    return {
        "gradient descent": both(lambda r, n: imaml.GradientDescent(r, steps=n), (0.005, 0.02), (4, 16)),
        "Nesterov": both(lambda r, n: imaml.Descent(nesterov(r), steps=n), (0.001, 0.005), (4, 16)),
        "Adam": both(lambda r, n: imaml.Descent(optax.adam(r), steps=n), (0.003, 0.01), (4, 16)),
        "SGD": both(lambda r, n: imaml.SGD(r, part, epochs=n), (0.005, 0.02), (1, 4)),
        "SGD with decay": both(lambda r, n: imaml.SGD(r, part, epochs=n, decay=0.1), (0.005, 0.02), (1, 4)),
        "SVRG": both(lambda r, n: imaml.SVRG(r, part, epochs=n), (0.005, 0.02), (1, 4)),
        "Newton-CG": both(lambda c, n: imaml.NewtonCG(steps=n, linear=imaml.CG(c)), (5, 10), (1, 3)),
    }


def method_of(domain, inner, solving=None):
    """Implicit MAML with an inner solver; new tasks solved by another."""
    problem = domain.problem(STRENGTH, curvature="gauss-newton")
    new = None if solving is None else imaml.Solving(problem, solving)
    return imaml.IMAML(
        problem, domain.query_loss, inner=inner, linear=imaml.CG(steps=8), new_task=new, policy="skip"
    )


def learned(domain, inner, seconds, seed, folder):
    """What so many seconds of learning give: the run, its last mean inner residual, how many tasks failed."""
    run = imaml.train(
        domain, method_of(domain, inner), OPTIMISER, steps=10**6, tasks=25, seed=seed, minutes=seconds / 60,
        validate_every=0, checkpoint_every=10**6, out=folder, progress=False,
    )  # fmt: skip
    steps = [e for e in read_events(folder / "events.jsonl") if e["event"] == "step"]
    return run, steps[-1]["inner_residual"], sum(e["failed"] for e in steps)


def finals(domain, inner, folder):
    """What FINAL seconds give, by seed: new tasks solved to the end, and as learned; facts of the run."""
    found, own, facts = [], [], []
    for seed in range(SEEDS):
        run, residual, failed = learned(domain, inner, FINAL, seed, folder.with_name(f"{folder.name}-{seed}"))
        facts.append({"steps": run.step, "inner_residual": residual, "failed": failed})
        found.append(evaluate_theta(domain, method_of(domain, inner, EXACT), run.theta, tasks=TASKS))
        own.append(evaluate_theta(domain, method_of(domain, inner), run.theta, tasks=TASKS))
    return found, own, facts


def main():
    """Runs what is missing in the result file."""
    import tempfile

    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    arguments = parser.parse_args()
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"sizes": {}}
    result |= {"command": "python -m benchmarks.stochastic_learning", "machine": describe_machine()}
    result |= {"trial_seconds": TRIAL, "final_seconds": FINAL, "seeds": SEEDS, "test_tasks": TASKS}
    for size in arguments.sizes:
        domain = imaml.sinusoid(shots=size, queries=20)
        rows, values = [], {}
        with tempfile.TemporaryDirectory() as folder:
            for name, candidates in solvers(size).items():
                trials = []
                for i, inner in enumerate(candidates):
                    try:
                        run, _, _ = learned(domain, inner, TRIAL, 0, Path(folder) / f"{name}-{i}")
                        exact = method_of(domain, inner, EXACT)
                        loss = evaluate_theta(domain, exact, run.theta, split="validation", tasks=200)
                        trials.append(loss.scores["loss"])
                    except imaml.NumericalError:  # every task of a step failed
                        trials.append(float("inf"))
                failures = []
                for place in np.argsort(trials):  # a rate that a short trial stood may fail in a longer run
                    best = candidates[int(place)]
                    try:
                        found, own, facts = finals(domain, best, Path(folder) / f"{name}-final-{place}")
                        break
                    except imaml.NumericalError:
                        failures.append(int(place))
                else:
                    raise SystemExit(f"{name}: no candidate learned for {FINAL} s")
                values[name] = np.mean([f.values["loss"] for f in found], axis=0)
                gap = values[name] - values["gradient descent"]
                rows.append(
                    {
                        "solver": name,
                        "chosen": repr(best) if dataclasses.is_dataclass(best) else str(best),
                        "failed_in_the_long_run": failures,
                        "trials": [t if np.isfinite(t) else None for t in trials],
                        "loss": float(values[name].mean()),
                        "loss_ci95": float(1.96 * values[name].std(ddof=1) / TASKS**0.5),
                        "less_gradient_descent": float(gap.mean()),
                        "less_gradient_descent_ci95": float(1.96 * gap.std(ddof=1) / TASKS**0.5),
                        "own_loss": float(np.mean([f.scores["loss"] for f in own])),
                        "runs": facts,
                    }
                )
                if isinstance(best, imaml.Descent):  # its transform's repr names addresses of this process
                    rows[-1]["chosen"] = f"{name}, candidate {candidates.index(best)}, steps {best.steps}"
                print(rows[-1], flush=True)
                jax.clear_caches()
        result["sizes"][str(size)] = rows
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
