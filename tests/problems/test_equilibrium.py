"""Anchored problems that minimise nothing: temporal differences and games, against dense closed forms."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.domains.control.markov import Process, optimal, soft_value, value_of, walk

GENERAL = {
    "Dense": imaml.Dense(),
    "GMRES": imaml.GMRES(tolerance=1e-13),
    "BiCGStab": imaml.BiCGStab(tolerance=1e-13),
}
solvers = pytest.mark.parametrize("linear", GENERAL.values(), ids=GENERAL)
STRENGTH, DISCOUNT, TEMPERATURE = 0.3, 0.9, 0.2
KEY = jax.random.key(0)


def some_process(seed, states=6, actions=3):
    """A random process without an end."""
    keys = jax.random.split(jax.random.key(seed), 2)
    moves = jax.nn.softmax(2 * jax.random.normal(keys[0], (states, actions, states)))
    entering = jax.random.normal(keys[1], (states,))
    return Process(moves, entering, jnp.zeros(states, bool), jnp.full(states, 1 / states))


def cotangent_of(problem, phi, theta, batch, v, linear):
    found, solution = imaml.implicit_vjp(problem, phi, theta, batch, v, linear=linear)
    assert solution.status.ok
    return found


@pytest.mark.slow
@solvers
@pytest.mark.parametrize("seed", range(3))
def test_soft_q_learning_has_its_closed_form(seed, linear):
    """((1 + strength) I - gamma P_pi)^-1 at the soft policy."""
    process = some_process(seed)

    def field(q, process):
        return q - process.gains - DISCOUNT * process.moves @ soft_value(q, TEMPERATURE)

    problem = imaml.equilibrium(field, STRENGTH)
    theta, v = (jax.random.normal(key, (6, 3)) for key in jax.random.split(jax.random.key(10 + seed)))
    solved = imaml.GradientDescent(0.5, tolerance=1e-13)(problem, theta, process)
    assert solved.status.ok
    q = solved.value
    policy = jax.nn.softmax(q / TEMPERATURE)
    onward = jnp.einsum("sat,tb->satb", process.moves, policy).reshape(18, 18)
    matrix = (1 + STRENGTH) * jnp.eye(18) - DISCOUNT * onward
    expected = STRENGTH * jnp.linalg.solve(matrix.T, v.ravel())
    found = cotangent_of(problem, q, theta, process, v, linear)
    np.testing.assert_allclose(found.ravel(), expected, rtol=0, atol=1e-10 * np.linalg.norm(expected))


@solvers
@pytest.mark.parametrize("seed", range(3))
def test_least_squares_temporal_differences_have_their_closed_form(seed, linear):
    """(Phi^T (Phi - gamma Phi') + strength I)^-1."""
    keys = jax.random.split(jax.random.key(seed), 5)
    now, then = (jax.random.normal(key, (12, 4)) for key in keys[:2])
    rewards, theta, v = (jax.random.normal(key, (n,)) for key, n in zip(keys[2:], (12, 4, 4), strict=True))

    def field(weights, batch):
        now, then, rewards = batch
        return now.T @ (now @ weights - rewards - DISCOUNT * then @ weights)

    problem = imaml.equilibrium(field, STRENGTH)
    matrix = now.T @ (now - DISCOUNT * then) + STRENGTH * jnp.eye(4)
    weights = jnp.linalg.solve(matrix, now.T @ rewards + STRENGTH * theta)
    batch = (now, then, rewards)
    assert jnp.linalg.norm(problem.residual(weights, theta, batch)) < 1e-12 * jnp.linalg.norm(now.T @ rewards)
    expected = STRENGTH * jnp.linalg.solve(matrix.T, v)
    found = cotangent_of(problem, weights, theta, batch, v, linear)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.linalg.norm(expected))


@solvers
def test_a_quadratic_game_has_its_closed_form(linear):
    keys = jax.random.split(jax.random.key(0), 5)
    own_x, own_y = (jnp.eye(n) * 0.5 for n in (3, 2))
    cross, theta, v = jax.random.normal(keys[0], (3, 2)), *(jax.random.normal(k, (5,)) for k in keys[1:3])
    theta, v = ({"x": t[:3], "y": t[3:]} for t in (theta, v))

    def field(phi, _):
        """x minimises 1/2 x.A.x + x.B.y, y minimises 1/2 y.C.y - x.B.y."""
        x, y = phi["x"], phi["y"]
        return {"x": own_x @ x + cross @ y, "y": own_y @ y - cross.T @ x}

    problem = imaml.equilibrium(field, STRENGTH)
    matrix = jnp.block([[own_x, cross], [-cross.T, own_y]]) + STRENGTH * jnp.eye(5)
    flat = lambda tree: jnp.concatenate([tree["x"], tree["y"]])  # noqa: E731
    solved = imaml.GradientDescent(0.1, tolerance=1e-13)(problem, theta, None)
    np.testing.assert_allclose(
        flat(solved.value), STRENGTH * jnp.linalg.solve(matrix, flat(theta)), atol=1e-12
    )
    found = cotangent_of(problem, solved.value, theta, None, v, linear)
    np.testing.assert_allclose(flat(found), STRENGTH * jnp.linalg.solve(matrix.T, flat(v)), atol=1e-10)


def test_solvers_for_symmetric_systems_refuse_with_advice():
    problem = imaml.equilibrium(lambda phi, _: phi, 1.0)
    ones = jnp.ones(2)
    for linear in (
        imaml.CG(steps=3),
        imaml.MINRES(steps=3),
        imaml.CG(steps=3, precondition=imaml.Diagonal()),
    ):
        with pytest.raises(imaml.StructureError, match="GMRES"):
            imaml.implicit_vjp(problem, ones, ones, None, ones, linear=linear)
    with pytest.raises(imaml.StructureError, match="GMRES"):
        imaml.IMAML(
            problem,
            lambda p, t, b: p @ p,
            inner=imaml.GradientDescent(0.1, steps=2),
            linear=imaml.CG(steps=2),
        )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: imaml.equilibrium("field", 1.0), "expected a function"),
        (lambda: imaml.equilibrium(lambda p, b: p, 0.0), "expected positive finite numbers"),
        (lambda: imaml.equilibrium(lambda p, b: p, imaml.learned(1.0)), "expected a positive number"),
        (
            lambda: imaml.equilibrium(lambda p, b: p[:1], 1.0).residual(jnp.ones(2), jnp.ones(2), None),
            "expected a result shaped like phi",
        ),
    ],
)
def test_bad_problems_are_refused(make, words):
    with pytest.raises(imaml.ConfigError, match=words):
        make()


def test_without_an_anchor_it_is_plain():
    problem = imaml.equilibrium(lambda phi, batch: phi - batch, None)
    assert not problem.anchored
    solved = imaml.GradientDescent(0.5, steps=1)(problem, jnp.zeros(2), jnp.ones(2))
    np.testing.assert_allclose(solved.value, 0.5)


def test_only_the_adapted_leaves_are_anchored_and_the_shared_ones_get_their_gradient():
    def field(phi, batch):
        return {"own": phi["own"] * phi["shared"] - batch, "shared": jnp.zeros(2)}

    problem = imaml.equilibrium(field, 0.5, adapt="own")
    theta = {"own": jnp.array([1.0, 2.0]), "shared": jnp.array([2.0, 3.0])}
    method = imaml.IMAML(
        problem,
        lambda phi, theta, batch: jnp.sum(phi["own"] ** 2),
        inner=imaml.GradientDescent(0.2, tolerance=1e-12),
        linear=imaml.Dense(),
    )
    tasks = imaml.Task(jnp.ones((1, 2)), jnp.ones((1, 2)))
    found, _ = method(theta, tasks)

    def closed(theta):
        return jnp.sum(((1 + 0.5 * theta["own"]) / (theta["shared"] + 0.5)) ** 2)

    expected = jax.grad(closed)(theta)
    for name in theta:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-9)


def test_values_are_those_of_the_process():
    """A chain of three cells, the last the goal: going right is worth gamma^(steps - 1)."""
    right, left = jnp.array([1, 2, 2]), jnp.array([0, 0, 2])
    moves = jnp.stack([jax.nn.one_hot(right, 3), jax.nn.one_hot(left, 3)], 1)
    over = jnp.array([False, False, True])
    process = Process(moves, jnp.array([0.0, 0.0, 1.0]), over, jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(optimal(process, 0.5), [[0.5, 0.25], [1.0, 0.25], [0.0, 0.0]], atol=1e-12)
    going = jnp.tile(jnp.array([1.0, 0.0]), (3, 1))
    np.testing.assert_allclose(value_of(process, going, 0.5), [0.5, 1.0, 0.0], atol=1e-12)
    walks = walk(jax.random.key(0), process, 20, 30)
    assert walks.states.shape == (600,)
    np.testing.assert_array_equal(walks.rewards, walks.following == 2)
    np.testing.assert_array_equal(walks.ended, walks.following == 2)
    expected = jnp.where(walks.actions == 0, right[walks.states], left[walks.states])
    np.testing.assert_array_equal(walks.following, expected)
    planned = optimal(walks.as_process(process), 0.5)
    np.testing.assert_allclose(planned, optimal(process, 0.5), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (6,)], ids=["tabular", "network"])
@pytest.mark.parametrize("judge", ["return", "bellman"])
def test_the_meta_gradient_of_mazes_equals_central_differences(judge, hidden):
    domain = imaml.mazes(side=3, walks=3, length=8, hidden=hidden, judge=judge, temperature=0.3)
    double = lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
    tasks = jax.tree.map(double, jax.vmap(lambda key: domain.sample(key, "train"))(jax.random.split(KEY, 2)))
    theta = jax.tree.map(double, domain.init(jax.random.key(1)))
    strength, rate = (2.0, 0.05) if hidden else (0.5, 0.3)  # of a network the temporal differences may cycle
    problem, inner = domain.problem(strength), imaml.GradientDescent(rate, tolerance=1e-12)
    method = imaml.IMAML(problem, domain.query_loss, inner=inner, linear=imaml.GMRES(tolerance=1e-12))
    with jax.numpy_rank_promotion("allow"):  # networks add a bias to every row
        found, metrics = jax.jit(method)(theta, tasks)
        assert np.all(metrics.inner_residual <= 1e-12)

        @jax.jit
        def loss(theta):
            one = lambda task: domain.query_loss(inner(problem, theta, task.support).value, theta, task.query)  # noqa: E731
            return jnp.mean(jax.vmap(one)(tasks))

        way = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), theta)
        moved = lambda h: loss(jax.tree.map(lambda t, w: t + h * w, theta, way))  # noqa: E731
        expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
    along = sum(jnp.vdot(g, w) for g, w in zip(jax.tree.leaves(found), jax.tree.leaves(way), strict=True))
    assert abs(expected) > 1e-4
    assert along == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("two_devices")
def test_mazes_train_from_the_command_line_s_recipes_and_are_loaded_again(tmp_path):
    from imaml.config.methods import Method
    from imaml.config.optimiser import Optimiser
    from imaml.training.step import devices_mesh

    domain = imaml.mazes(side=3, walks=2, length=5, hidden=(4,))
    method = Method(strength=0.5, inner=imaml.GradientDescent(0.3, steps=4), linear=imaml.Dense())
    options = {"steps": 2, "tasks": 2, "validate_every": 0, "progress": False, "out": tmp_path / "run"}
    with jax.numpy_rank_promotion("allow"):
        imaml.train(domain, method.build(domain, devices_mesh(2)), Optimiser("adam", 1e-3), **options)
        found = imaml.evaluate(imaml.load(tmp_path / "run"), tasks=4)
    assert found.baselines["random_moves"] < found.baselines["optimal"]
    assert found.scores["return"] <= found.baselines["optimal"] + 1e-5
    shared = devices_mesh(2)
    assert shared is not None
    gmres = replace(method, linear=imaml.GMRES(steps=30, restart=10))
    with jax.numpy_rank_promotion("allow"):
        gradients = [
            jax.jit(gmres.build(domain, mesh))(
                domain.init(jax.random.key(0)),
                jax.vmap(lambda key: domain.sample(key, "train"))(jax.random.split(jax.random.key(1), 2)),
                jax.random.key(2),
            )[0]
            for mesh in (None, shared)
        ]
    for apart, together in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(apart, together, rtol=1e-4, atol=1e-6)
    with pytest.raises(imaml.ConfigError, match="gauss-newton"):
        Method(strength=0.5, linear=imaml.Dense(), curvature="gauss-newton").build(domain)


@pytest.mark.slow
def test_lakes_are_gymnasium_s_frozen_lake():
    """The same probabilities and rewards for the same map, as slippery; and there is a way through."""
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

    domain = imaml.mazes(side=5, maps="lakes", holes=0.4, slip=2 / 3)
    for seed in range(3):
        lake = domain.draw(jax.random.key(seed), "train")._replace(slip=jnp.float32(2 / 3))
        letters = np.full(25, "F")
        letters[np.asarray(lake.holes)] = "H"
        letters[[0, 24]] = "S", "G"
        assert (letters == "H").any()
        theirs = FrozenLakeEnv(desc=["".join(row) for row in letters.reshape(5, 5)], is_slippery=True).P
        expected, gains = np.zeros((25, 4, 25)), np.zeros((25, 4))
        for ours, action in enumerate((3, 2, 1, 0)):  # up, right, down, left, as they number them
            for cell in range(25):
                for chance, following, reward, _ in theirs[cell][action]:
                    expected[cell, ours, following] += chance
                    gains[cell, ours] += chance * reward
        process = domain.process(lake)
        np.testing.assert_allclose(process.moves, expected, atol=1e-6)
        np.testing.assert_allclose(process.gains, gains, atol=1e-6)
        assert process.start[0] == 1
        assert optimal(process, 0.95)[0].max() > 0


@pytest.mark.slow
def test_every_lake_has_a_dry_way_through_it():
    domain = imaml.mazes(side=4, maps="lakes", holes=0.8, walls=0.0, slip=0.0)
    lakes = jax.vmap(lambda key: domain.draw(key, "test"))(jax.random.split(KEY, 50))
    best = jax.vmap(lambda lake: optimal(domain.process(lake), 0.9)[0].max())(lakes)
    np.testing.assert_allclose(best, 0.9**5, rtol=1e-5)  # six moves: down and right, never back
    assert len(np.unique(np.asarray(lakes.holes), axis=0)) > 10
