"""How long a committed artefact takes to adapt to a new task from PNG files.

    python -m benchmarks run adaptation

Each of `tasks` tasks is five classes with one drawing each to learn from and three to tell apart, as files
of 105 x 105 pixels, dark on light, a folder a class. Timed for each, after one task that is not: reading the
support files, adapting, and answering for the fifteen others, read before.
"""

import itertools
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import imaml
from benchmarks.harness import ROOT, benchmark, spread

ARTEFACTS = ("artefacts/omniglot-5w1s.safetensors", "artefacts/characters-5w1s.safetensors")


def write_files(folder, images, labels):
    """A PNG file for every image, in a folder a class."""
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / f"letter-{label}"
        place.mkdir(parents=True, exist_ok=True)
        dark = np.rint(255 * (1 - np.asarray(image).squeeze())).astype(np.uint8)
        Image.fromarray(dark).resize((105, 105), Image.Resampling.NEAREST).save(place / f"{number}.png")


def measure(learner, task, folder):
    """Milliseconds of each part for one task, and the share of right answers."""
    for name, part in (("support", task.support), ("query", task.query)):
        write_files(folder / name, part.images, part.labels)
    query = learner.read(folder / "query")
    moments = [time.perf_counter()]
    support = learner.read(folder / "support")
    moments.append(time.perf_counter())
    predictor = learner.adapt(support.images, support.labels)
    jax.block_until_ready(predictor.phi)
    moments.append(time.perf_counter())
    answers = predictor.predict(query.images)
    moments.append(time.perf_counter())
    read, adapt, predict = (1e3 * (b - a) for a, b in itertools.pairwise(moments))
    right = float(np.mean(answers == np.array(query.labels)))
    return {"read": read, "adapt": adapt, "read_and_adapt": read + adapt, "predict_15": predict}, right


@benchmark("adaptation", quick={"tasks": 2})
def main(run, tasks=50):
    """Measures each artefact."""
    domain = imaml.characters(ways=5, shots=1, queries=3)
    sample = jax.jit(lambda number: domain.sample(jax.random.fold_in(jax.random.key(3), number), "test"))
    for name in ARTEFACTS:
        learner, times, right = imaml.load(ROOT / name), [], []
        for number in range(tasks + 1):
            with tempfile.TemporaryDirectory() as folder:
                spent, share = measure(learner, jax.device_get(sample(number)), Path(folder))
            times.append(spent)
            right.append(share)
        parts = {}
        for part in times[0]:
            first, *later = (spent[part] for spent in times)
            parts[part] = {key: round(value, 2) for key, value in spread(later, "{}").items()}
            parts[part]["first_call"] = round(first, 1)
        row = {"artefact": name, "milliseconds": parts, "accuracy_inductive": np.mean(right)}
        run.add(row, tasks=tasks)
