"""What the README shows runs, word for word, and what it links to is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_is_the_file_and_runs():
    shown = re.search(r"<!-- (examples/\S+) -->\n```python\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    file = ROOT / shown[1]
    assert shown[2] == file.read_text()
    assert len(shown[2].splitlines()) <= 28
    assert "jax.jit(method)" in shown[2]
    assert "method.check(known)" in shown[2]  # under jit nothing else says that a task was excluded
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "16 x CONVERGED" in done.stdout
    assert "nan" not in done.stdout


def test_an_algorithm_of_one_s_own_is_short_and_finds_the_family_s_middle():
    file = ROOT / "examples/own_algorithm.py"
    assert len(file.read_text().splitlines()) < 60
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "64 x CONVERGED" in done.stdout
    first, second = map(float, re.search(r"\[ ?([\d.-]+) +([\d.-]+)\]", done.stdout).groups())
    assert abs(first - 2) < 0.1
    assert abs(second + 1) < 0.1


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_commands_exist():
    from imaml.cli.main import COMMANDS
    from imaml.config.presets import PRESETS

    for command, word in re.findall(r"^imaml (\w+) (\S+)", README, re.MULTILINE):
        assert command in COMMANDS
        if command == "train" and not word.startswith("-"):
            assert word in PRESETS


def test_the_table_is_what_the_result_files_say():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "render", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


EXAMPLES = ("energy", "actor_critic", "game", "trajectory", "q_learning", "inpainting", "generation", "carts")


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_inner_algorithms_run(name):
    file = ROOT / f"examples/{name}.py"
    assert len(file.read_text().splitlines()) < 120
    quick = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, str(file), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=quick)
    assert done.returncode == 0, done.stderr
    assert re.search(r"before adaptation: .*\d", done.stdout)
    assert re.search(r"^after: .*\d", done.stdout, re.MULTILINE)
    assert "nan" not in done.stdout
