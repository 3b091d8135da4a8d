"""Temporary bytes of one compiled meta-step by number of inner steps: IMAML, and MAML by unrolling.

    python -m benchmarks.memory     # writes benchmarks/results/memory.json and docs/figures/memory.svg

The figures are XLA's own memory analysis of the compiled program; nothing is run."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt

import imaml
from benchmarks.machine import describe_machine

ROOT = Path(__file__).parent.parent
STEPS = (4, 16, 64, 256, 1024)
DOMAINS = {
    "MLP 1-40-40-1, 25 tasks": (imaml.sinusoid, 25),
    "Conv4, 5-way 1-shot, 4 tasks": (imaml.characters, 4),
}


def bytes_of(method: Any, theta: Any, tasks: Any) -> int:
    """Temporary bytes of the compiled function."""
    return (
        jax.jit(functools.partial(method, estimate=False))
        .lower(theta, tasks)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )


def measure(domain: Any, count: int, steps: int) -> dict[str, int]:
    """Bytes of both methods at a number of inner steps."""
    inner = imaml.GradientDescent(0.1, steps=steps)
    anchored = domain.problem(0.5)
    plain = imaml.plain(
        domain.loss if hasattr(domain, "loss") else lambda p, b: domain.query_loss(p, None, b)
    )
    theta = jax.eval_shape(domain.init, jax.random.key(0))
    sample = jax.vmap(lambda key: domain.sample(key, "train"))
    tasks = jax.eval_shape(sample, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count)))

    def one(theta: Any, task: Any) -> jax.Array:
        phi = imaml.solve(plain, theta, task.support, inner=inner, rule=imaml.unrolled())
        return domain.query_loss(phi, theta, task.query)

    def maml(theta: Any, tasks: Any) -> Any:
        return jax.grad(lambda t: jnp.mean(jax.vmap(one, in_axes=(None, 0))(t, tasks)))(theta)

    imaml_step = imaml.IMAML(anchored, domain.query_loss, inner=inner, linear=imaml.CG(steps=5))
    return {"IMAML": bytes_of(imaml_step, theta, tasks), "unrolled": bytes_of(maml, theta, tasks)}


def draw(figures: dict[str, dict[str, list[int]]]) -> None:
    """The figure, a panel a network."""
    matplotlib.rcParams.update({"svg.hashsalt": "imaml", "font.size": 10})
    figure, panels = plt.subplots(1, len(figures), figsize=(9, 3.4), layout="constrained")
    for panel, (title, curves) in zip(panels, figures.items(), strict=True):
        for name, marker in (("unrolled", "s--"), ("IMAML", "o-")):
            panel.loglog(STEPS, [value / 2**20 for value in curves[name]], marker, label=name)
        panel.set(title=title, xlabel="inner steps", ylabel="temporary memory [MiB]")
        panel.set_xticks(STEPS, [str(k) for k in STEPS], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    path = ROOT / "docs" / "figures" / "memory.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Prints and writes the table."""
    figures: dict[str, dict[str, list[int]]] = {}
    for title, (make, count) in DOMAINS.items():
        domain = make()
        rows = [measure(domain, count, steps) for steps in STEPS]
        figures[title] = {name: [row[name] for row in rows] for name in rows[0]}
        print(title, figures[title])
    ratios = {title: curves["IMAML"][-1] / curves["IMAML"][0] for title, curves in figures.items()}
    draw(figures)
    whole = {
        "command": "python -m benchmarks.memory",
        "machine": describe_machine(),
        "inner_steps": STEPS,
        "temporary_bytes": figures,
        "IMAML_1024_over_4": ratios,
    }
    (ROOT / "benchmarks" / "results" / "memory.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
