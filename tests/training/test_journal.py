"""The journal: every line valid JSON whatever happens, and what is shown where."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from imaml.core.errors import ConfigError, DataError
from imaml.training.journal import Journal, clock, read_events, score_text

STEP = {
    "loss": 0.5,
    "accuracy": 0.9,
    "inner_residual": 1e-2,
    "linear_residual": 3e-2,
    "negative_curvature": 0.25,
}


def run(folder, steps=30, **options):
    with Journal(folder, total=100, **options) as journal:
        journal.write("start", version="1", steps=100, tasks=4, parameters=1234, headline="accuracy")
        for step in range(10, steps + 1, 10):
            journal.write("step", step=step, seconds=0.5 * step, failed=0, **STEP)
        scores = {"loss": 0.3, "accuracy": 0.9123}
        journal.write(
            "validation", step=steps, seconds=20.0, scores=scores, ci95={"accuracy": 0.01}, tasks=50
        )
        journal.write("warning", message="two tasks failed")
        journal.write("end", step=steps, reason="steps", seconds=20.0)


def test_every_line_is_an_event_with_its_time(tmp_path):
    run(tmp_path / "new" / "run", progress=False)
    lines = (tmp_path / "new" / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["event"] for e in events] == ["start", "step", "step", "step", "validation", "warning", "end"]
    assert all(isinstance(e["time"], float) for e in events)
    assert events == read_events(tmp_path / "new" / "run")


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    with Journal(tmp_path, progress=False) as journal:
        journal.write("checkpoint", step=3)
        assert read_events(tmp_path)[0]["step"] == 3


def test_numbers_that_are_not_finite_become_null_and_are_named(tmp_path):
    with Journal(tmp_path, progress=False) as journal:
        journal.write(
            "step", step=np.int32(1), loss=np.float32("nan"), scores={"accuracy": math.inf, "loss": 1.0}
        )
    (event,) = read_events(tmp_path)
    assert "NaN" not in (tmp_path / "events.jsonl").read_text()
    assert event["step"] == 1
    assert event["loss"] is None
    assert event["scores"] == {"accuracy": None, "loss": 1.0}
    assert event["nonfinite"] == ["loss", "scores.accuracy"]


def test_a_new_journal_replaces_the_file_and_a_resumed_one_goes_on(tmp_path):
    for append, count in ((False, 1), (True, 2), (False, 1)):
        with Journal(tmp_path, progress=False, append=append) as journal:
            journal.write("resume", step=0)
        assert len(read_events(tmp_path)) == count


@pytest.mark.parametrize(
    "half", [b'{"event": "step", "st', b"\x00\x00\x00", b'{"event": "step"}', b"rubbish\n"]
)
def test_a_half_written_last_line_is_dropped_and_said_so(tmp_path, half):
    run(tmp_path, progress=False)
    whole = read_events(tmp_path)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(half)
    *kept, last = read_events(tmp_path)
    assert kept == whole
    assert last["event"] == "warning"
    assert "half written" in last["message"]
    with Journal(tmp_path, progress=False, append=True) as journal:
        journal.write("resume", step=30)
    assert [e["event"] for e in read_events(tmp_path)] == [*(e["event"] for e in whole), "resume"]


def test_a_damaged_line_within_is_refused_by_its_number(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"event": "start"}\n{"even\n{"event": "end"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_events(tmp_path)


def test_no_file_is_said_plainly(tmp_path):
    with pytest.raises(
        DataError,
        match=r"events\.jsonl: expected the log of a run, got an error \(No such file or directory\)\. Hint",
    ):
        read_events(tmp_path)


def test_a_folder_that_cannot_be_written_is_said_plainly(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a place that can be written, got an error"):
        Journal(tmp_path / "file" / "run")


def test_piped_lines_are_plain_and_few(tmp_path, capsys):
    run(tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "\x1b" not in err
    lines = err.splitlines()
    assert [line.split()[0] for line in lines] == ["training:", "step", "validation", "warning:", "ended"]
    assert "1,234 parameters" in lines[0]
    assert "step 10/100" in lines[1]
    assert "validation at step 30: accuracy 91.23 +- 1.00 %, loss 0.3" in lines[2]
    assert "all steps are done" in lines[-1]


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"tasks": 48, "different": 12}, "(48 draws from 12 tasks)"),
        ({"tasks": 3, "different": 1, "failed": 2}, "(3 draws from 1 task, 2 failed)"),
        ({"tasks": 12, "different": 12}, "(12 tasks)"),
        ({"tasks": 12}, "(12 tasks)"),  # as earlier versions wrote it
    ],
)
def test_draws_of_one_task_are_not_called_tasks(counts, words, capsys):
    with Journal(None) as journal:
        journal.write("validation", step=5, scores={"loss": 0.5}, ci95={}, **counts)
    assert capsys.readouterr().err.rstrip().endswith(words)


def test_steps_are_shown_again_after_a_while_with_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr("imaml.training.journal.PLAIN_SECONDS", 0.0)
    run(None, minutes=0.5)
    lines = capsys.readouterr().err.splitlines()
    assert "2 steps/s" in lines[3]
    assert "15 s left" in lines[3]  # 70 steps would take 35 s, the budget ends sooner
    assert "residuals: inner 1e-02, linear 3e-02" in lines[3]
    assert "negative curvature 25 %" in lines[3]


def test_without_progress_only_warnings_are_printed(capsys):
    run(None, progress=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "warning: two tasks failed\n"


def test_a_terminal_gets_a_live_line_and_lines_above_it(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    run(tmp_path)
    shown = terminal.getvalue()
    assert "\x1b[2K" in shown
    assert "step 30/100  2 steps/s  35 s left  loss 0.5  accuracy 90.00 %" in shown
    assert "validation at step 30" in shown
    assert "[/" not in shown


def test_rich_is_not_imported_without_a_terminal():
    code = (
        "import sys; from imaml.training.journal import Journal; Journal(None).close(); "
        "print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.6, "42 s"), (185, "3:05 min"), (3723, "1:02:03 h"), (-1, "0 s")]
)
def test_durations(seconds, text):
    assert clock(seconds) == text


def test_a_validation_says_how_many_tasks_failed(capsys):
    scores = {"scores": {"loss": 0.5}, "ci95": {"loss": 0.1}, "tasks": 50}
    with Journal(None) as journal:
        journal.write("validation", step=10, failed=0, **scores)
        journal.write("validation", step=20, failed=3, best=True, **scores)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("(50 tasks)")
    assert second.endswith("(50 tasks, 3 failed), best so far")


def test_scores():
    assert score_text("accuracy_inductive", 0.9123, 0.005) == "91.23 +- 0.50 %"
    assert score_text("loss", 0.01234) == "0.01234"
    assert score_text("loss", None) == "not finite"
