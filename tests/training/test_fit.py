"""`imaml.fit`: choices, callbacks, saving and loading, other tasks, intervals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import imaml
from imaml.domains.tasks.build import domain_of
from imaml.training.choosing import pretrained, step_seconds
from imaml.training.evaluation import usual
from imaml.training.fit import LEVELS


def lines(groups=30, rows=12, seed=0, noise=0.1):
    """Lines with levels and slopes of their own, as x, y and groups."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rows)
    x = rng.uniform(-1, 1, len(group))
    level, slope = rng.normal(5, 2, groups), rng.normal(1, 0.5, groups)
    return x, level[group] + slope[group] * x + rng.normal(0, noise, len(group)), group


TASKS_X, TASKS_Y, TASKS_GROUP = lines()
TASKS = imaml.Tasks.from_arrays(TASKS_X, TASKS_Y, TASKS_GROUP)


@pytest.fixture(autouse=True)
def ranks(ranks_mixed):
    """Networks add a bias to every row."""


@pytest.fixture(scope="module")
def run():
    """A quick fit of lines by a linear model."""
    with jax.numpy_rank_promotion("allow"):
        return imaml.fit(TASKS, "linear", shots=4, strength=0.01, steps=60, progress=False)


def test_what_was_left_open_is_chosen_and_reported():
    run = imaml.fit(TASKS, "linear", steps=30, progress=False)
    found = {choice.name: choice for choice in run.choices}
    assert {"loss", "shots", "tasks_per_step", "optimiser", "method"} <= set(found)
    assert found["method"].why.count("with strength=") >= 6
    assert str(found["shots"]) == "shots: 0.5 (half of each task's rows)"


def test_pretraining_finds_what_all_tasks_share_and_the_best_validation_is_kept():
    domain, _ = domain_of(TASKS, "linear", shots=4, validation=0)
    theta = domain.init(jax.random.key(0))
    found, steps, _ = pretrained(domain, theta, 18, 2000, None, 0)
    assert steps == 2000
    rows = np.isin(TASKS_GROUP, np.asarray(domain.splits["train"]))
    layout = domain.recipe.layout
    x, y = layout.code(TASKS_X[rows])[:, 0], layout.numbers(TASKS_Y[rows])[:, 0]
    slope, level = np.polyfit(x, y, 1)
    np.testing.assert_allclose(found["layer1"]["bias"][0], level, atol=0.05)
    np.testing.assert_allclose(found["layer1"]["kernel"].ravel()[0], slope, atol=0.05)
    thetas = {}

    def watch(told):
        thetas[bool(told["best"])] = told["theta"]

    options = {"shots": 4, "strength": 0.01, "steps": 20, "optimiser": imaml.Optimiser("sgd", 2.0)}
    run = imaml.fit(TASKS, "linear", **options, progress=False, on_validation=watch)
    assert False in thetas  # the last ones were worse
    jax.tree.map(np.testing.assert_array_equal, run.theta, thetas[True])


def test_pretraining_ends_before_few_tasks_are_fitted_too_closely():
    """Three tasks of noise: their rows can be learned by heart, which is wrong for others."""
    rng = np.random.default_rng(0)
    x, y, groups = rng.normal(size=(120, 5)), rng.normal(size=120), np.repeat(np.arange(6), 20)
    tasks = imaml.Tasks.from_arrays(x, y, groups)
    split = {"train": [0, 1, 2], "validation": [3, 4, 5]}
    domain, _ = domain_of(dataclasses.replace(tasks, split=split), imaml.MLP((5, 30, 1)), shots=10)
    theta = domain.init(jax.random.key(0))

    def held(found):
        part = domain.sample(jax.random.key(1), "validation")
        return float(domain.query_loss(found, found, domain.whole(*part)))

    found, steps, _ = pretrained(domain, theta, 3, 2000, None, 0)
    blind = dataclasses.replace(domain, splits={**domain.splits, "validation": jnp.zeros(0, jnp.int32)})
    last, every, _ = pretrained(blind, theta, 3, 2000, None, 0)
    assert (every, steps < 500) == (2000, True)
    assert held(found) < 0.7 * held(last)


def test_a_start_at_random_may_want_another_strength(monkeypatch):
    """From random parameters, scores of their own: the walk goes on while they become better."""
    from imaml.training import choosing

    scores = {"strength=0.3": 5, "strength=0.03": 6, "strength=3": 4, "strength=30": 3, "strength=300": 7}
    random = {0.03: 9, 0.3: 0.5, 3.0: 1, 30.0: 2, 300.0: 8}
    scores |= {f"strength={value:g} {choosing.RANDOM}": score for value, score in random.items()}
    tried = []

    def run(self, name, method, start, scored=True):
        tried.append(name)
        self.tried[name] = choosing.Tried(method, start, scores[name], 0.1)

    monkeypatch.setattr(choosing._Trials, "run", run)
    run = imaml.fit(TASKS, "linear", steps=1, progress=False)
    assert tried[5:] == [f"strength={value:g} {choosing.RANDOM}" for value in (30, 3, 0.3, 0.03, 300)]
    method = next(choice for choice in run.choices if choice.name == "method")
    assert method.value == f"imaml, strength=0.3 {choosing.RANDOM}"


def test_without_a_console_nothing_is_printed_on_stdout(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", None)
    imaml.fit(TASKS, "linear", shots=4, strength=1.0, steps=2, validation=0)
    assert capsys.readouterr().out == ""


def test_a_saved_run_predicts_the_same_and_scores_other_tasks(run, tmp_path):
    run.save(tmp_path / "lines.imaml")
    learner = imaml.load(tmp_path / "lines.imaml")
    x, y, group = lines(seed=3)
    few, rest = slice(0, 4), slice(4, 12)
    here, there = run.adapt(x[few], y[few]), learner.adapt(x[few], y[few])
    np.testing.assert_array_equal(here.predict(x[rest]), there.predict(x[rest]))
    other = imaml.Tasks.from_arrays(x, y, group)
    scores = [imaml.evaluate(found, other, tasks=100).scores for found in (run, learner)]
    assert scores[0] == scores[1] == run.evaluate(other, tasks=100).scores
    result = run.evaluate(tasks=100)
    assert result.scores["rmse"] < min(result.baselines.values())
    # The linear model of all training rows is one on other tasks, too.
    assert set(imaml.evaluate(learner, other, tasks=100).baselines) == set(result.baselines)


def test_a_fitted_line_is_ridge_regression_towards_theta(run):
    x, y, _ = lines(seed=4)
    x, y = x[:4], y[:4]
    layout = run.domain.recipe.layout
    coded, targets = layout.code(x), layout.numbers(y)
    theta = np.concatenate([run.theta["layer1"]["bias"], run.theta["layer1"]["kernel"].ravel()])
    design = np.column_stack([np.ones(4), coded])
    wanted = theta + np.linalg.solve(
        design.T @ design + 0.01 * np.eye(2), design.T @ (targets[:, 0] - design @ theta)
    )
    phi = run.adapt(x, y).phi["layer1"]
    np.testing.assert_allclose([*phi["bias"], *phi["kernel"].ravel()], wanted, rtol=2e-4, atol=2e-5)


def test_a_task_without_rows_gets_the_population_s_prediction_and_a_wider_interval(run):
    x, y, _ = lines(seed=5)
    none, some = run.adapt(), run.adapt(x[:8], y[:8])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), none.phi, run.theta)
    wide, narrow = none.predict_interval([0.0]), some.predict_interval([0.0])
    assert wide.high[0] - wide.low[0] > 3 * (narrow.high[0] - narrow.low[0])


@pytest.mark.slow
def test_intervals_cover_new_tasks_as_often_as_they_say():
    tasks = imaml.Tasks.from_arrays(*lines(groups=120, noise=0.5))
    run = imaml.fit(tasks, "linear", shots=4, strength=0.05, steps=60, validation=0.4, progress=False)
    assert len(run.domain.recipe.quantiles) == len(LEVELS)
    x, y, group = lines(groups=100, seed=9, noise=0.5)
    inside = {0.5: [], 0.9: []}
    for number in range(100):
        rows = np.flatnonzero(group == number)
        predictor = run.adapt(x[rows[:4]], y[rows[:4]])
        for level, shares in inside.items():
            found = predictor.predict_interval(x[rows[4:]], level)
            shares.append(np.mean((found.low <= y[rows[4:]]) & (y[rows[4:]] <= found.high)))
    for level, shares in inside.items():
        error = np.std(shares) / 10
        assert abs(np.mean(shares) - level) < 4 * error + 0.03  # and the quantiles are estimates, too
    # An evaluation says so, too: the same shares on the same tasks.
    given = imaml.Tasks.from_list(
        [((x[group == i][:4], y[group == i][:4]), (x[group == i][4:], y[group == i][4:])) for i in range(100)]
    )
    found = run.evaluate(given, tasks=300)
    level, share, half = found.coverage
    assert level == 0.9
    assert abs(share - np.mean(inside[0.9])) < half
    assert f"90 % intervals cover {100 * share:.1f} %" in str(found)


@pytest.mark.usefixtures("two_devices")
def test_callbacks_see_every_step_and_may_stop():
    seen, validated = [], []

    def watch(told):
        seen.append(told["step"])
        return np.float64(told["step"]) >= 7  # a boolean of NumPy

    options = {"shots": 4, "strength": 1.0, "steps": 20, "progress": False}
    run = imaml.fit(TASKS, "linear", **options, on_step=watch, on_validation=validated.append)
    assert seen == list(range(1, 8))
    assert (run.step, run.reason) == (7, "callback")
    assert [told["step"] for told in validated] == [0, 4, 7]  # what it ends with may be the best
    assert set(validated[0]["scores"]) == {"rmse", "loss"}


@pytest.mark.parametrize(
    "optimiser", [optax.adam(1e-2), optax.sgd(optax.cosine_decay_schedule(1e-2, 20))], ids=["adam", "sgd"]
)
def test_a_run_with_an_optax_transform_loads_adapts_and_evaluates(optimiser, tmp_path):
    options = {"shots": 4, "strength": 1.0, "steps": 20, "validation": 0, "progress": False}
    run = imaml.fit(TASKS, "linear", **options, optimiser=optimiser, out=tmp_path / "run")
    learner = imaml.load(tmp_path / "run")
    x, y, _ = lines(seed=3)
    np.testing.assert_array_equal(
        learner.adapt(x[:4], y[:4]).predict(x[:2]), run.adapt(x[:4], y[:4]).predict(x[:2])
    )
    held = json.loads((tmp_path / "run" / "config.json").read_text())
    assert held["optimiser"]["kind"] == "OptaxTransform"
    assert imaml.evaluate(learner, TASKS, tasks=4).tasks == 4


def test_a_model_of_functions_is_asked_for_when_it_is_loaded(tmp_path):
    def init(key):
        return {"w": jax.random.normal(key, (1,)), "b": jnp.zeros(1)}

    def apply(parameters, x):
        return x @ parameters["w"][:, None] + parameters["b"]

    run = imaml.fit(TASKS, (init, apply), shots=4, strength=1.0, steps=10, validation=0, progress=False)
    run.save(tmp_path / "own.imaml")
    x, y, _ = lines(seed=3)
    wanted = run.adapt(x[:4], y[:4]).predict(x[:2])
    found = imaml.load(tmp_path / "own.imaml", model=(init, apply)).adapt(x[:4], y[:4]).predict(x[:2])
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(
        imaml.ConfigError, match="load: model: expected the model that the run was fitted with"
    ):
        imaml.load(tmp_path / "own.imaml", model=imaml.MLP((1, 3, 1)))


def test_a_model_that_no_process_holds_gets_a_message_that_says_how_to_give_it(tmp_path, monkeypatch):
    from imaml.domains.models import own

    functions = (lambda key: {"w": jnp.zeros((1, 1))}, lambda parameters, x: x @ parameters["w"])
    run = imaml.fit(TASKS, functions, shots=4, strength=1.0, steps=5, validation=0, progress=False)
    run.save(tmp_path / "own.imaml")
    monkeypatch.setattr(own, "_HELD", {})
    with pytest.raises(imaml.ConfigError, match=r"imaml\.load\(path, model=\.\.\.\)"):
        imaml.load(tmp_path / "own.imaml")


@pytest.mark.slow
def test_a_network_for_each_task_is_a_baseline_of_networks():
    """It is what adapting from random parameters gives."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 480)
    group = np.repeat(np.arange(30), 16)
    y = np.sin(3 * x + rng.uniform(0, 6, 30)[group])
    tasks = imaml.Tasks.from_arrays(x, y, group)
    options = {"strength": 0.1, "steps": 2, "progress": False}
    run = imaml.fit(tasks, imaml.MLP((1, 8, 1)), pretrain=0, **options)
    found = run.evaluate()
    fresh = run.method.kept(run.domain, jax.random.key(0))
    alone = dataclasses.replace(run, theta=fresh).evaluate()
    name = "a network for each task"
    np.testing.assert_array_equal(found.baseline_values[name], alone.values["rmse"])
    assert alone.paired()[name][0] == 0
    assert name not in imaml.fit(tasks, "linear", **options).evaluate().baselines


def test_the_start_is_kept_if_its_validation_is_the_best(run, capsys):
    far = imaml.Optimiser("sgd", 100.0, clip=1.0)
    options = {"shots": 4, "strength": 0.01, "steps": 2, "pretrain": 0}
    found = imaml.fit(TASKS, "linear", **options, optimiser=far, start=run.theta)
    jax.tree.map(np.testing.assert_array_equal, found.theta, run.theta)
    assert "kept the parameters of step 0, with the best validation score" in capsys.readouterr().err


@pytest.mark.slow
def test_parameters_are_chosen_by_the_loss_of_classes():
    """Not by accuracy, which does not see bad probabilities."""
    labels = np.where(TASKS_Y > TASKS_X + 5, "a", "b")
    tasks = imaml.Tasks.from_arrays(TASKS_X, labels, TASKS_GROUP)
    seen = []
    run = imaml.fit(tasks, "linear", steps=20, progress=False, on_validation=seen.append)
    assert "validation loss of short trials" in next(c.why for c in run.choices if c.name == "method")
    losses = [told["scores"]["loss"] for told in seen]
    assert [told["best"] for told in seen] == [loss == min(losses[: i + 1]) for i, loss in enumerate(losses)]
    text = str(run.evaluate())
    for line in ("loss before adaptation", "loss after adaptation", "calibration error after adaptation"):
        assert line in text


def test_tasks_that_are_drawn_alike_are_drawn_once():
    alike, drawn = (domain_of(TASKS, "linear", shots=4, order=order)[0] for order in ("first", "random"))
    assert usual(alike, "test") == 6
    assert usual(drawn, "test") == 120


def test_a_step_takes_as_long_as_most_do():
    """Not as long as the first ones, which compile: by their mean, half of the time was planned."""
    assert step_seconds([0.0, 5.0, 6.0, 7.0, 20.0, 21.0, 22.0]) == 1
    assert step_seconds([0.0, 5.0]) == step_seconds([0.0]) == 0
