"""Problems: residuals against formulas by hand and against the objective's gradient; strengths; refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml

EXACT = {"rtol": 1e-14, "atol": 1e-14}  # the same few float64 operations, perhaps in another order
RANDOM = np.random.default_rng(0)
THETA = {
    "body": {"bias": jnp.asarray(RANDOM.normal(size=3)), "weight": jnp.asarray(RANDOM.normal(size=(2, 3)))},
    "head": jnp.asarray(RANDOM.normal(size=3)),
}
PHI = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(leaf), THETA)
BATCH = (jnp.asarray(RANDOM.normal(size=(4, 2))), jnp.asarray(RANDOM.normal(size=4)))


def loss(phi, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ phi["body"]["weight"] + phi["body"]["bias"][None])
    return 0.5 * jnp.mean((hidden @ phi["head"] - targets) ** 2)


def close(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **EXACT), left, right)


def third(phi, theta, batch):
    return vector_loss(phi, batch)


def player(x, y, theta, batch):
    return vector_loss(x, batch)


def vector_loss(phi, batch):
    return 0.5 * jnp.sum((phi - batch) ** 2)


def pull(strength):
    """The residual by hand: slope of the loss plus strength (phi - theta), leaf by leaf."""
    slope = jax.grad(loss)(PHI, BATCH)
    return jax.tree.map(lambda g, s, p, t: g + s * (p - t), slope, strength, PHI, THETA)


PER_LEAF = {"body": {"bias": 0.5, "weight": 2.0}, "head": 3.0}
PER_PARAMETER = jax.tree.map(lambda leaf: jnp.exp(0.3 * leaf), THETA)


def everywhere(value):
    return jax.tree.map(lambda _: value, THETA)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (0.7, everywhere(0.7)),
        (2, everywhere(2.0)),
        (jnp.asarray(0.7), everywhere(0.7)),
        (PER_LEAF, PER_LEAF),
        (PER_PARAMETER, PER_PARAMETER),
        (imaml.learned(0.7, per="all"), everywhere(0.7)),
        (imaml.learned(0.7), everywhere(0.7)),
        (imaml.learned(0.7, per="parameter"), everywhere(0.7)),
    ],
    ids=[
        "number",
        "integer",
        "array",
        "leaf",
        "parameter",
        "learned all",
        "learned leaf",
        "learned parameter",
    ],
)
def test_proximal_residual_is_the_formula_and_the_gradient_of_the_objective(strength, expected):
    problem = imaml.proximal(loss, strength)
    theta = problem.parameters(THETA)
    residual = problem.residual(PHI, theta, BATCH)
    close(residual, pull(expected))
    close(residual, jax.grad(problem.objective)(PHI, theta, BATCH))
    assert problem.structure == "spd"
    close(problem.init(theta, BATCH), THETA)


@pytest.mark.parametrize("per", ["all", "leaf", "parameter"])
def test_learned_strength_is_the_exponential_of_its_part_of_theta(per):
    problem = imaml.proximal(loss, imaml.learned(0.5, per=per))
    theta = problem.parameters(THETA)
    assert isinstance(theta, imaml.Theta)
    shapes = {"all": [()], "leaf": [(), (), ()], "parameter": [(3,), (2, 3), (3,)]}[per]
    assert [leaf.shape for leaf in jax.tree.leaves(theta.log_strength)] == shapes
    changed = theta._replace(log_strength=jax.tree.map(lambda log: log + np.log(3.0), theta.log_strength))
    close(problem.residual(PHI, changed, BATCH), pull(everywhere(1.5)))


HEAD = {"body": {"bias": None, "weight": None}, "head": True}


@pytest.mark.parametrize(
    "adapt",
    [
        "head",
        ("head",),
        {"head"},
        {"body": False, "head": True},
        {"body": {"bias": False, "weight": False}, "head": True},
        lambda theta: {"body": False, "head": True},
    ],
    ids=["name", "names", "set", "prefix", "mask", "function"],
)
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_adapt_selects_the_head_in_every_way_of_saying_so(adapt, learned):
    problem = imaml.proximal(loss, imaml.learned(0.5) if learned else 0.5, adapt=adapt)
    theta = problem.parameters(THETA)
    phi = problem.split(PHI)
    assert jax.tree.structure(phi) == jax.tree.structure(HEAD)
    full = problem.full(phi, theta)
    close(full, {"body": THETA["body"], "head": PHI["head"]})
    by_hand = jax.grad(loss)(full, BATCH)["head"] + 0.5 * (PHI["head"] - THETA["head"])
    close(problem.residual(phi, theta, BATCH)["head"], by_hand)
    close(jax.grad(problem.objective)(phi, theta, BATCH)["head"], by_hand)
    close(problem.init(theta, BATCH)["head"], THETA["head"])


def test_adapt_takes_branches_and_paths():
    assert len(jax.tree.leaves(imaml.proximal(loss, 1.0, adapt="body").split(THETA))) == 2
    assert len(jax.tree.leaves(imaml.proximal(loss, 1.0, adapt=("body/bias", "head")).split(THETA))) == 2


def test_strength_tree_may_cover_all_leaves_or_only_the_adapted():
    for strength in (PER_LEAF, {"body": {"bias": None, "weight": None}, "head": 3.0}):
        problem = imaml.proximal(loss, strength, adapt="head")
        phi = problem.split(PHI)
        pulled = problem.residual(phi, THETA, BATCH)["head"]
        slope = jax.grad(loss)(problem.full(phi, THETA), BATCH)["head"]
        close(pulled, slope + 3.0 * (PHI["head"] - THETA["head"]))


def test_plain_has_no_anchor():
    problem = imaml.plain(loss)
    close(problem.residual(PHI, THETA, BATCH), jax.grad(loss)(PHI, BATCH))
    close(problem.objective(PHI, THETA, BATCH), loss(PHI, BATCH))
    assert not problem.anchored
    only = imaml.plain(loss, adapt="head")
    close(
        only.residual(only.split(PHI), THETA, BATCH)["head"],
        jax.grad(loss)(THETA | {"head": PHI["head"]}, BATCH)["head"],
    )


def test_stationary_fixed_point_and_game_by_hand():
    theta, phi, batch = jnp.array([0.5, 1.0]), jnp.array([0.2, -0.3]), jnp.array([1.0, 2.0])
    saddle = imaml.stationary(
        lambda p, t, x: p[0] ** 2 * t[0] - p[1] ** 2 * t[1] + p @ x, structure="symmetric"
    )
    close(saddle.residual(phi, theta, batch), 2 * jnp.array([0.5, -1.0]) * phi + batch)
    close(saddle.residual(phi, theta, batch), jax.grad(saddle.objective)(phi, theta, batch))
    assert saddle.structure == "symmetric"
    fixed = imaml.fixed_point(lambda p, t, x: 0.5 * jnp.tanh(p) + t * x)
    close(fixed.residual(phi, theta, batch), phi - 0.5 * jnp.tanh(phi) - theta * batch)
    assert fixed.objective(phi, theta, batch) is None
    assert fixed.structure == "general"
    game = imaml.game(
        lambda x, y, t, b: 0.5 * jnp.sum(x**2) + t[0] * jnp.sum(x * y),
        lambda x, y, t, b: jnp.sum(y**2) - t[1] * jnp.sum(x * y) - y @ b,
        init=lambda t, b, key: (t, t),
    )
    x, y = phi, 2 * phi
    close(game.residual((x, y), theta, batch), (x + 0.5 * y, 2 * y - x - batch))
    assert game.structure == "general"
    close(game.init(theta, batch, None), (theta, theta))


def test_a_problem_is_a_tree_whose_leaf_is_the_strength():
    problem = imaml.proximal(vector_loss, 2.0)
    assert jax.tree.leaves(problem) == [2.0]
    theta, phi, batch = jnp.zeros(2), jnp.ones(2), jnp.ones(2)
    residual = jax.jit(lambda problem: problem.residual(phi, theta, batch))
    close(residual(problem), 2 * jnp.ones(2))
    strengths = jax.tree.map(lambda _: jnp.array([1.0, 2.0, 3.0]), problem)
    close(jax.vmap(residual)(strengths), jnp.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
    slope = jax.grad(lambda problem: jnp.sum(problem.residual(phi, theta, batch)))(problem)
    close(slope.strength, jnp.asarray(2.0))


@pytest.mark.parametrize(
    "bad", [0, -1.0, float("nan"), float("inf"), np.array([1.0, 0.0]), {"a": 1.0, "b": -1.0}]
)
def test_strength_must_be_positive_and_finite(bad):
    with pytest.raises(imaml.ConfigError, match=r"strength: .*positive finite numbers.*use plain\(loss\)"):
        imaml.proximal(vector_loss, bad)


REFUSED = {
    "strength none": (lambda: imaml.proximal(loss, None), "strength: expected a positive number.*got None"),
    "strength text": (
        lambda: imaml.proximal(loss, "strong"),
        "strength: expected positive finite numbers, got 'strong'",
    ),
    "strength tree": (
        lambda: imaml.proximal(loss, {"tail": 1.0}).residual(PHI, THETA, BATCH),
        "strength: expected one number, or a tree like the adapted parameters.*head.*, got .*tail",
    ),
    "strength shape": (
        lambda: imaml.proximal(loss, PER_LEAF | {"head": np.ones(4)}).residual(PHI, THETA, BATCH),
        r"the parameter's shape, \(3,\), got shape \(4,\)",
    ),
    "learned zero": (
        lambda: imaml.learned(0.0),
        "learned: initial: expected a finite number above 0, got 0.0",
    ),
    "learned text": (
        lambda: imaml.learned("x"),
        "initial: expected a finite number above 0, got 'x'",
    ),
    "learned per": (
        lambda: imaml.learned(1.0, per="layer"),
        "per: expected one of 'all', 'leaf', 'parameter'.*got 'layer'",
    ),
    "no anchor": (
        lambda: imaml.proximal(loss, imaml.learned(1.0)).residual(PHI, THETA, BATCH),
        r"expected a Theta with log_strength.*got dict.*problem\.parameters\(mean\)",
    ),
    "adapt unknown": (
        lambda: imaml.proximal(loss, 1.0, adapt="tail").init(THETA, BATCH),
        "leaf or branch of theta: expected one of body/bias, body/weight, head, got 'tail'",
    ),
    "adapt part of a name": (
        lambda: imaml.proximal(loss, 1.0, adapt="hea").init(THETA, BATCH),
        "got 'hea'. Hint: did you mean",
    ),
    "adapt number": (lambda: imaml.proximal(loss, 1.0, adapt=3), "adapt: expected None .*, got 3"),
    "adapt nothing": (
        lambda: imaml.proximal(loss, 1.0, adapt=lambda theta: False).init(THETA, BATCH),
        "adapt: expected at least one leaf of theta",
    ),
    "adapt wrong prefix": (
        lambda: imaml.proximal(loss, 1.0, adapt=lambda theta: [True]).init(THETA, BATCH),
        "expected a function that returns a tree of booleans shaped like theta",
    ),
    "loss no function": (
        lambda: imaml.proximal(3.0, 1.0),
        r"loss: expected a function \(phi, batch\), got 3.0",
    ),
    "loss vector": (
        lambda: imaml.proximal(lambda phi, x: phi - x, 1.0).residual(jnp.ones(2), jnp.ones(2), jnp.ones(2)),
        r"^loss: expected a function that returns one floating-point number, got one that returns an array "
        r"of shape \(2,\)\. Hint: take its mean or sum\.",
    ),
    "plain vector": (
        lambda: imaml.plain(lambda phi, x: phi - x).residual(jnp.ones(2), jnp.ones(2), jnp.ones(2)),
        "expected a function that returns one floating-point number",
    ),
    "stationary structure": (
        lambda: imaml.stationary(third, structure="general"),
        "structure: expected one of spd, symmetric, got 'general'",
    ),
    "stationary init": (
        lambda: imaml.stationary(lambda p, t, x: jnp.sum((p["w"] - t["v"]) ** 2)).residual(
            {"v": jnp.ones(2)}, {"v": jnp.ones(2)}, None
        ),
        "stationary: expected a result shaped like phi, .*v.*got an error.*phi starts at theta.*pass init=",
    ),
    "fixed point init": (
        lambda: imaml.fixed_point(lambda p, t, x: p[:1]).residual(jnp.ones(2), jnp.ones(2), None),
        r"fixed_point: expected a result shaped like phi, .*\(2,\), got .*\(1,\).*pass init=",
    ),
    "fixed point own init": (
        lambda: imaml.fixed_point(lambda p, t, x: p[:1], init=lambda t, x, key: t).residual(
            jnp.ones(2), jnp.ones(2), None
        ),
        "phi starts at what `init` returned; check its shapes",
    ),
    "game init": (
        lambda: imaml.game(player, player).residual(jnp.ones(2), jnp.ones(2), None),
        r"game: phi: expected a pair \(x, y\), got one array of shape \(2,\).*pass init=",
    ),
    "plain under implicit": (
        lambda: imaml.solve(
            imaml.plain(vector_loss),
            jnp.ones(2),
            jnp.ones(2),
            inner=imaml.GradientDescent(0.1, steps=1),
            rule=imaml.implicit(imaml.CG()),
        ),
        r"^implicit: expected a problem whose solution depends on theta, got plain, which only starts "
        r"there\. Hint: use proximal\(loss, strength\), or the rules unrolled\(\) or first_order\(\)\.$",
    ),
    "plain under IMAML": (
        lambda: imaml.IMAML(
            imaml.plain(vector_loss),
            lambda phi, theta, batch: vector_loss(phi, batch),
            inner=imaml.GradientDescent(0.1, steps=1),
            linear=imaml.CG(),
        ),
        r"^implicit: expected a problem whose solution depends on theta, got plain, which only starts "
        r"there\. Hint: use proximal\(loss, strength\), or MAML\(\.\.\.\) or FOMAML\(\.\.\.\)\.$",
    ),
    "plain under implicit_vjp": (
        lambda: imaml.implicit_vjp(
            imaml.plain(vector_loss), jnp.ones(2), jnp.ones(2), jnp.ones(2), jnp.ones(2), linear=imaml.CG()
        ),
        "expected a problem whose solution depends on theta",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_say_what_came_and_what_to_do(call, message):
    with pytest.raises(imaml.ConfigError, match=f"(?s){message}"):
        call()


NO_LOSSES = {
    "a dict": (lambda phi: {"loss": jnp.sum(phi)}, "a dict. Hint: return the loss alone;"),
    "a tuple": (lambda phi: (jnp.sum(phi), phi), "a tuple. Hint: return the loss alone;"),
    "a list": (lambda phi: [jnp.sum(phi)], "a list. Hint: return the loss alone;"),
    "None": (lambda phi: None, "None. Hint: return the loss alone;"),
    "an array": (lambda phi: phi[:1], r"an array of shape \(1,\). Hint: take its mean or sum."),
    "an integer": (
        lambda phi: jnp.sum(phi > 0),
        r"a number of dtype int\d+. Hint: compute the loss in floating-point numbers.",
    ),
}
square = lambda phi, batch: jnp.sum(phi**2)  # noqa: E731
INNER = {"inner": imaml.GradientDescent(0.1, steps=2)}
PROBLEMS = {
    "loss": lambda loss: [imaml.proximal(lambda p, b: loss(p), 1.0), imaml.plain(lambda p, b: loss(p))],
    "objective": lambda loss: [imaml.stationary(lambda p, t, b: loss(p))],
    "loss_x": lambda loss: [imaml.game(lambda x, y, t, b: loss(x), lambda x, y, t, b: jnp.sum(y))],
}
METHODS = {
    "IMAML": lambda query: imaml.IMAML(imaml.proximal(square, 1.0), query, linear=imaml.CG(), **INNER),
    "MAML": lambda query: imaml.MAML(imaml.plain(square), query, **INNER),
    "FOMAML": lambda query: imaml.FOMAML(imaml.plain(square), query, **INNER),
    "Reptile": lambda query: imaml.Reptile(imaml.plain(square), query, **INNER),
    "one_step": lambda query: imaml.MetaGradient(
        imaml.proximal(square, 1.0), query, rule=imaml.one_step(), **INNER
    ),
}


@pytest.mark.parametrize(("loss", "found"), NO_LOSSES.values(), ids=NO_LOSSES)
@pytest.mark.parametrize("where", [*PROBLEMS, *METHODS])
def test_a_loss_that_is_no_number_is_refused(where, loss, found):
    argument = where if where in PROBLEMS else "query_loss"
    told = f"^{argument}: expected a function that returns one floating-point number, got one that returns "
    theta = (jnp.ones(2), jnp.ones(2)) if where == "loss_x" else jnp.ones(2)
    tasks = imaml.Task(jnp.ones((1, 2)), jnp.zeros((1, 2)))
    for problem in PROBLEMS[where](loss) if where in PROBLEMS else ():
        with pytest.raises(imaml.ConfigError, match=told + found):
            problem.residual(theta, theta, jnp.ones(2))
        with pytest.raises(imaml.ConfigError, match=told + found):
            imaml.solve(problem, theta, jnp.ones(2), rule=imaml.unrolled(), **INNER)
    if where in METHODS:
        with pytest.raises(imaml.ConfigError, match=told + found):
            METHODS[where](lambda phi, theta, batch: loss(phi))(theta, tasks)


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("strength", [0.5, 2, imaml.learned(0.5)], ids=str)
def test_residuals_promote_no_dtype(dtype, strength):
    problem = imaml.proximal(vector_loss, strength)
    theta = problem.parameters(jnp.zeros(2, dtype))
    assert problem.residual(jnp.ones(2, dtype), theta, jnp.ones(2, dtype)).dtype == dtype
