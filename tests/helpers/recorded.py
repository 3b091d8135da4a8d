"""What the committed artefacts answer on fixed tasks, to be compared with what they answered before.

    python tests/helpers/recorded.py              # prints the answers of this code as JSON

Run it in a process of its own: answers are those of float32, compiled as users compile it.
"""

import hashlib
import json
import platform
import re
import sys
from pathlib import Path

import jax
import numpy as np

import imaml

ARTEFACTS = Path(__file__).resolve().parents[2] / "artefacts"
NAMES = ("characters-5w1s", "omniglot-5w1s")  # those that there were before
TASKS = 3


def machine():
    """Return a name for the processor's instruction set, which bits depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.findall(r"(?:model name|cpu family|model|flags)\s*: (.*)", text)
    return f"{platform.machine()} {digest([np.frombuffer(' '.join(found).encode(), np.uint8)])[:16]}"


def digest(arrays):
    """Return a hash of the bits of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def answers(file):
    """Return the answers of an artefact: probabilities, and hashes of what led to them."""
    learner = imaml.load(file)
    domain = imaml.characters(ways=5, shots=1, queries=3)
    sample = jax.jit(lambda key: domain.sample(key, "test"))
    rows = []
    for seed in range(TASKS):
        task = jax.device_get(sample(jax.random.key(seed)))
        predictor = learner.adapt(np.asarray(task.support.images), np.asarray(task.support.labels))
        images = np.asarray(task.query.images)
        certain, posterior = (predictor.predict_proba(images, uncertainty=bayes) for bayes in (False, True))
        rows.append(
            {
                "task": digest(jax.tree.leaves(task)),
                "phi": digest(map(np.asarray, jax.tree.leaves(predictor.phi))),
                "probabilities": digest([certain, posterior]),
                "values": [np.round(each.astype(float), 7).tolist() for each in (certain, posterior)],
            }
        )
    return rows


if __name__ == "__main__":
    found = {name: answers(ARTEFACTS / f"{name}.safetensors") for name in NAMES}
    json.dump({"machine": machine(), "jaxlib": jax.lib.__version__, "answers": found}, sys.stdout)
