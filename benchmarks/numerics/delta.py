"""Is delta a regulariser? Scores on new tasks against how far the inner problem is solved, and strength.

    python -m benchmarks run delta --data PATH     # also draws docs/figures/delta.svg

At test time: from one learned theta (the committed artefacts of drawn characters and Omniglot; of sinusoids,
one trained here) every task is solved at several strengths, by gradient descent (sinusoids, which are too
steep for it, by Newton-CG), and scored after more and more steps. delta is |phi - phi*| / |theta - phi*| with
phi* after all of them. What to stop at, and with which strength, is chosen on validation tasks; the
differences between choices are paired, on test tasks.

In learning: thetas trained with few and with many inner steps (delta in learning), each scored on test tasks
as it was trained, and solved by all the steps.
"""

import dataclasses
import itertools
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import imaml
from benchmarks.harness import benchmark, figure, interval, prepared, say, trained
from imaml.config.method import NewTask
from imaml.core import tree
from imaml.training.evaluation import evaluate_theta, over_devices, task_keys
from imaml.training.scores import paired

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


# A domain: preset and artefact, a step on new tasks and how many; inner and outer steps of learning.
Study = namedtuple("Study", "preset artefact step steps learned_with outer_steps")


def images(name):
    """The study of a preset of images that has an artefact."""
    step, steps = imaml.GradientDescent(0.2, steps=1), (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
    return Study(name, f"artefacts/{name}.safetensors", step, steps, (2, 8, 32), 240)


NEWTON, STEPS = imaml.NewtonCG(steps=1, linear=imaml.CG(steps=10)), (0, 1, 2, 4, 8, 16, 32, 64, 128)
STUDIES = {"sinusoid": Study("sinusoid", None, NEWTON, STEPS, (1, 4, 16, 64), 1500)}
STUDIES |= {"characters": images("characters-5w1s"), "omniglot": images("omniglot-5w1s")}


def scored(domain, theta, strength, study, split, tasks, mesh):
    """Scores (tasks, steps) by name, with delta and |F|, for one strength."""
    problem = domain.problem(strength)

    def one(domain, theta, key):
        task = domain.sample(key, split)
        start = problem.init(theta, task.support, key)

        def step(_, phi):
            return study.step(problem, theta, task.support, phi).value

        def further(phi, steps):
            phi = lax.fori_loop(0, steps, step, phi)
            return phi, phi

        last, path = lax.scan(further, start, jnp.diff(jnp.asarray(study.steps), prepend=0))
        span = tree.norm(tree.minus(start, last))

        def measures(phi):
            found = dict(domain.metrics(problem.full(phi, theta), task))
            found |= domain.calibration(problem.full(phi, theta), task)
            found["delta"] = tree.norm(tree.minus(phi, last)) / span
            found["residual"] = tree.norm(problem.residual(phi, theta, task.support))
            return found

        return lax.map(measures, path)

    run = over_devices(lambda d, t, keys: lax.map(lambda k: one(d, t, k), keys), mesh)
    return jax.tree.map(lambda v: np.asarray(v, np.float64), run(domain, theta, task_keys(0, 0, tasks)))


def mean_of(values):
    """Returns mean and half-width of the 95 % interval; of counts for calibration, the error alone."""
    if values.ndim == 3:  # (tasks, bins, 3): answers, how often right, how sure
        sums = values.sum(0)
        return np.abs(sums[:, 2] - sums[:, 1]).sum() / max(sums[:, 0].sum(), 1), None
    return interval(values)


def learned(study, config, domain, mesh, outer):
    """Returns the theta that tasks are solved from."""
    if study.artefact is not None:
        return imaml.load(study.artefact).theta
    often = {"steps": outer or config.training.steps, "tasks": config.training.tasks}
    return trained(domain, config.method.build(domain, mesh), config.optimiser, **often)[0]


def at_test_time(name, domain, study, config, mesh, tasks, validation, outer):
    """Returns scores by strength and steps, the choices made on validation, and their differences."""
    theta, strength = learned(study, config, domain, mesh, outer), config.method.strength
    sign = 1 if domain.higher_is_better else -1
    tables = {
        split: {s: scored(domain, theta, s, study, split, count, mesh) for s in STRENGTHS}
        for split, count in (("validation", validation), ("test", tasks))
    }
    headline, solved = domain.headline, len(study.steps) - 1
    grid = list(itertools.product(STRENGTHS, range(len(study.steps))))
    on_validation = {(s, i): sign * np.nanmean(tables["validation"][s][headline][:, i]) for s, i in grid}
    best = lambda among: max(among, key=lambda at: on_validation[at])  # noqa: E731
    chosen = {
        "anything": best(grid),
        "solved, the best strength": best([at for at in grid if at[1] == solved]),
        "learning's strength, stopped": best([at for at in grid if at[0] == strength]),
        "learning's strength, solved": (strength, solved),
        "the weakest strength, stopped": best([at for at in grid if at[0] == STRENGTHS[0]]),
        "the weakest strength, solved": (STRENGTHS[0], solved),
    }

    def tested(at):
        scores = {measure: mean_of(values[:, at[1]]) for measure, values in tables["test"][at[0]].items()}
        return {"strength": at[0], "steps": study.steps[at[1]], **scores}

    on_test = lambda what, measure: tables["test"][chosen[what][0]][measure][:, chosen[what][1]]  # noqa: E731
    differences = []
    for first, second in (
        ("anything", "solved, the best strength"),
        ("the weakest strength, stopped", "the weakest strength, solved"),
        ("learning's strength, stopped", "learning's strength, solved"),
    ):
        for measure in (headline, "loss"):
            gap = mean_of(on_test(first, measure) - on_test(second, measure))
            pair = {"first": first, "second": second, "measure": measure}
            differences.append(pair | {"mean": gap[0], "ci95": gap[1]})
            say(differences[-1])
    choices = {what: tested(at) for what, at in chosen.items()}
    for what, found in choices.items():
        say({"domain": name, "choice": what, **found})
    rows = [tested(at) for at in grid]
    return {"headline": headline, "rows": rows, "choices": choices, "differences": differences}


def in_learning(name, domain, study, config, mesh, tasks, outer):
    """Returns scores of thetas learned with few and with many inner steps, as learned and solved."""
    rows, results, counts = [], {}, study.learned_with
    usual = config.optimiser
    optimiser = dataclasses.replace(usual, warmup=min(usual.warmup, 20), average=min(usual.average, 0.98))
    solver = NewTask(dataclasses.replace(study.step, steps=study.steps[-1]))
    for count in counts:
        inner = dataclasses.replace(config.method.inner, steps=count)
        recipe = dataclasses.replace(config.method, inner=inner, new_task=None)
        method = recipe.build(domain, mesh)
        theta, seconds = trained(domain, method, optimiser, steps=outer, tasks=config.training.tasks)
        solved = dataclasses.replace(recipe, new_task=solver).build(domain, mesh)
        for way, how in (("as learned", method), ("solved", solved)):
            found = results[count, way] = evaluate_theta(domain, how, theta, tasks=tasks)
            rows.append({"inner_steps": count, "solved": way, "seconds": seconds, **found.to_json()})
            say({"domain": name, **rows[-1]})
    differences = []
    for count in counts[:-1]:
        mean, width = paired(results[count, "as learned"], results[counts[-1], "as learned"])
        differences.append({"first": count, "second": counts[-1], "mean": mean, "ci95": width})
    return {"rows": rows, "differences": differences, "outer_steps": outer}


def draw(run, result):
    """Draws the scores against steps by strength, one column a domain."""
    import matplotlib

    studies = result.rows
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(STRENGTHS)))
    with figure(run.place("delta.svg"), 2, len(studies), figsize=(3.6 * len(studies), 5.8)) as (_, panels):
        for column, study in enumerate(studies):
            test = study["at_test_time"]
            for colour, strength in zip(colours, STRENGTHS, strict=True):
                rows = [r for r in test["rows"] if r["strength"] == strength and r["steps"]]
                for panel, measure in zip(panels[:, column], (test["headline"], "loss"), strict=True):
                    y, half = (np.array([r[measure][i] for r in rows]) for i in range(2))
                    x = [r["steps"] for r in rows]
                    panel.plot(x, y, color=colour, marker=".", label=f"strength {strength:g}")
                    panel.fill_between(x, y - half, y + half, color=colour, alpha=0.12, lw=0)
                    panel.set(xscale="log", ylabel=measure, xlabel="inner steps (smaller delta to the right)")
                    panel.grid(alpha=0.3)
            panels[0, column].set_title(study["domain"])
            panels[1, column].set_yscale("log")
        panels[0, 0].legend(frameon=False, fontsize=7)


QUICK = {"domains": ("sinusoid",), "tasks": 4, "validation": 4, "outer": 2}


@benchmark("delta", quick=QUICK, draw=draw)
def main(run, data=None, domains=tuple(STUDIES), tasks=400, validation=200, outer=0):
    """Measures both parts of each domain; `outer`: outer steps of learning, by default the study's."""
    studies = {row["domain"]: row for row in run.before()}
    for name in domains:
        study = STUDIES[name]
        config, domain, mesh = prepared(study.preset, data if name == "omniglot" else None)
        given = (name, domain, study, config, mesh, tasks)
        found = run.once(f"{name}-test", at_test_time, *given, validation, outer)
        studies[name] = {"domain": name, "at_test_time": found}
        found = run.once(f"{name}-learning", in_learning, *given, outer or study.outer_steps)
        studies[name]["in_learning"] = found
        run.write(list(studies.values()), strengths=STRENGTHS, tasks=tasks, validation_tasks=validation)
