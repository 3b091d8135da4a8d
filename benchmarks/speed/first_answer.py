"""How soon a new process adapts to a task and predicts, with and without programs that are kept.

    python -m benchmarks run first_answer

The processes are those of examples/deployment.py: milliseconds of processor time to load, for the first
answer, for sets of support rows whose padded size is new to the process, and for sizes that it knows.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.harness import ROOT, benchmark, spread

sys.path.insert(0, str(ROOT / "examples"))
import deployment


@benchmark("first_answer", quick={"processes": 1, "model": "linear"})
def main(run, processes=7, model="mlp"):
    """Learns once, then starts processes of each kind in turn."""
    with tempfile.TemporaryDirectory() as place:
        folder, found = Path(place), {kind: [] for kind in deployment.KINDS}
        deployment.learn(folder, model)
        for kind in deployment.KINDS[1:]:
            deployment.process(kind, folder)  # it compiles, and keeps
        for _ in range(processes):
            for kind in deployment.KINDS:
                found[kind].append(deployment.process(kind, folder)["ms"])
    for kind, times in found.items():
        for what in times[0]:
            run.add({"process": kind, "what": what, **spread([time[what] for time in times])})
