"""What `imaml train --dry-run` predicts of each preset, and what training then takes.

    python -m benchmarks run dry_run --omniglot-data PATH --table-data PATH

Both in processes of their own, with compiled programs kept, as where a user trains after a dry run.
Milliseconds are the median of the steps that the run's journal has; memory is what the process had at most
while it stepped, which is what the dry run speaks of, and, with the report that is made at the end, in all.
Presets whose data are not given are omitted and reported. Rows that are done are kept in
runs/dry_run: the same command resumes.
"""

import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import benchmark
from benchmarks.peers.side import memory
from imaml.config.presets import PRESETS

TABLE = ["--task", "Subject", "--target", "Reaction", "--features", "Days"]


def options(name, data):
    """The words that a preset needs, or None where its data are not given."""
    for kind, path in data.items():
        if name.startswith(kind) or (kind == "omniglot" and name == "as-released"):
            return None if path is None else ["--data", str(path), *(TABLE if kind == "tables" else [])]
    return []


def predicted(name, words):
    """Milliseconds a step and MiB, as a dry run has them."""
    command = [sys.executable, "-m", "imaml", "train", name, *words, "--dry-run"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    step = re.search(r"predicted step +([\d,.]+) ms", said).group(1)
    memory = re.search(r"peak memory +([\d,.]+) MiB", said).group(1)
    return float(step.replace(",", "")), float(memory.replace(",", ""))


def trained(name, words, steps):
    """Milliseconds a step, and MiB while it stepped and in all, of a run of so many steps."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "imaml", "train", name, *words, "--out", str(out), "--quiet"]
        command += ["--steps", str(steps), "--training.test_tasks=0", "--training.validate_every=0"]
        command.append("--training.gradient_below=none")  # it takes all of its steps
        usual = PRESETS[name].config.training.log_every
        command.append(f"--training.log_every={max(1, min(usual, steps // 8))}")
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        most, stepping, journal = 0.0, 0.0, out / "events.jsonl"
        while child.poll() is None:
            said = journal.read_text() if journal.exists() else ""
            now = memory("VmRSS", child.pid)
            most = max(most, now)
            if '"event": "step"' in said and '"event": "end"' not in said:
                stepping = max(stepping, now)
            time.sleep(0.02)
        if child.returncode:
            raise SystemExit(f"{name}: {child.stderr.read()[-500:]}")
        events = [json.loads(line) for line in journal.read_text().splitlines()]
    times = [(e["step"], e["seconds"]) for e in events if e.get("event") == "step"]
    each = [1e3 * (b - a) / (j - i) for (i, a), (j, b) in itertools.pairwise(times[1:]) if j > i]
    return statistics.median(each), stepping, most


def compared(name, words, seconds):
    """Returns the row of a preset, trained for about so many seconds."""
    predicted(name, words)  # compiles; the next one finds its program kept
    step, memory = predicted(name, words)
    steps = max(8, min(2000, int(1e3 * seconds / step)))
    took, had, in_all = trained(name, words, steps)
    row = {"preset": name, "steps": steps, "ms_predicted": step, "ms": took, "mib_predicted": memory}
    return row | {"mib": had, "mib_in_all": in_all, "ms_off": step / took - 1, "mib_off": memory / had - 1}


@benchmark("dry_run", quick={"presets": ["sinusoid"], "seconds": 0.1})
def main(
    run, presets=tuple(PRESETS), seconds=12.0, omniglot_data=None, table_data=None, mini_imagenet_data=None
):
    """Measures the presets whose data are given."""
    data = {"omniglot": omniglot_data, "tables": table_data, "mini-imagenet": mini_imagenet_data}
    left_out = []
    for name in presets:
        words = options(name, data)
        if words is None:
            left_out.append(name)
        else:
            run.add(run.once(name, compared, name, words, seconds), left_out=left_out)
