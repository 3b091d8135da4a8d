"""Gymnasium's carts: stepped outside of JAX alike, episodes that fit their physics, and the meta-gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.differences import check_meta_gradient, in_double
from imaml.domains.control import carts

pytestmark = pytest.mark.usefixtures("ranks_mixed")
PHYSICS = np.array([0.5, 0.1, 9.8, 10.0], np.float32)  # Gymnasium's own


def small(**options):
    sizes = {"queries": 40, "training": 6, "validation": 3, "test": 3, "horizon": 60, "hidden": (6,)}
    return imaml.carts(steps=30, **(sizes | options))


def test_with_its_own_physics_a_cart_is_the_registered_environment():
    import gymnasium

    theirs = gymnasium.make("CartPole-v1").unwrapped
    ours = carts.cart_of(PHYSICS)
    for env in (theirs, ours):
        env.reset(seed=3)
    for push in (0, 1, 1, 0, 1):
        np.testing.assert_allclose(ours.step(push)[0], theirs.step(push)[0], rtol=1e-6)


def test_a_motor_wired_the_other_way_turns_every_push_around():
    other = PHYSICS * np.array([1, 1, 1, -1], np.float32)
    one, two = (carts.cart_of(each) for each in (PHYSICS, other))
    for env in (one, two):
        env.reset(seed=3)
    np.testing.assert_allclose(one.step(0)[0], two.step(1)[0], rtol=1e-6)
    assert np.abs(one.step(1)[0] - two.step(1)[0]).max() > 0.1


def test_transitions_are_steps_of_the_environment_and_rewards_are_summed_to_the_fall():
    domain = small()
    task = jax.tree.map(np.asarray, domain.gather(jnp.asarray(2)))
    states, after = task.query.transitions.states, task.query.transitions.following
    cart = carts.cart_of(task.query.physics)
    for row in (0, 7, 20):
        cart.reset(seed=0)
        cart.state = tuple(states[row].astype(np.float64) * carts.SCALES)
        found = cart.step(int(task.query.transitions.actions[row]))[0] / carts.SCALES
        np.testing.assert_allclose(found, after[row], atol=1e-5)
    goes_on = np.all(states[1:] == after[:-1], axis=1)
    assert goes_on.any()
    assert not goes_on.all()  # an episode ended, and another began
    cart, random = carts.cart_of(PHYSICS), np.random.default_rng(0)
    transitions, gains = carts._episodes(cart, random, 50, 0.9)
    states, following = transitions.states, transitions.following
    for row in range(49):
        onward = gains[row + 1] if np.array_equal(states[row + 1], following[row]) else 0.0
        np.testing.assert_allclose(gains[row], 1 + 0.9 * onward, rtol=1e-5)


def test_fallen_poles_are_worth_nothing():
    domain = small()
    critic = domain.init(jax.random.key(0))["critic"]
    states = jnp.array([[0.0, 0, 0.5, 0], [0.0, 0, 1.01, 0], [-1.2, 0, 0, 0]])
    values = domain.field.value(critic, states)
    assert values[0] != 0
    np.testing.assert_array_equal(values[1:], 0)


def test_the_callback_plays_the_same_policy_as_jax():
    domain = small()
    task, phi = domain.gather(jnp.asarray(0)), domain.init(jax.random.key(1))
    logits = domain.recipe.actor.forward(phi["actor"], task.support.states)[0]
    actor = jax.tree.map(np.asarray, phi["actor"])
    pushes = [carts.likelier(np.asarray(x), PHYSICS, actor) for x in task.support.states]
    np.testing.assert_array_equal(pushes, np.argmax(logits, 1))
    assert 0 < np.mean(pushes) < 1


def test_returns_are_the_environment_s_under_jit_and_vmap():
    domain = small()
    numbers = jnp.arange(3)
    tasks = jax.vmap(domain.gather)(numbers)
    found = jax.jit(jax.vmap(domain.baselines))(tasks)
    for i in range(3):
        physics = np.asarray(tasks.query.physics[i])
        for name, policy in (("random_pushes", carts.random), ("wiring_known", carts.upright)):
            up = [
                len(carts.ride(physics, lambda x, p=policy, k=physics: p(x, k), 60, seed)) for seed in (0, 1)
            ]
            assert found[name][i] == np.mean(up)
    assert np.all(found["wiring_known"] == 60)
    assert np.all(found["random_pushes"] < 60)


@pytest.mark.slow
def test_the_meta_gradient_equals_central_differences():
    domain = small(hidden=(4,))
    task, theta = in_double((domain.sample(jax.random.key(0), "train"), domain.init(jax.random.key(1))))
    inner, linear = imaml.GradientDescent(0.05, tolerance=1e-11), imaml.GMRES(tolerance=1e-12)
    check_meta_gradient(domain.problem(5.0), domain.query_loss, theta, task, inner, linear)


def test_draws_take_every_cart_before_any_twice():
    domain = small()
    drawn = np.asarray(domain.draws(jax.random.key(0), "validation", 6))
    assert sorted(drawn) == [6, 6, 7, 7, 8, 8]
    assert sorted(drawn[:3]) == [6, 7, 8]


def test_without_gymnasium_it_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gymnasium.envs.classic_control.cartpole", None)
    with pytest.raises(imaml.ConfigError, match="pip install gymnasium"):
        small(seed=9)


@pytest.mark.parametrize(("options", "words"), [({"discount": 1.0}, "below 1"), ({"queries": 0}, "queries")])
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(imaml.ConfigError, match=words):
        small(**options)
