"""What the derivative of a plan costs: time against the horizon, and against differentiating the iterations.

    python -m benchmarks run trajectory

A pendulum is swung up with limited torque (the plant of `imaml.plants("pendulum")`, its physics known), and
the sum of the plan's controls is differentiated in mass, length and friction: `through`, by one Riccati sweep
at the plan; `iterated`, through all iterations of iterative LQR, less the time of the iterations themselves.
Against the horizon, many plants at once, so that what a call costs at any horizon is a small share; against
the iterations, one plant. In float64, in which plans of all horizons converge. Memory is XLA's temporary
bytes. Each time is the median of measured calls, in one process, in turn.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import imaml
from benchmarks.harness import benchmark, compiled, exponent, in_turn, say

HORIZONS = (50, 100, 200, 400, 800)
ITERATIONS = (10, 20, 40, 80)
AT = 200
PLANTS = 64  # at once, each of its own physics, where the horizon varies
PHYSICS = np.array([1.0, 1.0, 0.1])


def plant(steps):
    """The pendulum's iterative LQR with so many iterations at most."""
    return dataclasses.replace(imaml.plants("pendulum").true, steps=steps, tolerance=1e-5)


def given(horizon):
    """Where a plan of that horizon begins, and the controls it begins with."""
    return jnp.array([np.pi, 0.0]), 0.5 * jnp.sin(jnp.arange(horizon) * 0.2)[:, None]


def milliseconds(functions, seconds):
    """Returns median, least and most of each, called in turn."""
    times = in_turn(functions, seconds=seconds)
    return {name: [float(f(t)) for f in (np.median, np.min, np.max)] for name, t in times.items()}


def sweep(horizon, plants):
    """The compiled derivative at plans of so many plants, a sweep each; bytes; and how the plans ended."""
    here, (start, guess) = plant(400), given(horizon)
    physics = PHYSICS * (1 + 0.05 * jax.random.normal(jax.random.key(0), (plants, 3)))
    plans = jax.jit(jax.vmap(lambda p: here(p, start, guess)))(physics)
    slope = jax.vmap(jax.grad(lambda p, plan: jnp.sum(here.through(p, start, plan))))
    return *compiled(slope, physics, plans.value), plans


@benchmark("trajectory", quick={"horizons": [10, 20], "iterations": [2], "seconds": 0.1}, double=True)
def main(run, horizons=HORIZONS, iterations=ITERATIONS, seconds=3.0):
    """Measures against the horizon, and against the iterations."""
    calls, rows = {}, []
    for horizon in horizons:
        calls[horizon], size, plans = sweep(horizon, PLANTS)
        row = {"horizon": horizon, "plants": PLANTS, "iterations": float(np.mean(plans.stats.steps))}
        converged = float(np.mean(plans.status.code == int(imaml.Ending.CONVERGED)))
        rows.append(row | {"temporary_bytes": size, "converged": converged})
    for row, measured in zip(rows, milliseconds(calls, seconds).values(), strict=True):
        row["milliseconds"] = measured
        say(row)
    growth = exponent(horizons, [row["milliseconds"][0] for row in rows])
    (start, guess), (one, _, _) = given(AT), sweep(AT, 1)
    against = []
    for count in iterations:
        here, calls, sizes = plant(count), {"sweep": one}, {}
        plans = {
            "iterations": lambda p, here=here: here.iterated(p, start, guess),
            "through iterations": jax.grad(lambda p, here=here: jnp.sum(here.iterated(p, start, guess))),
            "solve and sweep": jax.grad(lambda p, here=here: jnp.sum(here.controls(p, start, guess))),
        }
        for name, function in plans.items():
            calls[name], sizes[name] = compiled(function, PHYSICS)
        times = milliseconds(calls, seconds)
        derivative = times["through iterations"][0] - times["iterations"][0]
        row = {"iterations": count, "milliseconds": times, "temporary_bytes": sizes["through iterations"]}
        row["ours_temporary_bytes"] = sizes["solve and sweep"]
        row["times_as_long"] = derivative / times["sweep"][0]
        against.append(row)
        say(row)
    run.write(rows, exponent=growth, **{f"at horizon {AT}": against})
