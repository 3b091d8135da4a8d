"""Iterative LQR: its solution against a dense program, its derivative against dense and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.inner.ilqr import ILQR

pytestmark = pytest.mark.usefixtures("ranks_mixed")
HORIZON, STATES, CONTROLS = 12, 3, 2


def linear_plant(low=None, high=None):
    """x' = A x + B u with cost x.Q x / 2 + u.R u / 2, everything a parameter."""
    return ILQR(
        lambda x, u, p: p["A"] @ x + p["B"] @ u,
        lambda x, u, p: 0.5 * x @ (p["Q"] @ x) + 0.5 * u @ (p["R"] @ u) + p["c"] @ u,
        lambda x, p: 0.5 * x @ (p["Q"] @ x),
        low,
        high,
        tolerance=1e-10,
    )


def matrices(seed=0):
    """Random parameters of it."""
    a, b, q, r, c, x = jax.random.split(jax.random.key(seed), 6)
    square = lambda key, size: jnp.eye(size) + 0.2 * jax.random.normal(key, (size, size))  # noqa: E731
    q, r = (square(key, size) for key, size in ((q, STATES), (r, CONTROLS)))
    parameters = {
        "A": square(a, STATES), "B": jax.random.normal(b, (STATES, CONTROLS)), "Q": q @ q.T, "R": r @ r.T,
        "c": jax.random.normal(c, (CONTROLS,)),
    }  # fmt: skip
    return parameters, jax.random.normal(x, (STATES,))


def dense(plant, parameters, start):
    """The unconstrained solution by the dense Hessian of J, which is quadratic."""
    flat = lambda u: plant.objective(parameters, start, u.reshape(HORIZON, CONTROLS))  # noqa: E731
    zero = jnp.zeros(HORIZON * CONTROLS)
    return jnp.linalg.solve(jax.hessian(flat)(zero), -jax.grad(flat)(zero)).reshape(HORIZON, CONTROLS)


@pytest.mark.slow
def test_lqr_is_the_closed_form_in_both_modes():
    plant, (parameters, start) = linear_plant(), matrices()
    guess = jnp.zeros((HORIZON, CONTROLS))
    solution = jax.jit(plant)(parameters, start, guess)
    assert solution.status.ending.name == "CONVERGED"
    np.testing.assert_allclose(solution.value.controls, dense(plant, parameters, start), atol=1e-9)
    weights = jax.random.normal(jax.random.key(1), guess.shape)
    both = (parameters, start)
    ours = jax.jit(jax.grad(lambda p: jnp.sum(weights * plant.through(*p, solution.value))))(both)
    exact = jax.jit(jax.grad(lambda p: jnp.sum(weights * dense(plant, *p))))(both)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-8), ours, exact)
    tangent = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), parameters)
    along = lambda f: jax.jit(lambda p, t: jax.jvp(f, (p,), (t,))[1])(parameters, tangent)  # noqa: E731
    forward = along(lambda p: plant.through(p, start, solution.value))
    other = along(lambda p: dense(plant, p, start))
    np.testing.assert_allclose(forward, other, atol=1e-8)


@pytest.mark.slow
def test_controls_at_their_limits_stay_there_and_the_others_are_the_solution_given_them():
    plant, (parameters, start) = linear_plant(-0.4, 0.5), matrices(3)
    guess = jnp.zeros((HORIZON, CONTROLS))
    found = jax.jit(plant)(parameters, start, guess)
    assert found.status.ending.name == "CONVERGED"
    controls = found.value.controls
    held = (controls <= -0.4) | (controls >= 0.5)
    assert 0 < held.sum() < held.size
    slope = jax.grad(lambda u: plant.objective(parameters, start, u))(controls)
    assert jnp.all(jnp.where(controls <= -0.4, slope > 0, True))
    assert jnp.all(jnp.where(controls >= 0.5, slope < 0, True))
    np.testing.assert_allclose(jnp.where(held, 0, slope), 0, atol=1e-9)

    slopes = jax.jit(jax.jacrev(lambda p: plant.through(p, start, found.value)))(parameters)
    plan = jax.jit(lambda p: plant(p, start, controls).value.controls)
    for name, index in (("A", (0, 1)), ("B", (2, 1)), ("Q", (1, 1)), ("c", (0,))):
        moved = [plan({**parameters, name: parameters[name].at[index].add(s * 1e-5)}) for s in (1, -1)]
        np.testing.assert_allclose(slopes[name][(..., *index)], (moved[0] - moved[1]) / 2e-5, atol=1e-6)
    assert jnp.all(jnp.where(held[..., None], slopes["c"], 0) == 0)


def swing():
    """A pendulum with a torque limit, swung up; p: length and damping."""

    def dynamics(x, u, p):
        speed = x[1] + 0.1 * (9.8 / p[0] * jnp.sin(x[0]) + u[0] / p[0] ** 2 - p[1] * x[1])
        return jnp.array([x[0] + 0.1 * speed, speed])

    running = lambda x, u, p: 0.1 * (1 - jnp.cos(x[0])) + 0.005 * x[1] ** 2 + 0.01 * u @ u  # noqa: E731
    return ILQR(
        dynamics, running, lambda x, p: 5 * (1 - jnp.cos(x[0])) + 0.5 * x[1] ** 2, -6, 6,
        steps=400, tolerance=1e-12,
    )  # fmt: skip


@pytest.mark.slow
def test_the_derivative_of_a_swing_up_is_that_of_differences():
    plant, p, start = swing(), jnp.array([1.0, 0.1]), jnp.array([jnp.pi, 0.0])
    guess = 0.1 * jnp.ones((40, 1))
    found = jax.jit(plant)(p, start, guess)
    assert found.status.ending.name == "CONVERGED", (found.status, found.stats)
    assert abs(float(jnp.cos(found.value.states[-1, 0]))) > 0.99
    held = jnp.abs(found.value.controls) >= 6
    assert 0 < held.sum() < held.size
    plan = jax.jit(lambda p: plant(p, start, found.value.controls).value.controls)
    h = 1e-5
    slopes = jax.jit(jax.jacfwd(lambda p: plant.through(p, start, found.value)))(p)
    for i in range(2):
        step = h * jnp.eye(2)[i]
        np.testing.assert_allclose(slopes[:, :, i], (plan(p + step) - plan(p - step)) / (2 * h), atol=2e-5)
    pulled = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(plant.through(p, start, found.value)))))(p)
    np.testing.assert_allclose(
        pulled, jnp.einsum("tc,tci->i", jnp.cos(found.value.controls), slopes), rtol=1e-7
    )


def test_it_says_how_it_ended_and_refuses_what_makes_no_sense():
    plant, p, start = swing(), jnp.array([1.0, 0.1]), jnp.array([jnp.pi, 0.0])
    few = ILQR(plant.dynamics, plant.running, plant.final, -6, 6, steps=2)
    run = jax.jit(lambda p: few(p, start, 0.1 * jnp.ones((40, 1))).status)
    assert run(p).ending.name == "OUT_OF_STEPS"
    assert run(p * jnp.nan).ending.name == "NOT_FINITE"
    with pytest.raises(imaml.ConfigError, match="low: expected a number below high=-1, got 1"):
        ILQR(plant.dynamics, plant.running, plant.final, 1, -1)
    with pytest.raises(imaml.ConfigError, match=r"steps: expected .*, got 0"):
        ILQR(plant.dynamics, plant.running, plant.final, steps=0)
    with pytest.raises(imaml.core.errors.StructureError, match=r"\(T, m\)"):
        plant(p, start, jnp.zeros(40))
