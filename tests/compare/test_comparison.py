"""Methods side by side: the protocol, going on after a stop, the table and its page."""

import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import imaml
from imaml.cli import main as cli
from imaml.compare import measurements
from imaml.compare import runner as comparison
from imaml.compare import variants as compared
from imaml.compare.results import Result, Scores, entries
from imaml.config.overrides import override, overrides
from imaml.config.presets import PRESETS, preset
from imaml.core.errors import CheckpointError
from imaml.core.statistics import student_quantile
from imaml.domains.tasks.build import domain_of
from imaml.report import comparison_page
from imaml.storage.checkpoint import Checkpoints
from imaml.training.step import devices_mesh


@pytest.fixture(autouse=True)
def ranks():
    """Networks add biases to batches; strictness about ranks is for our own solvers."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def small(monkeypatch):
    """A sinusoid preset of a few small tasks, with a validation every three steps."""
    for module in (compared, comparison):
        monkeypatch.setattr(module, "GRID", 3)
    monkeypatch.setattr(compared, "STEPS", 7)
    monkeypatch.setattr(compared, "VALIDATION_TASKS", 2)
    monkeypatch.setattr(measurements, "SWEEP", (0, 1, 2, 4))
    monkeypatch.setattr(comparison, "SWEEP_TASKS", 3)
    config = preset("sinusoid")
    changes = {
        "domain.hidden": "4",
        "training.tasks": "4",
        "method.inner.steps": "3",
        "training.log_every": "1",
    }
    for path, text in changes.items():
        config = override(config, path, text)
    return config


def run(config, out, names=("scratch", "fomaml", "imaml"), **options):
    said = []
    options = {"minutes": 10.0, "tasks": 6, "progress": False, "say": said.append, **options}
    return comparison.compare(config, names, out=out, **options), said


def test_every_row_makes_a_recipe_of_every_preset():
    for name in ("characters-5w1s", "omniglot-5w1s", "omniglot-20w1s"):
        for row in compared.ROWS.values():
            base = preset(name)
            base = replace(base, training=replace(base.training, restore_best=True))
            config = row.config(base, 5.0, 1)
            assert not config.training.restore_best  # each checkpoint is scored
            assert config.domain == preset(name).domain
            assert (config.training.minutes, config.training.seed) == (5.0, 1)
            config.method.build(config.domain.without_data())


@pytest.mark.parametrize("name", [name for name in PRESETS if preset(name).optimiser.name != "newton"])
def test_every_row_has_its_own_method_whatever_the_preset_has(name):
    for row in compared.ROWS.values():
        assert row.config(preset(name), 5.0, 0).method.name == row.method["name"]
    made = compared.ROWS["imaml-learned"].config(preset(name), 5.0, 0).method
    assert (made.name, made.learned) == ("imaml", "leaf")


def test_the_optimiser_of_one_method_alone_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(imaml.ConfigError, match=r"got 'newton', .* Hint: --optimiser\.name=adam"):
        run(preset("tables-evidence"), tmp_path / "out", ("imaml",))
    assert not (tmp_path / "out").exists()
    base = override(preset("tables-evidence"), "optimiser.name", "adam")
    assert compared.ROWS["imaml"].config(base, 5.0, 0).method.name == "imaml"


@pytest.mark.long
def test_methods_are_scored_on_the_same_tasks_at_equal_time_and_equal_tasks(small, tmp_path):
    out = tmp_path / "out"
    summary, said = run(small, out)
    assert [row["method"] for row in summary["rows"]] == ["scratch", "fomaml", "imaml"]
    assert len(said) == 5  # scratch trains nothing
    assert re.fullmatch(r"imaml  .*loss [\d.]+ \+- [\d.]+ after 7 steps, .* in all\)", said[-1])
    assert summary["equal_tasks"] == 24
    by_name = {row["method"]: row for row in summary["rows"]}
    assert by_name["scratch"]["runs"][0]["tasks_seen"] == 0
    assert "equal_tasks" not in by_name["scratch"]
    values = {}
    for name, row in by_name.items():
        with np.load(out / name / "seed-0" / f"step-{row['runs'][0]['step']}.npz") as stored:
            values[name] = stored["loss"]
    gap = values["fomaml"].astype(float) - values["imaml"]
    stated = by_name["fomaml"]["difference_at_equal_time"]["loss"]
    np.testing.assert_allclose(stated["mean"], gap.mean(), rtol=1e-6)
    np.testing.assert_allclose(stated["ci95"], 1.96 * gap.std(ddof=1) / np.sqrt(6), rtol=1e-6)
    assert by_name["imaml"]["difference_at_equal_time"]["loss"]["mean"] == 0
    # at theta itself, before any inner step, scratch is the network that all began with
    start = by_name["scratch"]["runs"][0]["inner_steps"]
    assert start["steps"] == [0, 1, 2, 4]
    for row in (by_name["fomaml"], by_name["imaml"]):
        curve = row["runs"][0]["curve"]
        assert [point["tasks"] for point in curve] == [12, 24, 28]
        assert all(a["seconds"] <= b["seconds"] for a, b in itertools.pairwise(curve))
        assert row["runs"][0]["adaptation_ms"] > 0
    assert json.loads((out / "comparison.json").read_text()) == summary


@pytest.mark.slow
def test_a_method_that_fails_does_not_break_off_the_others(small, tmp_path, monkeypatch):
    plain = {"name": "fomaml", "strength": None, "new_task": None}
    monkeypatch.setitem(compared.ROWS, "fomaml", compared.Row("explodes", plain, rate=1e30, fine=2))
    summary, said = run(small, tmp_path / "out", ("fomaml", "imaml"))
    by_name = {row["method"]: row for row in summary["rows"]}
    assert by_name["fomaml"]["runs"][0]["reason"] == "failed"
    assert "tasks failed numerically" in by_name["fomaml"]["runs"][0]["failure"]
    assert by_name["imaml"]["runs"][0]["failure"] is None
    assert any("after 0 steps" in line and "then FAILED; tested at step 0" in line for line in said)
    assert "fomaml failed numerically after 0 steps" in comparison_page.text(summary)
    again, _ = run(small, tmp_path / "out", ("fomaml", "imaml"))  # what is there is read
    assert again == summary


@pytest.mark.slow
def test_the_checkpoint_that_is_tested_is_the_best_on_validation_tasks(small, tmp_path):
    """Of those with as many tasks as all have seen, for the scores at equal tasks."""
    summary, _ = run(small, tmp_path / "out", ("fomaml", "imaml"))
    entry = next(row for row in summary["rows"] if row["method"] == "imaml")
    losses = {point["tasks"] // 4: point["loss"] for point in entry["runs"][0]["curve"]}
    assert list(losses) == [3, 6, 7]
    assert entry["runs"][0]["step"] == min(losses, key=losses.get)
    assert summary["equal_tasks"] == 24
    step = min((3, 6), key=losses.get)
    short = compared.ROWS["imaml"].config(small, 10.0, 0)
    domain = small.domain.build()
    trained = imaml.train(
        domain,
        short.method.build(domain),
        short.optimiser,
        steps=step,
        tasks=4,
        log_every=1,  # as `small`: estimates are part of the compiled step, and change how it rounds
        validate_every=0,
        progress=False,
    )
    again = imaml.evaluate(trained, tasks=6)
    np.testing.assert_allclose(entry["equal_tasks"]["loss"]["mean"], again.scores["loss"], rtol=1e-5)


def test_the_best_checkpoint_is_so_in_the_scores_own_sense_and_not_a_failed_one(tmp_path):
    (tmp_path / "run").mkdir()
    found = {3: 0.5, 6: 0.9, 7: None, 9: 0.8, 12: 0.95}
    lines = [{"event": "validation", "step": s, "scores": {"accuracy": v}} for s, v in found.items()]
    lines += [{**lines[0], "scores": {"accuracy": 0.1}}, {"event": "step", "step": 4}]  # step 3, seen again
    (tmp_path / "run" / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    up, down = (SimpleNamespace(headline="accuracy", higher_is_better=better) for better in (True, False))
    high, low = (comparison.Trial(domain, preset("sinusoid"), tmp_path, 2) for domain in (up, down))
    assert [high.best(most) for most in (2, 7, 9, 20)] == [2, 6, 6, 12]
    assert [low.best(most) for most in (2, 20)] == [2, 3]


@pytest.mark.slow
def test_what_is_done_is_kept_and_what_was_cut_off_goes_on(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(small, out, ("imaml",))
    before = (out / "imaml" / "seed-0" / "result.json").read_bytes()
    measured = comparison.Trial.measured

    def cut_off(*arguments):
        raise comparison.Interrupted

    monkeypatch.setattr(comparison.Trial, "measured", cut_off)
    with pytest.raises(comparison.Interrupted):
        run(small, out, ("fomaml", "imaml"))
    monkeypatch.setattr(comparison.Trial, "measured", measured)
    summary, said = run(small, out, ("fomaml", "imaml"))
    assert said[-1].startswith("imaml ")
    assert said[-1].endswith(" (done before)")
    assert summary["rows"][0]["runs"][0]["steps"] == 7
    events = (out / "fomaml" / "seed-0" / "run" / "events.jsonl").read_text()
    assert events.count('"event": "start"') == events.count('"event": "resume"') == 1
    assert (out / "imaml" / "seed-0" / "result.json").read_bytes() == before
    other = override(small, "domain.hidden", "5")
    with pytest.raises(
        imaml.ConfigError,
        match=r"expected a comparison with the same options, got another: domain\.hidden was 4 and is now 5",
    ):
        run(other, out)
    with pytest.raises(imaml.ConfigError, match=r"got another: --budget was 10\.0 and is now 0\.03"):
        run(small, out, minutes=0.03)
    (tmp_path / "file").write_text("")
    with pytest.raises(imaml.ConfigError, match="comparison to continue, got one with other files in it"):
        run(small, tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("method.new_task", "none"), ("training.log_every", "3"), ("domain.data", "other")]
)
def test_a_comparison_is_continued_with_every_option_as_it_was(tmp_path, field, value):
    """What is done is not done again, and so must be what the options would give."""
    base = preset("omniglot-5w1s")
    comparison._check_plan(tmp_path / "out", base, 5.0, 100)
    comparison._check_plan(tmp_path / "out", base, 5.0, 100)
    with pytest.raises(imaml.ConfigError, match=rf"with the same options, got another: {field}.* was "):
        comparison._check_plan(tmp_path / "out", override(base, field, value), 5.0, 100)


def test_a_damaged_checkpoint_is_not_replaced_by_an_older_one(small, tmp_path):
    trial = comparison.Trial(small.domain.build(), compared.ROWS["imaml"].config(small, 1.0, 0), tmp_path, 2)
    state = trial.experiment.begin()[1]
    saved = Checkpoints(tmp_path / "run" / "checkpoints", 9)
    plus = lambda number: jax.tree.map(lambda leaf: leaf + leaf.dtype.type(number), state)  # noqa: E731
    for step in (3, 6):
        saved.save(step, plus(step))
    jax.tree.map(np.testing.assert_array_equal, trial.theta(6), plus(6)["theta"])
    file = tmp_path / "run" / "checkpoints" / "step-00000006.checkpoint"
    content = bytearray(file.read_bytes())
    content[-5] ^= 255
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"of step 6 in .*, got that of step 3: Skipped the damaged"):
        trial.theta(6)


def scores(values, failed=0, number=None):
    return Scores(
        {"scores": {"loss": 1.0}, "ci95": {"loss": 0.1}, "failed": failed}, {"loss": values}, number
    )


def results(time, **facts):
    content = {"steps": 3, "step": 3, "seconds": 1.0, "config": {}, **facts}
    return Result(content, time, time)


def test_draws_of_one_task_are_averaged_before_the_interval():
    number = np.repeat(np.arange(4.0), 50)
    own = np.arange(4.0)[number.astype(int)] + np.tile([-0.5, 0.5], 100)
    found = {"maml": [results(scores(own, number=number))]}
    found["imaml"] = [results(scores(0.5 * own, number=number))]
    rows = {name: SimpleNamespace(about="") for name in found}
    row = entries(rows, found, "imaml")[0]
    half = student_quantile(4) * np.std(range(4), ddof=1) / 2
    np.testing.assert_allclose(row["equal_time"]["loss"]["ci95"], half, rtol=1e-6)
    np.testing.assert_allclose(row["difference_at_equal_tasks"]["loss"]["ci95"], 0.5 * half, rtol=1e-6)


def test_which_draws_are_of_one_task_is_kept_with_the_scores(tmp_path, monkeypatch):
    trial = comparison.Trial(None, None, tmp_path, 4)
    given = {"scores": {}, "ci95": {}, "before": {}, "baselines": {}, "failed": 1, "held_out": False}
    given |= {"values": {"loss": np.ones(4)}, "number": np.array([0.0, 1, 0, 1]), "different": 2}
    monkeypatch.setattr(comparison.Trial, "experiment", SimpleNamespace(method=None))
    monkeypatch.setattr(comparison.Trial, "theta", lambda self, step: None)
    monkeypatch.setattr(comparison, "evaluate_theta", lambda *args, **options: SimpleNamespace(**given))
    for _ in range(2):  # computed, and read
        found = trial.tested(3)
        assert list(found.values) == ["loss"]
        assert found.number.tolist() == [0, 1, 0, 1]
        assert (found.content["different"], found.content["held_out"]) == (2, False)


def test_failed_test_tasks_are_said():
    nearly_all = np.where(np.arange(40) < 2, 1.0, np.nan)
    found = {"maml": [results(scores(nearly_all, failed=38))], "imaml": [results(scores(np.ones(40)))]}
    assert "38 test tasks failed numerically" in found["maml"][0].line("loss")
    assert "failed" not in found["imaml"][0].line("loss")
    rows = {name: SimpleNamespace(about="") for name in found}
    runs = summary_of()["rows"][0]["runs"]
    listed = [{**row, "runs": runs} for row in entries(rows, found, "imaml")]
    summary = summary_of(headline="loss", test_tasks=40, rows=listed)
    head, (first, second) = comparison_page.cells(summary)
    column = head.index("failed tasks at equal time")
    assert (first[column], second[column]) == ("38 of 40", "0 of 40")
    assert "Every other score, and every difference of it, is over the tasks that did not" in (
        comparison_page.text(summary)
    )
    assert "failed" not in comparison_page.text(summary_of())


def test_the_page_says_which_tasks_the_scores_are_of():
    text = comparison_page.text(summary_of(different_tasks=4, held_out=False))
    assert "All are tested on the same 1,000 draws from 4 tasks, which are tasks of training, as none" in text
    text = comparison_page.text(summary_of(different_tasks=1000, held_out=True))
    assert "All are tested on the same 1,000 tasks, each run at its checkpoint" in text


@pytest.mark.parametrize("name", ["q-learning", "actor-critic"])
def test_adapting_is_timed_on_every_kind_of_support(name):
    """Its arrays are not always inputs and targets; what they are, the domain knows."""
    config = preset(name)
    domain, seen = config.domain.build(), []

    def adapt(*support):
        seen.append(config.domain.without_data().encode(*support))
        return SimpleNamespace(phi=0.0)

    assert measurements.adaptation_ms(domain, SimpleNamespace(adapt=adapt), calls=1) is not None
    assert len(seen) == 2


def test_a_table_is_adapted_to_with_what_was_read_of_it(tmp_path, monkeypatch):
    file = tmp_path / "t.csv"
    file.write_text("g,x,y\n" + "".join(f"{i // 5},{i % 5},{i}\n" for i in range(60)))
    words = {"data": str(file), "task": "g", "target": "y", "features": "x"}
    config = overrides(preset("tables"), [(f"domain.{name}", text, name) for name, text in words.items()])
    domain, seen = config.domain.build(), []
    trial = comparison.Trial(domain, compared.ROWS["imaml"].config(config, 1.0, 0), tmp_path, 4)
    monkeypatch.setattr(comparison.Trial, "theta", lambda self, step: None)
    monkeypatch.setattr(comparison.Trial, "events", lambda self, kind: [])
    monkeypatch.setattr(comparison, "sweep", lambda *args: {})
    monkeypatch.setattr(comparison, "adaptation_ms", lambda domain, learner: seen.append(learner.config))
    trial.measured({"step": 0, "reason": "steps"}, 0)
    seen[0].domain.without_data().encode(domain.sample(jax.random.key(0), "test").support)


@pytest.mark.slow
def test_the_sweep_averages_draws_of_one_task_first(monkeypatch):
    monkeypatch.setattr(measurements, "SWEEP", (0, 1))
    x, y, groups = np.arange(80.0)[:, None], np.arange(80.0) % 7, np.repeat(np.arange(8), 10)
    domain, _ = domain_of(imaml.Tasks.from_arrays(x, y, groups), "linear")
    method = imaml.config.Method("imaml", inner=imaml.GradientDescent(0.01, steps=1)).build(domain)
    theta = domain.init(jax.random.key(0))
    found = comparison.sweep(domain, method, theta, "test", 30)
    scored = comparison.evaluate_theta(domain, method, theta, split="test", tasks=30)
    np.testing.assert_allclose(found[domain.headline][0], scored.before[domain.headline], rtol=1e-5)
    np.testing.assert_allclose(found["ci95"][0], scored.before_ci95[domain.headline], rtol=1e-5)


@pytest.mark.slow
def test_the_sweep_is_gradient_descent_from_theta(small):
    domain = small.domain.build()
    method, theta = small.method.build(domain), domain.init(jax.random.key(0))
    found = comparison.sweep(domain, method, theta, "test", 3)
    shared = small.method.build(domain, devices_mesh(4))
    assert shared.mesh.size == 2
    np.testing.assert_allclose(
        comparison.sweep(domain, shared, theta, "test", 3)["loss"], found["loss"], rtol=1e-6
    )
    losses = []
    for i in range(3):
        task = domain.sample(jax.random.fold_in(jax.random.key(0), i), "test")
        phi = imaml.GradientDescent(small.method.inner.learning_rate, steps=4)(
            method.problem, theta, task.support
        )
        losses.append(float(domain.metrics(phi.value, task)["loss"]))
    np.testing.assert_allclose(found["loss"][-1], np.mean(losses), rtol=1e-5)


def summary_of(**changes):
    def row(name, accuracy):
        scores = {"accuracy": {"mean": accuracy, "ci95": 0.01}, "loss": {"mean": 1.0, "ci95": 0.1}}
        scores["accuracy_inductive"] = {"mean": accuracy - 0.1, "ci95": 0.01}
        points = [{"tasks": n, "seconds": n / 2, "accuracy": accuracy * n / 20} for n in (10, 20)]
        swept = {"steps": [0, 1], "accuracy": [0.2, accuracy], "ci95": [0.1, 0.1]}
        one = {
            "tasks_seen": 20,
            "steps": 2,
            "step": 1,
            "adaptation_ms": 3.4,
            "curve": points,
            "inner_steps": swept,
        }
        one["scores"] = {"calibration_error": 0.051}
        return {
            "method": name,
            "about": f"about <{name}>",
            "runs": [one],
            "equal_time": scores,
            "equal_tasks": scores,
            "difference_at_equal_time": {"accuracy": {"mean": -0.05, "ci95": 0.02}},
            "difference_at_equal_tasks": {"accuracy": {"mean": 0.05, "ci95": 0.02}},
        }

    return {
        "minutes": 5,
        "test_tasks": 1000,
        "seeds": 1,
        "equal_tasks": 20,
        "reference": "imaml",
        "headline": "accuracy",
        "rows": [row("maml", 0.8), row("imaml", 0.9)],
        **changes,
    }


def test_the_table_says_what_there_is(tmp_path):
    from imaml.report.comparison_page import markdown, text, write_comparison

    summary = summary_of()
    table = markdown(summary)
    assert (
        "| maml | 20 | 1 of 2 | 80.00 ± 1.00 | 70.00 ± 1.00 | 1.0000 ± 0.1000 | 5.10 | -5.00 ± 2.00 |"
        in table
    )
    assert "+5.00 ± 2.00 | 3 |" in table
    lines = text(summary).splitlines()
    assert len({line.index("±") for line in lines[1:3]}) == 1
    page = write_comparison(summary, tmp_path).read_text()
    assert "about &lt;maml&gt;" in page
    assert page.count('<svg viewBox="0 0 460') == 6
    assert page.count('<svg viewBox="0 0 700') == 1
    assert "maml at equal time -5.00 ± 2.00; maml at equal tasks +5.00 ± 2.00" in page
    assert "within a training group" not in table
    groups = {"accuracy": {"0": 0.5, "1": 0.9}, "least_quartiles_most": [0.5, 0.6, 0.7, 0.8, 0.9]}
    summary["rows"][0]["runs"][0]["groups"] = groups
    text = markdown(summary)
    assert "70.0 % of the images within a training group correctly (median over 2 groups" in text
    assert "quartiles 60.0 and 80.0 %" in text
    assert not re.search(r"https?://|<script", page)
    assert (tmp_path / "comparison.md").read_text() == table


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "--training.seed=3",
            "got '3' for training.seed, which is the same for all methods. Hint: use --seeds.",
        ),
        ("--training.steps=3", "for training.steps, which is the same for all methods. Hint: omit it."),
        ("--training.test_tasks=3", "Hint: use --tasks."),
        ("--optimiser.schedule=cosine", "--optimiser.schedule: expected a field that a comparison does not"),
        ("--method.name=maml", "as each row has its own. Hint: name the rows to compare"),
        ("--method=maml", "as each row has its own. Hint: name the rows to compare"),
        ("--training.minutes=none", "--training.minutes: expected a number of minutes, got none"),
    ],
)
def test_options_that_a_comparison_would_not_heed_are_refused(word, message, capsys):
    assert cli.main(["compare", word]) == 2
    assert message in capsys.readouterr().err


def test_json_is_all_of_stdout_and_minutes_may_be_the_fields_option(tmp_path, capsys, monkeypatch):
    asked = []

    def compare(config, methods, *, say, minutes, **options):
        say("maml done")
        asked.append(minutes)
        return summary_of()

    monkeypatch.setattr(comparison, "compare", compare)
    words = ["compare", f"--out={tmp_path}", "--json"]
    for word in ((), ("--training.minutes=7",), ("--budget=8",)):
        assert cli.main([*words, *word]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out) == summary_of()
        assert printed.err == "maml done\n"
    assert asked == [5, 7, 8]


def test_the_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["compare", "scratch", "--preset=sinusoid", "--budget=0.01", "--tasks=4", f"--out={out}"]
    words += ["--domain.hidden=4"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("scratch ")
    assert f"report   {out / 'comparison.html'}" in printed
    assert cli.main([*words, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["method"] == "scratch"
    for bad, message in (
        (["compare", "imamml"], "got 'imamml'. Hint: did you mean 'imaml'?"),
        (["compare", "--budget=0"], "--budget: expected a finite number above 0 or None, got 0.0."),
        (["compare", "--budget=none"], "--budget: expected a number, got 'none'"),
        (["compare", "--seeds=0"], "at least 1"),
        (["compare", "--bugdet=3"], "did you mean '--budget'"),
    ):
        assert cli.main(bad) == 2
        assert message in capsys.readouterr().err
