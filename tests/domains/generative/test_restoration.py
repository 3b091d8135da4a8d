"""Restoration by an energy: its inner minimum by a dense solve, and a meta-gradient through two minima."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.differences import check_meta_gradient, in_double
from imaml.domains.generative.generation import GenerationRecipe
from imaml.domains.generative.restoration import Blurred, Damaged, RestorationRecipe

pytestmark = pytest.mark.usefixtures("ranks_mixed")


def small(**options):
    """A small domain, one of its tasks and theta, in float64."""
    domain = imaml.restoration(
        shots=2, queries=2, noises=2, side=7, hidden=(3,), **{"steps": 600, "rate": 0.03, **options}
    )
    task = jax.jit(lambda key: domain.sample(key, "train"))(jax.random.key(0))
    return domain, *in_double((task, domain.init(jax.random.key(1))))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["half", "noise"])
def test_a_drawing_is_restored_as_by_a_dense_solve_where_the_energy_is_quadratic(damage):
    """Without hidden layers f = k.y + b: then (1/sigma^2 + weights) y = weights seen + k / sigma^2."""
    domain, task, _ = small(damage=damage)
    domain = dataclasses.replace(domain, recipe=dataclasses.replace(domain.recipe, hidden=()))
    phi = in_double(domain.init(jax.random.key(1)))
    sharp, query = domain.recipe.sigma**-2, task.query
    kernel = phi["layer1"]["kernel"][:, 0]
    expected = (query.weights * query.seen + sharp * kernel) / (query.weights + sharp)
    np.testing.assert_allclose(domain.restored(phi, query), expected, atol=1e-9)
    np.testing.assert_allclose(domain.error(query.blurred.drawings, query), 0.0, atol=1e-15)
    assert domain.metrics(phi, task)["unrestored"] < 1e-8
    hasty = dataclasses.replace(domain, recipe=dataclasses.replace(domain.recipe, steps=1))
    assert hasty.metrics(phi, task)["unrestored"] > 1e-3


@pytest.mark.slow
def test_half_of_a_drawing_is_hidden_and_the_rest_is_as_it_was():
    _, task, _ = small()
    seen, weights, whole = task.query.seen, task.query.weights, task.query.blurred.drawings
    np.testing.assert_allclose(np.where(weights > 0, seen - whole, seen), 0.0)
    assert set(np.sum(np.asarray(weights) == 0, axis=1)) <= {21, 28}  # 3 or 4 of 7 rows or columns


@pytest.mark.slow
def test_the_meta_gradient_through_both_minima_equals_central_differences():
    domain, task, theta = small()
    inner, linear = imaml.GradientDescent(0.3, tolerance=1e-11), imaml.CG(tolerance=1e-12)
    check_meta_gradient(domain.problem(1.0), domain.query_loss, theta, task, inner, linear)


@pytest.mark.slow
def test_the_mean_of_the_support_restores_better_than_nothing_and_worse_than_the_truth():
    domain = imaml.restoration(shots=10, queries=10)
    draw = jax.jit(jax.vmap(lambda key: domain.sample(key, "test")))
    tasks = draw(jax.random.split(jax.random.key(0), 8))
    found = {name: float(jnp.mean(each)) for name, each in jax.vmap(domain.baselines)(tasks).items()}
    assert found["mean_of_support"] < found["nearest_of_support"] < found["as_it_is"]


def test_little_noise_is_damage_of_all_pixels():
    domain = imaml.restoration(damage="noise", noise=0.2, side=7, hidden=(3,), rate=0.02)
    whole = jnp.full((2, 49), 0.5)
    blurred = Blurred(whole, jnp.zeros((2, 1, 49)))
    query = Damaged(blurred, whole, jnp.full((2, 49), domain.recipe.noise**-2))
    np.testing.assert_allclose(domain.error(whole + 0.1, query), 0.01, rtol=1e-5)


def test_a_rate_at_which_restoration_diverges_is_refused():
    with pytest.raises(
        imaml.ConfigError, match=r"rate: expected below 0.018, .* got 0.04. Hint: set --domain"
    ):
        imaml.restoration(damage="noise", noise=0.1)


@pytest.mark.parametrize("damage", ["half", "noise"])
def test_drawings_of_eight_bits_are_refused(damage):
    domain = RestorationRecipe(damage=damage, side=7).without_data()
    bits = np.full((2, 28, 28), 200, np.uint8)
    for wrong in (bits, bits.astype(float), -bits.astype(float)):
        for encode in (domain.encode, domain.encode_query):
            with pytest.raises(
                imaml.DataError, match=r"x: expected drawings in \[0, 1\], .*Hint: divide 8-bit"
            ):
                encode(wrong)
    seen = np.where(bits > 200, np.nan, 1.2 if damage == "noise" else 1.0)
    seen[0, :14] = np.nan
    assert domain.encode_query(seen)[0].shape == (2, 49)
    ink = (bits > 100).astype(np.uint8)  # 0 and 1
    assert float(domain.encode(ink).support.drawings.max()) == 1


def test_drawings_of_eight_bits_are_refused_by_generation():
    domain = GenerationRecipe(side=7).without_data()
    with pytest.raises(imaml.DataError, match=r"x: expected drawings in \[0, 1\]"):
        domain.encode(np.full((2, 28, 28), 200, np.uint8))
