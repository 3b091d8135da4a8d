"""The degree of a program as a polynomial, read from its jaxpr."""

import math

import jax
import jax.numpy as jnp
import pytest

import imaml
from imaml.meta.polynomial import degree_of

MATRIX, PLACES = jnp.arange(6.0).reshape(2, 3), jnp.array([2, 0])
KERNEL = jnp.ones((2, 1, 3))


def convolved(x):
    return jax.lax.conv_general_dilated(x[None, None], KERNEL, (1,), "VALID")


def through_ref(x):
    ref = jax.new_ref(jnp.zeros(3))
    ref[...] = x
    return jnp.sin(ref[...])


@jax.custom_jvp
def clipped(x):
    return 2 * x


clipped.defjvp(lambda primals, tangents: (2 * primals[0], 0 * tangents[0]))

POLYNOMIALS = {
    "constant": (lambda x: 0 * jnp.tanh(MATRIX), 0),
    "a derivative that is constant": (jax.grad(lambda x: jnp.sum(3 * x)), 0),
    "affine": (lambda x: 1 - MATRIX @ x / 7, 1),
    "structure": (lambda x: jnp.concatenate([x[::-1], x[:2], jnp.pad(x, 1)]).reshape(5, 2).T, 1),
    "constant places": (lambda x: x[PLACES], 1),
    "added at constant places": (lambda x: jnp.zeros(3).at[PLACES].add(x[:2]), 1),
    "a constant choice": (lambda x: jnp.where(jnp.arange(3) > 0, x, 2 * x), 1),
    "a convolution": (convolved, 1),
    "jitted": (jax.jit(lambda x: 2 * jax.jit(jnp.negative)(x)), 1),
    "a checkpoint": (jax.checkpoint(lambda x: 2 * x), 1),
    "quadratic": (lambda x: jnp.sum(jnp.square(MATRIX @ x)), 2),
    "cancelled, which is not seen": (lambda x: x * x - x * x, 2),
    "a product of powers": (lambda x: x**3 * x @ x, 5),
    "tuples have the largest": (lambda x: (x, x * x), 2),
}
NONE = {
    "tanh": jnp.tanh,
    "a norm": jnp.linalg.norm,
    "a norm's square": lambda x: jnp.linalg.norm(x) ** 2,
    "the largest": jnp.max,
    "a choice by x": lambda x: jnp.where(x > 0, x, 2 * x),
    "relu": jax.nn.relu,
    "its derivative": jax.grad(lambda x: jnp.sum(jax.nn.relu(x))),
    "a negative power": lambda x: x**-1,
    "divided by x": lambda x: 1 / x,
    "places by x": lambda x: jnp.arange(3.0)[x.astype(int)],
    "rounded": lambda x: x.astype(int).astype(float),
    "a loop": lambda x: jax.lax.fori_loop(0, 2, lambda _, y: 2 * y, x),
    "a stopped derivative": jax.lax.stop_gradient,
    "a derivative of its own": clipped,
    "a mutable array": through_ref,
    "its content is a constant": lambda x: 0 * through_ref(x),
    "a callback": lambda x: jax.pure_callback(lambda x: x, x, x),
    "a coarser dtype": lambda x: x.astype(jnp.bfloat16).astype(float),
    "a coarser product": lambda x: jnp.dot(MATRIX, x, preferred_element_type=jnp.float32),
    "a function at a place": lambda x: x.at[0].apply(jnp.sin),
}


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_the_degree_is_at_most_what_the_program_says(name):
    function, degree = POLYNOMIALS[name]
    assert degree_of(function, jnp.ones(3)) == degree


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_polynomial_or_not_recognised_has_no_degree(name):
    assert degree_of(NONE[name], jnp.ones(3)) == math.inf


def test_what_a_function_closes_over_is_constant_also_while_it_is_traced():
    def traced(scale, x):
        return degree_of(lambda x: jnp.tanh(scale) * x, x) + 0 * scale

    assert jax.jit(traced)(2.0, jnp.ones(3)) == 1
    assert jax.vmap(traced)(jnp.ones(2), jnp.ones((2, 3))).tolist() == [1, 1]


@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
def test_the_residual_of_a_linear_model_is_affine(curvature):
    loss = imaml.composed(lambda phi, batch: batch[0] @ phi, lambda z, batch: jnp.mean((z - batch[1]) ** 2))
    problem = imaml.proximal(loss, 0.3, curvature=curvature)
    batch = (MATRIX, jnp.ones(2))
    assert degree_of(lambda phi: problem.slope(phi, jnp.zeros(3), batch), jnp.ones(3)) == 1
    bent = imaml.proximal(lambda phi, batch: loss(phi * phi, batch), 0.3)
    assert degree_of(lambda phi: bent.slope(phi, jnp.zeros(3), batch), jnp.ones(3)) > 1
