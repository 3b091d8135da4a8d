"""What is set before JAX starts."""

import os
import subprocess
import sys

import pytest

from imaml import startup

PROGRAM = """
from imaml.startup import prepare_jax
prepare_jax()
import jax
print(jax.device_count())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x @ x.T + 1)(jax.numpy.ones((5, 5))).block_until_ready()
"""


def _programs(home, **environment):
    """Files that a program left in a cache folder, and what it printed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") and k != "XLA_FLAGS"}
    environment = {**kept, "XDG_CACHE_HOME": str(home), "JAX_PLATFORMS": "cpu", **environment}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment
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
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    startup.keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_the_oldest_programs_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "MOST", 250)
    for age, name in enumerate("cab"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 + age, 1000 + age))
    startup._trim(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]
