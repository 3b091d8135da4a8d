"""Times every peer on every work, in turn, in one run.

    python -m benchmarks run peers                               # all: `make bench-peers`, with its figure
    python -m benchmarks run peers --works a b --peers imaml TorchOpt --out peers.json

A peer that cannot be installed or fails leaves its reason in its row. Measured are whole calls, in three
rounds of all peers one after another; error is the relative distance from the meta-gradient whose linear
systems are solved in float64, at the same inner solution.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from benchmarks.harness import benchmark, cores, figure, machine, say, spread

from . import environments
from .rate import rates as measured_rates
from .side import PEERS
from .works import WORKS, make

ROUNDS = 3
PATIENCE = 240.0  # seconds until a first call is given up


class Side:
    """A running peer. `failed` says why, where it does not run."""

    def __init__(self, name, work, folder, threads):
        self.name, self.failed, self.first, self.rounds, self.peak = name, None, {}, [], None
        self.errors = Path(folder) / f"{list(PEERS).index(name)}.err"
        peer = PEERS[name]
        self.failed = environments.install(peer.package) if name != "imaml" else None
        if peer.only and work not in peer.only:
            self.failed = f"not tried: compiling takes long enough on {WORKS[peer.only[-1]].title}"
        if self.failed:
            return
        command = [environments.python_of(peer.package), "-m", "benchmarks.peers.side"]
        command = [*map(str, command), name, work, str(folder), str(threads)]
        with self.errors.open("w") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
            self.child = subprocess.Popen(command, **pipes)
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
        said = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", self.errors.read_text(), re.MULTILINE)
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


def rows_of(name, threads, peers, rate, seconds):
    """The rows of one work on so many threads; rate: of matrix products on as many, GFLOP/s."""
    with tempfile.TemporaryDirectory() as folder:
        make(WORKS[name], folder)
        sides = [Side(peer, name, folder, threads) for peer in peers]
        calls = {}
        for side in sides:
            warm = side.measure(1)
            if warm:
                calls[side.name] = max(1, int(seconds / ROUNDS / max(warm[0], 1e-6)))
        for _ in range(ROUNDS):
            for side in sides:
                side.rounds += side.measure(min(calls.get(side.name, 1), 500))
        for side in sides:
            side.close()
        command = [sys.executable, "-m", "benchmarks.peers.jax_sides", name, folder]
        subprocess.run(command, check=True, env={**os.environ, "JAX_ENABLE_X64": "1"})
        exact = np.load(Path(folder) / "exact.npz")
        judged = not WORKS[name].reference  # the large works have no reference of their own
        rows = [_row(side, name, threads, folder, exact["gradient"] if judged else None) for side in sides]
    ours = next((row["ms_median"] for row in rows if row["peer"] == "imaml"), None)
    for row in rows:
        row["reference_residual"] = float(exact["residual"]) if judged else None
        row |= {"of_rate": None, "times_imaml": None}
        row |= {"gflop": int(exact["flops"]) / 1e9, "rate_gflops": rate}
        if row["ms_median"] is not None:
            row["of_rate"] = int(exact["flops"]) / 1e6 / row["ms_median"] / rate
            row["times_imaml"] = row["ms_median"] / ours if ours else None
        say(row)
    return rows


def _row(side, name, threads, folder, exact):
    milliseconds = [1e3 * seconds for seconds in side.rounds]
    found, error = Path(folder) / f"{list(PEERS).index(side.name)}.npy", None
    if exact is not None and found.exists():
        error = float(np.linalg.norm(np.load(found) - exact) / np.linalg.norm(exact))
    row = {"work": name, "title": f"{WORKS[name].title}, {WORKS[name].tasks} tasks", "peer": side.name}
    row |= {"version": side.first.get("version"), "threads": threads, "error": error}
    row |= spread(milliseconds) if milliseconds else dict.fromkeys(("ms_median", "ms_min", "ms_max"))
    row |= {"first_call_s": side.first.get("first_call_s"), "peak_mib": side.peak, "calls": len(milliseconds)}
    return row | {"note": side.failed or PEERS[side.name].note}


def draw(run, result):
    """Draws the works on all cores: a panel a work, a bar a peer, as times imaml's."""
    most = max(row["threads"] for row in result.rows)
    timed = [row for row in result.rows if row["threads"] == most and row["ms_median"] is not None]
    works = list(dict.fromkeys(row["work"] for row in timed))
    lines = -(-len(works) // 2)
    with figure(run.place("peers.svg"), lines, 2, font=8, figsize=(10, 2.6 * lines)) as (_, panels):
        for panel in panels.flat[len(works) :]:
            panel.remove()
        for panel, work in zip(panels.flat, works, strict=False):
            bars = sorted((row for row in timed if row["work"] == work), key=lambda row: row["ms_median"])
            ratios = [row["times_imaml"] for row in bars]
            colours = ["tab:blue" if row["peer"] == "imaml" else "tab:grey" for row in bars]
            panel.barh([row["peer"] for row in bars], ratios, color=colours, left=0)
            for place, (row, ratio) in enumerate(zip(bars, ratios, strict=True)):
                text = f"{row['ms_median']:{',.0f' if row['ms_median'] > 1000 else '.3g'}} ms"
                panel.text(ratio * 1.05, place, text, va="center", fontsize=7)
            panel.axvline(1, color="black", linewidth=0.8)
            panel.set(xscale="log", title=bars[0]["title"], xlabel="time, in imaml's")
            panel.set_xlim(min(ratios) / 1.5, max(ratios) * 4)
            panel.invert_yaxis()


@benchmark("peers", quick={"works": ["a"], "peers": ["imaml"], "seconds": 0.1}, draw=draw)
def main(run, works=tuple(WORKS), peers=tuple(PEERS), seconds=5.0):
    """Measures what was asked for; rows of other works from this machine stay in the file.

    seconds: of measured calls for each row, at most, but one call in every round.
    """
    counts = sorted({1, cores()})
    rates = {threads: measured_rates(threads) for threads in counts}
    print("matrix products, GFLOP/s by threads:", rates, flush=True)
    rows = [row for row in run.before(machine()) if row["work"] not in works]
    for name in works:
        for threads in counts if WORKS[name].small else counts[-1:]:
            rows += rows_of(name, threads, peers, max(rates[threads].values()), seconds)
            rows.sort(key=lambda row: (list(WORKS).index(row["work"]), row["threads"]))
            run.write(rows, matmul_gflops=rates)
