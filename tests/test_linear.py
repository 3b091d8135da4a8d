"""Linear solvers against NumPy's dense solve: every solver x structure x tree shape x dtype, and the hard cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import imaml
from imaml.linear import STRUCTURES

SIZE = 12
SHAPES = {
    "vector": lambda: jnp.zeros(SIZE),
    "dict": lambda: {"bias": jnp.zeros(4), "weight": jnp.zeros((2, 4))},
    "nested": lambda: {"body": [{"weight": jnp.zeros((2, 3))}, jnp.zeros(())], "head": (jnp.zeros((1, 5)),)},
}
# Converged solvers: a residual below 1e-12 and a condition number of at most 40 give 4e-11 at worst; float32 has
# eps 1.2e-7, and its own default, eps^(3/4) = 6.4e-6, times 40 (twice that, as a residual passes at twice it).
ERROR = {"float64": 1e-10, "float32": 6e-4}
SOLVERS = {
    "CG": lambda tight: imaml.CG(tolerance=tight),
    "Neumann": lambda tight: imaml.Neumann(tolerance=tight),
    "GMRES": lambda tight: imaml.GMRES(tolerance=tight),
    "BiCGStab": lambda tight: imaml.BiCGStab(tolerance=tight),
    "Dense": lambda tight: imaml.Dense(),
}
ACCEPTS = {
    "CG": ("spd",),
    "Neumann": ("spd", "general"),
    "GMRES": STRUCTURES,
    "BiCGStab": STRUCTURES,
    "Dense": STRUCTURES,
}
TABLE = [(name, structure) for name in SOLVERS for structure in ACCEPTS[name]]


def rotation(seed, size=SIZE):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def symmetric(eigenvalues, seed=0):
    turn = rotation(seed, len(eigenvalues))
    return (turn * np.asarray(eigenvalues)) @ turn.T


def matrix_of(structure):
    """A well conditioned matrix of each structure; the general one is I minus a contraction, as Neumann needs."""
    spread = np.linspace(1.0, 10.0, SIZE)
    if structure == "spd":
        return symmetric(spread)
    if structure == "symmetric":
        return symmetric(spread * np.where(np.arange(SIZE) % 3 == 0, -1, 1))
    noise = np.random.default_rng(2).normal(size=(SIZE, SIZE))
    return np.eye(SIZE) - 0.6 * noise / np.linalg.norm(noise, 2)


def vector(seed=1, size=SIZE):
    return np.random.default_rng(seed).normal(size=size)


def product_of(matrix, example):
    unravel = ravel_pytree(example)[1]
    return lambda x: unravel(matrix @ ravel_pytree(x)[0])


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "structure"), TABLE)
def test_solves_like_dense(name, structure, dtype):
    """All three tree shapes in one compilation: the answer, its shape, and a residual that is the true one."""
    matrix, b = matrix_of(structure), vector()
    solver = SOLVERS[name](1e-12 if dtype == "float64" else None)

    @jax.jit
    def solve(matrix, b):
        answers = {}
        for shape, make in SHAPES.items():
            example = jax.tree.map(lambda leaf: leaf.astype(dtype), make())
            right = ravel_pytree(example)[1](b)
            answers[shape] = solver(product_of(matrix, example), right, structure=structure)
        return answers

    for shape, solution in solve(jnp.asarray(matrix, dtype), jnp.asarray(b, dtype)).items():
        example = SHAPES[shape]()
        assert jax.tree.structure(solution.value) == jax.tree.structure(example)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(solution.value))
        expected = np.linalg.solve(matrix, b)
        found = flat(solution.value)
        assert np.linalg.norm(found - expected) <= ERROR[dtype] * np.linalg.norm(expected)
        assert solution.status.ending == imaml.Ending.CONVERGED
        true = np.linalg.norm(b - matrix @ found.astype(np.float64)) / np.linalg.norm(b)
        # Both are rounding noise at the end, so they agree to some ulps of 1 only.
        assert abs(float(solution.stats.residual) - true) <= 50 * jnp.finfo(dtype).eps
        assert solution.stats.residual.dtype == dtype
