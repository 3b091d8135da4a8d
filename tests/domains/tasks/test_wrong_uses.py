"""What a careless user passes: each wrong use gets one message by the template, of no other library."""

import re
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pytest

from imaml.config.methods import Method
from imaml.core.errors import ImamlError
from imaml.domains.networks import MLP
from imaml.domains.tasks.collection import Tasks
from imaml.inner.gradient import GradientDescent
from imaml.linear.cg import CG
from imaml.problems.base import Task
from imaml.problems.likelihoods import Density
from imaml.training.fit import fit

pytestmark = pytest.mark.usefixtures("ranks_mixed")
FORM = re.compile(r"^[^:\n]+: (.*: )?expected [^\n]+, got [^\n]+\.( Hint: [^\n]+[.?])?$")
RANDOM = np.random.default_rng(0)
GROUPS = np.repeat(np.arange(8), 4)
X = RANDOM.normal(size=(32, 2))
Y = RANDOM.normal(size=32)
LABELS = np.array(["no", "yes"])[(Y > 0).astype(int)]
COUNTS = RANDOM.poisson(2.0, 32)
FRAME = {"who": GROUPS, "a": X[:, 0], "b": X[:, 1], "y": Y, "name": ["n"] * 32}
METHOD = Method(strength=1.0, inner=GradientDescent(0.02, steps=1), linear=CG(steps=1))
WITH_NAN = np.where(np.arange(32) == 5, np.nan, Y)


def make(x=X, y=Y, groups=GROUPS, **options):
    return Tasks.from_arrays(x, y, groups, **options)


def run(tasks=None, model="linear", loss=None, **options):
    tasks, options = make() if tasks is None else tasks, {"validation": 0, **options}
    return fit(tasks, model, loss, method=METHOD, steps=1, progress=False, **options)


def init(key):
    return {"w": jnp.zeros((2, 1))}


def apply(parameters, x):
    return x @ parameters["w"]


def raises(outputs, targets):
    raise KeyError("my own mistake")


# What is done, and what the message says.
CONSTRUCTORS = {
    "no groups": (lambda: Tasks.from_arrays(X, Y), "groups: expected a label for each row, got None"),
    "groups too short": (lambda: make(groups=GROUPS[:-1]), "got 32 of x, 32 of y, 31 of groups"),
    "groups with NaN": (
        lambda: make(groups=WITH_NAN),
        "groups: expected a label in each row, .*, got nan in row 5",
    ),
    "groups with None": (lambda: make(groups=["a", None] * 16), "groups: .* got None in row 1"),
    "groups of two columns": (lambda: make(groups=X), r"groups: expected one label .* got \(32, 2\)"),
    "groups by a name": (lambda: make(groups="who"), r"groups: expected one label for each row, .* got \(\)"),
    "groups that are dates": (
        lambda: make(groups=pd.date_range("2020", periods=32)),
        "groups: expected a label in each row",
    ),
    "arrays of unequal lengths": (
        lambda: make(x=[np.zeros(3), np.zeros(4)]),
        r"x: expected an array of numbers, got rows of different shapes or kinds\. Hint: .*from_list",
    ),
    "a list of inputs": (lambda: make(x=[X, X]), "got 2 of x"),
    "x of objects": (lambda: make(x=np.array([[None, 1.0]] * 32)), "x: .* got objects"),
    "x of texts": (lambda: make(x=np.full((32, 2), "3")), "x: expected numbers, got dtype <U1"),
    "x of dates": (
        lambda: make(x=np.full(32, np.datetime64("2020"))),
        "x: expected numbers, got dtype datetime64",
    ),
    "x of complex numbers": (lambda: make(x=X + 1j), "x: expected numbers, got dtype complex128"),
    "x that is a generator": (lambda: make(x=(row for row in X)), r"x: .* got objects \(generator\)"),
    "x with NaN": (lambda: make(x=np.where(X > 1, np.nan, X)), "x: expected finite numbers, got nan in row"),
    "x with infinity": (lambda: make(x=WITH_NAN * np.inf), "x: expected finite numbers, got "),
    "x that is huge": (lambda: make(x=1e39 + X), r"x: expected numbers that float32 can hold, got 1e\+39"),
    "x without rows": (lambda: make(x=np.zeros((0, 2)), y=[], groups=[]), "x: expected at least one row"),
    "x without columns": (lambda: make(x=np.zeros((32, 0))), "x: expected at least one row and one column"),
    "x that is a number": (lambda: make(x=3.0), "x: expected an array with an axis of rows, got one number"),
    "x that is None": (lambda: make(x=None), r"x: expected an array of numbers, got objects \(NoneType\)"),
    "x that is masked": (lambda: make(x=np.ma.masked_greater(X, 1)), "x: expected numbers in all rows, got"),
    "an empty dict": (lambda: make(x={}), "x: expected at least one array, got an empty dict"),
    "keys that are numbers": (lambda: make(x={0: X}), "x: expected a dict whose keys are texts, got 0"),
    "a tree that is ragged": (lambda: make(x={"a": X, "b": X[:3]}), "x: .* got 32 of a, 3 of b"),
    "y too short": (lambda: make(y=Y[:5]), "got 32 of x, 5 of y"),
    "y with NaN": (lambda: make(y=WITH_NAN), "y: expected finite numbers, got nan in row 5"),
    "y that is a dict": (lambda: make(y={"a": Y}), "y: expected one array, got a dict"),
    "y of ragged rows": (
        lambda: make(y=[[1.0], [2.0, 3.0]]),
        "y: expected one array, got rows of different shapes",
    ),
    "labels with None": (
        lambda: make(y=["a", None] * 16),
        "y: expected a class in each row, .* got None in row 1",
    ),
    "labels with NaN": (
        lambda: make(y=["a", np.nan] * 16),
        "y: expected a class in each row, .* got nan in row 1",
    ),
    "y of dates": (
        lambda: make(y=np.full(32, np.datetime64("2020"))),
        "y: expected numbers, got dtype datetime64",
    ),
    "y that is no array": (lambda: make(y=3), "y: expected an array with an axis of rows, got one number"),
    "weights below 0": (lambda: make(weights=Y), "weights: expected numbers of at least 0, got -"),
    "weights of two columns": (lambda: make(weights=X), "weights: expected .*|weights: .*"),
    "offset with NaN": (lambda: make(offset=WITH_NAN), "offset: expected finite numbers, got nan in row 5"),
    "offset of texts": (lambda: make(offset=LABELS), "offset: expected numbers, got dtype <U3"),
    "another name of a split": (lambda: make(split={"training": [0]}), "split: .* got 'training'.*'train'"),
    "a split of rows with another name": (
        lambda: make(split=["dev"] * 32),
        "split: expected one of .*, got 'dev'",
    ),
    "a split of strange groups": (lambda: make(split={"train": ["a"]}), "split: .* such as 0, got 'a'"),
    "a group in two splits": (lambda: make(split={"train": [0, 1], "test": [1]}), r"split: .* in two \(1\)"),
    "rows of a group in two splits": (
        lambda: make(split=["train", "test"] * 16),
        "split: expected one split for all rows of a group, got 'train' and 'test' for 0",
    ),
    "an empty split": (lambda: make(split={"train": [], "test": [0]}), "split: .* got none in 'train'"),
    "a split that is a number": (lambda: make(split=0.2), "split: expected one split for each row"),
    "no list": (lambda: Tasks.from_list(3), "tasks: expected a list of pairs .*, got a int"),
    "a dict of tasks": (lambda: Tasks.from_list({"a": (X, Y)}), "tasks: .* got a dict. Hint: .* names"),
    "an empty list": (lambda: Tasks.from_list([]), "tasks: expected at least one task, got none"),
    "three items": (lambda: Tasks.from_list([(X, Y, Y)]), r"tasks\[0\]: expected a pair .*, got 3 items"),
    "one array": (lambda: Tasks.from_list([X]), r"tasks\[0\]: expected a pair .*, got a ndarray"),
    "an item that is a text": (lambda: Tasks.from_list([(X, Y), "ab"]), r"tasks\[1\]: .* got a str"),
    "pairs and pairs of pairs": (
        lambda: Tasks.from_list([((X, Y), (X, Y)), (X, Y)]),
        r"tasks: expected all items to be pairs .*, got both \(tasks\[0\], tasks\[1\]\)",
    ),
    "a Task of arrays": (lambda: Tasks.from_list([Task(X, Y)]), r"tasks\[0\]: .* got a ndarray"),
    "rows of other widths": (
        lambda: Tasks.from_list([(X, Y), (X[:, :1], Y)]),
        r"x: expected rows of one shape in all tasks, got \(2,\) in tasks\[0\] and \(1,\) in tasks\[1\]",
    ),
    "other trees": (
        lambda: Tasks.from_list([({"a": X}, Y), ({"b": X}, Y)]),
        r"tasks\[1\]: expected inputs of the same structure",
    ),
    "numbers and classes": (
        lambda: Tasks.from_list([(X, Y), (X, LABELS)]),
        "y: expected numbers in all tasks",
    ),
    "y of a task too short": (lambda: Tasks.from_list([(X, Y[:3])]), r"tasks\[0\]: .* got 32 of x, 3 of y"),
    "names twice": (
        lambda: Tasks.from_list([(X, Y)] * 2, names=["a", "a"]),
        "names: expected 2 different ones",
    ),
    "too few names": (lambda: Tasks.from_list([(X, Y)] * 2, names=["a"]), "names: expected 2 different ones"),
    "no frame": (lambda: Tasks.from_frame(X, "who", "y"), "frame: expected a data frame .*, got a ndarray"),
    "a column misspelt": (lambda: Tasks.from_frame(FRAME, "whom", "y"), "column: .* got 'whom'.*'who'"),
    "a feature misspelt": (
        lambda: Tasks.from_frame(FRAME, "who", "y", ["aa"]),
        "columns: .* 'aa' among them.*is 'a' meant",
    ),
    "a column of texts and numbers": (
        lambda: Tasks.from_frame({**FRAME, "name": ["n", 1] * 16}, "who", "y"),
        r"columns: expected numbers, got others in name",
    ),
    "a column of many texts": (
        lambda: Tasks.from_frame({**FRAME, "name": [f"{i % 60}" for i in range(80)]}, "who", "y"),
        r"column 'name': expected numbers, or at most 50 texts",
    ),
    "a column of the tasks' names": (
        lambda: Tasks.from_frame({**FRAME, "name": GROUPS.astype(str)}, "who", "y"),
        r"column 'name': .* got 8 texts such as '0', of which 8 are in one task only",
    ),
    "missing texts": (
        lambda: Tasks.from_frame(pd.DataFrame({**FRAME, "name": ["n", None] * 16}), "who", "y"),
        r"column 'name': expected a text in each row, got 16 others, the first in row 1",
    ),
    "the target as a feature": (
        lambda: Tasks.from_frame(FRAME, "who", "y", ["a", "y"]),
        "features: .* got y twice",
    ),
    "no features": (
        lambda: Tasks.from_frame(FRAME, "who", "y", []),
        "features: expected at least one column",
    ),
    "missing cells of pandas": (
        lambda: Tasks.from_frame(pd.DataFrame({**FRAME, "a": WITH_NAN}), "who", "y", ["a", "b"]),
        r"columns: .* got missing cells \(1 in 'a'\), the first in row 5",
    ),
    "missing cells of polars": (
        lambda: Tasks.from_frame(pl.DataFrame({"who": [1, 2], "a": [None, 1], "y": [1.0, 2]}), "who", "y"),
        r"columns: .* got missing cells \(1 in 'a'\)",
    ),
    "a missing target": (
        lambda: Tasks.from_frame(pd.DataFrame({**FRAME, "y": WITH_NAN}), "who", "y", ["a"]),
        "y: expected finite numbers, got nan in row 5",
    ),
    "an empty frame": (
        lambda: Tasks.from_frame(pd.DataFrame({"who": [], "a": [], "y": []}), "who", "y"),
        "expected at least one row",
    ),
    "no folder": (lambda: Tasks.from_folder("/no/such/folder"), "expected a folder .*, got no such folder"),
    "a path that is None": (
        lambda: Tasks.from_folder(None),
        "path: expected the path of a folder, got a NoneType",
    ),
    "a side of 0": (
        lambda: Tasks.from_folder("/", side=0),
        "side: expected a whole number of at least 1, got 0",
    ),
}

FITS = {
    "arrays for tasks": (lambda: fit(X, Y), "fit: tasks: expected imaml.Tasks, got a ndarray"),
    "a tuple for tasks": (lambda: fit((X, Y)), "fit: tasks: expected imaml.Tasks, got a tuple"),
    "a list for tasks": (lambda: fit([(X, Y)]), "fit: tasks: expected imaml.Tasks, got a list"),
    "groups of one row each": (lambda: run(make(groups=np.arange(32))), "fit: tasks: .* got none among 32"),
    "one group": (lambda: run(make(groups=np.zeros(32))), "expected groups for training, .*, got 1"),
    "a loss misspelt": (lambda: run(loss="squard"), "fit: loss: .* got 'squard'.*'squared'"),
    "a loss that is a list": (lambda: run(loss=["squared"]), "fit: loss: expected one of"),
    "a class for a loss": (lambda: run(loss=Density), "fit: loss: expected one of"),
    "a loss that is a mean": (
        lambda: run(loss=lambda o, t: jnp.mean((o - t) ** 2)),
        r"loss: .* one real number for each row, shape \(3,\), got shape \(\)",
    ),
    "a loss for each column": (lambda: run(loss=lambda o, t: (o - t) ** 2), r"loss: .* got shape \(3, 1\)"),
    "a loss with more": (lambda: run(loss=lambda o, t: (jnp.sum(o - t, 1), {})), "loss: .* got a tuple"),
    "a loss of one argument": (
        lambda: run(loss=lambda o: o),
        "loss: expected a function .*, got an error .TypeError",
    ),
    "a loss that returns nothing": (lambda: run(loss=lambda o, t: None), "loss: .* got None"),
    "a loss of whole numbers": (
        lambda: run(loss=lambda o, t: (o > t)[:, 0]),
        r"loss: .* got shape \(3,\) of bool",
    ),
    "a loss in NumPy": (
        lambda: run(loss=lambda o, t: np.abs(np.asarray(o - t))[:, 0]),
        "loss: .* of JAX arrays",
    ),
    "a loss that fails": (lambda: run(loss=raises), "loss: .* got an error .KeyError: 'my own mistake'"),
    "a density of a row's columns": (
        lambda: run(loss=Density(lambda o, t: o - t)),
        "loss: .* one number for one row",
    ),
    "numbers for classes": (
        lambda: run(loss="cross_entropy"),
        "y: expected classes with loss='cross_entropy', got real numbers, such as .*squared",
    ),
    "classes for numbers": (
        lambda: run(make(y=LABELS), loss="squared"),
        "y: expected numbers .*, got '.*cross_entropy",
    ),
    "one class": (lambda: run(make(y=["a"] * 32)), "y: expected 2 to 1,000 classes .*, got 1"),
    "binary with three classes": (lambda: run(make(y=list("abca") * 8), loss="binary"), "loss: .* got 3"),
    "ordinal texts": (lambda: run(make(y=LABELS), loss="ordinal"), "y: expected numbers with loss='ordinal'"),
    "counts below 0": (lambda: run(make(y=COUNTS - 9), loss="poisson"), "y: expected counts, .*, got -"),
    "counts that are no whole numbers": (lambda: run(loss="poisson"), "y: expected counts"),
    "several columns of counts": (
        lambda: run(make(y=np.stack([COUNTS] * 2, 1)), loss="poisson"),
        "y: expected one column with loss='poisson', got 2",
    ),
    "one-hot classes": (
        lambda: run(make(y=np.eye(2)[COUNTS % 2]), loss="cross_entropy"),
        r"y: expected one class for each row, .* got \(32, 2\)",
    ),
    "shots of 0": (lambda: run(shots=0), "fit: shots: expected a whole number of at least 1, got 0"),
    "shots of 1.0": (lambda: run(shots=1.0), "fit: shots: .* got 1.0"),
    "shots of True": (lambda: run(shots=True), "fit: shots: expected a whole number of at least 1, got True"),
    "shots as a text": (lambda: run(shots="5"), "fit: shots: expected a whole number of at least 1, got '5'"),
    "shots of NaN": (lambda: run(shots=np.nan), "fit: shots: .* got nan"),
    "shots beyond all groups": (lambda: run(shots=10), "fit: shots: expected fewer than 4, .*, got 10"),
    "queries of 0": (lambda: run(queries=0), "fit: queries: .* got 0"),
    "an order misspelt": (lambda: run(order="fist"), "fit: order: .* got 'fist'.*'first'"),
    "shots of given supports": (
        lambda: run(Tasks.from_list([((X[:2], Y[:2]), (X[2:], Y[2:]))] * 5), shots=1),
        "fit: shots: expected None",
    ),
    "ways of tasks too many": (lambda: run(make(y=None), ways=6), "fit: ways: expected at most 2, .*, got 6"),
    "ways of 1": (lambda: run(make(y=None), ways=1), "fit: ways: .* got 1"),
    "two classes": (
        lambda: run(make(y=None, groups=np.arange(32) % 4)),
        "at least 2 classes in each split, got 1",
    ),
    "episodes with another loss": (
        lambda: run(make(y=None), loss="squared"),
        "fit: loss: expected 'cross_entropy'",
    ),
    "a share of an episode": (lambda: run(make(y=None), shots=0.5), "fit: shots: expected a whole number"),
    "shares beyond 1": (
        lambda: run(validation=0.7, test=0.6),
        "fit: test: .* got validation=0.7 and test=0.6",
    ),
    "a share as a text": (lambda: run(test="some"), "fit: test: expected a finite number .*, got 'some'"),
    "a seed below 0": (lambda: run(seed=-1), "fit: seed: .* got -1"),
    "standardise as a text": (
        lambda: run(standardise="yes"),
        "fit: standardise: expected one of .*, got 'yes'",
    ),
    "a model misspelt": (
        lambda: run(model="lineer"),
        "fit: model: expected one of .*, got 'lineer'.*'linear'",
    ),
    "a network for images on vectors": (
        lambda: run(model="conv4"),
        r"fit: model: .* got rows of shape \(2,\)",
    ),
    "a model that is a number": (lambda: run(model=3), "model: expected .*, got a int"),
    "one function for a model": (lambda: run(model=apply), "model: expected .*, got a function"),
    "a model of too many outputs": (
        lambda: run(model=(lambda key: {"w": jnp.zeros((2, 3))}, apply)),
        r"fit: model: expected outputs of shape \(rows, 1\) .*, got \(3, 3\)",
    ),
    "a model for other inputs": (
        lambda: run(model=(lambda key: {"w": jnp.zeros((7, 1))}, apply)),
        r"model: apply: expected a model that takes rows of shape \(2,\), got an error .TypeError",
    ),
    "a model for a tree": (
        lambda: run(model=(init, lambda p, x: x["a"] @ p["w"])),
        r"model: <lambda>: expected a model that takes rows of shape \(2,\)",
    ),
    "a model that returns more": (
        lambda: run(model=(init, lambda p, x: (x @ p["w"], {}))),
        "fit: model: .* got a tuple",
    ),
    "a model of the whole batch": (
        lambda: run(model=(init, lambda p, x: jnp.sum(x @ p["w"], 0))),
        r"got shape \(1,\)",
    ),
    "a model whose init fails": (
        lambda: run(model=(lambda key: 1 / 0, apply)),
        "fit: model: .* got an error .ZeroDivisionError: division by zero",
    ),
    "a model whose init takes no key": (
        lambda: run(model=(lambda: {}, apply)),
        r"model: apply: expected init\(key\) with one argument, got init\(\)",
    ),
    "a model without parameters": (
        lambda: run(model=(lambda key: {}, lambda p, x: x[:, :1])),
        "model: <lambda>: expected parameters, float arrays, got none",
    ),
    "a model of whole numbers": (
        lambda: run(model=(lambda key: {"w": jnp.ones((2, 1), int)}, apply)),
        "model: apply: expected parameters, float arrays, got none among 1 leaves",
    ),
    "a class for a model": (lambda: run(model=MLP), "model: "),
    "a network of other inputs": (lambda: run(model=MLP((5, 1))), "fit: model: .* got an error .TypeError"),
    "several arrays without a model": (
        lambda: run(make(x={"a": X, "b": X}), model=None),
        "fit: model: expected a model, as inputs are several arrays, got None",
    ),
    "images without channels": (
        lambda: run(make(x=np.zeros((32, 5, 5), np.uint8)), model=None),
        r"fit: model: expected a model, as inputs are rows of shape \(5, 5\)",
    ),
}


@pytest.fixture(scope="module")
def fitted():
    with jax.numpy_rank_promotion("allow"):
        frame = {name: FRAME[name] for name in ("who", "a", "b", "y")}
        made = {
            "numbers": run(),
            "classes": run(make(y=LABELS)),
            "episodes": run(make(y=None), ways=2, shots=1),
            "counts": run(make(y=COUNTS), loss="poisson"),
            "frame": run(Tasks.from_frame(frame, "who", "y")),
            "tree": run(
                make(x={"a": X, "b": X}), model=(init, lambda p, x: x["a"] @ p["w"] + x["b"] @ p["w"])
            ),
            "own": run(loss=lambda o, t: jnp.sum((o - t) ** 2, 1)),
        }
        adapted = {
            "classes": made["classes"].adapt(X[:4], LABELS[:4]),
            "episodes": made["episodes"].adapt(X[:4], ["a", "a", "b", "b"]),
            "numbers": made["numbers"].adapt(X[:4], Y[:4]),
            "own": made["own"].adapt(X[:4], Y[:4]),
        }
    return made, adapted


def _adapt(name, x, y=None):
    return lambda made, _: made[name].adapt(x, y)


def _predict(name, x):
    return lambda _, adapted: adapted[name].predict(x)


USES = {
    "no targets": (_adapt("numbers", X[:3]), "adapt: y: expected targets, got None"),
    "x alone": (_adapt("numbers", X[0], Y[:1]), r"x: expected shape \(rows, 2\), got \(2,\)"),
    "more columns": (
        _adapt("numbers", np.zeros((3, 5)), Y[:3]),
        r"x: expected shape \(rows, 2\), got \(3, 5\)",
    ),
    "a matrix of NumPy for a column": (
        _adapt("numbers", X[:3], X[:3]),
        r"y: expected shape \(rows, 1\), got \(3, 2\)",
    ),
    "fewer targets": (_adapt("numbers", X[:3], Y[:2]), "y: expected 3 rows, as x has, got 2"),
    "no rows": (
        _adapt("numbers", X[:0], Y[:0]),
        r"x: expected at least one row and one column, got shape \(0, 2\)",
    ),
    "NaN in x": (_adapt("numbers", [[1.0, np.nan]], [1.0]), "x: expected finite numbers, got nan in row 0"),
    "NaN in y": (_adapt("numbers", X[:2], [1.0, np.nan]), "y: expected finite numbers, got nan in row 1"),
    "huge numbers": (_adapt("numbers", [[1e39, 0.0]], [1.0]), r"x: .* float32 can hold, got 1e\+39 in row 0"),
    "texts for numbers": (_adapt("numbers", X[:2], ["1", "2"]), "y: expected numbers, got dtype <U1"),
    "a dict for an array": (
        _adapt("numbers", {"a": X[:2]}, Y[:2]),
        "x: expected one array, got the arrays a",
    ),
    "an unseen class": (_adapt("classes", X[:2], ["yes", "nope"]), "y: class: .* got 'nope'.*'no'"),
    "a class that is missing": (_adapt("classes", X[:2], ["yes", None]), "y: .* got None in row 1"),
    "classes as numbers": (_adapt("classes", X[:2], [0, 1]), "y: class: expected one of no, yes, got 0"),
    "too many classes of an episode": (
        _adapt("episodes", X[:3], list("abc")),
        "y: expected at most 2 classes, .* got 3",
    ),
    "counts of an adapted task": (_adapt("counts", X[:2], [1, -1]), "y: expected counts, .*, got -1"),
    "a column is missing": (
        _adapt("frame", {"a": [1.0], "y": [2.0]}),
        "columns: expected 'b' among them, got a, y",
    ),
    "a column of texts": (_adapt("frame", {"a": ["u"], "b": [1.0], "y": [2.0]}), "columns: .* others in a"),
    "a frame without a target": (
        _adapt("frame", {"a": [1.0], "b": [2.0]}),
        "adapt: y: expected targets, got None",
    ),
    "columns of other lengths": (
        _adapt("frame", {"a": [1.0], "b": [2.0, 3.0], "y": [1.0]}),
        "columns: .* 2 of b",
    ),
    "another tree": (
        _adapt("tree", {"a": X[:2], "c": X[:2]}, Y[:2]),
        "x: expected the arrays a, b, got the arrays a, c",
    ),
    "an array for a tree": (_adapt("tree", X[:2], Y[:2]), "x: expected the arrays a, b, got one array"),
    "a ragged tree": (_adapt("tree", {"a": X[:2], "b": X[:3]}, Y[:2]), "x: .* got 2 of a, 3 of b"),
    "offsets of a run without": (
        _adapt("numbers", {"x": X[:2], "offset": [0, 0]}, Y[:2]),
        "offset: expected none",
    ),
    "to predict other columns": (
        _predict("numbers", np.zeros((3, 1))),
        r"x: expected shape \(rows, 2\), got \(3, 1\)",
    ),
    "to predict nothing": (_predict("numbers", np.zeros((0, 2))), "x: expected at least one row"),
    "to predict texts": (_predict("numbers", [["a", "b"]]), "x: expected numbers, got dtype <U1"),
    "to predict ragged lists": (_predict("numbers", [[1.0, 2.0], [3.0]]), "x: expected an array of numbers"),
    "to predict None": (_predict("numbers", None), "x: expected an array of numbers, got objects"),
    "intervals of classes": (
        lambda _, adapted: adapted["classes"].predict_interval(X[:2]),
        "predict_interval: expected numbers, got classes",
    ),
    "probabilities of numbers": (
        lambda _, adapted: adapted["numbers"].predict_proba(X[:2]),
        "predict_proba: expected classes, got numbers",
    ),
    "a level of 90": (
        lambda _, adapted: adapted["numbers"].predict_interval(X[:2], 90),
        "predict_interval: level: .* got 90",
    ),
    "intervals of a loss of one's own": (
        lambda _, adapted: adapted["own"].predict_interval(X[:2]),
        "posterior: expected ",
    ),
}


def check(use, says):
    """That a use raises one message by the template."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImamlError) as caught:
            use()
    message = str(caught.value)
    assert FORM.match(message), message
    assert re.search(says, message), message


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_wrong_constructors(case):
    check(*CONSTRUCTORS[case])


@pytest.mark.parametrize("case", FITS)
def test_wrong_fits(case):
    check(*FITS[case])


@pytest.mark.parametrize("case", USES)
def test_wrong_uses_of_a_run(case, fitted):
    use, says = USES[case]
    check(lambda: use(*fitted), says)


def test_there_are_many():
    assert len(CONSTRUCTORS) + len(FITS) + len(USES) >= 150


ACCEPTED = {
    "float16": lambda: make(x=X.astype(np.float16), y=Y.astype(np.float16)),
    "bfloat16": lambda: make(x=X.astype(ml_dtypes.bfloat16)),
    "arrays of JAX": lambda: make(x=jnp.asarray(X), y=jnp.asarray(Y), groups=jnp.asarray(GROUPS)),
    "y of one column": lambda: make(y=Y[:, None]),
    "lists": lambda: make(x=X.tolist(), y=Y.tolist(), groups=GROUPS.tolist()),
    "a data frame of inputs": lambda: make(x=pd.DataFrame(X), y=pd.Series(Y), groups=pd.Series(GROUPS)),
    "whole numbers": lambda: make(x=(10 * X).astype(int), y=COUNTS),
    "a generator of pairs": lambda: Tasks.from_list((X[:n], Y[:n]) for n in range(2, 9)),
    "Tasks of pairs": lambda: Tasks.from_list([Task((X[:2], Y[:2]), (X[2:5], Y[2:5]))] * 5),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted(case):
    found = run(ACCEPTED[case]()).adapt(X[:3], Y[:3])
    assert found.predict(X[:4]).shape == (4,)


def test_whole_numbers_may_be_classes():
    found = run(make(y=COUNTS % 3), loss="cross_entropy").adapt(X[:3], [0.0, 1.0, 2.0])
    assert set(found.predict(X).tolist()) <= {0, 1, 2}
    found = run(make(y=COUNTS % 2), loss="binary").adapt(X[:3], np.array([[0], [1], [1]]))
    assert set(found.predict(X).tolist()) <= {0, 1}
