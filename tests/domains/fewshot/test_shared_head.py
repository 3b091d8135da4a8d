"""Heads of one column: training tasks of other sizes, tasks of any number of classes, running statistics."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.pictures import pictures
from imaml.cli.main import main
from imaml.config.method import IMAMLRecipe
from imaml.config.methods import Method
from imaml.core import tree
from imaml.core.errors import DataError
from imaml.domains.fewshot.domain import FewShotRecipe
from imaml.domains.fewshot.images import Images

pytestmark = pytest.mark.usefixtures("ranks_mixed")
RECIPE = FewShotRecipe(
    ways=3, queries=2, filters=4, normalisation="running", head="shared", inner_loss="squared", scale=5.0,
    train_ways=6, train_shots=(1, 2), train_queries=3, source="images", data=pictures(),
)  # fmt: skip
NEWTON = imaml.Newton(steps=1, linear=imaml.Inverse())
METHOD = IMAMLRecipe(strength=0.1, learned="all", adapt=("head",), inner=NEWTON, linear=imaml.Inverse())


@pytest.fixture(scope="module")
def run():
    options = {"tasks": 1, "validate_every": 2, "validation_tasks": 2, "progress": False}
    with jax.numpy_rank_promotion("allow"):
        return imaml.train(RECIPE.build(), METHOD, imaml.Optimiser("adam", 1e-3), steps=4, **options)


def test_tasks_of_training_have_sizes_of_their_own():
    domain = RECIPE.build()
    shapes = [
        jax.eval_shape(lambda d=domain, s=step: d.training_domain(s).sample(jax.random.key(0), "train"))
        for step in range(3)
    ]
    assert [task.support.images.shape[0] for task in shapes] == [6, 12, 6]
    assert all(task.query.images.shape[0] == 18 and task.query.targets.shape == (18, 6) for task in shapes)
    new = jax.eval_shape(lambda: domain.sample(jax.random.key(0), "test"))
    assert new.support.targets.shape == (3, 3)
    with pytest.raises(imaml.ConfigError, match=r"train_ways: expected 3, .*--domain.head=shared"):
        dataclasses.replace(RECIPE, head="own")


def test_the_inner_solution_is_exact_and_theta_has_one_column(run):
    assert run.theta.mean["head"]["kernel"].shape == (16, 1)
    assert run.domain.criterion == ("accuracy_inductive", True)  # as new tasks are answered
    domain = run.domain
    task = jax.jit(lambda: domain.training_domain(0).sample(jax.random.key(1), "train"))()
    problem = run.method.problem

    @jax.jit
    def solved(theta, support):
        before = problem.residual(problem.init(theta, support), theta, support)
        return NEWTON(problem, theta, support), tree.norm(before)

    found, start = solved(run.theta, task.support)
    assert found.value["head"]["kernel"].shape == (16, 6)
    assert float(found.stats.residual) < 1e-4 * float(start)


def test_statistics_are_those_of_training_images(run):
    """Of the first layer: the mean and the variance of all its outputs over the same images."""
    domain, mean = run.domain, run.theta.mean
    taught = domain.training_domain(0)
    keys = jax.random.split(jax.random.key(7), 20)
    images = jax.jit(lambda: jax.vmap(lambda k: taught.whole(*taught.sample(k, "train")).images)(keys))()
    embed = RECIPE.network.embed
    every = embed(mean, images.reshape(-1, *images.shape[2:]))[1][0]
    np.testing.assert_allclose(mean["statistics"]["conv1"]["mean"], every[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(mean["statistics"]["conv1"]["variance"], every[1], rtol=1e-3, atol=1e-5)
    assert not np.allclose(mean["statistics"]["conv4"]["variance"], 1)


def test_a_new_task_may_have_any_number_of_classes(run, tmp_path):
    run.save(tmp_path / "run.safetensors")
    learner = imaml.load(tmp_path / "run.safetensors")
    domain = dataclasses.replace(RECIPE, ways=8).build()
    task = jax.jit(lambda: domain.sample(jax.random.key(3), "test"))()
    for count in (2, 5, 8):
        rows = np.asarray(task.support.labels) < count
        images = np.asarray(task.support.images)[rows]
        predictor = learner.adapt(images, np.asarray(task.support.labels)[rows])
        found = predictor.predict_proba(np.asarray(task.query.images))
        assert found.shape == (16, count)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
        # No answer depends on its neighbours: statistics are those of training.
        np.testing.assert_allclose(
            predictor.predict_proba(np.asarray(task.query.images[:1])), found[:1], atol=1e-5
        )
    with pytest.raises(imaml.DataError, match="expected at least 2 different ones, got 1"):
        learner.adapt(np.asarray(task.support.images)[:1], ["a"])


def test_a_run_is_scored_in_another_setting(run):
    other = dataclasses.replace(RECIPE, ways=5, shots=2).build()
    found = run.evaluate(other, tasks=3)
    assert found.before["accuracy"] == pytest.approx(0.2)
    assert {"accuracy", "accuracy_inductive"} <= found.scores.keys()


def test_the_command_line_scores_it_in_another_setting(run, tmp_path, capsys):
    run.save(tmp_path / "run.safetensors")
    words = ["evaluate", str(tmp_path / "run.safetensors"), "--data", pictures(), "--tasks=2", "--json"]
    assert main([*words, "--ways=4", "--shots=2", "--queries=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["before"] == pytest.approx(0.25)
    assert main([*words, "--ways=30"]) == 2
    assert "expected at least 30 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param("squared", marks=pytest.mark.slow),
        pytest.param("cross_entropy", marks=pytest.mark.long),
    ],
)
def test_the_meta_gradient_equals_central_differences(loss):
    """Of kernels, scale, strength and the head's column, in float64."""
    recipe = dataclasses.replace(RECIPE, inner_loss=loss, train_shots=(2,))
    newton = imaml.NewtonCG(tolerance=1e-12, linear=imaml.CG(tolerance=1e-10))
    inner, linear = (NEWTON, imaml.Inverse()) if loss == "squared" else (newton, imaml.CG(tolerance=1e-12))
    domain = recipe.build()
    method = dataclasses.replace(METHOD, inner=inner, linear=linear).build(domain)
    wide = lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    task = jax.jit(lambda: domain.training_domain(0).sample(jax.random.key(5), "train"))()
    tasks = jax.tree.map(lambda leaf: wide(leaf)[None], task)
    theta = jax.tree.map(wide, method.init(domain, jax.random.key(1)))
    key = jax.random.key(2)
    theta.mean["head"] = jax.tree.map(lambda leaf: leaf + 0.1, theta.mean["head"])
    gradient, _ = jax.jit(method)(theta, tasks)
    value = jax.jit(lambda t: method(t, tasks)[1].loss[0])
    kernel = theta.mean["conv2"]["kernel"]
    along = jax.random.normal(key, kernel.shape, jnp.float64)
    moved = lambda h: theta._replace(  # noqa: E731
        mean={**theta.mean, "conv2": {**theta.mean["conv2"], "kernel": kernel + h * along}}
    )
    expected = (value(moved(1e-5)) - value(moved(-1e-5))) / 2e-5
    assert float(jnp.sum(gradient.mean["conv2"]["kernel"] * along)) == pytest.approx(
        float(expected), rel=1e-4
    )
    # The head's column shifts the logits of all classes alike, which changes no probability.
    np.testing.assert_allclose(gradient.mean["head"]["kernel"], 0, atol=1e-9)
    moved = lambda h: theta._replace(mean={**theta.mean, "log_scale": theta.mean["log_scale"] + h})  # noqa: E731
    expected = (value(moved(1e-5)) - value(moved(-1e-5))) / 2e-5
    assert float(gradient.mean["log_scale"]) == pytest.approx(float(expected), rel=1e-4)
    moved = lambda h: theta._replace(log_strength=theta.log_strength + h)  # noqa: E731
    expected = (value(moved(1e-5)) - value(moved(-1e-5))) / 2e-5
    assert float(gradient.log_strength) == pytest.approx(float(expected), rel=1e-4)


def test_rules_that_learn_theta_as_a_task_s_parameters_refuse_a_head_of_one_column():
    options = {"steps": 1, "tasks": 1, "validate_every": 0, "progress": False}
    inner = imaml.GradientDescent(0.1, steps=1)
    recipe = dataclasses.replace(RECIPE, inner_loss="cross_entropy")
    for method in (Method("reptile", strength=None, inner=inner), Method("as-released", inner=inner)):
        with pytest.raises(imaml.StructureError, match="expected theta shaped like a task's parameters, got"):
            imaml.train(recipe.build(), method, **options)


def test_a_rate_for_each_parameter_serves_all_classes():
    inner = imaml.GradientDescent(0.1, steps=1)
    method = Method("imaml", adapt=("head",), inner=inner, rates="parameter")
    domain = dataclasses.replace(RECIPE, inner_loss="cross_entropy").build()
    run = imaml.train(domain, method, steps=1, tasks=1, validate_every=0, progress=False)
    assert run.theta.log_rate["head"]["kernel"].shape == (16, 1)


def test_training_tasks_need_classes_and_images_of_their_own():
    """Else an episode would have images of other classes, as a class has no more than it has."""
    pixels = np.random.default_rng(0).integers(0, 256, (12 * 6, 28, 28, 1), np.uint8)
    names, splits = (
        tuple(map(str, range(12))),
        {"train": range(8), "validation": range(8, 10), "test": range(10, 12)},
    )
    splits = {name: np.array(ids, np.int32) for name, ids in splits.items()}
    table = Images(pixels, np.arange(12) * 6, np.full(12, 6), names, names, splits)
    options = {"queries": 1, "filters": 4, "head": "shared"}
    assert imaml.image_tasks(table, 2, train_ways=8, train_shots=(1, 3), train_queries=3, **options).most == 6
    with pytest.raises(DataError, match=r"at least 9 classes .* got 8. Hint: lower --domain.train_ways"):
        imaml.image_tasks(table, 2, train_ways=9, **options)
    with pytest.raises(DataError, match=r"at least 7 images .* got 6. Hint: lower --domain.train_shots"):
        imaml.image_tasks(table, 2, train_ways=8, train_shots=(1, 4), train_queries=3, **options)
    with pytest.raises(imaml.ConfigError, match="train_ways: expected at most 20000"):
        dataclasses.replace(RECIPE, source="characters", data=None, train_ways=20_001)
