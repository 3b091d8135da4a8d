"""What is set before JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import imaml
from imaml.storage import programs

PROGRAM = """
from imaml.cli.startup import prepare_jax
prepare_jax()
import jax
print(jax.device_count())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x @ x.T + 1)(jax.numpy.ones((5, 5))).block_until_ready()
"""


def _environment(home):
    """This process's environment without the settings of JAX that the tests make, and a cache of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "PJRT_"))}
    kept["PYTHONPATH"] = str(Path(imaml.__file__).parents[1])
    return {**kept, "XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu"}


def _programs(home, program=PROGRAM, **environment):
    """Files that a program left in a cache folder, and what it printed."""
    environment = {**_environment(home), **environment}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    return sorted(f.name for f in home.rglob("*-cache")), int(run.stdout)


def test_compiled_programs_are_kept_and_found_again(tmp_path):
    first, devices = _programs(tmp_path)
    assert first
    assert devices == len(os.sched_getaffinity(0))
    times = [f.stat().st_mtime_ns for f in sorted(tmp_path.rglob("*-cache"))]
    again, _ = _programs(tmp_path)
    assert again == first
    assert [f.stat().st_mtime_ns for f in sorted(tmp_path.rglob("*-cache"))] == times


def test_compiled_programs_are_kept_where_jax_is_imported_already(tmp_path):
    """As in the commands, whose recipes import JAX; no device is asked for yet."""
    found, devices = _programs(tmp_path, f"import jax{PROGRAM}")
    assert found
    assert devices == len(os.sched_getaffinity(0))
    elsewhere = tmp_path / "elsewhere"
    configured = f'import jax; jax.config.update("jax_compilation_cache_dir", "{elsewhere}"){PROGRAM}'
    assert len(_programs(tmp_path, configured)[0]) > len(found)
    assert list(elsewhere.glob("*-cache"))


@pytest.mark.slow
def test_a_second_training_run_compiles_no_step(tmp_path):
    words = ["--steps=1", "--tasks=2", "--domain.hidden=4", "--method.inner.steps=1"]
    words += ["--method.linear.steps=1", "--training.validate_every=0", "--training.test_tasks=0", "--quiet"]
    kept = []
    for name in ("first", "second"):
        command = [sys.executable, "-m", "imaml", "train", "sinusoid", *words, f"--out={tmp_path / name}"]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(tmp_path / "cache"))
        assert (done.returncode, done.stderr) == (0, "")
        files = (tmp_path / "cache" / "imaml" / "compiled").rglob("*-cache")
        kept.append({file.name: file.stat().st_mtime_ns for file in files})
    first, second = kept
    assert any(name.startswith("jit_step-") for name in first)
    assert {name: second[name] for name in first} == first
    # Others are small: some compile in about the least time that is kept, and are added by chance.
    assert not any(name.startswith("jit_step-") for name in second.keys() - first.keys())


def test_what_the_user_has_set_stands(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    flags = "--xla_force_host_platform_device_count=3"
    found, devices = _programs(tmp_path, JAX_COMPILATION_CACHE_DIR=str(elsewhere), XLA_FLAGS=flags)
    assert found
    assert devices == 3
    assert not (tmp_path / "imaml").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path):
    tmp_path.chmod(0o500)
    assert _programs(tmp_path)[0] == []


def test_a_home_that_is_a_file_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    programs.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_programs_are_kept_in_the_folder_that_is_named_unless_jax_has_one(tmp_path):
    program = """
import jax, imaml
jax.jit(lambda x: x + 2)(1)  # it may be called after JAX has started
print(imaml.keep_programs({folder!r}, least=0.0) is not None and 1)
jax.jit(lambda x: x @ x.T + 1)(jax.numpy.ones((5, 5))).block_until_ready()
"""
    own = tmp_path / "own"
    assert _programs(tmp_path, program.format(folder=str(own)))[1] == 1
    assert list(own.glob("*/*-cache"))
    elsewhere = tmp_path / "elsewhere"
    _programs(
        tmp_path, program.format(folder=str(tmp_path / "other")), JAX_COMPILATION_CACHE_DIR=str(elsewhere)
    )
    assert not (tmp_path / "other").exists()


def test_the_oldest_programs_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "MOST", 250)
    for age, name in enumerate("cab"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    programs.trim(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]
