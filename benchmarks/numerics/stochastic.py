"""Does a stochastic inner loop reach a given delta sooner? Solvers of one task, side by side.

    python -m benchmarks run stochastic          # also draws docs/figures/stochastic.svg

Ridge regression with 20 features, strength 1, support sets of 5 to 5,000 rows, condition numbers of the inner
problem from 1.5 to 10,000; solution and meta-gradient in closed form, float64. For every solver the learning
rate is the best of a grid for each figure (an oracle's choice for all of them alike; Newton-CG has none).
Counted are gradients of single rows (a Hessian-vector product as one, an evaluation of the loss as a half)
until first |phi - phi*| <= delta |theta - phi*|, and until first the meta-gradient (with an exact linear
solve at phi) is right to 1 %, looked at once per pass over the rows, of minibatch solvers after every tenth
of one if they can; the median over SEEDS tasks. Then the library's own solver is run for that many steps, and
timed.
"""

import itertools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import imaml
from benchmarks.harness import benchmark, compiled, figure, in_turn, say

STOCHASTIC = ("SGD", "SGD with decay", "SVRG")
FEATURES, BATCH, SEEDS = 20, 5, 3
SIZES, CONDITIONS = (5, 50, 500, 5000), (1.5, 10, 100, 1000, 10_000)
DELTAS = (0.3, 0.1, 0.01, 1e-4)
PASSES = 3000  # at most, over the rows
PROBLEM = imaml.proximal(lambda phi, rows: 0.5 * jnp.mean((rows[0] @ phi - rows[1]) ** 2), 1.0, convex=True)


def drawn(rows, condition, seed):
    """One task: rows, theta, and what is exact of it; the largest curvature is `condition`."""
    random = np.random.default_rng([rows, int(condition), seed])
    scale = np.geomspace(0.05, 1, FEATURES)
    inputs = random.normal(size=(2, max(rows, 50), FEATURES)) * scale
    support, query = inputs[0][:rows], inputs[1][:50]
    support = support * np.sqrt((condition - 1) / np.linalg.norm(support.T @ support / rows, 2))
    weights, theta = random.normal(size=(2, FEATURES))
    targets = support @ weights + 0.3 * random.normal(size=rows)
    hessian = support.T @ support / rows + np.eye(FEATURES)
    inverse = np.linalg.inv(hessian)
    star = inverse @ (support.T @ targets / rows + theta)
    query_hessian = query.T @ query / 50
    meta = lambda phi: inverse @ (query_hessian @ (phi - weights))  # noqa: E731
    task = {"rows": (support, targets), "theta": theta, "star": star, "meta": inverse @ query_hessian}
    return jax.tree.map(jnp.asarray, task) | {"error": np.linalg.norm(meta(star))}


def whole_gradients(transform):
    """Whole gradients through an Optax transform: (task) -> errors after 1, 2, ..., passes."""

    def run(task):
        support, targets = task["rows"]
        hessian = support.T @ support / targets.size + jnp.eye(FEATURES)
        right = support.T @ targets / targets.size + task["theta"]

        def step(state, _):
            phi, memory = state
            change, memory = transform.update(hessian @ phi - right, memory, phi)
            return (phi + change, memory), phi + change

        _, path = lax.scan(step, (task["theta"], transform.init(task["theta"])), length=PASSES)
        return measured(task, path)

    return run


def measured(task, path):
    """Relative distance to the solution, and relative error of the meta-gradient, along a path of phi."""
    off = path - task["star"]
    start = jnp.linalg.norm(task["theta"] - task["star"])
    return jnp.linalg.norm(off, axis=1) / start, jnp.linalg.norm(off @ task["meta"].T, axis=1) / task["error"]


def minibatch(rate, decay, reduced):
    """SGD or SVRG as the library has them, looked at after parts of a pass."""

    def run(task):
        support, targets = task["rows"]
        size = targets.size
        batch, key = min(BATCH, size), jax.random.key(0)
        length = size // batch
        slope = lambda phi, x, y: x.T @ (x @ phi - y) / y.size + phi - task["theta"]  # noqa: E731

        def epoch(phi, number):
            order = jax.random.permutation(jax.random.fold_in(key, number), size)[: length * batch]
            x, y = support[order].reshape(length, batch, -1), targets[order].reshape(length, batch)
            whole, snapshot = slope(phi, support, targets), phi

            def step(phi, part):
                x, y, count = part
                change = slope(phi, x, y)
                if reduced:
                    change = change - slope(snapshot, x, y) + whole
                phi = phi - rate / (1 + decay * count) * change
                return phi, phi

            phi, path = lax.scan(step, phi, (x, y, number * length + jnp.arange(length)))
            kept = max(1, length // 10)
            return phi, path[kept - 1 :: kept][: length // kept]

        passes = PASSES // 3 if reduced else PASSES
        passes = min(passes, max(60, 600_000 // length))
        _, path = lax.scan(epoch, task["theta"], jnp.arange(passes))
        return measured(task, path.reshape(-1, FEATURES))

    return run


def rates(condition):
    """Learning rates to choose among, about 1 / the largest curvature."""
    return [float(f"{f / condition:.3g}") for f in (0.03, 0.1, 0.3, 0.6, 1.0, 1.8)]


def nesterov(rate):
    """The library's Nesterov momentum at a rate, with the momentum that strength 1 asks for."""
    root = math.sqrt(max(1 / rate, 1))
    return optax.sgd(rate, momentum=(root - 1) / (root + 1), nesterov=True)


def whole(transform, solver, grid=rates):
    """A solver of whole gradients: rates, run at a rate, gradients of rows a look, the library's solver."""
    return grid, lambda r: whole_gradients(transform(r)), lambda n: n, lambda r, points, n: solver(r, points)


def parts(solver, decays=False, reduced=False):
    """A solver of minibatches, likewise."""
    make = lambda r: minibatch(r, r / 2 if decays else 0.0, reduced)  # noqa: E731
    price = lambda n: (3 if reduced else 1) * part_of(n) * min(BATCH, n)  # noqa: E731
    more = lambda r: {"decay": r / 2} if decays else {}  # noqa: E731
    build = lambda r, points, n: solver(r, min(BATCH, n), epochs=epochs_of(points, n), **more(r))  # noqa: E731
    return rates, make, price, build


def part_of(rows):
    """Minibatches between two looks."""
    return max(1, rows // min(BATCH, rows) // 10)


def epochs_of(points, rows):
    """Passes that so many points of a minibatch solver's path took, rounded up."""
    return math.ceil(points * part_of(rows) / (rows // min(BATCH, rows)))


def newton_cg(steps):
    """Newton-CG of so many steps."""
    return imaml.NewtonCG(steps=steps, linear=imaml.CG(steps=FEATURES, tolerance=1e-8))


def newton(task):
    """Newton-CG, as `whole_gradients`, after each of a few steps."""
    path = [newton_cg(steps)(PROBLEM, task["theta"], task["rows"]).value for steps in range(1, 6)]
    return measured(task, jnp.stack(path))


SOLVERS = {
    "gradient descent": whole(optax.sgd, lambda r, points: imaml.GradientDescent(r, steps=points)),
    "Nesterov": whole(nesterov, lambda r, points: imaml.Descent(nesterov(r), steps=points)),
    "Adam": whole(
        optax.adam,
        lambda r, points: imaml.Descent(optax.adam(r), steps=points),
        lambda condition: [0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
    ),
    "SGD": parts(imaml.SGD),
    "SGD with decay": parts(imaml.SGD, decays=True),
    "SVRG": parts(imaml.SVRG, reduced=True),
    "Newton-CG": (
        lambda condition: [None],
        lambda rate: newton,
        # A gradient, at most FEATURES products, and two evaluations of the loss a step.
        lambda n: n * (1 + min(FEATURES, n + 1) + 1),
        lambda rate, points, n: newton_cg(points),
    ),
}


def timed(solver, task):
    """Returns median seconds of the library's compiled solver."""
    call, _ = compiled(lambda theta, rows: solver(PROBLEM, theta, rows).value, task["theta"], task["rows"])
    return 1e-3 * statistics.median(in_turn({"": call})[""])


def first_below(values, threshold):
    """The number of the first point at or below a threshold from which on, or None."""
    below = np.flatnonzero(np.asarray(values) <= threshold)
    return int(below[0]) + 1 if below.size else None


def cell(rows, condition):
    """All solvers on the tasks of one size and condition number."""
    tasks = [drawn(rows, condition, seed) for seed in range(SEEDS)]
    goals = {f"delta {delta:g}": (0, delta) for delta in DELTAS} | {"meta-gradient to 1 %": (1, 0.01)}
    found = []
    for name, (grid, make, price, library) in SOLVERS.items():
        best = {}
        for rate in grid(condition):
            run = jax.jit(make(rate))
            paths = [run(task) for task in tasks]
            for goal, (which, threshold) in goals.items():
                points = [first_below(path[which], threshold) for path in paths]
                if all(points):
                    middle = statistics.median(points)
                    if goal not in best or middle < best[goal][0]:
                        best[goal] = (middle, rate)
        for goal in goals:
            row = {"rows": rows, "condition": condition, "solver": name, "goal": goal, "gradients": None}
            if goal in best:
                points, rate = best[goal]
                gradients = price(rows) * points
                row |= {"gradients": gradients, "passes": gradients / rows}
                row |= {"rate": rate} if rate else {}
                row["seconds"] = timed(library(rate, int(points), rows), tasks[0])
            found.append(row)
    return found


def draw(run, result):
    """Draws passes over the rows until a coarse delta, a fine one, and a right meta-gradient."""
    table = result.rows
    goals, sizes = ("delta 0.3", "delta 0.01", "meta-gradient to 1 %"), (50, 5000)
    style = {"figsize": (11, 6.4), "sharex": True, "sharey": "row"}
    with figure(run.place("stochastic.svg"), len(sizes), len(goals), **style) as (_, panels):
        for (i, size), (j, goal) in itertools.product(enumerate(sizes), enumerate(goals)):
            for name in dict.fromkeys(row["solver"] for row in table):
                here = [r for r in table if (r["rows"], r["solver"], r["goal"]) == (size, name, goal)]
                found = [(r["condition"], r["passes"]) for r in here if r["gradients"]]
                style = "--" if name in STOCHASTIC else "-"
                panels[i, j].loglog(*np.reshape(found, (-1, 2)).T, style, marker=".", label=name)
            panels[i, j].grid(alpha=0.3)
            panels[i, j].set_title(f"{goal}, {size:,} rows", fontsize=10)
            panels[-1, j].set_xlabel("condition number")
            panels[i, 0].set_ylabel("passes over the rows")
        panels[0, 0].legend(frameon=False, fontsize=7)


@benchmark("stochastic", quick={"sizes": (5,), "conditions": (10.0,)}, double=True, draw=draw)
def main(run, sizes=SIZES, conditions=CONDITIONS):
    """Measures all solvers for each size and condition number."""
    table = []
    for rows, condition in itertools.product(sizes, conditions):
        new = run.once(f"{rows}-{condition:g}", cell, rows, condition)
        table += new
        for row in new:
            if row["goal"] in ("delta 0.1", "meta-gradient to 1 %"):
                say(row)
        run.write(table, seeds=SEEDS, minibatch=BATCH, passes_at_most=PASSES)
