"""What a table may be written in, and that all of these mean the same."""

import datetime
import re
import sys

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest

import imaml
from imaml.cli.main import main
from imaml.core.errors import ConfigError, DataError
from imaml.domains.tables.cells import label_of, table_of
from imaml.domains.tables.files import Format, read_table
from imaml.domains.tables.interface import _plain

pytestmark = pytest.mark.usefixtures("ranks_mixed")
FORM = re.compile(r"^[^:\n]+: (.*: )?expected [^\n]+, got [^\n]+\.( Hint: [^\n]+[.?])?$")
HEAD = "who,day,kind,score"
ROWS = [f"{w},{d},{'ab'[(w + d) % 2]},{w + 2 * d}.5" for w in range(8) for d in range(4)]


def written(tmp_path, header, rows, name="rows.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)
    return path


def made(data, **options):
    return imaml.tables(data, "who", "score", **options)


# --- formats ---------------------------------------------------------------------------------------------

# A name, what the file's text becomes, and the options that reading it takes.
TEXTS = {
    "commas": (lambda text: text, {}),
    "semicolons": (lambda text: text.replace(",", ";"), {}),
    "tabs in a .csv": (lambda text: text.replace(",", "\t"), {}),
    "bars": (lambda text: text.replace(",", "|"), {}),
    "another separator": (lambda text: text.replace(",", "^"), {"separator": "^"}),
    "decimal commas": (lambda text: text.replace(",", ";").replace(".5", ",5"), {"decimal": ","}),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_files_mean_the_same_whatever_separates_their_cells(case, tmp_path):
    change, options = TEXTS[case]
    path = written(tmp_path, change(HEAD), map(change, ROWS))
    plain = read_table(written(tmp_path, HEAD, ROWS, "plain.csv"))
    assert read_table(path, Format(**options)).columns == plain.columns
    domain = made(path, **options)
    assert domain.recipe.layout == made(tmp_path / "plain.csv").recipe.layout
    assert read_table(path, domain.recipe.format).columns == plain.columns  # as new rows are read


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-8-sig"])
def test_other_encodings_are_read_on_request(encoding, tmp_path):
    path = written(tmp_path, HEAD.replace("kind", "größe"), ROWS, encoding=encoding)
    assert "größe" in read_table(path, Format(encoding=encoding)).columns
    if encoding != "utf-8-sig":
        with pytest.raises(DataError, match=r"expected text in UTF-8, .* Hint: .*--encoding=cp1252"):
            read_table(path)
    with pytest.raises(DataError, match="expected text in UTF-9, got an error"):
        read_table(path, Format(encoding="utf-9"))


@pytest.mark.parametrize("suffix", ["parquet", "xlsx"])
def test_files_of_other_programs_mean_the_same(suffix, tmp_path):
    frame = pd.read_csv(written(tmp_path, HEAD, ROWS))
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(frame.to_dict("list")).write_parquet(path)
    else:
        frame.to_excel(path, index=False)
    assert made(path).recipe.layout == made(tmp_path / "rows.csv").recipe.layout
    path.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"expected (a Parquet|an Excel) table, got an error"):
        read_table(path)


@pytest.mark.parametrize(
    ("suffix", "libraries", "extra"),
    [("parquet", ["polars", "pyarrow", "pyarrow.parquet"], "parquet"), ("xlsx", ["openpyxl"], "excel")],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    suffix, libraries, extra, tmp_path, monkeypatch
):
    (tmp_path / f"rows.{suffix}").write_bytes(b"")
    for name in libraries:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=rf"pip install \"imaml\[{extra}\]\"") as caught:
        read_table(tmp_path / f"rows.{suffix}")
    assert FORM.match(str(caught.value))


# --- the same table, read by others ----------------------------------------------------------------------

# Cells that programs write and read otherwise, in a column of a CSV file.
CELLS = {
    "whole numbers": ["3", "1", "2", "1"],
    "numbers": ["1.5", "2", "3.25", "4e3"],
    "numbers with a needless fraction": ["1.0", "2.0", "1.0", "2.0"],
    "booleans of R": ["TRUE", "FALSE", "TRUE", "TRUE"],
    "booleans of Python": ["True", "False", "True", "True"],
    "booleans of JSON": ["true", "false", "true", "true"],
    "texts": ["b", "a", "b", "b"],
    "whole numbers with missing cells": ["1", "", "2", "1"],
    "texts with missing cells": ["b", "", "a", "NA"],
    "dates": ["2024-05-01", "2024-05-02", "2024-05-01", "2024-12-31"],
    "leading zeros": ["007", "008", "007", "008"],
}
READERS = {
    "pandas": pd.read_csv,
    "polars": pl.read_csv,
    "polars with dates": lambda path: pl.read_csv(path, try_parse_dates=True),
    "a dict": lambda path: pd.read_csv(path).to_dict("list"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", CELLS)
def test_a_file_and_the_data_frame_that_is_read_from_it_mean_the_same(case, reader, tmp_path):
    path = written(tmp_path, "c,d", [f"{cell},0" for cell in CELLS[case]])
    file, frame = read_table(path), table_of(READERS[reader](path), "frame")
    np.testing.assert_array_equal(file.missing("c"), frame.missing("c"))
    there = np.flatnonzero(~file.missing("c"))
    labels = [table.take(there).labels("c", "a feature") for table in (file, frame)]
    assert labels[0] == labels[1]
    if not (case.startswith("booleans") and "polars" in reader):  # which polars reads as texts or booleans
        assert file.kind("c", "a feature") == frame.kind("c", "a feature")
    if file.kind("c", "a feature") == "numbers":
        np.testing.assert_array_equal(file.numbers("c", "a feature"), frame.numbers("c", "a feature"))


def test_cells_of_every_kind_have_one_label():
    same = [
        ("1", "1.0", "1e0", " 1", 1, 1.0, np.int8(1), np.float32(1)),
        ("True", "TRUE", "true", True, np.True_),
        ("2024-05-01", "2024-05-01 00:00:00", "2024-05-01T00:00", datetime.date(2024, 5, 1),
         datetime.datetime(2024, 5, 1), np.datetime64("2024-05-01"), pd.Timestamp("2024-05-01")),
        ("2024-05-01 12:30:00", "2024-05-01T12:30:00", datetime.datetime(2024, 5, 1, 12, 30)),
        ("12345678901234567890", 12345678901234567890),
        ("0.1", 0.1, "0.10"),
    ]  # fmt: skip
    for cells in same:
        assert {*table_of({"c": cells}, "x").labels("c", "")} == {cells[0]}
    missing = table_of(
        {"c": [None, float("nan"), np.nan, pd.NA, pd.NaT, np.datetime64("NaT"), "", "N/A"]}, "x"
    )
    assert missing.missing("c").all()
    assert label_of("1_000") == "1_000"


def test_a_domain_of_a_data_frame_is_that_of_its_file(tmp_path):
    path = written(tmp_path, HEAD, ROWS)
    file = made(path)
    for frame in (pd.read_csv(path), pl.read_csv(path), pd.read_csv(path).to_dict("list")):
        domain = made(frame)
        assert domain.recipe.layout == file.recipe.layout
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(domain), jax.tree.leaves(file))
    assert domain.recipe.data is None
    for wrong in ([1, 2], np.ones((2, 2)), 5, {}):
        with pytest.raises(DataError, match="expected a mapping from column names to values") as caught:
            made(wrong)
        assert FORM.match(str(caught.value))


def test_a_matrix_has_a_column_for_each_feature(tmp_path):
    domain = made(written(tmp_path, HEAD, ROWS), features=["day"]).recipe.without_data()
    frame = domain.encode({"day": [0.0, 2.0]}, [1.0, 2.0]).support
    for matrix in (np.array([[0.0], [2.0]]), [[0.0], [2.0]], np.array([0.0, 2.0]), [0, 2]):
        found = domain.encode(matrix, np.array([1.0, 2.0])).support
        jax.tree.map(np.testing.assert_array_equal, found, frame)
        np.testing.assert_array_equal(domain.encode_query(matrix), domain.encode_query({"day": [0, 2]}))
    for wrong in (np.ones((2, 3)), np.ones((2, 1, 1)), [[1], [1, 2]]):
        with pytest.raises(
            DataError, match=r"(a matrix with a column for each of day|rows of one length), got"
        ) as e:
            domain.encode(wrong, [1.0, 2.0])
        assert FORM.match(str(e.value))


# --- missing cells ---------------------------------------------------------------------------------------

HOLES = {3: {"day": ""}, 5: {"day": "NA"}, 9: {"kind": "nan"}, 12: {"score": "?"}, 20: {"who": ""}}


def with_holes():
    rows = [
        dict(zip(HEAD.split(","), row.split(","), strict=True)) | HOLES.get(i, {})
        for i, row in enumerate(ROWS)
    ]
    return [",".join(row.values()) for row in rows]


def test_all_missing_cells_are_in_one_message(tmp_path):
    told = (
        "row 4 below the header (line 5 of the file), column 'day': expected a value, got an empty cell "
        "(missing in all: 1 in 'who', 1 in 'score', 2 in 'day', 1 in 'kind'). Hint: fill them, or set "
        "--missing=drop or --missing=mean."
    )
    with pytest.raises(DataError) as caught:
        made(written(tmp_path, HEAD, with_holes()))
    assert str(caught.value) == f"{tmp_path / 'rows.csv'}, {told}"
    frame = pd.DataFrame([row.split(",") for row in with_holes()], columns=HEAD.split(","))
    with pytest.raises(DataError, match=r"data, row 4, column 'day': .* 2 in 'day', 1 in 'kind'\)"):
        made(frame)


def test_rows_with_missing_cells_are_dropped_and_counted(tmp_path):
    domain = made(written(tmp_path, HEAD, with_holes()), missing="drop")
    whole = made(written(tmp_path, HEAD, [row for i, row in enumerate(ROWS) if i not in HOLES], "whole.csv"))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(domain), jax.tree.leaves(whole))
    told = "\n".join(domain.about())
    assert "27 rows, and 5 dropped for missing cells" in told
    for name, count in {"who": 1, "day": 2, "kind": 1, "score": 1}.items():
        assert re.search(rf"  {name} .*missing cells: {count}, rows dropped", told)


def test_missing_features_are_the_mean_or_the_most_frequent_category(tmp_path):
    domain = made(written(tmp_path, HEAD, with_holes()), missing="mean", test=0.0, validation=0.0)
    assert domain.inputs.shape == (30, 2)
    told = "\n".join(domain.about())
    assert re.search(r"  day .*missing cells: 2, filled in", told)
    assert re.search(r"  score .*missing cells: 1, rows dropped", told)
    day, kind = domain.recipe.layout.features
    np.testing.assert_allclose(np.asarray(domain.inputs)[[3, 5], 0], 0)
    assert np.asarray(domain.inputs)[9, 1] == (kind.usual == "b")
    # New rows: those to be predicted are all predicted, those without a target teach nothing.
    alone = domain.recipe.without_data()
    np.testing.assert_allclose(
        alone.encode_query({"day": [None, day.mean], "kind": ["a", "a"]})[:, 0], 0, atol=1e-6
    )
    support = alone.encode({"day": [1, None, 2], "kind": ["a", "b", "a"], "score": [1.0, 2.0, None]}).support
    assert support.weights.sum() == 2
    dropping = made(tmp_path / "rows.csv", missing="drop").recipe.without_data()
    assert dropping.encode({"day": [1, None], "kind": ["a", "b"]}, [1.0, 2.0]).support.weights.sum() == 1
    with pytest.raises(DataError, match=r"x, row 1, column 'day': expected a value, got an empty cell"):
        dropping.encode_query({"day": [None, 1], "kind": ["a", "a"]})


# --- categories, dates, numbers of rows ------------------------------------------------------------------


def test_a_category_that_training_did_not_have_is_refused_or_the_baseline(tmp_path):
    path = written(tmp_path, HEAD, ROWS)
    asked = {"day": [1, 1], "kind": ["z", "a"]}
    with pytest.raises(DataError, match=r"got 'z'. Hint: .* with --unseen=baseline"):
        made(path).recipe.without_data().encode_query(asked)
    found = made(path, unseen="baseline").recipe.without_data().encode_query(asked)
    np.testing.assert_array_equal(found[0], found[1])
    classes = imaml.tables(path, "who", "kind", features=["day"], unseen="baseline").recipe.without_data()
    with pytest.raises(DataError, match=r"got 'z'\. Hint: omit such rows"):
        classes.encode({"day": [1]}, ["z"])


def dated(form="%Y-%m-%d"):
    start = datetime.datetime(2024, 2, 27)
    return [f"{i // 4},{start + datetime.timedelta(i % 4):{form}},{i % 4 + i // 4}" for i in range(32)]


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%d.%m.%Y", "%m/%d/%Y"])
def test_dates_are_refused_as_features_unless_they_are_to_be_numbers(form, tmp_path):
    path = written(tmp_path, "who,date,score", dated(form))
    with pytest.raises(
        DataError, match=r"column 'date': expected numbers or categories, got dates"
    ) as caught:
        made(path)
    assert "Hint: set --dates=days for days since 1970-01-01" in str(caught.value)
    if not form.startswith("%Y"):
        with pytest.raises(DataError, match=r"row 1 .* expected a date such as 2024-05-31, got"):
            made(path, dates="days")
        return
    domain = made(path, dates="days", test=0.0, validation=0.0)
    (date,) = domain.recipe.layout.features
    np.testing.assert_allclose([date.mean, date.scale], [19780 + 1.5, np.std([0, 1, 2, 3])])
    parsed = pd.read_csv(path, parse_dates=["date"])
    assert made(parsed, dates="days", test=0.0, validation=0.0).recipe.layout == domain.recipe.layout
    asked = domain.recipe.without_data().encode_query({"date": ["2024-02-28 12:00"]})
    np.testing.assert_allclose(asked, 0, atol=1e-4)
    assert made(path, texts=["date"]).recipe.layout.features[0].levels is not None


# A column that nobody named and that says nothing of the target, and why it is excluded.
USELESS = {
    "pandas' index": ("", lambda i: i, "Unnamed: 0  excluded  only numbers the rows, 0 to 31"),
    "row numbers of R": ("rownames", lambda i: i + 1, "rownames  excluded  only numbers the rows, 1 to 32"),
    "row numbers in another order": ("id", lambda i: (i * 5) % 32 + 7, "only numbers the rows, 7 to 38"),
    "row names": ("rownames", lambda i: f"name {i}", "rownames  excluded  has 32 different texts in 32 rows"),
    "one number": ("unit", lambda i: 3, "unit      excluded  has one value, '3'"),
    "one text": ("unit", lambda i: "cm", "unit      excluded  has one value, 'cm'"),
    "nothing": ("note", lambda i: "", "note      excluded  has no values"),
}


@pytest.mark.parametrize("case", USELESS)
def test_columns_that_say_nothing_are_excluded_with_a_note(case, tmp_path):
    name, value, told = USELESS[case]
    path = written(tmp_path, f"{name},{HEAD}", [f"{value(i)},{row}" for i, row in enumerate(ROWS)])
    for data in (path, pd.read_csv(path)):
        with pytest.warns(RuntimeWarning, match=f"columns are excluded .*{name.split(' ')[0]}"):
            domain = made(data)
        assert [column.name for column in domain.recipe.layout.features] == ["day", "kind"]
        assert re.sub(" +", " ", told) in re.sub(" +", " ", "\n".join(domain.about()))
    if isinstance(value(0), int) and case != "one number":
        assert made(path, features=[name or "Unnamed: 0"]).recipe.layout.inputs == 1
    with pytest.raises(ConfigError, match="one at least, got none") as caught:
        imaml.tables(table_of({"who": [1, 1, 2], "y": [1, 2, 3], "only": [4, 5, 6]}, "x"), "who", "y")
    assert "(only only numbers the rows, 4 to 6)" in str(caught.value)


def test_a_numeric_column_of_tasks_is_a_label(tmp_path):
    """Whatever numbers they are, and however they are written."""
    rows = [f"{1e6 + w},{row.partition(',')[2]}" for w, row in zip(np.repeat(range(8), 4), ROWS, strict=True)]
    domain = made(written(tmp_path, HEAD, rows), test=0.0, validation=0.0)
    assert sorted(domain.recipe.layout.splits[0]) == [f"{1_000_000 + w}" for w in range(8)]
    assert [column.name for column in domain.recipe.layout.features] == ["day", "kind"]


@pytest.mark.slow
def test_how_each_column_is_read_is_said_before_training(tmp_path, capsys):
    path = written(tmp_path, f"n,{HEAD}", [f"{i},{row}" for i, row in enumerate(ROWS)])
    words = ["train", "tables", f"--data={path}", "--task=who", "--target=score", "--steps=1"]
    lines = [
        f"{path}: 32 rows",
        "  who    task      8 tasks of 4 rows",
        "  score  target    number: mean ",
        "  day    feature   number: mean 1.5, standard deviation 1.11803",
        "  kind   feature   category: a, b",
        "  n      excluded  only numbers the rows, 0 to 31; to use it, name it in features",
    ]
    assert main([*words, "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert main([*words, f"--out={tmp_path / 'run'}", "--training.test_tasks=0"]) == 0
    for said in (dry, capsys.readouterr().out):
        assert all(line in said for line in lines)
    assert main([*words, f"--out={tmp_path / 'quiet'}", "--training.test_tasks=0", "--quiet"]) == 0
    assert "feature   number" not in capsys.readouterr().out


def test_rows_with_weights_count_so_many_times(tmp_path):
    path = written(tmp_path, f"{HEAD},times", [f"{row},{1 + i % 3}" for i, row in enumerate(ROWS)])
    frame = pd.read_csv(path)
    twice = frame.loc[frame.index.repeat(frame.times)].drop(columns="times")
    options = {"holdout": "none", "test": 0.0, "validation": 0.0}
    weighted, repeated = made(path, weights="times", **options), made(twice, **options)
    lines = []
    for domain in (weighted, repeated):
        task = domain.gather(domain._drawn(np.int32(3), jax.random.key(0), "train"))
        np.testing.assert_allclose(task.support.weights.sum(), frame.times[frame.who == 3].sum(), rtol=1e-5)
        layout = domain.recipe.layout
        lines.append(layout.in_units(np.ravel(layout.pooled), np.zeros((3, 3)))[0])
    np.testing.assert_allclose(lines[0], lines[1], atol=1e-9)
    support = weighted.recipe.without_data().encode(frame[frame.who == 3]).support
    np.testing.assert_array_equal(support.weights, frame.times[frame.who == 3])
    with pytest.raises(DataError, match="column 'times': expected a weight above 0, got '0'"):
        made(frame.assign(times=0), weights="times")


def test_an_offset_is_added_to_predictions(tmp_path):
    frame = pd.read_csv(written(tmp_path, HEAD, ROWS)).assign(base=lambda rows: 100.0 * rows.day)
    shifted = frame.assign(score=frame.score + frame.base)
    plain, domain = (
        made(frame, features=["day", "kind"]),
        made(shifted, features=["day", "kind"], offset="base"),
    )
    jax.tree.map(np.testing.assert_allclose, jax.tree.leaves(domain), jax.tree.leaves(plain))
    alone, outputs = domain.recipe.without_data(), np.ones((4, 1), np.float32)
    rows = shifted[:4]
    jax.tree.map(np.testing.assert_allclose, alone.encode(rows), plain.encode(frame[:4]))
    np.testing.assert_allclose(alone.decode(outputs, rows), plain.decode(outputs, frame[:4]) + rows.base)
    with pytest.raises(DataError, match=r"column of (the target|the offset): expected one of day, kind"):
        alone.encode_query(rows[["day", "kind"]])
    with pytest.raises(DataError, match="column 'kind': expected numbers with an offset"):
        imaml.tables(frame, "who", "kind", offset="base", features=["day"])


def test_answers_in_small_units_keep_their_digits():
    assert _plain(2.34567e-8) == 2.34567e-8
    assert _plain(np.float32(4.7e-10)) == pytest.approx(4.7e-10, rel=1e-6)


def test_ids_that_are_equal_as_numbers_are_not_merged():
    rows = table_of({"who": ["007", "7", "7.0"], "y": [1, 2, 3]}, "rows")
    with pytest.raises(
        imaml.DataError, match="column 'who': expected an id for each task, got '007' and '7'"
    ):
        rows.labels("who", "the task")
    assert table_of({"who": ["7", "7.0", "8"]}, "rows").labels("who", "the task") == ("7", "7", "8")


def test_a_query_s_missing_offset_is_named():
    frame = {
        "g": [0, 0, 1, 1, 2, 2, 3, 3],
        "x": [1, 2, 3, 4, 5, 6, 7, 8],
        "o": [1.0] * 8,
        "y": [3, 1, 4, 1, 5, 9, 2, 6],
    }
    domain = imaml.tables(frame, "g", "y", features=["x"], offset="o", missing="mean")
    with pytest.raises(
        imaml.DataError, match=r"row 2, column 'o': expected a number, got ''.*needs its offset"
    ):
        domain.encode_query({"x": [1, 2, 3], "o": [0.5, "", 0.5]})
