"""Indefinite systems: what each way out returns, and what it does to learning.

    python -m benchmarks run indefinite

Networks for drawn characters, ReLU and batch normalisation, adapted by the preset's few large steps: A at phi
is then often not positive definite.

gradients: for networks small enough for a dense A (4 filters), at thetas early and later in learning: the
error of each choice's meta-gradient against the dense solve of the same A, and against that at the solution
that 1,000 smaller steps reach from the same phi; what share of tasks was told to be wrong.

learning: the preset's network trained `steps` steps with each choice, from `seeds` starts; test accuracy (new
tasks are solved alike for all), seconds with compilation.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.harness import benchmark, interval, prepared, say, trained
from imaml.core import tree
from imaml.meta.system import Case, outer_loss_of
from imaml.training.evaluation import evaluate_theta

AFTER = (20, 200)  # outer steps of the small networks
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
    inner = dataclasses.replace(recipe.inner, steps=recipe.inner.steps * times)
    recipe = dataclasses.replace(recipe, strength=recipe.strength * stronger, inner=inner)
    if linear is None:
        return dataclasses.replace(recipe, name="fomaml", strength=None, new_task=None)
    return dataclasses.replace(recipe, linear=linear, curvature=curvature)


def gradients(run, small):
    """Returns errors of the choices' meta-gradients for `small` tasks at each theta."""
    config, _, _ = prepared("characters-5w1s")
    domain, recipe = dataclasses.replace(config.domain, filters=4).build(), config.method
    thetas = [
        trained(domain, recipe.build(domain), config.optimiser, steps=after, tasks=8)[0]
        for after in (AFTER if not run.quick else (1, 2))
    ]
    keys = [jax.random.fold_in(jax.random.key(1), number) for number in range(small)]

    def row_of(name):
        found = jax.jit(lambda theta, key: _one(domain, recipe, CHOICES[name], theta, key))
        each = [found(theta, key) for theta in thetas for key in keys]
        column = {key: np.array([row[key] for row in each], float) for key in each[0]}
        row = {"choice": name, "tasks": len(each), "indefinite": (column["smallest"] <= 0).mean()}
        row |= {"told": column["told"].mean(), "error_against_dense": np.median(column["dense"])}
        row["solved"] = np.isfinite(column["solved"]).sum()
        row["error_against_solved"] = _median(column["solved"])
        return row | {"cosine_with_solved": _median(column["cosine"])}

    size = int(tree.ravel(thetas[0])[0].size)
    at = [{"outer_steps": after, "parameters": size} for after in AFTER]
    return {"rows": [run.once(f"gradients-{name}", row_of, name) for name in CHOICES], "at": at}


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
    smaller = imaml.GradientDescent(recipe.inner.learning_rate / 4, steps=1000)
    solved = smaller(exact, theta, task.support, phi)
    there, curved = dense(exact, solved.value)
    good = (jnp.linalg.eigvalsh(curved)[0] > 0) & (solved.stats.residual < 1e-3)
    off = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)  # noqa: E731
    cosine = gradient @ there / (jnp.linalg.norm(gradient) * jnp.linalg.norm(there))
    found = {"smallest": jnp.linalg.eigvalsh(matrix)[0], "told": told, "dense": off(gradient, here)}
    known = {"solved": off(gradient, there), "cosine": cosine}
    return found | {name: jnp.where(good, value, jnp.nan) for name, value in known.items()}


def _median(values):
    """The median of what is a number; None where nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None


def accuracies(domain, solver, config, method, steps, tasks, seed):
    """Returns test accuracies after learning with a method; NaN where no task's meta-gradient was usable."""
    options = {"steps": steps, "tasks": config.training.tasks, "seed": seed}
    try:
        theta, _ = trained(domain, method, config.optimiser, **options)
    except imaml.NumericalError as error:
        print(error, flush=True)
        return np.full(tasks, np.nan)
    return evaluate_theta(domain, solver, theta, tasks=tasks).values["accuracy"]


def learning(run, seeds, steps, tasks):
    """Returns test accuracies of the preset's network trained with each choice."""
    config, domain, mesh = prepared("characters-5w1s")
    solver = config.method.build(domain, mesh)
    rows, reference = [], None
    for number, (name, choice) in enumerate(CHOICES.items()):
        given = domain, solver, config, changed(config.method, choice).build(domain, mesh), steps, tasks
        each = [run.once(f"{steps}-{number}-{seed}", accuracies, *given, seed) for seed in range(seeds)]
        each = np.array(each)
        rows.append({"choice": name})
        if np.isnan(each[:, 0]).any():
            rows[-1]["stopped"] = np.isnan(each[:, 0]).sum()
        else:
            reference = each.mean(0) if reference is None else reference
            for key, values in (("accuracy", each.mean(0)), ("less_first", each.mean(0) - reference)):
                rows[-1][key], rows[-1][f"{key}_ci95"] = interval(values)
            rows[-1]["seeds"] = each.mean(1)
        say(rows[-1])
    return {"steps": steps, "seeds": seeds, "test_tasks": tasks, "rows": rows}


@benchmark("indefinite", quick={"small": 1, "seeds": 1, "steps": 2, "tasks": 4})
def main(run, small=30, seeds=2, steps=240, tasks=500):
    """Measures both parts."""
    found = gradients(run, small)
    run.write(**found)
    run.write(**found, learning=learning(run, seeds, steps, tasks))
