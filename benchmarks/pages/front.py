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

ARTEFACT, TASKS, QUERIES = ROOT / "artefacts/characters-5w1s.safetensors", 101, 3
BEFORE, AFTER = 2, 3 + QUERIES  # first columns of each half; the support set has column 0
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00")  # Okabe and Ito: also for the colour-blind
GREY = "#767676"  # readable on white and on black


def answered(learner, task):
    """Returns the answers to the queries of a task before and after adaptation, and their true classes."""
    after = learner.adapt(task.support)
    before = replace(after, phi=learner.method.start(learner.theta))
    return {BEFORE: before.predict(task.query), AFTER: after.predict(task.query)}, np.array(task.query.labels)


def tile(panel, image, colour, wrong=False):
    """Draws an image in a frame of its class's colour, with a cross if that is wrong."""
    panel.axis("on")
    panel.imshow(1 - np.asarray(image)[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    for side in panel.spines.values():
        side.set(color=colour, linewidth=5)
    if wrong:
        mark = {"color": GREY, "fontsize": 18, "fontweight": "bold", "ha": "right", "va": "top"}
        panel.text(0.95, 0.98, "\N{MULTIPLICATION SIGN}", transform=panel.transAxes, **mark)


@benchmark("front", result=None)
def main(run):
    """Draws the picture."""
    learner = imaml.load(ARTEFACT)
    sample = jax.jit(lambda key: learner.domain.sample(key, "test"))
    tasks = [sample(jax.random.key(seed)) for seed in range(TASKS)]
    known = [answered(learner, task) for task in tasks]
    right = np.array([np.mean(answers[AFTER] == labels) for answers, labels in known])
    chosen = int(np.argmin(np.abs(right - np.median(right))))
    (support, query), (answers, labels) = tasks[chosen], known[chosen]
    widths = [1, 0.45, *[1] * QUERIES, 0.45, *[1] * QUERIES]
    how = {"figsize": (9.5, 6), "facecolor": "none", "gridspec_kw": {"width_ratios": widths}}
    with figure(run.place("front.png"), 5, len(widths), **how) as (drawn, panels):
        drawn.set_layout_engine(None)  # the engine widens tiles below long heads
        drawn.subplots_adjust(0.005, 0.01, 0.995, 0.94, wspace=0.06, hspace=0.06)
        for panel in panels.flat:
            panel.axis("off")
        for way, row in enumerate(panels):
            tile(row[0], support.images[np.argmax(np.asarray(support.labels) == way)], COLOURS[way])
            for first, said in answers.items():
                for panel, at in zip(row[first:], np.flatnonzero(labels == way)[:QUERIES], strict=False):
                    tile(panel, query.images[at], COLOURS[said[at]], said[at] != way)
        heads = {0: "example", BEFORE: "before adaptation", AFTER: "after adaptation"}
        for column, head in heads.items():
            share = f": {np.mean(answers[column] == labels):.0%} right" if column else ""
            style = {"color": GREY, "fontsize": 13, "fontweight": "bold"}
            panels[0, column].set_title(head + share, loc="left", pad=10, **style)
