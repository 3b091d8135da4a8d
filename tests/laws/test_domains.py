"""The laws of a domain (src/imaml/domains/base.py), one body for every registered domain."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.config.methods import Method
from imaml.config.run import Config
from imaml.core import tree
from imaml.core.recipes import from_json, kinds_of, to_json
from imaml.domains.base import SPLITS, DomainBase
from imaml.domains.control.carts import CartsRecipe
from imaml.domains.control.mazes import MazesRecipe
from imaml.domains.control.navigation import NavigationRecipe
from imaml.domains.control.plants import PlantsRecipe
from imaml.domains.fewshot.domain import FewShotRecipe
from imaml.domains.generative.densities import DensitiesRecipe
from imaml.domains.generative.generation import GenerationRecipe
from imaml.domains.generative.imitation import ImitationRecipe
from imaml.domains.generative.restoration import RestorationRecipe
from imaml.domains.regression import LinearGaussianRecipe, SinusoidRecipe
from imaml.domains.tables.domain import TablesRecipe
from imaml.report.examples import examples
from imaml.report.run_page import write_report

pytestmark = [pytest.mark.usefixtures("ranks_mixed"), pytest.mark.slow]
TINY = [
    FewShotRecipe(ways=3, queries=2, filters=4, normalisation="inductive"),
    SinusoidRecipe(shots=4, queries=3, hidden=6),
    LinearGaussianRecipe(features=3),
    TablesRecipe("table.csv", "who", "y"),
    MazesRecipe(side=4, walks=2, length=6, hidden=(8,)),
    PlantsRecipe("cart-pole", walks=1, length=6, horizon=8, iterations=3, hidden=(8,)),
    DensitiesRecipe(shots=3, queries=4, noises=2, grid=8, hidden=(6,)),
    NavigationRecipe(episodes=1, length=4, horizon=3, hidden=(6,)),
    CartsRecipe(steps=10, queries=12, horizon=9, training=4, validation=2, test=2, hidden=(6,)),
    ImitationRecipe(shots=3, queries=4, hidden=(6,)),
    GenerationRecipe(
        shots=2, queries=2, made=3, others=1, side=7, latent=2, generator=(4,), discriminator=(3,)
    ),
    RestorationRecipe(shots=2, queries=3, noises=2, side=7, hidden=(4,), steps=3),
]
METHOD = Method(strength=1.0, inner=imaml.GradientDescent(0.02, steps=2), linear=imaml.GMRES(steps=2))
KEYS = jax.random.split(jax.random.key(3), 100)
DRAW = jax.jit(lambda d, keys, split: jax.vmap(lambda k: d.draw(k, split))(keys), static_argnums=2)
ELSEWHERE = """
import json, sys
import numpy as np
import imaml
for folder in map(str.rstrip, sys.stdin):
    learner = imaml.load(folder + "/run")
    files = json.load(open(folder + "/files.json"))
    predictor = learner.adapt(learner.read(files["support"]))
    answers = predictor.domain.answers(predictor, learner.read(files["support"]),
                                       learner.read(files["query"], True))
    with open(folder + "/rows.json", "w") as file:
        json.dump(answers.rows, file)
    print("done", flush=True)
"""


def table(folder):
    """A table of twelve tasks of four to six rows, as a file."""
    who = np.concatenate([np.full(4 + i % 3, i) for i in range(12)])
    x, noise = np.random.default_rng(0).normal(size=(2, who.size))
    lines = [f"{w},{a},{w * a + e}" for w, a, e in zip(who, x, noise, strict=True)]
    (folder / "table.csv").write_text("\n".join(["who,x,y", *lines]))
    return str(folder / "table.csv")


class Life:
    """A domain with a run on it."""

    def __init__(self, recipe, folder):
        self.folder, self.out = folder, folder / "run"
        recipe = recipe.with_data(table(folder)) if recipe.reads_table else recipe
        self.domain = recipe.build()
        self.recipe = self.domain.recipe
        self.task = jax.jit(lambda d, k: d.sample(k, "test"))(self.domain, KEYS[1])
        # Three tasks cannot be shared by the two devices: sharded steps take longer to compile.
        options = {"steps": 2, "tasks": 3, "validate_every": 0, "checkpoint_every": 2}
        optimiser = imaml.Optimiser("adam", 1e-3)
        self.run = imaml.train(
            self.domain, METHOD.build(self.domain), optimiser, out=self.out, progress=False, **options
        )
        self.learner = imaml.load(self.out)
        files = folder / "support", folder / "query"
        if recipe.reads_table:
            rows = {"x": [0.1, 0.2, -0.4], "y": [1.0, 2.0, 0.5]}
            for file in files:
                lines = ["x,y", *(f"{x},{y}" for x, y in zip(*rows.values(), strict=True))]
                file.with_suffix(".csv").write_text("\n".join(lines))
            files = [file.with_suffix(".csv") for file in files]
        else:
            self.domain.write(jax.device_get(self.task), folder)
            files = [f if f.is_dir() else next(folder.glob(f"{f.name}.np*")) for f in files]
        if files[1].is_dir():  # images to be classified lie directly in a folder
            for number, file in enumerate(sorted(files[1].glob("*/*"))):
                file.rename(files[1] / f"{number}.png")
            for empty in files[1].glob("class-*"):
                empty.rmdir()
        self.files = dict(zip(("support", "query"), map(str, files), strict=True))
        (folder / "files.json").write_text(json.dumps(self.files))


# Pytest runs all tests of one domain after another, so that processes that share the tests train each domain
# in one of them only.
@pytest.fixture(scope="module", params=TINY, ids=lambda recipe: type(recipe).__name__)
def life(request, tmp_path_factory):
    with jax.numpy_rank_promotion("allow"):
        return Life(request.param, tmp_path_factory.mktemp(type(request.param).__name__))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Another process, started once: given the folder of a life, it writes the rows that it predicts."""
    env = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    errors = tmp_path_factory.mktemp("elsewhere") / "stderr"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", ELSEWHERE]
    with errors.open("w") as file, subprocess.Popen(command, env=env, stderr=file, **pipes) as process:

        def predict(folder):
            print(folder, file=process.stdin, flush=True)
            assert process.stdout.readline() == "done\n", errors.read_text()
            return json.loads((folder / "rows.json").read_text())

        yield predict
        process.stdin.close()


def test_every_registered_domain_is_held_to_the_laws():
    ours = {name for name, kind in kinds_of("domain").items() if kind.__module__.startswith("imaml.")}
    # The recipe of a user's own tasks does not hold them: tests/domains/tasks holds domains made of tasks to
    # the same laws.
    assert {type(recipe).__name__ for recipe in TINY} == ours - {"TasksRecipe"}
    assert len(ours) >= 12


def identities(drawn):
    """What tells draws apart: every number, or, of many real ones, which repeat by chance, the whole."""
    if jnp.issubdtype(drawn.dtype, jax.dtypes.prng_key):
        drawn = jax.random.key_data(drawn)
    drawn = np.asarray(drawn)
    if np.issubdtype(drawn.dtype, np.floating) and drawn[0].size > 16:
        return {tuple(np.ravel(one).tolist()) for one in drawn}
    return set(np.unique(drawn).tolist())


def close(left, right):
    """Equal but for the order of operations, which may differ between two compiled programs."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # float32


def test_tasks(life):
    """Laws 1 to 4."""
    domain = life.domain
    assert isinstance(domain, DomainBase)
    draws = {split: DRAW(domain, KEYS, split) for split in SPLITS}
    sample = jax.jit(lambda d, k: jax.vmap(lambda one: d.sample(one, "test"))(k))
    many = sample(domain, KEYS[:2])
    jax.tree.map(np.testing.assert_array_equal, many, sample(domain, KEYS[:2]))  # law 1
    one = jax.jit(lambda d, i: d.gather(i))(domain, jax.tree.map(lambda leaf: leaf[1], draws["test"]))
    close(jax.tree.map(lambda leaf: leaf[1], many), one)  # laws 1 and 2: alone as in a batch, gather . draw
    for first, second in (("train", "validation"), ("validation", "test"), ("train", "test")):  # law 3
        left, right = (jax.tree.leaves(draws[split])[0] for split in (first, second))
        assert not identities(left) & identities(right)

    @jax.jit
    def scores(theta, task):
        problem = domain.problem(0.5)
        batches = task.support, domain.whole(*task)
        slopes = [tree.norm(problem.residual(problem.split(theta), theta, batch)) for batch in batches]
        values = [problem.objective(problem.split(theta), theta, batch) for batch in batches]
        losses = [domain.query_loss(theta, theta, task.query), *slopes]
        losses += [value for value in values if value is not None]
        return losses, domain.metrics(theta, task), domain.baselines(task)

    losses, metrics, baselines = scores(domain.init(jax.random.key(0)), one)  # law 4
    assert domain.oracles <= set(baselines)
    assert all(
        jnp.shape(x) == () and jnp.isfinite(x) for x in (*losses, *metrics.values(), *baselines.values())
    )
    assert domain.headline in metrics
    assert isinstance(domain.higher_is_better, bool)
    assert all(domain.size(split) is None or domain.size(split) > 0 for split in SPLITS)
    assert domain.held_out("test")


def test_the_recipe_goes_to_json_and_back(life):
    config = Config(domain=life.recipe)
    assert from_json(to_json(config)) == config
    text = json.dumps(to_json(life.recipe.published()))
    assert str(life.folder) not in text
    assert life.recipe.published().restored(life.recipe) == life.recipe
    assert life.recipe.data_name


def predictions(predictor, query):
    answers = predictor.predict(query)
    assert len(answers) == len(jax.tree.leaves(predictor.domain.encode_query(query))[0])
    if answers.dtype.kind == "f":
        assert np.all(np.isfinite(answers))
    return answers


def test_a_sampled_task_is_adapted_to_and_predicted(life):
    """Law 5; and what an artefact predicts is what the run predicts."""
    support, query = life.task
    predictor = life.learner.adapt(support)
    found = predictions(predictor, query)
    np.testing.assert_array_equal(found, life.run.adapt(support).predict(query))
    if predictor.classes is not None:
        chances = predictor.predict_proba(query)
        np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)
        np.testing.assert_array_equal(found, predictor.classes[chances.argmax(1)])
    # Rows are answered one by one.
    rows = life.domain.encode_query(query)
    first = jax.tree.map(lambda leaf: leaf[:1], rows)
    np.testing.assert_array_equal(predictor._outputs(first)[0], predictor._outputs(rows)[0])


def test_another_process_predicts_the_same(life, elsewhere):
    """Law 6: saved, loaded elsewhere, adapted from files."""
    learner, files = life.learner, life.files
    support, query = learner.read(files["support"]), learner.read(files["query"], True)
    predictor = learner.adapt(support)
    here = json.loads(json.dumps(predictor.domain.answers(predictor, support, query).rows))
    there = elsewhere(life.folder)
    assert len(here) == len(there) > 0
    for mine, its in zip(here, there, strict=True):
        assert mine.keys() == its.keys()
        for a, b in zip(mine.values(), its.values(), strict=True):
            if isinstance(a, str | dict):
                assert a == b or isinstance(a, dict)
            else:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_it_is_evaluated_and_reported(life):
    scores = imaml.evaluate(life.learner, tasks=2)
    assert np.isfinite(scores.scores[life.domain.headline])
    shown = examples(life.run, number=2)
    assert len(shown) == 2
    assert "Example tasks" in write_report(life.out, shown).read_text()


def damaged(life):
    """Support data that do not fit, and what is said: each array of the wrong shape, dtype, or with NaN."""
    batch = life.task.support._asdict()
    fields = life.domain.support_fields()
    for name, field in fields.items():
        array = np.asarray(batch[name])
        yield {**batch, name: array[None]}, f"{name}: expected shape"
        yield {**batch, name: array.astype(str)}, f"{name}: expected .*, got dtype"
        if field.kind == "float":
            yield (
                {**batch, name: np.where(np.arange(array.size).reshape(array.shape), array, np.nan)},
                (f"{name}: expected finite numbers"),
            )
        if field.below is not None:
            yield {**batch, name: array + field.below}, f"{name}: expected whole numbers from 0"
    name = next(iter(fields))
    yield {**batch, "colour": 1}, "expected arrays named .*, got colour"
    yield {name: []}, f"{name}: expected shape"
    yield {}, "expected the arrays"


def test_support_data_that_do_not_fit_are_refused(life):
    """One message each for shape, dtype and finite values; images have checks of their own."""
    if isinstance(life.recipe, FewShotRecipe):
        return
    encode = super(type(life.domain), life.domain).encode if life.recipe.reads_table else life.domain.encode
    for support, says in damaged(life):
        if life.recipe.reads_table:
            if set(support) != set(life.task.support._fields):
                continue
            support = type(life.task.support)(**support)
        with pytest.raises(imaml.DataError, match=says):
            encode(support)


def test_a_query_that_does_not_fit_is_refused(life):
    predictor = life.learner.adapt(life.task.support)
    for query in (np.zeros((2, 3, 5, 7, 9)), np.array(["a", "b"]), [[1.0, 2.0], [3.0]], []):
        with pytest.raises(imaml.DataError):
            predictor.predict(query)


def test_scenes_are_finite_and_differ_before_and_after(life):
    if isinstance(life.recipe, FewShotRecipe | SinusoidRecipe):
        return  # they show examples
    before, after = (life.domain.init(jax.random.key(seed)) for seed in (1, 4))
    after = jax.tree.map(lambda leaf: leaf + 0.1, after)  # linear models begin at 0
    (scene,) = life.domain.scenes(before, after, life.task)
    parts = scene.images or scene.lines
    assert {"before", "after"} <= set(parts)
    for part in parts.values():
        assert all(np.all(np.isfinite(array)) for array in np.atleast_1d(part))
    for image in scene.images.values():
        assert image.ndim == 2
        assert 0 <= image.min() <= image.max() <= 1
    assert not np.array_equal(parts["before"], parts["after"])


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


@pytest.mark.parametrize(
    "name", ["mazes", "plants", "carts", "navigation", "densities", "imitation", "sinusoid"]
)
def test_a_domain_s_function_names_the_fields_of_its_recipe(name):
    build = getattr(imaml, name)
    fields = dataclasses.fields(inspect.unwrap(build))
    assert list(inspect.signature(build).parameters) == [field.name for field in fields]
    assert "Args:" in build.__doc__
    with pytest.raises(TypeError, match="colour"):
        build(colour=1)
