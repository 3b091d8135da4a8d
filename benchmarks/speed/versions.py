"""Two versions of this library on the same work, in pairs: the time of a step, and the start of the program.

    python -m benchmarks run versions --before FOLDER --data PATH

FOLDER is a checkout of the other version. Each round runs both, in processes of their own, one after the
other; ratios are this version's time over the other's, in the median over rounds. A first start finds no
compiled programs; later ones find those of the starts before (the first round of those is a first start).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.harness import ROOT, benchmark


def started(folder, *words, **environment):
    """Run the program of a version; returns what it printed, and its seconds."""
    began = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(Path(folder).resolve() / "src")} | environment
    command = [sys.executable, "-m", "imaml", *words]
    printed = subprocess.check_output(command, env=environment, stderr=subprocess.DEVNULL, text=True)
    return printed, time.perf_counter() - began


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
        kept = {"first": lambda _: tempfile.mkdtemp(dir=place), "later": lambda f: f"{place}/{hash(f)}"}

        def start(folder, which):
            out = f"--out={tempfile.mkdtemp(dir=place)}/run"
            return started(folder, *first, out, JAX_COMPILATION_CACHE_DIR=kept[which](folder))[1]

        for which in kept:
            works[f"imaml train sinusoid, one step, {which} start, s"] = partial(start, which=which)
        for work, measure in works.items():
            found = [{name: measure(folder) for name, folder in versions.items()} for _ in range(rounds)]
            ratios = [pair["now"] / pair["before"] for pair in found]
            row = {"work": work, "ratio": median(ratios), "least": min(ratios), "most": max(ratios)}
            medians = {name: median(pair[name] for pair in found) for name in versions}
            run.add(row | medians, rounds=rounds)
