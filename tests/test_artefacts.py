"""The committed artefacts load, say what they are, and read characters as the README claims: a few tasks."""

from pathlib import Path

import jax
import numpy as np
import pytest

import imaml

FOLDER = Path(__file__).parents[1] / "artefacts"
FILES = sorted(FOLDER.glob("*.safetensors"))


@pytest.fixture(autouse=True)
def ranks():
    """Networks add biases to batches; strictness about ranks is for our own solvers."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_there_are_artefacts():
    assert FILES, f"no artefact in {FOLDER}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_artefact_reads_drawn_characters_from_one_example_each(file):
    """Drawn characters were never seen by an artefact of Omniglot either: both must be far above chance.

    Eight tasks of fifteen images: the standard error is about 3 points, the bar over four of them below.
    """
    learned = imaml.load(file)
    domain = imaml.characters(ways=learned.config.domain.ways, shots=1, queries=3)
    right, sample = [], jax.jit(lambda key: domain.sample(key, "test"))
    for number in range(8):
        task = sample(jax.random.key(number))
        predictor = learned.adapt(np.asarray(task.support.images), np.asarray(task.support.labels))
        right.append(np.mean(predictor.predict(np.asarray(task.query.images)) == task.query.labels))
    assert np.mean(right) > 0.75
