"""Actor and critic: a two-state process against enumeration, the field, and the meta-gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.differences import check_meta_gradient, in_double
from imaml.domains.control.actor_critic import ActorCritic, Transitions
from imaml.domains.control.navigation import NavigationRecipe

pytestmark = pytest.mark.usefixtures("ranks_mixed")
DISCOUNT = 0.7
MOVES = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.3, 0.7]]])  # state, action, state
REWARDS = np.array([0.3, -1.0])  # of arriving
LOGITS = np.array([[0.4, -0.3], [-0.8, 0.5]])


class TwoStates(ActorCritic):
    """A table of logits, and a table of values."""

    def log_chance(self, actor, states, actions):
        return jax.nn.log_softmax(actor)[states, actions]

    def value(self, critic, states):
        return critic[states]


FIELD = TwoStates(NavigationRecipe(discount=DISCOUNT))


def walked(count, seed=0):
    """Transitions from either state alike, by either action alike."""
    random = np.random.default_rng(seed)
    states, actions = random.integers(2, size=(2, count))
    following = (random.uniform(size=count) < MOVES[states, actions, 1]).astype(int)
    chances = np.full(count, np.log(0.5))
    return Transitions(*map(jnp.asarray, (states, actions, REWARDS[following], following, chances)))


def enumerated():
    """V of the policy, and the advantages (state, action), by linear algebra in NumPy."""
    policy = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    onward = np.einsum("sa,sat->st", policy, MOVES)
    worth = np.linalg.solve(np.eye(2) - DISCOUNT * onward, onward @ REWARDS)
    return policy, worth, MOVES @ (REWARDS + DISCOUNT * worth) - worth[:, None]


def test_the_field_is_the_policy_gradient_of_a_two_state_process_within_sampling_error():
    """At the true values: -1/2 sum_sa dpi(a|s) A(s, a) for the actor, and zero for the critic."""
    policy, worth, advantages = enumerated()
    expected = -0.5 * policy * (advantages - (policy * advantages).sum(1, keepdims=True))
    phi, batch = {"actor": jnp.asarray(LOGITS), "critic": jnp.asarray(worth)}, walked(40_000)
    each = jax.vmap(lambda *one: FIELD(phi, Transitions(*(leaf[None] for leaf in one))))(*batch)
    for found, truth in ((each["actor"], expected), (each["critic"], np.zeros(2))):
        error = np.std(found, axis=0) / np.sqrt(len(batch.rewards))
        assert np.all(error < 0.01)
        assert np.all(np.abs(np.mean(found, axis=0) - truth) < 4 * error)
    assert np.abs(expected).max() > 0.05


def test_the_critic_s_fixed_point_is_the_value_of_the_policy():
    """With every transition in the batch as often as it happens, exactly."""
    _, worth, _ = enumerated()
    s, a, t = (index.ravel() for index in np.indices((2, 2, 2)))
    share = MOVES[s, a, t]
    batch = Transitions(*map(jnp.asarray, (s, a, REWARDS[t], t, np.log(0.5 / (4 * share)))))  # 8 rows of 1/8
    phi = {"actor": jnp.asarray(LOGITS), "critic": jnp.asarray(worth)}
    np.testing.assert_allclose(FIELD(phi, batch)["critic"], 0, atol=1e-12)
    moved = {**phi, "critic": phi["critic"] + jnp.array([0.1, 0.0])}
    assert abs(float(FIELD(moved, batch)["critic"][0])) > 1e-3


def check_differences(problem, query_loss, theta, task, rate):
    """By gradient descent and GMRES."""
    inner, linear = imaml.GradientDescent(rate, tolerance=1e-11), imaml.GMRES(tolerance=1e-12)
    check_meta_gradient(problem, query_loss, theta, task, inner, linear)


def test_the_meta_gradient_of_a_two_state_process_equals_central_differences():
    """Of minus the true return of the adapted policy, in closed form."""

    def loss(phi, theta, batch):
        policy = jax.nn.softmax(phi["actor"])
        onward = jnp.einsum("sa,sat->st", policy, MOVES)
        return -jnp.mean(jnp.linalg.solve(jnp.eye(2) - DISCOUNT * onward, onward @ REWARDS))

    theta = {"actor": jnp.asarray(LOGITS), "critic": jnp.array([0.1, -0.2])}
    task = imaml.Task(walked(200), walked(200, 1))
    check_differences(imaml.equilibrium(FIELD, 0.3), loss, theta, task, 0.8)


@pytest.mark.slow
def test_the_meta_gradient_of_navigation_equals_central_differences():
    domain = imaml.navigation(episodes=2, length=5, horizon=4, hidden=(4,))
    task, theta = in_double((domain.sample(jax.random.key(0), "train"), domain.init(jax.random.key(1))))
    check_differences(domain.problem(5.0), domain.query_loss, theta, task, 0.05)


def test_conjugate_gradients_are_refused():
    domain = imaml.navigation(episodes=1, length=3, hidden=(4,))
    with pytest.raises(imaml.StructureError, match="GMRES"):
        imaml.IMAML(
            domain.problem(1.0),
            domain.query_loss,
            inner=imaml.GradientDescent(0.1, steps=2),
            linear=imaml.CG(5),
        )


def test_the_joint_loss_has_the_field_as_gradient():
    domain = imaml.navigation(episodes=2, length=5, hidden=(4,))
    task, theta = domain.sample(jax.random.key(0), "train"), domain.init(jax.random.key(1))
    found, expected = jax.grad(domain.joint_loss)(theta, task.support), domain.field(theta, task.support)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert jnp.linalg.norm(expected["actor"]["layer2"]["kernel"]) > 1e-3


def test_going_straight_is_better_than_staying():
    domain = imaml.navigation()
    tasks = jax.vmap(lambda key: domain.sample(key, "test"))(jax.random.split(jax.random.key(0), 20))
    found = jax.vmap(domain.baselines)(tasks)
    assert np.all(found["straight"] > found["no_moves"])


@pytest.mark.parametrize(
    ("options", "words"), [({"discount": 1.0}, "below 1"), ({"noise": 2.0}, "1.41 times exploration")]
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(imaml.ConfigError, match=words):
        imaml.navigation(**options)
