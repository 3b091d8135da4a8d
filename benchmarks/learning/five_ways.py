"""Five ways to learn theta and its precision, (a) to (e) of docs/bayes.md, on Omniglot, from one start.

    python -m benchmarks.five_ways --data PATH [--ways 5 20]     # -> benchmarks/results/five_ways.json

All begin at the body of the committed artefact with a head of zeros (its own head knows nothing before it is
adapted, but says so with large logits, which a stronger prior would keep), with one precision for the body
and one for the head, and learn for the same number of steps (fewer for (e) at 20 ways, see `steps_of`). Each
but (d), which cannot, learns a precision for every kernel, bias and scale. New tasks (test split, inductive)
are answered by the adapted network alone, by Laplace's posterior of it, and by that of the head. Differences
from (a) are paired by task, 95 % intervals. The picture of what precisions were learned is
docs/figures/precisions.svg. Runs are kept in runs/five_ways, rows in the result: the same command goes on
with what is not done.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import imaml
from benchmarks.intervals import interval
from benchmarks.machine import describe_machine
from benchmarks.posteriors import WAYS, calibration, scores
from imaml.bayes.curvature import Quadrature
from imaml.bayes.laplace import posterior
from imaml.config.method import Bayes, Method, NewTask
from imaml.config.optimiser import Optimiser
from imaml.domains.fewshot.episodes import Labelled, cross_entropy
from imaml.inner.gradient import ProximalGradient
from imaml.linear.cg import CG
from imaml.problems.precision import Theta
from imaml.training.evaluation import task_keys

RESULT, FIGURE = Path("benchmarks/results/five_ways.json"), Path("docs/figures/precisions.svg")
KEPT, START = Path("runs/five_ways"), "artefacts/omniglot-5w1s.safetensors"
BODY, HEAD = 1000.0, 10.0  # the prior's precisions at the start, of the loss summed over a support
RATE = 0.1  # of the mean loss over the rows that a task is solved on
QUERIES = {5: 5, 20: 1}  # a class
LETTERS = {"imaml": "a", "evidence": "b", "moments": "c", "reptile": "d", "posterior": "e"}
STEPS, TASKS, SCORED = {5: 200, 20: 60}, {5: 4, 20: 2}, {5: 100, 20: 24}


def recipe(name, ways):
    """The method, its losses summed over rows where it is Bayesian, and its optimiser."""
    summed = name in ("evidence", "moments", "posterior")
    rows = ways if summed else 1  # one shot: as many support rows as ways
    learns_from = rows * (1 + QUERIES[ways]) if name in ("evidence", "moments") else rows  # all of a task's
    method = Method(
        name,
        strength=HEAD * rows / ways,
        learned=None if name == "reptile" else "leaf",
        inner=ProximalGradient(RATE / learns_from, steps=24),
        new_task=NewTask(ProximalGradient(RATE / rows, steps=24)),
        linear=CG(steps=5),
        curvature="hessian" if name == "reptile" else "gauss-newton",
        chunk=1,
        bayes=Bayes(
            determinant=Quadrature(steps=8, probes=2) if name == "evidence" else None,
            form={"moments": "low-rank", "posterior": "rows"}.get(name, "dense"),
        )
        if summed
        else Bayes(),
    )
    if name == "moments":  # a tenth of the step of the mean, as tasks are few; the whole of the precision's
        return method, Optimiser("sgd", 0.1, log_scale=10.0)
    return method, Optimiser("adam", 2e-3, clip=1.0, log_scale=50.0)  # precisions have decades to go


def prepared(ways, data):
    """The domain, and the theta that all start from."""
    learned = imaml.load(START)
    domain = dataclasses.replace(
        learned.config.domain, ways=ways, queries=QUERIES[ways], data=str(data), limits=()
    ).build()
    start = dict(learned.theta)
    start["head"] = jax.tree.map(jnp.zeros_like, domain.init(jax.random.key(0))["head"])
    return domain, start


def steps_of(name, ways):
    """How many steps are learned for; (e)'s at 20 ways, with 400 rows a task, take half a minute each."""
    return 24 if (name, ways) == ("posterior", 20) else STEPS[ways]


def strengths_of(mean, times):
    """The precisions that all start with, times a number, one for every leaf."""
    return {
        part: jax.tree.map(lambda _: times * (HEAD if part == "head" else BODY), leaves)  # noqa: B023
        for part, leaves in mean.items()
    }


def learned_by(name, ways, data):
    """The domain, the method, and what was learned, by a run that is kept."""
    domain, start = prepared(ways, data)
    method, optimiser = recipe(name, ways)
    built = method.build(domain)
    strengths = strengths_of(start, method.strength / HEAD)
    if name == "reptile":
        problem = domain.problem(strengths)
        built = dataclasses.replace(built, problem=problem, new_task=built.new_task._replace(problem=problem))
    else:
        start = Theta(start, jax.tree.map(jnp.log, strengths))
    out = KEPT / f"{ways}w" / name
    began = time.perf_counter()
    run = imaml.train(
        domain, built, optimiser, out=out, steps=steps_of(name, ways), tasks=TASKS[ways], validate_every=0,
        checkpoint_every=50, progress=False, resume=out.exists(), start=None if out.exists() else start,
    )  # fmt: skip
    if run.reason == "interrupted":
        raise SystemExit("interrupted; the same command goes on")
    if not (out / "seconds").exists():
        (out / "seconds").write_text(str(time.perf_counter() - began))
    return domain, built, run.theta, float((out / "seconds").read_text())


def precisions(name, theta, ways):
    """The prior's precision of every leaf, of the summed loss, by name; {} where none was learned."""
    if not isinstance(theta, Theta):
        return {}
    times = 1 if LETTERS[name] in "bce" else ways
    leaves = jax.tree_util.tree_flatten_with_path(theta.log_strength)[0]
    return {"/".join(str(key.key) for key in path): times * float(np.exp(leaf)) for path, leaf in leaves}


def rows_of(name, ways, data):
    """The rows of one method: each way of answering."""
    domain, built, theta, seconds = learned_by(name, ways, data)
    run = jax.jit(lambda keys: jax.lax.map(lambda key: scores(domain, built, theta, key, False), keys))
    found = jax.device_get(run(task_keys(0, 0, SCORED[ways])))
    about = {
        "method": name,
        "ways": ways,
        "tasks": SCORED[ways],
        "steps": steps_of(name, ways),
        "seconds": seconds,
    }
    about["precisions"] = precisions(name, theta, ways)
    for answer in WAYS:
        own = found[answer]
        row = about | {"answers": answer, "calibration_error": calibration(own["confidences"])}
        row["values"] = {k: np.asarray(own[k], float).tolist() for k in ("nll", "accuracy")}
        row["bins"] = np.asarray(own["confidences"], float).tolist()
        yield row


def drawn(data, tasks=50, draws=8):
    """Of 5-way tasks at the start: what the network says at draws from the posterior that (e) learns through.

    Log loss and accuracy of the adapted network, and their means over draws of all parameters, of the head
    alone, and of the body alone.
    """
    domain, mean = prepared(5, data)
    built = recipe("posterior", 5)[0].build(domain)
    theta = Theta(mean, jax.tree.map(jnp.log, strengths_of(mean, 1.0)))

    def one(key):
        task = domain.sample(key, "test")
        phi, _ = built.adapt(theta, task.support, key)
        found = posterior(built.problem, phi, theta, task.support, form="rows").sample(key, draws)
        still = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (draws, *leaf.shape)), phi)
        batch = Labelled(task.query.images, task.query.labels, task.support.images)

        def score(phi):
            logits = domain.logits(phi, batch, True)
            right = jnp.mean((logits.argmax(1) == task.query.labels).astype(jnp.float32))
            return jnp.stack([cross_entropy(logits, task.query.labels), right])

        parts = {"none": still, "all": found, "head": still | {"head": found["head"]}}
        parts["body"] = found | {"head": still["head"]}
        return {name: jnp.mean(jax.lax.map(score, part), 0) for name, part in parts.items()}

    values = jax.device_get(jax.jit(lambda keys: jax.lax.map(one, keys))(task_keys(0, 0, tasks)))
    about = {"ways": 5, "tasks": tasks, "draws": draws}
    kinds = ("nll", "accuracy")
    return about | {k: {w: interval(v[:, i]) for i, w in enumerate(kinds)} for k, v in values.items()}


def finished(rows):
    """The rows as they are written: intervals, and paired differences from (a)'s same way of answering."""
    made = []
    for row in sorted(rows, key=lambda row: (row["ways"], LETTERS[row["method"]])):
        base = next(
            r for r in rows
            if r["method"] == "imaml" and (r["ways"], r["answers"]) == (row["ways"], row["answers"])
        )  # fmt: skip
        out = {k: v for k, v in row.items() if k not in ("values", "bins")}
        for what, values in row["values"].items():
            out[what] = interval(np.array(values))
            out[f"{what} less (a)'s"] = interval(np.array(values) - np.array(base["values"][what]))
        out["calibration_error less (a)'s"] = paired(np.array(row["bins"]), np.array(base["bins"]))
        made.append(out)
    return made


def paired(bins, others):
    """The difference of two calibration errors over the same tasks, and its interval by bootstrap."""
    error = lambda sums: np.abs(sums[..., 2] - sums[..., 1]).sum(-1) / sums[..., 0].sum(-1)  # noqa: E731
    count = len(bins)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 200)
    each = [error(np.einsum("st,tbc->sbc", draws, parts)) for parts in (bins, others)]
    both = float(error(bins.sum(0)) - error(others.sum(0)))
    return both, float(1.96 * (each[0] - each[1]).std(ddof=1))


def draw(rows):
    """The learned precision of every leaf, by method, for either number of ways."""
    matplotlib.rcParams.update({"svg.hashsalt": "imaml", "font.size": 9})
    many = sorted({row["ways"] for row in rows})
    figure, panels = plt.subplots(
        len(many), 1, figsize=(9, 3 * len(many)), layout="constrained", squeeze=False
    )
    for panel, ways in zip(panels[:, 0], many, strict=True):
        for row in rows:
            if row["ways"] == ways and row["answers"] == WAYS[0] and row["precisions"]:
                names, values = zip(*row["precisions"].items(), strict=True)
                label = f"({LETTERS[row['method']]}) {row['method']}"
                panel.semilogy(range(len(names)), values, "o-", label=label, lw=0.8)
                panel.set_xticks(range(len(names)), names, rotation=40, ha="right")
        start = [HEAD if name.startswith("head") else BODY for name in names]
        panel.semilogy(range(len(names)), start, ":", color="black", label="at the start, all")
        panel.set(title=f"{ways}-way 1-shot", ylabel="precision of the prior")
        panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(FIGURE, metadata={"Date": None})


def main():
    """Learns, scores, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--ways", type=int, nargs="+", default=[5, 20], choices=[5, 20])
    arguments = parser.parse_args()
    file = KEPT / "rows.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    for ways in arguments.ways:
        for name in LETTERS:
            if not any((row["method"], row["ways"]) == (name, ways) for row in rows):
                rows += rows_of(name, ways, arguments.data)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(rows))
            for row in finished(rows):
                if (row["method"], row["ways"]) == (name, ways):
                    print(
                        ways,
                        name,
                        row["answers"],
                        *(row[k] for k in ("nll", "accuracy", "calibration_error")),
                    )
    result = {"command": "python -m benchmarks.five_ways --data PATH", "machine": describe_machine()}
    result["rows"] = finished(rows)
    result["drawn at the start"] = drawn(arguments.data)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    draw(result["rows"])


if __name__ == "__main__":
    main()
