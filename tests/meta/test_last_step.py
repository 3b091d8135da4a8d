"""Newton's method, and differentiation through the last inner step, against dense references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml

ROWS, FEATURES, STRENGTH = 12, 4, 0.3
RANDOM = np.random.default_rng(3)
INPUTS, SIGNS = (
    jnp.asarray(RANDOM.normal(size=(ROWS, FEATURES))),
    jnp.asarray(RANDOM.choice([-1.0, 1.0], ROWS)),
)
THETA, QUERY = (jnp.asarray(RANDOM.normal(size=FEATURES)) for _ in range(2))
PROBLEM = imaml.proximal(lambda phi, x: jnp.mean(jax.nn.softplus(-SIGNS * (x @ phi))), STRENGTH)
judge = lambda phi, theta, batch: 0.5 * jnp.sum((phi - QUERY) ** 2)  # noqa: E731
RESIDUAL = lambda phi, theta=THETA: PROBLEM.residual(phi, theta, INPUTS)  # noqa: E731
STAR = imaml.Newton(tolerance=1e-14)(PROBLEM, THETA, INPUTS).value
EXACT = STRENGTH * np.linalg.solve(jax.jacfwd(RESIDUAL)(STAR), STAR - QUERY)


def at(phi):
    """An inner "solver" that returns a given phi."""
    fixed = imaml.GradientDescent(1e-9, steps=1)
    return lambda problem, theta, batch, phi0=None, key=None: fixed(problem, theta, batch, phi, key)


def gradient(rule, phi):
    method = imaml.MetaGradient(PROBLEM, judge, inner=at(phi), rule=rule)
    tasks = imaml.Task(INPUTS[None], INPUTS[None])
    return method(THETA, tasks)


@pytest.mark.slow
def test_newton_solves_every_structure_quadratically():
    assert float(jnp.linalg.norm(RESIDUAL(STAR))) < 1e-14
    problem = imaml.game(
        lambda x, y, theta, b: jnp.sum(x**2 + x * y + 0.1 * x**4 - theta * x),
        lambda x, y, theta, b: jnp.sum(y**2 - x * y + theta * y),
        init=lambda theta, batch, key: (theta, theta),
    )
    solved = jax.jit(lambda n: imaml.Newton(steps=8)(problem, jnp.ones(2), None))(0)
    assert float(solved.stats.residual) < 1e-12
    sizes = []
    for steps in (1, 2, 3, 4):
        found = imaml.Newton(steps=steps)(PROBLEM, THETA + 1, INPUTS).value
        sizes.append(np.log(np.linalg.norm(found - STAR)))
    # Each error is the last one squared, up to a constant: the logarithm's fall at least doubles.
    assert sizes[3] - sizes[2] < 1.7 * (sizes[2] - sizes[1])


def test_newton_says_where_it_does_not_converge():
    steep = imaml.stationary(lambda phi, theta, batch: jnp.sum((phi**2) ** (2 / 3)))  # a step: phi -> -2 phi
    found = imaml.Newton(steps=12)(steep, jnp.ones(1), None)
    assert found.status.ending == imaml.Ending.DIVERGED
    stuck = imaml.Newton(tolerance=1e-12, steps=2)(PROBLEM, THETA, INPUTS)
    assert stuck.status.ending == imaml.Ending.OUT_OF_STEPS


@pytest.mark.slow
def test_one_newton_step_has_the_implicit_formula_one_step_late():
    """-(dF/dtheta)^T A(phi_k)^-1 v(phi_k+1), and both Newton's step and phi_k+1 as dense algebra has them."""
    before = STAR + 0.3 * THETA
    matrix = jax.jacfwd(RESIDUAL)(before)
    after = before - np.linalg.solve(matrix, RESIDUAL(before))
    expected = STRENGTH * np.linalg.solve(matrix, after - QUERY)
    for last in (imaml.Newton(steps=1), imaml.Newton(steps=1, linear=imaml.CG(tolerance=1e-13))):
        found, metrics = gradient(imaml.one_step(last), before)
        np.testing.assert_allclose(found, expected, rtol=1e-8)  # the stand-in's own step is 1e-9 long
        np.testing.assert_allclose(metrics.loss[0], judge(after, None, None), rtol=1e-8)
        np.testing.assert_allclose(metrics.inner_residual[0], jnp.linalg.norm(RESIDUAL(after)), rtol=1e-6)


@pytest.mark.slow
def test_its_error_falls_with_the_distance_and_that_of_a_gradient_step_does_not():
    off = {"newton": [], "implicit": [], "gradient step": []}
    rules = {
        "newton": imaml.one_step(imaml.Newton(steps=1)),
        "implicit": imaml.implicit(imaml.Dense(), correct=True),
        "gradient step": imaml.one_step(imaml.GradientDescent(0.5, steps=1)),
    }
    distances = (1e-1, 1e-2, 1e-3)
    for distance in distances:
        for name, rule in rules.items():
            found, _ = gradient(rule, STAR + distance * THETA / jnp.linalg.norm(THETA))
            off[name].append(float(jnp.linalg.norm(found - EXACT) / np.linalg.norm(EXACT)))
    slope = {name: np.polyfit(np.log(distances), np.log(values), 1)[0] for name, values in off.items()}
    assert 0.9 < slope["newton"] < 1.1
    assert slope["implicit"] > 1.8  # after the same Newton step, the implicit rule at phi_k+1
    assert off["gradient step"][-1] > 0.1
    assert off["newton"][-1] < 1e-3


@pytest.mark.slow
def test_every_mode_and_a_gradient_step_as_automatic_differentiation_has_it():
    phi = STAR + 0.1

    def solution(theta, last):
        return imaml.solve(PROBLEM, theta, INPUTS, inner=at(phi), rule=imaml.one_step(last))

    newton, step = imaml.Newton(steps=1), imaml.GradientDescent(0.5, steps=1)
    forward, backward = (mode(solution)(THETA, newton) for mode in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, backward, rtol=1e-10)
    np.testing.assert_allclose(
        jax.jacrev(solution)(THETA, step), 0.5 * STRENGTH * np.eye(FEATURES), rtol=1e-12
    )


REFUSED = {
    "plain": lambda: imaml.MetaGradient(
        imaml.plain(lambda phi, x: jnp.sum(phi)), judge, inner=at(STAR), rule=imaml.one_step()
    ),
    "a line search": lambda: imaml.MetaGradient(
        PROBLEM, judge, inner=at(STAR), rule=imaml.one_step(imaml.NewtonCG(steps=1))
    ),
    "a tolerance": lambda: imaml.MetaGradient(
        PROBLEM, judge, inner=at(STAR), rule=imaml.one_step(imaml.GradientDescent(0.1, tolerance=1e-3))
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_such_derivative_is_refused(name):
    with pytest.raises(imaml.StructureError, match=r"use proximal|steps that have a reverse mode.*use"):
        REFUSED[name]()


def test_newton_refuses_what_makes_no_sense():
    for make, says in (
        (lambda: imaml.Newton(), "expected steps=, tolerance="),
        (lambda: imaml.Newton(steps=1, linear=3), "linear: expected a linear solver"),
    ):
        with pytest.raises(imaml.ConfigError, match=says):
            make()
    with pytest.raises(imaml.StructureError, match="CG: expected a system of structure spd"):
        imaml.Newton(steps=1, linear=imaml.CG())(
            imaml.fixed_point(lambda phi, theta, batch: phi / 2), jnp.ones(1), None
        )
