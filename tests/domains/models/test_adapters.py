"""What every model of a user promises: pure functions, exact batch statistics, exact meta-gradients."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.differences import check_meta_gradient, in_double
from helpers.marks import slow_after_first
from helpers.models import EXAMPLE, NORMED, PLAIN, apply, initial
from imaml.domains.models.adapters import as_network

pytestmark = [
    pytest.mark.usefixtures("ranks_mixed"),
    pytest.mark.filterwarnings("ignore:.*dropout is off.*:RuntimeWarning"),
]
MODELS = {**PLAIN, **{f"{name}, normalised": make for name, make in NORMED.items()}}
every = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
normed = pytest.mark.parametrize("library", NORMED)

# Where each library keeps the first layer: kernel, bias, and whether the kernel is (outputs, inputs).
FIRST = {
    "equinox": ("first/weight", "first/bias", True),
    "nnx": ("first/kernel", "first/bias", False),
    "linen": ("Dense_0/kernel", "Dense_0/bias", False),
    "haiku": ("linear/w", "linear/b", False),
}


def rows(count=6, seed=1):
    return jax.random.normal(jax.random.key(seed), (count, 3))


@every
def test_parameters_are_float_arrays_by_path(make):
    parameters = as_network(make(), EXAMPLE).init(jax.random.key(0))
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in parameters.values())
    assert sorted(leaf.size for leaf in parameters.values())[:1] == [2]  # the bias of the last layer


@every
def test_forward_is_pure_under_transformations(make):
    network = as_network(make(), EXAMPLE)
    theta, x = in_double(network.init(jax.random.key(0))), rows()
    loss = lambda theta, x: jnp.sum(network.forward(theta, x)[0] ** 2)  # noqa: E731
    eager, again = loss(theta, x), loss(theta, x)
    assert eager == again
    np.testing.assert_allclose(jax.jit(loss)(theta, x), eager, rtol=1e-12)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), theta)
    second = jax.tree.map(lambda leaf: 2 * leaf, theta)
    both = jax.jit(jax.vmap(loss, (0, None)))(many, x)
    np.testing.assert_allclose(both, [eager, loss(second, x)], rtol=1e-12)
    hessian = jax.jit(lambda theta: jax.jvp(lambda t: jax.grad(loss)(t, x), (theta,), (theta,))[1])(theta)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in hessian.values())


@normed
def test_batch_statistics_are_those_of_the_batch(library):
    network = as_network(NORMED[library](), EXAMPLE)
    assert network.normalises
    theta, x = in_double(network.init(jax.random.key(0))), rows()
    outputs, statistics = network.forward(theta, x)
    kernel, bias, transposed = FIRST[library]
    hidden = x @ (theta[kernel].T if transposed else theta[kernel]) + theta[bias]
    mean, variance = (np.ravel(leaf) for leaf in jax.tree.leaves(statistics))
    np.testing.assert_allclose(mean, hidden.mean(0), rtol=1e-10)
    np.testing.assert_allclose(variance, hidden.var(0), rtol=1e-10)
    repeated, same = network.forward(theta, x, statistics)
    np.testing.assert_allclose(repeated, outputs, rtol=1e-10)
    jax.tree.map(np.testing.assert_array_equal, same, statistics)


@normed
def test_rows_with_given_statistics_do_not_depend_on_each_other(library):
    network = as_network(NORMED[library](), EXAMPLE)
    theta, x = in_double(network.init(jax.random.key(0))), rows()
    _, statistics = network.forward(theta, rows(8, seed=2))
    together, _ = network.forward(theta, x, statistics)
    apart, _ = network.forward(theta, x[:1], statistics)
    np.testing.assert_allclose(together[:1], apart, rtol=1e-10)
    assert not np.allclose(together, network.forward(theta, x)[0])


@pytest.mark.parametrize("name", PLAIN)
def test_models_without_batch_statistics_have_none(name):
    network = as_network(PLAIN[name](), EXAMPLE)
    assert not network.normalises
    assert network.forward(network.init(jax.random.key(0)), rows())[1] is None


@every
def test_a_model_that_is_passed_twice_compiles_once(make):
    model, traced = make(), []

    def forward(network, theta, x):
        traced.append(network)
        return network.forward(theta, x)[0]

    solve = jax.jit(forward, static_argnums=0)
    for _ in range(2):
        network = as_network(model, EXAMPLE)
        solve(network, network.init(jax.random.key(0)), rows())
    assert len(traced) == 1


@pytest.mark.parametrize("make", slow_after_first(MODELS.values()))
def test_the_meta_gradient_is_that_of_differences(make):
    network = as_network(make(), EXAMPLE)
    theta = in_double(network.init(jax.random.key(3)))
    loss = lambda phi, batch: jnp.mean((network.forward(phi, batch[0])[0] - batch[1]) ** 2)  # noqa: E731
    batches = [(rows(6, seed), rows(6, seed + 5)[:, :2]) for seed in (1, 2)]
    linear = imaml.CG(tolerance=1e-13)
    check_meta_gradient(
        imaml.proximal(loss, 1.0),
        lambda phi, theta, batch: loss(phi, batch),
        theta,
        imaml.Task(*batches),
        imaml.NewtonCG(steps=30, linear=linear),
        linear,
    )


def test_functions_have_the_outputs_that_they_compute():
    network = as_network((initial, apply), EXAMPLE)
    expected = apply(initial(jax.random.key(4)), rows())
    np.testing.assert_array_equal(network.forward(network.init(jax.random.key(4)), rows())[0], expected)
    assert network.init(jax.random.key(0)).keys() == {
        f"{layer}/{kind}" for layer in ("first", "last") for kind in ("bias", "weight")
    }


def test_an_object_with_init_and_apply_is_a_model():
    class Model:
        init, apply = staticmethod(initial), staticmethod(apply)

    network = as_network(Model(), EXAMPLE)
    assert network.name == "Model"
    assert network.forward(network.init(jax.random.key(0)), rows())[0].shape == (6, 2)


def test_networks_are_returned_as_they_are():
    network = imaml.MLP((3, 2))
    assert as_network(network, EXAMPLE) is network


def test_narrow_parameters_are_kept_as_float32():
    def narrow(key):
        return {"weight": jax.random.normal(key, (3, 2), jnp.bfloat16)}

    seen = []

    def outputs(parameters, x):
        seen.append(parameters["weight"].dtype)
        return x.astype(jnp.bfloat16) @ parameters["weight"]

    network = as_network((narrow, outputs), EXAMPLE)
    theta = network.init(jax.random.key(0))
    assert theta["weight"].dtype == jnp.float32
    assert network.forward(theta, rows())[0].dtype == jnp.float32
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


WRONG = {
    "a number": (3, "model: expected a network such as", "got a int"),
    "a class": (imaml.MLP, "got the class MLP. Hint: pass an instance."),
    "three functions": ((initial, apply, apply), "got a tuple"),
    "no floats": ((lambda key: {"n": jnp.arange(3)}, apply), "expected parameters, float arrays, got none"),
    "complex": (
        (lambda key: {"n": jnp.zeros(3, complex)}, apply),
        "n: expected real parameters, got complex128",
    ),
    "two arguments": (
        (lambda key, shape: {}, apply),
        "expected init(key) with one argument, got init(key, shape)",
    ),
    "other rows": (
        (lambda key: {"w": jnp.zeros((5, 2))}, lambda p, x: x @ p["w"]),
        "takes rows of shape (3,)",
    ),
    "an error": ((initial, lambda p, x: p["missing"]), "an error (KeyError: 'missing')"),
}


@pytest.mark.parametrize(("model", "parts"), [(w[0], w[1:]) for w in WRONG.values()], ids=WRONG)
def test_what_is_no_model_gets_one_message(model, parts):
    with pytest.raises(imaml.ConfigError) as caught:
        as_network(model, EXAMPLE)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


def test_libraries_are_imported_only_for_their_models():
    code = (
        "import sys, jax, imaml\n"
        "from imaml.domains.models.adapters import as_network\n"
        "as_network((lambda key: jax.numpy.ones(3), lambda p, x: x @ p), jax.numpy.ones((1, 3)))\n"
        "assert not {'flax', 'haiku'} & set(sys.modules), 'a library was imported'\n"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models_with_other_constants_are_others():
    def model(order, key=0):
        def init(_):
            constants = {"order": jnp.array(order), "count": jnp.int32(key), "key": jax.random.key(key)}
            return {"w": jnp.ones((3, 1)), **constants}

        return init, lambda parameters, x: x[:, parameters["order"]] @ parameters["w"]

    first, same, other = (as_network(model(*given), EXAMPLE).signature for given in (
        ([2, 0, 1],), ([2, 0, 1], 5), ([0, 2, 1],),
    ))  # fmt: skip
    assert first == same  # counters and random keys say nothing
    assert first != other
