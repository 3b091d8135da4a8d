"""The implicit meta-gradient against central differences of problems that are solved anew."""

import jax
import jax.numpy as jnp
import numpy as np

import imaml


def in_double(tree):
    """The tree with its float32 leaves as float64."""
    return jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, tree)


def check_meta_gradient(problem, query_loss, theta, task, inner, linear):
    """Along one random way, to 1e-5, at an inner solution to 1e-10."""
    rule = imaml.implicit(linear)

    @jax.jit
    def outer(theta):
        solved = imaml.solve(problem, theta, task.support, inner=inner, rule=rule)
        return query_loss(solved, theta, task.query), problem.residual(solved, theta, task.support)

    gradient, residual = jax.jit(jax.grad(outer, has_aux=True))(theta)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(residual)) < 1e-10
    way = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), theta)
    moved = lambda size: outer(jax.tree.map(lambda t, w: t + size * w, theta, way))[0]  # noqa: E731
    along = sum(jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (gradient, way)), strict=True))
    assert abs(along) > 1e-3
    np.testing.assert_allclose(along, (moved(1e-5) - moved(-1e-5)) / 2e-5, rtol=1e-5)
