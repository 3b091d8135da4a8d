"""How time and memory of a meta-step of implicit MAML grow, with fitted exponents.

    python -m benchmarks.growth     # writes benchmarks/results/growth.json and docs/figures/growth.svg

Conv4 on drawn characters, one task after another on one thread each. One quantity is varied, the others are
small, so that what does not vary is a small share: exponents are of time, and of XLA's temporary bytes.
Sweeps that are done are kept in runs/growth.json: the same command goes on with those that are not.
"""

import functools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

import imaml
from benchmarks.machine import describe_machine
from imaml.training.cost import count_flops

ROOT = Path(__file__).parents[1]
SECONDS = 3.0  # of measured calls a point
STRENGTH = 20.0  # so strong that every direction is positive and CG takes all of its steps


@dataclass(frozen=True)
class Point:
    """What a meta-step is made of."""

    tasks: int = 2
    ways: int = 5
    shots: int = 1
    steps: int = 1
    cg: int = 1
    filters: int = 64
    chunk: int | None = 1
    curvature: str = "hessian"
    strength: float = STRENGTH


@dataclass(frozen=True)
class Sweep:
    """Values of one quantity of a Point, and the others."""

    name: str
    values: tuple[int, ...]
    base: Point = field(default_factory=Point)

    def points(self):
        """The Points, by value."""
        return {value: Point(**{**vars(self.base), self.name: value}) for value in self.values}


# A system that no direction of is negative, and that takes more steps than these to solve.
LONG = Point(ways=20, shots=3, filters=32, curvature="gauss-newton", strength=1e-6)
SWEEPS = {
    "tasks": Sweep("tasks", (2, 4, 8, 16, 32), Point(steps=4, cg=2)),
    "tasks, all at once": Sweep("tasks", (2, 4, 8, 16), Point(steps=4, cg=2, chunk=None)),
    "inner steps": Sweep("steps", (64, 128, 256, 512, 1024)),
    "CG steps": Sweep("cg", (32, 64, 128, 256), LONG),
    "ways": Sweep("ways", (5, 10, 20, 40), Point(steps=4, cg=2)),
    "shots": Sweep("shots", (1, 2, 4, 8), Point(steps=4, cg=2)),
    "filters": Sweep("filters", (16, 32, 64, 128), Point(steps=4, cg=2)),
}


def measure(point):
    """Milliseconds (median, least, most), temporary bytes and FLOPs of one meta-step."""
    domain = imaml.characters(
        ways=point.ways, shots=point.shots, queries=1, normalisation="transductive", filters=point.filters
    )
    method = imaml.IMAML(
        domain.problem(point.strength, curvature=point.curvature),
        domain.query_loss,
        inner=imaml.GradientDescent(0.01, steps=point.steps),
        linear=imaml.CG(steps=point.cg),
        chunk=point.chunk,
    )
    theta = domain.init(jax.random.key(0))
    theta["head"]["kernel"] = 0.05 * jax.random.normal(jax.random.key(1), theta["head"]["kernel"].shape)
    keys = jax.random.split(jax.random.key(2), point.tasks)
    tasks = jax.block_until_ready(jax.jit(jax.vmap(lambda key: domain.sample(key, "train")))(keys))
    method = functools.partial(method, estimate=False)  # as most steps of training
    compiled = jax.jit(method).lower(theta, tasks, jax.random.key(3)).compile()
    call = lambda: jax.block_until_ready(compiled(theta, tasks, jax.random.key(3)))  # noqa: E731
    _, metrics = call()
    taken = int(np.min(metrics.linear_steps))
    assert taken == point.cg, f"conjugate gradients stopped after {taken} of {point.cg} steps"
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return {
        "ms_median": float(np.median(times)),
        "ms_min": min(times),
        "ms_max": max(times),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "gflop": count_flops(method, theta, tasks, jax.random.key(3)).flops / 1e9,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(theta)),
    }


def exponent(values, figures):
    """The slope of a line through the logarithms."""
    return float(np.polyfit(np.log(values), np.log(figures), 1)[0])


def draw(sweeps, path):
    """Time and memory against each quantity, relative to the least."""
    matplotlib.rcParams.update({"svg.hashsalt": "imaml", "font.size": 9})
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for panel, key, title in zip(
        panels, ("ms_min", "temporary_bytes"), ("time", "temporary memory"), strict=True
    ):
        for sweep in sweeps:
            values = np.array(sweep["values"])
            figures = np.array([row[key] for row in sweep["rows"]])
            panel.loglog(values / values[0], figures / figures[0], "o-", label=sweep["name"])
        panel.loglog([1, 16], [1, 16], ":", color="black", label="proportional")
        panel.set(title=title, xlabel="times the least value", ylabel="times that at the least value")
    panels[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main():
    """Measures every sweep, and writes figures and exponents."""
    machine, kept = describe_machine(), ROOT / "runs" / "growth.json"
    made = json.loads(kept.read_text()) if kept.exists() else []
    for name, sweep in SWEEPS.items():
        if any(entry["name"] == name and entry["values"] == list(sweep.values) for entry in made):
            continue
        rows = [measure(point) for point in sweep.points().values()]
        entry = {"name": name, "values": list(sweep.values), "base": vars(sweep.base), "rows": rows}
        for key in ("ms_min", "temporary_bytes", "gflop"):
            entry[f"exponent_{key}"] = exponent(sweep.values, [row[key] for row in rows])
        made.append(entry)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(made))
        print(
            f"{name:<20} time {entry['exponent_ms_min']:.3f}, FLOPs {entry['exponent_gflop']:.3f}, "
            f"memory {entry['exponent_temporary_bytes']:.3f}",
            flush=True,
        )
    made = [next(e for e in reversed(made) if e["name"] == name) for name in SWEEPS]
    result = {"command": "python -m benchmarks.growth", "machine": machine, "sweeps": made}
    (ROOT / "benchmarks" / "results" / "growth.json").write_text(json.dumps(result, indent=2) + "\n")
    draw(made, ROOT / "docs" / "figures" / "growth.svg")


if __name__ == "__main__":
    main()
