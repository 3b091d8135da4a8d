"""Inner solvers: true counts and residuals, stopping, and batches of fast and slow tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imaml
from imaml.config.overrides import overrides
from imaml.config.presets import preset
from imaml.core.recipes import from_json, to_json

# A diagonal quadratic: loss = 0.5 c (phi - x)^2, strength 1, theta = 0: the solution is c x / (c + 1).
CURVATURE = np.array([1.0, 3.0, 7.0])
TARGET = np.array([1.0, -2.0, 0.5])


def loss(phi, batch):
    curvature, target = batch
    return 0.5 * jnp.sum(curvature * (phi - target) ** 2)


PROBLEM = imaml.proximal(loss, 1.0)
BATCH = (jnp.asarray(CURVATURE), jnp.asarray(TARGET))
SOLUTION = CURVATURE * TARGET / (CURVATURE + 1)


def residual_at(phi, batch=BATCH):
    curvature, target = (np.asarray(part) for part in batch)
    return np.linalg.norm(curvature * (np.asarray(phi) - target) + np.asarray(phi))


SOLVERS = {
    "GradientDescent": lambda **limits: imaml.GradientDescent(0.2, **limits),
    "ProximalGradient": lambda **limits: imaml.ProximalGradient(0.2, **limits),
    "sgd": lambda **limits: imaml.Descent(optax.sgd(0.2), **limits),
    "momentum": lambda **limits: imaml.Descent(optax.sgd(0.1, momentum=0.5), **limits),
    "adam": lambda **limits: imaml.Descent(optax.adam(0.05), **limits),
}


@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
def test_steps_or_tolerance_are_kept_and_reported(make):
    fixed, until = make(steps=7), make(tolerance=1e-8)
    run = jax.jit(lambda batch: (fixed(PROBLEM, jnp.zeros(3), batch), until(PROBLEM, jnp.zeros(3), batch)))
    short, long = run(BATCH)
    assert int(short.stats.steps) == 7
    assert short.status.ending == imaml.Ending.STEPS_DONE
    assert float(long.stats.residual) <= 1e-8
    assert 7 < int(long.stats.steps) < 10_000
    assert long.status.ending == imaml.Ending.CONVERGED
    # |F| <= 1e-8 and the smallest curvature is 2.
    assert np.linalg.norm(long.value - SOLUTION) <= 1e-8 / 2
    for solution in (short, long):
        np.testing.assert_allclose(
            solution.stats.residual, residual_at(solution.value), rtol=1e-6, atol=1e-15
        )
        assert not bool(solution.stats.negative_curvature)


def test_seven_steps_of_gradient_descent_are_those_by_hand():
    phi = np.zeros(3)
    for _ in range(7):
        phi = phi - 0.2 * (CURVATURE * (phi - TARGET) + phi)
    for make in (SOLVERS["GradientDescent"], SOLVERS["sgd"]):
        found = make(steps=7)(PROBLEM, jnp.zeros(3), BATCH).value
        np.testing.assert_allclose(found, phi, rtol=1e-14)  # seven steps of a few roundings


def test_a_proximal_step_is_the_anchors_minimum_around_a_step_on_the_loss():
    strengths = np.array([0.5, 1.0, 1e6])
    theta, phi = np.array([1.0, -1.0, 2.0]), np.array([0.3, 0.2, 2.1])
    problem = imaml.proximal(loss, jnp.asarray(strengths))
    moved = phi - 0.2 * CURVATURE * (phi - TARGET)
    by_hand = (moved / 0.2 + strengths * theta) / (1 / 0.2 + strengths)
    found = imaml.ProximalGradient(0.2, steps=1)(problem, theta, BATCH, jnp.asarray(phi)).value
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)


def test_strengths_decades_apart_do_not_bound_the_proximal_rate():
    """Gradient descent at this rate diverges; at a rate for the largest strength the others stand still."""
    strengths = np.array([1e-2, 1.0, 1e6])
    problem = imaml.proximal(loss, jnp.asarray(strengths))
    exact = CURVATURE * TARGET / (CURVATURE + strengths)
    solution = imaml.ProximalGradient(0.2, tolerance=1e-10)(problem, jnp.zeros(3), BATCH)
    assert solution.status.ending == imaml.Ending.CONVERGED
    np.testing.assert_allclose(solution.value, exact, rtol=1e-8)
    other = imaml.GradientDescent(0.2, steps=20)(problem, jnp.zeros(3), BATCH)
    assert other.status.ending == imaml.Ending.DIVERGED


def test_the_proximal_step_can_be_gone_through():
    """MAML's derivative with respect to a strength learned for every parameter, by central differences."""
    problem = imaml.proximal(loss, imaml.learned(2.0, "parameter"))
    solver = imaml.ProximalGradient(0.2, steps=3)

    def end(logs):
        return jnp.sum(solver(problem, imaml.Theta(jnp.ones(3), logs), BATCH).value ** 2)

    logs = jnp.log(jnp.array([0.5, 2.0, 30.0]))
    slope = jax.grad(end)(logs)
    ends = [(end(logs.at[i].add(1e-5)) - end(logs.at[i].add(-1e-5))) / 2e-5 for i in range(3)]
    np.testing.assert_allclose(slope, ends, rtol=1e-7)


def test_the_proximal_gradient_is_a_recipe_of_the_command_line():
    given = overrides(
        preset("sinusoid"),
        [("method.inner", "ProximalGradient", "--a"), ("method.inner.steps", "3", "--b")],
    )
    assert given.method.inner == imaml.ProximalGradient(0.1, steps=3)
    assert from_json(to_json(given)) == given


def test_without_an_anchor_of_numbers_there_is_no_proximal_step():
    solver = imaml.ProximalGradient(0.2, steps=1)
    with pytest.raises(imaml.StructureError, match=r"expected a proximal or equilibrium .*got plain"):
        solver(imaml.plain(loss), jnp.zeros(3), BATCH)
    mixed = imaml.proximal(loss, imaml.learned(1.0, "dense"))
    with pytest.raises(imaml.StructureError, match="got a matrix, learned per='dense'"):
        solver(mixed, mixed.parameters(jnp.zeros(3)), BATCH)


@pytest.mark.parametrize("name", ["GradientDescent", "momentum"])
def test_fast_and_slow_tasks_in_one_batch_equal_a_loop(name):
    """One task needs few steps, one some 300: the fast one stops, and is not moved by the slow one."""
    weak = imaml.proximal(loss, 0.2)
    solver = SOLVERS[name](tolerance=1e-10)
    curvature = jnp.array([[4.8, 4.8, 4.8], [4.8, 0.2, 0.15]])
    target = jnp.asarray(np.stack([TARGET, TARGET]))
    solve = lambda batch: solver(weak, jnp.zeros(3), batch)  # noqa: E731
    together = jax.jit(jax.vmap(solve))((curvature, target))
    one = jax.jit(solve)
    apart = [one((curvature[i], target[i])) for i in range(2)]
    steps = [int(solution.stats.steps) for solution in apart]
    assert steps[0] * 4 < steps[1]
    assert together.stats.steps.tolist() == steps
    for i in range(2):
        np.testing.assert_allclose(together.value[i], apart[i].value, rtol=1e-13)
        assert float(together.stats.residual[i]) <= 1e-10


def test_three_and_three_hundred_steps():
    """The very counts: |1 - 0.2 (c + 1)| is 0 for c = 4 (one step), 0.93 or so for the slow one."""
    weak = imaml.proximal(loss, 0.05)
    solver = imaml.GradientDescent(0.2, tolerance=1e-7)
    curvature = jnp.array([[4.9, 4.9, 4.9], [4.9, 0.2, 0.2]])
    batch = (curvature, jnp.ones((2, 3)))
    found = jax.jit(jax.vmap(lambda b: solver(weak, jnp.zeros(3), b)))(batch)
    rates = np.abs(1 - 0.2 * (np.asarray(curvature) + 0.05)).max(axis=1)
    # |F_k| = |F_0| rate^k with the slowest parts alone; the bound is within a step or two.
    first = [residual_at(np.zeros(3), (c, np.ones(3))) for c in np.asarray(curvature)]
    expected = [np.ceil(np.log(1e-7 / f) / np.log(r)) for f, r in zip(first, rates, strict=True)]
    assert int(found.stats.steps[0]) <= expected[0]
    assert expected[1] >= 300
    assert abs(int(found.stats.steps[1]) - expected[1]) <= 0.3 * expected[1]
    assert (found.status.code == imaml.Ending.CONVERGED).all()


def test_out_of_steps_diverged_and_not_finite_are_told_apart():
    out = imaml.GradientDescent(0.2, steps=5, tolerance=1e-12)(PROBLEM, jnp.zeros(3), BATCH)
    assert out.status.ending == imaml.Ending.OUT_OF_STEPS
    assert int(out.stats.steps) == 5
    grown = imaml.GradientDescent(0.5, steps=10)(PROBLEM, jnp.zeros(3), BATCH)  # |1 - 0.5 * 8| = 3
    assert grown.status.ending == imaml.Ending.DIVERGED
    assert not bool(grown.status.ok)
    for solver in (
        imaml.GradientDescent(100.0, steps=400),
        imaml.GradientDescent(100.0, tolerance=1e-3),
        imaml.Descent(optax.sgd(100.0), tolerance=1e-3),
    ):
        solution = solver(PROBLEM, jnp.zeros(3), BATCH)
        assert solution.status.ending == imaml.Ending.NOT_FINITE
        assert not bool(solution.status.ok)
    bad = imaml.GradientDescent(0.2, tolerance=1e-3)(PROBLEM, jnp.zeros(3), (BATCH[0], BATCH[1] * jnp.nan))
    assert bad.status.ending == imaml.Ending.NOT_FINITE
    assert int(bad.stats.steps) == 0


def test_a_start_at_the_solution_has_not_diverged():
    """There the first residual is rounding, and so may be ten times it after the steps."""
    batch = (BATCH[0], BATCH[1])
    solution = imaml.GradientDescent(0.2, steps=5)(PROBLEM, jnp.zeros(3), batch, jnp.asarray(SOLUTION))
    assert solution.status.ending == imaml.Ending.STEPS_DONE
    still = imaml.Descent(optax.adam(1e-9), steps=3)(PROBLEM, jnp.zeros(3), batch, jnp.asarray(SOLUTION))
    assert still.status.ending == imaml.Ending.STEPS_DONE


def test_a_rate_may_be_traced_and_the_other_fields_are_checked():
    """The derivative with respect to the rate of one step, phi = -rate F(0), is -F(0)."""
    step = lambda rate: imaml.GradientDescent(rate, steps=1)(PROBLEM, jnp.zeros(3), BATCH).value  # noqa: E731
    np.testing.assert_allclose(jax.jacfwd(step)(0.2), CURVATURE * TARGET, rtol=1e-14)
    with pytest.raises(imaml.ConfigError, match=r"steps: expected .*, got 0"):
        jax.jit(lambda rate: imaml.GradientDescent(rate, steps=0).learning_rate)(0.2)


def test_phi0_is_where_it_starts():
    found = imaml.GradientDescent(0.1, tolerance=1e-6)(PROBLEM, jnp.zeros(3), BATCH, jnp.asarray(SOLUTION))
    assert int(found.stats.steps) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: imaml.GradientDescent(0.0, steps=1), "learning_rate: expected .*, got 0.0"),
        (lambda: imaml.GradientDescent(-0.1, steps=1), "learning_rate: expected .*, got -0.1"),
        (lambda: imaml.GradientDescent(float("nan"), steps=1), "learning_rate: expected .*, got nan"),
        (lambda: imaml.GradientDescent("fast", steps=1), "learning_rate: expected .*, got 'fast'"),
        (lambda: imaml.GradientDescent(True, steps=1), "learning_rate: expected .*, got True"),
        (
            lambda: imaml.ProximalGradient(0.0, steps=1),
            "ProximalGradient: learning_rate: expected .*, got 0.0",
        ),
        (
            lambda: imaml.ProximalGradient("fast", steps=1),
            "ProximalGradient: learning_rate: expected .*, got 'fast'",
        ),
        (lambda: imaml.Descent(optax.sgd(0.1)), "expected steps=, tolerance="),
        (
            lambda: imaml.Descent("adam", steps=1),
            "expected an Optax transform, got 'adam'. Hint: pass one",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(imaml.ConfigError, match=message):
        make()
