"""A directory is locked by one process at a time, and by none that was killed."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from imaml.core.errors import ConfigError
from imaml.storage.lock import LOCK, Locked, locked
from imaml.training.directory import claimed, create_run_directory

HOLD = """
import sys, time
from pathlib import Path
from imaml.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def elsewhere(function):
    """The result of a call in another thread, to which this one's locks are another process's."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def enter(context):
    with context as found:
        return found


def test_a_lock_ends_with_its_process_however_it_ends(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(Locked), locked(folder):
            pass
        process.kill()
        process.wait()
    assert (folder / LOCK).exists()
    with locked(folder), locked(folder), pytest.raises(Locked):  # the same thread may lock it again
        elsewhere(lambda: enter(locked(folder)))
    assert not (folder / LOCK).exists()
    elsewhere(lambda: enter(locked(folder)))


def test_a_run_directory_in_use_is_refused_also_to_resume(tmp_path):
    with claimed(tmp_path / "run"):
        create_run_directory(tmp_path / "run")
        with pytest.raises(ConfigError, match=r"run: expected a directory that no other run .*\(--out\)\.$"):
            elsewhere(lambda: enter(claimed(tmp_path / "run")))
    assert not (tmp_path / "run").exists()  # nothing was written


def test_runs_that_start_together_take_different_directories(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    together = threading.Barrier(8)

    def begin(_):
        with claimed(tmp_path / "run", numbered=True) as place:
            create_run_directory(place)
            (place / "config.json").write_text("{}")
            together.wait(20)
            return place.name

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(begin, range(8))) == [f"run-{number}" for number in range(2, 10)]
    with claimed(tmp_path / "run", numbered=True) as place:
        assert place.name == "run-10"
