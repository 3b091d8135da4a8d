"""Is delta a regulariser? Scores on new tasks against how far the inner problem is solved, and strength.

    python -m benchmarks.delta --data PATH     # -> benchmarks/results/delta.json, docs/figures/delta.svg

At test time: from one learned theta (the committed artefacts of drawn characters and Omniglot; of sinusoids,
one trained here) every task is solved at several strengths, by gradient descent (sinusoids, which are too
steep for it, by Newton-CG), and scored after more and more steps. delta is |phi - phi*| / |theta - phi*| with
phi* after all of them. What to stop at, and with which strength, is chosen on validation tasks; the
differences between choices are paired, on test tasks.

In learning: thetas trained with few and with many inner steps (delta in learning), each scored on test tasks
as it was trained, and solved by all the steps.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import lax

import imaml
from benchmarks.machine import describe_machine
from imaml.config.method import NewTask
from imaml.config.overrides import replace_data
from imaml.config.presets import preset
from imaml.core import tree
from imaml.training.evaluation import evaluate_theta, over_devices, paired, task_keys
from imaml.training.step import devices_mesh

ROOT = Path(__file__).parent
RESULT, FIGURE = ROOT / "results" / "delta.json", ROOT.parent / "docs" / "figures" / "delta.svg"
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
TASKS, VALIDATION = 400, 200


@dataclasses.dataclass(frozen=True)
class Study:
    """One domain: preset and artefact, a step on new tasks, how many; inner and outer steps of learning."""

    preset: str
    artefact: str | None
    step: imaml.GradientDescent | imaml.NewtonCG
    steps: tuple[int, ...]
    learned_with: tuple[int, ...]
    outer_steps: int


def images(name):
    """The study of a preset of images that has an artefact."""
    step, steps = imaml.GradientDescent(0.2, steps=1), (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
    return Study(name, f"artefacts/{name}.safetensors", step, steps, (2, 8, 32), 240)


STUDIES = {
    "sinusoid": Study(
        "sinusoid",
        None,
        imaml.NewtonCG(steps=1, linear=imaml.CG(steps=10)),
        (0, 1, 2, 4, 8, 16, 32, 64, 128),
        (1, 4, 16, 64),
        1500,
    ),
    "characters": images("characters-5w1s"),
    "omniglot": images("omniglot-5w1s"),
}


def scored(domain, theta, strength, study, split, tasks, mesh):
    """Scores (tasks, steps) by name, with delta and |F|, for one strength."""
    problem = domain.problem(strength)

    def one(domain, theta, key):
        task = domain.sample(key, split)
        start = problem.init(theta, task.support, key)
        slope = lambda phi: problem.residual(phi, theta, task.support)  # noqa: E731

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
            found["residual"] = tree.norm(slope(phi))
            return found

        return lax.map(measures, path)

    run = over_devices(lambda d, t, keys: lax.map(lambda k: one(d, t, k), keys), mesh)
    return {
        name: np.asarray(values, np.float64)
        for name, values in run(domain, theta, task_keys(0, 0, tasks)).items()
    }


def mean_of(values):
    """Mean and half-width of the 95 % interval over tasks; of calibration's counts, the error alone."""
    if values.ndim == 3:  # (tasks, bins, 3): answers, how often right, how sure
        sums = values.sum(0)
        return float(np.abs(sums[:, 2] - sums[:, 1]).sum() / max(sums[:, 0].sum(), 1)), None
    known = values[np.isfinite(values)]
    return float(known.mean()), float(1.96 * known.std(ddof=1) / np.sqrt(known.size))


def at_test_time(name, domain, theta, study, strength, mesh):
    """The table of scores by strength and steps, the choices made on validation, and their differences."""
    sign = 1 if domain.higher_is_better else -1
    tables = {
        split: {s: scored(domain, theta, s, study, split, tasks, mesh) for s in STRENGTHS}
        for split, tasks in (("validation", VALIDATION), ("test", TASKS))
    }
    headline = domain.headline
    rows = [
        {"strength": s, "steps": steps}
        | {measure: mean_of(values[:, i]) for measure, values in tables["test"][s].items()}
        for s in STRENGTHS
        for i, steps in enumerate(study.steps)
    ]
    on_validation = {
        (s, i): sign * np.nanmean(tables["validation"][s][headline][:, i])
        for s in STRENGTHS
        for i in range(len(study.steps))
    }
    solved = len(study.steps) - 1

    def choice(among):
        strength, i = max(among, key=lambda at: on_validation[at])
        return {"strength": strength, "steps": study.steps[i], "index": i}

    choices = {
        "anything": choice(on_validation),
        "solved, the best strength": choice([at for at in on_validation if at[1] == solved]),
        "learning's strength, stopped": choice([at for at in on_validation if at[0] == strength]),
        "learning's strength, solved": choice([(strength, solved)]),
        "the weakest strength, stopped": choice([at for at in on_validation if at[0] == STRENGTHS[0]]),
        "the weakest strength, solved": choice([(STRENGTHS[0], solved)]),
    }
    test = lambda c, measure: tables["test"][c["strength"]][measure][:, c["index"]]  # noqa: E731
    differences = []
    for first, second in (
        ("anything", "solved, the best strength"),
        ("the weakest strength, stopped", "the weakest strength, solved"),
        ("learning's strength, stopped", "learning's strength, solved"),
    ):
        for measure in (headline, "loss"):
            gap = mean_of(test(choices[first], measure) - test(choices[second], measure))
            differences.append(
                {"first": first, "second": second, "measure": measure, "mean": gap[0], "ci95": gap[1]}
            )
    for what, found in choices.items():
        for measure in tables["test"][found["strength"]]:
            found[measure] = mean_of(test(found, measure))
        del found["index"]
        print(name, what, found["strength"], found["steps"], found[headline], flush=True)
    for gap in differences:
        size = f"{gap['mean']:+.4f} +- {gap['ci95']:.4f}"
        print(f"{name}: {gap['first']} - {gap['second']}: {gap['measure']} {size}", flush=True)
    return {"headline": headline, "rows": rows, "choices": choices, "differences": differences}


def in_learning(name, config, domain, study, mesh):
    """Thetas learned with few and with many inner steps, scored as learned and solved."""
    rows, results, counts = [], {}, study.learned_with
    for count in counts:
        inner = dataclasses.replace(config.method.inner, steps=count)
        recipe = dataclasses.replace(config.method, inner=inner, new_task=None)
        method = recipe.build(domain, mesh)
        optimiser = dataclasses.replace(config.optimiser, warmup=min(config.optimiser.warmup, 20))
        optimiser = dataclasses.replace(optimiser, average=min(optimiser.average, 0.98))
        began = time.perf_counter()
        run = imaml.train(
            domain,
            method,
            optimiser,
            steps=study.outer_steps,
            tasks=config.training.tasks,
            validate_every=0,
            progress=False,
        )
        seconds = time.perf_counter() - began
        solver = NewTask(dataclasses.replace(study.step, steps=study.steps[-1]))
        ways = {
            "as learned": method,
            "solved": dataclasses.replace(recipe, new_task=solver).build(domain, mesh),
        }
        for way, how in ways.items():
            found = results[count, way] = evaluate_theta(domain, how, run.theta, tasks=TASKS)
            rows.append({"inner_steps": count, "solved": way, "seconds": seconds, **found.to_json()})
            print(name, "learned with", count, way, found.scores[domain.headline], flush=True)
    differences = []
    for count in counts[:-1]:
        mean, width = paired(results[count, "as learned"], results[counts[-1], "as learned"])
        differences.append({"first": count, "second": counts[-1], "mean": mean, "ci95": width})
    return {"rows": rows, "differences": differences, "outer_steps": study.outer_steps}


def draw(found):
    """The figure: the score against steps by strength, one panel a domain."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "imaml", "font.size": 10})
    figure, panels = plt.subplots(
        2, len(found), figsize=(3.6 * len(found), 5.8), layout="constrained", squeeze=False
    )
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(STRENGTHS)))
    for column, (name, study) in enumerate(found.items()):
        for line, strength in enumerate(STRENGTHS):
            rows = [r for r in study["at_test_time"]["rows"] if r["strength"] == strength and r["steps"]]
            for panel, measure in zip(
                panels[:, column], (study["at_test_time"]["headline"], "loss"), strict=True
            ):
                y, half = (np.array([r[measure][i] for r in rows]) for i in range(2))
                x = [r["steps"] for r in rows]
                panel.plot(x, y, color=colours[line], marker=".", label=f"strength {strength:g}")
                panel.fill_between(x, y - half, y + half, color=colours[line], alpha=0.12, lw=0)
                panel.set(xscale="log", ylabel=measure, xlabel="inner steps (smaller delta to the right)")
                panel.grid(alpha=0.3)
        panels[0, column].set_title(name)
        panels[1, column].set_yscale("log")
    panels[0, 0].legend(frameon=False, fontsize=7)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def main():
    """Runs what is missing in the result file, domain by domain."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data")
    parser.add_argument("--domains", nargs="*", default=list(STUDIES))
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    arguments = parser.parse_args()
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"domains": {}}
    result |= {"command": "python -m benchmarks.delta --data PATH", "machine": describe_machine()}
    result |= {"strengths": STRENGTHS, "tasks": TASKS, "validation_tasks": VALIDATION}
    for name in [] if arguments.draw else arguments.domains:
        study, config = STUDIES[name], preset(STUDIES[name].preset)
        if config.domain.__class__.__name__ == "FewShotRecipe" and config.domain.source == "omniglot":
            config = replace_data(config, arguments.data)
        domain = config.domain.build()
        mesh = devices_mesh(config.training.tasks)
        found = result["domains"].setdefault(name, {})
        if "at_test_time" not in found:
            if study.artefact is None:
                method = config.method.build(domain, mesh)
                often = {"steps": config.training.steps, "tasks": config.training.tasks}
                run = imaml.train(domain, method, config.optimiser, **often, validate_every=0, progress=False)
                theta = run.theta
            else:
                theta = imaml.load(study.artefact).theta
            found["at_test_time"] = at_test_time(name, domain, theta, study, config.method.strength, mesh)
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
        if "in_learning" not in found:
            found["in_learning"] = in_learning(name, config, domain, study, mesh)
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
    draw(result["domains"])


if __name__ == "__main__":
    main()
