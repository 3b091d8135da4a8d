"""Bounds of a meta-gradient's error where they were wrong, and the grades that say what they rest on.

The errors are against closed forms: a linear solve for ridge regression, Newton's method to the last digit
for the others.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import imaml
from helpers.marks import slow_after_first
from imaml import Certification
from imaml.linear.lanczos import bilinear_factor, linear_factor
from imaml.meta.system import Case, outer_loss_of


def squares(phi, batch):
    inputs, targets = batch
    return 0.5 * jnp.mean((inputs @ phi - targets) ** 2)


def logistic(phi, batch):
    scores = batch[0] @ phi
    return jnp.mean(jnp.logaddexp(0, scores) - batch[1] * scores)


def gradient_constant(batch):
    return jnp.mean(jnp.sum(batch[0] ** 2, 1)) / 4


def hessian_constant(batch):
    return jnp.mean(jnp.sum(batch[0] ** 2, 1) ** 1.5) / (6 * 3**0.5)


def one(*parts):
    """A batch of one task."""
    return jax.tree.map(lambda leaf: leaf[None], imaml.Task(*parts))


def ridge_truth(strength, support, query):
    """The meta-gradient at theta = 0, strength (A + strength)^-1 query'."""
    inputs, targets = support
    matrix = inputs.T @ inputs / len(targets) + strength * jnp.eye(inputs.shape[1])
    star = jnp.linalg.solve(matrix, inputs.T @ targets / len(targets))
    return star, strength * jnp.linalg.solve(matrix, jax.grad(squares)(star, query))


# A step of gradient descent leaves the soft direction unsolved; a Newton step to one percent solves only the
# stiff one.
SOFT = (jnp.array([[4.45, 0.0], [0.0, 0.316]]), jnp.array([-0.45, -0.057]))
ANGLES = np.linspace(0, np.pi, 13)
HOW = {
    "certified": {"linear": imaml.Dense(), "certify": True},
    "corrected": {"linear": imaml.Dense(), "certify": True, "correct": True},
    "accurate": {"accuracy": 1e-3},
}


@functools.cache
def of_soft(how):
    method = imaml.IMAML(
        imaml.proximal(squares, 0.05, convex=True),
        lambda phi, theta, batch: squares(phi, batch),
        inner=imaml.GradientDescent(1e-3, steps=1),
        **HOW[how],
    )
    return jax.jit(method)


def soft_case(how, row):
    query = (jnp.asarray(row)[None], jnp.ones(1))
    gradient, known = of_soft(how)(jnp.zeros(2), one(SOFT, query))
    _, truth = ridge_truth(0.05, SOFT, query)
    return float(jnp.linalg.norm(gradient - truth)), float(jnp.linalg.norm(truth)), known


@pytest.mark.slow
def test_the_bound_holds_where_a_sample_along_the_newton_step_missed_the_change():
    off, size, known = soft_case("certified", [0.0, 3.0])
    assert off == pytest.approx(0.2128 * size, rel=1e-3)
    assert off <= float(known.error_bound[0]) * (1 + 1e-9)
    assert known.error_bound[0] <= 3 * off
    assert known.linear_status.certification is Certification.PROVED


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("angle", ANGLES)
def test_a_query_row_in_any_direction_is_bounded(how, angle):
    """Among them that at a right angle to the Newton step, for which the sample was zero."""
    off, size, known = soft_case(how, [3 * np.sin(angle), 3 * np.cos(angle)])
    assert known.certified.all()
    assert off <= float(known.error_bound[0]) + 1e-9 * size
    if how == "certified":
        assert float(known.error_bound[0]) <= 3 * off + 1e-9 * size
    if how == "accurate":
        assert off <= 1e-3 * size
        assert known.linear_status.ending == imaml.Ending.CONVERGED


@pytest.mark.slow
def test_the_right_angle_to_the_newton_step():
    """Of a Newton step that conjugate gradients take one step of, as the stiff direction alone asks for."""
    inner = imaml.GradientDescent(1e-3, steps=1)
    problem = imaml.proximal(squares, 0.05, convex=True)
    phi = inner(problem, jnp.zeros(2), SOFT).value
    slope = problem.residual(phi, jnp.zeros(2), SOFT)
    row = 3 * jnp.array([-slope[1], slope[0]]) / jnp.linalg.norm(slope)
    off, size, known = soft_case("certified", row)
    assert off > 1e-3
    assert off <= float(known.error_bound[0]) * (1 + 1e-9)
    assert known.error_bound[0] <= 3 * off
    off, _, known = soft_case("accurate", row)
    assert off <= 1e-3 * size
    assert bool(known.certified[0])


@pytest.mark.slow
def test_an_estimate_is_not_blind_to_what_the_inner_solve_left():
    """The query loss's gradient at the phi reached lies along the direction that is solved."""
    support = (jnp.array([[4.47, 0.0], [0.0, 0.283]]), jnp.array([22.4, 3.5]))
    problem, inner = imaml.proximal(squares, 0.01, convex=True), imaml.GradientDescent(0.09, steps=8)
    phi = inner(problem, jnp.zeros(2), support).value
    query = (jnp.array([[1.0, 1.0], [1.0, -1.0]]), phi[0] - 10 + jnp.array([1.0, -1.0]) * phi[1])
    _, truth = ridge_truth(0.01, support, query)
    method = imaml.IMAML(
        problem, lambda phi, theta, batch: squares(phi, batch), inner=inner, linear=imaml.CG()
    )
    gradient, known = jax.jit(method)(jnp.zeros(2), one(support, query))
    off = float(jnp.linalg.norm(gradient - truth))
    assert off > 0.99 * float(jnp.linalg.norm(truth))
    assert off < float(known.error_estimate[0]) < 10 * off
    assert known.linear_status.certification is Certification.ESTIMATE_UNRELIABLE


@pytest.mark.parametrize("theta", slow_after_first([-1.0, 0.0, 1.0]))
def test_saturated_logits_are_said_to_be_unreliable(theta):
    """All derivatives of the loss vanish at phi; only |F| says that it is no solution."""
    batch = (jnp.array([[300.0]]), jnp.array([1.0]))
    method = imaml.IMAML(
        imaml.proximal(logistic, 0.1, convex=True),
        lambda phi, theta, batch: logistic(phi, batch),
        inner=imaml.GradientDescent(0.09, steps=8),
        linear=imaml.CG(),
    )
    gradient, known = jax.jit(method)(jnp.array([theta]), one(batch, batch))
    assert gradient == 0
    if theta == 1.0:  # nothing moves: theta is the solution, and its meta-gradient is 0
        assert known.error_estimate == 0
        assert known.inner_residual == 0
        assert known.linear_status.certification is Certification.ESTIMATED
    else:
        assert known.inner_residual > 1
        assert known.linear_status.certification is Certification.ESTIMATE_UNRELIABLE


def test_an_estimate_that_was_not_asked_for_is_nan_and_changes_nothing_else():
    query = (jnp.array([[1.0, 2.0]]), jnp.ones(1))
    plain, known = of_soft("certified")(jnp.zeros(2), one(SOFT, query))
    method = imaml.IMAML(
        imaml.proximal(squares, 0.05, convex=True),
        lambda phi, theta, batch: squares(phi, batch),
        inner=imaml.GradientDescent(1e-3, steps=1),
        linear=imaml.Dense(),
    )
    asked = jax.jit(lambda wanted: method(jnp.zeros(2), one(SOFT, query), estimate=wanted))
    for wanted in (True, False):
        gradient, metrics = asked(wanted)
        np.testing.assert_allclose(gradient, plain, rtol=1e-12)
        assert jnp.isnan(metrics.error_estimate[0]) == (not wanted)
    np.testing.assert_allclose(asked(True)[1].error_estimate, known.error_estimate, rtol=1e-9)


def test_factors_of_probes_fail_as_often_as_they_say_on_the_worst_map():
    """A map of rank one: |M z| is |n|, |T(y, z)| is |n n'|. 20,000 draws; five standard deviations."""
    random = np.random.default_rng(0)
    draws = np.abs(random.normal(size=(2, 20_000, 3)))
    for failure in (0.3, 0.05, 0.01):
        spread = 5 * (failure * (1 - failure) / 20_000) ** 0.5
        linear = np.mean(linear_factor(3, failure) * draws[0].max(1) < 1)
        bilinear = np.mean(bilinear_factor(3, failure) * (draws[0] * draws[1]).max(1) < 1)
        assert 0.5 * failure - spread < linear < failure + spread
        assert 0.3 * failure - spread < bilinear < failure + spread


WEIGHTS = np.random.default_rng(3).normal(size=(2, 6, 3))
LABELS = np.random.default_rng(4).integers(0, 2, size=(2, 6)).astype(float)
SUPPORT, QUERY = ((jnp.asarray(WEIGHTS[i]), jnp.asarray(LABELS[i])) for i in range(2))
THETA = jnp.array([0.5, -1.0, 2.0])
QUADRATIC = imaml.composed(lambda phi, batch: batch[0] @ phi, lambda z, batch: jnp.mean((z - batch[1]) ** 2))


def stopped(phi, theta, batch):
    """A query loss with the right gradient, of which differentiating once more gives a wrong one."""
    value = logistic(phi, batch)
    slope = jax.grad(logistic)(jax.lax.stop_gradient(phi), batch)
    return jax.lax.stop_gradient(value) + slope @ (phi - jax.lax.stop_gradient(phi))


of = lambda loss: lambda phi, theta, batch: loss(phi, batch)  # noqa: E731
GRADES = {  # problem, query loss, certificate, what it is worth
    "quadratic": (imaml.proximal(squares, 0.3), of(squares), {}, "PROVED"),
    "declared convex": (imaml.proximal(squares, 0.3, convex=True), of(squares), {}, "PROVED"),
    "too large for matrices": (imaml.proximal(squares, 0.3), of(squares), {"dense": 0}, "CERTIFIED"),
    "Gauss-Newton of a linear model": (
        imaml.proximal(QUADRATIC, 0.3, curvature="gauss-newton"),
        of(QUADRATIC),
        {},
        "PROVED",
    ),
    "a query loss that is not": (imaml.proximal(squares, 0.3), of(logistic), {}, "CERTIFIED_IF_SMOOTH"),
    "its constant declared": (
        imaml.proximal(squares, 0.3),
        of(logistic),
        {"lipschitz": gradient_constant},
        "PROVED",
    ),
    "logistic": (imaml.proximal(logistic, 0.3, convex=True), of(logistic), {}, "CERTIFIED_IF_SMOOTH"),
    "all constants declared": (
        imaml.proximal(logistic, 0.3, convex=True, lipschitz=hessian_constant),
        of(logistic),
        {"lipschitz": gradient_constant},
        "PROVED",
    ),
    "constants but not convexity declared": (
        imaml.proximal(logistic, 0.3, lipschitz=hessian_constant),
        of(logistic),
        {"lipschitz": gradient_constant},
        "PROVED",
    ),
    "one constant is not enough": (
        imaml.proximal(logistic, 0.3, convex=True, lipschitz=hessian_constant),
        of(logistic),
        {},
        "CERTIFIED_IF_SMOOTH",
    ),
    "a learned strength": (
        imaml.proximal(squares, imaml.learned(0.3, "all"), convex=True),
        of(squares),
        {},
        "CERTIFIED_IF_SMOOTH",
    ),
    "a stopped derivative": (
        imaml.proximal(squares, 0.3, convex=True),
        stopped,
        {},
        "CERTIFIED_IF_SMOOTH",
    ),
}


def solved(problem, query_loss, theta):
    """phi* near theta by Newton's method, and the exact meta-gradient there."""
    judge = outer_loss_of(query_loss, theta, QUERY)
    case = Case(problem, theta, SUPPORT, judge)
    phi, unravel = ravel_pytree(problem.split(problem.mean(theta)))
    slope = lambda p: ravel_pytree(problem.slope(unravel(p), theta, SUPPORT))[0]  # noqa: E731
    for _ in range(30):
        phi = phi - jnp.linalg.solve(jax.jacfwd(slope)(phi), slope(phi))
    system = case.system(unravel(phi))
    matrix = jax.vmap(lambda e: ravel_pytree(system.product(unravel(e)))[0])(jnp.eye(phi.size))
    u = unravel(jnp.linalg.solve(matrix, ravel_pytree(system.right)[0]))
    return case, unravel(phi), ravel_pytree(system.gradient(u))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADES)
def test_each_grade_says_what_it_rests_on_and_holds(name):
    problem, query_loss, options, expected = GRADES[name]
    case, star, truth = solved(problem, query_loss, problem.parameters(THETA))
    rule = imaml.implicit(imaml.CG(steps=2), certify=imaml.Certificate(**options))
    at = jax.jit(lambda phi: rule.at(case, phi, jax.random.key(0)))
    random = np.random.default_rng(5)
    for distance in (1e-6, 1e-3, 0.3):
        implied = at(star + distance * jnp.asarray(random.normal(size=3)))
        off = float(jnp.linalg.norm(ravel_pytree(implied.gradient)[0] - truth))
        status = implied.linear.status
        assert status.certification is Certification[expected]
        assert status.certification.grade == ("proved" if expected == "PROVED" else "certified")
        bound = float(implied.linear.stats.error_bound)
        assert off <= bound + 1e-9 * float(jnp.linalg.norm(truth))
        assert bound <= 1.5 * off + 1e-6


@pytest.mark.slow
def test_an_indefinite_gauss_newton_problem_is_not_certified():
    """J^T J + strength is positive definite there, but F's own derivative is not: phi may be a saddle."""
    bent = imaml.composed(
        lambda phi, batch: 3 * jnp.cos(batch[0] @ phi), lambda z, batch: jnp.mean((z - batch[1]) ** 2)
    )
    problem = imaml.proximal(bent, 1e-3, curvature="gauss-newton")
    inputs = (jnp.eye(2), jnp.array([9.0, 9.0]))
    phi = jnp.full(2, jnp.pi)  # a maximum of the misfit in both parameters
    hessian = jax.hessian(lambda p: problem.objective(p, phi, inputs))(phi)
    assert (jnp.linalg.eigvalsh(hessian) < 0).all()
    vjp = jax.jit(functools.partial(imaml.implicit_vjp, problem, linear=imaml.CG(steps=2), certify=True))
    _, known = vjp(phi, phi, inputs, jnp.ones(2))
    assert known.status.certification is Certification.CURVATURE_UNKNOWN
    assert not bool(known.certified)
    assert known.stats.error_bound == jnp.inf


@pytest.mark.slow
def test_too_few_steps_are_said():
    """A Newton step of one product does not come near the solution of a problem with curved directions."""
    problem = imaml.proximal(logistic, 1e-3, convex=True)
    case, _, _ = solved(problem, of(logistic), THETA)
    rule = imaml.implicit(imaml.CG(steps=2), certify=imaml.Certificate(steps=1, rounds=2))
    implied = jax.jit(lambda phi: rule.at(case, phi, jax.random.key(0)))(THETA)
    assert implied.linear.status.certification is Certification.SOLUTION_TOO_FAR
    assert implied.linear.stats.error_bound == jnp.inf
    rule = imaml.implicit(accuracy=1e-15)
    asked = jax.jit(lambda phi: rule.at(case, phi, jax.random.key(0)))(THETA)
    assert asked.linear.status.certification is Certification.ABOVE_REQUEST
    assert asked.linear.status.ending == imaml.Ending.OUT_OF_STEPS
    assert not bool(asked.linear.certified)


def test_declared_constants_are_checked():
    with pytest.raises(imaml.ConfigError, match=r"lipschitz: expected .*, got -1"):
        imaml.proximal(logistic, 0.3, lipschitz=-1)
    with pytest.raises(imaml.ConfigError, match=r"lipschitz: expected .*, got 'much'"):
        imaml.Certificate(lipschitz="much")
    problem = imaml.proximal(logistic, 0.3, convex=True, lipschitz=lambda batch: batch[1])
    with pytest.raises(imaml.ConfigError, match="a function batch -> number; got an array of shape"):
        imaml.implicit_vjp(problem, THETA, THETA, SUPPORT, THETA, linear=imaml.CG(), certify=True)


@pytest.mark.slow
def test_float32_is_bounded_too():
    """The reference is of float64, from the same numbers."""
    cast = lambda tree, dtype: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)  # noqa: E731
    problem = imaml.proximal(squares, 0.05, convex=True)
    method = imaml.IMAML(
        problem,
        of(squares),
        inner=imaml.GradientDescent(0.05, steps=20),
        linear=imaml.CG(steps=2),
        certify=True,
    )
    compiled = jax.jit(method)
    random = np.random.default_rng(6)
    for _ in range(5):
        support, query = ((random.normal(size=(6, 3)), random.normal(size=6)) for _ in range(2))
        small = cast((support, query), jnp.float32)
        gradient, known = compiled(jnp.zeros(3, jnp.float32), one(*small))
        assert gradient.dtype == jnp.float32
        assert known.linear_status.certification is Certification.PROVED
        _, truth = ridge_truth(0.05, *cast(small, jnp.float64))
        off = float(jnp.linalg.norm(gradient.astype(jnp.float64) - truth))
        assert off <= float(known.error_bound[0]) + 1e-4 * float(jnp.linalg.norm(truth))
        assert float(known.error_bound[0]) <= 3 * off + 1e-3


def through_ref(phi, theta, batch):
    """A query loss that hides what it does from its own program."""
    ref = jax.new_ref(jnp.zeros(3))
    ref[...] = phi
    return 100 * jnp.sin(ref[...][1])


def coarse(phi, theta, batch):
    scores = batch[0].astype(jnp.bfloat16) @ phi.astype(jnp.bfloat16)
    return 0.5 * jnp.sum((scores.astype(float) - 1) ** 2)


@pytest.mark.parametrize("query_loss", slow_after_first([coarse, through_ref]))
def test_what_a_program_hides_is_not_proved(query_loss):
    problem = imaml.proximal(squares, 0.3, convex=True)
    case = Case(problem, THETA, SUPPORT, outer_loss_of(query_loss, THETA, QUERY))
    rule = imaml.implicit(imaml.CG(steps=2), certify=True)
    status = jax.jit(lambda phi: rule.at(case, phi, jax.random.key(0)).linear.status)(THETA)
    assert status.certification is not Certification.PROVED


def test_a_field_that_is_no_gradient_has_no_bound():
    turning = jnp.array([[1.0, 5.0], [-5.0, 1.0]])

    @jax.custom_vjp
    def field(phi, batch):
        return jnp.sum(phi)

    field.defvjp(lambda phi, batch: (jnp.sum(phi), phi), lambda phi, g: (g * (turning @ phi + 1), None))
    problem = imaml.proximal(field, 0.3, convex=True)
    _, known = imaml.implicit_vjp(
        problem, jnp.ones(2), jnp.zeros(2), None, jnp.ones(2), linear=imaml.Dense(), certify=True
    )
    assert known.status.certification is Certification.NO_BOUND
    assert not bool(known.certified)


def test_floats_of_two_precisions_are_refused():
    problem = imaml.stationary(
        lambda phi, theta, batch: 0.5 * jnp.sum((phi - batch) ** 2) + 0.5 * jnp.sum((phi - theta) ** 2),
        init=lambda theta, batch, key: theta.astype(float),
    )
    theta = jnp.zeros(2, jnp.float32)
    with pytest.raises(imaml.ConfigError, match="expected floats of one dtype, got float32, float64"):
        imaml.implicit_vjp(
            problem, jnp.ones(2), theta, jnp.ones(2), jnp.ones(2), linear=imaml.CG(), certify=True
        )


def test_a_key_is_made_of_phi_where_none_is_given():
    from imaml.meta.certificate import key_of

    first, second = (jax.random.key_data(key_of(None, phi)) for phi in (THETA, THETA + 1e-9))
    assert (first != second).any()
    given = jax.random.key(3)
    assert key_of(given, THETA) is given


class Given:
    """A loss that depends on theta by what it is given."""

    def __call__(self, phi, batch):
        return self.given(jnp.zeros(2))(phi, batch)

    def given(self, theta):
        return lambda phi, batch: 0.5 * jnp.sum(jnp.array([1.0, 0.01]) * phi**2) - 1e4 * phi @ theta


@pytest.mark.slow
def test_a_loss_that_theta_is_part_of_is_coupled_by_more_than_the_strength():
    """B = -(strength + 1e4) I, in closed form."""
    problem = imaml.proximal(Given(), 0.1, convex=True)
    theta, cotangent = jnp.ones(2), jnp.array([1.0, 3.0])
    for steps in (1, 10):
        certificate = imaml.Certificate(steps=steps, rounds=1)
        vjp = functools.partial(imaml.implicit_vjp, problem, linear=imaml.CG(steps=1), certify=certificate)
        gradient, known = jax.jit(vjp)(jnp.zeros(2), theta, None, cotangent)
        truth = (0.1 + 1e4) * cotangent / (jnp.array([1.0, 0.01]) + 0.1)
        off = float(jnp.linalg.norm(gradient - truth))
        assert known.status.certification is Certification.PROVED
        assert off <= float(known.stats.error_bound) * (1 + 1e-9)
