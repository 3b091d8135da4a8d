"""Start-up: `imaml --help`, the import, and the first meta-step of Conv4 without and with kept programs.

Then what XLA's options make of compiling that step, and of later ones.

    python -m benchmarks run startup

Each in processes of their own, as at a terminal; whole seconds from the start of the process, and for the
first step also those from the call alone.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time

from benchmarks.harness import benchmark, spread

BEGIN = """
import json, os, statistics, time
from imaml.cli.startup import prepare_jax
prepare_jax()
import jax
from imaml.core import compile
from imaml.config.presets import preset
from imaml.training.experiment import assemble
options = json.loads(os.environ.get("OPTIONS", "null"))
if options is not None:
    compile._options = lambda: options
experiment = assemble(preset("characters-5w1s"))
step, arguments = experiment.step(), experiment.begin()
"""
STEP = """
began = time.perf_counter()
jax.block_until_ready(step(*arguments))
print(time.perf_counter() - began)
"""
COMPILE = """
lowered = step.lower(*arguments)
began = time.perf_counter()
step = lowered.compile()
print(time.perf_counter() - began)
jax.block_until_ready(step(*arguments))
taken = []
for _ in range(10):
    began = time.perf_counter()
    jax.block_until_ready(step(*arguments))
    taken.append(time.perf_counter() - began)
print(statistics.median(taken))
"""
OPTIONS = {"XLA's own": {}, "imaml's": None, "level 0": {"xla_backend_optimization_level": 0}}


def ran(*words, **environment):
    """Returns the seconds of one process, and the numbers that it printed."""
    began = time.perf_counter()
    how = {"capture_output": True, "text": True, "check": True, "env": os.environ | environment}
    said = subprocess.run([sys.executable, *words], **how).stdout
    seconds = time.perf_counter() - began
    return seconds, [float(line) for line in re.findall(r"^[\d.e-]+$", said, re.MULTILINE)]


@benchmark("startup", quick={"rounds": 1})
def main(run, rounds=4):
    """Starts each kind of process so many times."""
    seconds = {"imaml --help": [ran("-m", "imaml", "--help")[0] for _ in range(rounds)]}
    seconds["import imaml"] = [ran("-c", "import imaml")[0] for _ in range(rounds)]
    add = lambda what, value: seconds.setdefault(what, []).append(value)  # noqa: E731
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("nothing kept", "its program kept"):
                whole, (call,) = ran("-c", BEGIN + STEP, XDG_CACHE_HOME=folder)
                add(f"first step of characters-5w1s, {name}", call)
                add(f"that from the process's start, {name}", whole)
        for name, options in OPTIONS.items():
            given = {"OPTIONS": json.dumps(options), "JAX_ENABLE_COMPILATION_CACHE": "false"}
            compiling, step = ran("-c", BEGIN + COMPILE, **given)[1]
            add(f"compiling that step, {name} options", compiling)
            add(f"a later step, {name} options", step)
    for what, values in seconds.items():
        run.add({"what": what, **spread(values, "{}_s")})
