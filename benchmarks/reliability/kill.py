"""kill -9 at random moments of a training run, each time --resume: is the end that of an uninterrupted run?

    python -m benchmarks.kill                # characters-5w1s, 60 steps, 10 kills ->
    benchmarks/results/kill.json

Compared are the bytes of every parameter and of the optimiser's state (SHA-256). A kill falls at a uniformly
random moment after the process has started, so also while it starts, compiles, or writes a checkpoint.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from imaml.storage.artefact import read_artefact
from imaml.storage.checkpoint import Checkpoints

from .machine import describe_machine

RESULT = Path(__file__).parent / "results" / "kill.json"


def launch(words: list[str], cache: Path) -> subprocess.Popen:
    environment = dict(os.environ) | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "imaml", "train", *words, "--quiet"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    errors = process.communicate()[1]
    if process.returncode != 0:
        raise SystemExit(f"the run ended with status {process.returncode}: {errors}")
    return errors


def ending(out: Path) -> tuple[dict[str, str], list]:
    """The parameters of the artefact, as bytes in hexadecimal, and the digests in the last checkpoint."""
    step = Checkpoints(out / "checkpoints").steps()[-1]
    manifest = json.loads((out / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())
    return {name: array.tobytes().hex() for name, array in read_artefact(out)[0].items()}, manifest["tree"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="characters-5w1s")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    words = [
        chosen.preset,
        f"--steps={chosen.steps}",
        "--minutes=none",
        f"--training.checkpoint_every={chosen.every}",
    ]
    words += ["--training.validate_every=0", "--training.test_tasks=0"]
    luck, killed = random.Random(chosen.seed), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache, whole, out = root / "cache", root / "whole", root / "killed"
        finish(launch([*words, f"--out={root / 'first'}"], cache))  # fills the cache
        began = time.monotonic()
        finish(launch([*words, f"--out={whole}"], cache))
        seconds = time.monotonic() - began
        while len(killed) < chosen.kills:
            begun = (out / "config.json").exists()
            process = launch([*(["--resume"] if begun else words), f"--out={out}"], cache)
            delay = luck.uniform(0, seconds)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                saved = Checkpoints(out / "checkpoints").steps()
                killed.append(
                    {"after_seconds": round(delay, 2), "newest_checkpoint": saved[-1] if saved else None}
                )
                print(killed[-1], flush=True)
                continue
            finish(process)
            shutil.rmtree(out)  # it was over before its time: begin another
        errors = finish(launch(["--resume", f"--out={out}"], cache))
        (parameters, state), (same_parameters, same_state) = ending(whole), ending(out)
    result = {
        "command": "python -m benchmarks.kill " + " ".join(sys.argv[1:]),
        "run": "imaml train " + " ".join(words),
        "uninterrupted_seconds": round(seconds, 1),
        "kills": killed,
        "damaged_checkpoints_met": errors.count("damaged"),
        "parameters_equal_bit_for_bit": parameters == same_parameters,
        "state_equal_bit_for_bit": state == same_state,
        "arrays_compared": len(parameters) + len(state),
        "machine": describe_machine(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if not (result["parameters_equal_bit_for_bit"] and result["state_equal_bit_for_bit"]):
        raise SystemExit("the interrupted run ended otherwise")


if __name__ == "__main__":
    main()
