"""README's picture: answers to a new task of drawn characters, before and after adaptation.

    python -m benchmarks run front     # draws docs/figures/front.png

The artefact is the committed one of `imaml train characters-5w1s`. The task has the median accuracy of 101
test tasks; among equals, it is the first.
"""

from dataclasses import replace

import jax
import numpy as np

import imaml
from benchmarks.harness import ROOT, benchmark, figure

ARTEFACT, TASKS, QUERIES = ROOT / "artefacts/characters-5w1s.safetensors", 101, 4
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")  # Okabe and Ito: also for the colour-blind
GREY = "#767676"  # readable on white and on black


def answered(learner, task):
    """Returns the answers (before, after) to the queries of a task, and their true classes."""
    after = learner.adapt(task.support)
    before = replace(after, phi=learner.method.start(learner.theta))
    return [found.predict(task.query) for found in (before, after)], np.asarray(task.query.labels)


def tile(panel, image, colour):
    """Draws an image in a frame of the colour of its class."""
    panel.imshow(1 - np.asarray(image)[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    for side in panel.spines.values():
        side.set(color=colour, linewidth=5)


def cross(panel):
    """Marks a wrong answer, which colours alone would not show to everyone."""
    mark = {"color": GREY, "fontsize": 13, "fontweight": "bold", "ha": "right", "va": "top"}
    panel.text(0.95, 0.95, "\N{MULTIPLICATION SIGN}", transform=panel.transAxes, **mark)


@benchmark("front", result=None)
def main(run):
    """Draws the picture."""
    learner = imaml.load(ARTEFACT)
    sample = jax.jit(lambda key: learner.domain.sample(key, "test"))
    tasks = [sample(jax.random.key(seed)) for seed in range(TASKS)]
    known = [answered(learner, task) for task in tasks]
    right = [np.mean(after == labels) for (_, after), labels in known]
    chosen = int(np.argmin(np.abs(np.array(right) - np.median(right))))
    answers, labels = known[chosen]
    support, query = tasks[chosen].support, tasks[chosen].query
    path = run.place("front.png")
    widths = [1.15, 0.35, *(1.0,) * QUERIES, 0.35, *(1.0,) * QUERIES]
    with figure(
        path, 5, len(widths), figsize=(10.5, 5.6), facecolor="none", gridspec_kw={"width_ratios": widths}
    ) as (_, panels):
        for way, row in enumerate(panels):
            for panel in row:
                panel.axis("off")
            for panel in row[[0, *range(2, 2 + QUERIES), *range(3 + QUERIES, 3 + 2 * QUERIES)]]:
                panel.axis("on")
            example = np.flatnonzero(np.asarray(support.labels) == way)[0]
            tile(row[0], support.images[example], COLOURS[way])
            for place, at in enumerate(np.flatnonzero(labels == way)[:QUERIES]):
                for first, said in zip((2, 3 + QUERIES), answers, strict=True):
                    tile(row[first + place], query.images[at], COLOURS[said[at]])
                    if said[at] != way:
                        cross(row[first + place])
        heads = [
            "one example each",
            *(
                f"{name}: {np.mean(said == labels):.0%} right"
                for name, said in zip(("before adaptation", "after adaptation"), answers, strict=True)
            ),
        ]
        for column, head in zip((0, 2, 3 + QUERIES), heads, strict=True):
            panels[0, column].set_title(head, color=GREY, fontsize=13, fontweight="bold", loc="left", pad=10)
    print(path)
