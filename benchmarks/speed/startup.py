"""Start-up: `imaml --help`, the import, and the first meta-step of Conv4 without and with kept programs.

Then what XLA's options make of compiling that step, and of later ones.

    python -m benchmarks.startup           # writes benchmarks/results/startup.json

Each in processes of their own, as at a terminal; whole seconds from the start of the process, and for the
first step also those from the call alone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe_machine

ROUNDS = 4
STEP = """
import time
from imaml.startup import prepare_jax
prepare_jax()
import jax
from imaml.cost import prepare
from imaml.presets import preset
step, (domain, state, key), _ = prepare(preset("characters-5w1s"))
began = time.perf_counter()
jax.block_until_ready(step(domain, state, key))
print(time.perf_counter() - began)
"""

OPTIONS = {
    "XLA's own": {},
    "imaml's": None,
    "level 0": {"xla_backend_optimization_level": 0},
}
COMPILE = """
import json, os, statistics, time
from imaml.startup import prepare_jax
prepare_jax()
import jax
from imaml import compiling
options = json.loads(os.environ["OPTIONS"])
if options is not None:
    compiling._options = lambda: options
from imaml.cost import prepare
from imaml.presets import preset
step, arguments, _ = prepare(preset("characters-5w1s"))
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


def run(*words, **environment):
    """Seconds of one process, and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return time.perf_counter() - began, done.stdout


def row(what, seconds):
    """A row of the results, printed too."""
    made = {
        "what": what,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
    }
    print(f"{what}: {made['median_s']:.2f} s ({made['min_s']:.2f} to {made['max_s']:.2f})", flush=True)
    return made


def main():
    """Measures and writes the results."""
    rows = [
        row("imaml --help", [run("-m", "imaml", "--help")[0] for _ in range(ROUNDS)]),
        row("import imaml", [run("-c", "import imaml")[0] for _ in range(ROUNDS)]),
    ]
    cold, kept = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            for calls in (cold, kept):
                whole, out = run("-c", STEP, XDG_CACHE_HOME=folder)
                calls.append((float(out), whole))
    for name, calls in (("nothing kept", cold), ("its program kept", kept)):
        rows.append(row(f"first step of characters-5w1s, {name}", [call for call, _ in calls]))
        rows.append(row(f"that from the process's start, {name}", [whole for _, whole in calls]))
    compiling = {name: ([], []) for name in OPTIONS}
    for _ in range(ROUNDS):
        for name, options in OPTIONS.items():
            given = {"OPTIONS": json.dumps(options), "JAX_ENABLE_COMPILATION_CACHE": "false"}
            for values, line in zip(compiling[name], run("-c", COMPILE, **given)[1].split(), strict=True):
                values.append(float(line))
    for name, (seconds, steps) in compiling.items():
        rows.append(row(f"compiling that step, {name} options", seconds))
        rows.append(row(f"a later step, {name} options", steps))
    result = {"command": "python -m benchmarks.startup", "machine": describe_machine(), "rows": rows}
    Path("benchmarks/results/startup.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
