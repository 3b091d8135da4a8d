"""`Learner` and `Predictor`: inputs that are trees, pickling, threads, programs that are kept."""

import concurrent.futures
import os
import pickle
import runpy
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.config.method import IMAMLRecipe
from imaml.config.run import Config
from imaml.config.training import Training
from imaml.domains.tasks.build import domain_of
from imaml.domains.tasks.domain import LEVELS
from imaml.predict import Learner
from imaml.storage.standalone import LOADER

pytestmark = pytest.mark.usefixtures("ranks_mixed")
X = np.random.default_rng(0).normal(size=(60, 3))
Y = X @ [1.0, -2.0, 0.5]
GROUPS = np.repeat(np.arange(10), 6)
IMAGES = np.random.default_rng(2).integers(0, 255, (60, 8, 8, 1), np.uint8)
LOSSES = ("squared", "cross_entropy")
TARGETS = {
    "squared": Y,
    "cross_entropy": np.where(Y > 0, "yes", "no"),
    "poisson": np.round(np.abs(Y)),
}
TREES = {
    "array": lambda x: x,
    "dict": lambda x: {"left": x[:, :1], "right": x[:, 1:]},
    "tuple": lambda x: (x[:, :2], x[:, 2]),
    "nested": lambda x: {"both": (x[:, :1], x[:, 1:2]), "last": x[:, 2]},
}
METHODS = {
    "predict": ("squared", lambda task, x: task.predict(x)),
    "predict_interval": ("squared", lambda task, x: np.stack(task.predict_interval(x))),
    "predict classes": ("cross_entropy", lambda task, x: task.predict(x)),
    "predict_proba": ("cross_entropy", lambda task, x: task.predict_proba(x)),
    "predict_proba under the posterior": ("cross_entropy", lambda task, x: task.predict_proba(x, True)),
}


def linear(outputs):
    """A linear model of all inputs, whatever tree they form."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, outputs)), jnp.float32)

    def apply(parameters, x):
        leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(x)]
        return jnp.concatenate(leaves, axis=1) @ parameters["w"]

    return (lambda key: {"w": weights}), apply


def learner(tree, loss, x=X, model=None, episodes=False, **rows):
    """Meta-parameters that are as they were drawn, and the targets."""
    y = TARGETS[loss]
    model = model or linear(2 if loss == "cross_entropy" else 1)
    tasks = imaml.Tasks.from_arrays(tree(x), None if episodes else y, GROUPS, **rows)
    domain, _ = domain_of(tasks, model, loss, shots=3, ways=2 if episodes else None)
    method = IMAMLRecipe(strength=0.1, inner=imaml.GradientDescent(0.1, steps=3), curvature="gauss-newton")
    config = Config(domain.recipe, method, imaml.Optimiser(), Training(steps=1))
    return Learner(domain.init(jax.random.key(0)), config), y


@pytest.fixture(scope="module")
def adapted():
    """Predictors by tree and loss."""
    with jax.numpy_rank_promotion("allow"):
        made = {(name, loss): learner(tree, loss) for name, tree in TREES.items() for loss in LOSSES}
        return {key: known.adapt(TREES[key[0]](X[:4]), y[:4]) for key, (known, y) in made.items()}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_inputs_of_every_tree(adapted, tree, method):
    loss, ask = METHODS[method]
    wanted = ask(adapted["array", loss], X)
    found = ask(adapted[tree, loss], TREES[tree](X))
    if found.dtype.kind == "U":
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    one = ask(adapted[tree, loss], TREES[tree](X[20:21]))  # no answer depends on its neighbours
    np.testing.assert_array_equal(one, found[..., 20:21] if method == "predict_interval" else found[20:21])


def test_an_interval_of_a_network_that_normalises_is_about_its_prediction():
    """Both use the support set's statistics; those of a single row would make it 0."""
    known, y = learner(TREES["array"], "squared", IMAGES, imaml.Conv4(1, 4, 8))
    task = known.adapt(IMAGES[:3], y[:3])
    found = task.predict_interval(IMAGES[20:24])
    np.testing.assert_allclose(found.mean, task.predict(IMAGES[20:24]), rtol=1e-4, atol=1e-5)
    assert np.ptp(found.mean) > 0
    assert (found.low < found.mean).all()


def test_what_is_learned_and_adapted_is_pickled(adapted):
    for (tree, loss), task in adapted.items():
        x = TREES[tree](X)
        task.posterior  # noqa: B018, so that what was computed is there and left out
        if loss == "squared":
            np.testing.assert_array_equal(
                pickle.loads(pickle.dumps(task)).predict_interval(x), task.predict_interval(x)
            )
    known, y = learner(TREES["dict"], "squared")
    again = pickle.loads(pickle.dumps(known))
    few = TREES["dict"](X[:4])
    np.testing.assert_array_equal(again.adapt(few, y[:4]).predict(few), known.adapt(few, y[:4]).predict(few))


def test_threads_get_the_answers_of_one_after_another(adapted):
    known, y = learner(TREES["array"], "squared")
    task = adapted["array", "squared"]

    def work(i):
        own = known.adapt(X[i : i + 2 + i % 3], y[i : i + 2 + i % 3])
        return np.concatenate(
            [own.predict(X[:20]), task.predict(X[i:20]), *task.predict_interval(X[i : i + 2])]
        )

    wanted = [work(i) for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(16)))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


PROGRAM = """
import sys
sys.modules["imaml"] = None  # an import of it fails
import concurrent.futures, pathlib, numpy as np
from imaml_standalone import load

def unpacked(saved, name):
    leaves = {key.split("/", 1)[1]: saved[key] for key in saved if key.startswith(name + "/")}
    return leaves if "" not in leaves else leaves[""]

def refused(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("accepted")

for file in sorted(pathlib.Path().glob("*.zip")):
    saved = dict(np.load(f"{file.stem}.npz"))
    few, asked = unpacked(saved, "few"), unpacked(saved, "asked")
    shift = [{"offset": saved[part]} if part in saved else {} for part in ("offset few", "offset asked")]
    task = load(file)
    if file.stem != "task":
        task = task.adapt(few, saved["y"], **shift[0])

    def answers(_=0):
        found = {"predict": task.predict(asked, **shift[1])}
        if task.classes is not None:
            found["proba"] = task.predict_proba(asked)
            found["probable"] = task.predict_proba(asked, uncertainty=True)
        elif task.learner.about["spread"]:
            found["interval"] = np.stack(task.predict_interval(asked, 0.8))
        return found

    found = answers()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for other in pool.map(answers, range(8)):
            assert all(np.array_equal(other[name], found[name]) for name in found)
    if file.stem == "counts":
        assert "offset: expected one" in refused(lambda: load(file).adapt(few, saved["y"]))
        assert "offset: expected one" in refused(lambda: task.predict(asked))
        wrong = [-1.0] * len(few)
        assert "weights: expected" in refused(lambda: load(file).adapt(few, saved["y"], wrong, **shift[0]))
    if file.stem == "numbers":
        assert "offset: expected none" in refused(lambda: task.predict(asked, offset=1.0))
    if file.stem == "episodes":
        assert "numbers from 0 to 1" in refused(lambda: task.predict(255.0 * asked))
    if file.stem == "numbers":
        found["population"] = load(file).adapt().predict(asked)
    np.savez(f"found-{file.stem}.npz", **found)
"""


@pytest.mark.slow
def test_a_process_without_this_package_gives_the_same_answers(tmp_path):
    plain, shift, asked = TREES["array"], np.linspace(-1, 1, 60), slice(20, 40)
    numbers, y = learner(plain, "squared")
    recipe = replace(numbers.config.domain, quantiles=tuple(np.linspace(0.1, 2, len(LEVELS)).tolist()))
    numbers = Learner(numbers.theta, replace(numbers.config, domain=recipe))
    cases = {
        "numbers": (numbers, y, X),
        "classes": (*learner(TREES["dict"], "cross_entropy"), TREES["dict"](X)),
        "counts": (*learner(plain, "poisson", offset=shift), X),
        "episodes": (*learner(plain, "cross_entropy", IMAGES, imaml.Conv4(2, 4, 8), True), IMAGES),
        "task": (*learner(plain, "squared"), X),
    }
    wanted = {}
    for name, (known, y, x) in cases.items():
        few = slice(6 if name == "episodes" else 5)

        def rows(chosen, name=name, x=x):
            cut = {key: leaf[chosen] for key, leaf in x.items()} if isinstance(x, dict) else x[chosen]
            return {"x": cut, "offset": shift[chosen]} if name == "counts" else cut

        task = known.adapt(rows(few), y[few])
        if name == "task":
            task.export(tmp_path / "task.zip", platforms=("cpu", "cuda", "tpu"))
        else:
            known.export(tmp_path / f"{name}.zip", rows=(few.stop,) if name == "episodes" else (8,))
        saved = {"y": y[few]}
        for part, chosen in (("few", few), ("asked", asked)):
            leaves = x if isinstance(x, dict) else {"": x}
            saved |= {f"{part}/{key}": leaf[chosen] for key, leaf in leaves.items()}
            saved |= {f"offset {part}": shift[chosen]} if name == "counts" else {}
        np.savez(tmp_path / f"{name}.npz", **saved)
        wanted[name] = {"predict": task.predict(rows(asked))}
        if task.classes is not None:
            wanted[name]["proba"] = task.predict_proba(rows(asked))
            wanted[name]["probable"] = task.predict_proba(rows(asked), uncertainty=True)
        elif name != "counts":
            wanted[name]["interval"] = np.stack(task.predict_interval(rows(asked), 0.8))
        if name == "numbers":
            wanted[name]["population"] = known.adapt().predict(rows(asked))
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, answers in wanted.items():
        found = np.load(tmp_path / f"found-{name}.npz")
        assert set(found) == set(answers)
        for key, value in answers.items():
            if value.dtype.kind == "U":
                np.testing.assert_array_equal(found[key], value)
            else:
                told = f"{name}: {key}"
                np.testing.assert_allclose(found[key], value, rtol=2e-4, atol=2e-5, err_msg=told)


def test_the_program_beside_an_export_takes_columns_by_name():
    scope = {}
    exec(LOADER.read_text(), scope)
    spec = {"shape": [2], "form": "float", "mean": [], "scale": []}
    known = scope["Learner"]({"columns": ["b", "colour=red"], "inputs": [spec]}, {"theta": []}, {})
    (found,) = known.inputs({"colour": ["red", "blue"], "a": [7, 8], "b": [1, 2]}, 0)
    assert found.tolist() == [[1, 1], [2, 0]]


def alone(about):
    """A learner of `imaml_standalone.py` whose programs return zeros."""
    program = runpy.run_path(str(LOADER))
    numbers = {"form": "float", "shape": [1], "mean": None, "scale": None}
    about = {"form": 0, "inputs": [numbers], "columns": [], "offset": None, "ways": 0, "pads": True} | about
    made = program["Learner"](about | {"rows": [8], "queries": 4}, {"theta": []}, {})
    made.run = lambda name, *given: [np.zeros(2), 0.0]
    return made


def test_a_process_without_this_package_refuses_more_classes_than_outputs_and_intervals_of_classes():
    known = alone({"target": None, "levels": None, "ways": 2, "spread": True})
    with pytest.raises(ValueError, match=r"y: expected at most 2 as classes, got .'a', 'b', 'c'."):
        known.adapt([0.0, 1.0, 2.0], ["a", "b", "c"])
    task = known.adapt([0.0, 1.0], ["b", "a"])
    with pytest.raises(ValueError, match=r"predict_interval: expected a run .*predict_proba"):
        task.predict_interval([0.0])
    levels = alone({"target": None, "levels": ["a", "b"], "spread": True})
    with pytest.raises(ValueError, match=r"y: expected \['a', 'b'\] as classes, got \['c'\]"):
        levels.adapt([0.0], ["c"])


def test_a_process_without_this_package_refuses_offsets_that_are_not_finite():
    numbers = {"form": "float", "shape": [1], "mean": None, "scale": None}
    known = alone({"target": numbers, "levels": None, "offset": 1.0, "most": None, "spread": False})
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="offset: expected finite numbers"):
            known.adapt([0.0, 1.0], [0.0, 1.0], offset=[0.0, wrong])
    with pytest.raises(ValueError, match="weights: expected finite numbers"):
        known.adapt([0.0, 1.0], [0.0, 1.0], weights=[np.nan, 1.0], offset=0.0)
    task = known.adapt([0.0, 1.0], [0.0, 1.0], offset=0.0)
    with pytest.raises(ValueError, match="offset: expected finite numbers"):
        task.predict([0.0], offset=np.nan)
    with pytest.raises(ValueError, match=r"predict_interval: expected a run .*use predict"):
        task.predict_interval([0.0], offset=0.0)


def test_other_runs_are_not_exported(tmp_path):
    known = Learner(None, Config(imaml.sinusoid().recipe))
    with pytest.raises(imaml.ConfigError, match=r"export: expected a run of imaml\.fit, got one of Sinusoid"):
        known.export(tmp_path / "sinusoid.zip")
