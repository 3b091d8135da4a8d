"""kill -9 at random moments of a training run, each time --resume: is the end that of an uninterrupted run?

    python -m benchmarks run kill                # characters-5w1s, 60 steps, 10 kills

Compared are the bytes of every parameter and of the optimiser's state. A kill falls at a uniformly
random moment after the process has started, so also while it starts, compiles, or writes a checkpoint.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import benchmark, say
from imaml.storage.artefact import read_artefact
from imaml.storage.checkpoint import Checkpoints
from imaml.storage.integrity import read_arrays, read_record

KEPT = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def launch(words, cache):
    """Starts `imaml train` with compiled programs kept in a directory."""
    command = [sys.executable, "-m", "imaml", "train", *words, "--quiet"]
    environment = os.environ | KEPT | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def finish(process):
    """Waits for a run that must succeed, and returns what it said."""
    errors = process.communicate()[1]
    if process.returncode != 0:
        raise SystemExit(f"the run ended with status {process.returncode}: {errors}")
    return errors


def ending(out: Path) -> list[dict[str, str]]:
    """The parameters of the artefact and the state in the last checkpoint, as bytes in hexadecimal."""
    data = max((out / "checkpoints").iterdir()).read_bytes()
    found = read_artefact(out)[0], read_arrays(data, read_record(data))
    return [{name: array.tobytes().hex() for name, array in arrays.items()} for arrays in found]


QUICK = {"preset": "sinusoid", "steps": 8, "kills": 1}


@benchmark("kill", quick=QUICK)
def main(run, preset="characters-5w1s", steps=60, every=5, kills=10, seed=0):
    """Kills a run `kills` times; `every`: steps between checkpoints."""
    words = [preset, f"--steps={steps}", "--minutes=none", f"--training.checkpoint_every={every}"]
    words += ["--training.validate_every=0", "--training.test_tasks=0"]
    luck, killed = random.Random(seed), []
    with tempfile.TemporaryDirectory() as folder:
        cache, whole, out = (Path(folder) / name for name in ("cache", "whole", "killed"))
        finish(launch([*words, f"--out={Path(folder) / 'first'}"], cache))  # fills the cache
        began = time.monotonic()
        finish(launch([*words, f"--out={whole}"], cache))
        seconds = time.monotonic() - began
        while len(killed) < kills:
            begun = (out / "config.json").exists()
            process = launch([*(["--resume"] if begun else words), f"--out={out}"], cache)
            delay = luck.uniform(0, seconds)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                saved = Checkpoints(out / "checkpoints").steps()
                newest = saved[-1] if saved else None
                killed.append({"after_seconds": round(delay, 2), "newest_checkpoint": newest})
                say(killed[-1])
                continue
            finish(process)
            shutil.rmtree(out)  # it was over before its time: begin another
        errors = finish(launch(["--resume", f"--out={out}"], cache))
        (parameters, state), (same_parameters, same_state) = ending(whole), ending(out)
    figures = {
        "run": "imaml train " + " ".join(words),
        "uninterrupted_seconds": round(seconds, 1),
        "damaged_checkpoints_met": errors.count("damaged"),
        "parameters_equal_bit_for_bit": parameters == same_parameters,
        "state_equal_bit_for_bit": state == same_state,
        "arrays_compared": len(parameters) + len(state),
    }
    run.write(killed, **figures)
    say(figures)
    if not (figures["parameters_equal_bit_for_bit"] and figures["state_equal_bit_for_bit"]):
        raise SystemExit("the interrupted run ended otherwise")
