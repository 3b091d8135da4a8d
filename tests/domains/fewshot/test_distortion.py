"""Random distortions of drawings: against SciPy's interpolation, and what is shared by a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import imaml
from imaml.domains.fewshot import distortion

SIDE = 9
IMAGES = jax.random.uniform(jax.random.key(0), (4, SIDE, SIDE, 2), jnp.float32)


@pytest.fixture(autouse=True)
def ranks():
    """Point sets add their shifts by broadcasting."""
    with jax.numpy_rank_promotion("allow"):
        yield


def some(amount, ways=1, each=4):
    return distortion.draw(jax.random.key(1), ways, each, amount)


def one_class(maps, way=0):
    return jax.tree.map(lambda leaf: leaf[way], maps)


def test_amount_0_leaves_images_as_they_are():
    np.testing.assert_allclose(distortion.warp(IMAGES, one_class(some(0.0))), IMAGES, atol=1e-5)


@pytest.mark.parametrize("amount", [0.5, 1.0, 2.0])
def test_equals_scipy(amount):
    maps = one_class(some(amount))
    warped = np.asarray(distortion.warp(IMAGES, maps))
    middle, half = (SIDE - 1) / 2, SIDE / 2
    for number, image in enumerate(np.asarray(IMAGES)):
        drawing, shape = np.asarray(maps.drawing[number], float), np.asarray(maps.shape[number], float)
        for row in range(SIDE):
            for column in range(SIDE):
                down, across = drawing @ [(row - middle) / half, (column - middle) / half, 1.0]
                place = shape @ [down, across, down * down, down * across, across * across] * half + middle
                expected = [
                    map_coordinates(image[..., c], place[:, None], order=1, mode="grid-constant")[0]
                    for c in (0, 1)
                ]
                np.testing.assert_allclose(warped[number, row, column], expected, atol=1e-4)  # float32


def test_a_shift_moves_the_image_and_zero_comes_in():
    maps = some(0.0)
    drawing = maps.drawing.at[..., 0, 2].set(2 / (SIDE / 2))  # each point shows what lies two rows below it
    warped = distortion.warp(IMAGES, one_class(maps._replace(drawing=drawing)))
    np.testing.assert_allclose(warped[:, :-2], IMAGES[:, 2:], atol=1e-5)
    np.testing.assert_allclose(warped[:, -2:], 0.0, atol=1e-5)


def test_a_task_shares_its_shape_and_no_two_drawings_agree():
    maps = some(1.0, ways=3, each=5)
    assert maps.drawing.shape == (3, 5, 2, 3)
    assert maps.shape.shape == (3, 5, 2, 5)
    assert np.all(np.asarray(maps.shape) == np.asarray(maps.shape)[:1, :1])
    assert np.any(maps.shape != some(0.0).shape[0, 0])
    assert len(np.unique(np.asarray(maps.drawing).reshape(15, -1), axis=0)) == 15


def test_amount_scales_the_deviations():
    keys = jax.random.split(jax.random.key(4), 500)
    small, large = (
        jax.vmap(lambda k, amount=amount: distortion.draw(k, 1, 1, amount))(keys) for amount in (0.1, 0.2)
    )
    for which in ("drawing", "shape"):
        identity = np.eye(2, getattr(small, which).shape[-1])
        ratio = np.std(getattr(large, which) - identity) / np.std(getattr(small, which) - identity)
        assert 1.9 < ratio < 2.1


@pytest.mark.slow
def test_only_training_tasks_are_distorted():
    plain = imaml.characters(ways=3, filters=4)
    distorted = imaml.characters(ways=3, filters=4, distortion=1.0)
    key = jax.random.key(2)
    assert distorted.draw(key, "test").maps is None
    assert distorted.draw(key, "validation").maps is None
    left, right = (jax.jit(lambda k, d=d: d.sample(k, "train"))(key) for d in (plain, distorted))
    np.testing.assert_array_equal(left.support.labels, right.support.labels)
    assert left.support.images.shape == right.support.images.shape
    assert float(jnp.abs(left.support.images - right.support.images).max()) > 0.1
    np.testing.assert_array_equal(right.query.reference, right.support.images)
