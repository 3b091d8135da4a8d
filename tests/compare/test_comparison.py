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
from imaml.config.overrides import override
from imaml.config.presets import preset
from imaml.report import comparison_page
from imaml.training.step import devices_mesh


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
    with jax.numpy_rank_promotion("allow"):
        yield config


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


@pytest.mark.slow
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


def test_the_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["compare", "scratch", "--preset=sinusoid", "--budget=0.01", "--tasks=4", f"--out={out}"]
    words += ["--domain.hidden=4"]
    with jax.numpy_rank_promotion("allow"):
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
