"""Ctrl-C ends the program at every moment, and leaves what a later one would leave."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import imaml
from helpers.marks import slow_after_first
from imaml.core import interrupts
from imaml.core.interrupts import Interrupted, Interrupts
from imaml.storage.checkpoint import Checkpoints
from imaml.training import loop as training

pytestmark = [
    pytest.mark.usefixtures("interruptible"),
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="sees in /proc when the program listens"),
]
QUICK = [
    "--tasks=2",
    "--domain.hidden=4",
    "--method.inner.steps=1",
    "--method.linear.steps=1",
    "--training.test_tasks=0",
    "--steps=1000000",
]
SOON = 10  # seconds; a second or less where nothing else runs


def stopped(out, words, seconds, signals, file=None):
    """The program's status, stdout, stderr and the seconds it took to end.

    The signals are sent, 20 ms apart, so many seconds after it has begun to listen or a file is there.
    """
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(imaml.__file__).parents[1])}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that compiling takes its time
    words = [sys.executable, "-m", "imaml", "train", *words, f"--out={out}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as process:
        while len(os.listdir(f"/proc/{process.pid}/task")) < 2 or (file and not (out / file).exists()):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
        time.sleep(seconds)
        for number in range(signals):
            time.sleep(0.02 * bool(number))
            process.send_signal(signal.SIGINT)
        began = time.monotonic()
        printed, errors = process.communicate(timeout=120)
        return process.returncode, printed, errors, time.monotonic() - began


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("seconds", slow_after_first([0.7, 0.0, 0.2, 1.5, 4.0]))
def test_an_interrupt_while_it_starts_ends_it_with_one_line(seconds, signals, tmp_path):
    out = tmp_path / "run"
    status, printed, errors, took = stopped(out, ["sinusoid", "--quiet", *QUICK], seconds, signals)
    assert status == 130
    assert took < SOON
    if (out / "config.json").exists():  # a fast machine has begun
        assert (printed, errors) == (f"continue with: imaml train --resume --out {out}\n", "")
    else:
        assert (printed, errors) == ("", "imaml: interrupted\n")


@pytest.mark.slow
def test_an_interrupt_while_the_first_step_is_compiled_leaves_a_run_to_go_on_with(tmp_path):
    """Compiling Conv4's step takes much longer than this waits for its end."""
    out = tmp_path / "run"
    words = ["--quiet", "--domain.filters=32", "--tasks=2", "--training.test_tasks=0"]
    status, printed, errors, took = stopped(out, words, 1.0, 2, "config.json")
    assert (status, errors) == (130, "")
    assert f"continue with: imaml train --resume --out {out}" in printed
    assert took < SOON
    assert Checkpoints(out / "checkpoints").steps() == [0]
    last = json.loads((out / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["step"], last["reason"]) == ("end", 0, "interrupted")
    assert (out / "artefact.safetensors").exists()


DOMAIN = imaml.sinusoid(hidden=4)
METHOD = imaml.IMAML(
    DOMAIN.problem(0.5),
    DOMAIN.query_loss,
    inner=imaml.GradientDescent(0.02, steps=1),
    linear=imaml.CG(steps=1),
)
OPTIONS = {
    "steps": 6,
    "tasks": 2,
    "validate_every": 2,
    "validation_tasks": 4,
    "checkpoint_every": 100,
    "progress": False,
}


def train(**options):
    with jax.numpy_rank_promotion("allow"):
        return imaml.train(DOMAIN, METHOD, imaml.Optimiser("adam", 1e-3, "constant"), **(OPTIONS | options))


@pytest.mark.slow
def test_a_validation_that_was_interrupted_is_repeated(tmp_path, monkeypatch):
    """The run that went on has the same parameters and validations as one without an interruption."""
    whole = train(out=tmp_path / "whole")
    evaluate, calls = training.evaluate_theta, []

    def interrupted(*args, **options):
        calls.append(None)
        if len(calls) in (2, 3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
            pytest.fail("the interrupt did not come")
        return evaluate(*args, **options)

    monkeypatch.setattr(training, "evaluate_theta", interrupted)
    run = train(out=tmp_path / "run")
    for _ in range(2):  # the validation is interrupted once more, and then it is not
        assert (run.reason, run.step) == ("interrupted", 4)
        run = train(out=tmp_path / "run", resume=True)
    assert (run.reason, run.step) == ("steps", 6)
    jax.tree.map(np.testing.assert_array_equal, run.theta, whole.theta)

    def validations(name):
        lines = (tmp_path / name / "events.jsonl").read_text().splitlines()
        events = [event for event in map(json.loads, lines) if event["event"] == "validation"]
        return [(event["step"], event["scores"], event["best"]) for event in events]

    assert validations("run") == validations("whole")
    again = train(out=tmp_path / "run", resume=True)  # nothing is due any more
    assert again.reason == "steps"
    assert len(validations("run")) == 3


def test_two_signals_at_once_are_one(capfd):
    with Interrupts(visible=True) as found:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert found.asked
        time.sleep(interrupts.TWICE + 0.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_an_interrupt_that_is_lost_is_told_at_the_end():
    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def lose():
        with Interrupts(visible=False) as found, found.stoppable():
            Last()  # an exception cannot leave a destructor

    with pytest.raises(Interrupted):
        lose()


def test_an_interrupt_that_comes_out_as_another_error_is_still_one():
    def change():
        with Interrupts(visible=False) as found, found.stoppable():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError("no future can be scheduled") from None

    with pytest.raises(Interrupted):
        change()


def test_work_that_cannot_be_interrupted_is_given_up():
    end, done = threading.Event(), []

    def wait():
        with Interrupts(visible=False) as found:
            threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            found.wait_for(lambda: (end.wait(30), done.append(1)))

    began = time.monotonic()
    with pytest.raises(Interrupted):
        wait()
    assert time.monotonic() - began < 10
    assert not done
    end.set()
    with Interrupts(visible=False) as found:
        found.wait_for(lambda: done.append(2), lambda: done.append(3))
        with pytest.raises(ZeroDivisionError):
            found.wait_for(lambda: 1 / 0, lambda: done.append(4))
    assert {2, 3} <= set(done)
