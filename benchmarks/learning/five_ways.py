"""Five ways to learn theta and its precision, (a) to (e) of docs/bayes.md, on Omniglot, from one start.

    python -m benchmarks run five_ways --data PATH [--ways 5 20]

All begin at the body of the committed artefact with a head of zeros (its own head knows nothing before it is
adapted, but says so with large logits, which a stronger prior would keep), with one precision for the body
and one for the head, and learn for the same number of steps (fewer for (e) at 20 ways, see `steps_of`). Each
but (d), which cannot, learns a precision for every kernel, bias and scale. New tasks (test split, inductive)
are answered by the adapted network alone, by Laplace's posterior of it, and by that of the head. Differences
from (a) are paired by task, 95 % intervals. The picture of what precisions were learned is
docs/figures/precisions.svg. What is done is kept in runs/five_ways: the same command resumes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.harness import benchmark, figure, interval, mapped, say, trained
from benchmarks.learning.posteriors import WAYS, calibration, scores
from imaml.config.method import Bayes, NewTask
from imaml.config.methods import Method
from imaml.domains.fewshot.episodes import Labelled, cross_entropy
from imaml.training.evaluation import task_keys

START = "artefacts/omniglot-5w1s.safetensors"
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
    bayes = {"form": {"moments": "low-rank", "posterior": "rows"}.get(name, "dense")}
    if name == "evidence":
        bayes["determinant"] = imaml.Quadrature(steps=8, probes=2)
    method = Method(
        name,
        strength=HEAD * rows / ways,
        learned=None if name == "reptile" else "leaf",
        inner=imaml.ProximalGradient(RATE / learns_from, steps=24),
        new_task=NewTask(imaml.ProximalGradient(RATE / rows, steps=24)),
        linear=imaml.CG(steps=5),
        curvature="hessian" if name == "reptile" else "gauss-newton",
        chunk=1,
        bayes=Bayes(**bayes) if summed else Bayes(),
    )
    if name == "moments":  # a tenth of the step of the mean, as tasks are few; the whole of the precision's
        return method, imaml.Optimiser("sgd", 0.1, log_scale=10.0)
    return method, imaml.Optimiser("adam", 2e-3, clip=1.0, log_scale=50.0)  # precisions have decades to go


def prepared(ways, data):
    """The domain, and the theta that all start from."""
    learned = imaml.load(START)
    changes = {"ways": ways, "queries": QUERIES[ways], "data": data, "limits": ()}
    domain = dataclasses.replace(learned.config.domain, **changes).build()
    start = dict(learned.theta)
    start["head"] = jax.tree.map(jnp.zeros_like, domain.init(jax.random.key(0))["head"])
    return domain, start


def steps_of(name, ways):
    """How many steps are learned for; (e)'s at 20 ways, with 400 rows a task, take half a minute each."""
    return 24 if (name, ways) == ("posterior", 20) else STEPS[ways]


def strengths_of(mean, times):
    """The precisions that all start with, times a number, one for every leaf."""
    precision = lambda path, _: times * (HEAD if path[0].key == "head" else BODY)  # noqa: E731
    return jax.tree_util.tree_map_with_path(precision, mean)


def learned_by(run, name, ways, data):
    """The domain, the method, and what was learned, by a run that is kept."""
    domain, start = prepared(ways, data)
    method, optimiser = recipe(name, ways)
    built = method.build(domain)
    strengths = strengths_of(start, method.strength / HEAD)
    if name == "reptile":
        problem = domain.problem(strengths)
        built = dataclasses.replace(built, problem=problem, new_task=built.new_task._replace(problem=problem))
    else:
        start = imaml.Theta(start, jax.tree.map(jnp.log, strengths))
    options = {"steps": 2 if run.quick else steps_of(name, ways), "tasks": TASKS[ways], "start": start}
    out = run.kept / f"{ways}w" / name
    return domain, built, *trained(domain, built, optimiser, out=out, checkpoint_every=50, **options)


def precisions(name, theta, ways):
    """The prior's precision of every leaf, of the summed loss, by name; {} where none was learned."""
    if not isinstance(theta, imaml.Theta):
        return {}
    times = 1 if LETTERS[name] in "bce" else ways
    leaves = jax.tree_util.tree_flatten_with_path(theta.log_strength)[0]
    return {"/".join(str(key.key) for key in path): times * float(np.exp(leaf)) for path, leaf in leaves}


def rows_of(run, name, ways, data):
    """Returns the rows of one method: each way of answering."""
    domain, built, theta, seconds = learned_by(run, name, ways, data)
    tasks = 3 if run.quick else SCORED[ways]
    found = mapped(lambda key: scores(domain, built, theta, key, False))(task_keys(0, 0, tasks))
    about = {"method": name, "ways": ways, "tasks": tasks, "steps": steps_of(name, ways), "seconds": seconds}
    about["precisions"] = precisions(name, theta, ways)
    rows = []
    for answer in WAYS:
        own = found[answer]
        rows.append(about | {"answers": answer, "calibration_error": calibration(own["confidences"])})
        rows[-1] |= {"values": {k: own[k] for k in ("nll", "accuracy")}, "bins": own["confidences"]}
    return rows


def drawn(data, tasks=50, draws=8):
    """Of 5-way tasks at the start: what the network says at draws from the posterior that (e) learns through.

    Log loss and accuracy of the adapted network, and their means over draws of all parameters, of the head
    alone, and of the body alone.
    """
    domain, mean = prepared(5, data)
    built = recipe("posterior", 5)[0].build(domain)
    theta = imaml.Theta(mean, jax.tree.map(jnp.log, strengths_of(mean, 1.0)))

    def one(key):
        task = domain.sample(key, "test")
        phi, _ = built.adapt(theta, task.support, key)
        found = imaml.posterior(built.problem, phi, theta, task.support, form="rows").sample(key, draws)
        still = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (draws, *leaf.shape)), phi)
        batch = Labelled(task.query.images, task.query.labels, task.support.images)

        def score(phi):
            logits = domain.logits(phi, batch, True)
            right = jnp.mean((logits.argmax(1) == task.query.labels).astype(jnp.float32))
            return jnp.stack([cross_entropy(logits, task.query.labels), right])

        parts = {"none": still, "all": found, "head": still | {"head": found["head"]}}
        parts["body"] = found | {"head": still["head"]}
        return {name: jnp.mean(jax.lax.map(score, part), 0) for name, part in parts.items()}

    values = mapped(one)(task_keys(0, 0, tasks))
    about = {"ways": 5, "tasks": tasks, "draws": draws}
    kinds = ("nll", "accuracy")
    return about | {k: {w: interval(v[:, i]) for i, w in enumerate(kinds)} for k, v in values.items()}


def finished(rows):
    """The rows as they are written: intervals, and paired differences from (a)'s same way of answering."""
    made = []
    for row in sorted(rows, key=lambda row: (row["ways"], LETTERS[row["method"]])):
        same = [r for r in rows if (r["ways"], r["answers"]) == (row["ways"], row["answers"])]
        (base,) = (r for r in same if r["method"] == "imaml")
        out = {k: v for k, v in row.items() if k not in ("values", "bins")}
        for what, values in row["values"].items():
            out[what] = interval(np.array(values))
            out[f"{what} less (a)'s"] = interval(np.array(values) - np.array(base["values"][what]))
        out["calibration_error less (a)'s"] = calibration(np.array(row["bins"]), np.array(base["bins"]))
        made.append(out)
    return made


def draw(run, result):
    """Draws the learned precision of every leaf, by method, for either number of ways."""
    rows = result.rows
    many = sorted({row["ways"] for row in rows})
    with figure(run.place("precisions.svg"), len(many), font=9, figsize=(9, 3 * len(many))) as (_, panels):
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


@benchmark("five_ways", quick={"ways": [5]}, draw=draw)
def main(run, data, ways=(5, 20)):
    """Learns and scores with each method."""
    rows = []
    for count in ways:
        for name in LETTERS:
            rows += run.once(f"{count}-{name}", rows_of, run, name, count, data)
            say({"ways": count, "method": name})
    run.write(finished(rows), **{"drawn at the start": drawn(data, 2 if run.quick else 50)})
