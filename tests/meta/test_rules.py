"""Derivative rules: closed form first, then the dense solve, then central differences."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import imaml

# The oracle: linear-Gaussian tasks, in NumPy.
FEATURES, ROWS, STRENGTH = 5, 8, 0.7
RANDOM = np.random.default_rng(0)
SUPPORT = (RANDOM.normal(size=(ROWS, FEATURES)), RANDOM.normal(size=ROWS))
QUERY = (RANDOM.normal(size=(ROWS, FEATURES)), RANDOM.normal(size=ROWS))
THETA = RANDOM.normal(size=FEATURES)
DIRECTION = RANDOM.normal(size=FEATURES)


def linear_loss(phi, batch):
    inputs, targets = batch
    return 0.5 * jnp.mean((inputs @ phi - targets) ** 2)


def closed_form():
    """phi* = A^-1 (X'y/n + s theta) with A = X'X/n + s I, and what follows by the chain rule."""
    (x, y), (q, z) = SUPPORT, QUERY
    inverse = np.linalg.inv(x.T @ x / ROWS + STRENGTH * np.eye(FEATURES))
    phi = inverse @ (x.T @ y / ROWS + STRENGTH * THETA)
    slope = q.T @ (q @ phi - z) / ROWS
    jacobian = STRENGTH * inverse
    return {
        "phi": phi,
        "jacobian": jacobian,
        "theta": jacobian.T @ slope,
        "strength": slope @ inverse @ (THETA - phi),
        "targets": x @ inverse @ slope / ROWS,
        "hessian": jacobian.T @ (q.T @ q / ROWS) @ jacobian,
    }


ORACLE = closed_form()
# Converged to |F| <= 1e-13 with curvature at least 0.7; linear residuals 2e-12; condition number below 10.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
INNER = imaml.GradientDescent(0.3, tolerance=1e-13)
TIGHT = imaml.CG(tolerance=1e-13)
PROBLEM = imaml.proximal(linear_loss, STRENGTH)
SOLVERS = {
    "CG": imaml.CG(),
    "CG tight": TIGHT,
    "GMRES": imaml.GMRES(tolerance=1e-12),
    "BiCGStab": imaml.BiCGStab(tolerance=1e-12),
    "MINRES": imaml.MINRES(tolerance=1e-12),
    "Dense": imaml.Dense(),
    "Neumann": imaml.Neumann(tolerance=1e-12),
    "CG, the anchor's diagonal": imaml.CG(tolerance=1e-12, precondition=imaml.Diagonal()),
    "CG, Nystrom": imaml.CG(tolerance=1e-12, precondition=imaml.Nystrom(3)),
    "Nystrom": imaml.Nystrom(FEATURES),
    "DampedCG": imaml.DampedCG(FEATURES),
}


def relative(found, expected):
    found, expected = ravel_pytree(found)[0], ravel_pytree(expected)[0]
    return float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))


def meta_loss(
    theta, support=SUPPORT, problem=PROBLEM, linear=TIGHT, loss=linear_loss, query=QUERY, inner=INNER
):
    """The query loss at the task's solution, a function of everything that it depends on."""
    phi = imaml.solve(problem, theta, support, inner=inner, rule=imaml.implicit(linear))
    return loss(phi, query)


@pytest.mark.parametrize("name", SOLVERS)
def test_meta_gradient_is_the_closed_form(name):
    """By the rule, and by implicit_vjp at the same solution."""
    linear = SOLVERS[name]

    @jax.jit
    def both(theta):
        by_rule = jax.grad(meta_loss)(theta, linear=linear)
        phi = INNER(PROBLEM, theta, SUPPORT).value
        slope = jax.grad(linear_loss)(phi, QUERY)
        explicit, solution = imaml.implicit_vjp(PROBLEM, phi, theta, SUPPORT, slope, linear=linear)
        return phi, by_rule, explicit, solution.stats.residual, solution.status.code

    phi, by_rule, explicit, residual, code = both(jnp.asarray(THETA))
    assert relative(phi, ORACLE["phi"]) < 1e-12
    assert relative(by_rule, ORACLE["theta"]) < 1e-10
    assert relative(explicit, ORACLE["theta"]) < 1e-10
    assert code in (imaml.Ending.CONVERGED, imaml.Ending.STEPS_DONE)
    assert residual < 1e-11


def test_forward_reverse_and_second_order_are_the_closed_form():
    """Jacobians of phi in both modes, and a Hessian-vector product, in one program."""

    def solution(theta):
        return imaml.solve(PROBLEM, theta, SUPPORT, inner=INNER, rule=imaml.implicit(TIGHT))

    @jax.jit
    def everything(theta, direction):
        product = jax.jvp(jax.grad(meta_loss), (theta,), (direction,))[1]
        return jax.jacfwd(solution)(theta), jax.jacrev(solution)(theta), product

    forward, reverse, product = everything(jnp.asarray(THETA), jnp.asarray(DIRECTION))
    np.testing.assert_allclose(forward, ORACLE["jacobian"], **CLOSE)
    np.testing.assert_allclose(reverse, ORACLE["jacobian"], **CLOSE)
    np.testing.assert_allclose(product, ORACLE["hessian"] @ DIRECTION, **CLOSE)


@pytest.mark.parametrize(
    "linear", [TIGHT, imaml.CG(tolerance=1e-13, precondition=imaml.Diagonal())], ids=repr
)
def test_derivative_in_strength_closed_over_passed_and_learned(linear):
    theta = jnp.asarray(THETA)
    learned = imaml.proximal(linear_loss, imaml.learned(STRENGTH, per="all"))

    @jax.jit
    def slopes(strength):
        closed_over = jax.grad(
            lambda s: meta_loss(theta, problem=imaml.proximal(linear_loss, s), linear=linear)
        )(strength)
        passed = jax.grad(
            lambda s: meta_loss(theta, problem=dataclasses.replace(PROBLEM, strength=s), linear=linear)
        )(strength)
        in_theta = jax.grad(lambda t: meta_loss(t, problem=learned, linear=linear))(learned.parameters(theta))
        return closed_over, passed, in_theta

    closed_over, passed, in_theta = slopes(jnp.asarray(STRENGTH))
    np.testing.assert_allclose(closed_over, ORACLE["strength"], **CLOSE)
    np.testing.assert_allclose(passed, ORACLE["strength"], **CLOSE)
    np.testing.assert_allclose(in_theta.log_strength, STRENGTH * ORACLE["strength"], **CLOSE)
    np.testing.assert_allclose(in_theta.mean, ORACLE["theta"], **CLOSE)


def test_derivative_in_the_data_passed_and_closed_over():
    @jax.jit
    def slopes(targets):
        passed = jax.grad(lambda y: meta_loss(jnp.asarray(THETA), (SUPPORT[0], y)))(targets)
        closed_over = jax.grad(
            lambda y: meta_loss(
                jnp.asarray(THETA),
                None,
                problem=imaml.proximal(lambda phi, _: linear_loss(phi, (SUPPORT[0], y)), STRENGTH),
            )
        )(targets)
        return passed, closed_over

    for slope in slopes(jnp.asarray(SUPPORT[1])):
        np.testing.assert_allclose(slope, ORACLE["targets"], **CLOSE)


def test_vmap_over_tasks_and_strengths_equals_a_loop():
    inputs = jnp.asarray(RANDOM.normal(size=(3, ROWS, FEATURES)))
    targets = jnp.asarray(RANDOM.normal(size=(3, ROWS)))
    strengths = jnp.array([0.3, 1.0, 3.0])
    one = jax.grad(lambda t, x, y, s: meta_loss(t, (x, y), problem=dataclasses.replace(PROBLEM, strength=s)))
    theta = jnp.asarray(THETA)
    batched = jax.jit(jax.vmap(one, in_axes=(None, 0, 0, 0)))(theta, inputs, targets, strengths)
    one = jax.jit(one)
    for i in range(3):
        np.testing.assert_allclose(batched[i], one(theta, inputs[i], targets[i], strengths[i]), **CLOSE)


def test_unrolled_is_exact_for_the_steps_taken():
    """One step on the plain problem: phi = theta - r H theta + ..., so d phi/d theta = I - r H (MAML)."""
    solution = lambda theta: imaml.solve(  # noqa: E731
        imaml.plain(linear_loss),
        theta,
        SUPPORT,
        inner=imaml.GradientDescent(0.3, steps=1),
        rule=imaml.unrolled(),
    )
    x = SUPPORT[0]
    np.testing.assert_allclose(
        jax.jacrev(solution)(jnp.asarray(THETA)),
        np.eye(FEATURES) - 0.3 * x.T @ x / ROWS,
        rtol=1e-12,
        atol=1e-14,
    )


@pytest.mark.parametrize("limits", [{"steps": 3}, {"tolerance": 1e-3}], ids=str)
def test_first_order_is_the_slope_at_phi(limits):
    """d phi/d theta = I from the default start; nothing flows to the data; a tolerance is welcome."""
    inner = imaml.GradientDescent(0.3, **limits)

    def meta(theta, targets):
        support = (SUPPORT[0], targets)
        phi = imaml.solve(imaml.plain(linear_loss), theta, support, inner=inner, rule=imaml.first_order())
        return linear_loss(phi, QUERY), phi

    (slope, none), phi = jax.jit(jax.grad(meta, argnums=(0, 1), has_aux=True))(THETA, SUPPORT[1])
    np.testing.assert_allclose(slope, jax.grad(linear_loss)(phi, QUERY), rtol=1e-13)
    assert not np.any(none)
    assert float(jnp.linalg.norm(phi - THETA)) > 0.1


def test_first_order_follows_the_problem_s_own_start():
    problem = imaml.stationary(
        lambda phi, theta, batch: 0.5 * jnp.sum((phi - 1.0) ** 2), init=lambda theta, batch, key: 3.0 * theta
    )
    solution = lambda theta: imaml.solve(  # noqa: E731
        problem, theta, None, inner=imaml.GradientDescent(0.1, steps=2), rule=imaml.first_order()
    )
    np.testing.assert_allclose(jax.jacrev(solution)(jnp.ones(2)), 3.0 * np.eye(2))


def test_refusals():
    with pytest.raises(
        imaml.StructureError, match=r"fixed number of steps.*, got .*tolerance=1e-06.*implicit"
    ):
        imaml.solve(
            PROBLEM, THETA, SUPPORT, inner=imaml.GradientDescent(0.1, tolerance=1e-6), rule=imaml.unrolled()
        )
    with pytest.raises(imaml.ConfigError, match=r"linear: expected a linear solver such as CG.*got 'cg'"):
        imaml.implicit("cg")
    with pytest.raises(
        imaml.ConfigError, match=r"rule: expected implicit\(linear\), unrolled\(\) or first_order"
    ):
        imaml.solve(PROBLEM, THETA, SUPPORT, inner=INNER, rule="implicit")
    with pytest.raises(imaml.ConfigError, match="cotangent: expected one shaped like phi"):
        imaml.implicit_vjp(PROBLEM, THETA, THETA, SUPPORT, THETA[:2], linear=TIGHT)
    saddle = imaml.stationary(lambda p, t, x: p @ t, structure="symmetric")
    with pytest.raises(imaml.StructureError, match="CG: expected a system of structure spd, got 'symmetric'"):
        imaml.solve(saddle, THETA, None, inner=INNER, rule=imaml.implicit(TIGHT))


# A network: tanh, 103 parameters.
def network():
    sizes, random = [2, 10, 6, 1], np.random.default_rng(1)
    weights = [random.normal(size=(a, b)) / np.sqrt(a) for a, b in pairwise(sizes)]
    layers = [{"bias": jnp.zeros(w.shape[1]), "weight": jnp.asarray(w)} for w in weights]
    return {"body": layers[:-1], "head": layers[-1]}


def network_loss(phi, batch):
    signal, targets = batch
    for layer in phi["body"]:
        signal = jnp.tanh(signal @ layer["weight"] + layer["bias"][None])
    return 0.5 * jnp.mean((signal @ phi["head"]["weight"] + phi["head"]["bias"][None] - targets) ** 2)


def points(seed):
    inputs = np.random.default_rng(seed).normal(size=(8, 2))
    return jnp.asarray(inputs), jnp.asarray(np.sin(2 * inputs[:, :1]) + inputs[:, 1:])


POINTS, SCORED = points(2), points(3)
NETWORK_INNER = imaml.GradientDescent(0.3, tolerance=1e-13)
NETWORKS = {
    "all": imaml.proximal(network_loss, 0.5),
    "head": imaml.proximal(network_loss, 0.5, adapt="head"),
    "learned": imaml.proximal(network_loss, imaml.learned(0.5)),
    "learned head": imaml.proximal(network_loss, imaml.learned(0.5, per="parameter"), adapt="head"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_equals_dense_and_central_differences(name):
    """In theta (mean, shared body, strengths) and in the support's targets, along three random directions.

    Richardson's extrapolation of central differences with steps h = 1e-3 and h/2 has an error of h^4 = 1e-12
    times the fifth derivative, and rounding of 1e-13 / h = 1e-10.
    """
    problem = NETWORKS[name]
    assert ravel_pytree(network())[0].size == 103
    flat, unravel = ravel_pytree((problem.parameters(network()), POINTS[1]))

    def value(vector, linear=TIGHT):
        theta, targets = unravel(vector)
        support = (POINTS[0], targets)
        return meta_loss(theta, support, problem, linear, network_loss, SCORED, NETWORK_INNER)

    directions = np.random.default_rng(4).normal(size=(3, flat.size))
    directions = jnp.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True))
    gradient = jax.jit(jax.grad(value))(flat)
    if name in ("all", "learned head"):
        dense = jax.jit(jax.grad(lambda v: value(v, imaml.Dense())))(flat)
        assert relative(gradient, dense) < 1e-10
    expected = central(jax.jit(jax.vmap(value)), flat, directions)
    np.testing.assert_allclose(directions @ gradient, expected, rtol=1e-6, atol=1e-9)
    theta, targets = unravel(gradient)
    parts = [problem.mean(theta)["body"], problem.mean(theta)["head"], targets]
    parts += [theta.log_strength] if problem.learns else []
    assert all(float(jnp.linalg.norm(ravel_pytree(part)[0])) > 1e-4 for part in parts)


def central(function, point, directions, step=1e-3):
    """The derivative of a batched function along each direction, by central differences, extrapolated."""

    def difference(size):
        sides = [function(point[None] + side * size * directions) for side in (1, -1)]
        return (sides[0] - sides[1]) / (2 * size)

    return (4 * difference(step / 2) - difference(step)) / 3


@pytest.mark.slow
def test_network_hessian_vector_product_equals_central_differences():
    """The product with the Hessian of the meta-objective, against differences of its gradient."""
    flat, unravel = ravel_pytree(network())
    direction = jnp.asarray(np.random.default_rng(5).normal(size=(1, flat.size)))
    direction /= jnp.linalg.norm(direction)
    value = lambda v: meta_loss(  # noqa: E731
        unravel(v), POINTS, NETWORKS["all"], TIGHT, network_loss, SCORED, NETWORK_INNER
    )
    gradient = jax.grad(value)
    product = jax.jit(lambda v: jax.jvp(gradient, (v,), (direction[0],))[1])(flat)
    assert relative(product, central(jax.jit(jax.vmap(gradient)), flat, direction)[0]) < 1e-6


# Other problems, and the traps.
def dense_jacobian(problem, phi, theta, batch):
    """-(dF/dphi)^-1 dF/dtheta by whole matrices, at a solution."""
    flat, unravel = ravel_pytree(phi)
    residual = lambda p, t: ravel_pytree(problem.residual(unravel(p), t, batch))[0]  # noqa: E731
    left, right = (np.asarray(part) for part in jax.jit(jax.jacrev(residual, (0, 1)))(flat, theta))
    return -np.linalg.solve(left, right)


MIX = np.random.default_rng(7).normal(size=(3, 3)) * 0.3
OTHERS = {
    "stationary": (
        imaml.stationary(lambda p, t, x: 0.5 * jnp.sum(p**2) + 0.1 * jnp.sum(p**4) - jnp.sum(jnp.sin(t) * p)),
        imaml.GradientDescent(0.4, tolerance=1e-13),
        TIGHT,
    ),
    "saddle": (
        imaml.stationary(
            lambda p, t, x: 0.5 * (p[0] ** 2 - p[1] ** 2 + p[2] ** 2) + 0.2 * p[0] * p[1] - jnp.sin(t) @ p,
            structure="symmetric",
        ),
        lambda problem, theta, batch, phi0, key: newton(problem, theta, batch, phi0),
        imaml.GMRES(tolerance=1e-13),
    ),
    "fixed_point": (
        imaml.fixed_point(lambda p, t, x: jnp.tanh(MIX @ p + t)),
        imaml.GradientDescent(1.0, tolerance=1e-13),
        imaml.Neumann(tolerance=1e-13),
    ),
    "game": (
        imaml.game(
            lambda x, y, t, b: 0.5 * jnp.sum(x**2) + 0.4 * jnp.sum(x * y) - jnp.sum(jnp.sin(t) * x),
            lambda x, y, t, b: (
                0.5 * jnp.sum(y**2) - 0.4 * jnp.sum(x * y) + 0.1 * jnp.sum(y**4)
            ),  # ignores theta
            init=lambda t, b, key: (t, t),
        ),
        imaml.GradientDescent(0.4, tolerance=1e-13),
        imaml.BiCGStab(tolerance=1e-13),
    ),
}


def newton(problem, theta, batch, phi0):
    """An inner solver of one's own: five Newton steps by whole matrices."""
    phi = phi0
    for _ in range(5):
        slope = problem.residual(phi, theta, batch)
        phi = phi - jnp.linalg.solve(jax.jacfwd(lambda p: problem.residual(p, theta, batch))(phi), slope)
    none = imaml.Stats(jnp.asarray(5), jnp.asarray(0.0), jnp.asarray(False))
    return imaml.Solution(phi, none, imaml.Status(jnp.asarray(1)))


@pytest.mark.parametrize("name", OTHERS)
def test_other_problems_equal_dense(name):
    """In reverse and forward mode, and by implicit_vjp; the game's second residual ignores theta."""
    problem, inner, linear = OTHERS[name]
    theta = jnp.array([0.3, -0.5, 0.8])
    cotangent = jnp.array([1.0, 2.0, -1.0])
    as_phi = (lambda v: (v, -v)) if name == "game" else (lambda v: v)

    @jax.jit
    def everything(theta):
        def solution(t):
            return imaml.solve(problem, t, None, inner=inner, rule=imaml.implicit(linear))

        phi, pull = jax.vjp(solution, theta)
        explicit, _ = imaml.implicit_vjp(problem, phi, theta, None, as_phi(cotangent), linear=linear)
        return phi, jax.jvp(solution, (theta,), (cotangent,))[1], pull(as_phi(cotangent))[0], explicit

    phi, forward, reverse, explicit = everything(theta)
    assert float(jnp.linalg.norm(ravel_pytree(problem.residual(phi, theta, None))[0])) < 1e-12
    jacobian = dense_jacobian(problem, phi, theta, None)
    np.testing.assert_allclose(ravel_pytree(forward)[0], jacobian @ cotangent, **CLOSE)
    pulled = jacobian.T @ np.asarray(ravel_pytree(as_phi(cotangent))[0])
    np.testing.assert_allclose(reverse, pulled, **CLOSE)
    np.testing.assert_allclose(explicit, pulled, **CLOSE)


def test_a_leaf_of_the_residual_may_ignore_theta():
    """lax.custom_root fails with a bare AssertionError here, unless phi is one flat vector."""
    problem = imaml.stationary(
        lambda p, t, x: 0.5 * jnp.sum((p["a"] - t) ** 2) + 0.5 * jnp.sum((p["b"] - 1.0) ** 2),
        init=lambda t, x, key: {"a": t, "b": t},
    )
    inner = imaml.GradientDescent(0.5, tolerance=1e-12)
    solution = lambda t: imaml.solve(problem, t, None, inner=inner, rule=imaml.implicit(TIGHT))  # noqa: E731
    jacobian = jax.jit(jax.jacrev(solution))(jnp.ones(2))
    np.testing.assert_allclose(jacobian["a"], np.eye(2), atol=1e-12)
    np.testing.assert_allclose(jacobian["b"], 0, atol=1e-12)


def test_integer_labels_and_keys_in_the_batch():
    """Labels have no derivative, and neither has a key; the start may be drawn with it."""

    def cross_entropy(phi, batch):
        inputs, labels = batch
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(inputs @ phi), labels[:, None], axis=1))

    problem = imaml.proximal(cross_entropy, 0.5)
    batch = (jnp.asarray(SUPPORT[0]), jnp.arange(ROWS) % 3)
    weights = jnp.asarray(RANDOM.normal(size=(FEATURES, 3)))

    def noisy(problem, theta, batch, phi0, key):
        start = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), phi0)
        return imaml.GradientDescent(0.5, tolerance=1e-12)(problem, theta, batch, start, key)

    @jax.jit
    def both(theta, key, batch):
        rule = imaml.implicit(TIGHT)
        phi, pull = jax.vjp(lambda t: imaml.solve(problem, t, batch, inner=noisy, rule=rule, key=key), theta)
        slope = jax.grad(cross_entropy)(phi, batch)
        return phi, slope, pull(slope)[0]

    phi, slope, gradient = both(weights, jax.random.key(0), batch)
    jacobian = dense_jacobian_matrix(problem, phi, weights, batch)
    # |F| <= 1e-12 at a curvature of at least 0.5: phi, and so its Jacobian, is off by some 2e-12.
    np.testing.assert_allclose(np.ravel(gradient), jacobian.T @ np.ravel(slope), rtol=1e-9, atol=1e-11)


def dense_jacobian_matrix(problem, phi, theta, batch):
    """`dense_jacobian` for a theta that is a matrix."""
    shape = theta.shape
    flat = imaml.stationary(lambda p, t, x: problem.objective(p.reshape(shape), t.reshape(shape), x))
    return dense_jacobian(flat, phi.ravel(), theta.ravel(), batch)
