"""Indefinite systems: what each way out returns, and what it does to learning.

    python -m benchmarks.indefinite          # -> benchmarks/results/indefinite.json

Networks for drawn characters, ReLU and batch normalisation, adapted by the preset's few large steps: A at phi
is then often not positive definite.

gradients: for networks small enough for a dense A (4 filters), at thetas early and later in learning: the
error of each choice's meta-gradient against the dense solve of the same A, and against that at the solution
that 1,000 smaller steps reach from the same phi; what share of tasks was told to be wrong.

learning: the preset's network trained STEPS steps with each choice, from SEEDS starts; test accuracy (new
tasks are solved alike for all), seconds with compilation.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.machine import describe_machine
from imaml.config.presets import preset
from imaml.core import tree
from imaml.meta.system import Case, outer_loss_of
from imaml.training.evaluation import evaluate_theta
from imaml.training.step import devices_mesh

RESULT = Path(__file__).parent / "results" / "indefinite.json"
SEEDS, STEPS, TASKS = 2, 240, 500
SMALL, AFTER = 30, (20, 200)  # tasks of small networks, and outer steps before
# name: (linear solver, curvature, inner steps over the preset's, strength over the preset's)
CHOICES = {
    "CG, 3 steps": (imaml.CG(steps=3), "hessian", 1, 1),
    "CG, 10 steps": (imaml.CG(steps=10), "hessian", 1, 1),
    "DampedCG, 5 steps": (imaml.DampedCG(steps=5), "hessian", 1, 1),
    "MINRES, 10 steps": (imaml.MINRES(steps=10), "hessian", 1, 1),
    "Nystrom, rank 5": (imaml.Nystrom(rank=5), "hessian", 1, 1),
    "Gauss-Newton, CG 3": (imaml.CG(steps=3), "gauss-newton", 1, 1),
    "Gauss-Newton, CG 10": (imaml.CG(steps=10), "gauss-newton", 1, 1),
    "CG, 3 steps; 4 times the inner steps": (imaml.CG(steps=3), "hessian", 4, 1),
    "CG, 3 steps; 5 times the strength": (imaml.CG(steps=3), "hessian", 1, 5),
    "first order": (None, "hessian", 1, 1),
}


def changed(recipe, choice):
    """The preset's method with one choice."""
    linear, curvature, times, stronger = choice
    recipe = dataclasses.replace(
        recipe,
        strength=recipe.strength * stronger,
        inner=dataclasses.replace(recipe.inner, steps=recipe.inner.steps * times),
    )
    if linear is None:
        return dataclasses.replace(recipe, name="fomaml", strength=None, new_task=None)
    return dataclasses.replace(recipe, linear=linear, curvature=curvature)


def gradients(choices):
    """Errors of the choices' meta-gradients for small networks, task by task."""
    config = preset("characters-5w1s")
    small = dataclasses.replace(config.domain, filters=4)
    domain, recipe = small.build(), config.method
    errors = {name: [] for name in choices}
    facts = []
    thetas = []
    for after in AFTER:
        options = {"steps": after, "tasks": 8, "validate_every": 0, "progress": False}
        thetas.append(imaml.train(domain, recipe.build(domain), config.optimiser, **options).theta)
        facts.append({"outer_steps": after, "parameters": int(tree.ravel(thetas[-1])[0].size)})
    for name, choice in choices.items():
        found = jax.jit(lambda theta, key, c=choice: _one(domain, recipe, c, theta, key))
        for theta in thetas:
            for number in range(SMALL):
                row = found(theta, jax.random.fold_in(jax.random.key(1), number))
                errors[name].append({key: float(value) for key, value in row.items()})
    rows = []
    for name, found in errors.items():
        column = lambda key, f=found: np.array([row[key] for row in f])  # noqa: E731
        rows.append(
            {
                "choice": name,
                "tasks": len(found),
                "indefinite": float((column("smallest") <= 0).mean()),
                "told": float(column("told").mean()),
                "error_against_dense": float(np.median(column("dense"))),
                "solved": int(np.isfinite(column("solved")).sum()),
                "error_against_solved": _median(column("solved")),
                "cosine_with_solved": _median(column("cosine")),
            }
        )
        print(rows[-1], flush=True)
    return {"at": facts, "rows": rows}


def _one(domain, recipe, choice, theta, key):
    """One task's meta-gradient by a choice, beside the dense solve there and that of the solved problem."""
    linear, curvature, times, stronger = choice
    problem = domain.problem(recipe.strength * stronger, None, curvature=curvature)
    inner = dataclasses.replace(recipe.inner, steps=recipe.inner.steps * times)
    task = domain.sample(key, "train")
    judge = outer_loss_of(domain.query_loss, theta, task.query)
    phi = inner(problem, theta, task.support).value

    def dense(problem, phi):
        system = Case(problem, theta, task.support, judge).system(phi)
        flat, unravel = tree.ravel(system.right)
        matrix = jax.lax.map(lambda v: tree.ravel(system.product(unravel(v)))[0], jnp.eye(flat.size))
        matrix = (matrix + matrix.T) / 2
        return tree.ravel(system.gradient(unravel(jnp.linalg.solve(matrix, flat))))[0], matrix

    here, matrix = dense(problem, phi)
    if linear is None:
        gradient, told = tree.ravel(judge(phi).slope)[0], jnp.asarray(False)
    else:
        system = Case(problem, theta, task.support, judge).system(phi)
        solution = system.solve(linear)
        gradient, told = tree.ravel(system.gradient(solution.value))[0], solution.stats.negative_curvature
    # What the paper's formula would be of: the same problem, Hessian and all, solved.
    exact = domain.problem(recipe.strength * stronger)
    solved = imaml.GradientDescent(recipe.inner.learning_rate / 4, steps=1000)(
        exact, theta, task.support, phi
    )
    there, curved = dense(exact, solved.value)
    good = (jnp.linalg.eigvalsh(curved)[0] > 0) & (solved.stats.residual < 1e-3)
    off = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)  # noqa: E731
    cosine = gradient @ there / (jnp.linalg.norm(gradient) * jnp.linalg.norm(there))
    return {
        "smallest": jnp.linalg.eigvalsh(matrix)[0],
        "told": told,
        "dense": off(gradient, here),
        "solved": jnp.where(good, off(gradient, there), jnp.nan),
        "cosine": jnp.where(good, cosine, jnp.nan),
    }


def _median(values):
    """The median of what is a number; None where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None


def learning():
    """Test accuracies of the preset's network trained with each choice."""
    config = preset("characters-5w1s")
    domain, mesh = config.domain.build(), devices_mesh(config.training.tasks)
    solver = config.method.build(domain, mesh)
    kept = Path("runs") / f"indefinite-{STEPS}"  # what an interrupted run has done already
    kept.mkdir(parents=True, exist_ok=True)
    rows, reference = [], None
    for number, (name, choice) in enumerate(CHOICES.items()):
        for seed in range(SEEDS):
            file = kept / f"{number}-{seed}.npy"
            if not file.exists():
                options = {"steps": STEPS, "tasks": config.training.tasks, "validate_every": 0, "seed": seed}
                method = changed(config.method, choice).build(domain, mesh)
                try:
                    run = imaml.train(domain, method, config.optimiser, **options, progress=False)
                except imaml.NumericalError as error:
                    print(name, seed, error, flush=True)
                    np.save(file, np.full(TASKS, np.nan))
                    continue
                np.save(file, evaluate_theta(domain, solver, run.theta, tasks=TASKS).values["accuracy"])
        each = np.stack([np.load(kept / f"{number}-{seed}.npy") for seed in range(SEEDS)])
        stopped = int(np.isnan(each[:, 0]).sum())  # runs that ended as no task's meta-gradient was usable
        if stopped:
            rows.append({"choice": name, "stopped": stopped})
            print(rows[-1], flush=True)
            continue
        values = each.mean(0)
        reference = values if reference is None else reference
        gap = values - reference
        rows.append(
            {
                "choice": name,
                "accuracy": float(values.mean()),
                "accuracy_ci95": float(1.96 * values.std(ddof=1) / TASKS**0.5),
                "seeds": each.mean(1).tolist(),
                "less_first": float(gap.mean()),
                "less_first_ci95": float(1.96 * gap.std(ddof=1) / TASKS**0.5),
            }
        )
        print(rows[-1], flush=True)
    return {"steps": STEPS, "seeds": SEEDS, "test_tasks": TASKS, "rows": rows}


def main():
    """Runs both parts, or one, and writes the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="*", default=["gradients", "learning"])
    parser.add_argument(
        "--choices", nargs="*", choices=CHOICES, default=list(CHOICES), help="gradients of these alone, anew"
    )
    arguments = parser.parse_args()
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result |= {"command": "python -m benchmarks.indefinite", "machine": describe_machine()}
    for part in arguments.parts:
        if part == "learning":
            result[part] = learning()  # paired with one another
        else:
            found = gradients({name: CHOICES[name] for name in arguments.choices})
            rows = {row["choice"]: row for row in result.get(part, {"rows": []})["rows"] + found["rows"]}
            result[part] = found | {"rows": [rows[name] for name in CHOICES if name in rows]}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
