"""`Tasks` from arrays, lists and data frames."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pytest

from imaml.core.errors import ConfigError, DataError
from imaml.domains.tasks.collection import Tasks
from imaml.domains.tasks.frames import numbers_of
from imaml.problems.base import Task

X = np.arange(12.0).reshape(6, 2)
Y = np.arange(6.0)
GROUPS = {
    "texts": ["b", "a", "b", "c", "a", "b"],
    "array of texts": np.array(["b", "a", "b", "c", "a", "b"]),
    "objects": np.array(["b", "a", "b", "c", "a", "b"], dtype=object),
    "whole numbers": np.array([7, -1, 7, 3, -1, 7]),
    "numbers of NumPy in a list": [np.int64(n) for n in (7, -1, 7, 3, -1, 7)],
    "real numbers": np.array([0.5, 0.25, 0.5, 2.0, 0.25, 0.5]),
    "texts and numbers": ["b", 1, "b", 2, 1, "b"],
    "a column of pandas": pd.Series(["b", "a", "b", "c", "a", "b"], dtype="category"),
    "a column of polars": pl.Series([7, -1, 7, 3, -1, 7]),
    "a column (n, 1)": np.array([[7], [-1], [7], [3], [-1], [7]]),
}


def rows_of(tasks, name):
    """The inputs and targets of a group."""
    i = tasks.names.index(name)
    rows = slice(tasks.first[i], tasks.first[i] + tasks.counts[i])
    return [array[rows] for array in tasks.inputs], tasks.targets[rows]


@pytest.mark.parametrize("kind", GROUPS)
def test_groups_are_of_any_label_in_any_order(kind):
    tasks = Tasks.from_arrays(X, Y, GROUPS[kind])
    assert len(tasks) == 3
    assert tasks.counts.tolist() == [3, 2, 1]
    for name, rows in zip(tasks.names, ([0, 2, 5], [1, 4], [3]), strict=True):
        inputs, targets = rows_of(tasks, name)
        np.testing.assert_array_equal(inputs[0], X[rows])
        np.testing.assert_array_equal(targets, Y[rows])
        assert type(name) in (str, int, float)


def test_weights_and_offsets_go_with_their_rows():
    groups = GROUPS["texts"]
    tasks = Tasks.from_arrays(X, Y, groups, weights=Y + 10, offset=-Y)
    np.testing.assert_array_equal(tasks.weights, tasks.targets + 10)
    np.testing.assert_array_equal(tasks.offset, -tasks.targets)
    with pytest.raises(DataError, match=r"weights: expected numbers of at least 0, got -5"):
        Tasks.from_arrays(X, Y, groups, weights=-Y)
    with pytest.raises(
        DataError, match=r"tasks: expected arrays with the same number of rows, got .* 5 of offset"
    ):
        Tasks.from_arrays(X, Y, groups, offset=Y[:5])


def test_inputs_are_trees():
    tree = {"image": np.zeros((6, 4, 4), np.uint8), "about": (X, Y)}
    tasks = Tasks.from_arrays(tree, Y, GROUPS["texts"])
    assert tasks.structure == '{"about": [0, 1], "image": 2}'
    assert [array.shape for array in tasks.inputs] == [(6, 2), (6,), (6, 4, 4)]
    assert tasks.inputs[2].dtype == np.uint8
    with pytest.raises(
        DataError, match=re.escape("x: expected arrays with the same number of rows, got 6 of a, 5 of b")
    ):
        Tasks.from_arrays({"a": X, "b": Y[:5]}, Y, GROUPS["texts"])


def test_without_targets_groups_are_classes():
    tasks = Tasks.from_arrays(X, None, GROUPS["texts"])
    assert tasks.episodes
    assert tasks.targets is None


def test_lists_are_ragged():
    parts = [(np.full((n, 2), float(n)), np.full(n, -n)) for n in (3, 1, 200)]
    for given in (parts, iter(parts), [list(part) for part in parts], np.array([None])):
        if isinstance(given, np.ndarray):
            continue
        tasks = Tasks.from_list(given)
        assert tasks.counts.tolist() == [3, 1, 200]
        assert tasks.names == (0, 1, 2)
        assert tasks.supports is None
        inputs, targets = rows_of(tasks, 2)
        assert inputs[0].shape == (200, 2)
        assert (targets == -200).all()
    named = Tasks.from_list(parts, names=["u", "v", "w"])
    assert named.names == ("u", "v", "w")


def test_lists_of_plain_numbers():
    tasks = Tasks.from_list([([1, 2, 3], [4, 5, 6]), ([[7], [8]], [9, 10])])
    assert tasks.counts.tolist() == [3, 2]
    assert tasks.targets.tolist() == [4, 5, 6, 9, 10]


def test_a_list_of_plain_and_of_column_inputs_has_one_shape():
    assert Tasks.from_list([([1, 2, 3], [4, 5, 6]), ([[7], [8]], [9, 10])]).inputs[0].shape == (5, 1)


def pair(rows, start):
    return np.full((rows, 2), float(start)), np.full(rows, start)


@pytest.mark.parametrize("wrap", [tuple, list, lambda parts: Task(*parts)], ids=["tuple", "list", "Task"])
def test_support_and_query_are_given(wrap):
    given = [wrap([pair(2, 0), pair(3, 1)]), wrap([pair(4, 2), pair(1, 3)])]
    tasks = Tasks.from_list(given)
    assert tasks.counts.tolist() == [5, 5]
    assert tasks.supports.tolist() == [2, 4]
    assert tasks.targets.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2, 3]


def test_a_list_of_trees():
    tasks = Tasks.from_list([({"a": X, "b": (Y,)}, Y), ({"b": (Y[:2],), "a": X[:2]}, Y[:2])])
    assert tasks.structure == '{"a": 0, "b": [1]}'
    assert tasks.counts.tolist() == [6, 2]
    inputs = Tasks.from_list([((X, Y), Y), ((X, Y), Y)])
    assert inputs.structure == "[0, 1]"
    assert inputs.supports is None


FRAMES = {"dict": dict, "pandas": pd.DataFrame, "polars": pl.DataFrame}
COLUMNS = {
    "person": ["a", "b", "a", "b"],
    "score": [1.0, 2.0, 3.0, 4.0],
    "day": [5, 3, 5, 9],
    "late": [True, False, False, True],
    "times": [1.0, 2.0, 1.0, 1.0],
    "log_exposure": [0.0, 0.5, 1.0, 0.0],
    "part": ["train", "test", "train", "test"],
}


@pytest.mark.parametrize("kind", FRAMES)
def test_frames(kind):
    frame = FRAMES[kind](COLUMNS)
    tasks = Tasks.from_frame(frame, "person", "score", weights="times", offset="log_exposure", split="part")
    assert tasks.frame == ("person", ("score",), ("day", "late"), "times", "log_exposure")
    assert tasks.names == ("a", "b")
    np.testing.assert_array_equal(tasks.inputs[0], [[5, 1], [5, 0], [3, 0], [9, 1]])
    np.testing.assert_array_equal(tasks.targets, [1, 3, 2, 4])
    np.testing.assert_array_equal(tasks.weights, [1, 1, 2, 1])
    np.testing.assert_array_equal(tasks.offset, [0, 1, 0.5, 0])
    assert tasks.split["train"] == ("a",)
    assert Tasks.from_frame(frame, "person", "score", ["day"]).frame.features == ("day",)
    assert Tasks.from_frame(frame, "person", "score", "day").frame.features == ("day",)


@pytest.mark.parametrize("kind", FRAMES)
def test_all_columns_that_do_not_fit_are_named_at_once(kind):
    table = {"a": ["x", "y"], "b": [1.0, np.nan], "c": [np.nan, np.nan], "d": ["u", "v"], "e": [1, 2]}
    frame = FRAMES[kind](table)
    with pytest.raises(
        DataError, match=r"columns: expected numbers, got others in a, d \(.*'x'\)\. Hint: .*features="
    ):
        numbers_of(frame, list("abcde"))
    with pytest.raises(DataError, match=r"missing cells \(1 in 'b', 2 in 'c'\), the first in row 0"):
        numbers_of(frame, list("bce"))
    with pytest.raises(DataError, match=r"columns: expected 'f' among them, got a, b, c, d, e\."):
        numbers_of(frame, list("ef"))


@pytest.mark.parametrize("kind", FRAMES)
def test_texts_are_coded(kind):
    table = {"person": [1, 1, 2, 2], "score": [1.0, 2, 3, 4], "hand": ["left", "right", "left", "right"]}
    tasks = Tasks.from_frame(FRAMES[kind](table), "person", "score")
    assert tasks.frame.features == ("hand=left", "hand=right")
    np.testing.assert_array_equal(tasks.inputs[0], [[1, 0], [0, 1], [1, 0], [0, 1]])
    new = FRAMES[kind]({"hand": ["right", "left"]})
    np.testing.assert_array_equal(numbers_of(new, tasks.frame.features), [[0, 1], [1, 0]])
    # Files of a sampled task have the coded columns.
    coded = FRAMES[kind]({"hand=left": [0.0, 1.0], "hand=right": [1.0, 0.0]})
    np.testing.assert_array_equal(numbers_of(coded, tasks.frame.features), [[0, 1], [1, 0]])
    with pytest.raises(DataError, match=r"column 'hand': expected one of left, right, .*, got both\.$"):
        numbers_of(FRAMES[kind]({"hand": ["right", "both"]}), tasks.frame.features)
    with pytest.raises(DataError, match=r"columns: expected 'hand' among them, got foot\."):
        numbers_of(FRAMES[kind]({"foot": ["right"]}), tasks.frame.features)


def test_a_column_that_counts_rows_is_told():
    frame = pd.DataFrame({"Unnamed: 0": range(4), **COLUMNS})
    with pytest.warns(RuntimeWarning, match=r"that only count the rows are used as numbers: Unnamed: 0\."):
        Tasks.from_frame(frame, "person", "score", split="part")
    keys = {**COLUMNS, "schoolId": [7, 7, 9, 9], "acid": [0.5, 1, 1, 1]}
    with pytest.warns(RuntimeWarning, match=r"that seem to be keys are used as numbers: schoolId\."):
        Tasks.from_frame(keys, "person", "score", split="part")


def test_splits_are_given_by_name_or_by_row_or_drawn():
    groups = np.repeat(np.arange(10), 3)
    x, y = np.zeros((30, 1)), np.zeros(30)
    given = {"train": [0, 1, 2, 3, 4, 5], "validation": [6, 7], "test": np.array([8, 9])}
    by_name = Tasks.from_arrays(x, y, groups, split=given)
    parts = np.repeat(["train"] * 6 + ["validation"] * 2 + ["test"] * 2, 3)
    by_row = Tasks.from_arrays(x, y, groups, split=parts)
    assert by_name.split == by_row.split == {name: tuple(np.array(g).tolist()) for name, g in given.items()}
    assert {name: numbers.tolist() for name, numbers in by_name.splits(0.2, 0.2, 0).items()} == {
        name: list(labels) for name, labels in by_name.split.items()
    }
    drawn = Tasks.from_arrays(x, y, groups)
    first, again, other = (drawn.splits(0.2, 0.3, seed) for seed in (0, 0, 1))
    assert [first[name].size for name in ("train", "validation", "test")] == [5, 2, 3]
    assert sorted(np.concatenate(list(first.values())).tolist()) == list(range(10))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)
    usable = np.arange(10) > 4
    assert set(np.concatenate(list(drawn.splits(0.2, 0.2, 0, usable).values()))) == set(range(5, 10))
    assert drawn.splits(0, 0, 0)["train"].size == 10


def test_groups_in_no_split_are_named():
    with pytest.warns(RuntimeWarning, match=r"split: 1 of 3 groups are in no split, and excluded \(c\)"):
        Tasks.from_arrays(X, Y, GROUPS["texts"], split={"train": ["a"], "test": ["b"]})


def test_split_names_are_checked():
    with pytest.raises(ConfigError, match=r"split: expected one of .*, got 'valid'.*'validation'"):
        Tasks.from_arrays(X, Y, GROUPS["texts"], split={"train": ["a"], "valid": ["b"]})


def test_frames_of_several_targets():
    frame = {"who": [1, 1, 2, 2], "a": [1.0, 5, 3, 4], "y": [0.0, 1, 2, 3], "z": [5, 6, 7, 8]}
    tasks = Tasks.from_frame(frame, "who", ["y", "z"])
    assert tasks.frame.targets == ("y", "z")
    np.testing.assert_array_equal(tasks.targets, np.stack([frame["y"], frame["z"]], 1))


def test_objects_that_are_numbers_are_numbers():
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": [True, False], "c": [1, 2]})
    assert frame.to_numpy().dtype == object
    tasks = Tasks.from_arrays(frame, np.array([1, 2], dtype=object), [0, 1])
    np.testing.assert_array_equal(tasks.inputs[0], [[1.5, 1, 1], [2.5, 0, 2]])
    assert tasks.targets.dtype == float


def test_a_frozen_function_sees_each_row_once_in_calls_of_one_size():
    sizes = []

    def features(x):
        sizes.append(len(x["a"]))
        return {"sum": x["a"] + x["b"].sum(axis=1), "twice": 2 * x["b"]}

    tasks = Tasks.from_arrays(
        {"a": Y, "b": X}, Y, GROUPS["texts"], split={"train": ["b"], "test": ["a", "c"]}
    )
    found = tasks.map(features, rows=4)
    assert sizes == [4, 4]
    (both, twice), targets = rows_of(found, "b")
    np.testing.assert_array_equal(both, [Y[i] + X[i].sum() for i in (0, 2, 5)])
    np.testing.assert_array_equal(twice, 2 * X[[0, 2, 5]])
    np.testing.assert_array_equal(targets, Y[[0, 2, 5]])
    assert (found.split, found.names) == (tasks.split, tasks.names)
    with pytest.raises(DataError, match=r"map: expected 4 rows, as inputs have, got shape \(2,\)"):
        tasks.map(lambda x: x["b"].sum(axis=0), rows=4)
    with pytest.raises(DataError, match="map: expected finite numbers"):
        tasks.map(lambda x: x["a"] * np.nan)
