"""The benchmarks' harness, the schema of result files, and the smallest benchmarks."""

import json

import numpy as np
import pytest
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.pages.lines_of_code import code_lines

from benchmarks import harness

FILES = sorted(harness.RESULTS.rglob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_result_files_have_the_schema(file):
    result = harness.Result.read(file)
    assert result.rows
    assert result.command.split()[0] in ("git", "python", "imaml", "make")


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ([1], "expected an object"),
        ({"command": "x", "machine": None}, "expected an object"),
        ({"command": "x", "machine": {"host": "y"}, "versions": None, "rows": []}, "machine: expected"),
        ({"command": "", "machine": None, "versions": None, "rows": []}, "command: expected"),
        ({"command": "x", "machine": None, "versions": None, "rows": {}}, "rows: expected"),
    ],
)
def test_other_files_are_refused(whole, words, tmp_path):
    (tmp_path / "file.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=words):
        harness.Result.read(tmp_path / "file.json")


def test_older_files_with_versions_in_the_machine_are_read(tmp_path):
    old = {"processor": "p", "cores": 2, "python": "3", "jax": "1"}
    (tmp_path / "file.json").write_text(json.dumps({"command": "x", "machine": old, "rows": [], "tasks": 3}))
    result = harness.Result.read(tmp_path / "file.json")
    assert result.versions == {"jax": "1"}
    assert result.figures == {"tasks": 3}


def test_a_run_writes_a_valid_file_and_resumes(tmp_path):
    run = harness.Run("a command", tmp_path / "made" / "file.json", False, tmp_path / "kept")
    run.write([{"values": np.arange(2.0)}], tasks=np.int64(3))
    result = harness.Result.read(run.out)
    assert (result.rows, result.figures) == ([{"values": [0.0, 1.0]}], {"tasks": 3})
    assert run.before() == result.rows
    assert run.before({"cores": -1}) == []
    assert not list(tmp_path.rglob("*.part"))
    first = [run.once("a/b c", lambda value: {"value": value}, number) for number in range(2)]
    assert first == [{"value": 0}] * 2


def test_every_benchmark_can_be_listed_and_a_misspelt_one_gets_a_hint(capsys):
    assert benchmarks_main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == set(harness.names())
    assert len(lines) >= 25
    assert benchmarks_main(["run", "acuracy"]) == 2
    assert "did you mean accuracy?" in capsys.readouterr().err


def test_the_command_is_recorded_without_paths(monkeypatch):
    given = []

    def measure(run, data=None, tasks=5, kinds=("a/b",)):
        given.append((run, data, tasks, kinds))

    chosen = harness.Benchmark("lines_of_code", measure, None, {"tasks": 1}, positional=("kinds",))
    monkeypatch.setitem(harness.REGISTERED, "lines_of_code", chosen)
    assert harness.start("lines_of_code", ["--data", "/home/me", "--tasks=7", "b"]) == 0
    assert harness.start("lines_of_code", ["--quick"]) == 0
    assert [(*rest,) for _, *rest in given] == [("/home/me", 7, ["b"]), (None, 1, ("a/b",))]
    assert given[0][0].command == "python -m benchmarks run lines_of_code --data PATH --tasks 7 b"


def test_rows_are_added_and_a_result_file_is_drawn_again(tmp_path, capsys, monkeypatch):
    def measure(run, count=2):
        for number in range(count):
            run.add({"number": number, "long": [number] * 500}, count=count)

    drawn = []
    chosen = harness.Benchmark("lines_of_code", measure, None, draw=lambda run, result: drawn.append(result))
    monkeypatch.setitem(harness.REGISTERED, "lines_of_code", chosen)
    for more in ((), ("--draw-only",)):
        assert harness.start("lines_of_code", [f"--out={tmp_path / 'file.json'}", *more]) == 0
    assert [(len(result.rows), result.figures) for result in drawn] == [(2, {"count": 2})] * 2
    assert capsys.readouterr().out.splitlines() == ['{"number": 0}', '{"number": 1}']


def test_a_function_of_one_task_is_mapped_over_many():
    found = harness.mapped(lambda a, b: {"sum": a + b})(np.arange(3), np.ones(3, int))
    assert found["sum"].tolist() == [1, 2, 3]
    call, size = harness.compiled(lambda a: a + 1, np.ones(2))
    assert call().tolist() == [2, 2]
    assert size >= 0


def test_calls_are_timed_in_turn():
    order = []
    times = harness.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [len(values) for values in times.values()] == [2, 2]
    assert set(harness.spread(times["a"])) == {"ms_median", "ms_min", "ms_max"}


def test_lines_of_code_are_those_with_code():
    text = '"""About."""\n\n# why\ndef f():\n    """One\n    two."""\n    return """a\n\n    b"""\n'
    assert code_lines(text) == 4


def test_the_theory_bench_has_the_exponents_of_theorem_1():
    """Nesterov and CG with the root of the condition number, gradient descent with itself; bounds bound.

    Of the committed result: `python -m benchmarks run theory` is an experiment, too long for a test.
    """
    found = json.loads((harness.RESULTS / "theory" / "theory.json").read_text())
    wrong = {row["method"]: row["errors"] for row in found["rows"]}
    for name, (low, high) in {"Nesterov + CG": (0.4, 0.6), "gradient descent + CG": (0.85, 1.1)}.items():
        assert all(low < slope < high for slope in found["products"]["exponents"][name].values())
    slopes = found["correction"]["slopes"]
    assert 0.9 < slopes["iMAML"] < 1.1
    assert slopes["iMAML, a Newton step more"] > 1.8
    spent = found["correction"]["products"]
    assert spent["iMAML"] < spent["iMAML, a Newton step more"] < 5 * spent["iMAML"]
    assert max(found["correction"]["errors"]["iMAML, accuracy 1e-6 asked for"]) < 1e-6
    for count in (2, 5, 10):
        errors, bounds = (wrong[f"{n}, CG {count}"] for n in ("iMAML", "its certified bound"))
        assert all(bound >= error for bound, error in zip(bounds, errors, strict=True))
    assert wrong["iMAML, CG 10, a Newton step more"][0] < 0.1 * wrong["iMAML, CG 10"][0]
