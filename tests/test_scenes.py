"""What domains show of a task: every scene is finite, has its parts, and is drawn in the report."""

import jax
import numpy as np
import pytest

import imaml
from imaml.report.run_page import _drawn

pytestmark = pytest.mark.usefixtures("ranks_mixed")
DOMAINS = {
    "mazes": (lambda: imaml.mazes(side=4, walks=2, length=6, hidden=(8,)), "walked"),
    "lakes": (lambda: imaml.mazes(side=4, maps="lakes", walks=2, length=6, hidden=(8,)), "walked"),
    "plants": (lambda: imaml.plants(walks=1, length=6, horizon=8, iterations=3, hidden=(8,)), "best"),
    "navigation": (lambda: imaml.navigation(episodes=1, length=4, horizon=3, hidden=(6,)), "goal"),
    "carts": (lambda: imaml.carts(queries=9, training=1, validation=1, test=1), "wiring known"),
    "imitation": (lambda: imaml.imitation(shots=3, queries=4, hidden=(6,)), "seen"),
    "generation": (lambda: imaml.generation(shots=3, queries=2, made=4, others=1, side=7), "seen"),
    "restoration": (lambda: imaml.restoration(shots=2, queries=3, side=7, steps=3, hidden=(6,)), "damaged"),
    "densities": (lambda: imaml.densities(shots=3, queries=4, noises=2, grid=8, hidden=(6,)), "seen"),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_scenes_show_before_after_and_truth(name):
    make, also = DOMAINS[name]
    domain = make()
    task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(0))
    before, after = (domain.init(jax.random.key(seed)) for seed in (1, 2))
    (scene,) = domain.scenes(before, after, task)
    parts = scene.images or scene.lines
    assert {"before", "after", also} <= set(parts)
    for part in parts.values():
        assert all(np.all(np.isfinite(array)) for array in np.atleast_1d(part))
    for image in scene.images.values():
        assert image.ndim == 2
        assert 0 <= image.min() <= image.max() <= 1
    assert not np.array_equal(parts["before"], parts["after"])
    drawn = _drawn(3, scene)
    assert f"Task 3: {scene.title}" in drawn
    assert drawn.count("<img") == len(scene.images)


def test_a_maze_s_walls_lie_where_no_walk_has_been():
    domain = imaml.mazes(side=6, walks=20, length=20)
    task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(0))
    phi = domain.init(jax.random.key(1))
    images = domain.scenes(phi, phi, task)[0].images
    assert np.all(images["walked"][images["walls, holes"] == 1] == 0)
    assert images["goal"].sum() == 1
    np.testing.assert_array_equal(images["before"], images["after"])
    path = images["path before"]
    assert path.max() > 0
    assert np.all(path[images["walls, holes"] == 1] == 0)


def test_a_density_s_points_are_dark_where_they_lie():
    domain = imaml.densities("modes", shots=40, spread=0.1)
    task = domain.sample(jax.random.key(0), "test")
    phi = domain.init(jax.random.key(1))
    images = domain.scenes(phi, phi, task)[0].images
    likely = images["true"][images["seen"] == 1].mean()
    assert likely > 5 * images["true"].mean()
