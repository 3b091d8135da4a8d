"""Evaluation where scores are not finite: counted and reported, whatever is wrong with theta."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from imaml.domains.base import cut
from imaml.domains.tasks.build import domain_of
from imaml.training import intervals
from imaml.training.evaluation import (
    _calibration,
    evaluate_theta,
    lower_evaluation,
    same_tasks,
    task_keys,
)

WAVES = imaml.sinusoid(hidden=4)


@pytest.fixture(autouse=True)
def ranks(ranks_mixed):
    """Networks add a bias to every row."""


def method(domain, rate=0.01):
    inner, linear = imaml.GradientDescent(rate, steps=2), imaml.CG(steps=2)
    return imaml.IMAML(domain.problem(0.5), domain.query_loss, inner=inner, linear=linear)


def spoilt(domain, value):
    """Fresh parameters, all of them replaced by a value."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), domain.init(jax.random.key(0)))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_theta_that_is_not_finite_or_huge_has_failed_tasks_and_no_score(value):
    found = evaluate_theta(WAVES, method(WAVES), spoilt(WAVES, value), tasks=4)
    assert found.failed == 4
    assert np.isnan(found.scores["loss"])
    assert found.unscored == {"before": 4}
    told = str(found)
    assert "loss after adaptation   no task has a finite score" in told
    assert "4 of 4 tasks failed numerically: excluded from every loss" in told
    assert "before adaptation: 4 of 4 tasks have no finite score" in told
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["loss"] is None
    assert (content["failed"], content["unscored"]) == (4, {"before": 4})
    sound = evaluate_theta(WAVES, method(WAVES), WAVES.init(jax.random.key(0)), tasks=4)
    beside = sound.beside({"broken": found})
    assert beside.unscored == {"broken": 4}
    assert "broken: 4 of 4 tasks have no finite score" in str(beside)


@pytest.mark.slow
def test_classes_told_by_outputs_that_are_not_finite_are_wrong_and_have_no_calibration_error():
    domain = imaml.characters(ways=2, shots=1, queries=1, filters=4)
    found = evaluate_theta(domain, method(domain), spoilt(domain, np.nan), tasks=2)
    assert (found.failed, found.unscored) == (2, {"before": 2})
    assert found.scores["accuracy"] == found.before["accuracy"] == 0
    assert np.isnan(found.scores["loss"])
    assert np.isnan(found.scores["calibration_error"])
    assert "counted as wrong in every accuracy, and excluded" in str(found)


class Unlucky(type(WAVES)):
    """Waves that every second task's query, or its nearest point, has no finite score for."""

    def metrics(self, phi, task):
        odd = task.query.inputs[0, 0] > 0
        return {"loss": jnp.where(odd, jnp.inf, super().metrics(phi, task)["loss"])}

    def baselines(self, task):
        found = super().baselines(task)
        return found | {"nearest_point": jnp.where(task.query.inputs[0, 0] > 0, jnp.inf, 1.0)}


jax.tree_util.register_static(Unlucky)


def test_tasks_whose_solve_is_finite_but_not_their_score_are_counted_too():
    domain = Unlucky(WAVES.recipe)
    found = evaluate_theta(domain, method(domain), domain.init(jax.random.key(0)), tasks=16)
    without = int(np.isnan(found.values["loss"]).sum())
    assert 0 < without < 16
    assert found.failed == without
    assert found.unscored == {"before": without, "nearest_point": without}
    assert np.isfinite(found.scores["loss"])
    assert f"nearest point: {without} of 16 tasks have no finite score" in str(found)


def test_an_evaluation_that_was_lowered_and_compiled_is_not_compiled_again():
    given, asked = (WAVES, method(WAVES), WAVES.init(jax.random.key(0))), {"split": "test", "tasks": 5}
    lower_evaluation(*given, **asked, seed=1).compile()
    task_keys(1, 0, 5)  # keys are made by small programs of their own
    compiled: list[str] = []

    def listen(event: str, seconds: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        evaluate_theta(*given, **asked, seed=1)
        assert not compiled
        evaluate_theta(*given, split="test", tasks=6, seed=1)
        assert compiled  # so the listener does hear of a compilation
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_baseline_that_is_better_is_named_and_one_that_is_not_clearly_better_is_not():
    found = evaluate_theta(WAVES, method(WAVES), WAVES.init(jax.random.key(0)), tasks=40)
    own = found.values["loss"]
    gaps = {"a": own - 0.5, "b": own - 1, "c": own + 1, "d": own + np.linspace(-9, 8, 40)}
    means = {name: float(values.mean()) for name, values in gaps.items()}
    other = dataclasses.replace(found, baseline_values=gaps, baselines=means, baselines_ci95=means)
    assert other.worse_than() == ["b", "a"]
    assert "b is better than adaptation here: use it instead" in str(other)
    assert dataclasses.replace(other, higher_is_better=True).worse_than() == ["c"]
    assert "no significant difference from: " in str(other)
    assert str(other).rstrip().endswith(": d") or ", d" in str(other)


def test_a_loss_that_adaptation_makes_larger_is_named_beside_an_accuracy():
    found = evaluate_theta(WAVES, method(WAVES), WAVES.init(jax.random.key(0)), tasks=40)
    right = np.full(40, 0.5)
    values = {"accuracy": right, "loss": found.values["loss"]}
    given = {"headline": "accuracy", "higher_is_better": True, "baseline_values": {}, "baselines": {}}
    for change, said in ((-1, True), (1, False)):
        before = {"accuracy": right, "loss": values["loss"] + change}
        other = dataclasses.replace(found, values=values, before_values=before, **given)
        assert ("raise the strength" in " ".join(other.verdicts())) == said


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TwoWaves(type(WAVES)):
    """Waves of two persons; each draw divides the same rows anew into support and query set."""

    def gather(self, indices):
        person, how = jax.random.bernoulli(indices).astype(jnp.int32), jax.random.fold_in(indices, 1)
        support, query = super().gather(jax.random.key(person))
        rows = jax.tree.map(lambda *both: jnp.concatenate(both), support, query)
        mixed = jax.tree.map(lambda leaf: jax.random.permutation(how, leaf), rows)
        return imaml.Task(*cut(mixed, 10))


def test_draws_of_two_persons_are_no_hundred_tasks():
    domain = TwoWaves(WAVES.recipe)
    theta = WAVES.init(jax.random.key(0))
    found = evaluate_theta(domain, method(domain), theta, tasks=20)
    assert found.different == len(np.unique(found.number)) == 2
    assert "20 draws from 2 tasks" in str(found)
    means = [found.values["loss"][found.number == number].mean() for number in (0, 1)]
    assert found.scores["loss"] == pytest.approx(np.mean(means))
    student = 12.706  # of one degree of freedom
    assert found.ci95["loss"] == pytest.approx(student * np.std(means, ddof=1) / np.sqrt(2), rel=1e-3)
    # Calibration errors are bootstrapped over persons, too: draws of one say nothing new.
    bins = np.random.default_rng(0).uniform(size=(40, 5, 3))
    person = np.repeat([0.0, 1.0], 20)
    one = bins[[0, 20]]
    same = np.repeat(one, 20, axis=0)
    for first, second in ((same, one), (bins, bins.reshape(2, 20, 5, 3).sum(1))):
        by_draw = _calibration({"e": first}, np.full(40, True), person)
        by_person = _calibration({"e": second}, np.full(2, True), np.array([0.0, 1.0]))
        assert by_draw[0]["e"] == pytest.approx(by_person[0]["e"])
        assert by_draw[1]["e"] == pytest.approx(by_person[1]["e"])
    assert np.isnan(_calibration({"e": bins}, np.full(40, True), np.zeros(40))[1]["e"])
    many = evaluate_theta(WAVES, method(WAVES), theta, tasks=20)
    assert (many.different, many.number) == (20, None)


def test_the_coverage_of_two_persons_is_that_of_two(monkeypatch):
    domain = TwoWaves(WAVES.recipe)
    found = evaluate_theta(domain, method(domain), WAVES.init(jax.random.key(0)), tasks=20)
    errors = [np.array([0.5, 2.0] if number else [0.5, 0.5]) for number in found.number]
    errors[3] = np.zeros(0)  # no query row counts
    monkeypatch.setattr(intervals, "scaled_errors", lambda *given: errors)
    monkeypatch.setattr(type(domain), "interval_widths", {0.9: 1.0}, raising=False)
    level, share, half = intervals.with_coverage(found, None, domain).coverage
    assert (level, share) == (0.9, 0.75)
    assert half == pytest.approx(12.706 * 0.25, rel=1e-3)  # Student's, of one degree of freedom


def test_runs_with_other_test_tasks_do_not_pass_as_the_same():
    """Not even where the first task is the same one."""
    tasks = imaml.Tasks.from_arrays(np.arange(60.0)[:, None], np.arange(60.0), np.repeat(np.arange(12), 5))
    domain, _ = domain_of(tasks, "linear")
    with_test = lambda *numbers: dataclasses.replace(  # noqa: E731
        domain, splits={**domain.splits, "test": jnp.array(numbers, domain.splits["test"].dtype)}
    )
    one = with_test(4, 11, 0, 1)
    assert same_tasks(one, one, "test")
    assert not same_tasks(one, with_test(4, 3, 8, 1), "test")
    assert not same_tasks(one, with_test(4, 11, 0), "test")


def test_domains_without_end_are_compared_by_tasks_that_they_draw():
    one, other = imaml.sinusoid(shots=5), imaml.sinusoid(shots=6)
    assert same_tasks(one, one, "test")
    assert not same_tasks(one, other, "test")


def test_training_asks_for_a_domain_before_it_begins():
    """One without `baselines`, say, would train to its end and fail in its evaluation."""

    class Wave:
        recipe, init, sample = WAVES.recipe, WAVES.init, WAVES.sample

    with pytest.raises(imaml.ConfigError, match=r"train: domain: .* Hint: .* subclasses imaml\.DomainBase"):
        imaml.train(Wave(), method(WAVES), steps=1)
