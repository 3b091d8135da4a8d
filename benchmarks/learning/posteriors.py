"""How sure adapted networks are of images: log likelihood, calibration, and drawings of no class known.

    python -m benchmarks.posteriors --data PATH [RUN ...]     # -> benchmarks/results/posteriors.json

RUN: runs or artefacts, by default the Omniglot artefact. Their new tasks (Omniglot's test split, inductive)
are answered by the adapted network alone and by Laplace's posterior of it. Strangers are as many query images
of another task, of classes that are not among the task's; the area under the curve (AUROC) is the
probability that a stranger's top probability is below that of an image of the task's classes, within a task.
Intervals: 95 % over tasks; differences are paired. Rows of other runs that are in the file stay there.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.intervals import interval
from benchmarks.machine import describe_machine
from imaml.bayes.laplace import posterior, summed
from imaml.domains.fewshot.episodes import Labelled, confidences, cross_entropy
from imaml.training.evaluation import task_keys

RESULT = Path("benchmarks/results/posteriors.json")
RANK = 80  # of the posterior at most; it is exact where as many outputs were seen
WAYS = ("adapted network", "Laplace", "Laplace of the head")


def inductive(domain):
    """Logits normalised by the batch's reference's statistics, (phi, batch) -> (n, ways)."""
    return lambda phi, batch: domain.logits(phi, batch, True)


def below(strangers, known):
    """The probability that a stranger's number is below a known one's, ties half."""
    less = strangers[:, None] < known[None]
    return jnp.mean(less + 0.5 * (strangers[:, None] == known[None]), where=jnp.isfinite(strangers)[:, None])


def scores(domain, method, theta, key, strangers=True):
    """What one task gives for every way of answering; without strangers their AUROC is left out."""
    indices, other = (domain.draw(k, "test") for k in (key, jax.random.fold_in(key, 1)))
    task, foreign = domain.gather(indices), domain.gather(other)
    phi, _ = method.adapt(theta, task.support, key)
    images, labels = task.query.images, task.query.labels
    if strangers:
        images = jnp.concatenate([images, foreign.query.images])
        labels = jnp.concatenate([labels, jnp.zeros_like(foreign.query.labels)])
    batch = Labelled(images, labels, task.support.images)
    stranger = ~jnp.any(foreign.query.classes[:, None] == indices.classes[None], axis=1)
    problem, prior = summed((method.new_task or method).problem, theta, task.support)
    rank = min(RANK, task.support.labels.shape[0] * (domain.recipe.ways - 1))
    logits = domain.logits(phi, batch, True)
    found = {}
    for name in WAYS:
        if name == "adapted network":
            p = jax.nn.softmax(logits)
        else:
            over = "head" if name.endswith("head") else None
            known = posterior(problem, phi, prior, task.support, form="low-rank", rank=rank, over=over)

            def one(image, known=known):
                row = Labelled(image[None], labels[:1], task.support.images)
                return known.probabilities(row, outputs=inductive(domain))[0]

            p = jax.lax.map(one, images)
        count = task.query.labels.shape[0]
        logs, top = jnp.log(p[:count]), p.max(1)
        found[name] = {
            "nll": cross_entropy(logs, task.query.labels),
            "accuracy": jnp.mean((logs.argmax(1) == task.query.labels).astype(jnp.float32)),
            "confidences": confidences(logs, task.query.labels),
        }
        if strangers:
            found[name]["auroc"] = below(jnp.where(stranger, top[count:], jnp.nan), top[:count])
    return found


def calibration(parts):
    """The expected calibration error, all answers together, and its interval by bootstrap over tasks."""
    error = lambda sums: np.abs(sums[..., 2] - sums[..., 1]).sum(-1) / sums[..., 0].sum(-1)  # noqa: E731
    draws = np.random.default_rng(0).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), 200)
    samples = error(np.einsum("st,tbc->sbc", draws, parts))
    return float(error(parts.sum(0))), float(1.96 * samples.std(ddof=1))


def rows_of(path, data, tasks):
    """The rows of one run."""
    learned = imaml.load(path)
    config = learned.config
    domain = dataclasses.replace(
        config.domain, data=data, limits=(), queries=5 if config.domain.ways == 5 else 2
    )
    method, domain = learned.method, domain.build()
    run = jax.jit(lambda keys: jax.lax.map(lambda key: scores(domain, method, learned.theta, key), keys))
    found = jax.device_get(run(task_keys(0, 0, tasks)))
    rows = []
    for name in WAYS:
        own = found[name]
        row = {"run": config.method.name, "ways": config.domain.ways, "shots": config.domain.shots}
        row |= {"strength": config.method.strength, "learned": config.method.learned, "answers": name}
        row |= {"from": str(path), "tasks": tasks, "calibration_error": calibration(own["confidences"])}
        for what in ("nll", "accuracy", "auroc"):
            row[what] = interval(own[what])
            if name != "adapted network":
                row[f"{what} less the network's"] = interval(own[what] - found["adapted network"][what])
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main():
    """Prints and writes the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", default=["artefacts/omniglot-5w1s.safetensors"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    kept = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    kept = [row for row in kept if row["from"] not in arguments.runs]
    for run in arguments.runs:
        kept += rows_of(run, arguments.data, arguments.tasks)
        command = "python -m benchmarks.posteriors --data PATH RUN ..."
        result = {"command": command, "machine": describe_machine(), "rows": kept}
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
