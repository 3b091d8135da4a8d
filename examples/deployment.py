"""How soon a new process adapts: the first and later calls, with and without programs that are kept.

Each process is started twice with one folder of kept programs; the second finds what the first has compiled.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

KINDS = ("library", "library, programs kept", "exported, programs kept")


def serve(kind, folder):
    """Load, and adapt with new and repeated numbers of rows; print milliseconds of processor time as JSON."""
    clock = time.process_time
    began = clock()
    import jax

    jax.numpy.zeros(1).block_until_ready()  # JAX itself has started
    jax_ready = clock()
    if kind.startswith("exported"):
        jax.config.update("jax_compilation_cache_dir", str(folder / kind))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        sys.path.insert(0, str(folder))
        from imaml_standalone import load

        learner = load(folder / "learned.zip")
    else:
        import imaml

        if "kept" in kind:
            imaml.keep_programs(folder / kind, least=0.0)
        learner = imaml.load(folder / "learned.imaml")
    loaded = clock()
    x = np.linspace(-1, 1, 40)
    y = np.sin(3 * x)
    found, spent = [], []
    for rows in (6, 12, 24, 5, 11, 24):  # three sizes that sets are padded to; the last three calls find them
        start = clock()
        found.append(learner.adapt(x[:rows], y[:rows]).predict(x[-2:])[0])
        spent.append(clock() - start)
    jax_time, load, first, *others = (1e3 * t for t in (jax_ready - began, loaded - jax_ready, *spent))
    times = {"start JAX": jax_time, "load": load, "first adapt": first}
    times |= {"new size": float(np.mean(others[:2])), "known size": float(np.max(others[2:]))}
    print(json.dumps({"ms": times, "answers": [float(one) for one in found]}))


def process(kind, folder):
    """What `serve` finds in a process of its own."""
    command = [sys.executable, __file__, kind, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def learn(folder, model="mlp"):
    """Learn, save and export."""
    import imaml

    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 20)
    x = rng.uniform(-1, 1, len(group))
    y = rng.normal(2, 0.5, 60)[group] * np.sin(3 * x) + rng.normal(0, 1, 60)[group]
    tasks = imaml.Tasks.from_arrays(x, y, group)
    run = imaml.fit(tasks, model, shots=6, strength=0.3, steps=50, progress=False)
    run.save(folder / "learned.imaml")
    run.learner.export(folder / "learned.zip", rows=(8, 16, 32))


def main(folder, model="mlp"):
    """Learn; then start the processes."""
    learn(folder, model)
    for kind in KINDS:
        for turn in ("first process", "second process")[: 2 if "kept" in kind else 1]:
            found = process(kind, folder)
            times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in found["ms"].items())
            print(f"{kind}, {turn}: {times}; answers {np.round(found['answers'], 3).tolist()}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        serve(sys.argv[1], Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place), *sys.argv[1:])  # a model, "mlp" by default
