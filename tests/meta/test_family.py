"""MAML, first-order MAML, Reptile, its proximal form: each its own formula, and what all methods promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import imaml
from helpers.marks import slow_after_first
from imaml.cli.options import split_words
from imaml.config.method import Anchored, Bayes, Bayesian, NewTask
from imaml.config.methods import Method, changed, methods
from imaml.config.overrides import overrides
from imaml.config.presets import preset
from imaml.config.run import Config
from imaml.core.errors import ConfigError
from imaml.core.recipes import from_json, to_json
from imaml.domains.fewshot.episodes import cross_entropy
from imaml.domains.fewshot.images import Images

COUNT, ROWS, STRENGTH = 3, 5, 0.5
RANDOM = np.random.default_rng(1)
KEY = jax.random.key(0)


def loss(phi, batch):
    inputs, targets = batch
    return 0.5 * jnp.mean((jnp.tanh(inputs @ phi["body"]) @ phi["head"] - targets) ** 2)


def query_loss(phi, theta, batch):
    """With a direct dependence on theta, so that the direct term is tested too."""
    return loss(phi, batch) + 0.01 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(theta))


def points():
    return jnp.asarray(RANDOM.normal(size=(COUNT, ROWS, 2))), jnp.asarray(RANDOM.normal(size=(COUNT, ROWS)))


THETA = {"body": jnp.asarray(RANDOM.normal(size=(2, 3))), "head": jnp.asarray(RANDOM.normal(size=3))}
TASKS = imaml.Task(points(), points())
FLAT, UNRAVEL = ravel_pytree(THETA)
PLAIN, ANCHORED = imaml.plain(loss), imaml.proximal(loss, STRENGTH)
FEW = imaml.GradientDescent(0.3, steps=3)
PACED = imaml.GradientDescent(imaml.learned(0.3), steps=3)
TIGHT = imaml.GradientDescent(0.3, tolerance=1e-12)

METHODS = {
    "imaml": lambda: imaml.IMAML(ANCHORED, query_loss, inner=TIGHT, linear=imaml.CG(tolerance=1e-12)),
    "maml": lambda: imaml.MAML(PLAIN, query_loss, inner=FEW),
    "imaml, Hessian-free": lambda: imaml.IMAML(
        ANCHORED,
        query_loss,
        inner=imaml.NewtonCG(tolerance=1e-12, linear=imaml.CG(tolerance=1e-6)),
        linear=imaml.CG(tolerance=1e-12),
    ),
    "metasgd": lambda: imaml.MetaSGD(PLAIN, query_loss, inner=FEW),
    "as-released": lambda: imaml.MetaGradient(
        ANCHORED, query_loss, inner=imaml.ThenPulled(0.3, 3), rule=imaml.as_released()
    ),
    "anil": lambda: imaml.MAML(imaml.plain(loss, adapt="head"), query_loss, inner=FEW),
    "fomaml": lambda: imaml.FOMAML(PLAIN, query_loss, inner=FEW),
    "reptile": lambda: imaml.Reptile(PLAIN, query_loss, inner=FEW),
    "reptile of the head": lambda: imaml.Reptile(imaml.plain(loss, adapt="head"), query_loss, inner=FEW),
    "proximal reptile": lambda: imaml.Reptile(ANCHORED, query_loss, inner=TIGHT),
}


def start(method):
    """THETA, with the inner rates where they are learned."""
    learns = getattr(method.inner, "parameters", None)
    return THETA if learns is None else learns(method.problem, THETA)


def close(left, right, tolerance):
    left, right = ravel_pytree(left)[0], ravel_pytree(right)[0]
    assert float(jnp.linalg.norm(left - right)) <= tolerance * float(jnp.linalg.norm(right))


def central(function, theta=FLAT, step=1e-5):
    """The gradient of a function of a flat vector by central differences; truncation about step^2 = 1e-10."""
    rows = theta[None] + step * jnp.concatenate([jnp.eye(theta.size), -jnp.eye(theta.size)])
    values = jax.jit(jax.vmap(function))(rows)
    return (values[: theta.size] - values[theta.size :]) / (2 * step)


def mean(function, unravel=UNRAVEL):
    """The mean over tasks of function(theta, support, query), of a flat theta."""
    return lambda flat: jnp.mean(jax.vmap(lambda task: function(unravel(flat), *task))(TASKS))


def both(support, query):
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query)


def adapted(inner, problem, theta, batch):
    return problem.full(inner(problem, theta, batch).value, theta)


INNER = {
    "gradient descent": FEW,
    "momentum": imaml.Descent(optax.sgd(0.2, momentum=0.7), steps=3),
    "Nesterov": imaml.Descent(optax.sgd(0.2, momentum=0.7, nesterov=True), steps=3),
    "Adam": imaml.Descent(optax.adam(0.05, eps_root=1e-10), steps=3),
    "RMSprop": imaml.Descent(optax.rmsprop(0.05, eps=1e-2), steps=3),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("adapt", [None, "head"])
def test_maml_is_the_gradient_of_its_own_unrolled_objective(inner, adapt):
    problem = imaml.plain(loss, adapt)
    objective = lambda theta, s, q: query_loss(adapted(INNER[inner], problem, theta, s), theta, q)  # noqa: E731
    gradient, metrics = jax.jit(imaml.MAML(problem, query_loss, inner=INNER[inner]))(THETA, TASKS, KEY)
    close(gradient, UNRAVEL(central(mean(objective))), 1e-6)
    np.testing.assert_allclose(jnp.mean(metrics.loss), mean(objective)(FLAT), rtol=1e-12)


@pytest.mark.parametrize("per", ["all", "leaf", "parameter"])
def test_meta_sgd_learns_the_rates_by_the_same_gradient(per):
    inner = imaml.GradientDescent(imaml.learned(0.3, per), steps=3)
    method = imaml.MetaSGD(PLAIN, query_loss, inner=inner)
    theta = start(method)
    flat, unravel = ravel_pytree(theta)
    assert flat.size == FLAT.size + {"all": 1, "leaf": 2, "parameter": FLAT.size}[per]
    flat += jnp.asarray(0.1 * RANDOM.normal(size=flat.size))  # rates of their own

    def objective(theta, support, query):
        rates = jax.tree.map(jnp.exp, theta.log_rate)
        phi = theta.mean
        for _ in range(3):
            slope = jax.grad(loss)(phi, support)
            if per == "all":
                phi = jax.tree.map(lambda p, g: p - rates * g, phi, slope)
            else:
                phi = jax.tree.map(lambda p, g, r: p - r * g, phi, slope, rates)
        return query_loss(phi, theta, query)

    gradient, _ = jax.jit(method)(unravel(flat), TASKS, KEY)
    close(gradient, unravel(central(mean(objective, unravel), flat)), 1e-6)
    assert float(jnp.linalg.norm(ravel_pytree(gradient.log_rate)[0])) > 1e-3


@pytest.mark.slow
def test_as_released_is_the_dense_solution_of_its_own_system():
    """((1 + damping) I + H / (strength + shift)) u = v where plain descent went, pulled back once."""
    rule = imaml.as_released(imaml.CG(tolerance=1e-13), damping=0.7, shift=9.0)
    method = imaml.MetaGradient(ANCHORED, query_loss, inner=imaml.ThenPulled(0.3, 3), rule=rule)
    gradient, metrics = jax.jit(method)(THETA, TASKS, KEY)
    total = 0
    for i in range(COUNT):
        support, query = jax.tree.map(lambda leaf: leaf[i], TASKS)  # noqa: B023
        phi = THETA
        for _ in range(3):
            phi = jax.tree.map(lambda p, g: p - 0.3 * g, phi, jax.grad(loss)(phi, support))
        phi = jax.tree.map(lambda p, t: p - 0.3 * STRENGTH * (p - t), phi, THETA)
        at = ravel_pytree(phi)[0]
        curvature = jax.hessian(lambda flat: loss(UNRAVEL(flat), support))(at)  # noqa: B023
        slope = jax.grad(lambda flat: loss(UNRAVEL(flat), query))(at)  # noqa: B023
        system = 1.7 * jnp.eye(at.size) + curvature / (STRENGTH + 9.0)
        total = total + (jnp.linalg.solve(system, slope) + 0.02 * FLAT) / COUNT
    close(gradient, UNRAVEL(total), 1e-10)
    assert metrics.used.all()
    exact, _ = jax.jit(METHODS["imaml"]())(THETA, TASKS, KEY)
    with pytest.raises(AssertionError):  # and that is not the meta-gradient
        close(gradient, exact, 0.1)


def test_first_order_maml_is_the_slope_at_the_adapted_parameters():
    gradient, _ = jax.jit(imaml.FOMAML(PLAIN, query_loss, inner=FEW))(THETA, TASKS, KEY)
    total = jax.tree.map(jnp.zeros_like, THETA)
    for i in range(COUNT):
        support, query = jax.tree.map(lambda leaf: leaf[i], TASKS)  # noqa: B023
        phi = THETA
        for _ in range(3):
            phi = jax.tree.map(lambda p, g: p - 0.3 * g, phi, jax.grad(loss)(phi, support))
        total = jax.tree.map(jnp.add, total, jax.grad(loss)(phi, query))
    expected = jax.tree.map(lambda t, p: t / COUNT + 0.02 * p, total, THETA)
    close(gradient, expected, 1e-12)
    later = imaml.FOMAML(PLAIN, query_loss, inner=imaml.GradientDescent(0.3, steps=3, tolerance=1e-9))
    close(jax.jit(later)(THETA, TASKS, KEY)[0], expected, 1e-12)  # a while loop, which has no reverse mode


def test_reptile_is_where_the_tasks_went():
    gradient, metrics = jax.jit(imaml.Reptile(PLAIN, query_loss, inner=FEW))(THETA, TASKS, KEY)
    moved = 0
    for i in range(COUNT):
        support, query = jax.tree.map(lambda leaf: leaf[i], TASKS)  # noqa: B023
        phi = THETA
        for _ in range(3):
            phi = jax.tree.map(lambda p, g: p - 0.3 * g, phi, jax.grad(loss)(phi, both(support, query)))
        np.testing.assert_allclose(metrics.loss[i], query_loss(phi, THETA, query), rtol=1e-12)
        moved = moved + (FLAT - ravel_pytree(phi)[0]) / COUNT
    close(gradient, UNRAVEL(moved), 1e-12)


def test_reptile_of_the_head_gives_the_body_its_gradient():
    problem = imaml.plain(loss, adapt="head")
    gradient, _ = jax.jit(imaml.Reptile(problem, query_loss, inner=FEW))(THETA, TASKS, KEY)

    def one(support, query):
        batch = both(support, query)
        phi = adapted(FEW, problem, THETA, batch)
        return {"body": jax.grad(loss)(phi, batch)["body"], "head": THETA["head"] - phi["head"]}

    close(gradient, jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(*TASKS)), 1e-12)


@pytest.mark.parametrize("adapt", [None, "head"])
def test_proximal_reptile_is_the_gradient_of_the_inner_optimum(adapt):
    problem = imaml.proximal(loss, STRENGTH, adapt)
    gradient, _ = jax.jit(imaml.Reptile(problem, query_loss, inner=TIGHT))(THETA, TASKS, KEY)

    def value(theta, support, query):
        batch = both(support, query)
        return problem.objective(TIGHT(problem, theta, batch).value, theta, batch)

    close(gradient, UNRAVEL(central(mean(value))), 1e-6)
    if adapt is None:

        def pull(support, query):
            phi = TIGHT(problem, THETA, both(support, query)).value
            return jax.tree.map(lambda t, p: STRENGTH * (t - p), THETA, phi)

        close(gradient, jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(pull)(*TASKS)), 1e-12)


@pytest.mark.slow
def test_the_inner_solver_does_not_matter_once_it_has_solved():
    gradient, _ = jax.jit(METHODS["imaml, Hessian-free"]())(THETA, TASKS, KEY)
    exact, _ = jax.jit(METHODS["imaml"]())(THETA, TASKS, KEY)
    close(gradient, exact, 1e-9)


def test_unrolled_to_convergence_on_the_anchored_problem_is_implicit():
    many = imaml.GradientDescent(0.3, steps=3000)
    exact, _ = jax.jit(METHODS["imaml"]())(THETA, TASKS, KEY)
    gradient, _ = jax.jit(imaml.MAML(ANCHORED, query_loss, inner=many))(THETA, TASKS, KEY)
    close(gradient, exact, 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method(name):
    """Shapes and finiteness, the same for the same key, a step that lowers the loss, compiled once."""
    method = METHODS[name]()
    traced, theta = [], start(method)
    step = jax.jit(lambda *given: traced.append(given) or method(*given))
    gradient, metrics = step(theta, TASKS, KEY)
    assert jax.tree.structure(gradient) == jax.tree.structure(theta)
    jax.tree.map(
        lambda g, t: np.testing.assert_equal((g.shape, g.dtype), (t.shape, t.dtype)), gradient, theta
    )
    assert np.all(np.isfinite(ravel_pytree(gradient)[0]))
    assert all(leaf.shape == (COUNT,) for leaf in jax.tree.leaves(metrics))
    assert metrics.used.all()
    assert (metrics.linear_status is None) == (name not in ("imaml", "imaml, Hessian-free", "as-released"))
    again, _ = step(theta, TASKS, KEY)
    jax.tree.map(np.testing.assert_array_equal, gradient, again)
    after = jax.tree.map(lambda t, g: t - 0.1 * g, theta, gradient)
    _, later = step(after, TASKS, jax.random.key(1))
    assert float(jnp.mean(later.loss)) < float(jnp.mean(metrics.loss))
    assert len(traced) == 1
    chunked, _ = jax.jit(dataclasses.replace(method, chunk=2))(theta, TASKS, KEY)
    close(chunked, gradient, 1e-12)


@pytest.mark.parametrize("name", slow_after_first(METHODS))
def test_a_new_task_may_be_solved_by_another_solver(name):
    """It is for evaluation and use; the meta-gradient is by `inner` all the same."""
    method = METHODS[name]()
    weaker = imaml.proximal(loss, 0.1, method.problem.adapt)
    other = dataclasses.replace(method, new_task=imaml.Solving(weaker, imaml.GradientDescent(0.1, steps=7)))
    support, theta = jax.tree.map(lambda leaf: leaf[0], TASKS.support), start(method)
    phi, solution = jax.jit(other.adapt)(theta, support)
    assert int(solution.stats.steps) == 7
    expected = adapted(other.new_task.inner, weaker, THETA, support)
    close(phi, expected, 1e-12)
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(other)(theta, TASKS)[0], jax.jit(method)(theta, TASKS)[0]
    )
    with pytest.raises(imaml.ConfigError, match=r"new_task: expected a Solving.*got 7"):
        dataclasses.replace(method, new_task=7)


@pytest.mark.parametrize("name", METHODS)
def test_a_spoilt_task_is_left_out_by_every_method(name):
    inputs, targets = TASKS.support
    spoilt = TASKS._replace(support=(inputs.at[1, 0, 0].set(jnp.nan), targets))
    method = dataclasses.replace(METHODS[name](), policy="skip")
    theta = start(method)
    gradient, metrics = jax.jit(method)(theta, spoilt, KEY)
    assert metrics.used.tolist() == [True, False, True]
    alone, _ = jax.jit(method)(theta, jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], TASKS), KEY)
    close(gradient, alone, 1e-12)
    with pytest.warns(RuntimeWarning, match="1 of 3 tasks failed"):
        dataclasses.replace(method, policy="warn").check(metrics)


def test_inner_steps_that_move_away_are_a_failure_only_where_a_solution_is_needed():
    """The first-order and unrolled gradients are what they are after any steps; the implicit one is not."""
    apart = imaml.GradientDescent(30.0, steps=2)
    bowl = lambda phi, batch: 0.5 * jnp.sum((phi - batch) ** 2)  # noqa: E731
    options = {"inner": apart, "policy": "skip"}
    tasks = imaml.Task(jnp.ones((2, 1)), 2 * jnp.ones((2, 1)))
    outer = lambda phi, theta, batch: bowl(phi, batch)  # noqa: E731
    for make, used in ((imaml.MAML, True), (imaml.FOMAML, True), (imaml.Reptile, True)):
        _, metrics = make(imaml.plain(bowl), outer, **options)(jnp.zeros(1), tasks)
        assert metrics.used.tolist() == [used] * 2
        assert metrics.inner_status.ending == imaml.Ending.DIVERGED
    anchored = imaml.MetaGradient(imaml.proximal(bowl, 1.0), outer, rule=imaml.envelope(), **options)
    _, metrics = jax.jit(anchored)(jnp.zeros(1), tasks)
    assert not metrics.used.any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: imaml.MAML(PLAIN, query_loss, inner=TIGHT), "fixed number of steps"),
        (lambda: imaml.IMAML(PLAIN, query_loss, inner=FEW, linear=imaml.CG(2)), "only starts"),
        (
            lambda: imaml.MetaGradient(ANCHORED, query_loss, inner=FEW, rule=imaml.displacement()),
            "proximal.*envelope",
        ),
        (lambda: imaml.MetaGradient(PLAIN, query_loss, inner=FEW, rule=imaml.envelope()), "only starts"),
        (
            lambda: imaml.Reptile(imaml.proximal(loss, imaml.learned(0.5)), query_loss, inner=FEW),
            "expected a fixed strength",
        ),
        (
            lambda: imaml.Reptile(imaml.fixed_point(lambda p, t, b: p), query_loss, inner=FEW),
            "expected a problem with an objective, got fixed_point",
        ),
        (
            lambda: imaml.MetaGradient(PLAIN, query_loss, inner=FEW, rule="maml"),
            "rule: expected .*got 'maml'",
        ),
        (
            lambda: imaml.MAML(PLAIN, query_loss, inner=imaml.NewtonCG(steps=2)),
            "unrolled: inner: expected .* steps that have a reverse mode, got NewtonCG",
        ),
        (lambda: imaml.FOMAML(PLAIN, query_loss, inner=PACED), "first_order.*fixed learning rate.*MetaSGD"),
        (lambda: imaml.Reptile(PLAIN, query_loss, inner=PACED), "displacement.*fixed learning rate.*MetaSGD"),
        (lambda: imaml.Reptile(ANCHORED, query_loss, inner=PACED), "envelope.*fixed learning rate.*MetaSGD"),
        (
            lambda: imaml.MetaSGD(PLAIN, query_loss, inner=imaml.NewtonCG(2)),
            "inner: expected a GradientDescent",
        ),
        (lambda: imaml.MAML(PLAIN, query_loss, inner=PACED)(THETA, TASKS, KEY), "inner.parameters"),
        (
            lambda: imaml.MetaGradient(
                imaml.proximal(loss, STRENGTH, "head"), query_loss, inner=FEW, rule=imaml.as_released()
            ),
            "as_released: expected proximal.loss, number. that adapts all",
        ),
        (
            lambda: imaml.MetaGradient(PLAIN, query_loss, inner=FEW, rule=imaml.as_released()),
            "expected proximal.loss, strength., got plain",
        ),
        (lambda: imaml.as_released(damping=-1.0), "damping: expected a finite number of at least 0"),
        (lambda: imaml.ThenPulled(0.3, 0), "steps: expected .*, got 0"),
        (lambda: imaml.ThenPulled(-0.3, 2), "learning_rate: expected .*, got -0.3"),
        (
            lambda: imaml.Reptile(PLAIN, query_loss, inner=FEW)(
                THETA, imaml.Task(TASKS.support, TASKS.query[0]), KEY
            ),
            "Hint: pass whole=",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make, words):
    with pytest.raises(imaml.ConfigError, match=words):
        make()


CLASSES, EACH = 12, 4


def drawings(groups=tuple("aabbccddeeff"), **options):
    """A few-shot domain over random drawings of twelve classes, four each for training, validation, test."""
    pixels = np.random.default_rng(0).integers(0, 256, (CLASSES * EACH, 28, 28, 1), np.uint8)
    names = tuple(f"class{i}" for i in range(CLASSES))
    splits = {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}
    splits = {name: np.array(ids, np.int32) for name, ids in splits.items()}
    table = Images(pixels, np.arange(CLASSES) * EACH, np.full(CLASSES, EACH), names, groups, splits)
    options = {"ways": 2, "shots": 1, "queries": 2, "filters": 3, "rotations": False, **options}
    return imaml.image_tasks(table, **options)


@pytest.fixture
def ranks():
    """Networks add biases to batches; strictness about ranks is for our own solvers."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("ranks")
def test_transfer_learns_to_tell_all_classes_apart():
    """Its gradient is that of one cross-entropy over all classes; with one group, so is multi-task's."""
    one_group = drawings(groups=("a",) * CLASSES)
    tasks = jax.vmap(lambda key: one_group.sample(key, "train"))(jax.random.split(KEY, 2))
    theta = one_group.wide(KEY)
    theta["head"]["kernel"] = 0.1 * jax.random.normal(KEY, theta["head"]["kernel"].shape, "float32")

    def plain(theta):
        def one(task):
            images = jnp.concatenate([task.support.images, task.query.images])
            numbers = jnp.concatenate([task.support.classes, task.query.classes])
            return cross_entropy(one_group.network.forward(theta, images)[0], numbers)

        return jnp.mean(jax.vmap(one)(tasks))

    expected = jax.jit(jax.grad(plain))(theta)
    for grouped in (False, True):
        method = imaml.Joint(one_group, one_group.problem(None), inner=FEW, grouped=grouped)
        gradient, metrics = jax.jit(method)(theta, tasks, KEY)
        close(gradient, expected, 1e-5)  # float32
        assert metrics.inner_status is None
        assert metrics.used.all()
    several = drawings()  # pairs of classes
    method = imaml.Joint(several, several.problem(None), inner=FEW, grouped=True)
    gradient, _ = jax.jit(method)(theta, tasks, KEY)
    numbers = np.unique(tasks.support.classes)
    touched = np.unique(np.concatenate([numbers // 2 * 2, numbers // 2 * 2 + 1]))
    moved = np.flatnonzero(np.abs(gradient["head"]["kernel"]).sum(0))
    np.testing.assert_array_equal(moved, touched)  # a head learns from its own group alone


@pytest.mark.slow
@pytest.mark.usefixtures("ranks")
def test_a_new_task_starts_with_a_fresh_head_on_what_was_learned():
    domain = drawings()
    theta = domain.wide(KEY)
    assert theta["head"]["kernel"].shape == (domain.network.features, CLASSES)
    start = domain.narrow(theta)
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, domain.init(KEY))
    assert not np.any(start["head"]["kernel"])
    np.testing.assert_array_equal(start["conv3"]["kernel"], theta["conv3"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, domain.narrow(start), start)
    method = imaml.Joint(domain, domain.problem(None, adapt="head"), inner=FEW)
    task = domain.sample(KEY, "test")
    phi, solution = jax.jit(method.adapt)(theta, task.support)
    np.testing.assert_array_equal(phi["conv3"]["kernel"], theta["conv3"]["kernel"])  # the head alone adapts
    assert np.any(phi["head"]["kernel"])
    assert int(solution.stats.steps) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", methods())
@pytest.mark.usefixtures("ranks")
def test_every_recipe_trains_is_saved_and_adapts(name, tmp_path):
    joint = name in ("transfer", "multitask")  # these learn classes; the others are quicker on waves
    domain = drawings() if joint else imaml.sinusoid(shots=3, queries=2, hidden=4)
    strength = 0.5 if issubclass(methods()[name], Anchored) else None
    # A sum over rows is steeper than their mean.
    share = 0.01 if issubclass(methods()[name], Bayesian) else 1.0
    new_task = NewTask(imaml.GradientDescent(0.1 * share, steps=7), strength and 0.1)
    recipe = Method(
        name, strength=strength, inner=imaml.GradientDescent(0.3 * share, steps=3), new_task=new_task
    )
    assert from_json(to_json(Config(method=recipe))) == Config(method=recipe)
    optimiser = imaml.Optimiser("adam", 1e-2)
    # Three tasks cannot be shared by the two devices: sharded steps take longer to compile.
    options = {"steps": 2, "tasks": 3, "validation_tasks": 3, "validate_every": 2, "progress": False}
    options |= {"validate_every": 0} if joint else {}
    run = imaml.train(domain, recipe.build(domain), optimiser, out=tmp_path / "run", **options)
    assert run.step == 2
    assert run.config.method == recipe
    learned = imaml.load(tmp_path / "run")
    assert learned.config.method == recipe
    support, query = jax.device_get(domain.sample(KEY, "test"))
    answers = [it.adapt(*support[:2]).predict(query[0]) for it in (run, learned)]
    np.testing.assert_array_equal(*answers)
    assert int(learned.adapt(*support[:2]).solution.stats.steps) == 7
    assert np.isfinite(imaml.evaluate(run, tasks=2).scores[domain.headline])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "imaml", "strength": None}, "strength: expected a finite number above 0, got None"),
        ({"name": "maml", "strength": 0.5}, "expected no strength with name='maml', got strength=0.5"),
        ({"name": "fomaml", "strength": 1.0}, "or 'reptile' or"),
        ({"name": "maml", "linear": imaml.Dense()}, "expected no linear with name='maml'"),
        ({"name": "reptile", "learned": "leaf"}, "expected no learned with name='reptile', got learned='l"),
        ({"name": "reptile", "accuracy": 0.1}, "expected no accuracy with name='reptile'"),
        ({"name": "as-released", "curvature": "gauss-newton"}, "omit it, or choose name='imaml' or"),
        ({"name": "imaml", "stength": 1.0}, "got 'stength'. Hint: did you mean 'strength'"),
        ({"curvature": "newton-gauss"}, "did you mean 'gauss-newton'"),
        ({"accuracy": 2.0}, "accuracy: expected a finite number above 0 and below 1"),
        ({"new_task": FEW}, "new_task: expected NewTask or None, got GradientDescent"),
        ({"name": "maml", "strength": None, "new_task": NewTask(FEW, 0.1)}, "learning has no strength"),
        ({"name": "mamml"}, "did you mean 'maml'"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(options, words):
    with pytest.raises(imaml.ConfigError, match=words):
        Method(**options)


@pytest.mark.parametrize("name", ["characters-5w1s", "omniglot-20w1s", "sinusoid"])
def test_every_method_is_had_from_the_command_line(name):
    """In any order; a strength may be said to be none where there is none."""
    words = ["--method.name=maml", "--method.strength=none", "--method.new_task.strength=none"]
    before = preset(name).method
    for method in methods():
        given = [word.replace("maml", method) if "name" in word else word for word in words]
        if issubclass(methods()[method], Anchored):
            given = given[:1]
        changes = split_words(given)[1]
        config = overrides(preset(name), changes)
        assert (config.method.name, config.method.inner) == (method, before.inner)
        assert config.method.strength == (None if len(given) > 1 else before.strength)
        assert overrides(preset(name), changes[::-1]) == config
        assert overrides(preset(name), [("method", method, "--method"), *changes[1:]]) == config


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"": "maml", "strength": "0.5"}, "expected no strength with name='maml'"),
        ({"name": "maml", "linear": "GMRES"}, "expected no linear with name='maml'"),
        ({"": "maml", "linear.steps": "3"}, "'method.linear', got which 'maml' does not have"),
        ({"": "mamml"}, "did you mean 'maml'"),
        ({"stength": "1"}, "did you mean 'strength'"),
    ],
)
def test_options_that_a_method_lacks_are_refused(options, words):
    changes = [("method." + path if path else "method", text, path) for path, text in options.items()]
    with pytest.raises(ConfigError, match=words):
        overrides(preset("characters-5w1s"), changes)


def test_another_method_takes_over_what_both_have():
    solved = Method(strength=0.3, learned="leaf", chunk=2, new_task=NewTask(FEW, 0.1))
    maml = changed(solved, name="maml")
    assert (maml.chunk, maml.new_task) == (2, NewTask(FEW))
    assert changed(maml, name="imaml") == Method(chunk=2, new_task=NewTask(FEW))
    assert changed(solved, name="evidence").learned == "leaf"
    with pytest.raises(ConfigError, match="as learning has no strength"):
        changed(solved, name="maml", new_task=NewTask(FEW, 0.1))


@pytest.mark.parametrize("name", methods())
def test_files_with_one_kind_for_all_methods_are_read(name):
    """As they were written: with the fields of all, those that the method lacks at what they were then."""
    strength = None if name in ("maml", "fomaml", "metasgd") else 0.25
    stored = {
        "kind": "Method",
        "name": name,
        "strength": strength,
        "learned": None,
        "adapt": ["head"],
        "inner": {"kind": "GradientDescent", "learning_rate": 0.4, "steps": 8, "tolerance": None},
        "new_task": None,
        "linear": {"kind": "CG", "steps": 3, "tolerance": None, "precondition": None},
        "policy": "warn",
        "chunk": 1,
        "curvature": "hessian",
        "correct": False,
        "accuracy": None,
        "rank": 5,
        "bayes": to_json(Bayes()),
    }
    found = from_json(stored)
    options = {"strength": strength, "inner": imaml.GradientDescent(0.4, steps=8), "adapt": ("head",)}
    options |= {"linear": imaml.CG(steps=3)} if hasattr(found, "linear") else {}
    assert found == Method(name, chunk=1, **options)
    with pytest.raises(ConfigError, match="got 'foo'"):
        from_json({**stored, "foo": 1})


def test_a_method_says_what_it_was_built_from():
    domain = imaml.sinusoid(hidden=4)
    recipe = Method(strength=0.5)
    method = recipe.build(domain)
    assert method.origin == (recipe, domain.recipe)
    assert method.on(None).origin == method.origin
    assert dataclasses.replace(method, inner=FEW).origin is None  # it is another one
    by_hand = imaml.IMAML(ANCHORED, query_loss, inner=FEW, linear=imaml.CG(2))
    assert by_hand.origin is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "adam", "momentum": 0.9}, "as adam has no momentum, got momentum=0.9 with name='adam'"),
        ({"name": "sgd", "beta1": 0.5}, "expected beta1=0.9, as sgd has no beta1"),
        ({"name": "sgd", "epsilon": 1e-3}, "choose name='adam' or 'rmsprop' or 'adamw' or 'muon'"),
        ({"name": "adam", "weight_decay": 0.1}, "choose name='adamw' or 'muon'"),
        ({"name": "rmsprop", "beta2": 0.5}, "rmsprop has no beta2"),
        ({"name": "adamw", "least_side": 8}, "choose name='muon'"),
    ],
)
def test_options_that_an_optimiser_lacks_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        imaml.Optimiser(**options)
