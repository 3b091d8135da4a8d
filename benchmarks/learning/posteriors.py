"""How sure adapted networks are of images: log likelihood, calibration, and drawings of no class known.

    python -m benchmarks run posteriors --data PATH [RUN ...]

RUN: runs or artefacts, by default the Omniglot artefact. Their new tasks (Omniglot's test split, inductive)
are answered by the adapted network alone and by Laplace's posterior of it. Strangers are as many query images
of another task, of classes that are not among the task's; the area under the curve (AUROC) is the
probability that a stranger's top probability is below that of an image of the task's classes, within a task.
Intervals: 95 % over tasks; differences are paired. Rows of other runs that are in the file stay there.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.harness import benchmark, interval, mapped, say
from imaml.bayes.laplace import summed
from imaml.domains.fewshot.episodes import Labelled, confidences, cross_entropy
from imaml.training.evaluation import task_keys

RANK = 80  # of the posterior at most; it is exact where as many outputs were seen
WAYS = ("adapted network", "Laplace", "Laplace of the head")


def below(strangers, known):
    """The probability that a stranger's number is below a known one's, ties half."""
    less = strangers[:, None] < known[None]
    return jnp.mean(less + 0.5 * (strangers[:, None] == known[None]), where=jnp.isfinite(strangers)[:, None])


def scores(domain, method, theta, key, strangers=True):
    """What one task gives for every way of answering; the AUROC is omitted without other classes' images."""
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
    inductive = lambda phi, batch: domain.logits(phi, batch, True)  # noqa: E731
    found = {}
    for name in WAYS:
        if name == "adapted network":
            p = jax.nn.softmax(inductive(phi, batch))
        else:
            over = "head" if name.endswith("head") else None
            known = imaml.posterior(problem, phi, prior, task.support, form="low-rank", rank=rank, over=over)

            def one(image, known=known):
                row = Labelled(image[None], labels[:1], task.support.images)
                return known.probabilities(row, outputs=inductive)[0]

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


def calibration(parts, others=None):
    """Returns the expected calibration error of all answers, and its interval by bootstrap over tasks.

    With `others`, of the same tasks, it is the difference of the two errors.
    """
    error = lambda sums: np.abs(sums[..., 2] - sums[..., 1]).sum(-1) / sums[..., 0].sum(-1)  # noqa: E731
    draws = np.random.default_rng(0).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), 200)
    samples = lambda parts: error(np.einsum("st,tbc->sbc", draws, parts))  # noqa: E731
    whole, each = error(parts.sum(0)), samples(parts)
    if others is not None:
        whole, each = whole - error(others.sum(0)), each - samples(others)
    return float(whole), float(1.96 * each.std(ddof=1))


def rows_of(path, data, tasks):
    """The rows of one run."""
    learned = imaml.load(path)
    config = learned.config
    queries = 5 if config.domain.ways == 5 else 2
    domain = dataclasses.replace(config.domain, data=data, limits=(), queries=queries).build()
    found = mapped(lambda key: scores(domain, learned.method, learned.theta, key))(task_keys(0, 0, tasks))
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
        say(row)
    return rows


@benchmark("posteriors", quick={"tasks": 2}, positional=("runs",))
def main(run, data, runs=("artefacts/omniglot-5w1s.safetensors",), tasks=1000):
    """Measures each run, and keeps the rows of others that are in the file."""
    rows = [row for row in run.before() if row["from"] not in runs]
    for path in runs:
        rows += rows_of(path, data, tasks)
        run.write(rows)
