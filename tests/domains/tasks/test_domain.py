"""The domain of a user's own tasks: the laws of domains, padding, sizes, baselines, a user's data."""

import json
import warnings

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import PoissonRegressor, Ridge
from sklearn.neighbors import NearestCentroid

import imaml
from helpers.marks import slow_after_first
from imaml.config.methods import Method
from imaml.config.run import Config
from imaml.core import tree
from imaml.core.errors import ConfigError, DataError
from imaml.core.recipes import from_json, to_json
from imaml.domains.base import SPLITS, DomainBase
from imaml.domains.tasks.build import domain_of
from imaml.domains.tasks.collection import Tasks
from imaml.domains.tasks.layout import Rows
from imaml.predict import adapt

pytestmark = pytest.mark.usefixtures("ranks_mixed")
KEY = jax.random.key(3)
KEYS = jax.random.split(KEY, 60)
RANDOM = np.random.default_rng(0)
SIZES = RANDOM.integers(3, 15, 24)
GROUPS = RANDOM.permutation(np.repeat(np.arange(24), SIZES))
ROWS = len(GROUPS)
X = RANDOM.normal(size=(ROWS, 3)) * [1, 10, 0.1] + [0, 5, 0]
SLOPES = RANDOM.normal(size=24)
Y = SLOPES[GROUPS] * X[:, 0] + RANDOM.normal(size=ROWS)
COUNTS = RANDOM.poisson(np.exp(0.5 * SLOPES[GROUPS] + 0.3 * X[:, 0]))
SHIFT = RANDOM.normal(size=ROWS)


def tree_model():
    """A model of two inputs, one of them whole numbers, with three outputs."""

    def init(key):
        return {"table": 0.1 * jax.random.normal(key, (5, 3)), "slope": jnp.zeros((3, 3))}

    def apply(parameters, inputs):
        return parameters["table"][inputs["which"][:, 0]] + inputs["x"] @ parameters["slope"]

    return init, apply


def few(name):
    """Tasks, and the arguments of `domain_of`, of one kind each."""
    classes = np.array(["no", "yes", "maybe"])[np.digitize(Y, [-1, 1])]
    if name == "numbers":
        return Tasks.from_arrays(X, Y, GROUPS), {"model": "linear"}
    if name == "several targets":
        return Tasks.from_arrays(X, np.stack([Y, -Y], 1), GROUPS), {"model": "linear", "shots": 2}
    if name == "classes":
        return Tasks.from_arrays(X, classes, GROUPS), {"model": "linear"}
    if name == "binary":
        return Tasks.from_arrays(X, Y > 0, GROUPS), {"model": "linear", "loss": "binary"}
    if name == "ordinal":
        return Tasks.from_arrays(X, np.digitize(Y, [-1, 1]), GROUPS), {"model": "linear", "loss": "ordinal"}
    if name == "counts":
        weighted = Tasks.from_arrays(X, COUNTS, GROUPS, weights=np.exp(SHIFT), offset=SHIFT)
        return weighted, {"model": "linear", "loss": "poisson"}
    if name == "overdispersed counts":
        return Tasks.from_arrays(X, COUNTS, GROUPS), {"model": "linear", "loss": "negative_binomial"}
    if name == "given supports":
        rows = [np.flatnonzero(g == GROUPS) for g in range(24)]
        cut = [(rows[g][: 1 + g % 2], rows[g][1 + g % 2 :]) for g in range(24)]
        pairs = [((X[a], Y[a]), (X[b], Y[b])) for a, b in cut]
        return Tasks.from_list(pairs), {"model": "linear"}
    if name == "frame":
        frame = {"who": GROUPS, "a": X[:, 0], "b": X[:, 1], "t": SHIFT, "n": COUNTS}
        made = Tasks.from_frame(frame, "who", "n", ["a", "b"], offset="t")
        return made, {"model": "linear", "loss": "poisson", "order": "first"}
    if name == "frame of two targets":
        frame = {"who": GROUPS, "a": X[:, 0], "y": Y, "z": -Y, "times": np.exp(SHIFT)}
        return Tasks.from_frame(frame, "who", ["y", "z"], weights="times"), {"model": "linear"}
    if name == "trees":
        inputs = {"x": X, "which": RANDOM.integers(0, 5, ROWS)}
        return Tasks.from_arrays(inputs, classes, GROUPS), {"model": tree_model()}
    if name == "episodes":
        return Tasks.from_arrays(X, None, GROUPS), {"model": "linear", "ways": 3, "shots": 2}
    images = RANDOM.integers(0, 256, (ROWS, 8, 8, 1)).astype(np.uint8)
    model = imaml.Conv4(3, 4, 8, 1)
    return Tasks.from_arrays(images, None, GROUPS), {"model": model, "ways": 3, "shots": 1, "queries": 2}


KINDS = [
    *("numbers", "several targets", "classes", "binary", "ordinal", "counts", "overdispersed counts"),
    *("given supports", "frame", "frame of two targets", "trees", "episodes", "images"),
]
METHOD = Method(strength=1.0, inner=imaml.GradientDescent(0.02, steps=2), linear=imaml.CG(steps=2))


@pytest.fixture(scope="module")
def made():
    with jax.numpy_rank_promotion("allow"):
        return {name: domain_of(few(name)[0], **few(name)[1])[0] for name in KINDS}


@pytest.fixture(params=KINDS)
def domain(request, made):
    return made[request.param]


DRAW = jax.jit(lambda d, keys, split: jax.vmap(lambda k: d.draw(k, split))(keys), static_argnums=2)
GATHER = jax.jit(lambda d, i: d.gather(i))
SAMPLE = jax.jit(lambda d, k: d.sample(k, "test"))


def close(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# Laws ------------------------------------------------------------------------------------------------------


def test_the_laws_of_domains(domain):
    """Those of `imaml.domains.base`, 1 to 5, as tests/laws has them for domains whose recipe builds them."""
    assert isinstance(domain, DomainBase)
    draws = {split: DRAW(domain, KEYS, split) for split in SPLITS}
    many = jax.jit(lambda d, k: jax.vmap(lambda one: d.sample(one, "test"))(k))(domain, KEYS[:2])
    one = GATHER(domain, jax.tree.map(lambda leaf: leaf[1], draws["test"]))
    close(jax.tree.map(lambda leaf: leaf[1], many), one)
    groups = [set(np.unique(draws[split].group).tolist()) for split in SPLITS]
    assert all(groups)
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    theta = domain.init(jax.random.key(0))

    @jax.jit
    def scores(theta, task):
        problem = domain.problem(0.5)
        batches = task.support, domain.whole(*task)
        slopes = [tree.norm(problem.residual(problem.split(theta), theta, batch)) for batch in batches]
        losses = [domain.query_loss(theta, theta, task.query), *slopes]
        return losses, domain.metrics(theta, task), domain.baselines(task), domain.calibration(theta, task)

    losses, metrics, baselines, calibration = scores(theta, one)
    values = [*losses, *metrics.values(), *baselines.values()]
    assert all(jnp.shape(value) == () and jnp.isfinite(value) for value in values)
    assert domain.headline in metrics
    assert len(baselines) >= 1
    for sums in calibration.values():
        np.testing.assert_allclose(sums[:, 0].sum(), one.query.weights.sum(), rtol=1e-5)
        np.testing.assert_allclose(sums[:, 2].sum() / sums[:, 0].sum(), metrics["accuracy"], rtol=1e-5)
    assert all(domain.size(split) is None or domain.size(split) > 0 for split in SPLITS)
    assert all(domain.held_out(split) for split in SPLITS)


def test_recipes_go_to_json_and_back(domain):
    config = json.loads(json.dumps(to_json(Config(domain=domain.recipe))))
    assert from_json(config) == Config(domain=domain.recipe)


def test_a_sampled_task_is_adapted_to_and_predicted(domain, tmp_path):
    task = SAMPLE(domain, KEYS[0])
    config = Config(domain=domain.recipe, method=METHOD)
    theta = domain.init(jax.random.key(0))
    predictor = adapt(theta, config, task.support)
    found = predictor.predict(task.query)
    assert len(found) == len(task.query.weights)
    if predictor.classes is not None:
        np.testing.assert_allclose(predictor.predict_proba(task.query).sum(1), 1, atol=1e-5)
    # The same task from files, in the user's units, without its padding.
    rows, asked = domain.write(jax.device_get(task), tmp_path)
    support, query = domain.read(tmp_path / "support.npz"), domain.read(tmp_path / "query.npz", True)
    again = adapt(theta, config, support)
    assert rows == int((task.support.weights > 0).sum())
    answers = again.predict(query)
    kept = np.flatnonzero(task.query.weights)
    assert len(answers) == asked == len(kept)
    if found.dtype.kind == "f":
        np.testing.assert_allclose(answers, found[kept], rtol=1e-3, atol=1e-3 * np.abs(found).max())
    elif not domain.recipe.episodes:  # where classes are those of the run
        assert (answers == found[kept]).mean() > 0.9  # ties, after rounding
    printed = again.domain.answers(again, support, query, uncertainty=predictor.classes is None)
    assert len(printed.rows) == asked
    json.dumps(printed.rows)


# Padding ---------------------------------------------------------------------------------------------------


def in_double(batch):
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64) if leaf.dtype == jnp.float32 else leaf, batch
    )


def first_of(batch, rows):
    return jax.tree.map(lambda leaf: leaf[:rows], batch)


@pytest.mark.parametrize("rows", slow_after_first([3, 1, 5]))
def test_padding_changes_nothing(made, rows):
    """The residual, the solution and the meta-gradient are those of the rows alone: ridge towards theta."""
    domain = made["numbers"]
    support, query = (in_double(domain.encode(X[a:b], Y[a:b]).support) for a, b in ((0, rows), (20, 26)))
    assert support.weights.shape == ({1: 4, 3: 4, 5: 8}[rows],)
    assert query.weights.tolist() == [1] * 6 + [0] * 2
    bare, asked = first_of(support, rows), first_of(query, 6)
    theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64) + 0.3, domain.init(KEY))
    problem = domain.problem(0.7)
    np.testing.assert_allclose(
        tree.ravel(problem.residual(theta, theta, support))[0],
        tree.ravel(problem.residual(theta, theta, bare))[0],
        rtol=1e-12,
        atol=1e-12,
    )
    flat, unravel = tree.ravel(theta)  # the bias, then the kernel
    design = lambda part: jnp.column_stack([jnp.ones(len(part.weights)), part.inputs])  # noqa: E731

    def closed(vector):
        """argmin 1/2 |X phi - y|^2 + 0.7/2 |phi - theta|^2"""
        x, y = design(bare), bare.targets[:, 0]
        return jnp.linalg.solve(x.T @ x + 0.7 * jnp.eye(4), x.T @ y + 0.7 * vector)

    def validation(vector):
        return 0.5 * jnp.mean(jnp.square(design(asked) @ closed(vector) - asked.targets[:, 0]))

    inner = imaml.NewtonCG(steps=4, linear=imaml.CG(tolerance=1e-14, steps=20))
    rule = imaml.implicit(imaml.CG(tolerance=1e-14, steps=20))

    @jax.jit
    def solved(vector, part):
        return imaml.solve(problem, unravel(vector), part, inner=inner, rule=rule)

    for part in (support, bare):
        phi = solved(flat, part)
        np.testing.assert_allclose(tree.ravel(phi)[0], closed(flat), rtol=1e-10, atol=1e-12)
        for asking in (query, asked):
            slope = jax.jit(jax.grad(lambda v, p, q: domain.query_loss(solved(v, p), None, q)))
            np.testing.assert_allclose(
                slope(flat, part, asking), jax.jit(jax.grad(validation))(flat), rtol=1e-9, atol=1e-12
            )


def test_sampled_tasks_hold_rows_of_one_group_and_pad_with_them(made):
    domain = made["numbers"]
    coded = {
        tuple(row): g
        for row, g in zip(
            np.asarray(domain.inputs).tolist(), np.repeat(np.arange(24), domain.counts), strict=True
        )
    }
    draws = DRAW(domain, KEYS, "train")
    for i in range(len(KEYS)):
        drawn = jax.tree.map(lambda leaf, i=i: leaf[i], draws)
        group = int(drawn.group)
        size = int(domain.counts[group])
        support, query = (
            np.asarray(rows)[np.asarray(flags)]
            for rows, flags in ((drawn.support, drawn.known), (drawn.query, drawn.asked))
        )
        assert len(support) == round(size / 2)
        chosen = [*support, *query]
        assert len(set(chosen)) == len(chosen) == size  # each row once, in one of the two
        task = GATHER(domain, drawn)
        for part in task:
            assert {coded[tuple(row)] for row in np.asarray(part.inputs).tolist()} == {group}
        np.testing.assert_array_equal(task.support.weights > 0, drawn.known)
        np.testing.assert_array_equal(task.query.weights > 0, drawn.asked)


def test_draws_of_a_split_take_every_task_before_any_twice(made):
    domain = made["numbers"]
    size = domain.size("train")
    drawn = domain.draws(KEY, "train", 2 * size)
    assert sorted(drawn.group[:size].tolist()) == sorted(domain.splits["train"].tolist())
    assert sorted(drawn.group.tolist()) == sorted(domain.splits["train"].tolist() * 2)


# Sizes -----------------------------------------------------------------------------------------------------


def numbered(sizes, **options):
    """A domain whose inputs are the numbers of the rows within their groups."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    within = np.concatenate([np.arange(n) for n in sizes]).astype(float)
    tasks = Tasks.from_arrays(within[:, None], within, groups)
    return domain_of(tasks, "linear", standardise=False, validation=0, test=0, **options)


@pytest.mark.parametrize(
    ("shots", "supports"),
    [(3, [3, 3, 3, 1]), (0.5, [5, 2, 4, 1]), (0.9, [9, 4, 7, 1]), (0.01, [1, 1, 1, 1]), (9, [9, 4, 7, 1])],
)
def test_supports_are_counts_or_shares(shots, supports):
    sizes = [10, 5, 8, 2]
    domain, chosen = numbered(sizes, shots=shots)
    assert domain.supports.tolist() == supports
    assert domain.recipe.support == max(supports)
    assert domain.recipe.queries == max(np.subtract(sizes, supports))
    few = [choice for choice in chosen if choice.name == "shots"]
    assert bool(few) == (shots in (3, 9))  # some tasks have fewer rows


def test_a_network_that_normalises_has_support_sets_of_one_size():
    images = RANDOM.integers(0, 256, (ROWS, 8, 8, 1)).astype(np.uint8)
    tasks = Tasks.from_arrays(images, Y > 0, GROUPS)
    model = imaml.Conv4(2, 4, 8, 1)
    domain, chosen = domain_of(tasks, model)
    assert set(domain.supports.tolist()) == {max(1, SIZES.min() // 2)}
    assert "shots" in {choice.name for choice in chosen}
    with pytest.raises(ConfigError, match=r"fit: shots: expected one whole number .*, got support sets of"):
        domain_of(tasks, model, shots=0.5)


def test_the_first_rows_are_the_support_set():
    domain, _ = numbered([10, 5], shots=3, order="first", queries=4)
    task = SAMPLE(domain, KEY)
    assert task.support.inputs[:, 0].tolist() == [0, 1, 2]
    kept = task.query.inputs[:, 0][task.query.weights > 0]
    assert kept.tolist() in ([3, 4, 5, 6], [3, 4])


def test_given_supports_are_kept(made):
    domain = made["given supports"]
    np.testing.assert_array_equal(domain.supports, [1 + g % 2 for g in range(24)])
    task = SAMPLE(domain, KEYS[1])
    drawn = domain.draw(KEYS[1], "test")
    rows = np.flatnonzero(int(drawn.group) == GROUPS)[: int(domain.supports[drawn.group])]
    coded = domain.recipe.layout.code(X[rows])
    np.testing.assert_allclose(task.support.inputs[: len(rows)], coded, rtol=1e-5)
    assert int((task.support.weights > 0).sum()) == len(rows)


def test_large_groups_cost_no_more_than_what_is_drawn():
    """500 groups of 3 rows and one of 20,000: a task has the rows that are drawn, and no array is larger."""
    sizes = [3] * 500 + [20_000]
    domain, chosen = numbered(sizes)
    assert (domain.recipe.support, domain.recipe.queries) == (128, 64)
    assert {choice.name for choice in chosen} >= {"shots", "queries"}
    draws = lambda d, key: jax.vmap(lambda k: d.draw(k, "train"))(jax.random.split(key, 25))  # noqa: E731
    jaxpr = jax.make_jaxpr(draws)(domain, KEY)

    def sizes_of(part):
        for equation in part.eqns:
            yield from (int(np.prod(v.aval.shape)) for v in equation.outvars if hasattr(v.aval, "shape"))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from sizes_of(inner)

    assert max(sizes_of(jaxpr.jaxpr)) <= 25 * 4 * (128 + 64)
    large = jax.jit(lambda d, k: d._rows(jnp.asarray(500), k))
    small = jax.jit(lambda d, k: d._rows(jnp.asarray(7), k))
    for key in KEYS[:5]:
        support, query, known, asked = large(domain, key)
        assert known.all()
        assert asked.all()
        chosen = np.concatenate([support, query]) - 1500
        assert len(set(chosen.tolist())) == 192
        assert 0 <= chosen.min() < chosen.max() < 20_000
        assert chosen.std() > 4000
        support, query, known, asked = small(domain, key)
        assert (int(known.sum()), int(asked.sum())) == (2, 1)
        assert {*support.tolist(), *query.tolist()} == {21, 22, 23}


def test_a_random_order_is_uniform():
    domain, _ = numbered([4, 5000], shots=0.5, queries=2)
    order = jax.jit(jax.vmap(lambda k: domain._order(k, jnp.asarray(4), 4)))(jax.random.split(KEY, 2400))
    _, times = np.unique(np.asarray(order), axis=0, return_counts=True)
    assert len(times) == 24
    assert abs(times - 100).max() < 45  # 4.5 standard deviations


# Episodes --------------------------------------------------------------------------------------------------


def test_episodes_have_distinct_classes_and_rows(made):
    domain = made["episodes"]
    owner = np.repeat(np.arange(24), domain.counts)
    for key in KEYS[:10]:
        drawn = domain.draw(key, "train")
        task = domain.gather(drawn)
        classes = drawn.group.tolist()
        assert len(set(classes)) == 3
        assert task.support.labels.tolist() == [0, 0, 1, 1, 2, 2]
        for rows, part, flags in (
            (drawn.support, task.support, drawn.known),
            (drawn.query, task.query, drawn.asked),
        ):
            assert [classes[label] for label in part.labels.tolist()] == owner[np.asarray(rows)].tolist()
            np.testing.assert_array_equal(part.weights > 0, flags)
        kept = [
            *np.asarray(drawn.support)[np.asarray(drawn.known)],
            *np.asarray(drawn.query)[np.asarray(drawn.asked)],
        ]
        assert (
            len(set(kept))
            == len(kept)
            == sum(min(int(domain.counts[c]), 2 + domain.recipe.queries) for c in classes)
        )


def test_classes_of_an_episode_are_the_user_s(made):
    domain = made["episodes"]
    labels = ["x", "x", 3, 3, "a"]
    encoded = domain.encode(X[:5], labels)
    assert encoded.classes.tolist() == [3, "a", "x"]
    assert encoded.support.labels[:5].tolist() == [2, 2, 0, 0, 1]


# Baselines -------------------------------------------------------------------------------------------------


def rows_in(part):
    kept = np.asarray(part.weights) > 0
    return np.asarray(part.inputs)[kept], np.asarray(part.targets)[kept]


def training_rows(domain):
    inside = np.isin(np.repeat(np.arange(24), domain.counts), domain.splits["train"])
    return np.asarray(domain.inputs)[inside], np.asarray(domain.targets)[inside], inside


def test_baselines_of_numbers_are_scikit_learn_s(made):
    domain = made["numbers"]
    task = SAMPLE(domain, KEYS[2])
    (x, y), (q, z) = map(rows_in, task)
    found = domain.baselines(task)
    scale = domain.recipe.layout.target.scale[0]
    rmse = lambda answers: scale * np.sqrt(np.mean((answers.reshape(-1) - z[:, 0]) ** 2))  # noqa: E731
    np.testing.assert_allclose(found["support mean"], rmse(np.full(len(z), y.mean())), rtol=1e-5)
    fitted = Ridge(alpha=1.0).fit(x, y[:, 0])
    np.testing.assert_allclose(found["ridge on the support set"], rmse(fitted.predict(q)), rtol=1e-5)
    inputs, targets, _ = training_rows(domain)
    pooled = Ridge(alpha=0).fit(inputs, targets[:, 0])
    np.testing.assert_allclose(found["one linear model for all tasks"], rmse(pooled.predict(q)), rtol=1e-4)


def test_a_level_for_each_task_is_that_of_a_random_intercept():
    """Variances by analysis of variance, and the predictor by its dense formula."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(24), rng.integers(4, 9, 24))
    x = rng.normal(size=(len(owner), 2))
    y = x @ [1.0, -2.0] + rng.normal(0, 2, 24)[owner] + rng.normal(size=len(owner))
    domain = domain_of(Tasks.from_arrays(x, y, owner), "linear", standardise=False)[0]
    training = np.isin(owner, domain.splits["train"])
    pooled = Ridge(alpha=0).fit(x[training], y[training])
    owner, rest = owner[training], y[training] - pooled.predict(x[training])
    each = [rest[owner == task] for task in np.unique(owner)]
    sizes, total, groups = np.array([len(one) for one in each]), len(owner), len(each)
    within = sum(np.sum((one - one.mean()) ** 2) for one in each) / (total - groups)
    spread = sum(len(one) * (one.mean() - rest.mean()) ** 2 for one in each) / (groups - 1)
    between = (spread - within) / ((total - np.sum(sizes**2) / total) / (groups - 1))
    assert between > 1
    (few, known), (q, z) = map(rows_in, SAMPLE(domain, KEYS[2]))
    covariance = within * np.eye(len(few)) + between
    level = between * np.sum(np.linalg.solve(covariance, known[:, 0] - pooled.predict(few)))
    error = np.sqrt(np.mean((pooled.predict(q) + level - z[:, 0]) ** 2))
    found = domain.baselines(SAMPLE(domain, KEYS[2]))["that model and a level for each task"]
    np.testing.assert_allclose(found, error, rtol=1e-4)


def test_baselines_of_classes_are_scikit_learn_s(made):
    domain = made["classes"]
    for key in KEYS[:5]:
        task = SAMPLE(domain, key)
        (x, y), (q, z) = map(rows_in, task)
        found = domain.baselines(task)
        values, times = np.unique(y, return_counts=True)
        assert float(found["most frequent class"]) == pytest.approx(np.mean(z == values[np.argmax(times)]))
        if len(values) > 1:
            nearest = NearestCentroid().fit(x, y).predict(q)
            assert float(found["nearest class mean"]) == pytest.approx(np.mean(nearest == z))
    inputs, targets, _ = training_rows(domain)
    fitted = Ridge(alpha=0).fit(inputs, np.eye(3)[targets])
    assert float(found["one linear model for all tasks"]) == pytest.approx(
        np.mean(fitted.predict(q).argmax(1) == z)
    )


def test_baselines_of_counts(made):
    domain = made["counts"]
    task = SAMPLE(domain, KEYS[3])
    support, query = task
    found = domain.baselines(task)
    rate = (np.sum(support.weights * support.targets[:, 0]) + 0.5) / np.sum(
        support.weights * np.exp(support.offset)
    )
    outputs = np.log(rate) + np.asarray(query.offset)
    expected = np.average(domain.recipe.loss.cost(outputs[:, None], query), weights=query.weights)
    np.testing.assert_allclose(found["support mean"], expected, rtol=1e-5)
    # Rates with exposures as weights: the same likelihood as counts with an offset.
    inputs, targets, inside = training_rows(domain)
    exposure = np.exp(np.asarray(domain.offset)[inside])
    weights = np.asarray(domain.weights)[inside] * exposure
    fitted = PoissonRegressor(alpha=0, tol=1e-10, max_iter=1000).fit(
        inputs, targets[:, 0] / exposure, weights
    )
    np.testing.assert_allclose(
        domain.pooled.coefficients[:, 0], [fitted.intercept_, *fitted.coef_], atol=2e-3
    )


def test_the_pooled_dispersion_is_that_of_its_moments(made):
    domain = made["overdispersed counts"]
    inputs, targets, _ = training_rows(domain)
    pooled = np.asarray(domain.pooled.coefficients, np.float64)
    assert pooled.shape == (4, 2)
    mean = np.exp(np.column_stack([np.ones(len(inputs)), inputs]) @ pooled[:, 0])
    moment = np.sum((targets[:, 0] - mean) ** 2 - mean) / np.sum(mean**2)
    np.testing.assert_allclose(pooled[0, 1], np.log(max(moment, 0.01)), rtol=1e-3)
    assert not pooled[1:, 1].any()


# A user's data ---------------------------------------------------------------------------------------------


def test_adapting_compiles_few_programs(made):
    """With 1 to 200 rows; a second round compiles none."""
    domain = made["numbers"]
    config = Config(domain=domain.recipe, method=METHOD)
    theta = domain.init(KEY)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: (
            compiled.append(event) if event.endswith("backend_compile_duration") else None
        )
    )
    x, y = np.tile(X, (2, 1)), np.tile(Y, 2)
    try:
        for rows in [*range(1, 200, 7), 64, 128, 200]:
            adapt(theta, config, x[:rows], y[:rows])
        first = len(compiled)
        for rows in (2, 9, 33, 150):
            adapt(theta, config, x[:rows], y[:rows])
    finally:
        jax.monitoring.clear_event_listeners()
    assert 0 < first <= 8
    assert len(compiled) == first


def test_weights_of_support_rows_count():
    tasks, options = few("counts")
    domain = domain_of(tasks, **options)[0]
    given = {"x": X[:5], "offset": SHIFT[:5]}
    once = domain.encode({**given, "weights": [2, 1, 1, 1, 1]}, COUNTS[:5]).support
    twice = domain.encode(
        {"x": X[[0, 0, 1, 2, 3, 4]], "offset": SHIFT[[0, 0, 1, 2, 3, 4]]}, COUNTS[[0, 0, 1, 2, 3, 4]]
    )
    theta = domain.init(KEY)
    np.testing.assert_allclose(domain.loss(theta, once), domain.loss(theta, twice.support), rtol=1e-5)
    for wrong, says in (
        ([0] * 5, "not all of them 0"),
        ([-1, 1, 1, 1, 1], "at least 0"),
        ([1], "weights: expected 5 rows"),
    ):
        with pytest.raises(DataError, match=says):
            domain.encode({**given, "weights": wrong}, COUNTS[:5])


def test_offsets_are_asked_for(made):
    for name, hint in (("counts", '"offset": offset'), ("frame", "column 't'")):
        domain = made[name]
        rows = X[:3] if name == "counts" else {"a": [1.0], "b": [2.0]}
        with pytest.raises(DataError, match=f"offset: expected an offset for each row.*{hint}"):
            domain.encode_query(rows)
    with pytest.raises(DataError, match="offset: expected none"):
        made["numbers"].encode_query({"x": X[:3], "offset": [1.0, 2, 3]})


def test_a_frame_s_run_takes_frames_and_arrays(made):
    import pandas as pd

    domain = made["frame"]
    frame = pd.DataFrame(
        {"b": X[:4, 1], "a": X[:4, 0], "n": COUNTS[:4], "t": SHIFT[:4], "other": list("uvwx")}
    )
    support = domain.encode(frame).support
    np.testing.assert_array_equal(support.targets[:4, 0], COUNTS[:4])
    np.testing.assert_allclose(support.inputs[:4], domain.recipe.layout.code(X[:4, :2]))
    asked = domain.encode_query(frame.drop(columns="n"))
    np.testing.assert_allclose(asked.offset, SHIFT[:4], rtol=1e-6)


def test_units_come_back(made):
    domain = made["several targets"]
    values = np.stack([Y, -Y], 1)[:7]
    coded = domain.recipe.layout.numbers(values)
    np.testing.assert_allclose(domain.decode(coded, None), values, rtol=1e-5, atol=1e-5)
    one = made["numbers"]
    assert one.decode(one.recipe.layout.numbers(Y[:7, None]), None).shape == (7,)


@pytest.mark.slow
def test_intervals_of_counts_cover_their_level(made):
    """Of draws from the model itself, where the parameters are known: the covariance of outputs is 0."""
    for name in ("counts", "overdispersed counts"):
        domain = made[name]
        columns = domain.recipe.loss.outputs_for(1)
        outputs = jnp.broadcast_to(jnp.array([3.0, -1.5])[:columns], (500, columns))
        covariance = jnp.zeros((500, columns, columns))
        mean, low, high = domain.interval(None, outputs, covariance, 0.9, None)
        drawn = np.asarray(domain.recipe.loss.draw(jax.random.key(9), outputs))
        assert 0.86 < np.mean((low <= drawn) & (drawn <= high)) < 0.97
        np.testing.assert_allclose(mean.mean(), np.exp(3.0), rtol=0.02)
        wide = domain.interval(None, outputs[:50], covariance[:50] + jnp.eye(columns), 0.9, None)
        assert np.all(wide[2] - wide[1] > (high - low)[:50])


def test_intervals_of_numbers_are_gaussian_or_calibrated(made):
    domain = made["numbers"]
    scale, shift = domain.recipe.layout.target.scale[0], domain.recipe.layout.target.mean[0]
    mean, covariance = jnp.zeros((1, 1)), jnp.full((1, 1, 1), 3.0)
    centre, low, high = domain.interval(jnp.asarray(1.0), mean, covariance, 0.9, None)
    np.testing.assert_allclose(
        [low[0], centre[0], high[0]], shift + scale * 2 * 1.6448536 * np.array([-1, 0, 1]), rtol=1e-6
    )


# Groups ----------------------------------------------------------------------------------------------------


def test_groups_of_one_row_are_excluded_by_name():
    tasks = Tasks.from_arrays(np.zeros((8, 1)), np.arange(8.0), ["a", "a", "b", "c", "c", "d", "d", "d"])
    with pytest.warns(
        RuntimeWarning, match=r"fit: 1 of 4 tasks are excluded, as they have fewer than 2 rows \(b\)"
    ):
        domain, _ = domain_of(tasks, "linear")
    used = np.concatenate([domain.splits[name] for name in SPLITS]).tolist()
    assert sorted(tasks.names[i] for i in used) == ["a", "c", "d"]


def test_choices_say_what_and_why():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, chosen = domain_of(Tasks.from_arrays(X, COUNTS, GROUPS))
    told = {choice.name: (choice.value, choice.why) for choice in chosen}
    assert told["loss"] == ("squared", "targets are numbers; for classes choose 'cross_entropy'")
    assert told["model"] == ("mlp", "inputs are vectors")
    assert told["shots"][0] == 0.5


def test_rows_have_the_batch_s_fields():
    assert Rows._fields == ("inputs", "targets", "weights", "offset", "reference")


DEFAULTS = {
    "numbers": (np.ones(36), imaml.MLP((1, 40, 40, 1))),
    "vectors": (np.ones((36, 3)), imaml.MLP((3, 40, 40, 1))),
    "signals": (np.ones((36, 9, 2)), imaml.Conv1D(1, channels=2)),
    "whole signals": (np.ones((36, 9, 2), int), imaml.Conv1D(1, channels=2)),
    "square images": (np.ones((36, 8, 8, 3)), imaml.Conv4(1, 32, 8, 3)),
}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_the_network_that_is_chosen_fits_the_shape_of_a_row(kind):
    x, network = DEFAULTS[kind]
    domain, chosen = domain_of(Tasks.from_arrays(x, np.arange(36.0) % 7, np.repeat(np.arange(6), 6)))
    assert domain.recipe.model == network
    assert "model" in {choice.name for choice in chosen}
    assert domain.inputs.dtype == np.float32


def test_baselines_on_features_are_those_of_the_frozen_features():
    """Inputs say nothing, and their features all."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 6, 200)
    tasks = Tasks.from_arrays(
        np.stack([np.cos(angle), np.sin(angle)], 1), angle > 3, np.repeat(np.arange(20), 10)
    )
    mapped = tasks.map(lambda x: np.arctan2(-x[:, 1], -x[:, 0])[:, None])
    domain, _ = domain_of(mapped, "linear", shots=6)
    scores = [float(domain.baselines(domain.sample(k, "test"))["nearest class mean"]) for k in KEYS[:10]]
    assert np.mean(scores) > 0.9
