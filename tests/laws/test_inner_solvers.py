"""What holds for every inner solver on every problem that it accepts: solved, or a status says why not.

A new solver is tested by being registered with `@recipe("inner")`; others are in the table `OTHERS`. The
reference is Newton's method with a dense Jacobian, from the same start.
"""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import imaml
import imaml.inner
from helpers.marks import slow_after_first
from imaml.core.recipes import fresh, from_json, kinds_of, register_all, to_json

register_all(imaml.inner)
KINDS = {name: kind for name, kind in kinds_of("inner").items() if kind.solves}
OTHER_KINDS = {
    name: kind for name, kind in kinds_of("inner").items() if not kind.solves
}  # such as Prototypes

RANDOM = np.random.default_rng(4)
INPUTS, TARGETS = jnp.asarray(RANDOM.normal(size=(12, 3))), jnp.asarray(RANDOM.normal(size=12))
BATCH = (INPUTS, TARGETS)
VECTOR = jnp.asarray(RANDOM.normal(size=3))
NETWORK = {"body": jnp.asarray(RANDOM.normal(size=(3, 4))), "head": jnp.asarray(RANDOM.normal(size=4))}


def misfit(phi, batch):
    """Residuals of a linear model, for a mean over rows."""
    return (batch[0] @ phi - batch[1]) / np.sqrt(12)


def bent_misfit(phi, batch):
    return (jnp.tanh(batch[0] @ phi["body"]) @ phi["head"] - batch[1]) / np.sqrt(12)


def ridge(phi, batch):
    return 0.5 * jnp.mean((batch[0] @ phi - batch[1]) ** 2)


def logistic(phi, batch):
    scores = batch[0] @ phi
    return jnp.mean(jnp.logaddexp(0, scores) - (batch[1] > 0) * scores)


def network(phi, batch):
    return 0.5 * jnp.mean((jnp.tanh(batch[0] @ phi["body"]) @ phi["head"] - batch[1]) ** 2)


def update(phi, theta, batch):
    return 0.5 * jnp.tanh(phi) + 0.3 * theta + 0.1 * batch[0].mean(0)


PROBLEMS = {  # problem, start
    "ridge": (imaml.proximal(ridge, 0.5, convex=True), VECTOR),
    "logistic": (imaml.proximal(logistic, 0.5, convex=True), VECTOR),
    "network": (imaml.proximal(network, 0.5), NETWORK),
    "head only": (imaml.proximal(network, 0.5, "head"), NETWORK),
    "strength a leaf": (imaml.proximal(network, {"body": 2.0, "head": 0.5}), NETWORK),
    "least squares": (imaml.least_squares(misfit, 0.5), VECTOR),
    "least squares of a network": (imaml.least_squares(bent_misfit, 0.5), NETWORK),
    "stationary": (
        imaml.stationary(
            lambda phi, theta, batch: logistic(phi, batch) + jnp.sum((phi - theta) ** 4 + phi**2)
        ),
        VECTOR,
    ),
    "fixed point": (imaml.fixed_point(update), VECTOR),
    "game": (
        imaml.game(
            lambda x, y, theta, batch: 0.5 * jnp.sum((x - theta[0]) ** 2) + 0.5 * x @ y,
            lambda x, y, theta, batch: 0.5 * jnp.sum((y - theta[1]) ** 2) - 0.5 * x @ y,
        ),
        (VECTOR, VECTOR[::-1]),
    ),
}
MINIMA = [name for name in PROBLEMS if name not in ("fixed point", "game")]
MEANS = ["ridge", "logistic", "network", "head only", "strength a leaf"]
TIGHT, LOOSE = 1e-9, 1e-6  # LOOSE: line searches see values of the objective, so half of the digits


def by_scipy(objective, x0):
    return scipy.optimize.minimize(objective, x0, jac=True, options={"gtol": 1e-9}).x


def anderson(problem, theta, batch, phi0):
    """A user's own algorithm: steps against F, each mixed with the last (Anderson, depth 1)."""
    start, unravel = ravel_pytree(phi0)
    step = lambda x: -0.1 * ravel_pytree(problem.residual(unravel(x), theta, batch))[0]  # noqa: E731

    def mix(_, state):
        x, f, old_x, old_f = state
        change = f - old_f
        share = change @ f / jnp.maximum(change @ change, 1e-30)
        new = x + f - share * (x - old_x + change)
        return new, step(new), x, f

    begin = start + step(start)
    return unravel(jax.lax.fori_loop(0, 2000, mix, (begin, step(begin), start, step(start)))[0])


OTHERS = {  # make(tolerance), tolerance, the problems it accepts
    "Nesterov": (
        lambda t: imaml.Descent(optax.sgd(0.1, momentum=0.7, nesterov=True), tolerance=t),
        TIGHT,
        list(PROBLEMS),
    ),
    "momentum": (lambda t: imaml.Descent(optax.sgd(0.1, momentum=0.5), tolerance=t), TIGHT, list(PROBLEMS)),
    "Adam": (lambda t: imaml.Descent(optax.adam(0.02), tolerance=t), LOOSE, MINIMA),
    "SVRG": (lambda t: imaml.SVRG(0.05, rows=3, tolerance=t), TIGHT, MEANS),
    "Newton": (
        lambda t: imaml.Newton(tolerance=t),
        TIGHT,
        ["ridge", "logistic", "least squares", "stationary", "fixed point", "game"],
    ),
    "L-BFGS": (lambda t: imaml.LBFGS(tolerance=t), LOOSE, MINIMA),
    "nonlinear CG": (lambda t: imaml.NonlinearCG(tolerance=t), LOOSE, MINIMA),
    "Levenberg-Marquardt": (
        lambda t: imaml.LevenbergMarquardt(tolerance=t),
        TIGHT,
        ["least squares", "least squares of a network"],
    ),
    "SciPy, outside JAX": (lambda t: imaml.External(by_scipy, tolerance=t), LOOSE, MINIMA),
    "one's own": (lambda t: imaml.Custom(anderson, tolerance=t), TIGHT, ["ridge", "logistic", "game"]),
}  # fmt: skip


def accepts(solver, name):
    """Whether a solver takes a problem; one that does not says so when it is called."""
    problem, theta = PROBLEMS[name]
    try:
        jax.eval_shape(lambda: solver(problem, theta, BATCH))
    except imaml.StructureError:
        return False
    return True


def registered():
    """Every registered solver, to a tolerance, on the problems that it does not refuse."""
    for name, kind in sorted(KINDS.items()):
        if name in OTHERS:  # which says what it is accurate on, such as Newton's method without a line search
            continue
        rate = {"learning_rate": 0.02} if hasattr(fresh(kind), "learning_rate") else {}
        make = functools.partial(dataclasses.replace, fresh(kind), steps=None, **rate)
        make = lambda t, make=make: make(tolerance=t)  # noqa: E731
        yield name, (make, TIGHT, [problem for problem in PROBLEMS if accepts(make(TIGHT), problem)])


SOLVERS = {**dict(registered()), **OTHERS}
CASES = [(solver, problem) for solver, (_, _, accepted) in SOLVERS.items() for problem in accepted]


@functools.cache
def reference(name):
    problem, theta = PROBLEMS[name]
    start, unravel = ravel_pytree(problem.init(theta, BATCH))
    slope = jax.jit(lambda x: ravel_pytree(problem.residual(unravel(x), theta, BATCH))[0])
    value = lambda x: problem.objective(unravel(x), theta, BATCH)  # noqa: E731
    curved = jax.jit(jax.jacfwd(slope) if not problem.has_objective else jax.hessian(value))
    phi = start
    for _ in range(400):  # close enough for Newton's method to stay in the basin that descent finds
        phi = phi - 0.1 * slope(phi)
    for _ in range(60):
        phi = phi - jnp.linalg.solve(curved(phi), slope(phi))
    assert float(jnp.linalg.norm(slope(phi))) < 1e-12
    return np.asarray(phi), float(np.linalg.svd(curved(phi))[1].min())


@pytest.mark.parametrize(("solver", "name"), CASES)
def test_it_reaches_the_dense_solution(solver, name):
    make, tolerance, _ = SOLVERS[solver]
    problem, theta = PROBLEMS[name]
    found = jax.jit(lambda: make(tolerance)(problem, theta, BATCH))()
    assert found.status.ending == imaml.Ending.CONVERGED
    expected, least = reference(name)
    phi = np.asarray(ravel_pytree(found.value)[0])
    # |phi - phi*| <= |F| / the least curvature, to first order.
    assert np.linalg.norm(phi - expected) <= 1.1 * tolerance / least
    slope = ravel_pytree(problem.residual(found.value, theta, BATCH))[0]
    np.testing.assert_allclose(found.stats.residual, np.linalg.norm(slope), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "name"), [c for c in CASES if c[1] in ("network", "game", "least squares")]
)
def test_starved_of_steps_it_says_so(solver, name):
    """One step, or a tolerance below rounding, is not enough; the residual is that at what came out."""
    problem, theta = PROBLEMS[name]
    make, _, _ = SOLVERS[solver]
    starved = make(1e-15)
    for field, few in (("steps", 1), ("epochs", 1)):  # the one outside has neither
        if field in {f.name for f in dataclasses.fields(starved)}:
            starved = type(starved)(**{**vars(starved), field: few})
    found = jax.jit(lambda: starved(problem, theta, BATCH))()
    if solver.startswith("Newton") and name != "network":  # one step is enough where F is linear, to rounding
        return
    assert found.status.ending in (imaml.Ending.OUT_OF_STEPS, imaml.Ending.STAGNATED)
    slope = ravel_pytree(problem.residual(found.value, theta, BATCH))[0]
    np.testing.assert_allclose(found.stats.residual, np.linalg.norm(slope), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("solver", slow_after_first(SOLVERS))
def test_tasks_of_few_and_of_many_steps_in_one_batch(solver):
    """Under vmap each task gets what it gets alone; the implicit gradient is the dense one for all."""
    make, tolerance, accepted = SOLVERS[solver]
    problem, theta = PROBLEMS[accepted[0] if solver == "Levenberg-Marquardt" else "ridge"]
    inputs = jnp.stack([0.05 * INPUTS, 1.5 * INPUTS])  # nearly nothing to learn, and a badly scaled task
    targets = jnp.stack([0.05 * TARGETS, TARGETS])
    solve = lambda batch: make(tolerance)(problem, theta, batch)  # noqa: E731
    together = jax.jit(jax.vmap(solve))((inputs, targets))
    assert (together.status.code == imaml.Ending.CONVERGED).all()
    one = jax.jit(solve)
    for i in range(2):
        alone = one((inputs[i], targets[i]))
        np.testing.assert_allclose(together.value[i], alone.value, atol=1e-10)
        assert int(together.stats.steps[i]) == int(alone.stats.steps)
    tasks = imaml.Task((inputs, targets), (inputs, targets + 1))
    query_loss = lambda phi, theta, batch: ridge(phi, batch)  # noqa: E731
    exact = imaml.GradientDescent(0.1, tolerance=1e-13)
    gradients = [
        jax.jit(imaml.IMAML(problem, query_loss, inner=inner, linear=imaml.Dense()))(theta, tasks)[0]
        for inner in (make(tolerance), exact)
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-5 if tolerance == LOOSE else 1e-8)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_registered_solver_goes_to_json_and_back_and_refuses_bad_limits(kind):
    solver = fresh(kind)
    assert from_json(json.loads(json.dumps(to_json(solver)))) == solver
    assert isinstance(solver.reversible, bool)
    for bad in ({"steps": 0}, {"steps": True}, {"tolerance": -1.0}, {"tolerance": float("nan")}):
        with pytest.raises(imaml.ConfigError, match=rf"{kind.__name__}: {next(iter(bad))}: expected"):
            dataclasses.replace(solver, **bad)
    with pytest.raises(imaml.ConfigError, match=r"steps=, tolerance= .*got neither"):
        dataclasses.replace(solver, steps=None, tolerance=None)


@pytest.mark.parametrize("kind", OTHER_KINDS.values(), ids=OTHER_KINDS)
def test_one_that_solves_nothing_goes_to_json_and_is_refused_by_the_implicit_rule(kind):
    solver = fresh(kind)
    assert from_json(json.loads(json.dumps(to_json(solver)))) == solver
    with pytest.raises(imaml.StructureError, match="expected a solver of the inner problem"):
        imaml.IMAML(PROBLEMS["ridge"][0], lambda phi, theta, batch: 0.0, inner=solver, linear=imaml.Dense())


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_registered_solver_promotes_no_dtype(kind):
    problem, theta = PROBLEMS["ridge"]
    batch, start = jax.tree.map(lambda leaf: leaf.astype("float32"), (BATCH, theta))
    for limits in ({"steps": 2}, {"steps": None, "tolerance": 0.1}):
        solver = dataclasses.replace(fresh(kind), **limits)
        solution = jax.eval_shape(lambda s=solver: s(problem, start, batch))
        assert solution.value.dtype == solution.stats.residual.dtype == "float32"


def test_minibatches_are_unbiased_and_reshuffled():
    """The mean of SGD's first steps over all rows is a step of gradient descent; keys change the order."""
    problem, theta = PROBLEMS["logistic"]
    one_row = imaml.SGD(0.1, rows=1, epochs=1)
    row = lambda i: jax.tree.map(lambda x: x[i : i + 1], BATCH)  # noqa: E731
    steps = [imaml.GradientDescent(0.1, steps=1)(problem, theta, row(i)) for i in range(12)]
    whole = imaml.GradientDescent(0.1, steps=1)(problem, theta, BATCH)
    np.testing.assert_allclose(np.mean([s.value for s in steps], axis=0), whole.value, rtol=1e-12)
    first, again, other = (one_row(problem, theta, BATCH, key=jax.random.key(k)).value for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


def test_an_epoch_of_sgd_and_of_svrg_by_hand():
    problem, theta = PROBLEMS["ridge"]
    slope = lambda p, b: problem.residual(p, theta, b)  # noqa: E731
    order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(0), 0), 12))
    sgd = svrg = theta
    for i, rows in enumerate(order.reshape(3, 4)):
        part = (INPUTS[rows], TARGETS[rows])
        sgd = sgd - 0.1 / (1 + 0.5 * i) * slope(sgd, part)
        svrg = svrg - 0.1 * (slope(svrg, part) - slope(theta, part) + slope(theta, BATCH))
    found = imaml.SGD(0.1, rows=4, epochs=1, decay=0.5)(problem, theta, BATCH)
    np.testing.assert_allclose(found.value, sgd, rtol=1e-13)
    assert int(found.stats.steps) == 3
    np.testing.assert_allclose(
        imaml.SVRG(0.1, rows=4, epochs=1)(problem, theta, BATCH).value, svrg, rtol=1e-13
    )


def test_sgd_stops_in_a_ball_and_says_so_and_decay_shrinks_it():
    problem, theta = PROBLEMS["logistic"]
    expected, _ = reference("logistic")
    off = {}
    for decay in (0.0, 0.05):
        found = jax.jit(lambda d=decay: imaml.SGD(0.3, rows=2, epochs=300, decay=d)(problem, theta, BATCH))()
        off[decay] = np.linalg.norm(found.value - expected)
        assert found.status.ending == imaml.Ending.STEPS_DONE
        assert float(found.stats.residual) > 1e-5
    assert off[0.05] < 0.3 * off[0.0]
    stuck = imaml.SGD(0.3, rows=2, epochs=20, tolerance=1e-8)(problem, theta, BATCH)
    assert stuck.status.ending == imaml.Ending.OUT_OF_STEPS


REFUSED = {
    "SGD without an end": (lambda: imaml.SGD(0.1, rows=1), "SGD: expected epochs=, tolerance="),
    "no memory": (lambda: imaml.LBFGS(steps=1, memory=0), "LBFGS: memory: expected a whole number"),
    "no rows": (lambda: imaml.SVRG(0.1, rows=0, epochs=1), "SVRG: rows: expected a whole number"),
    "more rows than there are": (
        lambda: imaml.SGD(0.1, rows=13, epochs=1)(PROBLEMS["ridge"][0], VECTOR, BATCH),
        "rows: expected at most 12, the rows of the support set, got 13",
    ),
    "rows of no table": (
        lambda: imaml.SGD(0.1, rows=1, epochs=1)(PROBLEMS["ridge"][0], VECTOR, (INPUTS, TARGETS[:5])),
        "the leading axis of each of its arrays",
    ),
    "L-BFGS of a game": (
        lambda: imaml.LBFGS(steps=3)(*PROBLEMS["game"], BATCH), "minimises an objective, got game"
    ),
    "Levenberg-Marquardt of any loss": (
        lambda: imaml.LevenbergMarquardt(steps=3)(*PROBLEMS["logistic"], BATCH), "made by least_squares"
    ),
    "an external fixed point": (
        lambda: imaml.External(by_scipy, tolerance=1e-3)(*PROBLEMS["fixed point"], BATCH),
        "External: expected a problem that minimises an objective",
    ),
    "an external number": (lambda: imaml.External(3, tolerance=1e-3), "expected a function"),
    "a number of one's own": (lambda: imaml.Custom(3, tolerance=1e-3), "expected a function"),
    "one's own answer of another shape": (
        lambda: imaml.Custom(lambda *given: jnp.zeros(2), tolerance=1e-3)(*PROBLEMS["ridge"], BATCH),
        "shaped like phi0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    make, says = REFUSED[name]
    with pytest.raises((imaml.ConfigError, imaml.StructureError), match=says):
        make()


def test_unrolling_refuses_what_has_no_reverse_mode():
    for inner in (imaml.LBFGS(steps=3), imaml.External(by_scipy, tolerance=1e-3)):
        with pytest.raises(
            imaml.StructureError, match="expected a fixed number of steps that have a reverse mode"
        ):
            imaml.MAML(imaml.plain(ridge), lambda phi, theta, batch: 0.0, inner=inner)


def conditions(jaxpr):
    """The primitives in the conditions of all loops of a jaxpr, however deep."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            found |= {inner.primitive.name for inner in equation.params["cond_jaxpr"].jaxpr.eqns}
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                part = getattr(part, "jaxpr", part)
                found |= conditions(part) if hasattr(part, "eqns") else set()
    return found


TRIVIAL = {"reduce_or", "reduce_max", "lt", "convert_element_type"}  # "any task", or the count of a fori_loop


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_loop_computes_its_condition_twice(solver):
    """Under vmap a condition that computes is computed once more in the body, perhaps rounded otherwise."""
    make, tolerance, accepted = SOLVERS[solver]
    problem, theta = PROBLEMS[accepted[0]]
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), BATCH)
    solve = jax.vmap(lambda b: make(tolerance)(problem, theta, b).value)
    assert conditions(jax.make_jaxpr(solve)(batch).jaxpr) <= TRIVIAL


def test_what_these_tests_look_for_is_found():
    plain = lambda x: jax.lax.while_loop(lambda x: x @ x > 0.1, lambda x: x / 2, x)  # noqa: E731
    assert "dot_general" in conditions(jax.make_jaxpr(jax.vmap(plain))(jnp.ones((2, 3))).jaxpr)


EDGE = """
import jax, imaml
from imaml.config.methods import Method
from imaml.config.optimiser import outer
from imaml.training.step import initial_state, make_step

domain, newton = imaml.sinusoid(), imaml.NewtonCG(steps=5, linear=imaml.CG(steps=8))
method = Method(strength=0.5, inner=newton, linear=imaml.CG(steps=8), curvature="gauss-newton").build(domain)
chosen = outer(imaml.Optimiser("adam", 1e-3, clip=1.0), 1500)
init, key = jax.random.split(jax.random.key(0))
state, step = initial_state(domain, method, chosen, init), make_step(method, chosen, 25)
for _ in range(5):
    state, report = step(domain, state, key)
print(int(state["step"]))
"""


@pytest.mark.slow
def test_a_line_search_at_the_edge_of_rounding_ends():
    """The very run that hung in its third step; float32 and optimised as users have it, so on its own."""
    done = subprocess.run([sys.executable, "-c", EDGE], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "5", done.stderr
