"""An inner algorithm of one's own: lines through readings with outliers, by reweighted least squares.

Each task is a sensor, y = w . (1, x) + noise, and one reading in five is nonsense. A Cauchy loss looks past
those; iteratively reweighted least squares minimises it. JAX needs no derivative of that loop, nor does the
meta-gradient: it comes from the solution alone, by one linear solve.
"""

import jax
import jax.numpy as jnp
import optax

import imaml

SCALE, STRENGTH = 0.1, 0.3


def loss(weights, rows):
    """The Cauchy loss of a line, for 5 readings or 50."""
    x, y = rows
    return 0.5 * SCALE**2 * jnp.mean(jnp.log1p(((x @ weights - y) / SCALE) ** 2))


def reweighted(problem, theta, rows, weights):
    """Solves the weighted least squares problem, weighs readings by how near they are, and so on."""
    x, y = rows

    def again(_, weights):
        trust = 1 / (1 + ((x @ weights - y) / SCALE) ** 2) / len(y)
        matrix = x.T @ (trust[:, None] * x) + STRENGTH * jnp.eye(x.shape[1])
        return jnp.linalg.solve(matrix, x.T @ (trust * y) + STRENGTH * theta)

    return jax.lax.fori_loop(0, 300, again, weights)


def sensor(key):
    """Five readings to learn from and fifty to be judged by; all sensors are alike, none the same."""
    who, where, noise, wrong, nonsense = jax.random.split(key, 5)
    weights = jnp.array([2.0, -1.0]) + 0.2 * jax.random.normal(who, (2,))
    x = jnp.stack([jnp.ones(55), jax.random.uniform(where, (55,), minval=-2, maxval=2)], 1)
    y = x @ weights + 0.05 * jax.random.normal(noise, (55,))
    bad = jax.random.uniform(wrong, (55,)) < 0.2
    y = jnp.where(bad, 5 * jax.random.normal(nonsense, (55,)), y)
    return imaml.Task((x[:5], y[:5]), (x[5:], y[5:]))


method = imaml.IMAML(
    imaml.proximal(loss, STRENGTH),
    lambda phi, theta, rows: loss(phi, rows),
    inner=imaml.Custom(reweighted, tolerance=1e-4),
    linear=imaml.Dense(),
)
theta, optimiser = jnp.zeros(2), optax.adam(0.05)
state, step = optimiser.init(theta), jax.jit(method)
for i in range(200):
    gradient, known = step(theta, jax.vmap(sensor)(jax.random.split(jax.random.key(i), 64)))
    updates, state = optimiser.update(gradient, state)
    theta = theta + updates
print("theta", theta.round(2), "of a family around [2, -1]; inner solves:", known.inner_status)
