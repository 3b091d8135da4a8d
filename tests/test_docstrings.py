"""Every example in docstrings and in docs/ runs, in float32 as users see it: in its own process."""

import os
import re
import subprocess
import sys

import pytest

from helpers.paths import ROOT

# The results are the same, and compiling is most of the time.
QUICK = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
RUNNER = """
import doctest, importlib, pkgutil, sys
import imaml
failed = tried = 0
for module in pkgutil.walk_packages(imaml.__path__, "imaml."):
    if module.name.rpartition(".")[2] == "__main__":
        continue
    result = doctest.testmod(importlib.import_module(module.name))
    failed, tried = failed + result.failed, tried + result.attempted
    if result.attempted:
        print(module.name, result.attempted)
print("examples", tried)
sys.exit(bool(failed))
"""


@pytest.mark.slow
def test_examples_in_docstrings():
    run = subprocess.run(
        [sys.executable, "-c", RUNNER], capture_output=True, text=True, check=False, env=QUICK
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(run.stdout.split()[-1]) >= 20, run.stdout


PAGES = [("gotchas", 8), ("methods", 2), ("certificates", 1), ("bayes", 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "least"), PAGES)
def test_examples_in_the_documents(page, least):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) >= least
    run = subprocess.run(
        [sys.executable, "-c", "".join(blocks)], capture_output=True, text=True, check=False, env=QUICK
    )
    assert run.returncode == 0, run.stderr
