"""What is said of a meta-gradient's error, beside the true error by a dense solve."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh

import imaml
from helpers.marks import slow_after_first
from imaml.config.methods import Method
from imaml.config.overrides import override
from imaml.config.run import Config
from imaml.core.recipes import from_json, to_json
from imaml.core.solution import Certification
from imaml.linear.lanczos import lanczos, norm_bound, ritz, share_unseen, smallest_bound
from imaml.meta.estimate import error_estimate
from imaml.meta.system import Case, outer_loss_of
from imaml.training.journal import Journal, read_events

RANDOM = np.random.default_rng(0)
SIZE = 40
TURN = np.linalg.qr(RANDOM.normal(size=(SIZE, SIZE)))[0]
EIGENVALUES = np.geomspace(0.01, 10, SIZE)
MATRIX = (TURN * EIGENVALUES) @ TURN.T
PRODUCT = lambda v: jnp.asarray(MATRIX) @ v  # noqa: E731


def test_lanczos_finds_both_ends_and_stops_where_the_space_is_exhausted():
    start = jnp.asarray(RANDOM.normal(size=SIZE))
    np.testing.assert_allclose(lanczos(PRODUCT, start, SIZE), EIGENVALUES[[0, -1]], atol=1e-12)
    few = jnp.asarray(TURN[:, 3] + TURN[:, 30])  # a space of two dimensions
    np.testing.assert_allclose(lanczos(PRODUCT, few, 10), EIGENVALUES[[3, 30]], atol=1e-12)


@pytest.mark.slow
def test_ritz_values_of_conjugate_gradients_are_those_of_lanczos():
    """From the same start, after the same number of steps (Golub and Van Loan, section 11.3.5)."""
    start = jnp.asarray(RANDOM.normal(size=SIZE))
    for steps in (1, 4, 9):

        @jax.jit
        def both(start, steps=steps):
            stats = imaml.CG(steps=steps)(PRODUCT, start).stats
            return ritz(stats.lanczos, stats.steps), lanczos(PRODUCT, start, steps)

        np.testing.assert_allclose(*both(start), rtol=1e-9)
    assert ritz(imaml.CG(steps=3)(PRODUCT, jnp.zeros(SIZE)).stats.lanczos, jnp.asarray(0))[0] == jnp.inf


def test_bounds_from_a_random_start_hold():
    """Of 200 starts at most 5 may fail: 1 % asked, 4.2 standard deviations above 2 are 8."""
    shifted = lambda v: PRODUCT(v) - 0.005 * v  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 200)
    lower = jax.vmap(lambda k: smallest_bound(shifted, jnp.zeros(SIZE), k, 15, 0.01))(keys)
    assert int((lower > EIGENVALUES[0] - 0.005).sum()) <= 5
    assert np.isfinite(lower).all()
    upper = jax.vmap(lambda k: norm_bound(lambda v: PRODUCT(PRODUCT(v)), jnp.zeros(SIZE), k, 8, 0.01))(keys)
    assert int((upper < EIGENVALUES[-1]).sum()) <= 5
    assert upper.max() < 2 * EIGENVALUES[-1]


def test_too_few_products_say_nothing():
    assert share_unseen(SIZE, SIZE, 0.01) == 0
    assert smallest_bound(PRODUCT, jnp.zeros(SIZE), jax.random.key(0), 3, 0.01) == -jnp.inf
    assert norm_bound(PRODUCT, jnp.zeros(SIZE), jax.random.key(0), 2, 0.01) == jnp.inf


# A logistic problem of three parameters: curvature that changes, a dense reference.
INPUTS, LABELS = RANDOM.normal(size=(2, 12, 3)), RANDOM.integers(0, 2, size=(2, 12)).astype(float)
SUPPORT, QUERY = ((jnp.asarray(INPUTS[i]), jnp.asarray(LABELS[i])) for i in range(2))
THETA = jnp.asarray([0.5, -1.0, 2.0])


def loss(phi, batch):
    scores = batch[0] @ phi
    return jnp.mean(jnp.logaddexp(0, scores) - batch[1] * scores)


JUDGE = outer_loss_of(lambda phi, theta, batch: loss(phi, batch), THETA, QUERY)
PROBLEM = imaml.proximal(loss, 0.3, convex=True)


def exact(problem=PROBLEM):
    """phi* by Newton's method, and the meta-gradient there by a dense solve."""
    slope = lambda p: problem.residual(p, THETA, SUPPORT)  # noqa: E731
    phi = THETA
    for _ in range(20):
        phi = phi - jnp.linalg.solve(jax.jacfwd(slope)(phi), slope(phi))
    system = Case(problem, THETA, SUPPORT, JUDGE).system(phi)
    return phi, system.gradient(jnp.linalg.solve(jax.jacfwd(slope)(phi), system.right))


STAR, TRUTH = exact()


@functools.cache
def implied_at(rule, problem):
    """What a rule implies at a phi, compiled once for all of them."""
    case = Case(problem, THETA, SUPPORT, JUDGE)
    return jax.jit(lambda phi: rule.at(case, phi, jax.random.key(0)))


def error(rule, distance, problem=PROBLEM):
    """The meta-gradient's error from a phi that is so far from the solution, and all that was implied."""
    way = jnp.asarray([0.6, 0.0, -0.8])
    implied = implied_at(rule, problem)(STAR + distance * way)
    return float(jnp.linalg.norm(implied.gradient - TRUTH)), implied


DISTANCES = np.geomspace(1e-4, 1e-1, 7)


@pytest.mark.slow
def test_the_correction_makes_the_error_fall_with_the_square_of_the_distance():
    exponents = {}
    for correct in (False, True):
        rule = imaml.implicit(imaml.CG(steps=3), correct=correct)
        errors = [error(rule, distance)[0] for distance in DISTANCES]
        exponents[correct] = np.polyfit(np.log(DISTANCES), np.log(errors), 1)[0]
    assert 0.9 < exponents[False] < 1.1
    assert exponents[True] > 1.8


@pytest.mark.slow
def test_the_corrected_gradient_has_a_bound_of_its_own():
    rule = imaml.implicit(imaml.CG(steps=3), certify=True, correct=True)
    for distance in DISTANCES:
        off, implied = error(rule, distance)
        assert off <= float(implied.linear.stats.error_bound) < 0.1 * distance
        assert 0.5 * off < float(implied.linear.stats.error_estimate) < 0.1 * distance  # not the plain one's
        assert bool(implied.linear.certified)


@pytest.mark.parametrize("accuracy", slow_after_first([1e-4, 1e-2, 1e-6]))
@pytest.mark.parametrize("declared", slow_after_first([True, False]))
def test_an_accuracy_asked_for_is_reached(accuracy, declared):
    problem = imaml.proximal(loss, 0.3, convex=declared)
    rule = imaml.implicit(accuracy=accuracy, certify=True)
    off, implied = error(rule, 0.5, problem)
    assert off <= accuracy * float(jnp.linalg.norm(TRUTH))
    assert implied.linear.status.ending == imaml.Ending.CONVERGED
    assert implied.linear.status.certification == Certification.CERTIFIED_IF_SMOOTH
    assert off <= float(implied.linear.stats.error_bound)
    tight = error(imaml.implicit(accuracy=1e-10), 0.5, problem)[1].linear.stats.steps
    assert int(implied.linear.stats.steps) <= int(tight)


@pytest.mark.slow
def test_what_could_not_be_certified_says_why():
    """An indefinite system, one whose kind has no bound, and one for which no bound was asked."""
    bent = imaml.proximal(lambda phi, batch: -jnp.sum(jnp.cos(3 * phi)) / 9 + loss(phi, batch), 0.1)
    for problem, certify, code in (
        (bent, True, Certification.CURVATURE_UNKNOWN),
        (bent, False, Certification.ESTIMATED),
        (imaml.fixed_point(lambda phi, theta, batch: 0.5 * theta), True, Certification.NO_BOUND),
    ):
        general = problem.structure == "general"
        linear = imaml.GMRES() if general else imaml.CG(steps=2)
        vjp = jax.jit(functools.partial(imaml.implicit_vjp, problem, linear=linear, certify=certify))
        _, solution = vjp(jnp.full(3, jnp.pi / 3), THETA, SUPPORT, jnp.ones(3))
        assert solution.status.certification == code
        assert not bool(solution.certified)
        assert solution.status.certification.advice
        if certify:
            assert solution.stats.error_bound == jnp.inf
        else:
            assert solution.stats.error_bound is None
        assert solution.stats.error_estimate is not None


def test_implicit_vjp_measures_the_residual_at_the_phi_given():
    """Against the vector-Jacobian product at phi*, with the same cotangent."""
    cotangent = jnp.asarray([1.0, -2.0, 0.5])
    options = {"linear": imaml.Dense()}
    truth, _ = imaml.implicit_vjp(PROBLEM, STAR, THETA, SUPPORT, cotangent, **options)
    for distance in (0.01, 0.3):
        found, solution = imaml.implicit_vjp(
            PROBLEM, STAR + distance, THETA, SUPPORT, cotangent, certify=True, **options
        )
        off = float(jnp.linalg.norm(found - truth))
        assert off <= float(solution.stats.error_bound) <= 3 * off
        assert bool(solution.certified)


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["adapt", "learned"])
def test_a_bound_where_theta_enters_in_other_ways(shared):
    """Shared leaves, and a learned strength: |dF/dtheta| is bounded by Lanczos, what drifts counts."""
    adapt = "head" if shared == "adapt" else None
    strength = 0.3 if shared == "adapt" else imaml.learned(0.3, "all")
    tall = lambda phi, batch: loss(phi["head"], (jnp.tanh(batch[0] @ phi["body"]), batch[1]))  # noqa: E731
    mean = {"body": jnp.asarray(RANDOM.normal(size=(3, 3))), "head": THETA}
    problem = imaml.proximal(tall, strength, adapt)
    theta = problem.parameters(mean)
    judge = outer_loss_of(lambda phi, theta, batch: tall(phi, batch), theta, QUERY)
    case = Case(problem, theta, SUPPORT, judge)
    start, unravel = ravel_pytree(problem.split(mean))
    slope = lambda p: ravel_pytree(problem.residual(unravel(p), theta, SUPPORT))[0]  # noqa: E731
    descend = lambda _, p: p - 0.5 * slope(p)  # noqa: E731
    newton = lambda _, p: p - jnp.linalg.solve(jax.jacfwd(slope)(p), slope(p))  # noqa: E731

    @jax.jit
    def solved():
        phi = jax.lax.fori_loop(0, 8, newton, jax.lax.fori_loop(0, 3000, descend, start))
        at = case.system(unravel(phi))
        u = jnp.linalg.solve(jax.jacfwd(slope)(phi), ravel_pytree(at.right)[0])
        return phi, jnp.linalg.norm(slope(phi)), ravel_pytree(at.gradient(unravel(u)))[0]

    phi, left, truth = solved()
    assert float(left) < 1e-13
    rule = imaml.implicit(imaml.CG(steps=10), certify=True)
    at_point = jax.jit(lambda phi: rule.at(case, phi, jax.random.key(0)))
    for distance in (1e-3, 1e-2):
        near = unravel(phi + distance * jnp.asarray(RANDOM.normal(size=phi.size)))
        implied = at_point(near)
        off = float(jnp.linalg.norm(ravel_pytree(implied.gradient)[0] - truth))
        assert bool(implied.linear.certified)
        assert off <= float(implied.linear.stats.error_bound) <= 30 * off


def test_gauss_newton_is_the_hessian_of_a_linear_model_and_never_indefinite():
    linear = imaml.composed(lambda phi, batch: batch[0] @ phi, lambda z, batch: jnp.mean((z - batch[1]) ** 2))
    bent = imaml.composed(lambda phi, batch: jnp.cos(batch[0] @ phi), linear.cost)
    matrices = {}
    for name, of in (("linear", linear), ("bent", bent)):
        for curvature in ("hessian", "gauss-newton"):
            problem = imaml.proximal(of, 0.1, curvature=curvature)
            slope = lambda p: problem.residual(p, THETA, SUPPORT)  # noqa: B023, E731
            matrices[name, curvature] = np.asarray(jax.jacfwd(slope)(THETA))
            np.testing.assert_allclose(slope(THETA), jax.grad(of)(THETA, SUPPORT), rtol=1e-12)
    np.testing.assert_allclose(matrices["linear", "hessian"], matrices["linear", "gauss-newton"], rtol=1e-12)
    assert np.linalg.eigvalsh(matrices["bent", "hessian"])[0] < 0
    assert np.linalg.eigvalsh(matrices["bent", "gauss-newton"])[0] >= 0.1 - 1e-12
    inputs = np.asarray(SUPPORT[0])
    jacobian = -np.sin(inputs @ np.asarray(THETA))[:, None] * inputs
    expected = 2 * jacobian.T @ jacobian / len(inputs) + 0.1 * np.eye(3)
    np.testing.assert_allclose(matrices["bent", "gauss-newton"], expected, rtol=1e-12)


def test_the_estimate_is_zero_only_where_the_solves_are_exact():
    case = Case(PROBLEM, THETA, SUPPORT, JUDGE)
    system = case.system(STAR)
    solution = imaml.CG(steps=3)(system.product, system.right)
    assert float(error_estimate(case, system, solution, STAR)[0]) < 1e-12
    for steps, distance in ((1, 0.0), (3, 0.1)):
        off, implied = error(imaml.implicit(imaml.CG(steps=steps)), distance)
        assert 0.1 < float(implied.linear.stats.error_estimate) / off < 10


TASKS = imaml.Task(*(jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), part) for part in (SUPPORT, QUERY)))


@pytest.mark.slow
def test_certificates_of_tasks_travel_in_the_metrics_and_change_no_gradient():
    """Under vmap and in chunks, with the same meta-gradient as without."""
    query_loss = lambda phi, theta, batch: loss(phi, batch)  # noqa: E731
    recipe = {"inner": imaml.GradientDescent(1.0, steps=5), "linear": imaml.CG(steps=2)}
    plain, without = jax.jit(imaml.IMAML(PROBLEM, query_loss, **recipe))(THETA, TASKS)
    assert without.error_bound is None
    assert not without.certified.any()
    for chunk in (None, 1):
        method = imaml.IMAML(PROBLEM, query_loss, certify=True, chunk=chunk, **recipe)
        gradient, metrics = jax.jit(method)(THETA, TASKS)
        np.testing.assert_allclose(gradient, plain, rtol=1e-12)
        assert metrics.certified.tolist() == [True, True]
        assert (metrics.error_bound > 0).all()
        off = float(jnp.linalg.norm(gradient - TRUTH))  # both tasks are the same one
        assert off <= float(metrics.error_bound.max())


REFUSED = {
    "accuracy of 0": (lambda: imaml.implicit(accuracy=0), "accuracy: expected a finite number above 0"),
    "accuracy of 1": (lambda: imaml.implicit(accuracy=1.0), "below 1"),
    "no steps": (lambda: imaml.Certificate(steps=0), "steps: expected a whole number of at least 1"),
    "certain": (lambda: imaml.Certificate(failure=0.0), "failure: expected a finite number above 0"),
    "a loss of unknown outputs": (
        lambda: imaml.proximal(loss, 0.1, curvature="gauss-newton"),
        r"loss: expected one made by composed\(outputs, cost\)",
    ),
    "unknown curvature": (lambda: imaml.proximal(loss, 0.1, curvature="fisher"), "expected one of"),
    "a game made accurate": (
        lambda: imaml.MetaGradient(
            imaml.fixed_point(lambda phi, theta, batch: theta),
            lambda phi, theta, batch: 0.0,
            inner=imaml.GradientDescent(0.1, steps=1),
            rule=imaml.implicit(imaml.GMRES(), accuracy=0.1),
        ),
        "expected a problem of structure 'spd'",
    ),
    "a certificate of MAML": (
        lambda: imaml.MAML(
            imaml.plain(loss),
            lambda phi, theta, batch: 0.0,
            inner=imaml.GradientDescent(0.1, steps=1),
        ).certifying(),
        "expected the implicit rule of IMAML, got Unrolled",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused(name):
    make, says = REFUSED[name]
    with pytest.raises((imaml.ConfigError, imaml.StructureError), match=says):
        make()


@pytest.mark.slow
@pytest.mark.usefixtures("ranks_mixed")
@pytest.mark.parametrize("name", ["sinusoid", "linear_gaussian"])
def test_gauss_newton_of_a_domain_by_its_recipe(name):
    """--method.curvature builds it, it goes to JSON and back, and the system is J^T J / n + strength."""
    domain = getattr(imaml, name)()
    recipe = Method(curvature="gauss-newton", strength=0.5, inner=imaml.GradientDescent(0.1, steps=2))
    method = recipe.build(domain)
    theta = method.init(domain, jax.random.key(0))
    theta = jax.tree.map(lambda leaf: leaf.astype(float) + 0.1, theta)
    task = domain.sample(jax.random.key(1), "train")
    flat, unravel = ravel_pytree(theta)
    slope = lambda p: ravel_pytree(method.problem.residual(unravel(p), theta, task.support))[0]  # noqa: E731
    outputs = lambda p: method.problem.loss.outputs(unravel(p), task.support).ravel()  # noqa: E731
    jacobian = np.asarray(jax.jacfwd(outputs)(flat))
    expected = jacobian.T @ jacobian / len(jacobian) + 0.5 * np.eye(flat.size)
    np.testing.assert_allclose(jax.jacfwd(slope)(flat), expected, rtol=1e-6, atol=1e-6)
    assert from_json(to_json(recipe)) == recipe


@pytest.mark.slow
def test_training_certifies_every_so_many_steps(tmp_path):
    """The journal has the estimate in every line, the bound where a certified step was; theta is the same."""
    domain = imaml.linear_gaussian(features=3, shots=4, queries=4)
    method = imaml.IMAML(
        domain.problem(0.5),
        domain.query_loss,
        inner=imaml.GradientDescent(0.1, steps=4),
        linear=imaml.CG(steps=2),
    )
    options = {"steps": 8, "tasks": 4, "validate_every": 0, "log_every": 2, "progress": False}
    adam = imaml.Optimiser("adam", 0.05)
    run, plain = (
        imaml.train(
            domain,
            method,
            adam,
            out=tmp_path / str(every),
            certify_every=every,
            **options,
        )
        for every in (4, 0)
    )
    np.testing.assert_allclose(run.theta, plain.theta, rtol=1e-6)
    events = [e for e in read_events(tmp_path / "4" / "events.jsonl") if e["event"] == "step"]
    assert ["error_bound" in e for e in events] == [False, True, False, True]
    for event in events:
        assert 0 < event["error_estimate"] < 10
    bounded = events[1]
    assert bounded["certified"] == 1.0
    assert 0 < bounded["error_bound"] < 1
    without = read_events(tmp_path / "0" / "events.jsonl")
    assert not any("error_bound" in e for e in without)
    maml = imaml.MAML(domain.problem(None), domain.query_loss, inner=imaml.GradientDescent(0.1, steps=1))
    with pytest.raises(imaml.ConfigError, match="got Unrolled, which has no certificate"):
        imaml.train(domain, maml, adam, certify_every=2, **options)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"error_estimate": 0.034, "error_bound": 0.04, "certified": 0.5},
            "at most 4 %, 50 % of tasks certified",
        ),
        ({"error_estimate": 0.034, "error_bound": None, "certified": 0.25}, "25 % of tasks certified"),
        ({"error_estimate": 0.034, "error_bound": None, "certified": 0.0}, "gradient error about 3.4 %"),
        ({"error_estimate": 0.034}, "gradient error about 3.4 %"),
        ({"error_estimate": 12.34}, "gradient error about 1,200 %"),
        (
            {"error_estimate": 0.034, "error_unreliable": 0.25},
            "gradient error about 3.4 %, unreliable for 25 % of tasks",
        ),
        (
            {"error_estimate": 0.034, "error_unreliable": 0.75},
            "",
        ),
        ({"error_estimate": None}, ""),
        ({}, ""),
    ],
)
def test_progress_says_what_is_known(event, words, tmp_path, capsys):
    with Journal(tmp_path, total=10, progress=True) as journal:
        journal.write("step", step=1, seconds=1.0, failed=0, loss=1.0, **event)
        journal.write("end", step=1, reason="steps", seconds=1.0)
    step, end = capsys.readouterr().err.splitlines()
    assert words in step
    assert ("gradient error" in step or "certified" in step) == bool(words)
    assert ("unknown in 1 of 1 logged steps" in end) == (bool(event) and not words)


@pytest.mark.slow
def test_an_accuracy_that_tightens():
    """By its formula; in jit, on one device and two; and the products spent grow as it tightens."""
    asked = imaml.Tightening(first=0.2, last=1e-6, pace=2.0, power=3.0)
    for step in (0, 3, 1000, None):
        expected = 1e-6 if step is None else max(1e-6, 0.2 / (1 + step / 2) ** 3)
        np.testing.assert_allclose(asked.at(step), expected)
    domain = imaml.linear_gaussian(features=6, shots=8, queries=4)
    mesh = Mesh(np.array(jax.devices()[:2]), ("tasks",), axis_types=(AxisType.Auto,))
    inner = imaml.GradientDescent(0.05, steps=1)
    tasks = jax.vmap(lambda k: domain.sample(k, "train"))(jax.random.split(jax.random.key(0), 4))
    theta = domain.init(jax.random.key(1))
    for devices in (None, mesh):
        method = imaml.IMAML(
            domain.problem(0.2), domain.query_loss, inner=inner, accuracy=asked, mesh=devices
        )
        step = jax.jit(method)
        spent = []
        for number in (0, 3, 1000):
            gradient, metrics = step(theta, tasks, None, jnp.asarray(number))
            relative = metrics.error_estimate / metrics.gradient_norm
            assert (relative <= asked.at(number) * 1.001).all()
            spent.append(float(metrics.linear_steps.mean()))
        assert spent[0] < spent[1] < spent[2]
    assert method.at_step(None).rule.accuracy == 1e-6
    exactly = imaml.IMAML(domain.problem(0.2), domain.query_loss, inner=inner, accuracy=1e-9)
    exact, _ = jax.jit(exactly)(theta, tasks)
    assert float(jnp.linalg.norm(gradient - exact)) <= 1e-6 * float(jnp.linalg.norm(exact))


@pytest.mark.slow
def test_training_tightens_and_logs_how_steps_are_spread(tmp_path):
    domain = imaml.linear_gaussian(features=6, shots=8, queries=4)
    recipe = Method(
        strength=0.2,
        inner=imaml.GradientDescent(0.05, steps=1),
        accuracy=imaml.Tightening(first=0.5, last=1e-8, pace=1.0, power=6.0),
    )
    imaml.train(
        domain, recipe.build(domain), imaml.Optimiser("adam", 1e-3),
        steps=6, tasks=4, validate_every=0, log_every=1, out=tmp_path / "run", progress=False,
    )  # fmt: skip
    config = (tmp_path / "run" / "config.json").read_text()
    assert from_json(json.loads(config)).method.accuracy == recipe.accuracy
    events = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == "step"]
    assert events[0]["linear_steps"] < events[-1]["linear_steps"]
    for event in events:
        spread = [event[f"linear_steps{of}"] for of in ("_median", "_p90", "_max")]
        assert spread == sorted(spread)
        assert event["linear_steps"] <= event["linear_steps_max"]
        assert event["inner_steps_median"] == event["inner_steps_max"] == 1


def test_an_accuracy_from_the_command_line():
    config = Config()
    assert override(config, "method.accuracy", "1e-3").method.accuracy == 1e-3
    assert override(config, "method.accuracy", "none").method.accuracy is None
    tightens = override(config, "method.accuracy", "Tightening")
    assert tightens.method.accuracy == imaml.Tightening()
    assert override(tightens, "method.accuracy.last", "1e-5").method.accuracy.last == 1e-5
    with pytest.raises(imaml.ConfigError, match="expected a number or Tightening or none, got 'Tighten'"):
        override(config, "method.accuracy", "Tighten")
    for bad, says in (
        ({"first": 1.5}, "first: expected a finite number above 0 and below 1"),
        ({"power": 1}, "power: expected a finite number above 1"),
        ({"first": 1e-5}, "last: expected at most first=1e-05, got 0.0001"),
    ):
        with pytest.raises(imaml.ConfigError, match=says):
            imaml.Tightening(**bad)
