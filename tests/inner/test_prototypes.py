"""Prototypes gives the distances to class means, and learns features by the derivative of these."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.pictures import pictures
from imaml.config.methods import Method
from imaml.core.errors import ConfigError
from imaml.domains.fewshot.domain import FewShotRecipe

pytestmark = pytest.mark.usefixtures("ranks_mixed")
RECIPE = FewShotRecipe(
    ways=3, shots=2, queries=2, filters=4, normalisation="running", head="shared", inner_loss="squared",
    train_ways=6, train_shots=(1, 2), train_queries=3, source="images", data=pictures(),
)  # fmt: skip
METHOD = Method("maml", adapt=("head",), inner=imaml.Prototypes())


def sampled(domain, number):
    """A new task."""
    return jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(number))


def distances(domain, theta, task):
    """-|x - m_c|^2 of query features, from the definition."""
    support, query = (domain.network.embed(theta, batch.images)[0] for batch in task)
    labels = np.asarray(task.support.labels)
    means = jnp.stack([support[labels == label].mean(0) for label in range(domain.recipe.ways)])
    return -jnp.square(query[:, None] - means[None]).sum(-1)


@functools.partial(jax.jit, static_argnums=0)
def solved(problem, theta, rows):
    """Returns the adapted parameters that Prototypes gives."""
    return problem.full(imaml.Prototypes()(problem, theta, rows).value, theta)


@pytest.fixture(scope="module")
def case():
    domain = dataclasses.replace(RECIPE, normalisation="transductive", train_ways=None).build()
    theta = jax.tree.map(lambda a: a.astype(jnp.float64), domain.init(jax.random.key(0)))
    task = jax.tree.map(lambda a: a.astype(jnp.float64), sampled(domain, 1))
    task = task._replace(
        support=task.support._replace(labels=task.support.labels.astype(int)),
        query=task.query._replace(labels=task.query.labels.astype(int)),
    )
    return domain, theta, task


def test_outputs_are_distances_but_for_one_number_a_row(case):
    domain, theta, task = case
    problem = METHOD.build(domain).problem
    phi = solved(problem, theta, task.support)
    outputs, expected = domain.logits(phi, task.query), distances(domain, theta, task)
    assert outputs.shape == (6, 3)
    np.testing.assert_allclose(outputs - outputs[:, :1], expected - expected[:, :1], rtol=1e-9, atol=1e-9)


def test_the_meta_gradient_is_that_of_the_distances(case):
    domain, theta, task = case
    method = METHOD.build(domain)

    def ours(theta):
        phi = imaml.solve(
            method.problem, theta, task.support, inner=imaml.Prototypes(), rule=imaml.unrolled()
        )
        return domain.query_loss(method.problem.full(phi, theta), theta, task.query)

    def theirs(theta):
        chosen = jax.nn.log_softmax(distances(domain, theta, task))
        return -jnp.take_along_axis(chosen, task.query.labels[:, None], axis=1).mean()

    got, expected = jax.jit(jax.grad(ours))(theta), jax.jit(jax.grad(theirs))(theta)
    for name in ("conv1", "conv4"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), got[name], expected[name]
        )


def test_other_problems_are_refused():
    problem = imaml.plain(lambda phi, x: jnp.sum((phi - x) ** 2))
    with pytest.raises(imaml.StructureError, match=r"Prototypes: expected .* got plain.*inner_loss=squared"):
        imaml.Prototypes()(problem, jnp.ones(2), jnp.ones(2))


REFUSED = dict.fromkeys(("imaml", "fomaml", "reptile"), "expected a solver of the inner problem")
REFUSED |= dict.fromkeys(("metasgd", "as-released"), "inner")


@pytest.mark.parametrize("method", REFUSED)
def test_rules_that_want_a_solution_refuse_it(method):
    own = dataclasses.replace(RECIPE, head="own", train_ways=None).build()
    with pytest.raises((imaml.StructureError, ConfigError), match=rf"{REFUSED[method]}.*Prototypes"):
        Method(method, adapt=("head",), inner=imaml.Prototypes()).build(own)


class Squares(imaml.LinearSquares):
    """A loss whose design has a part for each leaf of phi."""

    def design(self, phi, batch):
        return {name: batch["x"] if leaf.ndim == 2 else jnp.ones((4, 1)) for name, leaf in phi.items()}

    def targets(self, batch, columns):
        return batch["y"]


@pytest.mark.parametrize("shapes", [{"w": (3, 2)}, {"b": (2,)}, {"a": (2,), "b": (2,), "w": (3, 2)}])
def test_heads_that_are_no_distances_are_refused(shapes):
    phi = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    batch = {"x": jnp.ones((4, 3)), "y": jax.nn.one_hot(jnp.arange(4) % 2, 2)}
    with pytest.raises(imaml.StructureError, match=r"Prototypes: expected a bias \(c,\) and weights"):
        imaml.Prototypes()(imaml.plain(Squares()), phi, batch)


def test_it_learns_and_is_loaded_with_any_number_of_classes(tmp_path):
    run = imaml.train(
        RECIPE.build(), METHOD, imaml.Optimiser("adam", 1e-3), steps=3, tasks=1, validate_every=3,
        validation_tasks=2, out=tmp_path / "run", progress=False,
    )  # fmt: skip
    again = imaml.load(tmp_path / "run")
    for ways in (2, 5):
        domain = again.config.domain.with_ways(ways).build()
        task = sampled(domain, ways)
        predictor = again.adapt(np.asarray(task.support.images), np.asarray(task.support.labels))
        problem = run.method.new_task.problem  # which normalises by the running statistics
        phi = solved(problem, run.theta, task.support)
        expected = jnp.argmax(domain.logits(phi, task.query, inductive=True), axis=1)
        np.testing.assert_array_equal(predictor.predict(np.asarray(task.query.images)), expected)
