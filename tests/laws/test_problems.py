"""What every kind of problem promises: equality by content, and that equal problems compile once."""

import functools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml

TRACES = []  # one entry each time a loss is traced


def loss(phi, batch):
    TRACES.append(1)
    return 0.5 * jnp.sum((phi - batch) ** 2)


def other(phi, batch):
    return jnp.sum(phi**2)


def cost(outputs, batch):
    return 0.5 * jnp.sum(outputs**2)


def three(phi, theta, batch):
    return loss(phi - theta, batch)


def rival(x, y, theta, batch):
    return -player(x, y, theta, batch)


def player(x, y, theta, batch):
    return jnp.sum(x * y)


def scaled(scale, phi, batch):
    return scale * loss(phi, batch)


@dataclass(frozen=True)
class Domain:
    """Two equal domains have equal methods."""

    scale: float = 1.0

    def loss(self, phi, batch):
        return self.scale * loss(phi, batch)

    def query_loss(self, phi, theta, batch):
        return self.loss(phi, batch)


class Network:
    """A loss that cannot be hashed."""

    __hash__ = None

    def __call__(self, phi, batch):
        return loss(phi, batch)


NETWORK = Network()

# Each makes a new problem of equal content every time.
EQUAL = {
    "proximal": lambda: imaml.proximal(loss, 0.5),
    "head": lambda: imaml.proximal(loss, 0.5, adapt=("head",), convex=True, lipschitz=1.0),
    "learned": lambda: imaml.proximal(loss, imaml.learned(0.5, per="dense")),
    "array": lambda: imaml.proximal(loss, np.full(3, 0.5)),
    "jax array": lambda: imaml.proximal(loss, jnp.full(3, 0.5)),
    "tree": lambda: imaml.proximal(loss, {"a": jnp.ones(3), "b": [0.5]}),
    "partial": lambda: imaml.proximal(functools.partial(scaled, 2.0), 0.5),
    "partial of an array": lambda: imaml.proximal(functools.partial(scaled, np.ones(())), 0.5),
    "bound method": lambda: imaml.proximal(Domain().loss, 0.5),
    "gauss-newton": lambda: imaml.proximal(imaml.composed(other, cost), 0.5, curvature="gauss-newton"),
    "least squares": lambda: imaml.least_squares(other, 0.5),
    "unhashable": lambda: imaml.proximal(NETWORK, 0.5),
    "plain": lambda: imaml.plain(loss),
    "equilibrium": lambda: imaml.equilibrium(loss, 0.5),
    "equilibrium without anchor": lambda: imaml.equilibrium(loss, None),
    "stationary": lambda: imaml.stationary(three),
    "fixed point": lambda: imaml.fixed_point(three),
    "game": lambda: imaml.game(player, player),
}
DIFFERENT = {
    "strength": imaml.proximal(loss, 0.6),
    "type of strength": imaml.proximal(loss, 1),
    "and of float": imaml.proximal(loss, 1.0),
    "entries of an array": imaml.proximal(loss, jnp.array([0.5, 0.5, 0.6])),
    "loss": imaml.proximal(other, 0.5),
    "declared convex": imaml.proximal(loss, 0.5, convex=True),
    "partial": imaml.proximal(functools.partial(scaled, 3.0), 0.5),
    "owner of the method": imaml.proximal(Domain(2.0).loss, 0.5),
    "another object": imaml.proximal(Network(), 0.5),
    "start": imaml.stationary(three, init=lambda theta, batch, key: theta),
    "order of players": imaml.game(player, rival),
}


@pytest.mark.parametrize("name", EQUAL)
def test_equal_content_is_equal_and_hashes_alike(name):
    first, second = EQUAL[name](), EQUAL[name]()
    assert first is not second
    assert first == second
    assert hash(first) == hash(second)
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_other_content_is_not_equal():
    problems = [make() for make in EQUAL.values()] + list(DIFFERENT.values())
    assert len(set(problems)) == len(problems)


@pytest.mark.parametrize("name", EQUAL)
def test_a_problem_is_a_tree_that_comes_back_equal(name):
    problem = EQUAL[name]()
    leaves, structure = jax.tree.flatten(problem)
    assert structure.unflatten(leaves) == problem
    assert jax.tree.leaves(problem) == jax.tree.leaves(problem.strength) or name in (
        "array",
        "jax array",
        "tree",
    )


def methods():
    return imaml.IMAML(
        imaml.proximal(loss, 0.5),
        Domain().query_loss,
        inner=imaml.GradientDescent(0.5, steps=3),
        linear=imaml.CG(steps=2),
        policy="skip",
    )


def test_three_equal_methods_compile_once():
    tasks, theta = imaml.Task(jnp.ones((2, 3)), jnp.zeros((2, 3))), jnp.zeros(3)
    step = jax.jit(lambda method, theta, tasks: method(theta, tasks)[0], static_argnums=0)
    first = step(methods(), theta, tasks)
    TRACES.clear()
    np.testing.assert_array_equal(step(methods(), theta, tasks), first)
    np.testing.assert_array_equal(step(methods(), theta, tasks), first)
    assert not TRACES  # nothing is traced again, so nothing is compiled
    step(replace(methods(), problem=imaml.proximal(loss, 0.6)), theta, tasks)
    assert TRACES


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("make", [EQUAL["proximal"], EQUAL["jax array"], EQUAL["bound method"]])
def test_three_equal_problems_compile_once(make, static):
    """Also as an argument that is a tree, whose strength is then traced."""
    inner, rule = imaml.GradientDescent(0.5, steps=3), imaml.implicit(imaml.CG(steps=2))
    solve = jax.jit(
        lambda problem, theta: imaml.solve(problem, theta, jnp.ones(3), inner=inner, rule=rule),
        static_argnums=0 if static else (),
    )
    solve(make(), jnp.zeros(3))
    TRACES.clear()
    solve(make(), jnp.zeros(3))
    solve(make(), jnp.zeros(3))
    assert not TRACES


def test_rules_and_methods_are_equal_by_content():
    make = lambda: imaml.Reptile(  # noqa: E731
        imaml.plain(loss), Domain().query_loss, inner=imaml.GradientDescent(0.1, steps=1)
    )
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != replace(make(), chunk=1)
    joint = lambda: replace(make(), rule=imaml.jointly(functools.partial(scaled, 2.0)))  # noqa: E731
    assert joint() == joint()
