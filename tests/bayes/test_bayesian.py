"""The Bayesian reading: closed forms of linear-Gaussian models first, then quadrature and differences."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize

import imaml
from helpers.marks import slow_after_first
from imaml.bayes import curvature
from imaml.bayes.curvature import determinant
from imaml.config.method import Bayes
from imaml.config.methods import Method
from imaml.config.run import Config
from imaml.core.recipes import from_json, to_json
from imaml.domains.regression import LinearLoss, Points
from imaml.problems.matrices import LowRank, Updated
from imaml.problems.precision import Spread

KEY = jax.random.key(0)
LINEAR = imaml.CG(tolerance=1e-13)


@dataclasses.dataclass(frozen=True)
class Solve:
    """Gradient descent, then Newton's method by whole matrices: exact for linear models after one step."""

    steps: int
    before: int = 0

    def __call__(self, problem, theta, batch, phi0=None, key=None):
        start, unravel = ravel_pytree(problem.init(theta, batch, key) if phi0 is None else phi0)
        slope = lambda flat: ravel_pytree(problem.residual(unravel(flat), theta, batch))[0]  # noqa: E731
        newton = lambda _, flat: flat - jnp.linalg.solve(jax.jacfwd(slope)(flat), slope(flat))  # noqa: E731
        flat = jax.lax.fori_loop(0, self.before, lambda _, flat: flat - 0.02 * slope(flat), start)
        flat = jax.lax.fori_loop(0, self.steps, newton, flat)
        size = jnp.linalg.norm(slope(flat))
        code = jnp.where(size < 1e-8, int(imaml.Ending.CONVERGED), int(imaml.Ending.NOT_FINITE))
        stats = imaml.Stats(jnp.asarray(self.steps), size, jnp.asarray(False))
        return imaml.Solution(unravel(flat), stats, imaml.Status(code))


EXACT, INNER = Solve(2), Solve(10, before=100)


class Rows(NamedTuple):
    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array | None = None


class Labels(NamedTuple):
    inputs: jax.Array
    labels: jax.Array


class Line:
    """intercept + x . slope; its cost is a mean, which no Bayesian reading may use."""

    likelihood = imaml.Gaussian()

    def outputs(self, phi, batch):
        return batch.inputs @ phi["slope"] + phi["intercept"]

    def cost(self, outputs, batch):
        return 0.5 * jnp.mean((outputs - batch.targets) ** 2)

    def __call__(self, phi, batch):
        return self.cost(self.outputs(phi, batch), batch)


class Logistic:
    """Two classes, the second's logit x . phi."""

    likelihood = imaml.Categorical()

    def outputs(self, phi, batch):
        return jnp.stack([jnp.zeros(len(batch.inputs)), batch.inputs @ phi], axis=1)


class Network:
    """tanh, one output a row, 3 hidden: 10 parameters."""

    likelihood = imaml.Gaussian()

    def outputs(self, phi, batch):
        return jnp.tanh(batch.inputs @ phi["body"] + phi["bias"][None]) @ phi["head"] + phi["last"]


LINE, LOGISTIC, NETWORK = Line(), Logistic(), Network()
FEATURES, SIZES, MOST = 3, (1, 2, 4, 9, 3, 6), 9
RANDOM = np.random.default_rng(0)
SPREAD = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-0.3, 0.2, 0.5]])  # of phi over tasks


def simulated(sizes, seed, noise=0.5):
    """Tasks of unequal size: each one's rows (n, 3) with the intercept's ones, and targets."""
    random, tasks = np.random.default_rng(seed), []
    for size in sizes:
        design = np.column_stack([np.ones(size), random.normal(size=(size, FEATURES - 1))])
        phi = np.array([0.5, 1.0, -1.0]) + SPREAD @ random.normal(size=FEATURES)
        tasks.append((design, design @ phi + noise**0.5 * random.normal(size=size)))
    return tasks


def padded(tasks):
    """Tasks as one batch; padding rows are far off, and weigh nothing. The first row is the support."""
    count, most = len(tasks), max(len(targets) for _, targets in tasks)
    inputs, targets = np.full((count, most, FEATURES - 1), 7.0), np.full((count, most), -7.0)
    weights = np.zeros((count, most))
    for i, (design, values) in enumerate(tasks):
        inputs[i, : len(values)], targets[i, : len(values)] = design[:, 1:], values
        weights[i, : len(values)] = 1
    rows = Rows(*map(jnp.asarray, (inputs, targets, weights)))
    first, rest = (jax.tree.map(lambda leaf: leaf[:, cut], rows) for cut in (slice(1), slice(1, None)))  # noqa: B023
    return imaml.Task(first, rest), rows


TABLE = simulated(SIZES, 1)
TASKS, WHOLE = padded(TABLE)
MEAN = {"intercept": jnp.asarray(0.3), "slope": jnp.array([0.7, -0.4])}
LOG_NOISE = jnp.asarray(-0.8)


def draw(*shape):
    return jnp.asarray(0.5 * RANDOM.normal(size=shape))


LOGS = {  # of each kind of precision, far from where learning begins
    "all": draw(),
    "leaf": {"intercept": draw(), "slope": draw()},
    "parameter": {"intercept": draw(), "slope": draw(2)},
    "dense": draw(3, 3),
    "low-rank": Spread(draw(3), draw(3, 2)),
}


def matrix(per, logs):
    """P by its definition."""
    if per == "dense":
        lower = jnp.tril(logs, -1) + jnp.diag(jnp.exp(jnp.diag(logs)))
        return lower @ lower.T
    if per == "low-rank":
        return jnp.diag(jnp.exp(logs[0])) + logs[1] @ logs[1].T
    if per == "all":
        return jnp.exp(logs) * jnp.eye(3)
    if per == "leaf":
        return jnp.diag(jnp.exp(jnp.stack([logs["intercept"], logs["slope"], logs["slope"]])))
    return jnp.diag(jnp.exp(jnp.concatenate([logs["intercept"][None], logs["slope"]])))


def linear_problem(per, noise=True, **options):
    noise = imaml.learned(1.0, per="all") if noise else 0.7
    return imaml.proximal(imaml.likelihood(LINE, noise), imaml.learned(1.0, per, rank=2), **options)


def theta_of(per):
    return imaml.Theta(MEAN, LOGS[per], None, LOG_NOISE)


def exact_surprise(per, theta, tasks=TABLE):
    """The mean of -log N(y; X m, X P^-1 X^T + noise I) over tasks; rows of padding are told by no number."""
    most = max(len(targets) for _, targets in tasks)
    fill = lambda rows: np.concatenate([rows, np.zeros((most - len(rows), *rows.shape[1:]))])  # noqa: E731
    designs, values, real = (
        np.stack([fill(part) for part in parts])
        for parts in zip(*((x, y, np.ones(len(y))) for x, y in tasks), strict=True)
    )
    mean, inverse = ravel_pytree(theta.mean)[0], jnp.linalg.inv(matrix(per, theta.log_strength))

    def one(design, targets, rows):
        noise = jnp.exp(theta.log_noise) * rows + (1 - rows)  # padding: 0 ~ N(0, 1), of no account
        covariance = design @ inverse @ design.T + jnp.diag(noise)
        apart = targets - design @ mean
        volume = jnp.linalg.slogdet(covariance)[1] + jnp.sum(rows) * jnp.log(2 * jnp.pi)
        return 0.5 * (apart @ jnp.linalg.solve(covariance, apart) + volume)

    return jnp.mean(jax.vmap(one)(*map(jnp.asarray, (designs, values, real))))


def exact_posterior(per, theta, design, targets):
    """The mean and the covariance of phi given the rows of one task."""
    noise, precision = np.exp(theta.log_noise), np.asarray(matrix(per, theta.log_strength))
    covariance = np.linalg.inv(design.T @ design / noise + precision)
    return covariance @ (design.T @ targets / noise + precision @ ravel_pytree(theta.mean)[0]), covariance


def close(left, right, tolerance):
    left, right = ravel_pytree(left)[0], ravel_pytree(right)[0]
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


def query_loss(phi, theta, batch):
    return jnp.sum(batch.weights * (LINE.outputs(phi, batch) - batch.targets) ** 2)


FORMS = ({}, {"form": "low-rank", "rank": 3}, {"curvature": "hessian"})


@pytest.mark.slow
@pytest.mark.parametrize("per", LOGS)
def test_posterior_and_evidence_are_the_closed_form(per):
    """Mean, covariance, what follows for new rows, log evidence; tasks of 1 to 9 rows, padded to 9."""
    problem, theta = linear_problem(per), theta_of(per)
    new = Rows(jnp.array([[0.2, -1.0], [3.0, 4.0]]), jnp.zeros(2))
    design = np.column_stack([np.ones(2), new.inputs])

    @jax.jit
    @jax.vmap
    def all_of(rows):
        phi = EXACT(problem, theta, rows).value
        posteriors = [imaml.posterior(problem, phi, theta, rows, **form) for form in FORMS]
        surprise = imaml.log_evidence(problem, phi, theta, rows)
        found = [
            (one.covariance(), one.variances(), one.predict(new), one.precision.matrix())
            for one in posteriors
        ]
        return phi, found, surprise

    phis, found, surprises = all_of(WHOLE)
    noise = np.exp(theta.log_noise)
    for i, (x, y) in enumerate(TABLE):
        mean, expected = exact_posterior(per, theta, x, y)
        close(jax.tree.map(lambda leaf: leaf[i], phis), mean, 1e-8)  # noqa: B023
        close(surprises.value[i], -exact_surprise(per, theta, [(x, y)]), 1e-8)
        for form in found:
            covariance, variance, prediction, precision = jax.tree.map(lambda leaf: leaf[i], form)  # noqa: B023
            close(covariance, expected, 1e-8)
            close(variance, np.diag(expected), 1e-8)
            close(precision, np.linalg.inv(expected), 1e-8)
            close(prediction[0], design @ mean, 1e-8)
            close(prediction[1], np.diag(design @ expected @ design.T) + noise, 1e-8)
    assert not np.any(surprises.error)


@pytest.mark.parametrize("per", slow_after_first(LOGS))
def test_the_evidence_gradient_is_the_closed_form_s(per):
    """In mean, precision and noise, by the method; the loss told is the negative log evidence."""
    problem, theta = linear_problem(per), theta_of(per)
    method = imaml.EmpiricalBayes(problem, query_loss, inner=EXACT, linear=LINEAR)
    gradient, metrics = jax.jit(method)(theta, TASKS, KEY)
    value, expected = jax.jit(jax.value_and_grad(lambda t: exact_surprise(per, t)))(theta)
    close(gradient, expected, 1e-8)
    close(jnp.mean(metrics.loss), value, 1e-8)
    assert metrics.used.all()
    for part in (expected.mean, expected.log_strength, expected.log_noise):
        assert float(jnp.linalg.norm(ravel_pytree(part)[0])) > 1e-2


@pytest.mark.slow
def test_a_fixed_strength_and_noise_leave_the_mean_alone_to_be_learned():
    problem = imaml.proximal(imaml.likelihood(LINE, 0.7), 2.0)
    method = imaml.EmpiricalBayes(problem, query_loss, inner=EXACT, linear=LINEAR)
    assert jax.tree.structure(problem.parameters(MEAN)) == jax.tree.structure(MEAN)
    gradient, _ = jax.jit(method)(MEAN, TASKS, KEY)
    full = lambda mean: imaml.Theta(mean, jnp.log(2.0), None, jnp.log(0.7))  # noqa: E731
    close(gradient, jax.grad(lambda mean: exact_surprise("all", full(mean)))(MEAN), 1e-8)


@pytest.mark.slow
def test_the_maximum_a_posteriori_of_a_mean_loss_has_n_times_the_precision():
    """The declared mechanism: a sum over rows, whatever the loss's own cost; for n rows P = n strength."""
    averaged, phi = imaml.proximal(LINE, 0.3), jax.tree.map(lambda leaf: leaf + 1, MEAN)
    for design, targets in TABLE[:3]:
        rows, n = Rows(jnp.asarray(design[:, 1:]), jnp.asarray(targets)), len(targets)
        summed = imaml.proximal(imaml.likelihood(LINE, 1.0), 0.3 * n)
        once, whole = (ravel_pytree(p.residual(phi, MEAN, rows))[0] for p in (averaged, summed))
        close(whole, n * once, 1e-12)


# Larger, for what is stochastic: 30 parameters, 20 rows.
class Wide:
    likelihood = imaml.Gaussian()

    def outputs(self, phi, batch):
        return batch.inputs @ phi


def wide(per):
    rows = Rows(jnp.asarray(RANDOM.normal(size=(20, 30))), jnp.asarray(RANDOM.normal(size=20)))
    problem = imaml.proximal(imaml.likelihood(WIDE), imaml.learned(8.0, per, rank=2))
    return problem, problem.parameters(jnp.asarray(RANDOM.normal(size=30))), rows


WIDE = Wide()


@pytest.mark.parametrize("per", slow_after_first(["parameter", "dense", "low-rank"]))
def test_the_stochastic_determinant_is_unbiased_within_its_standard_error(per):
    """Value and gradient, over 200 keys: means within 4 standard errors, and the error told is of that size.

    K has rank 20, so 25 steps leave no error of quadrature.
    """
    problem, theta, rows = wide(per)
    how = imaml.Quadrature(steps=25, probes=4)

    def both(theta, key, how):
        found = determinant(problem, theta.mean, theta, rows, how, key=key)
        return found.value, found.error

    value = jax.value_and_grad(both, has_aux=True)
    (exact, zero), slope = jax.jit(lambda t: value(t, KEY, None))(theta)
    one = jax.jit(jax.vmap(lambda key: value(theta, key, how)))
    (values, errors), slopes = one(jax.random.split(KEY, 200))
    assert zero == 0
    assert float(jnp.std(values)) > 0.01
    within(values, exact)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(errors**2)), jnp.std(values), rtol=0.2)
    parts = jax.tree.leaves(slopes._replace(mean=None)), jax.tree.leaves(slope._replace(mean=None))
    checked = 0
    for several, expected in zip(*parts, strict=True):
        weights = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape))
        axes = tuple(range(1, several.ndim))
        within(jnp.sum(several * weights[None], axes), jnp.sum(expected * weights))
        checked += 1
    assert checked >= 2


def within(values, expected):
    """The mean within 4 standard errors of what is expected."""
    error = float(jnp.std(values, ddof=1)) / len(values) ** 0.5
    assert abs(float(jnp.mean(values)) - float(expected)) < 4 * error


# The logistic model with two parameters.
def logistic(rows, seed=3):
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(rows, 2)) + np.array([0.3, 0.0])
    truth = 1 / (1 + np.exp(-inputs @ np.array([1.5, -1.0])))
    return Labels(jnp.asarray(inputs), jnp.asarray((random.random(rows) < truth).astype(np.int32)))


def logistic_problem(per, **options):
    return imaml.proximal(imaml.likelihood(LOGISTIC), imaml.learned(0.8, per, rank=1), convex=True, **options)


def quadrature_of(problem, theta, rows, phi):
    """log of the integral of exp(-objective) times the prior's constant, on a grid of 200 x 200.

    The trapezoidal rule converges faster than any power for what vanishes at the edges, 9 deviations away.
    """
    precision = problem.precision(phi, theta)
    deviation = 1 / jnp.sqrt(precision.least())
    line = jnp.linspace(-9 * deviation, 9 * deviation, 200)
    grid = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 2) + phi[None]
    values = -jax.vmap(lambda p: problem.objective(p, theta, rows))(grid)
    integral = jax.nn.logsumexp(values) + 2 * jnp.log(line[1] - line[0])
    return integral + 0.5 * precision.log_determinant() - jnp.log(2 * jnp.pi)


@pytest.mark.slow
def test_the_laplace_evidence_of_a_logistic_model_against_quadrature():
    """Its error is -0.021 nats for 40 rows and -0.009 for 160: it falls as one over the rows."""
    problem = logistic_problem("dense")
    theta = imaml.Theta(jnp.array([0.5, -0.2]), jnp.array([[0.1, 0.0], [0.4, -0.2]]))

    @jax.jit
    def error(rows):
        phi = INNER(problem, theta, rows).value
        return imaml.log_evidence(problem, phi, theta, rows).value - quadrature_of(problem, theta, rows, phi)

    errors = {n: np.mean([float(error(logistic(n, seed))) for seed in range(4)]) for n in (40, 160)}
    assert -0.03 < errors[40] < -0.015
    assert -0.013 < errors[160] < -0.005


def laplace_surprise(problem, theta, rows, curvature):
    phi = problem.full(INNER(problem, theta, rows).value, theta)
    return -imaml.log_evidence(problem, phi, theta, rows, curvature=curvature).value


def central(function, point, step=1e-4):
    """The gradient by central differences, extrapolated: an error of step^4 and of rounding, 1e-12 / step."""

    def difference(size):
        sides = [point[None] + side * size * jnp.eye(point.size) for side in (1, -1)]
        return (function(sides[0]) - function(sides[1])) / (2 * size)

    return (4 * difference(step / 2) - difference(step)) / 3


NETWORK_MEAN = {
    "body": jnp.asarray(RANDOM.normal(size=(1, 3))),
    "bias": jnp.asarray(RANDOM.normal(size=3)),
    "head": jnp.asarray(RANDOM.normal(size=3)),
    "last": jnp.asarray(0.1),
}


def network_rows(count):
    inputs = jnp.asarray(RANDOM.normal(size=(count, 1)))
    return Rows(inputs, jnp.sin(2 * inputs[:, 0]))


def network_problem(per, adapt=None):
    return imaml.proximal(imaml.likelihood(NETWORK), imaml.learned(1.0, per, rank=2), adapt)


CASES = {
    "logistic, dense": (logistic_problem("dense"), jnp.array([0.5, -0.2]), logistic(10), "gauss-newton"),
    "logistic, low-rank": (logistic_problem("low-rank"), jnp.array([0.5, -0.2]), logistic(10), "hessian"),
    "network, few rows": (network_problem("low-rank"), NETWORK_MEAN, network_rows(4), "gauss-newton"),
    "network, Hessian": (network_problem("dense"), NETWORK_MEAN, network_rows(6), "hessian"),
    "network, body": (
        network_problem("leaf", ("bias", "body")),
        NETWORK_MEAN,
        network_rows(3),
        "gauss-newton",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_laplace_evidence_gradient_equals_central_differences(name):
    """To 1e-5, through the maximum a posteriori; what passes through it is no small part."""
    problem, mean, rows, curvature = CASES[name]
    flat, unravel = ravel_pytree(problem.parameters(mean))
    value = lambda v: laplace_surprise(problem, unravel(v), rows, curvature)  # noqa: E731
    rule = imaml.evidence(LINEAR, curvature=curvature, whole=lambda support, query: support)
    method = imaml.MetaGradient(problem, lambda *_: jnp.zeros(()), inner=INNER, rule=rule)
    tasks = jax.tree.map(lambda leaf: leaf[None], imaml.Task(rows, rows))

    @jax.jit
    def both(flat):
        phi = INNER(problem, unravel(flat), rows).value
        at_fixed = lambda v: (  # noqa: E731
            -imaml.log_evidence(
                problem, problem.full(phi, unravel(v)), unravel(v), rows, curvature=curvature
            ).value
        )
        return method(unravel(flat), tasks, KEY)[0], jax.grad(at_fixed)(flat)

    gradient, direct = both(flat)
    gradient = ravel_pytree(gradient)[0]
    np.testing.assert_allclose(gradient, central(jax.jit(jax.vmap(value)), flat), rtol=1e-5, atol=1e-6)
    assert float(jnp.linalg.norm(gradient - direct)) > 1e-2 * float(jnp.linalg.norm(gradient))


# Expectation-maximisation.
MANY = simulated([2, 3, 4, 5, 6, 7, 8, 9] * 4, 5)
MANY_TASKS, _ = padded(MANY)
CLOSED = ("all", "leaf", "parameter", "dense")


def maximised(per):
    return imaml.ExpectationMaximisation(linear_problem(per), query_loss, inner=EXACT)


def test_a_step_of_expectation_maximisation_is_the_closed_form():
    """Of mean, dense covariance and noise, in NumPy."""
    theta = theta_of("dense")
    step, _ = jax.jit(maximised("dense"))(theta, TASKS, KEY)
    new = jax.tree.map(jnp.subtract, theta, step)
    found = [exact_posterior("dense", theta, *task) for task in TABLE]
    mean = np.mean([phi for phi, _ in found], axis=0)
    second = np.mean([cov + np.outer(phi - mean, phi - mean) for phi, cov in found], axis=0)
    squares = [
        np.sum((y - x @ phi) ** 2) + np.trace(x @ cov @ x.T)
        for (x, y), (phi, cov) in zip(TABLE, found, strict=True)
    ]
    close(new.mean, mean, 1e-8)
    close(jnp.linalg.inv(matrix("dense", new.log_strength)), second, 1e-8)
    close(jnp.exp(new.log_noise), np.sum(squares) / np.sum(SIZES), 1e-8)


@pytest.mark.parametrize("per", slow_after_first(CLOSED))
def test_expectation_maximisation_raises_the_exact_evidence_up_to_its_maximum(per):
    """At every step, and the maximum, found by BFGS on the closed form, stays where it is."""
    theta = theta_of(per)
    method = jax.jit(maximised(per))
    value = jax.jit(jax.value_and_grad(lambda t: exact_surprise(per, t, MANY)))
    before = float(value(theta)[0])
    for _ in range(4):
        theta = jax.tree.map(jnp.subtract, theta, method(theta, MANY_TASKS, KEY)[0])
        after = float(value(theta)[0])
        assert after < before
        before = after
    flat, unravel = ravel_pytree(theta)

    def both(vector):
        number, slope = value(unravel(jnp.asarray(vector)))
        return float(number), np.asarray(ravel_pytree(slope)[0])

    best = minimize(both, flat, jac=True, method="BFGS", options={"gtol": 1e-9})
    assert np.linalg.norm(best.jac) < 1e-6
    still = method(unravel(jnp.asarray(best.x)), MANY_TASKS, KEY)[0]
    assert float(jnp.linalg.norm(ravel_pytree(still)[0])) < 1e-5
    assert best.fun < before


@pytest.mark.parametrize("form", ["diagonal", "low-rank", "rows"])
def test_moments_of_posteriors_that_are_not_dense(form):
    """By rows as by the whole matrix, and by low rank where it suffices; by the diagonal another step."""
    theta = theta_of("parameter")
    method = imaml.ExpectationMaximisation(linear_problem("parameter"), query_loss, inner=EXACT, form=form)
    step, expected = (jax.jit(m)(theta, TASKS, KEY)[0] for m in (method, maximised("parameter")))
    if form != "diagonal":
        close(step, expected, 1e-8)
    else:
        close(step.mean, expected.mean, 1e-8)
        apart = ravel_pytree(jax.tree.map(jnp.subtract, step, expected))[0]
        assert 1e-3 < float(jnp.linalg.norm(apart)) < 10


def test_a_spoilt_task_is_left_out_of_the_moments_and_without_any_there_is_no_step():
    theta = theta_of("dense")
    method = dataclasses.replace(maximised("dense"), policy="skip")
    spoilt = TASKS._replace(support=TASKS.support._replace(targets=TASKS.support.targets.at[2].set(jnp.nan)))
    step, metrics = jax.jit(method)(theta, spoilt, KEY)
    others = jnp.array([0, 1, 3, 4, 5])
    close(step, jax.jit(method)(theta, jax.tree.map(lambda leaf: leaf[others], TASKS), KEY)[0], 1e-10)
    assert metrics.used.tolist() == [True, True, False, True, True, True]
    nothing = TASKS._replace(support=TASKS.support._replace(targets=TASKS.support.targets * jnp.nan))
    assert np.all(np.isnan(ravel_pytree(jax.jit(method)(theta, nothing, KEY)[0])[0]))


# iBaML.
def test_the_averaged_validation_loss_is_its_expectation():
    """Linear-Gaussian: NLL at the mean + tr(X C X^T) / (2 noise), by row; 2,000 pairs, within 4 errors."""
    per = "dense"
    problem, theta = linear_problem(per), theta_of(per)
    method = imaml.IBaML(problem, query_loss, inner=EXACT, linear=LINEAR, samples=2000)
    support, query = TABLE[3], TABLE[5]
    rows = lambda x, y: Rows(jnp.asarray(x[None, :, 1:]), jnp.asarray(y[None]))  # noqa: E731
    _, metrics = jax.jit(method)(theta, imaml.Task(rows(*support), rows(*query)), KEY)
    mean, covariance = exact_posterior(per, theta, *support)
    (x, y), noise = query, np.exp(theta.log_noise)
    around = np.linalg.eigvalsh(x @ covariance @ x.T) / (2 * noise * len(y))
    at = np.mean((y - x @ mean) ** 2) / (2 * noise) + 0.5 * np.log(2 * np.pi * noise)
    error = (2 * np.sum(around**2) / 2000) ** 0.5
    assert abs(float(metrics.loss[0]) - at - np.sum(around)) < 4 * error
    assert np.sum(around) > 20 * error


@pytest.mark.parametrize(
    ("per", "form"), slow_after_first([("dense", "dense"), ("parameter", "diagonal"), ("parameter", "rows")])
)
def test_the_gradient_of_ibaml_equals_central_differences(per, form):
    """With the same draws, of a network; mean, precision and noise."""
    problem = network_problem(per)
    rule = imaml.averaged(LINEAR, samples=2, form=form)
    method = imaml.MetaGradient(problem, query_loss, inner=INNER, rule=rule)
    rows = Rows(*(leaf[None] for leaf in network_rows(12)[:2]))
    tasks = imaml.Task(*(jax.tree.map(lambda leaf: leaf[:, cut], rows) for cut in (slice(8), slice(8, None))))  # noqa: B023
    flat, unravel = ravel_pytree(problem.parameters(NETWORK_MEAN))
    gradient = jax.jit(lambda v: ravel_pytree(method(unravel(v), tasks, KEY)[0])[0])(flat)
    value = jax.jit(jax.vmap(lambda v: method(unravel(v), tasks, KEY)[1].loss[0]))
    np.testing.assert_allclose(gradient, central(value, flat), rtol=1e-5, atol=1e-6)
    assert abs(float(gradient[-1])) > 3e-5  # the noise's


# Posteriors of networks, and classes.
@pytest.mark.slow
def test_a_last_layer_posterior_is_that_of_the_head_given_the_rest():
    problem, rows = network_problem("dense"), network_rows(8)
    theta = problem.parameters(NETWORK_MEAN)
    theta = theta._replace(log_strength=theta.log_strength + 0.3 * jnp.asarray(RANDOM.normal(size=(10, 10))))
    phi = INNER(problem, theta, rows).value
    head = imaml.posterior(problem, phi, theta, rows, over=("head", "last"))
    whole = imaml.posterior(problem, phi, theta, rows)
    block = np.asarray(whole.precision.matrix())[6:, 6:]
    close(head.covariance(), np.linalg.inv(block), 1e-8)
    assert head.variances()["body"] is None
    draws = head.sample(KEY, 5)
    assert draws["head"].shape == (5, 3)
    np.testing.assert_array_equal(draws["body"], jnp.stack([phi["body"]] * 5))
    less, more = (found.outputs(rows).covariance for found in (head, whole))
    assert np.all(less[:, 0, 0] < more[:, 0, 0])


@pytest.mark.slow
def test_forms_of_a_network_s_posterior():
    """The diagonal is the dense one's; low rank is exact from as many directions as rows."""
    problem, rows = network_problem("parameter"), network_rows(6)
    theta = problem.parameters(NETWORK_MEAN)
    phi = INNER(problem, theta, rows).value
    forms = {"dense": {}, "diagonal": {"form": "diagonal"}, "low-rank": {"form": "low-rank", "rank": 6}}
    forms["rows"] = {"form": "rows"}
    found = {name: imaml.posterior(problem, phi, theta, rows, **options) for name, options in forms.items()}
    close(found["rows"].precision.matrix(), found["dense"].precision.matrix(), 1e-10)
    dense = found["dense"].precision.matrix()
    close(found["diagonal"].precision.matrix(), jnp.diag(jnp.diag(dense)), 1e-10)
    assert isinstance(found["low-rank"].precision, Updated)
    close(found["low-rank"].precision.matrix(), dense, 1e-8)
    for one in found.values():
        logs = jnp.linalg.slogdet(one.precision.matrix())[1]
        close(one.precision.log_determinant(), logs, 1e-8)
        draws = jax.vmap(lambda tree: ravel_pytree(tree)[0])(one.sample(KEY, 20_000))
        # 20,000 draws: a covariance's entries to a few times 1 / sqrt(20,000) of the deviations
        np.testing.assert_allclose(jnp.cov(draws.T), one.covariance(), atol=0.05)
        least = float(jnp.linalg.eigvalsh(one.precision.matrix())[0])
        assert float(one.precision.least()) <= least + 1e-12
    coarse = imaml.posterior(problem, phi, theta, rows, form="low-rank", rank=3)
    # Ritz values interlace with the eigenvalues, so that the determinant is one from below.
    exact = float(found["dense"].precision.log_determinant())
    assert exact - 2.0 < float(coarse.precision.log_determinant()) < exact - 1e-6


def test_roots_of_a_low_rank_precision_have_derivatives_whatever_its_rank():
    """Columns that are zero or twice there, as classes' are: R^T R = P, and its determinant's slope."""
    factor = jnp.asarray(RANDOM.normal(size=(5, 2)))[:, jnp.array([0, 0, 1, 1])] * jnp.array([[1, 1, 1, 0]])
    strengths = jnp.array([0.5, 1.0, 2.0, 3.0, 4.0])

    def root(scale):
        return jax.vmap(LowRank(strengths, scale * factor).root, out_axes=1)(jnp.eye(5))

    matrix = LowRank(strengths, factor).matrix()
    close(root(1.0).T @ root(1.0), matrix, 1e-12)
    for method, one in (
        ("unroot", jnp.linalg.inv(root(1.0))),
        ("unroot_transposed", jnp.linalg.inv(root(1.0)).T),
    ):
        close(jax.vmap(getattr(LowRank(strengths, factor), method), out_axes=1)(jnp.eye(5)), one, 1e-12)
    logs = lambda scale: 2 * jnp.linalg.slogdet(root(scale))[1]  # noqa: E731
    exact = jnp.trace(jnp.linalg.solve(matrix, 2 * factor @ factor.T))
    close(jax.grad(logs)(1.0), exact, 1e-10)


@pytest.mark.slow
def test_large_vectors_are_worked_on_one_after_another_to_the_same_end(monkeypatch):
    """The posterior's outputs, exact and stochastic determinants, and their gradients."""
    problem, rows = network_problem("parameter"), network_rows(6)
    theta = problem.parameters(NETWORK_MEAN)
    phi = INNER(problem, theta, rows).value
    how = imaml.Quadrature(steps=4, probes=3)

    def everything():
        found = imaml.posterior(problem, phi, theta, rows)
        value = lambda p, by: determinant(problem, p, theta, rows, by, key=KEY).value  # noqa: E731
        slopes = [jax.value_and_grad(value)(phi, by) for by in (None, how)]
        looped = str(jax.make_jaxpr(value, static_argnums=1)(phi, None)).count("scan")
        return (found.outputs(rows), slopes), looped

    alike, loops = everything()
    monkeypatch.setattr(curvature, "LARGE", 1)
    one_by_one, more = everything()
    assert more > loops
    for a, b in zip(jax.tree.leaves(alike), jax.tree.leaves(one_by_one), strict=True):
        close(a, b, 1e-10)


def test_class_probabilities_against_the_integral():
    """Over the posterior's logit, by Gauss and Hermite's rule: probit to 0.01, sampled to its error."""
    problem, rows = logistic_problem("all"), logistic(10)
    theta = problem.parameters(jnp.zeros(2))
    found = imaml.posterior(problem, INNER(problem, theta, rows).value, theta, rows)
    new = Labels(jnp.array([[1.0, 0.0], [4.0, 1.0], [-2.0, 2.0], [0.0, 9.0]]), jnp.zeros(4, jnp.int32))
    mean, covariance = found.outputs(new)
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    logits = np.asarray(mean[:, 1:]) + np.sqrt(np.asarray(covariance[:, 1, 1]))[:, None] * points[None]
    expected = (1 / (1 + np.exp(-logits))) @ weights / weights.sum()
    probit = found.probabilities(new)
    sampled = found.probabilities(new, samples=20_000, key=KEY)
    for probabilities, tolerance in ((probit, 0.02), (sampled, 4 * 0.5 / 20_000**0.5)):
        np.testing.assert_allclose(probabilities.sum(1), 1)
        np.testing.assert_allclose(probabilities[:, 1], expected, atol=tolerance)
    plain = jax.nn.softmax(mean)
    assert np.all(np.abs(probit[:, 1] - 0.5) < np.abs(plain[:, 1] - 0.5))  # never surer than the mode


# Precisions that are matrices, in the methods that were there before.
@pytest.mark.slow
@pytest.mark.parametrize("per", ["dense", "low-rank"])
def test_imaml_learns_precisions_that_are_matrices(per):
    """Its gradient equals central differences of the validation loss; a certified bound holds."""
    problem = network_problem(per)
    rows, query = network_rows(6), network_rows(5)
    flat, unravel = ravel_pytree(problem.parameters(NETWORK_MEAN))
    close(
        problem.residual(NETWORK_MEAN, unravel(1.1 * flat), rows),
        jax.grad(problem.objective)(NETWORK_MEAN, unravel(1.1 * flat), rows),
        1e-10,
    )
    outer = lambda phi, theta, batch: jnp.mean((NETWORK.outputs(phi, batch) - batch.targets) ** 2)  # noqa: E731

    def value(v):
        theta = unravel(v)
        return outer(INNER(problem, theta, rows).value, theta, query)

    tasks = jax.tree.map(lambda leaf: leaf[None], imaml.Task(rows, query))
    method = imaml.IMAML(problem, outer, inner=INNER, linear=LINEAR)
    gradient = ravel_pytree(jax.jit(method)(unravel(flat), tasks, KEY)[0])[0]
    np.testing.assert_allclose(gradient, central(jax.jit(jax.vmap(value)), flat), rtol=1e-5, atol=1e-6)
    if per == "low-rank":  # one certificate will do: it takes long to compile
        return
    rough = imaml.IMAML(problem, outer, inner=INNER, linear=imaml.CG(steps=4), certify=True)
    found, metrics = jax.jit(rough)(unravel(flat), tasks, KEY)
    assert metrics.certified.all()
    off = float(jnp.linalg.norm(ravel_pytree(found)[0] - gradient))
    assert 1e-8 < off <= float(metrics.error_bound[0]) * (1 + 1e-6)


@pytest.mark.parametrize("per", LOGS)
def test_what_a_precision_promises(per):
    """P, its inverse, roots, determinant and bound, each against the matrix."""
    precision = linear_problem(per).precision(MEAN, theta_of(per))
    p, v = np.asarray(matrix(per, LOGS[per])), jnp.array([1.0, -2.0, 0.5])
    unravel = ravel_pytree(MEAN)[1]
    close(precision.pull(unravel(v)), p @ v, 1e-12)
    close(precision.matrix(), p, 1e-12)
    close(precision.inverse(v), np.linalg.solve(p, v), 1e-10)
    close(precision.variances(), np.diag(np.linalg.inv(p)), 1e-10)
    close(precision.log_determinant(), np.linalg.slogdet(p)[1], 1e-10)
    root = jax.vmap(precision.root, in_axes=1, out_axes=1)(jnp.eye(3))
    close(root.T @ root, p, 1e-10)
    close(precision.unroot(root @ v), v, 1e-10)
    close(root.T @ precision.unroot_transposed(v), v, 1e-10)
    assert 0 < float(precision.least()) <= np.linalg.eigvalsh(p)[0] * (1 + 1e-9)
    some = np.array([True, False, True])
    close(precision.part(some).matrix(), p[np.ix_(some, some)], 1e-10)
    begins = imaml.proximal(LINE, imaml.learned(0.5, per, rank=2)).parameters(MEAN)
    start = np.asarray(matrix(per, begins.log_strength))
    np.testing.assert_allclose(start, 0.5 * np.eye(3), atol=0.05)


MEANS = imaml.proximal(LINE, 0.5)
PROBABLE = linear_problem("all")
COUNTED = imaml.proximal(imaml.likelihood(LOGISTIC), 1.0)


class Both(NamedTuple):
    inputs: jax.Array
    labels: jax.Array
    targets: jax.Array
    weights: jax.Array | None = None


THREE = Both(jnp.ones((3, 2)), jnp.zeros(3, jnp.int32), jnp.ones(3))
GAUSSIAN = lambda: imaml.posterior(  # noqa: E731
    PROBABLE, MEAN, PROBABLE.parameters(MEAN), THREE
)


def shaped_of(per, **options):
    """A network's posterior in a form that it may not have."""
    problem = network_problem(per)
    return imaml.posterior(
        problem, NETWORK_MEAN, problem.parameters(NETWORK_MEAN), network_rows(4), **options
    )


def refused(rule, problem=MEANS):
    return imaml.MetaGradient(problem, query_loss, inner=INNER, rule=rule)


REFUSALS = {
    "evidence of a mean loss": (lambda: refused(imaml.evidence(LINEAR)), "n times that strength"),
    "moments of a mean loss": (lambda: refused(imaml.moments()), "moments: expected proximal.likelihood"),
    "iBaML of a mean loss": (
        lambda: refused(imaml.averaged(LINEAR)),
        "averaged: expected proximal.likelihood",
    ),
    "posterior of a mean loss": (
        lambda: imaml.posterior(MEANS, MEAN, MEAN, THREE),
        "posterior: expected .* the loss Line, which is not declared",
    ),
    "log evidence of a mean loss": (
        lambda: imaml.log_evidence(MEANS, MEAN, MEAN, THREE),
        "log_evidence: expected",
    ),
    "a loss that declares nothing": (
        lambda: imaml.likelihood(lambda phi, batch: 0.0),
        "does not say how many rows it is a mean of",
    ),
    "noise of classes": (
        lambda: imaml.likelihood(LOGISTIC, 1.0),
        "expected None, as categorical rows have no noise",
    ),
    "noise of zero": (lambda: imaml.likelihood(LINE, 0.0), "noise: expected a finite number above 0"),
    "noise by leaf": (lambda: imaml.likelihood(LINE, imaml.learned(1.0)), "noise: expected .*got per='leaf'"),
    "noise not given": (lambda: PROBABLE.loss(MEAN, THREE), r"call loss\.given\(theta\)"),
    "theta without noise": (
        lambda: PROBABLE.objective(MEAN, imaml.Theta(MEAN, jnp.zeros(())), THREE),
        "with log_noise",
    ),
    "a batch without targets": (
        lambda: COUNTED.objective(jnp.zeros(2), jnp.zeros(2), Rows(jnp.ones((3, 2)), jnp.ones(3))),
        "expected a batch with labels, as rows are categorical, got a Rows",
    ),
    "targets of another shape": (
        lambda: PROBABLE.objective(MEAN, PROBABLE.parameters(MEAN), THREE._replace(targets=jnp.ones((3, 1)))),
        r"like the targets, .*\(3, 1\), got .*\(3,\)",
    ),
    "weights of another shape": (
        lambda: PROBABLE.objective(MEAN, PROBABLE.parameters(MEAN), THREE._replace(weights=jnp.ones(2))),
        r"batch.weights: expected shape \(3,\).*got \(2,\)",
    ),
    "moments of low rank": (
        lambda: refused(imaml.moments(), linear_problem("low-rank")),
        "no step in closed form",
    ),
    "dense precision, diagonal moments": (
        lambda: refused(imaml.moments("diagonal"), linear_problem("dense")),
        "needs full covariances",
    ),
    "moments of a head": (
        lambda: refused(imaml.moments(), linear_problem("all", adapt="slope")),
        "some that are shared",
    ),
    "moments of another form": (lambda: imaml.moments("band"), "moments: form: expected one of"),
    "averages by low rank": (
        lambda: imaml.averaged(LINEAR, form="low-rank"),
        "averaged: form: expected one of 'dense', 'diagonal', 'rows', got 'low-rank'",
    ),
    "rows with a matrix": (
        lambda: shaped_of("dense", form="rows"),
        "form='rows': expected .*got a prior whose precision is a matrix",
    ),
    "rows of a Hessian": (
        lambda: shaped_of("parameter", form="rows", curvature="hessian"),
        "expected a strength per 'all', 'leaf' or 'parameter' and curvature 'gauss-newton'",
    ),
    "averages of nothing": (lambda: imaml.averaged(LINEAR, samples=0), "samples: expected .*, got 0"),
    "evidence, another curvature": (
        lambda: imaml.evidence(LINEAR, curvature="newton"),
        "got 'newton'",
    ),
    "one probe": (lambda: imaml.Quadrature(probes=1), "probes: expected a whole number of at least 2"),
    "another form": (
        lambda: imaml.posterior(PROBABLE, MEAN, PROBABLE.parameters(MEAN), THREE, form="full"),
        "form: expected .*, got 'full'",
    ),
    "diagonal of a dense prior": (
        lambda: imaml.posterior(linear_problem("dense"), MEAN, theta_of("dense"), THREE, form="diagonal"),
        "whose precision is a matrix",
    ),
    "diagonal of a Hessian": (
        lambda: imaml.posterior(
            PROBABLE, MEAN, PROBABLE.parameters(MEAN), THREE, form="diagonal", curvature="hessian"
        ),
        "form='diagonal': expected .* curvature 'gauss-newton', got",
    ),
    "probabilities of numbers": (
        lambda: GAUSSIAN().probabilities(THREE),
        "got one of gaussian rows. Hint: use predict",
    ),
    "numbers of classes": (
        lambda: imaml.posterior(COUNTED, jnp.zeros(2), jnp.zeros(2), THREE).predict(THREE),
        "got one of categorical rows. Hint: use probabilities",
    ),
    "too dense": (
        lambda: imaml.proximal(LINE, imaml.learned(1.0, "dense")).parameters(jnp.zeros(2001)),
        "expected at most 2000 parameters, got 2001",
    ),
    "a rate that is a matrix": (
        lambda: imaml.GradientDescent(imaml.learned(0.1, "dense"), steps=1),
        "a rate is not a matrix",
    ),
    "rank zero": (lambda: imaml.learned(1.0, "low-rank", rank=0), "rank: expected .*, got 0"),
    "preconditioner of a matrix": (
        lambda: imaml.IMAML(
            linear_problem("dense"), query_loss, inner=INNER, linear=imaml.CG(precondition=imaml.Diagonal())
        ),
        "got a matrix, learned per='dense'. Hint: use CG",
    ),
    "strengths of a matrix": (
        lambda: linear_problem("dense").strengths(MEAN, theta_of("dense")),
        "use problem.precision",
    ),
    "envelope with learned noise": (
        lambda: imaml.Reptile(imaml.proximal(imaml.likelihood(LINE), 1.0), query_loss, inner=INNER),
        "got a learned strength or noise",
    ),
    "a few rows of a sum": (
        lambda: imaml.SGD(0.1, rows=1, epochs=1)(PROBABLE, PROBABLE.parameters(MEAN), THREE),
        "NegativeLogLikelihood, which is a sum",
    ),
    "recipe: moments of low rank": (lambda: Method("moments", learned="low-rank"), "no step in closed form"),
    "recipe: moments, corrected": (
        lambda: Method("moments", correct=True),
        "expected no correct with name='moments', got correct=True",
    ),
    "recipe: bayes of imaml": (
        lambda: Method(bayes=Bayes(noise=2.0)),
        "no bayes with name='imaml', got bayes",
    ),
    "recipe: posterior by low rank": (
        lambda: Method("posterior", bayes=Bayes(form="low-rank")),
        "form: expected .* with name='posterior', got 'low-rank'",
    ),
    "recipe: noise": (lambda: Bayes(noise=-1.0), "noise: expected .*, got -1.0"),
    "recipe: determinant": (
        lambda: Bayes(determinant=7),
        "expected Quadrature or None, got 7",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    make, words = REFUSALS[name]
    with pytest.raises(imaml.ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("evidence", {"learned": "dense"}),
        ("evidence", {"learned": "low-rank", "rank": 2, "bayes": Bayes(determinant=imaml.Quadrature(5, 4))}),
        ("moments", {"learned": "dense", "bayes": Bayes(noise=0.5)}),
        ("posterior", {"learned": "leaf", "curvature": "gauss-newton", "bayes": Bayes(samples=2)}),
    ],
)
def test_recipes_become_methods(name, options):
    domain = imaml.linear_gaussian(features=2, shots=3, queries=4)
    recipe = Method(name, strength=0.7, inner=imaml.NewtonCG(2), **options)
    method = recipe.build(domain)
    assert method.origin == (recipe, domain.recipe)
    config = Config(domain.recipe, recipe, imaml.Optimiser("sgd", 0.1))
    assert from_json(to_json(config)) == config
    theta = method.init(domain, KEY)
    assert theta.log_noise == np.log(recipe.bayes.noise)


@pytest.mark.parametrize("make", slow_after_first([imaml.ExpectationMaximisation, imaml.EmpiricalBayes]))
def test_a_task_whose_rows_are_both_support_and_query_counts_each_once(make):
    """Also if they are copies: Task(rows, rows) is Task(rows), with a warning; no split of other rows is."""
    problem = imaml.proximal(imaml.likelihood(LinearLoss(), imaml.learned(1.0, per="all")), 1.0)
    options = {"linear": imaml.CG(steps=2)} if make is imaml.EmpiricalBayes else {}
    method = make(problem, lambda *_: jnp.zeros(()), inner=INNER, **options)
    x = np.random.default_rng(0).normal(size=(3, 4, 2))
    rows = Points(jnp.asarray(x), jnp.asarray(x @ [1.0, 2.0]))
    theta = method.init(jnp.zeros(2))
    once = method(theta, imaml.Task(rows))[0]
    for query in (rows, jax.tree.map(jnp.copy, rows)):
        with pytest.warns(RuntimeWarning, match="the same rows, and each is counted once"):
            found = method(theta, imaml.Task(rows, query))[0]
        for got, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(once), strict=True):
            np.testing.assert_array_equal(got, wanted)
    half = [jax.tree.map(lambda leaf, s=s: leaf[:, s], rows) for s in (slice(2), slice(2, 4))]
    for got, wanted in zip(
        jax.tree.leaves(method(theta, imaml.Task(*half))[0]), jax.tree.leaves(once), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-9)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_predictions_of_a_posterior_are_shaped_like_the_targets(shape):
    problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), 1.0)
    rows = Points(jnp.ones((3, 2)), jnp.ones(shape))
    phi = jnp.zeros((2, *shape[1:]))
    for part in imaml.posterior(problem, phi, phi, rows).predict(rows):
        assert part.shape == shape
