"""Answers that were wrong without an error: each now right, excluded from the mean, or refused."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.domains.regression import LinearLoss, Points
from imaml.linear.lanczos import krylov
from imaml.problems.losses import CompositeLoss

KEY = jax.random.key(0)
PAIR = imaml.Task(jnp.ones((4, 2)), 2 * jnp.ones((4, 2)))


def half(phi, x):
    return 0.5 * jnp.sum((phi - x) ** 2)


def query_loss(phi, theta, x):
    return half(phi, x)


def curved(curvatures):
    """A loss with these curvatures."""
    return lambda phi, x: 0.5 * jnp.sum(jnp.array(curvatures) * (phi - x) ** 2)


class Classes(NamedTuple):
    inputs: Any
    labels: Any
    weights: Any = None


# Equal eigenvalues ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spectrum", [[1.0, 1, 1], [3.0, 3, 1, 0], [2.0, 2, 2, 2, 5], [0.0, 0, 4, 4], [7.0]], ids=str
)
def test_a_second_start_finds_equal_eigenvalues_as_often_as_they_occur(spectrum):
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(len(spectrum),) * 2))[0]
    matrix = jnp.asarray((turn * spectrum) @ turn.T)
    start = matrix @ jax.random.normal(KEY, (len(spectrum),))
    found = krylov(lambda v: matrix @ v, start, 10, KEY)
    assert int(found.steps) == np.count_nonzero(spectrum)
    inside = jnp.diag(jnp.where(jnp.arange(len(spectrum)) < found.steps, found.diagonal, 0))
    inside += jnp.diag(found.off_diagonal, 1) + jnp.diag(found.off_diagonal, -1)
    np.testing.assert_allclose(found.basis.T @ inside @ found.basis, matrix, atol=1e-12)


@dataclass(frozen=True)
class TwoOutputs(CompositeLoss):
    likelihood: ClassVar = imaml.Gaussian()

    def outputs(self, phi, batch):
        return batch.inputs @ phi

    def cost(self, outputs, batch):
        return 0.5 * jnp.mean((outputs - batch.targets) ** 2)


@pytest.mark.parametrize("design", ["one-hot", "two outputs"])
def test_a_low_rank_posterior_of_enough_rank_is_the_dense_one(design):
    if design == "one-hot":
        loss, rows, theta = LinearLoss(), Points(jnp.eye(3), jnp.arange(3.0)), jnp.zeros(3)
    else:
        x = jax.random.normal(KEY, (20, 5))
        loss, rows, theta = TwoOutputs(), Points(x, x[:, :2]), jnp.zeros((5, 2))
    problem = imaml.proximal(imaml.likelihood(loss, noise=0.1), 1.0)
    dense, found = (
        imaml.posterior(problem, theta, theta, rows, form=form, rank=10) for form in ("dense", "low-rank")
    )
    np.testing.assert_allclose(found.variances(), dense.variances(), rtol=1e-9)


# Solves that failed -----------------------------------------------------------------------------------------


def test_one_step_excludes_tasks_whose_linear_system_is_indefinite():
    problem = imaml.proximal(curved([-1.0, -1.0]), 0.5)
    options = {"inner": imaml.GradientDescent(0.01, steps=5), "rule": imaml.one_step()}
    with pytest.raises(imaml.NumericalError, match="negative curvature"):
        imaml.MetaGradient(problem, query_loss, **options)(jnp.zeros(2), PAIR)


def test_one_step_tells_of_negative_curvature():
    problem = imaml.proximal(curved([3.0, -2.0]), 1.0)
    options = {"inner": imaml.GradientDescent(0.05, steps=5), "policy": "skip"}
    method = imaml.MetaGradient(problem, query_loss, rule=imaml.one_step(), **options)
    tasks = imaml.Task(jnp.array([[1.0, 0.1]]), 2 * jnp.ones((1, 2)))
    assert bool(jax.jit(method)(jnp.zeros(2), tasks)[1].negative_curvature.all())


@pytest.mark.parametrize("problem", ["proximal", "shared", "gauss-newton", "general", "learned"])
def test_one_step_estimates_the_gradient_of_its_solve(problem):
    """The explicit route of `task_gradient` against automatic differentiation of `solve`."""
    theta = {"a": jnp.array([0.3, -0.2]), "b": jnp.array([0.1])}
    fit = lambda p, x: jnp.tanh(p["a"] * x) * (1 + p["b"]) - x  # noqa: E731
    squares = lambda p, x: jnp.sum(fit(p, x) ** 2)  # noqa: E731
    linear = imaml.Dense()
    made = {
        "proximal": imaml.proximal(squares, 2.0),
        "shared": imaml.proximal(squares, 2.0, adapt="a"),
        "gauss-newton": imaml.least_squares(fit, 2.0),
        "learned": imaml.proximal(squares, imaml.learned(2.0)),
        "general": imaml.equilibrium(
            lambda p, x: {
                "a": 0.1 * p["a"][::-1] * jnp.array([1, -1]) + p["a"] - x,
                "b": p["b"] * p["a"][:1],
            },
            2.0,
        ),
    }[problem]
    theta = made.parameters(theta)
    rule, inner = imaml.one_step(imaml.Newton(steps=1, linear=linear)), imaml.GradientDescent(0.1, steps=3)
    x, asked = jnp.array([0.5, 0.7]), jnp.array([0.4, 0.6])
    outer = lambda phi, t, batch: jnp.sum(phi["a"] ** 3 * batch) + jnp.sum(phi["b"] ** 2)  # noqa: E731
    method = imaml.MetaGradient(made, outer, inner=inner, rule=rule)
    stack = lambda leaf: leaf[None]  # noqa: E731
    found = jax.jit(method)(theta, imaml.Task(stack(x), stack(asked)))[0]
    whole = lambda t: outer(imaml.solve(made, t, x, inner=inner, rule=rule), t, asked)  # noqa: E731
    wanted = jax.jit(jax.grad(whole))(theta)
    for got, right in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-9, atol=1e-12)


def test_a_linear_solve_that_is_worse_than_zero_excludes_its_task():
    problem = imaml.proximal(curved([1.0, 9.0]), 1.0)
    options = {"inner": imaml.GradientDescent(0.1, steps=100)}
    linear = imaml.Neumann(steps=8, tolerance=1e-3, scale=1.0)
    with pytest.raises(imaml.NumericalError, match="BREAKDOWN"):
        imaml.IMAML(problem, query_loss, linear=linear, **options)(jnp.zeros(2), PAIR)


def test_conjugate_gradients_may_have_a_residual_above_that_of_zero():
    """Their answer is nearer in the norm of A all the same."""
    matrix = jnp.array([1.0, 1e4, 1e8])
    b = jnp.array([1e-3, 1.0, 1e-3])
    found = imaml.CG(steps=1, tolerance=1e-6)(lambda v: matrix * v, b)
    assert float(found.stats.residual) > 1
    assert found.status.ending is imaml.Ending.OUT_OF_STEPS


@pytest.mark.parametrize("linear", [imaml.CG(steps=1, tolerance=1e-3), imaml.MINRES(steps=1), imaml.GMRES()])
def test_a_system_without_a_right_hand_side_is_solved_by_zero_from_any_guess(linear):
    product = lambda v: jnp.array([1.0, 100.0, 1e4]) * v  # noqa: E731
    found = linear(product, jnp.zeros(3), jnp.ones(3))
    np.testing.assert_array_equal(found.value, jnp.zeros(3))
    assert float(found.stats.residual) == 0


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_divergence_is_seen_at_every_scale_of_the_loss(scale):
    problem = imaml.proximal(lambda phi, x: scale * half(phi, x), scale)
    inner = lambda rate: imaml.GradientDescent(rate / scale, steps=30)  # noqa: E731
    ending = lambda rate, start: inner(rate)(problem, jnp.zeros(2), jnp.ones(2), start).status.ending  # noqa: E731
    assert ending(1.2, jnp.zeros(2)) is imaml.Ending.DIVERGED
    assert ending(0.5, jnp.zeros(2)) is imaml.Ending.STEPS_DONE
    assert ending(0.9, jnp.full(2, 0.5)) is imaml.Ending.STEPS_DONE  # at the solution


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_a_cycle_is_seen_at_every_scale_of_the_losses(scale):
    game = imaml.game(
        lambda x, y, theta, batch: scale * jnp.sum(x * y), lambda x, y, theta, batch: -scale * jnp.sum(x * y)
    )
    theta = (jnp.ones(1), jnp.zeros(1))
    found = imaml.GradientDescent(0.01 / scale, steps=1200)(game, theta, None)
    assert found.status.ending is imaml.Ending.CYCLED


# Derivatives ------------------------------------------------------------------------------------------------


def test_maml_of_a_gauss_newton_problem_has_the_derivative_of_its_steps():
    residuals = lambda phi, rows: jnp.sin(rows[:, 0] * phi[0] + phi[1]) - rows[:, 1]  # noqa: E731
    outer = lambda phi, theta, rows: 0.5 * jnp.sum(residuals(phi, rows) ** 2)  # noqa: E731
    rows = jax.random.normal(KEY, (1, 6, 2))
    tasks, theta = imaml.Task(rows, rows + 0.1), jnp.array([0.3, 0.7])
    problem, inner = imaml.least_squares(residuals, 1.0), imaml.GradientDescent(0.1, steps=5)
    method = imaml.MAML(problem, outer, inner=inner)
    value = lambda t: method(t, tasks)[1].loss[0]  # noqa: E731
    step = 1e-6 * jnp.eye(2)
    differences = [(value(theta + e) - value(theta - e)) / 2e-6 for e in step]
    np.testing.assert_allclose(method(theta, tasks)[0], jnp.stack(differences), rtol=1e-7)
    with pytest.raises(imaml.StructureError, match="without linear systems for Gauss-Newton"):
        imaml.MAML(problem, outer, inner=imaml.Newton(steps=1))


def test_rules_that_cannot_learn_what_is_learned_refuse_it():
    learned = imaml.proximal(half, imaml.learned(1.0))
    with pytest.raises(imaml.StructureError, match="expected a fixed strength"):
        imaml.FOMAML(learned, query_loss, inner=imaml.GradientDescent(0.2, steps=10))
    inner = imaml.GradientDescent(imaml.learned(0.1), steps=3)
    with pytest.raises(imaml.StructureError, match="expected a fixed learning rate"):
        imaml.MetaGradient(imaml.proximal(half, 1.0), query_loss, inner=inner, rule=imaml.one_step())


# Losses -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums(CompositeLoss):
    averages: ClassVar[bool] = False

    def __call__(self, phi, batch):
        return half(phi, batch)


@pytest.mark.parametrize("solver", [imaml.SGD, imaml.SVRG])
def test_minibatches_of_a_loss_that_is_a_sum_are_refused(solver):
    with pytest.raises(imaml.StructureError, match="a mean over rows, got Sums, which is a sum"):
        solver(0.1, rows=1, epochs=2)(imaml.proximal(Sums(), 1.0), jnp.zeros(2), jnp.ones((3, 2)))


@pytest.mark.parametrize(
    "labels",
    [jnp.array([0]), jnp.array([[0], [1], [2]]), jnp.array([0.0, 1, 2]), jnp.array([True] * 3)],
    ids=str,
)
def test_labels_are_one_whole_number_a_row(labels):
    with pytest.raises(imaml.ConfigError, match=r"batch\.labels: expected whole numbers of shape"):
        imaml.Categorical().cost(jnp.zeros((3, 3)), Classes(None, labels))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_makes_the_loss_nan(label):
    rows = Classes(None, jnp.array([0, 1, label]))
    assert np.isnan(imaml.Categorical().cost(jnp.zeros((3, 3)), rows))
    padded = rows._replace(labels=jnp.array([0, 1, -1]), weights=jnp.array([1.0, 1, 0]))
    np.testing.assert_allclose(imaml.Categorical().cost(jnp.zeros((3, 3)), padded), 2 * np.log(3))


def test_the_mean_likelihood_of_light_rows_is_that_of_heavy_ones():
    loss = imaml.likelihood(LinearLoss(), noise=1.0)

    class Weighted(NamedTuple):
        inputs: Any
        targets: Any
        weights: Any

    def mean(weight):
        rows = Weighted(jnp.ones((3, 1)), jnp.zeros(3), jnp.full(3, weight))
        return loss.score(query_loss)(jnp.ones(1), None, rows)

    np.testing.assert_allclose(mean(0.1), mean(1.0), rtol=1e-12)


# What is passed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [imaml.unrolled(), imaml.implicit(imaml.CG(steps=3))])
def test_the_start_of_a_solve_is_shaped_like_the_parameters(rule):
    problem = imaml.proximal(half, 1.0)
    options = {"inner": imaml.GradientDescent(0.5, steps=1), "rule": rule}
    solve = lambda start: imaml.solve(problem, jnp.zeros(3), jnp.ones(3), phi0=start, **options)  # noqa: E731
    with pytest.raises(imaml.ConfigError, match="phi0: expected a tree shaped like where the problem begins"):
        solve(jnp.zeros(1))
    np.testing.assert_array_equal(solve(np.zeros(3, int)), solve(jnp.zeros(3)))


@pytest.mark.parametrize(
    "inner", [imaml.GradientDescent(0.5, tolerance=1e-4), imaml.NewtonCG(tolerance=1e-4)]
)
@pytest.mark.parametrize("kind", ["proximal", "fixed point", "equilibrium"])
def test_data_in_float64_leave_parameters_in_float32(inner, kind):
    problem = {
        "proximal": imaml.proximal(half, 1.0),
        "fixed point": imaml.fixed_point(lambda phi, theta, x: 0.5 * (theta + x)),
        "equilibrium": imaml.equilibrium(lambda phi, x: phi - x, 1.0),
    }[kind]
    if kind != "proximal" and isinstance(inner, imaml.NewtonCG):
        inner = imaml.Newton(tolerance=1e-4)
    found = inner(problem, jnp.zeros(2, jnp.float32), np.ones(2))
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, 0.5, atol=1e-3)


def test_python_floats_are_parameters():
    rule = imaml.implicit(imaml.CG(steps=2))
    inner = imaml.GradientDescent(0.5, steps=50)
    found = imaml.solve(imaml.proximal(half, 1.0), 0.0, jnp.asarray(1.0), inner=inner, rule=rule)
    np.testing.assert_allclose(found, 0.5)


def test_parameters_are_floats_wherever_they_enter():
    problem, inner = imaml.proximal(half, 1.0), imaml.GradientDescent(0.1, steps=1)
    method = imaml.IMAML(problem, query_loss, inner=inner, linear=imaml.CG(steps=2))
    with pytest.raises(imaml.ConfigError, match="adapt: theta: expected an array of real floats, got"):
        method.adapt(jnp.zeros(2, int), jnp.ones(2))
    rule, narrow = imaml.implicit(imaml.Dense()), jnp.zeros(2, jnp.bfloat16)
    with pytest.raises(imaml.ConfigError, match="implicit: theta: expected float32 or float64"):
        imaml.solve(problem, narrow, jnp.ones(2), inner=inner, rule=rule)
    with pytest.raises(imaml.ConfigError, match="implicit_vjp: theta: expected float32 or float64"):
        imaml.implicit_vjp(problem, narrow, narrow, jnp.ones(2), narrow, linear=imaml.CG(steps=1))


def test_a_missing_query_is_named():
    method = imaml.MAML(imaml.plain(half), query_loss, inner=imaml.GradientDescent(0.1, steps=1))
    with pytest.raises(imaml.ConfigError, match="tasks: expected a query set for the query loss, got None"):
        method(jnp.zeros(2), imaml.Task(jnp.ones((4, 2))))


def test_reptile_needs_no_objective_unless_parameters_are_shared():
    forces = lambda phi, x: {"a": phi["a"] - x, "b": phi["b"] + phi["a"]}  # noqa: E731
    field = imaml.equilibrium(forces, None)
    theta, inner = {"a": jnp.zeros(2), "b": jnp.zeros(2)}, imaml.GradientDescent(0.5, steps=1)
    found = imaml.Reptile(field, lambda *_: jnp.zeros(()), inner=inner)(theta, imaml.Task(jnp.ones((4, 2))))[
        0
    ]
    np.testing.assert_allclose(found["a"], -0.5)
    with pytest.raises(imaml.StructureError, match="of which shared parameters get the gradient"):
        imaml.Reptile(imaml.equilibrium(forces, None, adapt="a"), lambda *_: 0.0, inner=inner)


def test_a_transform_that_needs_more_than_the_gradient_is_refused():
    optax = pytest.importorskip("optax")
    with pytest.raises(imaml.ConfigError, match="needs the gradient alone"):
        imaml.Descent(optax.lbfgs(), steps=1)(imaml.proximal(half, 1.0), jnp.zeros(2), jnp.ones(2))


def test_an_empty_system_is_refused():
    with pytest.raises(imaml.ConfigError, match="b: expected numbers, got a tree without any"):
        imaml.GMRES()(lambda v: v, jnp.zeros(0))
