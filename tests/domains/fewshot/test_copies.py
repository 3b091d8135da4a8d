"""New tasks learn from distorted copies of their support images, too; training and queries have none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.marks import slow_after_first
from helpers.pictures import pictures
from imaml.cli.main import main
from imaml.config.method import IMAMLRecipe
from imaml.config.methods import Method
from imaml.core.errors import ConfigError
from imaml.domains.fewshot import distortion
from imaml.domains.fewshot.domain import FewShotRecipe
from imaml.domains.fewshot.losses import statistics_of

pytestmark = pytest.mark.usefixtures("ranks_mixed")
COPIES = 2
RECIPE = FewShotRecipe(
    ways=3, shots=2, queries=2, filters=4, normalisation="running", head="shared", inner_loss="squared",
    train_ways=6, train_queries=2, copies=COPIES, source="images", data=pictures(),
)  # fmt: skip
NEWTON = imaml.Newton(steps=1, linear=imaml.Inverse())
METHOD = IMAMLRecipe(strength=0.1, adapt=("head",), inner=NEWTON, linear=imaml.Inverse())


@pytest.fixture(scope="module")
def case():
    """A domain, parameters in float64 and a new task."""
    domain = RECIPE.build()
    wide = lambda tree: jax.tree.map(  # noqa: E731
        lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree
    )
    with jax.numpy_rank_promotion("allow"):
        task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(1))
        theta = jax.jit(lambda key: domain.finalise(domain.init(key), key))(jax.random.key(0))
    return domain, wide(theta), wide(task)


def test_an_image_is_followed_by_its_copies_which_depend_on_it_alone():
    images = jax.random.uniform(jax.random.key(0), (4, 9, 9, 1), jnp.float32)
    found = distortion.with_copies(images, 3).reshape(4, 4, 9, 9, 1)
    np.testing.assert_array_equal(found[:, 0], images)
    other = distortion.with_copies(images[::-1], 3).reshape(4, 4, 9, 9, 1)[::-1]
    np.testing.assert_allclose(found, other, atol=1e-6)
    one = found[0].reshape(4, -1)
    assert all(np.abs(one[i] - one[j]).max() > 0.1 for i in range(4) for j in range(i))
    np.testing.assert_array_equal(distortion.with_copies(images, 0), images)


def test_the_solution_is_that_of_the_enlarged_support_set_and_queries_have_no_copies(case):
    domain, theta, task = case
    problem = METHOD.build(domain).new_task.problem
    phi = jax.jit(lambda theta, rows: problem.full(NEWTON(problem, theta, rows).value, theta))(
        theta, task.support
    )
    # ridge regression on the features of all images and their copies, from the definition
    statistics = statistics_of(domain.network, "running", theta, task.support)
    images = distortion.with_copies(task.support.images, COPIES)
    assert images.shape[0] == 6 * (1 + COPIES)
    embed = jax.jit(domain.network.embed)
    features = embed(theta, images, statistics)[0]
    x = np.concatenate([features, np.ones((features.shape[0], 1))], axis=1)
    y = np.repeat(np.eye(3)[task.support.labels], 1 + COPIES, axis=0)
    start = np.concatenate([theta["head"]["kernel"], theta["head"]["bias"][None]])
    expected = np.linalg.solve(x.T @ x / len(x) + 0.1 * np.eye(x.shape[1]), x.T @ y / len(x) + 0.1 * start)
    got = np.concatenate([phi["head"]["kernel"], phi["head"]["bias"][None]])
    # float32, in which copies are distorted, is rounded otherwise in another program
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-6)
    queries = embed(theta, task.query.images, statistics)[0]
    logits = domain.logits(phi, task.query, inductive=True)
    np.testing.assert_allclose(logits, queries @ got[:-1] + got[-1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("normalisation", ["transductive", "inductive", "running"])
def test_probabilities_of_a_query_are_the_means_over_it_and_its_copies(case, normalisation):
    _, theta, task = case
    domain = dataclasses.replace(RECIPE, normalisation=normalisation, query_copies=COPIES).build()
    network, recipe = domain.network, domain.recipe
    kernel, bias = jnp.sin(jnp.arange(48.0)).reshape(16, 3), jnp.arange(3.0)
    phi = {**theta, "head": {"kernel": kernel, "bias": bias}}
    used = {
        "transductive": network.embed(phi, task.query.images)[1],
        "inductive": network.embed(phi, task.support.images)[1],
        "running": statistics_of(network, "running", phi, task.query),
    }[normalisation]
    images = distortion.with_copies(task.query.images, COPIES)
    logits = np.asarray(network.embed(phi, images, used)[0] @ kernel + bias)
    each = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = each.reshape(-1, 1 + COPIES, 3).mean(1)
    np.testing.assert_allclose(jax.nn.softmax(domain.logits(phi, task.query)), expected, rtol=1e-6)
    # as for an adapted model, which is given the statistics; in one batch by its own
    statistics = None if normalisation == "transductive" else used
    found = jax.nn.softmax(domain.forward(phi, task.query.images, statistics))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # training tasks have none
    training = domain.training_domain(0)
    assert training.recipe.query_copies == training.recipe.copies == 0
    assert recipe.query_copies == COPIES


@pytest.mark.parametrize("inner_loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("normalisation", ["transductive", "inductive", "running"])
def test_the_loss_is_the_mean_over_images_and_copies(case, inner_loss, normalisation):
    """Normalised by the images' own statistics, as queries are that refer to them."""
    _, theta, task = case
    recipe = dataclasses.replace(
        RECIPE, inner_loss=inner_loss, normalisation=normalisation, head="own", train_ways=None
    )
    domain, network = recipe.build(), recipe.network
    phi = {**theta, "head": {"kernel": jnp.sin(jnp.arange(48.0)).reshape(16, 3), "bias": jnp.arange(3.0)}}
    statistics = network.embed(phi, task.support.images)[1]
    if normalisation == "running":
        statistics = statistics_of(network, "running", phi, task.support)
    outputs = network.forward(phi, distortion.with_copies(task.support.images, COPIES), statistics)[0]
    chosen = np.eye(3)[np.repeat(task.support.labels, 1 + COPIES)]
    expected = {
        "squared": 0.5 * np.square(outputs - chosen).sum(1),
        "cross_entropy": -(chosen * jax.nn.log_softmax(outputs)).sum(1),
    }[inner_loss]
    np.testing.assert_allclose(domain.loss(phi, task.support), expected.mean(), rtol=1e-9)
    assert domain.loss.copies == COPIES
    assert domain.training_domain(0).loss.copies == 0


def answered(domain, theta, task):
    """Returns the probabilities of the queries of a new task, each by itself."""

    @jax.jit
    def answer(theta, task):
        phi, _ = METHOD.build(domain).adapt(theta, task.support, jax.random.key(0))
        return jax.nn.softmax(domain.logits(phi, task.query, inductive=True))

    return answer(theta, task)


def test_a_loaded_run_answers_with_copies_and_their_number_may_change(tmp_path, capsys):
    options = {"steps": 2, "tasks": 1, "validate_every": 0, "progress": False, "out": tmp_path / "run"}
    given = METHOD, imaml.Optimiser("adam", 1e-3, schedule="constant")
    run = imaml.train(RECIPE.build(), *given, **options)
    task = jax.jit(lambda key: run.domain.sample(key, "test"))(jax.random.key(2))
    support = np.asarray(task.support.images), np.asarray(task.support.labels)
    queries = np.asarray(task.query.images)
    found = imaml.load(tmp_path / "run").adapt(*support).predict_proba(queries)
    np.testing.assert_allclose(found, answered(run.domain, run.theta, task), atol=1e-5)
    # No training step depends on them, so that a run is resumed with another number.
    none = dataclasses.replace(RECIPE, copies=0).build()
    again = imaml.train(none, *given, **options, resume=True)
    jax.tree.map(np.testing.assert_array_equal, again.theta, run.theta)
    plain = imaml.load(tmp_path / "run").adapt(*support).predict_proba(queries)
    assert np.abs(plain - found).max() > 1e-4
    scores = []
    for copies in ("0", "3"):
        assert main(["evaluate", str(tmp_path / "run"), "--copies", copies, "--tasks", "2", "--json"]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] != scores[1]
    assert main(["evaluate", str(tmp_path / "run"), "--query-copies", "3", "--tasks", "2", "--json"]) == 0
    assert capsys.readouterr().out not in scores
    answers = dataclasses.replace(RECIPE, copies=0, query_copies=3).build()
    imaml.train(answers, *given, **options, resume=True)
    averaged = imaml.load(tmp_path / "run").adapt(*support).predict_proba(queries)
    np.testing.assert_allclose(averaged, answered(answers, run.theta, task), atol=1e-5)
    assert np.abs(averaged - plain).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "normalisation"),
    [
        *slow_after_first([("imaml", "transductive"), ("reptile", "transductive")]),
        pytest.param("imaml", "inductive", marks=pytest.mark.long),
        pytest.param("maml", "inductive", marks=pytest.mark.long),
        pytest.param("fomaml", "transductive", marks=pytest.mark.long),
        pytest.param("metasgd", "inductive", marks=pytest.mark.long),
        pytest.param("as-released", "transductive", marks=pytest.mark.long),
    ],
)
def test_no_training_step_depends_on_copies_and_every_new_task_does(name, normalisation):
    found = []
    for copies in (0, COPIES):
        domain = FewShotRecipe(
            ways=3, queries=2, filters=4, copies=copies, normalisation=normalisation, source="images",
            data=pictures(),
        ).build()  # fmt: skip
        run = imaml.train(
            domain, Method(name), imaml.Optimiser("adam", 1e-3), steps=2, tasks=2, validate_every=0,
            progress=False,
        )  # fmt: skip
        task = jax.jit(lambda key, of=domain: of.sample(key, "test"))(jax.random.key(2))
        adapt = jax.jit(lambda theta, rows, of=run.method: of.adapt(theta, rows, jax.random.key(0))[0])
        found.append((run.theta, adapt(run.theta, task.support)))
    (theta, phi), (other_theta, other_phi) = found
    jax.tree.map(np.testing.assert_array_equal, theta, other_theta)
    away = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), phi, other_phi)
    assert max(jax.tree.leaves(away)) > 1e-6


@pytest.mark.parametrize("name", ["evidence", "moments", "posterior"])
def test_a_likelihood_of_copies_is_refused(name):
    domain = FewShotRecipe(ways=3, queries=2, filters=4, copies=COPIES).build()
    with pytest.raises(ConfigError, match=r"one output for each row.* got 3 for each.*--domain.copies=0"):
        Method(name).build(domain)
    Method(name).build(FewShotRecipe(ways=3, queries=2, filters=4).build())


@pytest.mark.slow
def test_uncertainty_of_an_adapted_predictor_needs_images_without_copies():
    recipe = dataclasses.replace(RECIPE, head="own", train_ways=None, inner_loss="cross_entropy")
    inner = imaml.GradientDescent(0.1, 3)
    method = IMAMLRecipe(strength=0.1, adapt=("head",), inner=inner, linear=imaml.CG(5))
    run = imaml.train(
        recipe.build(),
        method,
        imaml.Optimiser("adam", 1e-3),
        steps=1,
        tasks=1,
        validate_every=0,
        progress=False,
    )
    task = jax.jit(lambda key: run.domain.sample(key, "test"))(jax.random.key(2))
    predictor = run.adapt(np.asarray(task.support.images), np.asarray(task.support.labels))
    images = np.asarray(task.query.images)
    with pytest.raises(ConfigError, match=r"one output for each row.* got 3 for each.*--domain.copies=0"):
        predictor.predict_proba(images, uncertainty=True)
    np.testing.assert_allclose(predictor.predict_proba(images).sum(1), 1, atol=1e-5)
