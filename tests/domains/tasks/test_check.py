"""What `imaml data check` finds: a table of what may be wrong, each with what to do about it."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from imaml.cli.main import main
from imaml.domains.tasks.check import check
from imaml.domains.tasks.sources import TasksFile

RANDOM = np.random.default_rng(0)
GROUPS = np.repeat(np.arange(12), 4)
X = RANDOM.normal(size=(48, 3))
Y = RANDOM.normal(size=48)
NAN = np.where(np.arange(48) == 5, np.nan, Y)
LABELS = np.where(Y > 0, "yes", "no")


def changed(array, *where, value):
    array = array.copy()
    array[where] = value
    return array


COPIED = changed(X, slice(0, 4), value=X[4:8])
ARRAYS = {
    "clean": ({}, "clean", ""),
    "clean classes": ({"y": LABELS}, "clean", ""),
    "episodes": ({"y": None}, "clean", ""),
    "no groups": ({"groups": None}, "unusable", "expected arrays x .*, y and groups, got x, y"),
    "no rows": ({"x": X[:0], "y": Y[:0], "groups": GROUPS[:0]}, "unusable", "at least one row"),
    "other lengths": ({"y": Y[:9]}, "unusable", "got 48 of x, 9 of y"),
    "NaN in both": (
        {"x": changed(X, 3, 1, value=np.inf), "y": NAN},
        "unusable",
        r"y: 1 cells are missing or not finite, the first in row 5\n  do: drop",
    ),
    "single rows": ({"groups": changed(GROUPS, 0, value=99)}, "warnings", r"1 of 13 tasks .* \(99\)"),
    "all single": ({"groups": np.arange(48)}, "unusable", "expected tasks of at least 2 rows, got none"),
    "two tasks": ({"groups": GROUPS % 2}, "unusable", "expected groups for training"),
    "few tasks": ({"groups": GROUPS % 5}, "warnings", "5 tasks: scores .* say little\n  do: bring more"),
    "few classes": (
        {"y": None, "groups": GROUPS % 6},
        "unusable",
        "1 classes for 'validation', where a run needs 2\n  do: .* --validation=0.35 --test=0.35",
    ),
    "a constant column": ({"x": changed(X, slice(None), 1, value=7)}, "warnings", r"x: constant .* \(1\)"),
    "one target": ({"y": 0 * Y}, "unusable", "y: all targets are 0"),
    "a rare class": ({"y": changed(np.full(48, "no"), 3, value="so")}, "warnings", "y: 'so' has 1 rows"),
    "a class in one task": (
        {"y": changed(LABELS.astype("U9"), 3, value="Yes")},
        "warnings",
        r"1 classes are in one task only \(Yes\)\n  do: check their spelling",
    ),
    "a task twice": (
        {"x": COPIED, "y": changed(Y, slice(0, 4), value=Y[4:8])},
        "warnings",
        r"1 sets of tasks have the same rows \(0 = 1\)\n  do: keep one of them",
    ),
    "a row twice": (
        {"x": changed(X, 0, value=X[9]), "y": changed(Y, 0, value=Y[9])},
        "warnings",
        r"1 rows are in two tasks or more \(0, 2\)",
    ),
    "the same x alone": ({"x": COPIED}, "clean", ""),
    "coincidences of whole numbers": ({"x": GROUPS % 2, "y": np.arange(48) % 2}, "clean", ""),
    "coincidences of coarse numbers": (
        {"x": np.round(X) / 2, "y": np.round(2 * Y) / 4},
        "clean",
        "",
    ),
    "groups in no split": (
        {"split": None, "groups": changed(GROUPS.astype(float), 3, value=np.nan)},
        "unusable",
        "groups: .* got nan in row 3",
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case, tmp_path):
    changes, status, says = ARRAYS[case]
    arrays = {"x": X, "y": Y, "groups": GROUPS, **changes}
    np.savez(tmp_path / "a.npz", **{name: array for name, array in arrays.items() if array is not None})
    report = check(TasksFile(str(tmp_path / "a.npz")))
    assert report.status == status, str(report)
    assert re.search(says, str(report)), str(report)


def draw(file, seed=0, side=30):
    file.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).integers(0, 2, (6, 6)) * 255
    grey[[0, -1]] = grey[:, [0, -1]] = 255
    pixels = np.kron(grey, np.ones((side // 6, side // 6)))
    Image.fromarray(pixels.astype(np.uint8)).save(file)


def folder(root, classes=10, images=2):
    for kind in range(classes):
        for number in range(images):
            draw(root / f"k{kind}" / f"{number}.png", seed=kind * images + number)
    return root


IMAGES = {
    "clean": (lambda root: None, "clean", "classes *10\n *images *20"),
    "unreadable": (
        lambda root: [(root / f"k{i}" / "bad.png").write_text("no image") for i in (2, 3)],
        "unusable",
        "k2/bad.png: expected a PNG(.|\n)*k3/bad.png: expected a PNG",
    ),
    "of an iPhone": (
        lambda root: (root / "k0" / "a.heic").write_text(""),
        "warnings",
        r"1 .heic\)\n  do: save them as .png",
    ),
    "one image": (lambda root: draw(root / "single" / "0.png", 99), "warnings", r"one image \(single\)"),
    "a copy in another class": (
        lambda root: draw(root / "k1" / "copy.png", 0),
        "warnings",
        r"1 images are in two classes or more \(k0, k1\)",
    ),
    "a copy in its class": (
        lambda root: draw(root / "k1" / "copy.png", 2),
        "warnings",
        r"1 images come twice in their class \(k1\)\n  do: delete",
    ),
    "blank": (
        lambda root: Image.new("L", (30, 30), 200).save(root / "k0" / "blank.png"),
        "warnings",
        r"1 images are nearly blank",
    ),
    "loose": (
        lambda root: draw(root / "loose.png", 98),
        "warnings",
        r"1 images .* not in the folder .*loose.png",
    ),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images(case, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    change, status, says = IMAGES[case]
    change(folder(tmp_path / "data"))
    report = check(TasksFile(str(tmp_path / "data"), "images", side=12))
    assert report.status == status, str(report)
    assert re.search(says, str(report)), str(report)


def table(file, **columns):
    rows = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    file.write_text("\n".join(rows))
    return str(file)


def test_the_command(tmp_path, capsys):
    """Exit statuses, tables, and JSON."""
    clean = table(tmp_path / "a.csv", who=GROUPS, a=X[:, 0], y=Y)
    assert main(["data", "check", clean, "--task=who", "--target=y", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["findings"], found["facts"]["tasks"]) == ("clean", [], 12)
    counting = table(tmp_path / "b.csv", who=GROUPS, n=np.arange(48), a=X[:, 0], y=Y)
    assert main(["data", "check", counting, "--task=who", "--target=y"]) == 1
    assert "only count the rows are used as numbers: n" in capsys.readouterr().out
    gaps = table(tmp_path / "c.csv", who=["", *GROUPS[1:]], a=["", "", *X[2:, 0]], y=Y)
    assert main(["data", "check", gaps, "--task=who", "--target=y"]) == 2
    out = capsys.readouterr().out
    assert "who: 1 cells are missing or not finite, the first in row 0" in out
    assert "a: 2 cells are missing" in out
    assert out.endswith("errors\n")
    assert main(["data", "check", clean]) == 2
    assert "got no --task. Hint: the columns of" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert "expected a file, a folder or omniglot, got" in capsys.readouterr().err
