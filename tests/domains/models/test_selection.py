"""`adapt=` as users of each library write it."""

import equinox as eqx
import jax
import numpy as np
import pytest
from flax import nnx

import imaml
from helpers.models import EXAMPLE, NORMED, PLAIN
from imaml.core.tree import Selection
from imaml.domains.models.adapters import as_network
from imaml.domains.models.selection import adapt_names

pytestmark = [
    pytest.mark.usefixtures("ranks_mixed"),
    pytest.mark.filterwarnings("ignore:.*dropout is off.*:RuntimeWarning"),
]


def names(model, adapt):
    network = as_network(model, EXAMPLE)
    return adapt_names(network, adapt, network.init(jax.random.key(0)))


def last_layer(module):
    """An Equinox filter: a module of booleans, which can be called."""
    blank = jax.tree.map(lambda _: False, module)
    return eqx.tree_at(lambda m: (m.layers[-1].weight, m.layers[-1].bias), blank, (True, True))


def test_a_filter_of_equinox_is_no_function():
    module = PLAIN["equinox"]()
    found = names(module, last_layer(module))
    assert found == ("layers/1/weight", "layers/1/bias")
    parameters = as_network(module, EXAMPLE).init(jax.random.key(0))
    mask = Selection.of(found).mask(parameters)
    assert sum(jax.tree.leaves(mask)) == 2


def test_a_filter_of_equinox_is_no_function_of_a_problem_either():
    module = PLAIN["equinox"]()
    problem = imaml.proximal(lambda phi, batch: 0.0, 1.0, adapt=last_layer(module))
    chosen = problem.split(module)
    assert [leaf.shape for leaf in jax.tree.leaves(chosen)] == [
        module.layers[1].weight.shape,
        module.layers[1].bias.shape,
    ]


def test_marks_on_what_is_no_parameter_do_not_matter():
    module = PLAIN["equinox"]()
    everything = jax.tree.map(lambda _: True, module)
    assert set(names(module, everything)) == set(as_network(module, EXAMPLE).init(jax.random.key(0)))


CASES = {
    "all": (None, None),
    "a path": ("last/bias", ("last/bias",)),
    "a branch": ("last", ("last",)),
    "several": (["last", "first/bias"], ("first/bias", "last")),
    "a tree": ({"last": {"bias": True}, "first": False}, ("last/bias",)),
    "a function of paths": (lambda path: path.endswith("bias"), ("first/bias", "last/bias")),
    "a function that looks in paths": (lambda path: "last" in path, ("last/bias", "last/weight")),
    "a function of theta": (lambda theta: {p: leaf.ndim == 2 for p, leaf in theta.items()}, None),
}


@pytest.mark.parametrize(("adapt", "expected"), CASES.values(), ids=CASES)
def test_selections_of_functions(adapt, expected):
    if adapt is CASES["a function of theta"][0]:
        expected = ("first/weight", "last/weight")
    assert names(PLAIN["functions"](), adapt) == expected


def test_filters_of_nnx():
    class Adapter(nnx.Param):
        pass

    module = NORMED["nnx"]()
    module.last.bias = Adapter(module.last.bias[...])
    assert names(module, Adapter) == ("last/bias",)
    assert names(module, nnx.All(nnx.Param, nnx.PathContains("first"))) == ("first/bias", "first/kernel")
    assert names(module, (Adapter, nnx.PathContains("norm"))) == ("last/bias", "norm/bias", "norm/scale")
    assert len(names(module, nnx.Param)) == 6


def test_a_predicate_of_haiku():
    found = names(NORMED["haiku"](), lambda module, name, value: module == "linear" and value.ndim == 2)
    assert found == ("linear/w",)


def test_networks_of_imaml():
    network = imaml.MLP((3, 4, 2))
    theta = network.init(jax.random.key(0))
    assert adapt_names(network, "layer2", theta) == ("layer2",)
    mask = {"layer1": {"kernel": np.True_, "bias": False}, "layer2": False}
    assert adapt_names(network, mask, theta) == ("layer1/kernel",)


WRONG = {
    "unknown": ("lats", "adapt: parameter or branch: expected one of", "did you mean 'last'"),
    "nothing": (lambda path: False, "expected at least one of 4 parameters"),
    "no booleans": (lambda path: 3, "expected a function path -> bool, got one that returns 3"),
    "an error": (lambda path: path.missing, "expected a function path -> bool, got an error for the path"),
    "a number": (3, "adapt: expected None (all), a path such as 'head'", "got 3"),
    "a class": (dict, "got <class 'dict'>"),
}


@pytest.mark.parametrize(("adapt", "parts"), [(w[0], w[1:]) for w in WRONG.values()], ids=WRONG)
def test_what_selects_nothing_gets_one_message(adapt, parts):
    with pytest.raises(imaml.ConfigError) as caught:
        names(PLAIN["functions"](), adapt)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
