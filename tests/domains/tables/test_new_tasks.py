"""New tasks of a table: all are scored, each learned from its own rows; none compiles anew."""

import json
import shutil

import jax
import jax.monitoring
import numpy as np
import pandas as pd
import polars as pl
import pytest

import imaml
from imaml.cli.main import main
from imaml.core.errors import DataError

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def ranks(ranks_mixed):
    """Networks add a bias to every row."""


def rows_of(groups, prefix, least=6, most=9):
    """Rows of groups that each have their own line, as a dict of columns."""
    sizes = RANDOM.integers(least, most + 1, groups)
    who = np.repeat([f"{prefix}{g}" for g in range(groups)], sizes)
    lines = np.repeat(RANDOM.normal([3, -2], [2, 1], (groups, 2)), sizes, axis=0)
    x = RANDOM.normal(5, 2, who.size)
    return pd.DataFrame(
        {"who": who, "x": x, "y": lines[:, 0] + lines[:, 1] * x + RANDOM.normal(size=who.size)}
    )


TRAINED, NEW = rows_of(20, "old"), rows_of(21, "new")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tables, and a short run of each preset on the first; made once."""
    root = tmp_path_factory.mktemp("new")
    TRAINED.to_csv(root / "trained.csv", index=False)
    NEW.to_csv(root / "new.csv", index=False)
    words = [
        f"--data={root / 'trained.csv'}",
        "--task=who",
        "--target=y",
        "--training.test_tasks=0",
        "--quiet",
    ]
    with jax.numpy_rank_promotion("allow"):
        for preset in ("tables", "tables-evidence"):
            assert main(["train", preset, *words, f"--out={root / preset}", "--steps=5"]) == 0
    return root


def evaluated(capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_files_are_read_and_judged_otherwise_than_in_training_on_request(folder, tmp_path, capsys):
    text = (folder / "new.csv").read_text().replace(",", ";").replace(".", ",")
    (tmp_path / "new.csv").write_text(text + "new0;;1,5\n")
    words = [f"--data={tmp_path / 'new.csv'}", "--decimal=,", "--missing=drop", "--tasks=21"]
    found = evaluated(capsys, folder / "tables", *words)
    assert (
        found["rmse"]
        == evaluated(capsys, folder / "tables", f"--data={folder / 'new.csv'}", "--tasks=21")["rmse"]
    )
    adapt = ["adapt", str(folder / "tables"), f"--query={tmp_path / 'new.csv'}", "--decimal=,"]
    assert main([*adapt, "--missing=drop"]) == 2
    assert "column 'x': expected a value, got an empty cell" in capsys.readouterr().err
    assert main([*adapt, "--missing=mean"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(NEW)


@pytest.mark.parametrize("preset", ["tables", "tables-evidence"])
def test_all_new_tasks_are_scored_on_rows_that_were_not_learned_from(preset, folder, capsys):
    run, new = folder / preset, folder / "new.csv"
    found = evaluated(capsys, run, f"--data={new}", "--tasks=21", "--shots=3")
    assert (found["different_tasks"], found["tasks"], found["held_out"]) == (21, 21, True)
    # Pooled least squares of the training rows, scored on the new rows. That of the new rows is another.
    learner = imaml.load(run)
    inside = TRAINED.who.isin(learner.config.domain.layout.splits[0])
    line = np.polyfit(TRAINED.x[inside], TRAINED.y[inside], 1)
    layout = learner.config.domain.layout
    (x,), y = layout.features, layout.target
    coefficients = y.scale * layout.pooled[1][0] / x.scale
    np.testing.assert_allclose(line[0], coefficients)
    domain = learner.config.domain.scored_on(str(new)).build()
    task = domain.gather(domain.draw(jax.random.key(0), "test"))
    assert not np.any(np.isin(np.asarray(task.support.inputs)[task.support.weights > 0],
                              np.asarray(task.query.inputs)[task.query.weights > 0]))  # fmt: skip
    asked = np.asarray(task.query.weights) > 0
    rows = x.mean + x.scale * np.asarray(task.query.inputs, np.float64)[asked, 0]
    truth = y.mean + y.scale * np.asarray(task.query.targets, np.float64)[asked, 0]
    error = np.sqrt(np.mean((np.polyval(line, rows) - truth) ** 2))
    np.testing.assert_allclose(domain.baselines(task)["pooled_model"], error, rtol=1e-4)


@pytest.mark.slow
def test_a_run_knows_the_table_that_it_was_trained_on(folder, capsys, tmp_path):
    """By its content: the same test tasks are scored, whatever the file is called."""
    (tmp_path / "other.csv").write_bytes((folder / "trained.csv").read_bytes())
    own = evaluated(capsys, folder / "tables", "--tasks=8")
    again = evaluated(capsys, folder / "tables", f"--data={tmp_path / 'other.csv'}", "--tasks=8")
    assert (
        (own["rmse"], own["different_tasks"]) == (again["rmse"], again["different_tasks"]) == (own["rmse"], 2)
    )


def test_a_run_that_held_out_no_task_is_scored_on_other_rows_than_it_learns_from(folder, capsys):
    found = evaluated(capsys, folder / "tables-evidence", "--tasks=20", "--shots=3")
    assert (found["held_out"], found["different_tasks"]) == (False, 20)
    own = found["baselines"]["model_of_its_own"]
    assert own > 1.05  # of noise with a standard deviation of 1; on the rows learned from it is below 1


@pytest.mark.slow
def test_runs_of_earlier_versions_are_scored_and_resumed(folder, tmp_path, capsys):
    """Their files have none of the fields that are new, so they know neither a digest nor a pooled fit."""
    run = shutil.copytree(folder / "tables", tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    new = [
        "weights",
        "offset",
        "dates",
        "missing",
        "unseen",
        "separator",
        "encoding",
        "decimal",
        "digest",
        "pooled",
        "usual",
    ]

    def stripped(node):
        if isinstance(node, list):
            return [stripped(item) for item in node]
        if isinstance(node, dict):
            return {name: stripped(value) for name, value in node.items() if name not in new}
        return node

    (run / "config.json").write_text(json.dumps({**config, "domain": stripped(config["domain"])}))
    for words in ([], [f"--data={folder / 'trained.csv'}"]):
        found = evaluated(capsys, run, "--tasks=8", *words)
        assert (found["different_tasks"], list(found["baselines"])) == (
            2,
            ["model_of_its_own", "support_mean"],
        )
    assert evaluated(capsys, run, "--tasks=21", f"--data={folder / 'new.csv'}")["different_tasks"] == 21
    assert main(["train", "--resume", f"--out={run}", "--quiet"]) == 0


def test_tasks_of_one_row_are_not_scored(folder, tmp_path):
    (tmp_path / "few.csv").write_text("who,x,y\na,1,2\na,2,3\nb,1,2\n")
    recipe = imaml.load(folder / "tables").config.domain.scored_on(str(tmp_path / "few.csv"))
    with pytest.warns(RuntimeWarning, match=r"1 of 2 tasks are not scored, as they have one row \(b\)"):
        assert recipe.build().size("test") == 1
    (tmp_path / "few.csv").write_text("who,x,y\na,1,2\nb,1,2\n")
    with pytest.raises(DataError, match="expected tasks of at least 2 rows to score"), pytest.warns():
        recipe.build()


# --- predictions for many tasks --------------------------------------------------------------------------


def few_and_others():
    """Three rows of each new task but one, and the others, shuffled."""
    first = NEW.groupby("who").cumcount() < 3
    few = NEW[first & (NEW.who != "new7")]
    return few, NEW[~first].sample(frac=1, random_state=0)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame, dict])
def test_each_task_is_predicted_by_its_own_rows_and_one_without_rows_as_the_population(frame, folder):
    few, others = few_and_others()
    learner = imaml.load(folder / "tables")
    made = [part if frame is pd.DataFrame else frame(part.to_dict("list")) for part in (few, others)]
    found = learner.predict(*made)
    for who in ("new3", "new7"):
        support = few[few.who == who]
        predictor = learner.adapt(support) if len(support) else learner.adapt()
        rows = (others.who == who).to_numpy()
        np.testing.assert_allclose(found[rows], predictor.predict(others[rows]), rtol=1e-5)
    population = learner.adapt()
    known, least = (
        p.predict_interval({"x": [5.0]}) for p in (learner.adapt(few[few.who == "new3"]), population)
    )
    assert least.high - least.low > known.high - known.low
    np.testing.assert_allclose(learner.predict(None, others), learner.adapt().predict(others), rtol=1e-6)
    nameless = few.drop(columns="who")
    with pytest.raises(DataError, match="expected a column 'who', as query has rows of 21 tasks, got none"):
        learner.predict(nameless, others)
    with pytest.raises(DataError, match="expected rows of one task, got 20"):
        learner.adapt(few)


def test_the_command_line_predicts_for_many_tasks(folder, tmp_path, capsys):
    few, others = few_and_others()
    few.to_csv(tmp_path / "few.csv", index=False)
    others.to_csv(tmp_path / "others.csv", index=False)
    words = [
        "adapt",
        str(folder / "tables"),
        f"--support={tmp_path / 'few.csv'}",
        f"--query={tmp_path / 'others.csv'}",
    ]
    capsys.readouterr()
    assert main(words) == 0
    said = capsys.readouterr()
    head, *lines = [line.split("\t") for line in said.out.splitlines()]
    assert head == ["row", "who", "y"]
    assert [line[:2] for line in lines] == [[str(i), who] for i, who in enumerate(others.who, 1)]
    assert "1 of 21 tasks have no support rows, and are predicted as the population (new7)" in said.err
    found = np.array([float(line[2]) for line in lines])
    error = np.sqrt(np.mean((found - others.y.to_numpy()) ** 2))
    assert f"root mean squared error from the column 'y': {error:.4g}"[:-1] in said.err
    assert main([*words, "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)["predictions"]
    assert [(p["row"], p["who"]) for p in predictions] == list(enumerate(others.who, 1))


def test_each_new_number_of_rows_does_not_compile_anew(folder):
    learner = imaml.load(folder / "tables")
    x, y = np.arange(16.0), np.arange(16.0)

    def used(count):
        predictor = learner.adapt(x[:count], y[:count])
        predictor.predict(x[:count])
        predictor.predict_interval(x[:count])

    for count in (1, 5, 9):  # the sizes are 4, 8 and 16
        used(count)
    compiled = []
    listen = lambda event, seconds, **_: compiled.append(event)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for count in (2, 3, 6, 7, 8, 11, 16):
            used(count)
        assert "/jax/core/compile/backend_compile_duration" not in compiled
        learner.adapt(np.arange(17.0), np.arange(17.0))
        assert "/jax/core/compile/backend_compile_duration" in compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
