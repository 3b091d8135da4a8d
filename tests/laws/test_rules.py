"""Every rule that claims exactness, against the closed form, the dense formula and central differences."""

import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import imaml
import imaml.bayes
import imaml.meta
from helpers.paths import ROOT

EXTEND = ROOT / "docs" / "extend"


def loaded(path):
    """The module in a file of the documents."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look up the names in annotations
    spec.loader.exec_module(module)
    return module


MY_METHOD = loaded(EXTEND / "my_method.py")
RANDOM = np.random.default_rng(0)
SHAPES = {"body": (2, 3), "head": (3,)}
THETA = {name: jnp.asarray(RANDOM.normal(size=shape)) for name, shape in SHAPES.items()}
SUPPORT, QUERY = ((jnp.asarray(RANDOM.normal(size=(6, 2))), jnp.asarray(RANDOM.normal(size=6))) for _ in "12")
TASK = imaml.Task(SUPPORT, QUERY)
STRENGTH = 1.5


def linear_loss(phi, batch):
    inputs, targets = batch
    return 0.5 * jnp.mean((inputs @ phi - targets) ** 2)


def network_loss(phi, batch):
    inputs, targets = batch
    return 0.5 * jnp.mean((jnp.tanh(inputs @ phi["body"]) @ phi["head"] - targets) ** 2)


def pull(phi, theta):
    """A direct term: the query loss depends on theta as well."""
    return 0.1 * jnp.sum(ravel_pytree(phi)[0] * ravel_pytree(theta)[0])


PROBLEMS = {
    "linear": (imaml.proximal(linear_loss, STRENGTH), linear_loss, jnp.asarray(RANDOM.normal(size=2))),
    "network": (imaml.proximal(network_loss, STRENGTH), network_loss, THETA),
    "head": (imaml.proximal(network_loss, STRENGTH, adapt="head"), network_loss, THETA),
}
SOLVED, ROUGH = imaml.GradientDescent(0.3, tolerance=1e-13), imaml.GradientDescent(0.3, steps=25)
TIGHT = imaml.CG(tolerance=1e-13)
# The rule, the inner solver, and how far off the gradient may be, relative to its norm.
EXACT = {
    "implicit": (imaml.implicit(TIGHT), SOLVED, 1e-9),
    "implicit, dense": (imaml.implicit(imaml.Dense()), SOLVED, 1e-9),
    "implicit, corrected": (imaml.implicit(TIGHT, correct=True), imaml.GradientDescent(0.3, steps=60), 1e-6),
    "implicit, to an accuracy": (imaml.implicit(accuracy=1e-7), ROUGH, 1e-7),
    "one step": (imaml.one_step(imaml.Newton(steps=1, linear=TIGHT)), SOLVED, 1e-9),
    "unrolled": (imaml.unrolled(), imaml.GradientDescent(0.3, steps=300), 1e-9),
    "the one in the documents": (MY_METHOD.Contrastive(1e-3), SOLVED, 1e-5),
}
# Rules that compute something else than the gradient of the query loss at the solution.
OTHERS = {
    "FirstOrder": "an approximation",
    "AsReleased": "the published code's system, not the paper's",
    "Displacement": "no loss's gradient",
    "Envelope": "the gradient of the inner optimum's value; below",
    "Jointly": "the gradient of a loss without adaptation; below",
    "ByEvidence": "the gradient of the evidence: test_bayesian",
    "Averaged": "the gradient of an average over a posterior: test_bayesian",
    "ByMoments": "a step of expectation-maximisation: test_bayesian",
}


def newton(problem, theta, flat, unravel):
    """The solution by Newton steps with whole matrices, differentiable."""
    residual = lambda p: ravel_pytree(problem.residual(unravel(p), theta, SUPPORT))[0]  # noqa: E731
    for _ in range(8):
        flat = flat - jnp.linalg.solve(jax.jacfwd(residual)(flat), residual(flat))
    return flat


@functools.cache
def oracle(name):
    """The exact gradient by the dense formula, along with central differences of the solved query loss."""
    problem, loss, theta = PROBLEMS[name]
    start, unravel = ravel_pytree(problem.split(theta))
    vector, as_theta = ravel_pytree(theta)

    def value(flat, vector):
        theta = as_theta(vector)
        phi = problem.full(unravel(flat), theta)
        return loss(phi, QUERY) + pull(phi, theta)

    def solved(vector):
        return newton(problem, as_theta(vector), start, unravel)

    @jax.jit
    def both(vector):
        flat = solved(vector)
        residual = lambda p, t: ravel_pytree(problem.residual(unravel(p), as_theta(t), SUPPORT))[0]  # noqa: E731
        left, right = jax.jacfwd(residual, (0, 1))(flat, vector)
        slope, direct = jax.grad(value, (0, 1))(flat, vector)
        dense = direct - right.T @ jnp.linalg.solve(left.T, slope)
        moved = jax.vmap(lambda v: value(solved(v), v))
        steps = 1e-5 * jnp.eye(vector.size)
        return dense, (moved(vector + steps) - moved(vector - steps)) / 2e-5

    with jax.numpy_rank_promotion("allow"):
        return tuple(np.asarray(part) for part in both(vector))


@pytest.mark.slow
def test_the_dense_formula_is_the_closed_form_and_central_differences():
    (x, y), (q, z) = SUPPORT, QUERY
    theta = PROBLEMS["linear"][2]
    inverse = np.linalg.inv(x.T @ x / 6 + STRENGTH * np.eye(2))
    phi = inverse @ (x.T @ y / 6 + STRENGTH * theta)
    slope = q.T @ (q @ phi - z) / 6 + 0.1 * theta
    np.testing.assert_allclose(
        oracle("linear")[0], STRENGTH * inverse @ slope + 0.1 * phi, rtol=1e-12, atol=1e-13
    )
    for name in PROBLEMS:
        dense, differences = oracle(name)
        np.testing.assert_allclose(differences, dense, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("rule", EXACT)
def test_an_exact_rule_gives_the_exact_gradient(rule, name):
    how, inner, allowed = EXACT[rule]
    problem, loss, theta = PROBLEMS[name]
    method = imaml.MetaGradient(
        problem, lambda phi, theta, batch: loss(phi, batch) + pull(phi, theta), inner=inner, rule=how
    )
    tasks = jax.tree.map(lambda leaf: leaf[None], TASK)
    gradient, metrics = jax.jit(lambda theta: method(theta, tasks, jax.random.key(0)))(theta)
    exact = oracle(name)[0]
    assert np.linalg.norm(ravel_pytree(gradient)[0] - exact) <= allowed * np.linalg.norm(exact)
    assert metrics.used.all()


def test_every_rule_is_in_a_table():
    found = set()
    for package in (imaml.meta, imaml.bayes):
        for module in pkgutil.iter_modules(package.__path__):
            members = vars(importlib.import_module(f"{package.__name__}.{module.name}")).values()
            found |= {c.__name__ for c in members if inspect.isclass(c) and hasattr(c, "task_gradient")}
    listed = {type(rule).__name__ for rule, _, _ in EXACT.values()} | set(OTHERS)
    bases = {"TaskRule", "Differentiated", "OnAllData"}
    assert found - bases == listed - {"Contrastive"}


def test_the_envelope_is_the_gradient_of_the_optimum_s_value():
    problem, loss, theta = PROBLEMS["head"]
    start, unravel = ravel_pytree(problem.split(theta))
    whole = lambda support, query: support  # noqa: E731
    method = imaml.MetaGradient(
        problem, lambda phi, theta, batch: loss(phi, batch), inner=SOLVED, rule=imaml.envelope(whole)
    )

    def value(theta):
        return problem.objective(unravel(newton(problem, theta, start, unravel)), theta, SUPPORT)

    tasks = jax.tree.map(lambda leaf: leaf[None], TASK)
    found = jax.jit(lambda theta: method(theta, tasks)[0])(theta)
    expected = jax.jit(jax.grad(value))(theta)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), found, expected)


def test_a_joint_loss_is_differentiated_on_all_of_a_task_s_data():
    method = imaml.MetaGradient(
        PROBLEMS["network"][0],
        lambda phi, theta, batch: 0.0,
        inner=SOLVED,
        rule=imaml.jointly(network_loss),
    )
    found = method(THETA, jax.tree.map(lambda leaf: leaf[None], TASK))[0]
    expected = jax.grad(network_loss)(THETA, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *TASK))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("ranks_mixed")
def test_the_file_in_the_documents_trains(capsys):
    runpy.run_path(str(EXTEND / "my_method.py"), run_name="__main__")
    assert "10 tasks" in capsys.readouterr().out


def test_the_page_shows_the_file():
    page, file = ((EXTEND / name).read_text() for name in ("method.md", "my_method.py"))
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    assert len(blocks) >= 4
    assert all(block in file for block in blocks)
    outer = lambda phi, theta, batch: network_loss(phi, batch)  # noqa: E731
    with pytest.raises(imaml.StructureError, match="Contrastive: problem: expected one with an objective"):
        MY_METHOD.contrastive_method(imaml.plain(network_loss), outer, inner=SOLVED)
