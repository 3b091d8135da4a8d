"""Pictures of the characters that an artefact still confuses.

    python -m benchmarks run errors --data PATH # draws docs/figures/errors-5w1s.png

Tasks are drawn until there are enough errors. Each is shown as three images: the query, the example of its
own class, and the example of the class that was answered.
"""

import json

import jax
import numpy as np

import imaml
from benchmarks.harness import ROOT, benchmark, figure
from benchmarks.learning.omniglot import configured

COLUMNS, ROWS = 6, 4
GREY = "#767676"  # readable on white and on black
HEADS = ("query", "its class", "answer")


def errors(learned, domain, most):
    """Returns so many errors or a few more, and the number of tasks that they are of.

    An error is (query, first example of its class, first example of the class answered).
    """
    found, number = [], 0
    sample = jax.jit(lambda key: domain.sample(key, "test"))
    while len(found) < most:
        support, query = sample(jax.random.key(number))
        said = learned.adapt(np.asarray(support.images), np.asarray(support.labels)).predict(query.images)
        labels, known = np.asarray(query.labels), np.asarray(support.labels)
        examples = {label: support.images[np.argmax(known == label)] for label in np.unique(known)}
        for i in np.flatnonzero(said != labels):
            found.append((query.images[i], examples[labels[i]], examples[said[i]]))
        number += 1
    return found, number


@benchmark("errors", result=None)
def main(run, data, row="5w1s"):
    """Draws the picture."""
    index = json.loads((ROOT / "artefacts" / "index.json").read_text())
    if row not in index:
        raise SystemExit(f"--row: expected one of {', '.join(index)}, got {row}.")
    entry = index[row]
    learned = imaml.load(ROOT / entry["file"])
    domain = configured(entry, learned, data)[0].domain.build()
    shown, tasks = errors(learned, domain, ROWS * COLUMNS)
    print(
        f"{len(shown)} errors in {tasks} tasks of {domain.recipe.ways * domain.recipe.queries} queries each"
    )
    widths = [1, 1, 1, 0.4] * COLUMNS
    how = {"figsize": (12, 3.4), "gridspec_kw": {"width_ratios": widths}}
    with figure(run.place(f"errors-{row}.png"), ROWS, len(widths), **how) as (_, panels):
        for panel in panels.flat:
            panel.axis("off")
        for place, images in enumerate(shown[: ROWS * COLUMNS]):
            line, first = place // COLUMNS, 4 * (place % COLUMNS)
            for at, image in enumerate(images):
                panels[line, first + at].imshow(1 - np.asarray(image)[..., 0], cmap="gray", vmin=0, vmax=1)
        for at in range(4 * COLUMNS):
            if at % 4 < 3:
                panels[0, at].set_title(HEADS[at % 4], fontsize=8, color=GREY)
