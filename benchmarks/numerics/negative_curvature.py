"""How often conjugate gradients see the negative curvature that a dense Hessian has.

    python -m benchmarks run negative_curvature

480 inner problems of small networks (97 parameters): two activations, four numbers of inner steps, strengths
from 0.003 to 1 (log-uniform), weights and data drawn anew for each. At the phi that the inner steps reach,
the system A = H + strength I is made dense and its smallest eigenvalue taken; then CG runs on it, with the
query gradient as the right-hand side, in float64. CG limited to k steps sees what one of its first k
directions shows.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import imaml
from benchmarks.harness import benchmark

ROWS = 10
INNER_STEPS = (1, 4, 16, 64)
LIMITS = (3, 5, 10, 20)


def measure(activation: str, steps: int, seed: int, count: int) -> dict[str, np.ndarray]:
    """For `count` problems: strength, smallest and largest eigenvalue, and the step at which CG saw it."""
    network = imaml.MLP((1, 8, 8, 1), activation)
    loss = lambda phi, batch: 0.5 * jnp.mean((network.forward(phi, batch[0])[0] - batch[1]) ** 2)  # noqa: E731
    problem = imaml.proximal(loss, 1.0)
    inner = imaml.GradientDescent(0.1, steps=steps)
    size = ravel_pytree(network.init(jax.random.key(0)))[0].size

    def one(key: jax.Array, strength: jax.Array) -> dict[str, jax.Array]:
        weights, amplitude, phase, points = jax.random.split(key, 4)
        theta = jax.tree.map(lambda leaf: leaf.astype("float64"), network.init(weights))
        inputs = jax.random.uniform(points, (2, ROWS, 1), minval=-5.0, maxval=5.0)
        height = jax.random.uniform(amplitude, minval=0.1, maxval=5.0)
        shift = jax.random.uniform(phase, maxval=jnp.pi)
        support, query = ((x, height * jnp.sin(x - shift)) for x in inputs)
        here = dataclasses.replace(problem, strength=strength)
        phi = inner(here, theta, support).value
        flat, unravel = ravel_pytree(phi)
        residual = lambda p: ravel_pytree(here.residual(unravel(p), theta, support))[0]  # noqa: E731
        eigenvalues = jnp.linalg.eigvalsh(jax.jacfwd(residual)(flat))
        right = ravel_pytree(jax.grad(loss)(phi, query))[0]
        stats = imaml.CG(steps=size)(jax.linearize(residual, flat)[1], right).stats
        seen_at = jnp.where(stats.negative_curvature, stats.steps, size)
        finite = jnp.isfinite(flat).all()
        return {"smallest": eigenvalues[0], "largest": eigenvalues[-1], "seen_at": seen_at, "finite": finite}

    strengths = np.exp(np.random.default_rng(seed).uniform(np.log(3e-3), 0, count))
    keys = jax.random.split(jax.random.key(seed), count)
    found = jax.jit(jax.vmap(one))(keys, jnp.asarray(strengths))
    return jax.tree.map(np.asarray, found) | {"strength": strengths, "size": np.full(count, size)}


def rates(problems: dict[str, np.ndarray]) -> dict:
    """Of the problems with a negative eigenvalue, the share in which CG with k steps sees it."""
    indefinite = problems["smallest"] < 0
    seen = problems["seen_at"][indefinite]
    limits = {str(k): k for k in LIMITS} | {"n": problems["size"][0]}
    row = {"problems": len(indefinite), "indefinite": indefinite.sum()}
    row["seen_by_cg_steps"] = {k: np.mean(seen < m) for k, m in limits.items()} if len(seen) else None
    return row | {"false_alarms": np.sum(problems["seen_at"][~indefinite] < limits["n"])}


@benchmark("negative_curvature", quick={"each": 4}, double=True)
def main(run, each=60):
    """Measures `each` problems of each group."""
    groups = {
        (activation, steps): measure(activation, steps, 10 * i + j, each)
        for i, activation in enumerate(("tanh", "relu"))
        for j, steps in enumerate(INNER_STEPS)
    }
    whole = {key: np.concatenate([group[key] for group in groups.values()]) for key in groups["tanh", 1]}
    assert whole["finite"].all()
    add = functools.partial(run.add, n=whole["size"][0])
    add({"group": "all", **rates(whole)})
    ratio = -whole["smallest"] / whole["largest"]
    figures = (
        ("by_strength", whole["strength"], (0.003, 0.03, 0.3, 1), ""),
        ("by_size_of_the_negative_eigenvalue", ratio, (0, 1e-3, 1e-2, 1e9), " of the largest"),
    )
    for by, figure, ends, of in figures:
        for low, high in itertools.pairwise(ends):
            chosen = {key: value[(figure >= low) & (figure < high)] for key, value in whole.items()}
            add({"by": by, "group": f"{low:g} to {high:g}{of}", **rates(chosen)})
    for (name, steps), group in groups.items():
        run.add(
            {"by": "by_group", "group": f"{name}, {steps} inner steps", **rates(group)}, n=whole["size"][0]
        )
