"""The command line from end to end at tiny size, and a table of bad inputs: one clear message each."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import imaml
from helpers.marks import slow_after_first
from imaml.cli.main import COMMANDS, main
from imaml.cli.options import Change, configure, fields_of, split_words
from imaml.config.presets import preset
from imaml.core.errors import ArtefactError, ConfigError, DataError
from imaml.core.streams import Lasting

FILE = str(Path(imaml.__file__).parent / "somewhere.py")
TINY = [
    "--domain.ways=3",
    "--domain.queries=1",
    "--domain.filters=4",
    "--method.inner.steps=2",
    "--method.linear.steps=1",
    "--steps=2",
    "--tasks=2",
    "--training.validate_every=0",
    "--training.test_tasks=0",
]
SINUSOID = [
    "--steps=1",
    "--tasks=2",
    "--domain.hidden=4",
    "--method.inner.steps=1",
    "--method.linear.steps=1",
]
SINUSOID += ["--training.validate_every=0", "--training.test_tasks=0", "--quiet"]


def instead(words, *others):
    """The words with some options in place of those of the same name: an option is given once."""
    names = [other.partition("=")[0] for other in others]
    return [*(word for word in words if word.partition("=")[0] not in names), *others]


@pytest.fixture(autouse=True)
def ranks():
    """Networks add biases to batches; strictness about ranks is for our own solvers."""
    with jax.numpy_rank_promotion("allow"):
        yield


def draw(file: Path, kind: int, number: int, side: int = 40) -> None:
    """A PNG of dark bars on light paper: their direction and place tell the class."""
    pixels = np.full((side, side), 255, np.uint8)
    where = slice(6 + 5 * (kind // 2) + number % 3, 12 + 5 * (kind // 2) + number % 3)
    if kind % 2:
        pixels[where, 4:-4] = 0
    else:
        pixels[4:-4, where] = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a support and a query set, and runs of two kinds; made once."""
    root = tmp_path_factory.mktemp("cli")
    for kind in range(9):
        split = ("train", "val", "test")[kind // 3]
        for number in range(3):
            draw(root / "data" / split / f"kind{kind}" / f"{number}.png", kind, number)
    for kind in range(3):
        draw(root / "support" / f"k{kind}" / "a.png", kind, 0)
        draw(root / "query" / f"k{kind}.png", kind, 1, side=61)
    with jax.numpy_rank_promotion("allow"):
        words = ["train", "--domain.source=images", f"--data={root / 'data'}", f"--out={root / 'run'}", *TINY]
        assert main(words) == 0
        assert main(["train", "sinusoid", f"--out={root / 'waves'}", *SINUSOID]) == 0
    damage(root)
    return root


def damage(root: Path) -> None:
    """All that is broken, for the table below."""
    whole = (root / "run" / "artefact.safetensors").read_bytes()
    (root / "flipped.safetensors").write_bytes(whole[:-100] + bytes([whole[-100] ^ 4]) + whole[-99:])
    (root / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "text.safetensors").write_text("no artefact at all")
    (root / "empty").mkdir()
    (root / "full").mkdir()
    (root / "full" / "something").write_text("here")
    (root / "no-json").mkdir()
    (root / "no-json" / "config.json").write_text("{")
    (root / "python").mkdir()
    (root / "python" / "config.json").write_text('{"kind": "Python", "reason": "a raw Optax object"}')
    for kind in range(4):
        draw(root / "four" / f"k{kind}" / "a.png", kind, 0)
    (root / "shelf").mkdir()
    for name in "ab":
        (root / "shelf" / f"{name}.safetensors").write_bytes(whole)
    draw(root / "one" / "k0" / "a.png", 0, 0)
    draw(root / "corrupt" / "k0" / "a.png", 0, 0)
    (root / "corrupt" / "k1").mkdir()
    (root / "corrupt" / "k1" / "a.png").write_bytes((root / "support" / "k1" / "a.png").read_bytes()[:60])
    (root / "hollow" / "k0").mkdir(parents=True)
    for kind in range(3):  # a class with a single image
        draw(root / "thin" / "train" / f"k{kind}" / "a.png", kind, 0)
    (root / "omniglot.npz").write_bytes(b"PK\x03\x04 this is a truncated archive")


RUN, WAVES = "{root}/run", "{root}/waves"
ADAPT = ["adapt", RUN, "--support={root}/support", "--query={root}/query"]
TRAIN = ["train", "--out={root}/new"]
IMAGES = ["train", "--domain.source=images", "--out={root}/new", *TINY]
BAD = {
    # commands and options
    "no such command": (["trian"], "got 'trian'. Hint: did you mean 'train'?"),
    "a function of Python": (
        ["load", RUN],
        "imaml: command: expected one of {commands}, got 'load'. Hint: imaml.load is a Python function; on "
        "the command line use imaml adapt.",
    ),
    "a method of Python": (
        ["predict", RUN],
        "got 'predict'. Hint: predict is a Python method; on the command line use imaml adapt.",
    ),
    "a word that is no command": (["xyzzy"], "got 'xyzzy'. Hint: imaml --help lists them."),
    "a word that is no data action": (["data", "xyzzy"], "got 'xyzzy'. Hint: imaml data --help lists them."),
    "misspelt preset": (["train", "omniglot-5w1"], "did you mean 'omniglot-5w1s'?"),
    "unknown preset": (
        ["train", "zzz"],
        "expected one of actor-critic, actor-critic-cart-pole,",
    ),
    "two presets": (["train", "sinusoid", "sinusoid"], "train: expected fewer arguments, got 'sinusoid'"),
    "a run for a preset": (["train", RUN], "use imaml train --resume --out"),
    "misspelt option": ([*TRAIN, "--step=3"], "got --step. Hint: did you mean '--steps'?"),
    "one dash": ([*TRAIN, "-steps=3"], "did you mean '--steps'?"),
    "misspelt path": ([*TRAIN, "--method.inner.step=3"], "did you mean 'steps'?"),
    "misspelt group": ([*TRAIN, "--metod.strength=3"], "did you mean 'method'?"),
    "path below a value": ([*TRAIN, "--method.strength.x=3"], "plain value"),
    "path where none fits": (["evaluate", RUN, "--domain.ways=3"], "its options, got --domain.ways"),
    "option given twice": (
        [*TRAIN, "--steps=3", "--steps", "5"],
        "--steps: expected one value, got '5' as well. Hint: give this option once.",
    ),
    "the same twice": (["evaluate", RUN, "--split=test", "--split=test"], "--split: expected one value"),
    "task given twice": (
        ["train", "tables", "--task", "subject", "--task", "item"],
        "--task: expected one value, got 'item' as well. Hint: give this option once.",
    ),
    "path given twice": (
        [*TRAIN, "--method.strength=1", "--method.strength=2"],
        "expected one value, got --method.strength=1 and --method.strength=2. Hint: give this option once.",
    ),
    "path with a dash": (
        [*TRAIN, "--training.log_every=1", "--training.log-every=2"],
        "got --training.log_every=1 and --training.log-every=2.",
    ),
    "option and its path": (
        [*TRAIN, "--training.steps=3", "--steps=5"],
        "--steps: expected one value, got --training.steps=3 and --steps=5.",
    ),
    "budget and its path": (["compare", "--budget=1", "--training.minutes=2"], "and --budget=1"),
    "data and its path": ([*IMAGES, "--data=a", "--domain.data=b"], "got --domain.data=b and --data=a"),
    "list in two forms": (
        ["train", "tables", "--features=day", "--domain.features=dose"],
        "--features: expected one value, got --domain.features=dose and --features=day.",
    ),
    "option without value": ([*TRAIN, "--steps"], "--steps: expected a value, got none"),
    "path without value": ([*TRAIN, "--method.strength"], "--method.strength: expected a value, got none"),
    "path and then an option": ([*TRAIN, "--method.strength", "--steps=1"], "expected a value, got none"),
    "flag with value": ([*TRAIN, "--resume=perhaps"], "--resume: expected true or false, got 'perhaps'"),
    "steps no number": (
        [*TRAIN, "--steps=ten"],
        "imaml: --steps: expected a whole number, got 'ten'. Hint: for example --steps=100.",
    ),
    "path no number": (
        [*TRAIN, "--method.inner.steps=ten"],
        "imaml: --method.inner.steps: expected a whole number or none, got 'ten'. Hint: for example "
        "--method.inner.steps=100.",
    ),
    "path below its range": (
        [*TRAIN, "--method.inner.steps=0"],
        "imaml: --method.inner.steps: expected a whole number of at least 1 or None, got 0.",
    ),
    "half a step": ([*TRAIN, "--steps=1.5"], "--steps: expected a whole number, got '1.5'"),
    "half a task": (["evaluate", RUN, "--tasks=2.5"], "--tasks: expected a whole number, got '2.5'"),
    "steps below zero": (
        [*TRAIN, "--steps=-1"],
        "imaml: --steps: expected a whole number of at least 0, got -1.",
    ),
    "no tasks": ([*TRAIN, "--tasks=0"], "tasks=0"),
    "seed too large": ([*TRAIN, "--seed=99999999999"], "below 4294967296"),
    "minutes not positive": ([*TRAIN, "--minutes=0"], "minutes: expected"),
    "strength zero": ([*TRAIN, "--method.strength=0"], "strength: expected a finite number above 0"),
    "strength below zero": ([*TRAIN, "--method.strength=-0.5"], "strength: expected"),
    "strength nan": ([*TRAIN, "--method.strength=nan"], "strength: expected"),
    "learning rate": ([*TRAIN, "--optimiser.learning_rate=0"], "learning_rate: expected"),
    "optimiser": ([*TRAIN, "--optimiser.name=adan"], "did you mean 'adam'?"),
    "linear solver": ([*TRAIN, "--method.linear=GMRS"], "did you mean 'GMRES'?"),
    "neither true nor false": ([*TRAIN, "--domain.rotations=perhaps"], "true or false"),
    "one way": ([*TRAIN, "--domain.ways=1"], "ways: expected a whole number of at least 2, got 1"),
    "ways beyond characters": ([*TRAIN, "--domain.ways=2001"], "at most 2000"),
    "no leaf of this name": (
        [*IMAGES, "--data={root}/data", "--method.adapt=haed"],
        "leaf or branch of theta: expected one of",
    ),
    "patience without validation": ([*IMAGES, "--training.patience=2"], "validate_every=0"),
    "the best of no validation": ([*IMAGES, "--training.restore_best=true"], "omit restore_best"),
    # folders
    "resume without folder": (["train", "--resume"], "--resume: expected --out with a run directory"),
    "resume of nothing": (["train", "--resume", "--out={root}/empty"], "no config.json"),
    "resume of another run": (
        ["train", "--resume", "--out=" + RUN, "--seed=7"],
        "training.seed was 0 and is now 7",
    ),
    "resume and from": (["train", "--resume", "--out=" + RUN, "--from=" + RUN], "omit one"),
    "resume of no json": (
        ["train", "--resume", "--out={root}/no-json"],
        "no-json/config.json: expected JSON, got an error (",
    ),
    "resume of raw optax": (["train", "--resume", "--out={root}/python"], "a raw Optax object"),
    "folder not empty": (
        ["train", "--out={root}/full"],
        "imaml: {root}/full: expected a new or empty directory, got one with files in it. Hint: resume the "
        "run in it (--resume), or choose another directory (--out).",
    ),
    "folder is a file": (
        ["train", "--out={root}/full/something"],
        "imaml: {root}/full/something: expected a directory for the run, got a file. Hint: choose another "
        "with --out.",
    ),
    "folder below a file": (
        ["train", "--out={root}/full/something/run"],
        "run: expected a place that can be written, got an error (Not a directory). Hint: free space there, "
        "or choose another folder.",
    ),
    "folder not writable": (["train", "--out=/proc/run"], "expected a place that can be written"),
    # data
    "data for characters": ([*TRAIN, "--data={root}/data"], "expected a run that reads data"),
    "data not said": (IMAGES, "pass --data PATH"),
    "data missing": ([*IMAGES, "--data={root}/nowhere"], "beside images/, got no such folder. Hint: check"),
    "class with one image": ([*IMAGES, "--data={root}/thin"], "a.png|1 image|images"),
    "ways above classes": (
        instead(IMAGES, "--data={root}/data", "--domain.ways=4"),
        "at least 4 classes (the ways), got 3",
    ),
    "shots above images": (
        [*IMAGES, "--data={root}/data", "--domain.shots=3"],
        "at least 4 images (shots and queries), got 3",
    ),
    "truncated archive": (["evaluate", RUN, "--data={root}/omniglot.npz"], "omniglot.npz"),
    "omniglot missing": (
        ["train", "omniglot-5w1s", "--out={root}/new", "--data={root}/nowhere"],
        "no such file",
    ),
    "data of a sinusoid": (["evaluate", WAVES, "--data={root}/data"], "expected a run that reads data"),
    "data action": (["data", "lits"], "did you mean 'list'?"),
    "data name": (["data", "check", "omniglob"], "omniglot, got 'omniglob'. Hint: did you mean 'omniglot'?"),
    # artefacts
    "no run named": (["evaluate"], "evaluate: expected RUN, got nothing"),
    "artefact missing": (
        ["evaluate", "{root}/nowhere.safetensors"],
        "imaml: {root}/nowhere.safetensors: expected a run directory or an artefact (*.safetensors), got no "
        "such file or folder. Hint: imaml train --out DIR makes one.",
    ),
    "run without artefact": (
        ["evaluate", "{root}/empty"],
        "imaml: {root}/empty: expected a run directory or an artefact (*.safetensors), got an empty folder. "
        "Hint: imaml train --out DIR makes one.",
    ),
    "run that has not ended": (
        ["evaluate", "{root}/no-json"],
        "imaml: {root}/no-json: expected a run directory or an artefact (*.safetensors), got a run without "
        "an artefact. Hint: the run has not ended; continue it with imaml train --resume "
        "--out {root}/no-json.",
    ),
    "folder of artefacts": (
        ["evaluate", "{root}/shelf"],
        "imaml: {root}/shelf: expected a run directory or an artefact (*.safetensors), got a folder "
        "that holds some. Hint: name what is in it: {root}/shelf/a.safetensors, {root}/shelf/b.safetensors.",
    ),
    "no artefact at all": (
        ["evaluate", "{root}/text.safetensors"],
        "expected an artefact of imaml, got a file of another format. Hint: name the",
    ),
    "artefact truncated": (
        ["evaluate", "{root}/short.safetensors"],
        "short.safetensors: expected a whole artefact, got a damaged one: it is truncated within its header. "
        "Hint: restore a copy, or export it again.",
    ),
    "artefact with a flipped bit": (["evaluate", "{root}/flipped.safetensors"], "damaged"),
    "from another model": (
        ["train", "sinusoid", "--out={root}/new", "--from=" + RUN, *SINUSOID],
        "this domain",
    ),
    "report of nothing": (["report", "{root}/empty"], "no events.jsonl"),
    # evaluate
    "a baseline's name": (["evaluate", WAVES, "nearest_point=" + WAVES, "--tasks=2"], "choose another"),
    "split": (
        ["evaluate", RUN, "--split=tset"],
        "got 'tset'. Hint: did you mean 'test'?",
    ),
    "one task": (["evaluate", RUN, "--tasks=1"], "at least 2"),
    "other ways": (["evaluate", RUN, "--ways=4"], "as the run's head has an output for each class, got 4"),
    "ways of waves": (["evaluate", WAVES, "--ways=4"], "--ways: expected a run whose tasks may have any"),
    "tasks no number": (["evaluate", RUN, "--tasks=ten"], "--tasks: expected a whole number, got 'ten'"),
    "seed below zero": (["evaluate", RUN, "--seed=-1"], "at least 0"),
    "another domain's run": (["evaluate", WAVES, RUN], "expected runs that draw the same tasks"),
    "two of one name": (["evaluate", WAVES, WAVES, WAVES, "--tasks=2"], "got 'imaml' twice. Hint: name one"),
    # adapt
    "no support": (["adapt", RUN, "--query={root}/query"], "adapt: expected --support, got nothing"),
    "adapt of waves": (["adapt", WAVES, *ADAPT[2:]], "expected an .npz or .npy file"),
    "support empty": (
        instead(ADAPT, "--support={root}/empty"),
        "imaml: {root}/empty: expected a folder with one folder of images for each class, got an empty "
        "folder. Hint: put each image (.png, .jpg, .jpeg, .jfif, .gif, .bmp, .tif, .tiff, .webp, .pgm, "
        ".ppm) in a folder named after its class, for example {root}/empty/apple/1.png.",
    ),
    "support class empty": (
        instead(ADAPT, "--support={root}/hollow"),
        "imaml: {root}/hollow/k0: expected images of the class 'k0', got an empty folder. Hint: put its "
        "images there, for example {root}/hollow/k0/1.png.",
    ),
    "support missing": (instead(ADAPT, "--support={root}/nowhere"), "for each class, got no such folder."),
    "support corrupt": (instead(ADAPT, "--support={root}/corrupt"), "k1/a.png"),
    "support above ways": (instead(ADAPT, "--support={root}/four"), "different ones, as in training, got 4"),
    "support of one class": (instead(ADAPT, "--support={root}/one"), "got 1 (k0)"),
    "query missing": (instead(ADAPT, "--query={root}/nowhere"), "expected a folder of images, got no such"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_ends_with_one_clear_message(case, place, capsys):
    words, says = BAD[case]
    before = sorted((place / "run").rglob("*"))
    status = main([word.replace("{root}", str(place)) for word in words])
    out, err = capsys.readouterr()
    assert status == 2
    assert out == ""
    lines = err.rstrip("\n").split("\n")
    message = lines[-1]
    assert message.startswith("imaml: ")
    assert len(lines) == 1, err
    says = says.replace("{root}", str(place)).replace("{commands}", ", ".join(COMMANDS))
    assert any(part in message for part in says.split("|")), message
    assert "Traceback" not in err
    assert sorted((place / "run").rglob("*")) == before  # nothing that was there is harmed


def test_options_with_a_dot_are_changes_of_the_configuration():
    words = ["train", "--out", "a.b", "--method.inner.steps=3", "--training.log-every", "7", "--quiet"]
    others, changes = split_words([*words, "--method.strength", "-1", "--domain=SinusoidRecipe"])
    assert others == ["train", "--out", "a.b", "--quiet"]
    assert changes == [
        Change("method.inner.steps", "3", "--method.inner.steps"),
        Change("training.log_every", "7", "--training.log-every"),
        Change("method.strength", "-1", "--method.strength"),
        Change("domain", "SinusoidRecipe", "--domain"),
    ]


def test_a_repeated_list_is_one_list():
    _, changes = split_words(["--method.adapt=a", "--method.adapt=b"])
    config = configure(preset("tables"), changes, features=["day", "dose,weight"], seed=1)
    assert config.method.adapt == ("a", "b")
    assert config.domain.features == ("day", "dose", "weight")
    assert config.training.seed == 1


NOWHERE = {
    "no console": "sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None",
    "a closed stderr": "sys.stderr.close()",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", slow_after_first(NOWHERE))
def test_training_needs_no_console(case, tmp_path):
    """With pythonw, or as a service, a program has neither stdout nor stderr."""
    words = instead(SINUSOID[:-1], "--training.test_tasks=2", f"--out={tmp_path / 'run'}")
    code = f"import sys; from imaml.cli.main import main; {NOWHERE[case]}; "
    code += f"sys.exit(10 + main({['train', 'sinusoid', *words]!r}))"
    python, options = command()
    done = subprocess.run([python[0], "-c", code], **options, capture_output=True)
    assert (done.returncode, done.stderr) == (10, "")
    assert (tmp_path / "run" / "report.html").exists()


def test_a_message_for_stderr_does_not_go_to_stdout_instead(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["trian"]) == 2
    assert capsys.readouterr().out == ""


def good():
    return np.zeros((3, 28, 28), np.float32)


PIXELS = good()
PIXELS[1, 3, 3] = np.nan
BAD_CALLS = {
    "NaN pixels": (lambda p: p.predict(PIXELS), DataError, "got values from nan"),
    "8-bit pixels": (lambda p: p.predict(np.zeros((1, 28, 28), np.uint8)), DataError, "dtype uint8"),
    "pixels above 1": (
        lambda p: p.predict(255 * np.ones((1, 28, 28))),
        DataError,
        "divide 8-bit images by 255",
    ),
    "pixels below 0": (lambda p: p.predict(good() - 0.5), DataError, "values from -0.5"),
    "another size": (lambda p: p.predict(np.zeros((1, 32, 32))), DataError, "shape (1, 32, 32)"),
    "one image without batch": (lambda p: p.predict(np.zeros((28, 28))), DataError, "shape (28, 28)"),
    "no images": (lambda p: p.predict(np.zeros((0, 28, 28))), DataError, "n at least 1"),
    "three channels": (lambda p: p.predict_proba(np.zeros((1, 28, 28, 3))), DataError, "(1, 28, 28, 3)"),
    "ragged": (lambda p: p.predict([np.zeros((28, 28)), np.zeros((2, 2))]), DataError, "different shapes"),
    "texts": (lambda p: p.predict(["a", "b"]), DataError, "shape (2,)"),
}
BAD_SUPPORT = {
    "NaN pixels": (PIXELS, [0, 1, 2], "got values from nan"),
    "labels too few": (good(), [0, 1], "a label for each of 3"),
    "labels all the same": (good(), ["a", "a", "a"], "got 1 (a)"),
    "too many classes": (np.zeros((4, 28, 28)), [0, 1, 2, 3], "got 4 (0, 1, 2, 3)"),
    "NaN label": (good(), [0.0, 1.0, np.nan], "a label that is NaN"),
    "mixed labels": (good(), np.array([0, "a", None], object), "cannot be sorted"),
    "ragged labels": (good(), [[0], [1, 2], 3], "cannot be sorted"),
    "integers": (np.zeros((3, 28, 28), np.int64), [0, 1, 2], "dtype int64"),
}


@pytest.fixture(scope="module")
def learner(place):
    return imaml.load(place / "run")


@pytest.fixture(scope="module")
def predictor(learner):
    rng = np.random.default_rng(0)
    with jax.numpy_rank_promotion("allow"):
        return learner.adapt(rng.random((3, 28, 28), np.float32), ["a", "b", "c"])


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_predictor_refuses(case, predictor):
    call, error, says = BAD_CALLS[case]
    with pytest.raises(error) as caught:
        call(predictor)
    assert says in str(caught.value)


@pytest.mark.parametrize("case", BAD_SUPPORT)
def test_a_learner_refuses(case, learner):
    x, y, says = BAD_SUPPORT[case]
    with pytest.raises(DataError) as caught:
        learner.adapt(x, y)
    assert says in str(caught.value)


def test_other_bad_calls_from_python(learner, place):
    waves = imaml.load(place / "waves")
    for x, y in (([1.0, 2.0], [1.0]), ([np.nan], [1.0]), ([[1.0, 2.0]], [1.0]), (["a"], [1.0]), ([], [])):
        with pytest.raises(DataError):
            waves.adapt(x, y)
    fitted = waves.adapt([0.0, 1.0], [0.0, 1.0])
    assert fitted.predict([0.5, 0.7]).shape == (2,)
    with pytest.raises(ConfigError, match="predict_proba: expected classes, got numbers"):
        fitted.predict_proba([0.5])
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        imaml.evaluate(learner, split="tst")
    with pytest.raises(ConfigError, match="tasks: expected a whole number of at least 2"):
        imaml.evaluate(learner, tasks=1)
    with pytest.raises(ConfigError, match="seed: expected"):
        imaml.evaluate(learner, seed=2**70)
    with pytest.raises(ArtefactError):
        imaml.load(place / "flipped.safetensors")


@pytest.mark.slow
def test_runs_are_scored_beside_others_on_the_same_tasks(place, capsys):
    """Differences are those of the means; a run beside itself differs by nothing."""
    waves = str(place / "waves")
    assert main(["evaluate", waves, f"itself={waves}", "--tasks=6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["score"], found["better"]) == (found["loss"], "lower")
    assert found["baselines"]["itself"] == found["loss"]
    assert found["paired"]["itself"] == [0, 0]
    for name, mean in found["baselines"].items():
        np.testing.assert_allclose(found["paired"][name][0], found["score"] - mean, atol=1e-6)
    assert main(["evaluate", waves, f"itself={waves}", "--tasks=6"]) == 0
    assert "loss minus this, paired" in capsys.readouterr().out


@pytest.mark.usefixtures("two_devices")
def test_a_run_from_end_to_end(place, capsys):
    run = place / "run"
    names = {"config.json", "events.jsonl", "checkpoints", "artefact.safetensors", "report.html"}
    assert {entry.name for entry in run.iterdir()} == names
    for line in (run / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    capsys.readouterr()

    assert main(["evaluate", str(run), "--tasks=4", "--seed=3", "--json"]) == 0
    printed = capsys.readouterr().out
    result = json.loads(printed, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    wanted = {"accuracy", "accuracy_ci95", "accuracy_inductive", "before", "tasks", "split", "seed"}
    assert wanted <= set(result)
    assert (result["tasks"], result["split"], result["seed"], result["data"]) == (4, "test", 3, "images")
    assert 0 <= result["accuracy"] <= 1

    artefact = str(run / "artefact.safetensors")
    adapt = ["adapt", artefact, f"--support={place / 'support'}", f"--query={place / 'query'}"]
    assert main([*adapt, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["classes"] == ["k0", "k1", "k2"]
    assert answer["normalisation"] == "inductive"
    assert [Path(row["file"]).name for row in answer["predictions"]] == ["k0.png", "k1.png", "k2.png"]
    for row in answer["predictions"]:
        assert abs(sum(row["probabilities"].values()) - 1) < 1e-5  # rounded to six digits
        assert row["probability"] == max(row["probabilities"].values())
    assert main(adapt) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in lines] == [row["class"] for row in answer["predictions"]]

    assert main(["report", str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()) == run / "report.html"
    assert "<html" in (run / "report.html").read_text()


def test_an_answer_does_not_depend_on_its_neighbours(predictor):
    images = np.random.default_rng(1).random((9, 28, 28), np.float32)
    together = predictor.predict_proba(images)
    assert together.shape == (9, 3)
    assert together.dtype == np.float32
    for count in (1, 2, 5):
        for start in range(0, 9 - count, 3):
            alone = predictor.predict_proba(images[start : start + count, ..., None])
            np.testing.assert_array_equal(alone, together[start : start + count])  # bit for bit
    assert set(predictor.predict(images)) <= {"a", "b", "c"}


def test_a_new_run_starts_from_an_earlier_one(place, capsys):
    words = ["train", "--domain.source=images", f"--data={place / 'data'}", f"--out={place / 'more'}", *TINY]
    assert main(instead(words, f"--from={place / 'run' / 'artefact.safetensors'}", "--steps=0")) == 0
    first, second = imaml.load(place / "run").theta, imaml.load(place / "more").theta
    jax.tree.map(np.testing.assert_array_equal, first, second)
    capsys.readouterr()


def command(*words, **options):
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(imaml.__file__).parents[1])}
    return [sys.executable, "-m", "imaml", *words], {"env": environment, "text": True, **options}


def test_help_is_quick_and_imports_no_jax(capsys):
    for words in ([], ["--help"], ["help"], ["adapt", "-h"], ["--version"], ["-V"], ["presets"]):
        assert main(words) == 0
        assert capsys.readouterr().out
    code = "import sys; from imaml.cli.main import main; main(['-h']); main(['adapt', '-h'])"
    code += "; sys.exit('jax' in sys.modules)"
    words, options = command()
    done = subprocess.run([words[0], "-c", code], **options, capture_output=True)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "--uncertainty" in done.stdout


def leaves(recipe, above=""):
    """The paths of all fields that hold a plain value."""
    for field in dataclasses.fields(recipe):
        value, path = getattr(recipe, field.name), f"{above}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}.")
        else:
            yield path


@pytest.mark.parametrize(
    "words", [["train"], ["train", "sinusoid"], ["compare", "--preset=tables"], ["bench", "gan"]]
)
def test_help_shows_every_field_of_the_preset(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    config = preset(words[-1].removeprefix("--preset=") if words[1:] else "characters-5w1s")
    for path in leaves(config):
        assert re.search(rf"^│ --{re.escape(path)}[ ,]", shown, re.MULTILINE), path
    for group in ("Domain", "Method", "Optimiser", "Training"):
        assert f"─ {group} " in shown
    assert f"[default: {config.training.steps}]" in re.search(r"--training\.steps .*", shown)[0]


def test_help_shows_the_fields_of_the_kinds_that_are_chosen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["train", "sinusoid", "--method.linear=GMRES", "--domain.shots=7", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--method.linear.restart INT" in shown
    assert "[default: GMRES]" in shown
    assert "[default: 7]" in shown


def test_help_says_what_a_docstring_says_of_a_field():
    @dataclasses.dataclass(frozen=True)
    class Recipe:
        """A recipe.

        Args:
            steps: Number of steps,
                at least one.
        """

        steps: int = 3

    assert [field.about for field in fields_of(Recipe())] == ["Number of steps, at least one."]


def test_completion_knows_commands_options_and_fields(tmp_path, capsys):
    file = tmp_path / "imaml.bash"
    assert main(["--install-completion", "--shell=bash", f"--output={file}"]) == 0
    capsys.readouterr()
    for word in (
        "evaluate",
        "--dry-run",
        "--method.inner.steps",
        "--optimiser.learning_rate",
        "GMRES",
        "sinusoid",
    ):
        assert word in file.read_text()


def test_a_reader_that_has_had_enough_is_no_error():
    words, options = command("train", "--help")
    with subprocess.Popen(words, **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait() == 0
        assert process.stderr.read() == ""


def test_a_stream_lasts_when_its_reader_has_gone():
    reader, writer = os.pipe()
    stream = Lasting(os.fdopen(writer, "w"))
    print("read", file=stream, flush=True)
    assert os.read(reader, 9) == b"read\n"
    os.close(reader)
    for _ in range(2):
        print("lost", file=stream, flush=True)
    assert (stream.isatty(), stream.closed) == (False, False)
    stream.close()


@pytest.mark.slow
def test_a_run_goes_on_when_the_reader_of_its_progress_has_gone(tmp_path):
    words = instead(SINUSOID[:-1], "--training.test_tasks=2", "--steps=3", f"--out={tmp_path / 'run'}")
    words, options = command("train", "sinusoid", *words)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(words, **options, **pipes) as process:
        assert process.stdout.readline().startswith("training: ")
        process.stdout.close()
        assert process.wait() == 0
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert {"event": "end", "step": 3, "reason": "steps"}.items() <= events[-2].items()
    assert events[-1]["event"] == "evaluation"
    assert (tmp_path / "run" / "checkpoints" / "step-00000003.checkpoint").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_a_warning_is_one_line(capsys, monkeypatch):
    def warn():
        code = compile("import warnings; warnings.warn('too\\nfew rows', RuntimeWarning)", FILE, "exec")
        exec(code, {"__name__": "imaml.somewhere"})

    monkeypatch.setitem(COMMANDS, "presets", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["presets"]) == 0
    assert capsys.readouterr().err == "imaml: warning: too few rows\n"


@pytest.mark.parametrize("case", ["misspelt option", "artefact with a flipped bit", "folder not empty"])
def test_a_bad_input_in_a_process_of_its_own(case, place):
    words, says = BAD[case][0], BAD[case][1].replace("{root}", str(place))
    words, options = command(*(word.replace("{root}", str(place)) for word in words))
    done = subprocess.run(words, **options, capture_output=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("imaml: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_with_a_checkpoint_and_says_how_to_go_on(place):
    out = place / "stopped"
    long = ["--steps=1000000", *SINUSOID[1:], "--quiet"]
    words, options = command("train", "sinusoid", f"--out={out}", *long)
    with subprocess.Popen(words, **options, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        events = out / "events.jsonl"
        while not (events.exists() and '"event": "step"' in events.read_text()):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"continue with: imaml train --resume --out {out}" in printed
    events = [json.loads(line) for line in events.read_text().splitlines()]
    assert events[-1]["reason"] == "interrupted"
    assert events[-2] == {"event": "checkpoint", "time": events[-2]["time"], "step": events[-1]["step"]}
