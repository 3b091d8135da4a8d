"""Temporary bytes of one compiled meta-step by number of inner steps: IMAML, and MAML by unrolling.

    python -m benchmarks run memory     # also draws docs/figures/memory.svg

The figures are XLA's own memory analysis of the compiled program; nothing is run."""

import functools

import jax
import jax.numpy as jnp

import imaml
from benchmarks.harness import benchmark, compiled, figure

DOMAINS = {
    "MLP 1-40-40-1, 25 tasks": (imaml.sinusoid, 25),
    "Conv4, 5-way 1-shot, 4 tasks": (imaml.characters, 4),
}


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

    def maml(theta, tasks):
        return jax.grad(lambda t: jnp.mean(jax.vmap(one, in_axes=(None, 0))(t, tasks)))(theta)

    implicit = imaml.IMAML(domain.problem(0.5), domain.query_loss, inner=inner, linear=imaml.CG(steps=5))
    programs = {"IMAML": functools.partial(implicit, estimate=False), "unrolled": maml}
    return {name: compiled(program, theta, tasks)[1] for name, program in programs.items()}


def draw(run, result):
    """Draws a panel for each network."""
    steps = result.figures["inner_steps"]
    with figure(run.place("memory.svg"), 1, len(result.rows), figsize=(9, 3.4)) as (_, panels):
        for panel, row in zip(panels[0], result.rows, strict=True):
            for name, marker in (("unrolled", "s--"), ("IMAML", "o-")):
                panel.loglog(steps, [v / 2**20 for v in row["temporary_bytes"][name]], marker, label=name)
            panel.set(title=row["network"], xlabel="inner steps", ylabel="temporary memory [MiB]")
            panel.set_xticks(steps, [str(k) for k in steps], minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        panels[0, 0].legend(frameon=False)


@benchmark("memory", quick={"steps": [1, 2]}, draw=draw)
def main(run, steps=(4, 16, 64, 256, 1024)):
    """Measures each network."""
    for title, (make, count) in DOMAINS.items():
        each = [measure(make(), count, number) for number in steps]
        sizes = {name: [row[name] for row in each] for name in each[0]}
        ratio = sizes["IMAML"][-1] / sizes["IMAML"][0]
        row = {"network": title, "temporary_bytes": sizes, "IMAML_1024_over_4": ratio}
        run.add(row, inner_steps=steps)
