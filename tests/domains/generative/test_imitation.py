"""A generator against a discriminator: the field, the two-sample statistic, and the meta-gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.differences import check_meta_gradient, in_double
from helpers.marks import slow_after_first
from imaml.domains.generative.adversarial import two_samples
from imaml.domains.generative.generation import Sketches

WIDTHS = (0.25, 0.5, 1.0)
pytestmark = pytest.mark.usefixtures("ranks_mixed")


def test_the_statistic_is_that_of_the_paper_and_zero_on_average_for_equal_densities():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5, 2)), random.normal(size=(4, 2)) + 1
    kernel = lambda a, b: np.mean([np.exp(-np.sum((a - b) ** 2) / (2 * w**2)) for w in WIDTHS])  # noqa: E731
    pairs = lambda a: np.mean([kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j])  # noqa: E731
    expected = pairs(x) + pairs(y) - 2 * np.mean([kernel(p, q) for p in x for q in y])
    np.testing.assert_allclose(two_samples(jnp.asarray(x), jnp.asarray(y), WIDTHS), expected, atol=1e-12)
    many = jnp.asarray(random.normal(size=(400, 2, 30, 2)))
    values = np.asarray(jax.vmap(lambda pair: two_samples(pair[0], pair[1], WIDTHS))(many))
    assert abs(values.mean()) < 4 * values.std() / 20
    assert jnp.mean(jax.vmap(lambda pair: two_samples(pair[0], pair[1] + 1, WIDTHS))(many)) > 0.05


DOMAINS = {
    "imitation": lambda: imaml.imitation(shots=4, queries=5, hidden=(4,)),
    "generation": lambda: imaml.generation(
        shots=3, queries=3, made=4, others=1, side=7, latent=2, generator=(3,), discriminator=(2,)
    ),
}


def small(name):
    """A small domain, one of its tasks and theta, in float64."""
    domain = DOMAINS[name]()
    task = jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0))
    return domain, *in_double((task, domain.init(jax.random.key(1))))


@pytest.mark.slow
@pytest.mark.parametrize("name", DOMAINS)
def test_each_player_has_the_slope_of_its_own_loss_alone(name):
    """By central differences of either loss in its own player's parameters."""
    domain, task, theta = small(name)
    field, found = domain.field, domain.field(theta, task.support)
    for player, loss in (("generator", field.fooling), ("discriminator", field.telling)):
        way = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(3), leaf.shape), theta[player])
        moved = [
            loss(**(theta | {player: jax.tree.map(lambda t, w, s=s: t + s * 1e-5 * w, theta[player], way)}),
                 batch=task.support)
            for s in (1, -1)
        ]  # fmt: skip
        along = sum(jnp.vdot(g, w) for g, w in zip(*map(jax.tree.leaves, (found[player], way)), strict=True))
        assert abs(along) > 1e-3
        np.testing.assert_allclose(along, (moved[0] - moved[1]) / 2e-5, rtol=1e-6)
    joint = jax.grad(domain.joint_loss)(theta, task.support)
    for a, b in zip(jax.tree.leaves(joint), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("name", slow_after_first(DOMAINS))
def test_the_meta_gradient_equals_central_differences(name):
    domain, task, theta = small(name)
    inner, linear = imaml.ExtraGradient(0.2, tolerance=1e-12), imaml.GMRES(tolerance=1e-12)
    check_meta_gradient(domain.problem(1.0), domain.query_loss, theta, task, inner, linear)


@pytest.mark.slow
def test_the_support_resembles_the_query_more_than_a_normal_distribution_does():
    domain = imaml.imitation(shots=60, queries=60)
    tasks = jax.vmap(lambda key: domain.sample(key, "test"))(jax.random.split(jax.random.key(0), 20))
    found = {name: float(np.mean(each)) for name, each in jax.vmap(domain.baselines)(tasks).items()}
    assert abs(found["the_support_itself"]) < 0.01 < found["normal"]


@pytest.mark.slow
def test_drawings_are_recognised_where_they_are_of_the_character_and_not_where_they_are_of_another():
    domain = imaml.generation(shots=10, queries=10, others=3)
    draw = jax.jit(jax.vmap(lambda key: domain.sample(key, "test")))
    tasks = draw(jax.random.split(jax.random.key(0), 8))
    recognised = jax.vmap(domain._recognised)
    own, others = recognised(tasks.support.points, tasks.query), recognised(tasks.query.others, tasks.query)
    assert np.mean(own) > 0.6
    assert np.all(others == 0)
    found = {name: float(np.mean(each)) for name, each in jax.vmap(domain.baselines)(tasks).items()}
    assert abs(found["the_support_itself"]) < 0.03 < found["another_character"]
    assert found["the_support_itself"] < found["its_mean"]


def test_ink_runs_into_neighbouring_pixels_and_not_around_the_edge():
    made = Sketches(imaml.MLP((2, 49)), 7)
    parameters = made.init(jax.random.key(0))
    assert jax.nn.sigmoid(made.forward(parameters, jnp.zeros((1, 2)))[0]).mean() < 0.2  # mostly paper
    dot = np.zeros((7, 7))
    dot[3, 2] = 1.0
    expected = np.zeros((7, 7))
    expected[2:5, 1:4] = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
    parameters["layer1"] = {"kernel": jnp.zeros((2, 49)), "bias": jnp.asarray(dot.ravel())}
    np.testing.assert_allclose(made.forward(parameters, jnp.zeros((1, 2)))[0].reshape(7, 7), expected)
    parameters["layer1"]["bias"] = jnp.eye(49)[0]
    corner = made.forward(parameters, jnp.zeros((1, 2)))[0].reshape(7, 7)
    assert corner[0, 0] == 0.25
    assert corner[0, -1] == corner[-1, 0] == 0
