"""Keeps what `imaml compare` wrote as a committed result, with its command and the machine.

    imaml compare --preset omniglot-5w1s --data PATH --budget 5
    python -m benchmarks run comparison runs/compare-omniglot-5w1s     # on the machine of the run

writes benchmarks/results/compare-omniglot-5w1s.json, of which `python -m benchmarks render` makes its tables.
"""

import dataclasses
import json
from pathlib import Path

from benchmarks.harness import RESULTS, benchmark
from imaml.compare.variants import ROWS
from imaml.config.presets import PRESETS
from imaml.core.recipes import from_json


def command_of(summary):
    """The command that made a comparison: its preset, its methods where they are not all, its budget."""
    base = from_json(summary["config"])
    name = next((name for name, preset in PRESETS.items() if preset.config == base), None)
    if name is None:
        raise SystemExit(
            "this comparison is of no preset as it is now; say what was changed, or run it again."
        )
    methods = [row["method"] for row in summary["rows"]]
    words = ["imaml", "compare", *([] if methods == list(ROWS) else methods), "--preset", name]
    if base.domain.source != "characters":
        words += ["--data", "PATH"]
    words += ["--budget", f"{summary['minutes']:g}"]
    words += ["--seeds", str(summary["seeds"])] if summary["seeds"] > 1 else []
    words += ["--tasks", str(summary["test_tasks"])] if summary["test_tasks"] != 1000 else []
    return name, " ".join(words)


@benchmark("comparison", result=None, positional=("folder",))
def main(run, folder):
    """Writes the result file of a run of `imaml compare`."""
    summary = json.loads((Path(folder) / "comparison.json").read_text())
    name, command = command_of(summary)
    file = run.out or RESULTS / f"compare-{name}.json"
    dataclasses.replace(run, command=command, out=file).write(**summary)
    print(file)
