"""Newton's method with conjugate gradients and a line search, against closed forms and gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers import closed_forms
from helpers.marks import slow_after_first

RANDOM = np.random.default_rng(3)
INPUTS, TARGETS = jnp.asarray(RANDOM.normal(size=(12, 3))), jnp.asarray(RANDOM.normal(size=12))
START = {"body": jnp.asarray(RANDOM.normal(size=(3, 4))), "head": jnp.asarray(RANDOM.normal(size=4))}


def curved(phi, batch):
    inputs, targets = batch
    return 0.5 * jnp.mean((jnp.tanh(inputs @ phi["body"]) @ phi["head"] - targets) ** 2)


def test_a_quadratic_is_solved_in_one_step():
    domain = imaml.linear_gaussian()
    support = domain.sample(jax.random.key(0), "train").support
    theta = jnp.ones(5)
    solver = imaml.NewtonCG(steps=1, linear=imaml.CG(tolerance=1e-13))
    solution = jax.jit(lambda: solver(domain.problem(0.5), theta, support))()
    np.testing.assert_allclose(solution.value, closed_forms.solution(theta, support, 0.5), rtol=1e-11)
    assert solution.status.ending == imaml.Ending.STEPS_DONE
    assert int(solution.stats.steps) == 1


def test_it_finds_what_gradient_descent_finds_in_fewer_steps():
    problem, batch = imaml.proximal(curved, 0.5), (INPUTS, TARGETS)
    newton = imaml.NewtonCG(tolerance=1e-11, linear=imaml.CG(tolerance=1e-4))
    fast = jax.jit(lambda: newton(problem, START, batch))()
    slow = jax.jit(lambda: imaml.GradientDescent(0.3, tolerance=1e-11)(problem, START, batch))()
    assert fast.status.ending == slow.status.ending == imaml.Ending.CONVERGED
    for name in START:
        np.testing.assert_allclose(fast.value[name], slow.value[name], atol=1e-9)
    assert int(fast.stats.steps) < 12 < 40 < int(slow.stats.steps)


def hills(phi, batch):
    """Many maxima and saddles, and minima at value -dimensions."""
    return jnp.sum(jnp.cos(phi)) + 0 * jnp.sum(batch)


@pytest.mark.parametrize("seed", slow_after_first(range(5)))
def test_every_step_goes_down_whatever_the_curvature(seed):
    """Started anywhere, where the Hessian is indefinite or negative, down to a minimum."""
    problem = imaml.stationary(lambda phi, theta, batch: hills(phi, batch))
    start = jnp.asarray(np.random.default_rng(seed).uniform(-4, 4, 6))
    values = [hills(start, jnp.zeros(1))]
    for steps in (1, 2, 3, 5, 8):
        solution = imaml.NewtonCG(steps=steps)(problem, start, jnp.zeros(1))
        values.append(hills(solution.value, jnp.zeros(1)))
    assert np.all(np.diff(values) <= 1e-12)
    end = imaml.NewtonCG(tolerance=1e-9)(problem, start, jnp.zeros(1))
    assert end.status.ending == imaml.Ending.CONVERGED
    curvature = jax.hessian(lambda p: hills(p, jnp.zeros(1)))(end.value)
    assert float(jnp.linalg.eigvalsh(curvature)[0]) > 0


def test_near_a_maximum_it_goes_down_the_slope():
    """CG's very first direction shows negative curvature, so that the direction is -F."""
    problem = imaml.stationary(lambda phi, theta, batch: hills(phi, batch))
    start = jnp.full(2, 0.1)
    after = imaml.NewtonCG(steps=1)(problem, start, jnp.zeros(1)).value
    np.testing.assert_allclose(after, start + jnp.sin(start), rtol=1e-12)


def test_a_step_that_overshoots_is_halved():
    """Newton on log cosh from 3 goes to -98; halved until the value falls as promised."""
    steep = imaml.stationary(lambda phi, theta, batch: jnp.sum(jnp.logaddexp(phi, -phi)))
    start = jnp.full(1, 3.0)
    full = 3 - np.tanh(3.0) * np.cosh(3.0) ** 2
    after = float(imaml.NewtonCG(steps=1)(steep, start, None).value[0])
    halves = np.log2((full - 3) / (after - 3))
    assert halves == pytest.approx(round(halves), abs=1e-9)
    assert halves >= 1
    assert abs(after) < 3
    none = imaml.NewtonCG(steps=1, halvings=1)(steep, start, None).value
    assert float(none[0]) == 3.0  # no length among those tried goes down, so it stays


@pytest.mark.slow
def test_it_is_the_same_under_vmap():
    problem = imaml.proximal(curved, 0.5)
    batches = (jnp.stack([INPUTS, 2 * INPUTS]), jnp.stack([TARGETS, -TARGETS]))
    solver = imaml.NewtonCG(steps=4)
    together = jax.jit(jax.vmap(lambda batch: solver(problem, START, batch)))(batches)
    for i in range(2):
        alone = jax.jit(lambda b: solver(problem, START, b))(jax.tree.map(lambda leaf: leaf[i], batches))  # noqa: B023
        np.testing.assert_allclose(together.value["body"][i], alone.value["body"], rtol=1e-10)


def test_not_a_number_is_told():
    problem = imaml.proximal(curved, 0.5)
    solution = imaml.NewtonCG(steps=2)(problem, START, (INPUTS.at[0].set(jnp.nan), TARGETS))
    assert solution.status.ending == imaml.Ending.NOT_FINITE


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: imaml.NewtonCG(steps=1, linear=imaml.Dense()), "linear: expected CG"),
        (lambda: imaml.NewtonCG(steps=1, halvings=0), "halvings: expected .*, got 0"),
        (
            lambda: imaml.NewtonCG(steps=1)(imaml.fixed_point(lambda p, t, b: p), jnp.ones(1), None),
            "minimises an objective, got fixed_point",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(imaml.ConfigError, match=words):
        make()
