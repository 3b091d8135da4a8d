"""What methods and `solve` are called with by mistake: one message by the template, which names the leaf."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml

pytestmark = pytest.mark.usefixtures("ranks_mixed")
FORM = re.compile(r"^[^:\n]+: (.*: )?expected [^\n]+, got [^\n]+\.( Hint: [^\n]+[.?]?)?$")
X, Y = jnp.ones((4, 5, 2)), jnp.ones((4, 5))
TASKS = imaml.Task((X, Y), (X, Y))
KEY = jax.random.key(0)


def loss(phi, batch):
    x, y = batch
    return jnp.mean((x @ phi["w"] + phi["b"] - y) ** 2)


def query_loss(phi, theta, batch):
    return loss(phi, batch)


def theta(**changes):
    return {"w": jnp.zeros(2), "b": jnp.zeros(()), **changes}


def implicit(inner_loss=loss, outer=query_loss):
    options = {"inner": imaml.GradientDescent(0.1, steps=2), "linear": imaml.CG(steps=2)}
    return imaml.IMAML(imaml.proximal(inner_loss, 1.0), outer, **options)


def unrolled(inner_loss=loss, outer=query_loss):
    return imaml.MAML(imaml.plain(inner_loss), outer, inner=imaml.GradientDescent(0.1, steps=2))


METHODS = {"imaml": implicit, "maml": unrolled}
LEAVES = {
    "whole numbers": (np.int32(3), "got dtype int32"),
    "a Python number": (3, "got 3"),
    "a flag": (jnp.zeros((), bool), "got dtype bool"),
    "a Python flag": (True, "got True"),
    "a key": (KEY, r"got dtype key<fry>"),
    "a key of old": (jax.random.PRNGKey(0), "got dtype uint32"),
    "a text": ("relu", "got 'relu'"),
    "a function": (jnp.tanh, "got a PjitFunction"),
    "objects": (np.array([None]), "got dtype object"),
    "complex numbers": (np.complex64(1j), "got dtype complex64"),
}


def refused(says, call):
    with pytest.raises(imaml.ConfigError) as caught:
        call()
    message = str(caught.value)
    assert FORM.match(message), message
    assert re.search(says, message), message


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", LEAVES)
def test_a_leaf_that_cannot_be_learned_is_named(case, method):
    leaf, says = LEAVES[case]
    refused(rf"^method: theta: c/d: .*{says}", lambda: METHODS[method]()(theta(c={"d": leaf}), TASKS))


@pytest.mark.parametrize("case", LEAVES)
def test_solve_names_it_too(case):
    leaf, says = LEAVES[case]
    options = {"inner": imaml.GradientDescent(0.1, steps=2), "rule": imaml.first_order()}
    given = theta(c=leaf), (X[0], Y[0])
    refused(rf"^solve: theta: c: .*{says}", lambda: imaml.solve(imaml.plain(loss), *given, **options))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_parameters(dtype):
    """An implicit gradient cannot be solved for in them; an unrolled one works as ever."""
    narrow = theta(w=jnp.zeros(2, dtype))
    says = rf"^method: theta: w: expected float32 .*, got {jnp.dtype(dtype)}"
    refused(says, lambda: implicit()(narrow, TASKS))
    assert unrolled()(narrow, TASKS)[0]["w"].dtype == dtype


BATCHES = {
    "a pair": (((X, Y), (X, Y)), r"^tasks: .* got a tuple\. Hint: imaml\.Task\(\*tasks\)"),
    "a list of pairs": ([(X, Y), (X, Y)], "^tasks: .* got a list"),
    "a list of tasks": ([TASKS, TASKS], r"^tasks: .* got a list\. Hint: .*jnp\.stack"),
    "an array": (X, "^tasks: .* got a ArrayImpl"),
    "None": (None, "^tasks: .* got a NoneType"),
    "objects": (imaml.Task((np.full((4, 5), None), Y), (X, Y)), r"support/0: .*, got dtype object"),
    "texts": (imaml.Task((X, np.full((4, 5), "a")), (X, Y)), r"support/1: .*, got dtype <U1"),
    "a function": (imaml.Task((X, Y), (X, jnp.tanh)), "query/1: expected an array"),
    "lists of unequal lengths": (imaml.Task(([[1.0, 2.0], [3.0]], Y), (X, Y)), "same leading axis"),
    "other numbers of tasks": (imaml.Task((X, Y[:3]), (X, Y)), r"same leading axis, .* support/1\[3, 5\]"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", BATCHES)
def test_what_is_no_batch_of_tasks(case, method):
    tasks, says = BATCHES[case]
    refused(says, lambda: METHODS[method]()(theta(), tasks))


LOSSES = {
    "an outer loss of two arguments": (
        {"outer": lambda phi, batch: loss(phi, batch)},
        r"^method: query_loss: expected a function \(phi, theta, batch\), got <lambda>\(phi, batch\)",
    ),
    "an outer loss of four": (
        {"outer": lambda phi, theta, batch, more: 0.0},
        r"got <lambda>\(phi, theta, batch, more\)",
    ),
    "an inner loss of one": (
        {"inner_loss": lambda phi: 0.0},
        r"^loss: expected a function \(phi, batch\), got <lambda>\(phi\)",
    ),
    "an inner loss of three": ({"inner_loss": query_loss}, r"got query_loss\(phi, theta, batch\)"),
    "an inner loss with more": (
        {"inner_loss": lambda phi, batch: (loss(phi, batch), {})},
        "^loss: .* got one that returns a tuple. Hint: return the loss alone",
    ),
    "an outer loss with more": (
        {"outer": lambda phi, theta, batch: (loss(phi, batch), {})},
        "^query_loss: .* got one that returns a tuple",
    ),
    "a loss of each row": (
        {"inner_loss": lambda phi, batch: (batch[0] @ phi["w"] - batch[1]) ** 2},
        r"^loss: .* array of shape \(5,\)",
    ),
    "no function": ({"outer": "mse"}, "query_loss: expected a function.*, got 'mse'"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", LOSSES)
def test_losses(case, method):
    changes, says = LOSSES[case]
    refused(says, lambda: METHODS[method](**changes)(theta(), TASKS))


@pytest.mark.parametrize("case", LEAVES)
def test_training_says_the_same(case):
    leaf, says = LEAVES[case]
    waves = imaml.sinusoid()

    @jax.tree_util.register_static
    @dataclasses.dataclass(frozen=True)
    class Domain(type(waves)):
        def init(self, key):
            return {**super().init(key), "c": leaf}

    domain = Domain(waves.recipe)
    options = {"inner": imaml.GradientDescent(0.02, steps=1), "linear": imaml.CG(steps=1)}
    method = imaml.IMAML(domain.problem(0.5), domain.query_loss, **options)
    refused(rf"^train: theta: c: .*{says}", lambda: imaml.train(domain, method, steps=1, progress=False))
