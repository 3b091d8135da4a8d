"""Images given as arrays: rounding is clipped; support images that do not tell classes apart: a warning."""

import warnings

import jax
import numpy as np
import pytest

import imaml
from helpers.paths import ARTEFACTS
from imaml.core.errors import DataError
from imaml.domains.fewshot.interface import check_images

ARTEFACT = ARTEFACTS / "omniglot-5w1s.safetensors"
NAMES = np.array(list("abcde"))
DRAWN = np.random.default_rng(0).random((5, 28, 28)).round()


@pytest.fixture(autouse=True)
def ranks():
    """Networks add biases to batches; strictness about ranks is for our own solvers."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def learner():
    return imaml.load(ARTEFACT)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_rounding_is_clipped(dtype, learner):
    tiny = 2 * np.finfo(dtype).eps
    images = DRAWN.astype(dtype) * (1 + tiny) - (DRAWN == 0) * tiny
    assert images.max() > 1
    assert images.min() < 0
    checked = check_images(images, learner.config.domain.network, "x")
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(checked[..., 0], DRAWN)


@pytest.mark.parametrize(("low", "high"), [(0, 1.0000001), (-1e-9, 1), (-9e-6, 1 + 9e-6)])
def test_values_just_outside_are_accepted(low, high, learner):
    images = np.where(DRAWN, high, low)
    np.testing.assert_array_equal(check_images(images, learner.config.domain.network, "x")[..., 0], DRAWN)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0, 1.00002, "values from 0.0 to 1.00002"),
        (-2e-5, 1, "values from -2e-05 to 1.0"),
        (0, 1 + 1.00001e-5, "values from 0.0 to 1.0000100001"),
        (0, 255, "values from 0.0 to 255.0.*divide 8-bit images by 255"),
        (0, 1e300, r"values from 0.0 to 1e\+300"),
        (0, np.inf, "values from 0.0 to inf"),
    ],
)
def test_values_truly_outside_are_refused_with_enough_digits(low, high, says, learner):
    with pytest.raises(DataError, match=f"x: .*{says}"):
        check_images(np.where(DRAWN, float(high), float(low)), learner.config.domain.network, "x")


def alike(*numbers):
    return DRAWN[list(numbers)]


blank, white = np.zeros((28, 28)), np.ones((28, 28))
TELLING_NOTHING = {
    "all blank": (np.zeros((5, 28, 28)), NAMES, r"5 classes of 5 have only blank images \(a, b, c, d, e\)"),
    "all full": (np.ones((5, 28, 28)), NAMES, "5 classes of 5 have only blank images"),
    "blank up to rounding": (np.full((5, 28, 28), 0.1) + 1e-5 * DRAWN, NAMES, "5 classes of 5 .*blank"),
    "two blank": ([blank, white, *alike(0, 1, 2)], NAMES, r"2 classes of 5 .*blank images \(a, b\)"),
    "all the same": (alike(0, 0, 0, 0, 0), NAMES, r"5 of 5 classes have only images that other.*\(a, b, c"),
    "two the same": (alike(0, 1, 2, 1, 3), NAMES, r"2 of 5 classes have only images that other.*\(b, d\)"),
    "one in another": (alike(0, 0, 1), ["a", "b", "b"], r"1 of 2 classes .*\(a\)"),
    "blank or the same": ([blank, blank, *alike(0, 0)], list("abba"), "2 classes|2 of 2 classes"),
    "both": (
        [blank, blank, *alike(0, 0, 1)],
        NAMES,
        r"2 classes of 5 have only blank images \(a, b\); 2 of 5 classes have .*too \(c, d\)",
    ),
}
TELLING = {
    "five drawings": (DRAWN, NAMES),
    "one blank class": ([blank, *alike(0, 1, 2, 3)], NAMES),
    "a drawing twice in its class": (alike(0, 0, 1, 1), list("aabb")),
    "a blank beside drawings": ([blank, *alike(0, 1), blank], list("aabb")),
    "a shared image beside others": (alike(0, 1, 0, 2), list("aabb")),
}


@pytest.mark.parametrize("case", TELLING_NOTHING)
def test_support_images_that_do_not_tell_classes_apart_are_warned_of(case, learner):
    images, labels, says = TELLING_NOTHING[case]
    with pytest.warns(
        RuntimeWarning, match=f"adapt: expected .* distinguish the classes, got {says}.* Hint: "
    ) as caught:
        predictor = learner.adapt(np.array(images), labels)
    assert caught[0].filename == __file__  # it points to the call
    assert predictor.predict_proba(DRAWN[:2]).shape == (2, len(set(labels)))


@pytest.mark.parametrize("case", TELLING)
def test_support_images_that_tell_classes_apart_are_not_warned_of(case, learner):
    images, labels = TELLING[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.adapt(np.array(images), labels)
