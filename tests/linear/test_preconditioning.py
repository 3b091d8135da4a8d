"""Preconditioned conjugate gradients, Nystrom's approximation, and damping, against dense references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml

SIZE, RANK = 40, 5
RANDOM = np.random.default_rng(0)
TURN = np.linalg.qr(RANDOM.normal(size=(SIZE, SIZE)))[0]
B = RANDOM.normal(size=SIZE)


def turned(curvatures):
    """A symmetric matrix with these eigenvalues, the rest zero."""
    values = np.r_[np.asarray(curvatures), np.zeros(SIZE - len(curvatures))]
    return (TURN * values) @ TURN.T


def solved(solver, curvature, anchor, b=B):
    """The Solution of (curvature + diag(anchor)) x = b, compiled."""
    matrix, anchor = jnp.asarray(curvature + np.diag(anchor)), jnp.asarray(anchor)
    return jax.jit(lambda v: solver(lambda x: matrix @ x, v, anchor=anchor))(jnp.asarray(b))


def off(found, curvature, anchor, b=B):
    exact = np.linalg.solve(curvature + np.diag(anchor), b)
    return np.linalg.norm(found.value - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("precondition", "curvature", "anchor", "most"),
    [
        (imaml.Diagonal(), turned([0.5, 0.3, 0.2]), np.geomspace(1, 1e4, SIZE), 5),
        (imaml.Nystrom(RANK), turned([3e4, 1e4, 3e3, 1e3, 300.0]), np.ones(SIZE), 3),
        (imaml.Nystrom(RANK), turned([3e4, 1e4, 3e3, 1e3, 300.0]), np.geomspace(1, 100, SIZE), 3),
    ],
    ids=["strengths that differ", "few large curvatures", "both"],
)
def test_a_preconditioner_spares_steps_and_changes_no_answer(precondition, curvature, anchor, most):
    found = solved(imaml.CG(tolerance=1e-10, precondition=precondition), curvature, anchor)
    plain = solved(imaml.CG(tolerance=1e-10), curvature, anchor)
    # A residual of 2e-10 over the least curvature, 1, for an answer of about |b| at the least over 1e4.
    assert off(found, curvature, anchor) < 1e-8
    assert int(found.stats.steps) <= most < int(plain.stats.steps)
    assert found.status.ending == imaml.Ending.CONVERGED
    assert found.stats.lanczos is None
    assert plain.stats.lanczos is not None


def test_nystrom_of_a_low_rank_is_exact_and_otherwise_its_residual_says_how_wrong():
    anchor = np.geomspace(1, 10, SIZE)
    low, full = turned([100.0, 50.0, 20.0]), turned(np.linspace(0.1, 2, SIZE))
    exact = solved(imaml.Nystrom(RANK), low, anchor)
    assert off(exact, low, anchor) < 1e-10
    assert int(exact.stats.steps) == RANK
    rough = solved(imaml.Nystrom(RANK), full, anchor)
    true = np.linalg.norm(B - (full + np.diag(anchor)) @ np.asarray(rough.value)) / np.linalg.norm(B)
    assert 0.05 < true < 1
    np.testing.assert_allclose(rough.stats.residual, true, rtol=1e-10)
    assert off(solved(imaml.Nystrom(SIZE), full, anchor), full, anchor) < 1e-10
    # Curvatures far above the anchor that the sketch lacks make it worse than nothing, and it says so.
    hopeless = solved(imaml.Nystrom(RANK), turned(np.linspace(1, 30, SIZE)), anchor)
    assert hopeless.status.ending == imaml.Ending.BREAKDOWN


@pytest.mark.parametrize(("steepest", "seen"), [(-3.0, True), (-0.5, False)])
def test_nystrom_says_where_curvature_falls_steeper_than_the_anchor(steepest, seen):
    found = solved(imaml.Nystrom(SIZE), turned([20.0, 5.0, steepest]), np.ones(SIZE))
    assert bool(found.stats.negative_curvature) is seen
    assert np.isfinite(found.value).all()


@pytest.mark.parametrize("steps", [3, SIZE])
def test_damped_cg_of_a_definite_system_is_cg(steps):
    curvature, anchor = turned(np.linspace(0.1, 30, SIZE)), np.ones(SIZE)
    damped, plain = (solved(solver(steps=steps), curvature, anchor) for solver in (imaml.DampedCG, imaml.CG))
    np.testing.assert_allclose(damped.value, plain.value, rtol=1e-9, atol=1e-12)
    assert float(damped.stats.damping) == 0
    assert damped.status.ending == imaml.Ending.STEPS_DONE
    assert not damped.stats.negative_curvature


def test_damping_is_what_lifts_the_smallest_ritz_value_to_the_floor():
    curvature, anchor = turned([30.0, 10.0, 3.0, -4.0]), np.full(SIZE, 0.8)
    matrix = curvature + np.diag(anchor)
    found = solved(imaml.DampedCG(steps=SIZE, share=0.25), curvature, anchor)
    damping = 0.25 * 0.8 - np.linalg.eigvalsh(matrix)[0]
    np.testing.assert_allclose(found.stats.damping, damping, rtol=1e-10)
    expected = np.linalg.solve(matrix + damping * np.eye(SIZE), B)
    np.testing.assert_allclose(found.value, expected, rtol=1e-8, atol=1e-10)
    true = np.linalg.norm(B - matrix @ expected) / np.linalg.norm(B)
    np.testing.assert_allclose(found.stats.residual, true, rtol=1e-8)
    assert found.stats.negative_curvature
    assert found.status.ending == imaml.Ending.DAMPED
    assert "stats.damping" in found.status.advice
    assert not found.status.ok


def test_damped_tasks_are_used_and_told_apart():
    """A concave loss and a convex one: the first task's gradient is damped, both are averaged."""
    problem = imaml.proximal(lambda phi, x: 0.5 * jnp.sum(x * phi**2), 1.0)
    judge = lambda phi, theta, x: jnp.sum(phi)  # noqa: E731
    start = lambda problem, theta, batch, phi0=None, key=None: imaml.GradientDescent(0.1, steps=1)(  # noqa: E731
        problem, theta, batch, phi0, key
    )
    method = imaml.IMAML(problem, judge, inner=start, linear=imaml.DampedCG(steps=2))
    support = jnp.stack([jnp.array([-2.0, 1.0]), jnp.array([2.0, 1.0])])
    gradient, metrics = jax.jit(method)(jnp.ones(2), imaml.Task(support, support))
    assert metrics.used.tolist() == [True, True]
    assert [imaml.Ending(int(code)).name for code in metrics.linear_status.code] == ["DAMPED", "STEPS_DONE"]
    # u = (A + d)^-1 1 with A = diag(-1, 2), d = 1.5 and A = diag(3, 2), d = 0.
    np.testing.assert_allclose(gradient, np.mean([[2, 1 / 3.5], [1 / 3, 1 / 2]], axis=0), rtol=1e-6)
    assert np.isposinf(metrics.error_estimate[0])
    assert np.isfinite(metrics.error_estimate[1])


REFUSED = {
    "no such preconditioner": (
        lambda: imaml.CG(precondition="nystrom"), imaml.ConfigError, "precondition: expected Diagonal or"
    ),
    "no rank": (lambda: imaml.Nystrom(0), imaml.ConfigError, "Nystrom: rank: expected a whole number"),
    "no share": (lambda: imaml.DampedCG(share=0), imaml.ConfigError, "DampedCG: share: expected"),
    "no anchor": (
        lambda: imaml.DampedCG()(lambda x: x, jnp.ones(2)), imaml.ConfigError, "DampedCG: anchor: expected"
    ),
    "a first guess": (
        lambda: imaml.DampedCG()(lambda x: x, jnp.ones(2), jnp.ones(2), anchor=jnp.ones(2)),
        imaml.ConfigError,
        "omit x0",
    ),
    "a problem without strengths": (
        lambda: imaml.implicit_vjp(
            imaml.stationary(lambda phi, theta, batch: jnp.sum((phi - theta) ** 2)),
            jnp.ones(2), jnp.ones(2), None, jnp.ones(2), linear=imaml.CG(precondition=imaml.Diagonal()),
        ),
        imaml.StructureError,
        "expected a problem made by proximal",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    call, kind, says = REFUSED[name]
    with pytest.raises(kind, match=says):
        call()
