"""Tables: what is refused and how, tasks of unequal size, units, artefacts, and the command line."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import imaml
from helpers.marks import slow_after_first
from helpers.paths import DATA
from imaml.cli.main import main
from imaml.core.errors import ConfigError, DataError
from imaml.core.recipes import from_json, to_json
from imaml.domains.tables.cells import table_of
from imaml.domains.tables.domain import TablesRecipe
from imaml.domains.tables.files import read_table
from imaml.domains.tables.interface import Rows
from imaml.domains.tables.layout import Column, Layout, column_of

SLEEPSTUDY = DATA / "sleepstudy.csv"


@pytest.fixture(autouse=True)
def ranks(ranks_mixed):
    """Networks add a bias to every row."""


def lines(people=12, seed=0, least=4, most=9):
    """Rows of people who each have their own line over days, and a group that shifts it."""
    random, rows = np.random.default_rng(seed), ["who,day,group,score"]
    for person in range(people):
        start, slope = random.normal((250, 10), (25, 6))
        for day in range(random.integers(least, most + 1)):
            group = "ab"[random.integers(2)]
            score = start + slope * day + 30 * (group == "b") + random.normal()
            rows.append(f"p{person},{day},{group},{score:.4f}")
    return "\n".join(rows) + "\n"


@pytest.fixture
def file(tmp_path):
    """A table of twelve people."""
    path = tmp_path / "scores.csv"
    path.write_text(lines())
    return path


def made(file, **options):
    return imaml.tables(str(file), "who", "score", **options)


# --- what is refused -------------------------------------------------------------------------------------

HEAD = "who,day,score\n"
BAD = {
    "no such file": (
        None,
        {},
        "rows.csv: expected a table (.csv, .tsv, .parquet or .xlsx), got no such file. Hint: check the path.",
    ),
    "empty": ("", {}, "got 0 lines"),
    "a header alone": (HEAD, {}, "rows.csv: expected a header and at least one row, got 1 line."),
    "one column": (
        "who;day;score\na;1;2\n",
        {"separator": ","},
        "expected columns separated by ',', got one column, 'who;day;score'. Hint: give the separator",
    ),
    "a target that is the task": (None, {"target": "who"}, "got 'who' for both"),
    "ragged": (
        HEAD + "a,1,2\na,1\n",
        {},
        "rows.csv, row 2 below the header (line 3 of the file): expected 3 cells, as in the header, got 2.",
    ),
    "a decimal comma": (HEAD + "a,1,2,5\n", {}, "a comma within a cell needs quotes"),
    "a quoted decimal comma": (
        HEAD + 'a,1,2\na,2,"2,5"\n',
        {},
        "row 2 below the header (line 3 of the file), column 'score': expected a finite number, as 1 of 2 "
        "cells are, got '2,5'",
    ),
    "a stray word": (
        HEAD + "a,1,2\na,x,3\na,2,3\n",
        {},
        "column 'day': expected a finite number, as 2 of 3 cells are, got 'x'",
    ),
    "a missing cell": (
        HEAD + "a,1,2\na,,3\na,2,3\n",
        {},
        "rows.csv, row 2 below the header (line 3 of the file), column 'day': expected a value, got an empty "
        "cell. Hint: fill them, or set --missing=drop or --missing=mean.",
    ),
    "missing cells below a cell of two lines and a blank line": (
        'who,day,score\n"a\nb",1,2\n\na,,3\na, ,3\na,nan,3\na,2,\n',
        {},
        "rows.csv, row 2 below the header (line 5 of the file), column 'day': expected a value, got an empty "
        "cell (missing in all: 1 in 'score', 3 in 'day'). Hint: fill them, or set --missing=drop or "
        "--missing=mean.",
    ),
    "not a number": (
        HEAD + "a,1,2\na,2,nan\n",
        {},
        "column 'score': expected a value, got 'nan'. Hint: fill",
    ),
    "infinite": (HEAD + "a,1,2\na,2,inf\n", {}, "expected a finite number, as 1 of 2 cells are, got 'inf'"),
    "a name twice": ("who,day,day\na,1,2\n", {}, "column 3: expected a name of its own, got 'day'"),
    "no names": ("who,,,score\na,1,1,2\n", {}, "column 3: expected a name of its own, got ''"),
    "one task": (
        HEAD + "a,1,2\na,2,3\n",
        {},
        "0.2 (validation) and 0.2 (test), got 1",
    ),
    "few tasks": (
        HEAD + "a,1,2\na,2,3\nb,1,2\nb,2,3\n",
        {},
        "enough for shares of 0.2 (validation) and 0.2 (test), got 2",
    ),
    "one row": (
        HEAD + "".join(f"{w},{d},{d}\n" for w in "abcdef" for d in range(2 if w != "c" else 1)),
        {},
        "expected at least 2 rows of each task, one of them for its query set, got 1 of 'c'",
    ),
    "no such task": (
        lines(),
        {"task": "whom"},
        "got 'whom'. Hint: did you mean 'who'?",
    ),
    "no such target": (lines(), {"target": "scor"}, "did you mean 'score'?"),
    "no such feature": (lines(), {"features": ("days",)}, "did you mean 'day'?"),
    "the target as feature": (lines(), {"features": ("score",)}, "expected columns other than the task"),
    "texts that are no categories": (
        HEAD + "".join(f"{w},{w}{d},{d}\n" for w in "abcdef" for d in range(3)),
        {},
        "different texts in",
    ),
    "not set": (lines(), {"task": None}, "expected --task for a run on a table"),
    "shares": (lines(), {"validation": 0.5, "test": 0.5}, "to leave tasks for training"),
    "holdout": (lines(), {"holdout": "lst"}, "did you mean 'last'?"),
    "option": (lines(), {"hiden": (3,)}, "did you mean 'hidden'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_table_is_said(case, tmp_path):
    content, options, message = BAD[case]
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_text(content)
    given = {"task": "who", "target": "score", **options}
    with pytest.raises((DataError, ConfigError)) as error:
        imaml.tables(str(path), given.pop("task"), given.pop("target"), **given)
    assert message in str(error.value)


def test_files_that_are_no_text_or_no_table_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"who,day\n\xff\xfe,1\n")
    with pytest.raises(DataError, match=r"expected text in UTF-8, .* Hint: .*--encoding=cp1252"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pyarrow|a Parquet table"):
        read_table(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="expected a mapping from column names"):
        table_of([1, 2], "x")
    with pytest.raises(DataError, match="columns of one length"):
        table_of({"a": [1], "b": [1, 2]}, "x")


def changed(path, row, column, cell):
    """The file of `lines` with another cell; row counted from 1."""
    rows = [line.split(",") for line in lines().splitlines()]
    rows[row][rows[0].index(column)] = cell
    path.write_text("".join(",".join(line) + "\n" for line in rows))
    return path


@pytest.mark.parametrize("there", ["scores.csv", "scores.tsv", "scores.parquet"])
def test_a_table_that_is_not_there_may_be_one_with_another_suffix(there, tmp_path):
    (tmp_path / there).write_text("")
    (tmp_path / "others.csv").write_text("")
    expected = "expected a table (.csv, .tsv, .parquet or .xlsx), got no such file"
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "score.xlsx")
    assert str(caught.value) == f"{tmp_path / 'score.xlsx'}: {expected}. Hint: did you mean {there!r}?"
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "people.csv")
    held = f"{tmp_path} holds {', '.join(sorted(['others.csv', there]))}"
    assert str(caught.value) == f"{tmp_path / 'people.csv'}: {expected}. Hint: {held}."


def row_of(file, split):
    """The first row, from 1, of a task of a split."""
    training = made(file).recipe.layout.splits[("train", "validation", "test").index(split)]
    return 1 + int(np.flatnonzero(np.isin(read_table(file).columns["who"], training))[0])


def place(row):
    """How a message tells where a row is, as a regular expression."""
    return rf"row {row} below the header \(line {row + 1} of the file\)"


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("column", ["day", "score"])
@pytest.mark.parametrize("cell", ["1e39", "-1e300"])
def test_numbers_that_float32_cannot_hold_are_refused_where_they_are_read(file, split, column, cell):
    row = row_of(file, split)
    told = (
        rf"scores.csv, {place(row)}, column '{column}': expected a number between -3.403e\+38 and "
        rf"3.403e\+38, the range of float32, got '{cell}'. Hint: "
    )
    with pytest.raises(DataError, match=told):
        made(changed(file, row, column, cell))


def test_a_cell_that_leaves_float32_when_standardised_is_refused(file):
    text = "".join(f"p{p},{d},{(p + 2 * d) * 1e-5}\n" for p in range(10) for d in range(4))
    file.write_text("who,day,score\n" + text)
    row = row_of(file, "test")
    rows = file.read_text().splitlines()
    rows[row] = ",".join([*rows[row].split(",")[:2], "3e38"])
    file.write_text("\n".join(rows))
    with pytest.raises(
        DataError, match=rf"{place(row)}, column 'score': expected .* got '3e38'. Hint: correct"
    ):
        made(file)


@pytest.mark.parametrize("column", ["day", "score"])
def test_one_cell_beside_which_all_others_become_equal_is_refused(file, column):
    row = row_of(file, "train")
    with pytest.raises(
        DataError, match=rf"{place(row)}, column '{column}': expected .* got '1e30'. Hint: correct"
    ):
        made(changed(file, row, column, "1e30"))


def numbers(cells):
    table = table_of({"score": cells}, "rows")
    return column_of(table, "score", "the target", np.ones(len(cells), bool))


def test_differences_that_standardisation_would_lose_are_refused():
    with pytest.raises(
        DataError, match=r"row 3, column 'score': .* at least 1.175e-38 .* got '3e-200'. Hint"
    ):
        numbers(["1e-200", "2e-200", "3e-200"])
    with pytest.raises(
        DataError, match=r"row 2, .*differs from '1700000000000000001', row 1, within 16 digits"
    ):
        numbers(["1700000000000000001", "1700000000000000002"])
    kept = numbers(["1e-30", "2e-30", "4e-30"])
    np.testing.assert_allclose(kept.scale, np.std([1e-30, 2e-30, 4e-30]))


def test_a_column_of_one_number_or_of_rounding_errors_is_no_loss():
    """The standard deviation of ten times 0.1 is not 0 but 1e-17, of which another number is far away."""
    assert numbers(["0.1"] * 10) == Column("score", None, 0.1, 1.0)
    assert numbers(["0.1", "0.10000000000000001", "0.100"]).scale == 1.0
    assert numbers(["0", "1e-17", "-1e-17", "2e-17", "1", "2"]).scale > 0.5
    assert numbers(["0.3", "0.30000000000000004", "0.3", "0.30000000000000004", "1e9"]).scale > 1


def test_numbers_of_a_new_task_are_held_to_the_same(file):
    domain = made(file).recipe.without_data()
    with pytest.raises(DataError, match=r"x, row 2, column 'day': expected .* got '1e\+39'. Hint"):
        domain.encode({"day": [1, 1e39], "group": ["a", "b"], "score": [200, 300]})
    with pytest.raises(DataError, match=r"x, row 1, column 'score': expected .* got '-1e\+300'. Hint"):
        domain.encode({"day": [1, 2], "group": ["a", "b"]}, [-1e300, 300])
    with pytest.raises(DataError, match=r"x, row 1, column 'day': expected .* got '1e\+39'. Hint"):
        domain.encode_query({"day": [1e39], "group": ["a"]})


def test_lists_arrays_and_files_mean_the_same(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffday,level\n1,7\n2.5,8\n")  # as spreadsheets save it
    file = read_table(tmp_path / "a.csv")
    for columns in (
        {"day": [1, 2.5], "level": [7, 8]},
        {"day": np.array([1, 2.5]), "level": np.array([7, 8])},
    ):
        assert table_of(columns, "x").columns == file.columns


# --- coding ----------------------------------------------------------------------------------------------


def test_standardisation_is_learned_from_training_tasks_alone(file):
    domain = made(file)
    layout, table = domain.recipe.layout, read_table(file)
    training = np.isin(table.columns["who"], layout.splits[0])
    assert 0 < training.sum() < table.rows
    day, score = layout.features[0], layout.target
    np.testing.assert_allclose(day.mean, table.numbers("day", "")[training].mean())
    np.testing.assert_allclose(score.scale, table.numbers("score", "")[training].std())
    assert layout.names == ("intercept", "day", "group=b")
    assert layout.code(table).shape == (table.rows, 2)
    again = made(file, layout=layout)
    np.testing.assert_array_equal(again.inputs, domain.inputs)


def test_levels_that_training_did_not_have_are_refused(file):
    predictor_rows = {"day": [1], "group": ["c"]}
    with pytest.raises(DataError, match="expected one of the training tasks' values, a, b, got 'c'"):
        made(file).recipe.layout.code(table_of(predictor_rows, "x"))


def test_coefficients_in_the_tables_units_are_those_of_least_squares():
    random = np.random.default_rng(1)
    x, z = random.normal(3.0, 2.0, 50), random.integers(0, 2, 50)
    y = 7 - 1.5 * x + 4 * z + random.normal(size=50)
    layout = Layout(
        (Column("x", None, x.mean(), x.std()), Column("z", ("a", "b"))), Column("y", None, y.mean(), y.std())
    )
    table = table_of({"x": x, "z": ["ab"[i] for i in z], "y": y}, "x")
    design = np.column_stack([np.ones(50), layout.code(table)])
    standard = np.linalg.lstsq(design, layout.targets(table)[:, 0], rcond=None)[0]
    plain = np.column_stack([np.ones(50), x, z])
    covariance = np.linalg.inv(design.T @ design) / y.std() ** 2
    mean, spread = layout.in_units(standard, covariance)
    np.testing.assert_allclose(mean, np.linalg.lstsq(plain, y, rcond=None)[0], rtol=1e-9)
    np.testing.assert_allclose(spread, np.linalg.inv(plain.T @ plain), rtol=1e-8, atol=1e-12)
    with pytest.raises(ConfigError, match="expected a target of numbers"):
        Layout((), Column("y", ("a", "b"))).in_units([0.0], [[1.0]])


# --- tasks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holdout", ["random", "last", "none"])
def test_every_row_of_a_task_is_used_once(file, holdout):
    domain = made(file, holdout=holdout)
    counts = np.asarray(domain.counts)
    drawn = jax.vmap(lambda k: domain.draw(k, "train"))(jax.random.split(jax.random.key(0), 40))
    support, query = jax.vmap(domain.gather)(drawn)
    for i, task in enumerate(np.asarray(drawn.group)):
        known, asked = (np.asarray(part.weights[i]) for part in (support, query))
        rows = np.asarray(domain.inputs[domain.first[task] :][: counts[task]])
        if holdout == "none":
            np.testing.assert_allclose([known.sum(), asked.sum()], counts[task], rtol=1e-6)
            continue
        assert known.sum() == (counts[task] + 1) // 2
        assert known.sum() + asked.sum() == counts[task]
        used = np.concatenate([np.asarray(p.inputs[i])[w > 0] for p, w in ((support, known), (query, asked))])
        if holdout == "last":
            np.testing.assert_allclose(used, rows)
        np.testing.assert_allclose(used[np.lexsort(used.T)], rows[np.lexsort(rows.T)])


@pytest.mark.parametrize("weights", [None, "times"])
def test_a_linear_model_has_the_same_loss_on_fewer_rows(weights, tmp_path):
    """Where all rows are learned from, a task of many rows is as long as one of few."""
    random, rows = np.random.default_rng(0), ["who,x,z,times,y"]
    for who, count in enumerate([1, 3, 200, 7]):
        rows += [f"{who},{a},{b},{c},{a - b + d}" for a, b, c, d in np.abs(random.normal(size=(count, 4)))]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    domain = imaml.tables(
        tmp_path / "rows.csv", "who", "y", features=["x", "z"], weights=weights,
        holdout="none", validation=0.0, test=0.0,
    )  # fmt: skip
    theta = jax.tree.map(lambda leaf: leaf + 0.3, domain.init(jax.random.key(0)))
    for group in (0, 2):
        task = domain.gather(domain._drawn(jnp.asarray(group), jax.random.key(0), "train"))
        assert task.support.weights.shape == (4,)
        own = domain.first[group] + np.arange(domain.counts[group])
        every = Rows(domain.inputs[own], domain.targets[own], domain.weights[own])
        np.testing.assert_allclose(task.support.weights.sum(), every.weights.sum(), rtol=1e-5)
        fewer, all_rows = (
            jax.value_and_grad(domain.loss)(theta, jax.tree.map(np.float64, batch))
            for batch in (domain.whole(*task), every)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), fewer, all_rows)


def test_a_large_task_does_not_make_the_others_long():
    who = np.repeat(np.arange(8), [3, 3, 3, 3, 3, 3, 3, 5000])
    frame = {"who": who, "x": np.random.default_rng(0).normal(size=who.size), "y": who + 0.5}
    for holdout, rows in (("random", 256), ("last", 256), ("none", 3)):
        domain = imaml.tables(frame, "who", "y", holdout=holdout)
        task = jax.eval_shape(lambda key, domain=domain: domain.sample(key, "train"), jax.random.key(0))
        assert task.support.weights.shape == task.query.weights.shape == (rows,)
    for options in ({"hidden": (3,)}, {"texts": ("y",)}):  # random rows stand for all
        domain = imaml.tables(frame, "who", "y", holdout="none", validation=0.0, test=0.0, **options)
        task = domain.gather(domain._drawn(jnp.asarray(7), jax.random.key(0), "train"))
        np.testing.assert_allclose(task.support.weights, 5000 / 1024)
        assert len(np.unique(task.support.inputs)) == 1024
        np.testing.assert_allclose(domain.whole(*task).weights.sum(), 5000, rtol=1e-5)


def test_a_batch_has_every_task_once_before_any_comes_twice(file):
    domain = made(file)
    numbers = np.sort(np.asarray(domain.splits["train"]))
    drawn = np.asarray(domain.draws(jax.random.key(0), "train", 2 * numbers.size + 1).group)
    np.testing.assert_array_equal(np.sort(drawn[: numbers.size]), numbers)
    np.testing.assert_array_equal(np.sort(drawn[numbers.size : -1]), numbers)


def test_padding_changes_no_loss_and_no_gradient(file):
    domain = made(file)
    task = domain.gather(domain.draw(jax.random.key(1), "train"))
    rows = int(task.support.weights.sum())
    assert rows < task.support.weights.size
    short = jax.tree.map(lambda leaf: leaf[:rows], task.support)
    theta = jax.tree.map(lambda leaf: leaf + 0.3, domain.init(jax.random.key(0)))
    whole, cut = (jax.value_and_grad(domain.loss)(theta, batch) for batch in (task.support, short))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, cut)
    residuals = np.asarray(domain.loss.outputs(theta, short) - short.targets)
    np.testing.assert_allclose(whole[0], 0.5 * np.sum(residuals**2), rtol=1e-5)


@pytest.mark.slow
def test_intervals_are_over_different_tasks(file):
    domain = made(file, test=0.5)
    method = imaml.IMAML(
        domain.problem(1.0), domain.query_loss, inner=imaml.NewtonCG(steps=2, linear=imaml.CG(5)),
        linear=imaml.CG(steps=5),
    )  # fmt: skip
    theta = domain.init(jax.random.key(0))
    from imaml.training.evaluation import evaluate_theta
    from imaml.training.scores import paired

    few, many = (evaluate_theta(domain, method, theta, tasks=n) for n in (64, 512))
    assert few.different == many.different == domain.splits["test"].size
    values = [many.values["rmse"][many.number == task].mean() for task in np.unique(many.number)]
    assert len(values) == 6
    half = 2.5706 * np.std(values, ddof=1) / np.sqrt(6)  # Student's, 5 degrees of freedom
    np.testing.assert_allclose(many.ci95["rmse"], half, rtol=1e-4)
    np.testing.assert_allclose(many.scores["rmse"], np.mean(values))
    assert f"512 draws from {many.different} tasks" in str(many)
    assert paired(few, few) == (0, 0)
    assert many.to_json()["held_out"] is True
    assert "tasks of training" not in str(many)
    seen = evaluate_theta(made(file, validation=0.0, test=0.0), method, theta, tasks=16)
    assert seen.to_json()["held_out"] is False
    assert "none was held out for that split: these are training tasks" in str(seen)


# --- classes ---------------------------------------------------------------------------------------------


def test_a_target_of_texts_makes_tasks_of_classification(tmp_path):
    random, rows = np.random.default_rng(0), ["who,x,answer"]
    for person in range(10):
        edge = random.normal()
        rows += [f"p{person},{x:.3f},{'yes' if x > edge else 'no'}" for x in random.normal(edge, 1, 8)]
    path = tmp_path / "answers.csv"
    path.write_text("\n".join(rows))
    domain = imaml.tables(str(path), "who", "answer")
    assert (domain.headline, domain.higher_is_better) == ("accuracy", True)
    task = domain.sample(jax.random.key(0), "train")
    phi = domain.init(jax.random.key(0))
    np.testing.assert_allclose(domain.query_loss(phi, None, task.query), np.log(2), rtol=1e-6)
    baselines = domain.baselines(task)
    assert all(0 <= float(value) <= 1 for value in baselines.values())


# --- runs ------------------------------------------------------------------------------------------------

SHORT = ["--steps=40", "--training.validate_every=0", "--training.test_tasks=20", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A table of twelve people, and a run on it; made once."""
    root = tmp_path_factory.mktemp("tables")
    (root / "scores.csv").write_text(lines())
    words = [f"--data={root / 'scores.csv'}", "--task=who", "--target=score", f"--out={root / 'run'}", *SHORT]
    with jax.numpy_rank_promotion("allow"):
        assert main(["train", "tables", *words]) == 0
    return root


def test_the_command_line_learns_adapts_and_predicts(trained, tmp_path, capsys):
    run = trained / "run"
    assert main(["evaluate", str(run), "--tasks=20"]) == 0
    text = capsys.readouterr().out
    assert "pooled model" in text
    assert "rmse after adaptation" in text
    new = lines(people=1, seed=5, least=8, most=8).replace("p0", "someone")
    head, *rows = new.splitlines()
    for name, part in (("support", rows[:4]), ("query", rows[4:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *part]))
    adapt = ["adapt", str(run), f"--support={tmp_path / 'support.csv'}", f"--query={tmp_path / 'query.csv'}"]
    assert main([*adapt, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["predictions"]] == [1, 2, 3, 4]
    answers = np.array([row["score"] for row in found["predictions"]])
    truth = np.array([float(row.split(",")[-1]) for row in rows[4:]])
    assert np.sqrt(np.mean((answers - truth) ** 2)) < 40  # of targets that spread by about 60
    assert main(adapt) == 0
    out = capsys.readouterr()
    head, *printed = (line.split("\t") for line in out.out.splitlines())
    assert head == ["row", "who", "score"]
    assert [line[:2] for line in printed] == [[str(number), "someone"] for number in (1, 2, 3, 4)]
    assert [float(line[2]) for line in printed] == pytest.approx(answers, rel=1e-4)
    assert main([*adapt, "--uncertainty"]) in (0, 2)  # 2 if the run has learned no noise
    if shown := capsys.readouterr().out:
        assert shown.splitlines()[0].split("\t") == ["row", "who", "score", "90 % interval"]
    for name in ("support", "query"):  # rows that do not say whose they are
        table = [line.partition(",")[2] for line in (tmp_path / f"{name}.csv").read_text().splitlines()]
        (tmp_path / f"nameless-{name}.csv").write_text("\n".join(table))
    nameless = [word.replace("=" + str(tmp_path) + "/", f"={tmp_path}/nameless-") for word in adapt]
    assert main(nameless) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        "row",
        "1",
        "2",
        "3",
        "4",
    ]
    assert "root mean squared error from the column 'score'" in out.err
    predictor = imaml.load(run).adapt(str(tmp_path / "support.csv"))
    columns = read_table(tmp_path / "query.csv").columns
    np.testing.assert_allclose(predictor.predict(columns), answers, rtol=1e-6)
    known = {name: columns[name] for name in ("day", "group")}
    support = read_table(tmp_path / "support.csv").columns
    twice = imaml.load(run).adapt({n: support[n] for n in ("day", "group")}, support["score"])
    np.testing.assert_allclose(twice.predict(known), answers, rtol=1e-6)


def test_rows_of_several_tasks_are_not_learned_from_as_one(trained, tmp_path, capsys):
    head, *rows = lines(people=2, seed=5, least=8, most=8).splitlines()
    one, other = ([row for row in rows if row.startswith(f"p{i}")] for i in (0, 1))
    for name, content in {
        "both": [head, *rows], "one": [head, *one[:4]], "rest": [head, *one[4:]], "other": [head, *other],
    }.items():  # fmt: skip
        (tmp_path / f"{name}.csv").write_text("\n".join(content))

    def adapt(support, query):
        words = [f"--support={tmp_path / support}", f"--query={tmp_path / query}"]
        status = main(["adapt", str(trained / "run"), *words])
        return status, capsys.readouterr().err

    assert adapt("one.csv", "rest.csv")[0] == 0
    with pytest.raises(
        DataError, match=r"both.csv: expected rows of one task, got 2 \('who': p0, p1\). Hint:"
    ):
        imaml.load(trained / "run").adapt(tmp_path / "both.csv")
    status, said = adapt("one.csv", ".")
    assert status == 2
    assert "expected a table (.csv, .tsv, .parquet or .xlsx), got a folder. Hint: " in said
    (tmp_path / "nothing.csv").write_text("when\n1\n2\n")
    status, said = adapt("one.csv", "nothing.csv")
    assert status == 2
    assert "nothing.csv: column of a feature: expected one of when, got 'day'" in said


def test_an_artefact_names_no_task_and_scores_on_the_same_ones(trained, tmp_path, capsys):
    run, file = trained / "run", trained / "scores.csv"
    artefact = run / "artefact.safetensors"
    assert b"p11" not in artefact.read_bytes()
    capsys.readouterr()
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(artefact.read_bytes())
    score = lambda *words: main(["evaluate", *map(str, words), "--json", "--tasks=20"])  # noqa: E731
    assert score(run) == 0
    first = json.loads(capsys.readouterr().out)
    assert score(alone, "--data", file) == 0
    second = json.loads(capsys.readouterr().out)
    assert first["rmse"] == second["rmse"]
    assert first["different_tasks"] <= 20
    assert score(alone) == 2
    assert "expected --data FILE.csv for a run on a table" in capsys.readouterr().err
    other = tmp_path / "other.csv"
    other.write_text(lines(people=13))
    copy = shutil.copytree(run, tmp_path / "copy")
    config = (run / "config.json").read_text()
    (copy / "config.json").write_text(config.replace(str(file), str(other)))
    assert main(["train", "--resume", f"--out={copy}", "--steps=40", "--quiet"]) == 2
    assert "expected the tasks that this run started with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tables"], "expected --data FILE.csv for a run on a table"),
        (["train", "sinusoid", "--task=who"], "--task: expected a preset that reads a table, got sinusoid"),
        (["train", "tables", "--domain.hidden=a"], "a list such as 1,2, each a whole number"),
        (["train", "sinusoid", "--data=x"], "preset that reads images or a table"),
    ],
)
def test_bad_command_lines(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_goes_to_json_with_its_layout(file):
    recipe = made(file, hidden=(4, 3)).recipe
    assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe
    assert recipe.without_data().recipe.network.sizes == (2, 4, 3, 1)
    with pytest.raises(ConfigError, match="expected a recipe that has read its table"):
        _ = TablesRecipe().network
    assert np.shape(recipe.layout.pooled) == (3, 1)


# --- a linear mixed model --------------------------------------------------------------------------------

# Maximum likelihood of Reaction ~ Days + (Days | Subject), as lme4 gives it (Bates et al. 2015, section 1.2).
SLEEP = {"mean": [251.4051, 10.4673], "covariance": [[565.48, 11.05], [11.05, 32.68]], "noise": 654.95}


@pytest.mark.slow
@pytest.mark.skipif(not SLEEPSTUDY.exists(), reason=f"no {SLEEPSTUDY.name} beside the project")
def test_tables_evidence_is_the_mixed_model_of_sleepstudy(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--task", "Subject", "--target", "Reaction", "--features", "Days", "--training.test_tasks=0"]
    assert main(["train", "tables-evidence", f"--data={SLEEPSTUDY}", f"--out={run}", *words, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", "--tasks=4"]) == 0
    prior = json.loads(capsys.readouterr().out)["prior"]
    assert list(prior["mean"]) == ["intercept", "Days"]
    np.testing.assert_allclose(list(prior["mean"].values()), SLEEP["mean"], rtol=1e-3)
    np.testing.assert_allclose(prior["covariance"], SLEEP["covariance"], rtol=0.01)
    np.testing.assert_allclose(prior["noise_variance"], SLEEP["noise"], rtol=0.01)
    assert main(["evaluate", str(run), "--tasks=4"]) == 0
    assert "standard deviation from task to task" in capsys.readouterr().out
    # Adapted parameters are the best linear unbiased predictions, and intervals are those of the posterior.
    table = read_table(SLEEPSTUDY)
    rows = np.array(table.columns["Subject"]) == "308"
    days, reaction = (table.numbers(name, "")[rows] for name in ("Days", "Reaction"))
    predictor = imaml.load(run).adapt({"Days": days}, reaction)
    ends = {"Days": [0, 1, 30]}
    found = predictor.predict_interval(ends, level=0.95)
    design, new = (np.column_stack([np.ones(len(d)), d]) for d in (days, ends["Days"]))
    mean, spread = np.array(list(prior["mean"].values())), np.array(prior["covariance"])
    inverse = np.linalg.inv(spread)
    covariance = np.linalg.inv(design.T @ design / prior["noise_variance"] + inverse)
    best = covariance @ (design.T @ reaction / prior["noise_variance"] + inverse @ mean)
    np.testing.assert_allclose(found.mean, new @ best, rtol=1e-4)
    np.testing.assert_allclose(predictor.predict(ends), new @ best, rtol=1e-4)
    variance = np.einsum("ni,ij,nj->n", new, covariance, new) + prior["noise_variance"]
    np.testing.assert_allclose(found.high - found.low, 2 * 1.959964 * np.sqrt(variance), rtol=1e-3)
    assert found.high[2] - found.low[2] > 1.2 * (found.high[0] - found.low[0])  # wider away from the data


@pytest.mark.parametrize(("groups", "least", "most"), slow_after_first([(10, 2, 6), (60, 2, 40)]))
def test_tables_evidence_recovers_what_was_simulated(groups, least, most, tmp_path, capsys):
    random = np.random.default_rng(groups)
    truth, spread, noise = np.array([3.0, -2.0]), np.array([[4.0, 0.5], [0.5, 1.0]]), 0.25
    rows, sizes = ["who,x,y"], random.integers(least, most + 1, groups)
    for group, size in enumerate(sizes):
        line = random.multivariate_normal(truth, spread)
        x = random.normal(5, 2, size)
        y = line[0] + line[1] * x + noise**0.5 * random.normal(size=size)
        rows += [f"g{group},{a!r},{b!r}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    words = [f"--data={tmp_path / 'rows.csv'}", "--task=who", "--target=y", f"--out={tmp_path / 'run'}"]
    assert main(["train", "tables-evidence", *words, "--quiet", "--training.test_tasks=0"]) == 0
    from imaml.domains.tables.mixed_model import learned_prior

    learned = imaml.load(tmp_path / "run")
    prior = learned_prior(learned.config.domain, learned.theta, learned.method.problem)
    errors = (np.array(list(prior["mean"].values())) - truth) / np.sqrt(np.diag(spread) / groups)
    assert np.all(np.abs(errors) < 3.5), errors  # of at least that standard error
    free = sizes.sum() - 2 * groups
    assert abs(prior["noise_variance"] / noise - 1) < 4 * (2 / max(free, 4)) ** 0.5
    ratio = prior["covariance"][1][1] / spread[1, 1]
    assert abs(ratio - 1) < 4 * (2 / groups) ** 0.5


@pytest.mark.slow
def test_who_has_learned_no_noise_does_not_say_how_sure_it_is(file, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--task=who", "--target=score", "--method.name=imaml", "--method.learned=all", *SHORT]
    assert main(["train", "tables", f"--data={file}", f"--out={run}", *words]) == 0
    head, *rows = file.read_text().splitlines()
    one = tmp_path / "one.csv"
    one.write_text("\n".join([head, *(row for row in rows if row.startswith("p0,"))]))
    predictor = imaml.load(run).adapt(str(one))
    with pytest.raises(ConfigError, match="has the noise variance"):
        predictor.predict_interval(str(one))
    with pytest.raises(ConfigError, match="tasks=0 means every training task"):
        imaml.domains.base.in_step(imaml.sinusoid(), 0)
