"""Inner learning rates that iMAML learns, by how far one step more lowers the inner objective."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imaml
from imaml.config.methods import Method
from imaml.inner.base import Instance

CURVATURES = jnp.array([1.0, 20.0])


def loss(phi, x):
    return 0.5 * jnp.sum(CURVATURES * (jnp.concatenate([phi["a"], phi["b"]]) - x) ** 2)


def query_loss(phi, theta, x):
    return loss(phi, x)


PROBLEM = imaml.proximal(loss, 0.5)
THETA = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
TASKS = imaml.Task(jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([[1.5, 1.0], [0.0, -1.0]]))


@pytest.mark.parametrize("per", ["all", "leaf", "parameter"])
def test_the_rates_gradient_is_that_of_the_objective_after_one_step_more(per):
    inner = imaml.GradientDescent(imaml.learned(0.04, per=per), steps=3)
    theta = inner.parameters(PROBLEM, THETA)
    x = TASKS.support[0]
    phi = inner(PROBLEM, theta, x).value
    slope = PROBLEM.residual(phi, theta, x)
    square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slope))

    def after(logs):
        rates = inner.rates(theta._replace(log_rate=logs), phi)
        moved = jax.tree.map(lambda p, r, g: p - r * g, phi, rates, slope)
        return PROBLEM.objective(moved, theta, x) / square

    found = inner.rate_gradient(Instance(PROBLEM, theta, x, phi, None), phi)
    expected = jax.grad(after)(theta.log_rate)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_the_rest_of_the_meta_gradient_is_that_of_fixed_rates():
    options = {"linear": imaml.CG(tolerance=1e-12)}
    inner = imaml.GradientDescent(imaml.learned(0.04, per="leaf"), steps=3)
    method = imaml.IMAML(PROBLEM, query_loss, inner=inner, **options)
    gradient, _ = method(method.init(THETA), TASKS)
    fixed = imaml.IMAML(PROBLEM, query_loss, inner=imaml.GradientDescent(0.04, steps=3), **options)
    expected, _ = fixed(THETA, TASKS)
    for one, other in zip(jax.tree.leaves(gradient.mean), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_rates_learn_the_curvature_of_each_leaf():
    """They come to one over the curvatures, 1 + 0.5 and 20 + 0.5: the steps after which nothing is left."""
    inner = imaml.GradientDescent(imaml.learned(0.02, per="leaf"), steps=2)
    method = imaml.IMAML(PROBLEM, query_loss, inner=inner, linear=imaml.CG(tolerance=1e-12))
    theta = method.init(THETA)
    adam = optax.adam(0.02)

    @jax.jit
    def learn(theta):
        def step(state, _):
            logs, memory = state
            change, memory = adam.update(method(theta._replace(log_rate=logs), TASKS)[0].log_rate, memory)
            return (optax.apply_updates(logs, change), memory), None

        return jax.lax.scan(step, (theta.log_rate, adam.init(theta.log_rate)), length=600)[0][0]

    theta = theta._replace(log_rate=learn(theta))
    rates = jax.tree.map(lambda leaf: float(jnp.exp(leaf)), theta.log_rate)
    assert (rates["a"], rates["b"]) == (pytest.approx(1 / 1.5, rel=0.1), pytest.approx(1 / 20.5, rel=0.1))


def test_a_recipe_learns_rates_and_a_run_keeps_them(tmp_path):
    method = Method("imaml", strength=1.0, inner=imaml.GradientDescent(0.01, steps=2), rates="leaf")
    domain = imaml.sinusoid(hidden=6)
    with jax.numpy_rank_promotion("allow"):
        run = imaml.train(domain, method, steps=3, tasks=2, validate_every=0, progress=False)
        run.save(tmp_path / "run.safetensors")
        learner = imaml.load(tmp_path / "run.safetensors")
        assert set(learner.theta.log_rate) == {"layer1", "layer2", "layer3"}
        assert any(float(leaf) != pytest.approx(np.log(0.01)) for leaf in jax.tree.leaves(run.theta.log_rate))
        learner.adapt(np.zeros(3), np.ones(3)).predict(np.zeros(1))
    with pytest.raises(imaml.ConfigError, match="rates: expected None, as only GradientDescent"):
        dataclasses.replace(method, inner=imaml.NewtonCG(steps=2))
