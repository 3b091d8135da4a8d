"""`imaml train arrays`, `frame` and `images`: from a file to a run that is evaluated, adapted, resumed."""

import importlib.util
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import imaml
from helpers.paths import ROOT
from imaml.cli import bench
from imaml.cli.main import main
from imaml.cli.own_tasks import Fit, beginning, require_as_begun, shipped
from imaml.config.method import IMAMLRecipe
from imaml.config.run import Config
from imaml.domains.models import own
from imaml.domains.models.imported import imported
from imaml.domains.tasks import own_losses
from imaml.domains.tasks.domain import TasksRecipe
from imaml.domains.tasks.sources import TasksFile
from imaml.problems.precision import Theta
from imaml.training import choosing

CODE = """
import jax, jax.numpy as jnp

def init(key):
    return {"w": jax.random.normal(key, (2,)), "b": jnp.zeros(1)}

def apply(parameters, x):
    return x @ parameters["w"][:, None] + parameters["b"]

def line():
    return init, apply

class Line:
    def init(self, key):
        return init(key)

    def apply(self, parameters, x):
        return apply(parameters, x)

pair = (init, apply)

def image_init(key):
    return {"w": 0.01 * jax.random.normal(key, (64, 2))}

def image_apply(parameters, x):
    return x.reshape(len(x), -1) @ parameters["w"]

flat = (image_init, image_apply)
needs = lambda key: None
broken = 1

def absolute(outputs, targets):
    return jnp.sum(jnp.abs(outputs - targets), axis=1)

raise_later = lambda: 1 / 0
"""
QUICK = ["--shots=4", "--strength=0.1", "--quiet"]


@pytest.fixture(autouse=True)
def ranks(ranks_mixed):
    """Networks add a bias to every row."""


def rows(groups=20, size=8, seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    x = rng.uniform(-1, 1, (len(group), 2))
    y = rng.normal(5, 2, groups)[group] + x @ [1.0, 2.0] + rng.normal(0, 0.1, len(group))
    return x, y, group


def csv(path, names, *columns):
    lines = [",".join(names), *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Files of tasks, the code of models, and a run; made once."""
    root = tmp_path_factory.mktemp("own")
    x, y, group = rows()
    np.savez(root / "lines.npz", x=x, y=y, groups=group)
    new = rows(groups=3, seed=1)
    np.savez(root / "new.npz", x=new[0], y=new[1], groups=new[2])
    (root / "mine.py").write_text(CODE)
    counts = np.random.default_rng(0).poisson(np.exp(1 + x[:, 0]))
    csv(root / "counts.csv", ("who", "a", "b", "n"), [f"p{g}" for g in group], x[:, 0], x[:, 1], counts)
    csv(root / "few.csv", ("a", "b", "n"), x[:4, 0], x[:4, 1], counts[:4])
    csv(root / "asked.csv", ("a", "b"), x[4:8, 0], x[4:8, 1])
    for kind in range(12):
        pixels = np.full((40, 40), 255, np.uint8)
        pixels[3 * kind : 3 * kind + 4, 4:-4] = 0
        for number in range(3):
            file = root / "drawings" / f"kind{kind}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(pixels, number, axis=1)).save(file)
    with jax.numpy_rank_promotion("allow"):
        model = f"--model={root}/mine.py:Line"
        words = [f"--data={root}/lines.npz", model, "--steps=6", f"--out={root}/run", *QUICK]
        assert main(["train", "arrays", *words]) == 0
    return root


def said(capsys, *words):
    """What a command prints, as JSON."""
    assert main([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)


def forget(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(own, "_HELD", {})
    monkeypatch.setattr(own_losses, "_HELD", {})


@pytest.mark.slow
def test_arrays_with_a_model_of_one_s_own(place, capsys, monkeypatch):
    forget(monkeypatch)
    model = f"{place}/mine.py:Line"
    run = place / "run"
    with monkeypatch.context() as patch:  # a run never imports what it names
        patch.setattr(importlib.util, "spec_from_file_location", pytest.fail)
        assert main(["evaluate", str(run)]) == 2
    message = capsys.readouterr().err
    assert f"on the command line --model {model}." in message
    held = (run / "artefact.safetensors").read_bytes()
    assert b"lines.npz" not in held
    assert model.encode() in held
    scored = said(capsys, "evaluate", run, "--model", model, "--tasks=40", "--json")
    assert (scored["split"], scored["different_tasks"], scored["data"]) == ("test", 4, "lines.npz")
    options = {"shots": 4, "strength": 0.1, "steps": 6, "progress": False}
    again = imaml.fit(imaml.Tasks.from_arrays(*rows()), imported(model), **options)
    result = again.evaluate(tasks=40)
    assert result.scores["rmse"] == pytest.approx(scored["score"], rel=1e-6)
    assert result.baselines == pytest.approx(scored["baselines"], rel=1e-6)
    other = said(capsys, "evaluate", run, "--model", model, "--tasks=9", f"--data={place}/new.npz", "--json")
    assert (other["different_tasks"], other["data"]) == (3, "new.npz")
    assert main(["sample", str(run), "--model", model, f"--out={place}/sample"]) == 0
    assert "4 support examples to adapt to, 4 query" in capsys.readouterr().out
    support, query = place / "sample" / "support.npz", place / "sample" / "query.npz"
    words = ["adapt", run, f"--support={support}", f"--query={query}", "--model", model, "--uncertainty"]
    found = said(capsys, *words, "--json")
    assert {"row", "prediction", "low", "high"} == set(found["predictions"][0])
    assert main(["report", str(run)]) == 0


@pytest.mark.slow
def test_a_run_prints_its_choices_scores_and_files(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    words = ["--model=linear", "--strength=1", "--steps=2"]
    assert main(["train", "arrays", "--data=lines.npz", *words]) == 0
    out, err = capsys.readouterr()
    assert "chosen   shots: 0.5 (half of each task's rows)" in err
    assert "ridge on the support set" in out
    *_, run, artefact, report, last = out.splitlines()
    told = dict(line.split(maxsplit=1) for line in (run, artefact, report))
    assert last == "a new task: imaml adapt runs/lines --support FILE --query FILE"
    assert told["run"] == "runs/lines"
    assert Path(told["artefact"]).is_file()
    assert Path(told["report"]).is_file()


@pytest.mark.slow
def test_a_resumed_run_is_that_of_an_uninterrupted_one(place, capsys, tmp_path):
    model = f"{place}/mine.py:Line"
    words = ["train", "arrays", f"--data={place}/lines.npz", "--model", model, "--steps=6", *QUICK]
    held = imported(model)
    file = TasksFile(f"{place}/lines.npz")
    options = {"shots": 4, "strength": 0.1, "steps": 6, "progress": False, "out": tmp_path / "run"}
    imaml.fit(file.read(), held, **options, on_step=lambda told: told["step"] == 2)
    capsys.readouterr()
    again = [*words[:3], "--resume", f"--out={tmp_path}/run", "--quiet"]
    assert main([*again, "--model", model, "--steps=9"]) == 2
    assert (
        "training.steps was 6 and is now 9. Hint: the learning rate falls to zero" in capsys.readouterr().err
    )
    assert main(["train", "--resume", f"--out={tmp_path}/run", "--model", model, "--quiet"]) == 0
    assert main([*words, f"--out={tmp_path}/whole"]) == 0
    two = [imaml.load(tmp_path / name, model=held) for name in ("run", "whole")]
    jax.tree.map(np.testing.assert_array_equal, two[0].theta, two[1].theta)
    assert two[0].config.domain.quantiles == two[1].config.domain.quantiles


CHANGED = {
    "shots": (
        ["--shots=5"],
        r"--shots: expected 4, as the run in \S+ was begun, got 5\. Hint: omit it",
    ),
    "a share": (["--shots=0.5"], "--shots: expected 4, .* got 0.5"),
    "strength": (["--strength=0.2"], "--strength: expected 0.1, .* got 0.2"),
    "seed": (["--seed=1"], "--seed: expected 0, .* got 1"),
    "test": (["--test=0.3"], "--test: expected 0.2, .* got 0.3"),
    "adapt": (["--adapt=w"], r"--adapt: expected none with --resume, got 'w'"),
    "model": (["--model=linear"], "--model: expected none with --resume, got 'linear'"),
    "loss": (["--loss=poisson"], "--loss: expected 'squared', .* got 'poisson'"),
    "tasks": (["--tasks-per-step=3"], "--tasks-per-step: expected [0-9]+, .* got 3"),
    "from": (["--from=omniglot"], "--from: expected none with --resume, got 'omniglot'"),
    "target": (["--target=n", "--task=who"], "--data: expected 'arrays', .* got 'frame'"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_run_is_not_resumed_with_other_options(case, place, capsys):
    words, says = CHANGED[case]
    form = "frame" if case == "target" else "arrays"
    assert main(["train", form, f"--data={place}/lines.npz", "--resume", f"--out={place}/run", *words]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_a_dry_run_of_a_resumed_one_trains_nothing(place, monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "print_prediction", seen.append)
    words = [f"--data={place}/lines.npz", f"--model={place}/mine.py:Line", "--steps=6", *QUICK]
    assert main(["train", "arrays", "--resume", f"--out={place}/run", "--dry-run", *words]) == 0
    assert [config.training.steps for config in seen] == [6]


def test_columns_are_those_of_the_resumed_run():
    began = TasksFile("a.csv", "frame", "who", ("n",), ("x",), decimal=",")
    stored = Config(TasksRecipe(file=began), IMAMLRecipe())
    given = Fit(out=Path("run"))
    require_as_begun(replace(began, path="moved.csv", features=(), decimal="."), given, stored)
    with pytest.raises(imaml.ConfigError, match=r"--target: expected 'n', .* got 'n, x'"):
        require_as_begun(replace(began, targets=("n", "x")), given, stored)
    with pytest.raises(imaml.ConfigError, match=r"--features: expected 'x', .* got 'x, z'"):
        require_as_begun(replace(began, features=("x", "z")), given, stored)
    with pytest.raises(imaml.ConfigError, match="Hint: imaml train --resume --out run"):
        require_as_begun(began, given, replace(stored, domain=imaml.sinusoid().recipe))


@pytest.mark.slow
def test_a_table_with_counts(place, capsys):
    words = ["--task=who", "--target=n", "--loss=poisson", "--model=linear", "--steps=4", *QUICK]
    assert main(["train", "frame", f"--data={place}/counts.csv", *words, f"--out={place}/counts"]) == 0
    capsys.readouterr()
    words = ["adapt", place / "counts", f"--support={place}/few.csv", f"--query={place}/asked.csv", "--json"]
    found = said(capsys, *words)
    assert [row["row"] for row in found["predictions"]] == [1, 2, 3, 4]
    assert all(row["prediction"] > 0 for row in found["predictions"])
    scored = said(capsys, "evaluate", place / "counts", "--tasks=8", "--json")
    assert "one linear model for all tasks" in scored["baselines"]
    artefact = place / "counts" / "artefact.safetensors"
    assert main(["evaluate", str(artefact)]) == 2
    assert "on the command line --data PATH" in capsys.readouterr().err
    again = said(capsys, "evaluate", artefact, f"--data={place}/counts.csv", "--tasks=8", "--json")
    assert (again["data"], again["split"]) == ("counts.csv", "test")


@pytest.mark.slow
def test_folders_of_images(place, capsys):
    run, model = place / "seen", f"{place}/mine.py:flat"
    folder = place / "drawings"
    words = ["--side=8", "--ways=2", "--shots=1", "--steps=3", "--strength=1", "--quiet"]
    words += ["--validation=0.25", "--test=0.25", f"--model={model}", f"--out={run}"]
    assert main(["train", "images", f"--data={folder}", *words]) == 0
    capsys.readouterr()
    scored = said(capsys, "evaluate", run, "--model", model, "--tasks=4", "--json")
    assert scored["data"] == "drawings"
    artefact = run / "artefact.safetensors"
    options = ["--model", model, f"--data={folder}", "--tasks=4", "--json"]
    assert said(capsys, "evaluate", artefact, *options)["tasks"] == 4
    words = ["--support", folder, "--query", folder / "kind0", "--model", model, "--json"]
    assert main(["adapt", str(run), *map(str, words)]) == 2
    assert "expected at most 2 classes" in capsys.readouterr().err
    for kind in (0, 5):
        for part in ("support", "query"):
            (place / part).mkdir(exist_ok=True)
        (place / "support" / f"kind{kind}").symlink_to(folder / f"kind{kind}")
        (place / "query" / f"{kind}.png").symlink_to(folder / f"kind{kind}" / "1.png")
    words = ["adapt", run, "--support", place / "support", "--query", place / "query", "--model", model]
    found = said(capsys, *words, "--json")
    assert [Path(row["file"]).name for row in found["predictions"]] == ["0.png", "5.png"]
    assert found["predictions"][1]["prediction"] in ("kind0", "kind5")


BAD = {
    "no file": (["arrays", "--data=nowhere.npz"], "nowhere.npz: expected an .npz file .*, got no such file"),
    "one array": (["arrays", "--data=one.npy"], r"expected arrays x .*got nothing\. Hint: np.savez"),
    "objects": (["arrays", "--data=objects.npz"], "Hint: save texts as an array of texts"),
    "other names": (["arrays", "--data=names.npz"], "expected arrays named x, y, .*, got Y as well"),
    "a text": (["arrays", "--data=mine.py"], r"mine.py: expected an .npz file .* got an error"),
    "a model misspelt": (
        ["arrays", "--data=lines.npz", "--model=linaer"],
        "--model: .* did you mean 'linear'",
    ),
    "a model without a name": (
        ["arrays", "--data=lines.npz", "--model=mine.py"],
        r"--model: expected FILE.py:NAME or .*, got 'mine.py'\. Hint: name the object in it, mine.py:NAME",
    ),
    "no such code": (["arrays", "--data=lines.npz", "--model=a.py:b"], "--model: .* got no such file: a.py"),
    "no such module": (["arrays", "--data=lines.npz", "--model=nomodule:b"], "ModuleNotFoundError"),
    "no such name": (
        ["arrays", "--data=lines.npz", "--model=mine.py:Lime"],
        "--model: name in mine.py: .* got 'Lime'.*did you mean 'Line'",
    ),
    "a model with arguments": (
        ["arrays", "--data=lines.npz", "--model=mine.py:needs"],
        "--model: mine.py:needs: .* called without arguments, got an error .TypeError",
    ),
    "a model that is a number": (["arrays", "--data=lines.npz", "--model=mine.py:broken"], "model: expected"),
    "a loss misspelt": (["arrays", "--data=lines.npz", "--loss=squard"], "--loss: .* did you mean 'squared'"),
    "shots as a word": (["arrays", "--data=lines.npz", "--shots=few"], "--shots: expected"),
    "a column misspelt": (
        ["frame", "--data=counts.csv", "--task=whom", "--target=n"],
        "column: .* got 'whom'.*'who'",
    ),
    "no target": (["frame", "--data=counts.csv", "--task=who"], "--target"),
    "an option of presets": (["arrays", "--data=lines.npz", "--training.steps=3"], "got --training.steps"),
    "no folder": (["images", "--data=nowhere"], "nowhere: expected a folder .* got no such folder"),
    "from nothing": (
        ["arrays", "--data=lines.npz", "--from=omni"],
        "--from: .* got 'omni', and there is none",
    ),
    "a model of a preset": (["sinusoid", "--model=mlp"], "--model: expected a run on tasks of your own"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_ends_with_one_clear_message(case, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    x, y, group = rows()
    np.save("one.npy", x)
    np.savez("objects.npz", x=x, y=np.array(["a", None] * 80, object), groups=group)
    np.savez("names.npz", x=x, Y=y, groups=group)
    words, says = BAD[case]
    assert main(["train", *words, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("imaml: ")
    assert re.search(says, err), err
    assert not (place / "runs" / "counts").exists()


@pytest.mark.slow
def test_a_loss_of_one_s_own_is_named_by_its_place(place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    words = [
        "--model=linear",
        "--loss=mine:absolute",
        "--steps=2",
        "--strength=1",
        "--quiet",
        f"--out={tmp_path}/run",
    ]
    assert main(["train", "arrays", "--data=lines.npz", *words]) == 0
    forget(monkeypatch)
    capsys.readouterr()
    assert main(["evaluate", f"{tmp_path}/run"]) == 2
    assert "--loss mine:absolute." in capsys.readouterr().err
    assert (
        said(capsys, "evaluate", f"{tmp_path}/run", "--loss=mine:absolute", "--tasks=4", "--json")["tasks"]
        == 4
    )
    forget(monkeypatch)
    assert main(["sample", f"{tmp_path}/run", "--loss=mine:absolute", f"--out={tmp_path}/task"]) == 0
    forget(monkeypatch)
    assert main(["report", f"{tmp_path}/run", "--loss=mine:absolute"]) == 0
    assert "no example tasks" not in capsys.readouterr().err
    forget(monkeypatch)
    words[-1] = f"--out={tmp_path}/next"
    assert main(["train", "arrays", "--data=lines.npz", *words, f"--from={tmp_path}/run"]) == 0


@pytest.mark.slow
def test_a_run_may_start_from_another(place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    words = ["train", "arrays", "--data=lines.npz", "--model=linear", "--strength=1", "--quiet"]
    assert main([*words, "--steps=3", f"--out={tmp_path}/first"]) == 0
    assert main([*words, "--steps=0", f"--from={tmp_path}/first", f"--out={tmp_path}/second"]) == 0
    first, second = (imaml.load(tmp_path / name).theta for name in ("first", "second"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    words[3] = f"--model={place}/mine.py:Line"
    assert main([*words, "--steps=0", f"--from={place}/run", f"--out={tmp_path}/third"]) == 0


def test_a_dry_run_says_how_tasks_would_be_made_and_writes_nothing(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    assert main(["train", "arrays", "--data=lines.npz", "--shots=3", "--dry-run", "--out=runs/dry"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^tasks +\d+ for train, 4 for validation, 4 for test$", out, re.MULTILINE)
    assert re.search(r"^a task +at most 3 rows to learn from, \d+ to predict$", out, re.MULTILINE)
    assert re.search(r"^parameters +[\d,]+$", out, re.MULTILINE)
    assert "chosen     model: mlp" in out
    assert not Path("runs/dry").exists()


def test_the_artefacts_of_the_repository_have_names(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    for name in ("omniglot", "omniglot-5w1s"):
        assert shipped(name).resolve() == ROOT / "artefacts" / "omniglot-5w1s.safetensors"
    (tmp_path / "omniglot").mkdir()  # a path that exists is that path
    monkeypatch.chdir(tmp_path)
    assert shipped("omniglot") == Path("omniglot")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_fit_ends_at_once(place):
    """After a step of the run, without the calibration of its intervals."""
    file = TasksFile(f"{place}/lines.npz")
    options = {"shots": 4, "steps": 50, "progress": False}

    def stop(told):
        if told["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    run = imaml.fit(file.read(), "linear", strength=1.0, **options, on_step=stop)
    assert (run.reason, run.step, run.domain.recipe.quantiles) == ("interrupted", 2, ())


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_trial_ends_the_fit(place, monkeypatch):
    """Without a run: what follows is not wanted either."""
    assemble = choosing.assemble

    class Stopped:
        def __init__(self, *parts):
            self.experiment = assemble(*parts)

        def train(self, **options):
            return replace(self.experiment.train(**options), reason="interrupted")

    monkeypatch.setattr(choosing, "assemble", Stopped)
    with pytest.raises(KeyboardInterrupt):
        imaml.fit(TasksFile(f"{place}/lines.npz").read(), "linear", steps=20, progress=False)


def test_a_start_for_other_classes_has_a_fresh_head():
    learner = imaml.load(ROOT / "artefacts" / "characters-5w1s.safetensors")
    same, ways = beginning(learner, None)
    assert (ways, same is learner.theta) == (5, True)
    theta, ways = beginning(learner, 7)
    assert (ways, theta["head"]["kernel"].shape) == (7, (256, 7))
    np.testing.assert_array_equal(theta["conv4"]["kernel"], learner.theta["conv4"]["kernel"])
    strong = replace(learner, theta=Theta(learner.theta, np.zeros(())))  # as of a run with a learned strength
    np.testing.assert_array_equal(beginning(strong, 7)[0]["conv4"]["kernel"], theta["conv4"]["kernel"])


@pytest.mark.slow
def test_small_drawings_are_told_of_the_artefact(place, capsys, tmp_path):
    words = ["--ways=2", "--shots=1", "--steps=0", "--strength=1", f"--out={tmp_path}/run"]
    (tmp_path / "big.py").write_text(CODE.replace("(64, 2)", "(784, 2)"))
    model = f"--model={tmp_path}/big.py:flat"
    assert main(["train", "images", f"--data={place}/drawings", model, *words]) == 0
    err = capsys.readouterr().err
    assert "read     12 classes of 36 rows" in err
    assert "--from omniglot starts from parameters learned on Omniglot" in err
