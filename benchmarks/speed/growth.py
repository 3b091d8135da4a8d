"""How time and memory of a meta-step of implicit MAML grow, with fitted exponents.

    python -m benchmarks run growth     # also draws docs/figures/growth.svg

Conv4 on drawn characters, one task after another on one thread each. One quantity is varied, the others are
small, so that what does not vary is a small share: exponents are of time, and of XLA's temporary bytes.
Points that are done are kept in runs/growth: the same command resumes.
"""

import functools
from dataclasses import dataclass, replace

import jax
import numpy as np

import imaml
from benchmarks.harness import benchmark, compiled, exponent, figure, in_turn, spread
from imaml.training.cost import count_flops

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


# A system that no direction of is negative, and that takes more steps than these to solve.
LONG = Point(ways=20, shots=3, filters=32, curvature="gauss-newton", strength=1e-6)
FEW = Point(steps=4, cg=2)
SWEEPS = {  # name: the field of a Point that varies, its values, and the other fields
    "tasks": ("tasks", (2, 4, 8, 16, 32), FEW),
    "tasks, all at once": ("tasks", (2, 4, 8, 16), Point(steps=4, cg=2, chunk=None)),
    "inner steps": ("steps", (64, 128, 256, 512, 1024), Point()),
    "CG steps": ("cg", (32, 64, 128, 256), LONG),
    "ways": ("ways", (5, 10, 20, 40), FEW),
    "shots": ("shots", (1, 2, 4, 8), FEW),
    "filters": ("filters", (16, 32, 64, 128), FEW),
}


def measure(point, seconds):
    """Milliseconds (median, least, most), temporary bytes and FLOPs of one meta-step."""
    shape = {"ways": point.ways, "shots": point.shots, "filters": point.filters}
    domain = imaml.characters(**shape, queries=1, normalisation="transductive")
    problem = domain.problem(point.strength, curvature=point.curvature)
    inner, linear = imaml.GradientDescent(0.01, steps=point.steps), imaml.CG(steps=point.cg)
    method = imaml.IMAML(problem, domain.query_loss, inner=inner, linear=linear, chunk=point.chunk)
    theta = domain.init(jax.random.key(0))
    theta["head"]["kernel"] = 0.05 * jax.random.normal(jax.random.key(1), theta["head"]["kernel"].shape)
    keys = jax.random.split(jax.random.key(2), point.tasks)
    tasks = jax.block_until_ready(jax.jit(jax.vmap(lambda key: domain.sample(key, "train")))(keys))
    method = functools.partial(method, estimate=False)  # as most steps of training
    call, size = compiled(method, theta, tasks, jax.random.key(3))
    taken = int(np.min(call()[1].linear_steps))
    assert taken == point.cg, f"conjugate gradients stopped after {taken} of {point.cg} steps"
    return spread(in_turn({"": call}, seconds=seconds)[""]) | {
        "temporary_bytes": size,
        "gflop": count_flops(method, theta, tasks, jax.random.key(3)).flops / 1e9,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(theta)),
    }


def draw(run, result):
    """Draws time and memory, relative to those at the least value."""
    titles = {"ms_min": "time", "temporary_bytes": "temporary memory"}
    with figure(run.place("growth.svg"), 1, 2, font=9, figsize=(9, 3.6)) as (_, panels):
        for panel, (key, title) in zip(panels[0], titles.items(), strict=True):
            for row in result.rows:
                values, figures = np.array(row["values"]), np.array([point[key] for point in row["rows"]])
                panel.loglog(values / values[0], figures / figures[0], "o-", label=row["name"])
            panel.loglog([1, 16], [1, 16], ":", color="black", label="proportional")
            panel.set(title=title, xlabel="times the least value", ylabel="times that at the least value")
        panels[0, 0].legend(fontsize=7)


@benchmark("growth", quick={"sweeps": ["tasks"], "seconds": 0.1}, draw=draw)
def main(run, sweeps=tuple(SWEEPS), seconds=3.0):
    """Measures every sweep; `seconds` of calls for each point."""
    for name in sweeps:
        varied, values, base = SWEEPS[name]
        values = values[: 2 if run.quick else None]
        points = {value: replace(base, **{varied: value}) for value in values}
        each = [run.once(f"{name}-{value}", measure, point, seconds) for value, point in points.items()]
        row = {"name": name, "values": values, "base": vars(base), "rows": each}
        for key in ("ms_min", "temporary_bytes", "gflop"):
            row[f"exponent_{key}"] = exponent(values, [point[key] for point in each])
        run.add(row)
