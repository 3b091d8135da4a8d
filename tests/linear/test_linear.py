"""What single linear solvers promise beyond tests/laws/test_linear_solvers.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml

SIZE = 12


def rotation(seed, size=SIZE):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def symmetric(eigenvalues, seed=0):
    turn = rotation(seed, len(eigenvalues))
    return (turn * np.asarray(eigenvalues)) @ turn.T


def vector(seed=1, size=SIZE):
    return np.random.default_rng(seed).normal(size=size)


def run(solver, matrix, b, structure="spd", x0=None):
    """The Solution for a plain matrix, compiled as one."""
    matrix, b = jnp.asarray(matrix), jnp.asarray(b)
    return jax.jit(lambda m, v: solver(lambda x: m @ x, v, x0, structure=structure))(matrix, b)


@pytest.mark.parametrize("steps", [1, 5])
def test_cg_keeps_the_first_iterate_where_it_is_exact(steps):
    """A library's CG that breaks off before storing the converged iterate returned zeros here."""
    solution = run(imaml.CG(steps=steps), np.eye(SIZE), vector())
    np.testing.assert_array_equal(solution.value, vector())
    assert int(solution.stats.steps) == 1
    assert solution.status.ending == imaml.Ending.STEPS_DONE


def reference_cg(matrix, b, steps):
    """Textbook CG in NumPy: iterate, and whether one of the directions taken showed p.Ap <= 0."""
    x, r = np.zeros_like(b), b.copy()
    p, square = r.copy(), r @ r
    for _ in range(steps):
        image = matrix @ p
        if p @ image <= 0:
            return x, True
        length = square / (p @ image)
        x, r = x + length * p, r - length * image
        p, square = r + (r @ r) / square * p, r @ r
    return x, False


def test_cg_and_minres_report_negative_curvature_exactly_when_a_direction_shows_it():
    """200 indefinite systems in one vmap: flags and iterates are those of the textbook algorithm."""
    random = np.random.default_rng(3)
    steps = 4
    spectra = random.uniform(-1.0, 10.0, size=(200, SIZE))
    matrices = np.stack([symmetric(spectrum, seed) for seed, spectrum in enumerate(spectra)])
    right = random.normal(size=(200, SIZE))
    solver = imaml.CG(steps=steps)
    found = jax.jit(jax.vmap(lambda m, b: solver(lambda x: m @ x, b)))(matrices, right)
    expected = [reference_cg(m, b, steps) for m, b in zip(matrices, right, strict=True)]
    seen = np.array([flag for _, flag in expected])
    assert 20 < seen.sum() < 180  # both happen, so the test can fail either way
    np.testing.assert_array_equal(found.stats.negative_curvature, seen)
    np.testing.assert_array_equal(found.status.code == imaml.Ending.NEGATIVE_CURVATURE, seen)
    minres = jax.jit(jax.vmap(lambda m, b: imaml.MINRES(steps=steps)(lambda x: m @ x, b)))(matrices, right)
    np.testing.assert_array_equal(minres.stats.negative_curvature, seen)
    # Four steps lose few digits; nearly zero curvatures amplify rounding, hence not 1e-14.
    scale = np.linalg.norm([x for x, _ in expected], axis=1)
    assert (
        np.max(np.linalg.norm(found.value - np.stack([x for x, _ in expected]), axis=1) / (1 + scale)) < 1e-9
    )


def test_cg_at_negative_curvature_in_the_first_direction_returns_zero_and_says_so():
    solution = run(imaml.CG(steps=5), -np.eye(SIZE), vector())
    assert not np.any(solution.value)
    assert bool(solution.stats.negative_curvature)
    assert int(solution.stats.steps) == 0
    assert solution.status.ending == imaml.Ending.NEGATIVE_CURVATURE
    assert "raise the strength" in solution.status.advice


HARD = {
    "indefinite": (symmetric(np.linspace(-1, 10, SIZE)), "symmetric"),
    "near_singular": (symmetric(np.r_[1e-14, np.linspace(1, 10, SIZE - 1)]), "spd"),
    "singular": (np.diag(np.r_[0.0, np.linspace(1, 10, SIZE - 1)]), "spd"),
    "condition_1e3": (symmetric(np.geomspace(1e-3, 1, SIZE)), "spd"),
}
HARDEST = np.stack([matrix for matrix, _ in HARD.values()])


def test_dense_knows_the_sign_of_the_smallest_eigenvalue_and_what_is_singular():
    b = jnp.asarray(vector())
    found = jax.jit(jax.vmap(lambda m: imaml.Dense()(lambda x: m @ x, b, structure="symmetric")))(HARDEST)
    assert found.stats.negative_curvature.tolist() == [True, False, True, False]
    assert imaml.Ending(int(found.status.code[2])) == imaml.Ending.STAGNATED


@pytest.mark.parametrize(
    "solver", [imaml.CG(tolerance=1e-12), imaml.GMRES(tolerance=1e-12), imaml.BiCGStab(tolerance=1e-12)]
)
def test_a_condition_number_of_a_thousand_is_no_hindrance(solver):
    matrix, b = HARD["condition_1e3"][0], vector()
    expected = np.linalg.solve(matrix, b)
    # Residual 1e-12 times condition number 1e3.
    assert np.linalg.norm(run(solver, matrix, b).value - expected) < 2e-9 * np.linalg.norm(expected)


def test_the_lanczos_coefficients_give_the_ritz_values():
    """T from CG's coefficients (Golub and Van Loan, section 11.3.5) has the eigenvalues of Q^T A Q."""
    steps = 5
    matrix, b = symmetric(np.linspace(0.5, 10, SIZE)), vector()
    alpha, beta = (np.asarray(c) for c in run(imaml.CG(steps=steps), matrix, b).stats.lanczos)
    assert alpha.shape == beta.shape == (steps,)
    diagonal = 1 / alpha + np.r_[0, beta[:-1] / alpha[:-1]]
    off = np.sqrt(beta[:-1]) / alpha[:-1]
    ritz = np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
    krylov = np.stack([np.linalg.matrix_power(matrix, k) @ b for k in range(steps)], axis=1)
    basis = np.linalg.qr(krylov / np.linalg.norm(krylov, axis=0))[0]
    # The reference basis of powers has a condition number of about 1e4: 1e-16 * 1e4.
    np.testing.assert_allclose(ritz, np.linalg.eigvalsh(basis.T @ matrix @ basis), rtol=1e-10)


def test_lanczos_coefficients_of_steps_not_taken_are_zero():
    alpha, beta = run(imaml.CG(steps=6), np.diag([1.0, 2.0] * 6), vector()).stats.lanczos
    assert np.all(alpha[:2] > 0)  # two eigenvalues: two steps
    assert not np.any(alpha[3:])
    assert not np.any(beta[3:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: imaml.Neumann(scale=-1.0), "scale: expected .*, got -1.0"),
        (lambda: imaml.GMRES(restart=0), "GMRES: restart: expected"),
        (lambda: imaml.Dense()(lambda x: x, jnp.ones(20_001)), "expected up to 20,000 unknowns"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(imaml.ConfigError, match=message):
        call()


def test_vmap_over_fast_and_slow_systems_equals_a_loop(optimised):
    """A system of 3 distinct eigenvalues (3 steps) beside one that needs 300: neither disturbs the other."""
    size = 400
    slow = np.geomspace(1e-4, 1, size)
    fast = np.array([1.0, 2.0, 3.0])[np.arange(size) % 3]
    diagonals, b = jnp.asarray(np.stack([fast, slow])), jnp.ones(size)
    solve = lambda d: imaml.CG(steps=2_000, tolerance=1e-10)(lambda x: d * x, b)  # noqa: E731
    together = jax.jit(jax.vmap(solve))(diagonals)
    apart = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[jax.jit(solve)(d) for d in diagonals])
    assert int(together.stats.steps[0]) == 3
    assert int(together.stats.steps[1]) >= 300
    # Sums are ordered otherwise in a batch, which over hundreds of steps shifts the slow one's last digits.
    np.testing.assert_allclose(together.value[0], apart.value[0], rtol=1e-13)
    np.testing.assert_allclose(together.value[1], apart.value[1], rtol=1e-6)
    assert (together.status.code == imaml.Ending.CONVERGED).all()
    assert abs(int(together.stats.steps[1]) - int(apart.stats.steps[1])) <= 3


def test_a_diverging_series_says_so():
    solution = run(imaml.Neumann(steps=20, scale=1.0), symmetric(np.linspace(1.0, 10.0, SIZE)), vector())
    assert solution.status.ending == imaml.Ending.BREAKDOWN
    assert float(solution.stats.residual) > 1
    assert "worse than zero" in solution.status.advice
