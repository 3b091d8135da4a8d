"""`Learner` and `Predictor`: inputs that are trees, pickling, threads, programs that are kept."""

import concurrent.futures
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.config.method import IMAMLRecipe
from imaml.config.run import Config
from imaml.config.training import Training
from imaml.domains.tasks.build import domain_of
from imaml.predict import Learner

pytestmark = pytest.mark.usefixtures("ranks_mixed")
X = np.random.default_rng(0).normal(size=(60, 3))
Y = X @ [1.0, -2.0, 0.5]
GROUPS = np.repeat(np.arange(10), 6)
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


def learner(tree, loss):
    """Meta-parameters that are as they were drawn."""
    y = Y if loss == "squared" else np.where(Y > 0, "yes", "no")
    model = linear(1 if loss == "squared" else 2)
    domain, _ = domain_of(imaml.Tasks.from_arrays(tree(X), y, GROUPS), model, loss, shots=3)
    method = IMAMLRecipe(strength=0.1, inner=imaml.GradientDescent(0.1, steps=3), curvature="gauss-newton")
    config = Config(domain.recipe, method, imaml.Optimiser(), Training(steps=1))
    return Learner(domain.init(jax.random.key(0)), config), y


@pytest.fixture(scope="module")
def adapted():
    """Predictors by tree and loss."""
    with jax.numpy_rank_promotion("allow"):
        made = {(name, loss): learner(tree, loss) for name, tree in TREES.items() for loss in LOSSES}
        return {key: known.adapt(TREES[key[0]](X[:4]), y[:4]) for key, (known, y) in made.items()}


LOSSES = ("squared", "cross_entropy")


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
