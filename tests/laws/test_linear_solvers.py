"""What holds for every registered linear solver, against NumPy's dense solve.

A new solver is tested by being registered with `@recipe("linear")`. One that has neither a tolerance nor
steps nor a rank needs a row in `EXACT`: the arguments that make it solve a system of `SIZE` unknowns.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import imaml
import imaml.linear
from imaml.core.recipes import fresh, from_json, kinds_of, register_all, to_json
from imaml.linear.base import STRUCTURES

register_all(imaml.linear)
SIZE = 12
SHAPES = {
    "vector": lambda: jnp.zeros(SIZE),
    "dict": lambda: {"bias": jnp.zeros(4), "weight": jnp.zeros((2, 4))},
    "nested": lambda: {"body": [{"w": jnp.zeros((2, 3))}, jnp.zeros(())], "head": (jnp.zeros((1, 5)),)},
}
DTYPES = ("float64", "float32")
# A residual of at most 2e-12 and a condition number of at most 40 give 8e-11 at worst. In float32 it is the
# default tolerance, eps^(3/4) = 6.4e-6, times 2 times 40.
ERROR = {"float64": 1e-10, "float32": 6e-4}
EXACT: dict[str, dict] = {}


def exact(kind, tolerance):
    """A solver that solves systems of `SIZE` unknowns, to a tolerance where it has one."""
    known = {field.name for field in dataclasses.fields(kind)}
    for name, value in (("tolerance", tolerance), ("steps", SIZE), ("rank", SIZE)):
        if name in known:
            return kind(**{name: value})
    return kind(**EXACT.get(kind.__name__, {}))


def cases():
    """Every registered solver, and conjugate gradients with either preconditioner."""
    for name, kind in sorted(kinds_of("linear").items()):
        yield name, lambda tolerance, kind=kind: exact(kind, tolerance)
    for extra in (imaml.Diagonal(), imaml.Nystrom(4)):
        yield (
            f"CG, {type(extra).__name__}",
            lambda tolerance, extra=extra: imaml.CG(tolerance=tolerance, precondition=extra),
        )


CASES = dict(cases())
EVERY = pytest.mark.parametrize("name", CASES)
KINDS = pytest.mark.parametrize("kind", kinds_of("linear").values(), ids=kinds_of("linear"))


def solve(solver, matvec, b, x0=None, *, structure="spd"):
    """A solve; a solver that uses the anchor is told that it is a half of the identity in A.

    One that multiplies by the inverse is given that of the dense matrix.
    """
    given = {"anchor": jax.tree.map(lambda _: 0.5, b)} if solver.uses_anchor else {}
    if solver.uses_inverse:
        flat, unravel = ravel_pytree(b)
        product = lambda x: ravel_pytree(matvec(unravel(x)))[0]  # noqa: E731
        matrix = jax.vmap(product, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
        given["inverse"] = lambda r: unravel(jnp.linalg.solve(matrix, ravel_pytree(r)[0]))
    return solver(matvec, b, x0, structure=structure, **given)


def symmetric(eigenvalues):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0]
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


B = np.random.default_rng(1).normal(size=SIZE)


def product_of(matrix, example):
    unravel = ravel_pytree(example)[1]
    return lambda x: unravel(matrix @ ravel_pytree(x)[0])


def table():
    """Every solver on every structure that it accepts, in float64; and the last one in float32."""
    for name, make in CASES.items():
        accepted = make(None).accepts
        for structure in accepted:
            for dtype in DTYPES if structure == accepted[-1] else DTYPES[:1]:
                yield name, structure, dtype


@pytest.mark.parametrize(("name", "structure", "dtype"), list(table()))
def test_it_solves_like_a_dense_solver(name, structure, dtype):
    """The answer, its shape, and a residual that is the true one; the shapes share one compilation."""
    matrix = matrix_of(structure)
    solver = CASES[name](1e-12 if dtype == "float64" else None)
    shapes = SHAPES if dtype == "float64" else ("nested",)

    @jax.jit
    def answers(matrix, b):
        found = {}
        for shape in shapes:
            example = jax.tree.map(lambda leaf: leaf.astype(dtype), SHAPES[shape]())
            right = ravel_pytree(example)[1](b)
            found[shape] = solve(solver, product_of(matrix, example), right, structure=structure)
        return found

    for shape, solution in answers(jnp.asarray(matrix, dtype), jnp.asarray(B, dtype)).items():
        assert jax.tree.structure(solution.value) == jax.tree.structure(SHAPES[shape]())
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(solution.value))
        expected = np.linalg.solve(matrix, B)
        found = np.asarray(ravel_pytree(solution.value)[0])
        assert np.linalg.norm(found - expected) <= ERROR[dtype] * np.linalg.norm(expected)
        assert solution.status.ok
        true = np.linalg.norm(B - matrix @ found.astype(np.float64)) / np.linalg.norm(B)
        # Both are rounding noise at the end, so they agree to some ulps of 1 only.
        assert abs(float(solution.stats.residual) - true) <= 50 * jnp.finfo(dtype).eps
        assert solution.stats.residual.dtype == dtype


@EVERY
def test_identity_and_zero(name):
    """A = I is solved; b = 0 has the answer 0 with residual 0."""
    solver = CASES[name](1e-12)
    both = jax.jit(lambda b: [solve(solver, lambda x: x, v) for v in (b, 0 * b)])
    identity, zero = both(jnp.asarray(B))
    np.testing.assert_allclose(identity.value, B, rtol=1e-11)  # |r| <= 2e-12 |b|, and A = I
    assert identity.status.ok
    assert not np.any(zero.value)
    assert float(zero.stats.residual) == 0
    assert zero.status.ok
    if hasattr(solver, "steps"):
        assert int(zero.stats.steps) == 0


@EVERY
def test_what_is_not_finite_is_reported_and_never_returned(name):
    """NaN in b, in the product, and infinity in b: NOT_FINITE, with a finite value. One compilation."""
    solver = CASES[name](1e-12)
    matrix, b = jnp.asarray(matrix_of("spd")), jnp.asarray(B)
    solutions = jax.jit(jax.vmap(lambda m, b: solve(solver, lambda x: m @ x, b)))(
        jnp.stack([matrix, matrix.at[2, 3].set(jnp.nan), matrix]),
        jnp.stack([b.at[1].set(jnp.nan), b, b.at[0].set(jnp.inf)]),
    )
    assert np.isfinite(solutions.value).all()
    assert (solutions.status.code == imaml.Ending.NOT_FINITE).all()
    assert np.isposinf(solutions.stats.residual).all()


@EVERY
def test_a_batch_equals_its_tasks_alone_whatever_their_size(name):
    """|b| from 1e-30 to 1e30 in float32, so that squares are out of range; answers and steps agree."""
    solver = CASES[name](None)
    matrices = np.stack([np.eye(SIZE), matrix_of("spd"), symmetric(np.geomspace(1, 10, SIZE))])
    rights = np.array([1e-30, 1.0, 1e30])[:, None] * B
    one = jax.jit(lambda m, b: solve(solver, lambda x: m @ x, b))
    given = jnp.asarray(matrices, "float32"), jnp.asarray(rights, "float32")
    together = jax.jit(jax.vmap(one))(*given)
    assert together.status.ok.all()
    for i in range(3):
        alone = one(given[0][i], given[1][i])
        size = np.linalg.norm(np.asarray(alone.value, float))
        assert np.linalg.norm(np.asarray(together.value[i], float) - alone.value) <= ERROR["float32"] * size
        assert abs(int(together.stats.steps[i]) - int(alone.stats.steps)) <= 1


@EVERY
def test_a_first_guess_is_used_or_raises(name):
    """From the solution itself an iteration takes at most one step; from elsewhere the answer is the same."""
    matrix = jnp.asarray(matrix_of("spd"))
    answer = np.linalg.solve(matrix, B)
    solver = CASES[name](1e-10)
    run = jax.jit(jax.vmap(lambda x0: solve(solver, lambda x: matrix @ x, jnp.asarray(B), x0)))
    guesses = jnp.asarray(np.stack([answer, answer + 1]))
    if not solver.takes_guess:
        with pytest.raises(imaml.ConfigError, match="omit x0"):
            run(guesses)
        return
    found = run(guesses)
    if hasattr(solver, "tolerance"):
        assert int(found.stats.steps[0]) <= 1
    # Residual 2e-10, condition number 10.
    assert np.linalg.norm(np.asarray(found.value) - answer, axis=1).max() <= 2e-9 * np.linalg.norm(answer)
    assert (found.stats.residual <= 2e-10).all()


@EVERY
def test_a_system_that_is_hard_is_solved_or_the_status_says_why_not(name):
    """Indefinite, nearly singular and singular: never NaN, and CONVERGED only where the residual is small."""
    solver = CASES[name](1e-10)
    if hasattr(solver, "tolerance"):
        solver = dataclasses.replace(solver, steps=500)
    hard = np.stack(
        [
            symmetric(np.linspace(-1, 10, SIZE)),
            symmetric(np.r_[1e-14, np.linspace(1, 10, SIZE - 1)]),
            np.diag(np.r_[0.0, np.linspace(1, 10, SIZE - 1)]),
        ]
    )
    found = jax.jit(jax.vmap(lambda m: solve(solver, lambda x: m @ x, jnp.asarray(B))))(hard)
    assert np.isfinite(found.value).all()
    assert not np.isnan(found.stats.residual).any()
    limit = 1e-3 if not hasattr(solver, "tolerance") else 2e-10
    for i, matrix in enumerate(hard):
        ending = imaml.Ending(int(found.status.code[i]))
        with np.errstate(over="ignore"):  # a solver that did not converge may have gone far
            true = np.linalg.norm(B - matrix @ found.value[i]) / np.linalg.norm(B)
        if ending == imaml.Ending.CONVERGED:
            assert true <= 1.1 * limit
        if ending == imaml.Ending.STEPS_DONE:
            np.testing.assert_allclose(found.stats.residual[i], true, rtol=1e-6, atol=1e-12)


@KINDS
def test_it_declares_what_it_accepts_and_refuses_the_rest_with_advice(kind):
    solver = fresh(kind)
    assert set(solver.accepts) <= set(STRUCTURES)
    assert solver.structure in solver.accepts
    assert isinstance(solver.factorises, bool)
    for structure in set(STRUCTURES) - set(solver.accepts):
        able = [name for name, other in kinds_of("linear").items() if structure in other.accepts]
        with pytest.raises(imaml.StructureError, match=rf"got '{structure}'\. Hint: use ") as raised:
            solver(lambda x: x, jnp.ones(2), structure=structure)
        assert all(name in str(raised.value) for name in able)
    with pytest.raises(imaml.StructureError, match="got 'hermitian'"):
        solver(lambda x: x, jnp.ones(2), structure="hermitian")


BAD = {
    "steps": (0, -1, 2.5, True),
    "tolerance": (0.0, -1e-3, float("nan"), float("inf"), "small", True),
}


@KINDS
def test_bad_limits_raise_when_the_recipe_is_made(kind):
    for field in {field.name for field in dataclasses.fields(kind)} & set(BAD):
        for value in BAD[field]:
            with pytest.raises(imaml.ConfigError, match=rf"{kind.__name__}: .*{field}\b"):
                kind(**{field: value})


# Systems on which the first step of many methods does not exist, and the direct answer of each.
HARD = {
    "minus the identity": (-np.eye(2), "symmetric"),
    "opposite eigenvalues": (np.diag([1.0, -1.0]), "symmetric"),
    "a quarter turn": (np.array([[0.0, -1.0], [1.0, 0.0]]), "general"),
}


@KINDS
@pytest.mark.parametrize("hard", HARD)
def test_steps_that_could_not_be_taken_are_not_reported_as_done(kind, hard):
    """With a fixed number of steps: either they were taken, or the answer is exact, or the status says no."""
    matrix, structure = HARD[hard]
    if "steps" not in {field.name for field in dataclasses.fields(kind)} or structure not in kind.accepts:
        pytest.skip("no steps, or not made for it")
    b = jnp.ones(2)
    found = solve(kind(steps=5), lambda x: matrix @ x, b, structure=structure)
    exact = np.linalg.norm(b - matrix @ found.value) <= 1e-10 * np.linalg.norm(b)
    assert exact or int(found.stats.steps) == 5 or not bool(found.status.ok)


@KINDS
def test_a_system_that_does_not_fit_raises(kind):
    solver = fresh(kind)
    bad = {
        r"matvec\(b\): expected a tree shaped like b": (lambda x: x[:2], jnp.ones(3)),
        "expected floating-point numbers": (lambda x: x, jnp.ones(3, int)),
    }
    if solver.takes_guess:
        bad["x0: expected a tree shaped like b"] = (lambda x: x, jnp.ones(3), jnp.ones(2))
    for message, given in bad.items():
        with pytest.raises(imaml.ConfigError, match=message):
            solve(solver, *given)


@KINDS
def test_it_goes_to_json_and_back(kind):
    solver = fresh(kind)
    assert from_json(json.loads(json.dumps(to_json(solver)))) == solver
    assert hash(solver) == hash(fresh(kind))


@pytest.mark.usefixtures("strict_dtypes")
@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_promotes_no_dtype(name, dtype):
    solver = CASES[name](1e-3)
    if "Nystrom" in name or name == "DampedCG":
        pytest.skip("jax.random and jnp.linalg promote on their own")
    solution = jax.eval_shape(lambda b: solve(solver, lambda x: 2 * x, b), jnp.ones(3, dtype))
    assert solution.value.dtype == solution.stats.residual.dtype == dtype


def conditions(jaxpr):
    """The primitives in the conditions of all loops of a jaxpr, however deep."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            found |= {inner.primitive.name for inner in equation.params["cond_jaxpr"].jaxpr.eqns}
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                part = getattr(part, "jaxpr", part)
                found |= conditions(part) if hasattr(part, "eqns") else set()
    return found


TRIVIAL = {"reduce_or", "reduce_max", "lt", "convert_element_type"}  # "any task", or the count of a fori_loop


@EVERY
def test_no_loop_computes_its_condition_twice(name):
    """Under vmap a condition that computes is computed once more in the body, perhaps rounded otherwise."""
    solver = CASES[name](None)
    matrices = jnp.stack([jnp.eye(3), 2 * jnp.eye(3)])
    run = jax.vmap(lambda m, b: solve(solver, lambda x: m @ x, b).value)
    assert conditions(jax.make_jaxpr(run)(matrices, jnp.ones((2, 3))).jaxpr) <= TRIVIAL


def test_conditions_that_compute_are_found():
    plain = lambda x: jax.lax.while_loop(lambda x: x @ x > 0.1, lambda x: x / 2, x)  # noqa: E731
    assert "dot_general" in conditions(jax.make_jaxpr(jax.vmap(plain))(jnp.ones((2, 3))).jaxpr)
