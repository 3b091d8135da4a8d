"""How well the default preset's meta-gradients point the way: their cosine with exact directions.

    python -m benchmarks run direction

The preset `characters-5w1s` adapts by eight gradient steps, and solves its linear system by three products.
The implicit formula is not exact there, as eight steps do not reach the solution. What training wants is the
gradient of the query loss after those eight steps; differentiating through every step (`unrolled`) gives it
exactly. Each row compares the preset's meta-gradient of one training step with it, on the same tasks, and
with the first-order one, which leaves the inner steps' derivative out.
"""

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.harness import ROOT, benchmark, prepared, trained
from imaml.core import tree
from imaml.domains.base import sample_many

ARTEFACT = ROOT / "artefacts/characters-5w1s.safetensors"


def cosine(left, right):
    """Return the cosine of the angle between two trees as vectors."""
    return tree.dot(left, right) / (tree.norm(left) * tree.norm(right))


@benchmark("direction", devices=True, quick={"batches": 2, "early": 2})
def main(run, batches=16, early=120):
    """Measure the cosines at the start, after ``early`` steps, and after training."""
    config, domain, mesh = prepared("characters-5w1s")
    method = config.method.build(domain).on(mesh)
    rules = {"exact": imaml.unrolled(), "first_order": imaml.first_order()}
    others = {
        name: imaml.MetaGradient(method.problem, method.query_loss, rule=rule, inner=method.inner).on(mesh)
        for name, rule in rules.items()
    }
    count = config.training.tasks
    thetas = {
        "at the start": method.init(domain, jax.random.key(config.training.seed)),
        f"after {early} steps": trained(domain, method, config.optimiser, steps=early, tasks=count)[0],
        "after training": imaml.load(ARTEFACT).theta,
    }

    @jax.jit
    def cosines(theta, key):
        tasks = sample_many(domain, key, "train", count, lambda keys: keys)
        found = method(theta, tasks)[0]
        exact, first = (other(theta, tasks)[0] for other in others.values())
        return jnp.stack([cosine(found, exact), cosine(first, exact)])

    for when, theta in thetas.items():
        values = np.array([cosines(theta, jax.random.key(seed)) for seed in range(batches)])
        row = {"theta": when, "tasks": count, "batches": batches}
        for name, each in zip(("imaml", "first_order"), values.T, strict=True):
            row |= {f"{name}_median": np.median(each), f"{name}_least": each.min()}
        run.add(row)
