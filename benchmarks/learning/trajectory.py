"""What the derivative of a plan costs: time against the horizon, and against differentiating the iterations.

    python -m benchmarks.trajectory     # writes benchmarks/results/trajectory.json

A pendulum is swung up with limited torque (the plant of `imaml.plants("pendulum")`, its physics known), and
the sum of the plan's controls is differentiated in mass, length and friction: `through`, by one Riccati sweep
at the plan; `iterated`, through all iterations of iterative LQR, less the time of the iterations themselves.
Against the horizon, many plants at once, so that what a call costs at any horizon is a small share; against
the iterations, one plant. In float64, in which plans of all horizons converge. Memory is XLA's temporary
bytes. Each time is the median of measured calls, in one process, in turn.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.machine import describe_machine

RESULT = Path(__file__).parents[1] / "benchmarks/results/trajectory.json"
HORIZONS = (50, 100, 200, 400, 800)
ITERATIONS = (10, 20, 40, 80)
AT = 200
SECONDS = 3.0
PLANTS = 64  # at once, each of its own physics, where the horizon varies
jax.config.update("jax_enable_x64", True)
PHYSICS = jnp.array([1.0, 1.0, 0.1])


def plant(steps):
    """The pendulum's iterative LQR with so many iterations at most."""
    return dataclasses.replace(imaml.plants("pendulum").true, steps=steps, tolerance=1e-5)


def given(horizon):
    """Where a plan of that horizon begins, and the controls it begins with."""
    return jnp.array([np.pi, 0.0]), 0.5 * jnp.sin(jnp.arange(horizon) * 0.2)[:, None]


def compiled(function, *arguments):
    """A compiled function, and its temporary bytes."""
    made = jax.jit(function).lower(*arguments).compile()
    return made, made.memory_analysis().temp_size_in_bytes


def milliseconds(functions):
    """Median, least and most of each, called in turn."""
    for call in functions.values():
        jax.block_until_ready(call())
    times = {name: [] for name in functions}
    end = time.perf_counter() + SECONDS * len(functions)
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for name, call in functions.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: [float(f(t)) for f in (np.median, np.min, np.max)] for name, t in times.items()}


def sweep(horizon, plants):
    """The compiled derivative at plans of so many plants, a sweep each; bytes; and how the plans ended."""
    here, (start, guess) = plant(400), given(horizon)
    physics = PHYSICS * (1 + 0.05 * jax.random.normal(jax.random.key(0), (plants, 3)))
    plans = jax.jit(jax.vmap(lambda p: here(p, start, guess)))(physics)
    slope = jax.vmap(jax.grad(lambda p, plan: jnp.sum(here.through(p, start, plan))))
    run, size = compiled(slope, physics, plans.value)
    return (lambda: run(physics, plans.value)), size, plans


def main():
    """Measures, prints and writes."""
    calls, rows = {}, []
    for horizon in HORIZONS:
        calls[horizon], size, plans = sweep(horizon, PLANTS)
        row = {"horizon": horizon, "plants": PLANTS, "iterations": float(np.mean(plans.stats.steps))}
        converged = float(np.mean(plans.status.code == int(imaml.Ending.CONVERGED)))
        rows.append(row | {"temporary_bytes": size, "converged": converged})
    for row, measured in zip(rows, milliseconds(calls).values(), strict=True):
        row["milliseconds"] = measured
        print(json.dumps(row), flush=True)
    exponent = float(np.polyfit(np.log(HORIZONS), np.log([row["milliseconds"][0] for row in rows]), 1)[0])
    (start, guess), (one, _, _) = given(AT), sweep(AT, 1)
    against = []
    for count in ITERATIONS:
        here = plant(count)
        alone, _ = compiled(lambda p, here=here: here.iterated(p, start, guess), PHYSICS)
        unrolled, size = compiled(
            jax.grad(lambda p, here=here: jnp.sum(here.iterated(p, start, guess))), PHYSICS
        )
        ours, own = compiled(jax.grad(lambda p, here=here: jnp.sum(here.controls(p, start, guess))), PHYSICS)
        functions = {"iterations": alone, "through iterations": unrolled, "solve and sweep": ours}
        times = milliseconds(
            {name: (lambda call=call: call(PHYSICS)) for name, call in functions.items()} | {"sweep": one}
        )
        derivative = times["through iterations"][0] - times["iterations"][0]
        row = {
            "iterations": count,
            "milliseconds": times,
            "temporary_bytes": size,
            "ours_temporary_bytes": own,
        }
        against.append(row | {"times_as_long": derivative / times["sweep"][0]})
        print(json.dumps(against[-1]), flush=True)
    result = {
        "command": "python -m benchmarks.trajectory",
        "machine": describe_machine(),
        "exponent": exponent,
    }
    RESULT.write_text(json.dumps(result | {"horizons": rows, f"at horizon {AT}": against}, indent=1) + "\n")
    print("exponent of time against horizon", round(exponent, 3))


if __name__ == "__main__":
    main()
