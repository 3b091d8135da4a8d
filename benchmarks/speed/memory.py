"""Temporary bytes of one compiled meta-step by number of inner steps: IMAML, and MAML by unrolling.

    python -m benchmarks run memory     # also draws docs/figures/memory.svg

The figures are XLA's own memory analysis of the compiled program; nothing is run."""

import functools

import jax
import jax.numpy as jnp

import imaml
from benchmarks.harness import benchmark, figure, say

DOMAINS = {
    "MLP 1-40-40-1, 25 tasks": (imaml.sinusoid, 25),
    "Conv4, 5-way 1-shot, 4 tasks": (imaml.characters, 4),
}


def bytes_of(method, theta, tasks):
    """Returns temporary bytes of the compiled function."""
    compiled = jax.jit(functools.partial(method, estimate=False)).lower(theta, tasks).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def measure(domain, count, steps):
    """Returns bytes of both methods at a number of inner steps."""
    inner = imaml.GradientDescent(0.1, steps=steps)
    plain = imaml.plain(getattr(domain, "loss", lambda p, b: domain.query_loss(p, None, b)))
    theta = jax.eval_shape(domain.init, jax.random.key(0))
    sample = jax.vmap(lambda key: domain.sample(key, "train"))
    tasks = jax.eval_shape(sample, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count)))

    def one(theta, task):
        phi = imaml.solve(plain, theta, task.support, inner=inner, rule=imaml.unrolled())
        return domain.query_loss(phi, theta, task.query)

    def maml(theta, tasks, estimate):
        return jax.grad(lambda t: jnp.mean(jax.vmap(one, in_axes=(None, 0))(t, tasks)))(theta)

    implicit = imaml.IMAML(domain.problem(0.5), domain.query_loss, inner=inner, linear=imaml.CG(steps=5))
    return {"IMAML": bytes_of(implicit, theta, tasks), "unrolled": bytes_of(maml, theta, tasks)}


@benchmark("memory", quick={"steps": [1, 2]})
def main(run, steps=(4, 16, 64, 256, 1024)):
    """Measures and draws, a panel a network."""
    rows = []
    for title, (make, count) in DOMAINS.items():
        each = [measure(make(), count, number) for number in steps]
        rows.append(
            {"network": title, "temporary_bytes": {name: [row[name] for row in each] for name in each[0]}}
        )
        rows[-1]["IMAML_1024_over_4"] = each[-1]["IMAML"] / each[0]["IMAML"]
        say(rows[-1])
    run.write(rows, inner_steps=steps)
    with figure(run.place("memory.svg"), 1, len(rows), figsize=(9, 3.4)) as (_, panels):
        for panel, row in zip(panels[0], rows, strict=True):
            for name, marker in (("unrolled", "s--"), ("IMAML", "o-")):
                panel.loglog(steps, [v / 2**20 for v in row["temporary_bytes"][name]], marker, label=name)
            panel.set(title=row["network"], xlabel="inner steps", ylabel="temporary memory [MiB]")
            panel.set_xticks(steps, [str(k) for k in steps], minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        panels[0, 0].legend(frameon=False)
