"""Codes, structures, buckets."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imaml.core.errors import DataError
from imaml.core.recipes import from_json, to_json
from imaml.domains.tasks.layout import ArraySpec, TaskLayout, bucket, nested, padded, structure_of
from imaml.domains.tasks.values import as_array, as_classes, labels_of, levels_of

EVERY = np.ones(4, bool)


def test_layouts_go_to_json_and_back():
    layout = TaskLayout(
        (
            ArraySpec((2,), "float", (1.5, -2.0), (3.0, 1.0)),
            ArraySpec((4, 4, 1), "bytes"),
            ArraySpec((3,), "int"),
        ),
        '{"a": 0, "b": [1, 2]}',
        None,
        ("x", 1, 2.5, True),
    )
    text = json.dumps(to_json(layout))
    assert from_json(json.loads(text)) == layout
    assert hash(from_json(json.loads(text))) == hash(layout)
    assert layout.names == ["a", "b/0", "b/1"]
    example = layout.example()
    assert jax.tree.map(jnp.shape, example) == {"a": (1, 2), "b": ((1, 4, 4, 1), (1, 3))}
    assert example["b"][1].dtype == jnp.int32


def test_numbers_are_standardised_by_training_rows_and_come_back():
    values = np.array([[1.0, 5], [3, 5], [1e4, 7], [5, 5]])
    training = np.array([True, True, False, True])
    spec = ArraySpec.of(values, training, standardise=True)
    coded = spec.code(values, "x")
    assert coded.dtype == np.float32
    np.testing.assert_allclose(coded[training, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(coded[training, 0].std(), 1, rtol=1e-6)
    np.testing.assert_array_equal(coded[training, 1], 0)  # a constant column has the scale 1
    assert coded[2, 1] == 2
    np.testing.assert_allclose(spec.units(coded), values, rtol=1e-6)
    plain = ArraySpec.of(values, training, standardise=False)
    np.testing.assert_array_equal(plain.code(values, "x"), values.astype(np.float32))


def test_a_column_that_is_constant_but_for_rounding_is_constant():
    values = np.full((4, 1), 0.1) * (1 + np.array([[0], [1], [0], [1]]) * 2e-16)
    assert ArraySpec.of(values, EVERY, standardise=True).scale == (1.0,)


def test_images_are_bytes_or_numbers_from_0_to_1():
    spec = ArraySpec.of(np.zeros((4, 2, 2, 1), np.uint8), EVERY, standardise=True)
    assert spec.form == "bytes"
    image = np.array([[[[0], [51]], [[255], [102]]]], np.uint8)
    np.testing.assert_allclose(spec.code(image, "x"), image / 255, rtol=1e-6)
    np.testing.assert_allclose(spec.code(image / 255, "x"), image / 255, rtol=1e-6)
    np.testing.assert_allclose(spec.code(image.astype(int), "x"), image / 255, rtol=1e-6)
    for wrong in (image / 100, image.astype(float) - 1, -image.astype(int), np.full(image.shape, np.nan)):
        with pytest.raises(DataError, match="x: expected bytes, or numbers from 0 to 1, got"):
            spec.code(wrong, "x")


def test_whole_numbers_stay_whole():
    spec = ArraySpec.of(np.arange(4), EVERY, standardise=True)
    assert (spec.form, spec.shape) == ("int", (1,))
    assert spec.code([3, 4], "x").dtype == np.int32
    with pytest.raises(DataError, match="x: expected whole numbers, got dtype float64"):
        spec.code([0.5], "x")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int8, np.uint16, bool])
def test_all_numbers_are_accepted(dtype):
    array = as_array(np.array([[0, 1]]).astype(dtype), "x")
    assert array.dtype.kind in "fiub"
    np.testing.assert_array_equal(array, [[0, 1]])
    np.testing.assert_array_equal(as_array(jnp.array([[0, 1]]).astype(dtype), "x"), [[0, 1]])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([np.zeros(2), np.zeros(3)], "x: expected an array of numbers, got rows of different shapes"),
        (np.array([None, 1.0]), r"x: expected an array of numbers, got objects \(NoneType, float\)"),
        (np.array(["1", "2"]), "x: expected numbers, got dtype <U1"),
        (np.array(["2020-01-01"], "datetime64[D]"), "x: expected numbers, got dtype datetime64"),
        (np.array([1j]), "x: expected numbers, got dtype complex128"),
        (3.0, "x: expected an array with an axis of rows, got one number"),
        (np.zeros((0, 3)), r"x: expected at least one row and one column, got shape \(0, 3\)"),
        (np.zeros((3, 0)), r"x: expected at least one row and one column, got shape \(3, 0\)"),
        ((i for i in range(3)), r"x: expected an array of numbers, got objects \(generator\)"),
        (
            np.ma.array([1.0, 2.0], mask=[True, False]),
            "x: expected numbers in all rows, got 1 that are masked",
        ),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(values, says):
    with pytest.raises(DataError, match=says):
        structure_of(values)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, "finite numbers, got nan"),
        (np.inf, "finite numbers, got inf"),
        (1e39, "float32 can hold, got 1e[+]39"),
    ],
)
def test_numbers_that_are_not_finite_are_named_by_row(value, says):
    with pytest.raises(DataError, match=f"x: expected .*{says} in row 2 \\(1 in all\\)"):
        ArraySpec((2,)).code([[0, 0], [0, 0], [0, value]], "x")


def test_labels():
    assert labels_of(["a", 1, np.int64(2), np.str_("b"), jnp.array(3)], "y") == ["a", 1, 2, "b", 3]
    assert labels_of(np.array([[True], [False]]), "y") == [True, False]
    assert levels_of(["b", 2, "a", 1, 2]) == (1, 2, "a", "b")
    assert as_classes(("a", 1)).tolist() == ["a", 1]
    assert as_classes((1, 2)).dtype.kind == "i"
    for wrong, says in (
        (["a", None], "got None in row 1"),
        ([1.0, np.nan], "got nan in row 1"),
        (np.zeros((3, 2)), r"shape \(rows,\), got \(3, 2\)"),
        ([[1], [2, 3]], "expected a class in each row|different shapes"),
        ([], r"got \(0,\)"),
        (5, r"got \(\)"),
    ):
        with pytest.raises(DataError, match=says):
            labels_of(wrong, "y")


def test_buckets_are_few():
    sizes = {bucket(rows) for rows in range(1, 201)}
    assert sizes == {4, 8, 16, 32, 64, 128, 256}
    assert all(rows <= bucket(rows) < max(5, 2 * rows) for rows in range(1, 201))


def test_padding_copies_the_first_row():
    batch = {"a": np.array([[1.0], [2.0]]), "b": (np.array([5, 6]),)}
    found = padded(batch, 4)
    np.testing.assert_array_equal(found["a"], [[1], [2], [1], [1]])
    np.testing.assert_array_equal(found["b"][0], [5, 6, 5, 5])


def test_named_arrays_become_a_tree():
    arrays = {"y": np.zeros(1), "x/a": np.ones(1), "x/b/0": np.zeros(2), "x/b/1": np.ones(2)}
    found = nested(arrays)
    assert jax.tree.map(np.shape, found) == {"y": (1,), "x": {"a": (1,), "b": ((2,), (2,))}}


def test_other_trees_are_refused():
    layout = TaskLayout((ArraySpec((1,)), ArraySpec((1,))), '{"a": 0, "b": 1}', ArraySpec((1,)))
    with pytest.raises(DataError, match="x: expected the arrays a, b, got the arrays a, c"):
        layout.code({"a": [1.0], "c": [2.0]})
    with pytest.raises(DataError, match="x: expected the arrays a, b, got one array"):
        layout.code([1.0])
    with pytest.raises(
        DataError, match="x: expected arrays with the same number of rows, got 1 of a, 2 of b"
    ):
        layout.code({"a": [1.0], "b": [2.0, 3.0]})
    with pytest.raises(DataError, match="x: expected a dict whose keys are texts, got 1"):
        layout.code({1: [1.0]})
