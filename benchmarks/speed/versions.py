"""Two versions of this library on the same work, in pairs: the time of a step, and the start of the program.

    python -m benchmarks run versions --before FOLDER --data PATH

FOLDER is a checkout of the other version. Each round runs both, in processes of their own, one after the
other; ratios are this version's time over the other's, in the median over rounds.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import ROOT, benchmark, say


def started(folder, *words):
    """Run the program of a version; returns what it printed, and its seconds."""
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(Path(folder).resolve() / "src")}
    command = [sys.executable, "-m", "imaml", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout, time.perf_counter() - began


@benchmark("versions", quick={"rounds": 1, "steps": 2})
def main(run, before="", data="", rounds=5, steps=40):
    """Measure both versions."""
    versions = {"before": before, "now": ROOT}

    def step(*words):
        bench = ("bench", *words, f"--steps={steps}", "--json")
        return lambda folder: json.loads(started(folder, *bench)[0])["ms_median"]

    works = {f"step of {name}, ms": step(name) for name in ("characters-5w1s", "sinusoid")}
    if data:
        works["step of omniglot-5w1s, ms"] = step("omniglot-5w1s", f"--data={data}")
    with tempfile.TemporaryDirectory() as place:
        first = ("train", "sinusoid", "--quiet", "--steps=1", "--training.test_tasks=0")
        works["imaml --help, s"] = lambda folder: started(folder, "--help")[1]
        works["imaml train sinusoid, one step, s"] = lambda folder: started(
            folder, *first, f"--out={tempfile.mkdtemp(dir=place)}/run"
        )[1]
        rows = []
        for work, measure in works.items():
            found = [{name: measure(folder) for name, folder in versions.items()} for _ in range(rounds)]
            ratios = [pair["now"] / pair["before"] for pair in found]
            row = {
                "work": work,
                "ratio": statistics.median(ratios),
                "least": min(ratios),
                "most": max(ratios),
            }
            rows.append(row | {name: statistics.median(pair[name] for pair in found) for name in versions})
            say(rows[-1])
            run.write(rows, rounds=rounds)
