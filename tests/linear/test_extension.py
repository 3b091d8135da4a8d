"""docs/extend/my_linear_solver.py is registered, passes the laws of linear solvers, and trains."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
import imaml.linear
from helpers.paths import ROOT
from imaml.core import recipes

FOLDER = Path(__file__).parent


def loaded(name, file):
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def extension(monkeypatch):
    """The module of the documentation, registered for one test."""
    monkeypatch.setattr(recipes, "_KINDS", dict(recipes._KINDS))
    monkeypatch.setattr(recipes, "_ROLES", {role: dict(kinds) for role, kinds in recipes._ROLES.items()})
    monkeypatch.setattr(recipes, "_FRESH", dict(recipes._FRESH))
    return loaded("my_linear_solver", ROOT / "docs" / "extend" / "my_linear_solver.py")


def test_it_passes_the_laws_by_being_registered(extension):
    laws = loaded("laws_of_linear_solvers", FOLDER.parent / "laws" / "test_linear_solvers.py")
    name, kind = "SteepestDescent", extension.SteepestDescent
    assert name in laws.CASES
    for case in [case for case in laws.table() if case[0] == name]:
        laws.test_it_solves_like_a_dense_solver(*case)
    for law in (
        laws.test_identity_and_zero,
        laws.test_what_is_not_finite_is_reported_and_never_returned,
        laws.test_a_batch_equals_its_tasks_alone_whatever_their_size,
        laws.test_a_first_guess_is_used_or_raises,
        laws.test_a_system_that_is_hard_is_solved_or_the_status_says_why_not,
        laws.test_no_loop_computes_its_condition_twice,
    ):
        law(name)
    for law in (
        laws.test_it_declares_what_it_accepts_and_refuses_the_rest_with_advice,
        laws.test_bad_limits_raise_when_the_recipe_is_made,
        laws.test_a_system_that_does_not_fit_raises,
        laws.test_it_goes_to_json_and_back,
    ):
        law(kind)
    with jax.numpy_dtype_promotion("strict"):
        for dtype in laws.DTYPES:
            laws.test_it_promotes_no_dtype(name, dtype)
    found = kind(steps=5)(lambda x: -x, jnp.ones(2))
    assert found.status.ending is imaml.Ending.BREAKDOWN
    assert int(found.stats.steps) == 0


def test_it_trains_one_step(extension):
    """The meta-gradient through it is that by the dense solve, and a step follows it."""
    problem = imaml.proximal(lambda phi, x: 0.5 * jnp.mean((phi - x) ** 2), 1.0, convex=True)
    judge = lambda phi, theta, x: 0.5 * jnp.mean((phi - x) ** 2)  # noqa: E731
    tasks = imaml.Task(jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3)))
    inner = imaml.GradientDescent(0.5, steps=30)
    solvers = extension.SteepestDescent(steps=30), imaml.Dense()
    ours, dense = (
        jax.jit(imaml.IMAML(problem, judge, inner=inner, linear=linear))(jnp.zeros(3), tasks)[0]
        for linear in solvers
    )
    np.testing.assert_allclose(ours, dense, rtol=1e-10)
    theta = -0.1 * ours
    assert np.isfinite(theta).all()
    assert np.any(theta)


def test_the_table_of_solvers_has_them_all():
    recipes.register_all(imaml.linear)
    table = (ROOT / "docs" / "methods.md").read_text()
    missing = [name for name in recipes.kinds_of("linear") if f"| `{name}` |" not in table]
    assert not missing, f"docs/methods.md: no row for {missing}"
