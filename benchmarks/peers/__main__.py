"""Times every peer on every work, in turn, in one run.

    python -m benchmarks.peers                     # all; writes benchmarks/results/peers.json
    python -m benchmarks.peers --works a b --peers imaml TorchOpt --output /tmp/peers.json

A peer that cannot be installed or fails leaves its reason in its row. Measured are whole calls, in three
rounds of all peers one after another; error is the relative distance from the meta-gradient whose linear
systems are solved in float64, at the same inner solution.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine

from . import environments
from .rate import rates as measured_rates
from .side import PEERS
from .works import WORKS, make, read

ROUNDS = 3
SECONDS = 5.0  # of measured calls for each row, at most, but one call in every round
PATIENCE = 240.0  # seconds until a first call is given up
RESULT = Path("benchmarks/results/peers.json")


class Side:
    """A running peer. `failed` says why, where it does not run."""

    def __init__(self, name, work, folder, threads):
        self.name, self.failed, self.first, self.rounds, self.peak = name, None, {}, [], None
        self.errors = Path(folder) / f"{list(PEERS).index(name)}.err"
        problem = environments.install(PEERS[name].environment) if name != "imaml" else None
        if PEERS[name].only and work not in PEERS[name].only:
            problem = f"not tried: compiling takes long enough on {WORKS[PEERS[name].only[-1]].title}"
        if problem:
            self.failed = problem
            return
        command = [environments.python_of(PEERS[name].environment), "-m", "benchmarks.peers.side"]
        with self.errors.open("w") as errors:
            self.child = subprocess.Popen(
                [*map(str, command), name, work, str(folder), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.first = self._read()

    def _read(self):
        """One line of the child's; {} and a reason where it ended or took too long."""
        timer = threading.Timer(PATIENCE, self.child.kill)
        timer.start()
        line = self.child.stdout.readline()
        late = not timer.is_alive()
        timer.cancel()
        if line:
            return json.loads(line)
        said = [
            line
            for line in self.errors.read_text().splitlines()
            if re.match(r"[\w.]*(Error|Exception)\b", line)
        ]
        ended = said[-1][:200] if said else f"ended with status {self.child.wait()}"
        self.failed = f"gave up after {PATIENCE:.0f} s" if late else ended
        return {}

    def measure(self, calls):
        """So many calls; the seconds of each."""
        if self.failed:
            return []
        self.child.stdin.write(f"{calls}\n")
        self.child.stdin.flush()
        answer = self._read()
        self.peak = answer.get("peak_mib")
        return answer.get("seconds", [])

    def close(self):
        """Ends the child."""
        if hasattr(self, "child"):
            self.child.stdin.close()
            self.child.wait()


def rows_of(name, threads, peers, rate):
    """The rows of one work on so many threads; rate: of matrix products on as many, GFLOP/s."""
    with tempfile.TemporaryDirectory() as folder:
        make(WORKS[name], folder)
        sides = [Side(peer, name, folder, threads) for peer in peers]
        calls = {}
        for side in sides:
            warm = side.measure(1)
            if warm:
                calls[side.name] = max(1, int(SECONDS / ROUNDS / max(warm[0], 1e-6)))
        for _ in range(ROUNDS):
            for side in sides:
                side.rounds += side.measure(min(calls.get(side.name, 1), 500))
        for side in sides:
            side.close()
        exact, residual, flops = _reference(name, folder)
        rows = [_row(side, name, threads, folder, exact) for side in sides]
    ours = next((row["ms_median"] for row in rows if row["peer"] == "imaml"), None)
    for row in rows:
        row.update(reference_residual=residual, gflop=flops / 1e9, of_rate=None, times_imaml=None)
        row["rate_gflops"] = rate
        if row["ms_median"] is not None:
            row["of_rate"] = flops / 1e6 / row["ms_median"] / rate
            row["times_imaml"] = row["ms_median"] / ours if ours else None
        print(_sentence(row), flush=True)
    return rows


def _reference(name, folder):
    """The exact meta-gradient and its residual (None for the large works), and FLOPs."""
    command = [sys.executable, "-m", "benchmarks.peers", "--reference", name, folder]
    subprocess.run(command, check=True, env={**os.environ, "JAX_ENABLE_X64": "1"})
    exact = np.load(Path(folder) / "exact.npz")
    flops = int(exact["flops"])
    return (
        (None, None, flops) if WORKS[name].reference else (exact["gradient"], float(exact["residual"]), flops)
    )


def _row(side, name, threads, folder, exact):
    seconds = np.array(side.rounds) * 1e3
    found = Path(folder) / f"{list(PEERS).index(side.name)}.npy"
    error = None
    if exact is not None and found.exists():
        error = float(np.linalg.norm(np.load(found) - exact) / np.linalg.norm(exact))
    measured = len(seconds) > 0
    return {
        "work": name,
        "title": f"{WORKS[name].title}, {WORKS[name].tasks} tasks",
        "peer": side.name,
        "version": side.first.get("version"),
        "threads": threads,
        "error": error,
        "ms_median": float(np.median(seconds)) if measured else None,
        "ms_min": float(seconds.min()) if measured else None,
        "ms_max": float(seconds.max()) if measured else None,
        "first_call_s": side.first.get("first_call_s"),
        "peak_mib": side.peak,
        "calls": len(seconds),
        "note": side.failed or PEERS[side.name].note,
    }


def _sentence(row):
    if row["ms_median"] is None:
        return f"{row['work']:<5} {row['threads']} {row['peer']:<28} {row['note']}"
    error = "" if row["error"] is None else f", error {row['error']:.1e}"
    return (
        f"{row['work']:<5} {row['threads']} {row['peer']:<28} {row['ms_median']:10.3f} ms "
        f"({row['ms_min']:.3f} to {row['ms_max']:.3f}), first call {row['first_call_s']:.1f} s, "
        f"{row['peak_mib']:.0f} MiB{error}"
    )


def _save_reference(name, folder):
    from .jax_sides import flops_of, reference

    work, arrays = WORKS[name], read(folder)
    gradient, residual = reference(work, arrays) if not work.reference else (0.0, 0.0)
    np.savez(Path(folder) / "exact.npz", gradient=gradient, residual=residual, flops=flops_of(work, arrays))


def _kept(path, works, machine):
    """The rows that are there of other works, if they are from this machine."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return [row for row in found["rows"] if row["work"] not in works] if found["machine"] == machine else []


def main():
    """Measures what was asked for and writes the rows after each work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), metavar="WORK")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--reference", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reference:
        _save_reference(*arguments.reference)
        return
    cores = len(os.sched_getaffinity(0))
    rates = {threads: measured_rates(threads) for threads in sorted({1, cores})}
    print("matrix products, GFLOP/s by threads:", rates, flush=True)
    machine = describe_machine()
    rows = _kept(arguments.output, arguments.works, machine)
    written = {"command": "make bench-peers", "machine": machine, "matmul_gflops": rates}
    for name in arguments.works:
        for threads in (1, cores) if WORKS[name].small and cores > 1 else (cores,):
            rows += rows_of(name, threads, arguments.peers, max(rates[threads].values()))
            order = sorted(rows, key=lambda row: (list(WORKS).index(row["work"]), row["threads"]))
            arguments.output.write_text(json.dumps({**written, "rows": order}, indent=2) + "\n")


if __name__ == "__main__":
    main()
