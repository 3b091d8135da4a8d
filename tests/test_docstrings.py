"""Every example in a docstring runs, in float32 as users see it: hence in a process without x64."""

import subprocess
import sys

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


def test_examples_in_docstrings():
    run = subprocess.run([sys.executable, "-c", RUNNER], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(run.stdout.split()[-1]) >= 20, run.stdout
