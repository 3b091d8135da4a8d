"""Drawings moved and scaled to one place and size: from the definition, and what does not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

import imaml
from imaml.domains import resampling
from imaml.domains.networks import Conv4

pytestmark = pytest.mark.usefixtures("ranks_mixed")
SIDE = 28


def drawing(down=0.0, across=0.0, size=1.0):
    """A smooth figure of three blobs of unequal mass, at a place and of a size in half sides."""
    d, a = (np.arange(SIDE) - 13.5)[:, None] / 14 - down, (np.arange(SIDE) - 13.5)[None] / 14 - across
    blob = lambda y, x, w: np.exp(-((d - size * y) ** 2 + (a - size * x) ** 2) / (2 * (w * size) ** 2))  # noqa: E731
    return (blob(-0.2, 0.1, 0.15) + 0.7 * blob(0.25, -0.2, 0.12) + 0.6 * blob(0.1, 0.3, 0.12))[..., None]


def moments(image):
    """The mean, and the root mean square distance from it along an axis, by the definition."""
    line = (np.arange(SIDE) - 13.5) / 14
    mass = image.sum()
    down = (image.sum((1, 2)) * line).sum() / mass
    across = (image.sum((0, 2)) * line).sum() / mass
    spread = (image.sum((1, 2)) * (line - down) ** 2).sum() + (image.sum((0, 2)) * (line - across) ** 2).sum()
    return down, across, np.sqrt(spread / mass / 2)


def test_equals_scipy_at_the_places_that_the_definition_gives():
    image = drawing(0.1, -0.2, 0.8)
    down, across, spread = moments(image)
    shown = spread / resampling.RADIUS
    rows, columns = np.meshgrid(np.arange(SIDE) - 13.5, np.arange(SIDE) - 13.5, indexing="ij")
    places = [rows * shown + down * 14 + 13.5, columns * shown + across * 14 + 13.5]
    expected = map_coordinates(image[..., 0], places, order=1, mode="grid-constant")
    found = resampling.aligned(jnp.asarray(image, jnp.float32)[None])[0, ..., 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("down", "across", "size"), [(0.15, 0, 1), (-0.1, 0.2, 1), (0, 0, 0.7), (0.1, 0.1, 0.8)]
)
def test_a_figure_at_any_place_and_of_any_size_is_seen_as_one(down, across, size):
    images = jnp.asarray(np.stack([drawing(), drawing(down, across, size)]), jnp.float32)
    found = np.asarray(resampling.aligned(images))
    assert np.abs(found[0] - found[1]).max() < 0.1 < np.abs(images[0] - images[1]).max()
    for image in found:  # what was asked for: in the middle, of one spread
        np.testing.assert_allclose(moments(image), (0, 0, resampling.RADIUS), atol=0.01)


def test_limits_of_the_factor_keep_a_dot_small_and_an_empty_image_empty():
    dot = np.zeros((SIDE, SIDE, 1), np.float32)
    dot[3, 20] = 1.0
    images = jnp.asarray(np.stack([dot, np.zeros_like(dot), np.ones_like(dot)]))
    found = np.asarray(resampling.aligned(images))
    assert moments(found[0])[2] < 0.2
    assert found[0].max() > 0.5
    np.testing.assert_allclose(moments(found[0])[:2], 0, atol=1e-3)
    assert not found[1].any()
    assert found[2].min() >= 0
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_stays_and_sums_do_not_overflow(dtype):
    images = jnp.full((2, SIDE, SIDE, 3), 60000.0, dtype)
    assert resampling.aligned(images).dtype == dtype
    assert jnp.isfinite(resampling.aligned(images)).all()


def test_a_network_of_aligned_drawings_does_not_see_place_and_size():
    images = jnp.asarray(np.stack([drawing(), drawing(0.1, -0.1, 0.8)]), jnp.float32)
    plain, aligning = Conv4(5, 8), Conv4(5, 8, aligned=True)
    parameters = plain.init(jax.random.key(0))
    statistics = plain.embed(parameters, resampling.aligned(images))[1]
    found = aligning.embed(parameters, images, statistics)[0]
    np.testing.assert_allclose(
        found, plain.embed(parameters, resampling.aligned(images), statistics)[0], atol=1e-6
    )
    apart = lambda features: np.linalg.norm(features[0] - features[1]) / np.linalg.norm(features[0])  # noqa: E731
    assert apart(found) < 0.3 * apart(plain.embed(parameters, images, statistics)[0])


def test_detail_is_kept_until_drawings_are_aligned():
    """The result is the mean of each 2 x 2 pixels of the fine one, and near that of a coarse drawing."""
    fine = np.kron(drawing()[..., 0], np.ones((2, 2)))[..., None]  # each pixel as four of its value
    found = resampling.aligned(jnp.asarray(fine, jnp.float32)[None], detail=2)
    assert found.shape == (1, SIDE, SIDE, 1)
    # the means of 2 x 2 of the fine result, by the definition
    whole = np.asarray(resampling.aligned(jnp.asarray(fine, jnp.float32)[None]))[0, ..., 0]
    expected = [
        [whole[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for j in range(SIDE)] for i in range(SIDE)
    ]
    np.testing.assert_allclose(found[0, ..., 0], expected, atol=1e-6)
    coarse = resampling.aligned(jnp.asarray(drawing(), jnp.float32)[None])[0]
    np.testing.assert_allclose(found[0], coarse, atol=0.05)


def test_a_network_of_detailed_drawings_has_the_parameters_of_one_of_others():
    fine = Conv4(5, 8, 2 * SIDE, aligned=True, detail=2)
    key = jax.random.key(0)
    plain = Conv4(5, 8, aligned=True).init(key)
    same = jax.tree.map(np.array_equal, fine.init(key), plain)
    assert jax.tree.all(same)
    images = jax.random.uniform(key, (3, 2 * SIDE, 2 * SIDE, 1), jnp.float32)
    assert fine.forward(plain, images)[0].shape == (3, 5)
    for options in ({"side": 28, "detail": 3, "aligned": True}, {"side": 56, "detail": 2}):
        with pytest.raises(imaml.ConfigError, match="network: detail: expected 1, or a divisor"):
            Conv4(5, 8, **options)


def test_the_option_reaches_the_network_and_defaults_to_images_as_they_are():
    assert imaml.domains.fewshot.domain.FewShotRecipe(aligned=True).network.aligned
    assert not imaml.domains.fewshot.domain.FewShotRecipe().network.aligned
