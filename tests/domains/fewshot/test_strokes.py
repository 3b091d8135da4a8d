"""Procedural handwriting: images are sound, the same every time, and about as hard as real handwriting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imaml.domains.fewshot import strokes

CHARACTERS, DRAWINGS = 200, 8


@pytest.fixture(scope="module")
def draws():
    return jax.jit(strokes.draws)


@pytest.fixture(scope="module")
def sheet(draws):
    """Images (CHARACTERS, DRAWINGS, 28, 28)."""
    drawings = jnp.tile(jnp.arange(DRAWINGS, dtype=jnp.int32), (CHARACTERS, 1))
    return np.asarray(draws(jnp.arange(CHARACTERS, dtype=jnp.int32), drawings, 0))


def distances(queries, supports):
    """Euclidean distances (queries, supports) between images."""
    queries, supports = queries.reshape(len(queries), -1), supports.reshape(len(supports), -1)
    return np.sqrt(((queries[:, None] - supports[None]) ** 2).sum(-1))


def test_images_are_float32_within_zero_and_one(sheet):
    assert sheet.shape == (CHARACTERS, DRAWINGS, 28, 28)
    assert sheet.dtype == np.float32
    assert np.isfinite(sheet).all()
    assert sheet.min() >= 0.0
    assert sheet.max() <= 1.0


def test_no_drawing_is_blank_or_full(sheet):
    assert sheet.max((2, 3)).min() > 0.5  # each has some pixel of full ink
    assert sheet.mean((2, 3)).min() > 0.003
    assert sheet.mean((2, 3)).max() < 0.35


def test_a_drawing_is_the_same_every_time_and_another_seed_another_one(sheet, draws):
    characters = jnp.arange(CHARACTERS, dtype=jnp.int32)
    drawings = np.tile(np.arange(DRAWINGS), (CHARACTERS, 1))
    again = draws(characters[::-1], jnp.asarray(drawings[:, ::-1], jnp.int32), 0)
    np.testing.assert_allclose(again[::-1, ::-1], sheet, atol=1e-5)  # float32, other place in the batch
    other = draws(characters, jnp.asarray(drawings, jnp.int32), 1)
    assert (np.abs(np.asarray(other) - sheet).max((2, 3)) > 0.5).all()


def test_images_drawn_together_are_those_drawn_one_by_one(sheet):
    draw = jax.jit(strokes.draw)
    for i in range(12):
        image = draw(jnp.int32(i), jnp.int32(i % DRAWINGS))
        np.testing.assert_allclose(image, sheet[i, i % DRAWINGS], atol=1e-4)  # 96 blots summed in any order


def test_drawings_of_one_character_differ_yet_are_nearer_than_other_characters(sheet):
    between = distances(sheet[:, 1], sheet[:, 0])
    same = np.diag(between)
    assert same.min() > 0.5
    assert 0.8 < same.mean() / between[~np.eye(CHARACTERS, dtype=bool)].mean() < 0.95  # Omniglot: 0.90


def test_characters_really_differ(sheet):
    between = distances(sheet[:, 0], sheet[:, 0])
    assert between[~np.eye(CHARACTERS, dtype=bool)].min() > 0.5


def test_pixels_alone_tell_characters_apart_about_as_badly_as_real_ones(sheet):
    rng, right = np.random.default_rng(0), []
    for _ in range(1500):
        characters = rng.choice(CHARACTERS, 5, replace=False)
        support, query = rng.permuted(np.tile(np.arange(DRAWINGS), (5, 1)), axis=1)[:, :2].T
        nearest = distances(sheet[characters, query], sheet[characters, support]).argmin(1)
        right.append((nearest == np.arange(5)).mean())
    # nearest neighbour on Omniglot's training characters, 5-way 1-shot: 0.45; 1,500 tasks: error 0.006
    assert 0.40 < np.mean(right) < 0.55


def test_drawing_mixes_no_dtypes(strict_dtypes):
    image = jax.eval_shape(jax.vmap(strokes.draw), *[jax.ShapeDtypeStruct((3,), jnp.int32)] * 2)
    assert (image.shape, image.dtype) == ((3, 28, 28), jnp.float32)


@pytest.mark.slow
def test_ink_weighs_the_same_however_densely_a_line_is_sampled():
    def line(count):
        points = jnp.stack([jnp.linspace(4.0, 24.0, count), jnp.full((count,), 14.3)], 1)
        return strokes.render(points, jnp.full((count,), 20.0 / (count - 1)), jnp.float32(0.66))

    np.testing.assert_allclose(line(31)[:, 8:20], line(301)[:, 8:20], atol=0.03)  # a point each width


def test_mismatched_shapes_are_refused():
    with pytest.raises(ValueError, match="one axis more"):
        strokes.draws(jnp.arange(3), jnp.arange(3))
