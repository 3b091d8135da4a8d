"""Keeps what `imaml compare` wrote as a committed result, with its command and the machine.

    imaml compare --preset omniglot-5w1s --data PATH --budget 5
    python -m benchmarks.comparison runs/compare-omniglot-5w1s     # on the machine that it ran on

writes benchmarks/results/compare-omniglot-5w1s.json, of which `python -m benchmarks.table` makes its tables.
"""

import argparse
import json
from pathlib import Path

from benchmarks.machine import describe_machine
from imaml.compare.variants import ROWS
from imaml.config.presets import PRESETS
from imaml.core.recipes import from_json

RESULTS = Path(__file__).parent / "results"


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


def main():
    """Writes the result file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    summary = json.loads((parser.parse_args().folder / "comparison.json").read_text())
    name, command = command_of(summary)
    file = RESULTS / f"compare-{name}.json"
    file.write_text(
        json.dumps({"command": command, "machine": describe_machine(), **summary}, indent=1) + "\n"
    )
    print(file)


if __name__ == "__main__":
    main()
