"""The likelihood of a prior: the value of `log_evidence`, its derivatives, and what a step does."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.marks import slow_after_first
from imaml.core.errors import StructureError
from imaml.domains.networks import MLP
from imaml.domains.regression import NetworkLoss, Points
from imaml.domains.tasks.layout import Rows
from imaml.domains.tasks.losses import TaskLoss
from imaml.domains.tasks.own_losses import loss_of
from imaml.meta.marginal import flattened, newton, roots, surprise, unrooted

NEWTON = imaml.NewtonCG(steps=20, linear=imaml.CG(steps=5))
LINEAR = MLP((2, 1))


@pytest.fixture(autouse=True)
def ranks(ranks_mixed):
    """Networks add a bias to every row."""


def case(kind, per, adapt=None):
    """A problem, a theta, and six rows of one task."""
    random = np.random.default_rng(3)
    x, y = random.normal(size=(6, 2)), random.poisson(2.0, size=(6, 1)).astype(float)
    strength = imaml.learned(2.0, per=per)
    if kind == "gaussian":
        loss, noise = NetworkLoss(LINEAR), imaml.learned(0.5, per="all")
        rows = Points(jnp.asarray(x), jnp.asarray(y))
    else:
        loss, noise = TaskLoss(LINEAR, loss_of(kind)), None
        rows = Rows(jnp.asarray(x), jnp.asarray(y), jnp.array([1.0, 1, 1, 1, 2, 0]), None)
    problem = imaml.proximal(imaml.likelihood(loss, noise), strength, adapt)
    mean = jax.tree.map(lambda leaf: 0.3 + leaf.astype(float), LINEAR.init(jax.random.key(0)))
    return problem, problem.parameters(mean), rows


CASES = {
    "gaussian, dense": ("gaussian", "dense"),
    "gaussian, intercepts": ("gaussian", "all", "layer1/bias"),
    "poisson, leaf": ("poisson", "leaf"),
    "poisson, intercepts": ("poisson", "parameter", "layer1/bias"),
}


@pytest.mark.parametrize("name", slow_after_first(CASES))
def test_the_surprise_is_the_evidence_and_its_derivatives_are_central_differences(name):
    problem, theta, rows = case(*CASES[name])
    rooted = roots(problem, theta)
    phi = problem.full(NEWTON(problem, theta, rows).value, theta)
    expected = -imaml.log_evidence(problem, phi, theta, rows, curvature="hessian").value
    at, back = flattened(problem, rooted)
    value = jax.jit(lambda x: surprise(problem, back(x), rows))
    np.testing.assert_allclose(value(at), expected, rtol=1e-8)
    direction = jnp.asarray(np.random.default_rng(0).normal(size=at.size))
    line = lambda t: value(at + t * direction)  # noqa: E731
    slope, curvature = jax.jit(lambda t: (jax.grad(line)(t), jax.grad(jax.grad(line))(t)))(0.0)
    np.testing.assert_allclose(slope, (line(1e-4) - line(-1e-4)) / 2e-4, rtol=1e-5, atol=1e-6)
    step = 1e-3
    second = (line(step) + line(-step) - 2 * line(0.0)) / step**2
    np.testing.assert_allclose(curvature, second, rtol=1e-4)
    for back_again, leaf in zip(
        jax.tree.leaves(unrooted(problem, rooted)), jax.tree.leaves(theta), strict=True
    ):
        np.testing.assert_allclose(back_again, leaf, atol=1e-9)


def test_a_step_lowers_the_surprise_and_leaves_a_saddle():
    """Without a slope in L at L = 0, only the curvature says that there is variance between tasks."""
    problem, theta, _ = case("gaussian", "all", "layer1/bias")
    random = np.random.default_rng(1)
    x, y = random.normal(size=(20, 4, 2)), random.normal(size=(20, 4, 1)) + 3 * random.normal(size=(20, 1, 1))
    tasks, step = Points(jnp.asarray(x), jnp.asarray(y)), jax.jit(lambda r: newton(problem, r, tasks))
    rooted = roots(problem, theta)._replace(log_strength=jnp.array(0.0), log_noise=jnp.array(0.0))
    values = []
    for _ in range(30):
        move = step(rooted)
        rooted = move.rooted
        values.append(float(move.surprises.sum()))
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(values))
    assert abs(rooted.log_strength) > 1
    assert move.distance < 1e-3


def test_models_that_are_not_linear_or_too_large_are_refused():
    problem, theta, rows = case("gaussian", "dense")
    deep = MLP((2, 3, 1), "tanh")
    bent = imaml.proximal(imaml.likelihood(NetworkLoss(deep), 1.0), imaml.learned(1.0, per="all"))
    with pytest.raises(StructureError, match="expected outputs that are linear in the parameters"):
        surprise(bent, roots(bent, bent.parameters(deep.init(jax.random.key(0)))), rows)
    low = imaml.proximal(problem.loss, imaml.learned(1.0, per="low-rank"))
    with pytest.raises(StructureError, match="got 'low-rank'"):
        roots(low, low.parameters(theta.mean))
    wide = MLP((25, 1))
    many = imaml.proximal(imaml.likelihood(NetworkLoss(wide), 1.0), imaml.learned(1.0, per="dense"))
    big = roots(many, many.parameters(wide.init(jax.random.key(0))))
    with pytest.raises(StructureError, match="at most 300 learned numbers, got 377"):
        newton(many, big, Points(jnp.zeros((2, 3, 25)), jnp.zeros((2, 3, 1))))
