"""Games: extragradient and optimistic descent reach closed forms where simultaneous steps circle away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml

SOLVERS = {"extragradient": imaml.ExtraGradient, "optimistic": imaml.OptimisticDescent}
A = np.array([[1.0, 0.4], [-0.3, 0.8]])


def bilinear(strength):
    """x' A y - b.x for x, against it for y, both anchored at theta."""

    def field(phi, b):
        return {"x": A @ phi["y"] - b, "y": -A.T @ phi["x"]}

    return imaml.equilibrium(field, strength)


def closed_form(strength, theta, b):
    """x and y in one vector, by NumPy."""
    matrix = np.block([[strength * np.eye(2), A], [-A.T, strength * np.eye(2)]])
    return np.linalg.solve(matrix, strength * theta + np.concatenate([b, np.zeros(2)])), matrix


@pytest.mark.parametrize("name", SOLVERS)
def test_an_anchored_bilinear_game_is_solved_and_differentiated_as_in_closed_form(name):
    b, theta, strength = np.array([0.5, -1.0]), np.array([0.3, -0.2, 0.9, 0.1]), 0.1
    expected, matrix = closed_form(strength, theta, b)
    solver = SOLVERS[name](0.2, tolerance=1e-12)
    rule = imaml.implicit(imaml.GMRES(tolerance=1e-13))
    start = {"x": jnp.asarray(theta[:2]), "y": jnp.asarray(theta[2:])}

    def outer(theta):
        solved = imaml.solve(bilinear(strength), theta, jnp.asarray(b), inner=solver, rule=rule)
        return jnp.sum(solved["x"]), solved

    gradient, solved = jax.jit(jax.grad(outer, has_aux=True))(start)
    np.testing.assert_allclose(np.concatenate([solved["x"], solved["y"]]), expected, atol=1e-11)
    slope = strength * np.linalg.solve(matrix.T, np.array([1.0, 1.0, 0.0, 0.0]))
    np.testing.assert_allclose(np.concatenate([gradient["x"], gradient["y"]]), slope, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_they_converge_where_simultaneous_descent_circles_away_and_says_so(name):
    weak, theta = bilinear(1e-6), {"x": jnp.array([1.0, 0.5]), "y": jnp.array([-0.5, 1.0])}
    b = jnp.zeros(2)
    simultaneous = imaml.GradientDescent(0.3, steps=200)(weak, theta, b)
    assert simultaneous.status.ending.name == "DIVERGED"
    found = SOLVERS[name](0.3, steps=200)(weak, theta, b)
    first = np.linalg.norm([*(A @ theta["y"]), *(-A.T @ theta["x"])])
    assert found.stats.residual < 1e-2 * first


@pytest.mark.parametrize("stop", [{"steps": 400}, {"steps": 400, "tolerance": 1e-6}])
def test_a_game_that_circles_without_growing_is_said_to_cycle_and_not_averaged_in(stop):
    """Simultaneous steps so small that |F| grows by less than a half, over three turns."""
    theta = {"x": jnp.array([1.0, 0.5]), "y": jnp.array([-0.5, 1.0])}
    tasks = imaml.Task(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    loss = lambda phi, theta, batch: jnp.sum(phi["x"]) + jnp.sum(phi["y"])  # noqa: E731
    circling, converging = imaml.GradientDescent(0.05, **stop), imaml.ExtraGradient(0.3, **stop)
    for solver, strength, ending in ((circling, 1e-6, "CYCLED"), (converging, 0.3, None)):
        method = imaml.IMAML(bilinear(strength), loss, inner=solver, linear=imaml.GMRES(tolerance=1e-6))
        _, metrics = jax.jit(method)(theta, tasks, jax.random.key(0))
        names = {imaml.Ending(int(code)).name for code in metrics.inner_status.code}
        assert names == {ending or ("CONVERGED" if "tolerance" in stop else "STEPS_DONE")}
        assert np.all(metrics.used) == (ending is None)


def test_optimistic_steps_are_those_of_the_paper():
    """Two steps by hand, of a field that is linear."""
    b, theta, rate = np.zeros(2), np.array([0.3, -0.2, 0.9, 0.1]), 0.1
    _, matrix = closed_form(0.5, theta, b)
    field = lambda v: matrix @ v - 0.5 * theta  # noqa: E731
    one = theta - rate * field(theta)
    two = one - rate * (2 * field(one) - field(theta))
    start = {"x": jnp.asarray(theta[:2]), "y": jnp.asarray(theta[2:])}
    found = imaml.OptimisticDescent(rate, steps=2)(bilinear(0.5), start, jnp.zeros(2)).value
    np.testing.assert_allclose(np.concatenate([found["x"], found["y"]]), two, atol=1e-14)
    found = imaml.ExtraGradient(rate, steps=1)(bilinear(0.5), start, jnp.zeros(2)).value
    np.testing.assert_allclose(
        np.concatenate([found["x"], found["y"]]),
        theta - rate * field(theta - rate * field(theta)),
        atol=1e-14,
    )


@pytest.mark.parametrize("solver", SOLVERS.values())
def test_bad_settings_are_refused(solver):
    with pytest.raises(imaml.ConfigError, match="learning_rate"):
        solver(0.0, steps=3)
