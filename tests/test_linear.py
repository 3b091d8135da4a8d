"""Linear solvers against NumPy's dense solve: solver x structure x tree shape x dtype, and the hard cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import imaml
from imaml.linear.base import STRUCTURES

SIZE = 12
SHAPES = {
    "vector": lambda: jnp.zeros(SIZE),
    "dict": lambda: {"bias": jnp.zeros(4), "weight": jnp.zeros((2, 4))},
    "nested": lambda: {"body": [{"w": jnp.zeros((2, 3))}, jnp.zeros(())], "head": (jnp.zeros((1, 5)),)},
}
# Converged: a residual of at most 2e-12 and a condition number of at most 40 give 8e-11 at worst; in float32
# it is the default tolerance, eps^(3/4) = 6.4e-6, times 2 times 40.
ERROR = {"float64": 1e-10, "float32": 6e-4}


def told(solver):
    """The solver, told that a half of the identity in A was added to the curvature."""

    def solve(matvec, b, x0=None, *, structure="spd"):
        return solver(matvec, b, x0, structure=structure, anchor=jax.tree.map(lambda _: 0.5, b))

    return solve


SOLVERS = {
    "CG, anchor's diagonal": lambda tight: told(imaml.CG(tolerance=tight, precondition=imaml.Diagonal())),
    "CG, Nystrom": lambda tight: told(imaml.CG(tolerance=tight, precondition=imaml.Nystrom(4))),
    "Nystrom": lambda tight: told(imaml.Nystrom(SIZE)),
    "DampedCG": lambda tight: told(imaml.DampedCG(SIZE)),
    "CG": lambda tight: imaml.CG(tolerance=tight),
    "Neumann": lambda tight: imaml.Neumann(tolerance=tight),
    "GMRES": lambda tight: imaml.GMRES(tolerance=tight),
    "BiCGStab": lambda tight: imaml.BiCGStab(tolerance=tight),
    "MINRES": lambda tight: imaml.MINRES(tolerance=tight),
    "Dense": lambda tight: imaml.Dense(),
}
ACCEPTS = {
    "CG, anchor's diagonal": ("spd",),
    "CG, Nystrom": ("spd",),
    "Nystrom": ("spd",),
    "DampedCG": ("spd",),
    "CG": ("spd",),
    "Neumann": ("spd", "general"),
    "GMRES": STRUCTURES,
    "BiCGStab": STRUCTURES,
    "MINRES": ("spd", "symmetric"),
    "Dense": STRUCTURES,
}
DTYPES = ("float64", "float32")


def table():
    """Iterative ones meet all; the dense oracle one shape a structure, and float32 with the last."""
    for name, accepted in ACCEPTS.items():
        for i, structure in enumerate(accepted):
            own = name != "Dense"
            for dtype in DTYPES if own or structure == accepted[-1] else DTYPES[:1]:
                yield name, structure, dtype, tuple(SHAPES) if own else (list(SHAPES)[i],)


def rotation(seed, size=SIZE):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def symmetric(eigenvalues, seed=0):
    turn = rotation(seed, len(eigenvalues))
    return (turn * np.asarray(eigenvalues)) @ turn.T


def matrix_of(structure):
    """Well conditioned, of each structure; the general one is I minus a contraction, as Neumann needs."""
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


@pytest.mark.parametrize(("name", "structure", "dtype", "shapes"), list(table()))
def test_solves_like_dense(name, structure, dtype, shapes):
    """The answer, its shape, and a residual that is the true one; several shapes share one compilation."""
    matrix, b = matrix_of(structure), vector()
    solver = SOLVERS[name](1e-12 if dtype == "float64" else None)

    @jax.jit
    def solve(matrix, b):
        answers = {}
        for shape in shapes:
            example = jax.tree.map(lambda leaf: leaf.astype(dtype), SHAPES[shape]())
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
        assert solution.status.ok
        true = np.linalg.norm(b - matrix @ found.astype(np.float64)) / np.linalg.norm(b)
        # Both are rounding noise at the end, so they agree to some ulps of 1 only.
        assert abs(float(solution.stats.residual) - true) <= 50 * jnp.finfo(dtype).eps
        assert solution.stats.residual.dtype == dtype


ALL = list(SOLVERS)


def run(solver, matrix, b, structure="spd", x0=None):
    """The Solution for a plain matrix, compiled as one."""
    matrix, b = jnp.asarray(matrix), jnp.asarray(b)
    return jax.jit(lambda m, v: solver(lambda x: m @ x, v, x0, structure=structure))(matrix, b)


def never_nan(solution):
    assert np.isfinite(flat(solution.value)).all()
    assert not np.isnan(float(solution.stats.residual))


@pytest.mark.parametrize("name", ALL)
def test_identity_and_zero(name):
    """A = I is solved (by CG in one step), b = 0 takes no step and has residual 0; one compilation."""
    solver = SOLVERS[name](1e-12)
    b = vector()
    both = jax.jit(lambda b: [solver(lambda x: x, v, structure="spd") for v in (b, 0 * b)])
    identity, zero = both(jnp.asarray(b))
    np.testing.assert_allclose(identity.value, b, rtol=1e-11)  # |r| <= 2e-12 |b|, and A = I
    assert identity.status.ok
    if name == "CG":
        assert int(identity.stats.steps) == 1
        np.testing.assert_array_equal(identity.value, b)
    assert not np.any(zero.value)
    assert float(zero.stats.residual) == 0
    assert zero.status.ok
    if name not in ("Dense", "Nystrom"):
        assert int(zero.stats.steps) == 0


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
TRIES = {
    "CG": imaml.CG(tolerance=1e-12),
    "CG, 8 steps": imaml.CG(steps=8),
    "Neumann": imaml.Neumann(tolerance=1e-12, steps=2_000),
    "GMRES": imaml.GMRES(tolerance=1e-12),
    "BiCGStab": imaml.BiCGStab(tolerance=1e-12),
    "Dense": imaml.Dense(),
}


@pytest.mark.parametrize("solver", TRIES.values(), ids=TRIES)
def test_hard_systems_are_solved_or_say_why_not(solver):
    """Never NaN; where the status says converged, the residual is what it says. One compilation a solver."""
    structure = "spd" if "spd" in solver.accepts and not isinstance(solver, imaml.Dense) else "symmetric"
    matrices = np.stack([matrix for matrix, _ in HARD.values()])
    b = vector()
    solutions = jax.jit(jax.vmap(lambda m: solver(lambda x: m @ x, jnp.asarray(b), structure=structure)))(
        matrices
    )
    assert np.isfinite(solutions.value).all()
    assert not np.isnan(solutions.stats.residual).any()
    for i, name in enumerate(HARD):
        ending = imaml.Ending(int(solutions.status.code[i]))
        with np.errstate(over="ignore"):  # a solver that did not converge may have gone far
            true = np.linalg.norm(b - matrices[i] @ solutions.value[i]) / np.linalg.norm(b)
        if ending == imaml.Ending.CONVERGED:
            assert true <= (1e-3 if isinstance(solver, imaml.Dense) else 1e-11), name
        elif ending == imaml.Ending.STEPS_DONE:
            np.testing.assert_allclose(solutions.stats.residual[i], true, rtol=1e-6, err_msg=name)
        else:
            assert imaml.Status(solutions.status.code[i]).advice
    easy = list(HARD).index("condition_1e3")
    if not isinstance(solver, imaml.Neumann) and getattr(solver, "steps", None) is None:
        # Residual 1e-12 times condition number 1e3.
        expected = np.linalg.solve(matrices[easy], b)
        error = np.linalg.norm(solutions.value[easy] - expected) / np.linalg.norm(expected)
        assert error < 2e-9, imaml.Ending(int(solutions.status.code[easy]))
    if isinstance(solver, imaml.CG):
        assert bool(solutions.stats.negative_curvature[0])
    if isinstance(solver, imaml.Dense):
        assert solutions.stats.negative_curvature.tolist() == [True, False, True, False]
        assert imaml.Ending(int(solutions.status.code[2])) == imaml.Ending.STAGNATED


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
    ("solver", "structure", "advice"),
    [
        (imaml.CG(), "symmetric", "Use MINRES, GMRES, BiCGStab, Dense instead"),
        (imaml.CG(), "general", "Use Neumann, GMRES, BiCGStab, Dense instead"),
        (imaml.Neumann(), "symmetric", "Use MINRES, GMRES, BiCGStab, Dense instead"),
        (imaml.Dense(), "hermitian", "accepted: spd, symmetric, general"),
    ],
)
def test_refuses_other_structures_with_advice(solver, structure, advice):
    with pytest.raises(imaml.StructureError, match=advice):
        solver(lambda x: x, jnp.ones(2), structure=structure)


@pytest.mark.parametrize("make", [imaml.CG, imaml.Neumann, imaml.GMRES, imaml.BiCGStab])
@pytest.mark.parametrize(
    "bad",
    [
        *({"steps": value} for value in (0, -1, 2.5, True)),
        *({"tolerance": value} for value in (0.0, -1e-3, float("nan"), float("inf"), "small", True)),
    ],
    ids=str,
)
def test_recipes_refuse_bad_numbers_when_made(make, bad):
    with pytest.raises(imaml.ConfigError, match=rf"{make.__name__}: {next(iter(bad))}=.*accepted"):
        make(**bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: imaml.Neumann(scale=-1.0), "Neumann: scale=-1.0"),
        (lambda: imaml.GMRES(restart=0), "GMRES: restart=0"),
        (lambda: imaml.CG()(lambda x: x[:2], jnp.ones(3)), "matvec.b. must be shaped like b"),
        (lambda: imaml.CG()(lambda x: x, jnp.ones(3), jnp.ones(2)), "x0 must be shaped like b"),
        (lambda: imaml.CG()(lambda x: x, jnp.ones(3, int)), "floating-point"),
        (lambda: imaml.Dense()(lambda x: x, jnp.ones(20_001)), "up to 20,000"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(imaml.ConfigError, match=message):
        call()


@pytest.mark.parametrize("name", ALL)
def test_nan_is_reported_and_never_returned(name):
    """NaN in b, in the product, and infinity in b: NOT_FINITE, with a finite value. One compilation."""
    solver = SOLVERS[name](1e-12)
    matrix = jnp.asarray(matrix_of("spd"))
    both = jax.jit(jax.vmap(lambda m, b: solver(lambda x: m @ x, b, structure="spd")))
    b = jnp.asarray(vector())
    solutions = both(
        jnp.stack([matrix, matrix.at[2, 3].set(jnp.nan), matrix]),
        jnp.stack([b.at[1].set(jnp.nan), b, b.at[0].set(jnp.inf)]),
    )
    assert np.isfinite(solutions.value).all()
    assert (solutions.status.code == imaml.Ending.NOT_FINITE).all()
    assert np.isposinf(solutions.stats.residual).all()


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


@pytest.mark.parametrize("name", ["CG", "BiCGStab", "GMRES"])
def test_a_first_guess_is_used(name):
    """From the solution itself no step is needed; from elsewhere the answer is the same."""
    matrix, b = matrix_of("spd"), vector()
    exact = np.linalg.solve(matrix, b)
    solver = SOLVERS[name](1e-10)
    solve = jax.jit(jax.vmap(lambda x0: solver(lambda x: matrix @ x, jnp.asarray(b), x0, structure="spd")))
    found = solve(jnp.asarray(np.stack([exact, exact + 1])))
    assert int(found.stats.steps[0]) <= 1
    # Residual 2e-10, condition number 10.
    assert np.linalg.norm(np.asarray(found.value) - exact, axis=1).max() <= 2e-9 * np.linalg.norm(exact)
    assert (found.stats.residual <= 2e-10).all()


def test_squares_do_not_leave_the_range_of_float32():
    """|b|^2 = 1e-60 is zero in float32, and 1e60 infinite; the answer only scales."""
    matrix = jnp.asarray(matrix_of("spd"), "float32")
    scales = np.array([1e-30, 1.0, 1e30])
    right = jnp.asarray(scales[:, None] * vector(), "float32")
    found = jax.jit(jax.vmap(lambda b: imaml.CG()(lambda x: matrix @ x, b)))(right)
    values = np.asarray(found.value, "float64") / scales[:, None]
    # Tolerance 6e-6, condition number 10; some entries are small beside the others.
    np.testing.assert_allclose(values[[0, 2]], values[[1, 1]], rtol=1e-3)
    assert (found.status.code == imaml.Ending.CONVERGED).all()


def test_a_diverging_series_says_so():
    solution = run(imaml.Neumann(steps=20, scale=1.0), matrix_of("spd"), vector())
    assert solution.status.ending == imaml.Ending.BREAKDOWN
    assert float(solution.stats.residual) > 1
    assert "worse than zero" in solution.status.advice


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("dtype", DTYPES)
def test_our_kernels_promote_no_dtype(dtype):
    for solver in (
        imaml.CG(steps=2),
        imaml.CG(tolerance=1e-3),
        imaml.Neumann(steps=2),
        imaml.Neumann(tolerance=1e-3),
        imaml.BiCGStab(tolerance=1e-3),
    ):
        twice = functools.partial(solver, lambda x: 2 * x)
        solution = jax.eval_shape(twice, jnp.ones(3, dtype), jnp.zeros(3, dtype))
        assert solution.value.dtype == solution.stats.residual.dtype == dtype
