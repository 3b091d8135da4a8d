"""What adaptation does, in pictures: new tasks of the runs that `any_inner` kept.

    python -m benchmarks run pictures [PRESET ...]     # draws docs/figures/PRESET.png

Each row is a task of the test split as the report shows it: before and after adaptation, and in truth. The
tasks are those at the quartiles of the score, best first.
"""

import json
import textwrap
from pathlib import Path

import jax
import numpy as np

import imaml
from benchmarks.harness import FIGURES, Result, benchmark, figure, prepared
from benchmarks.learning.any_inner import trials
from imaml.training.evaluation import task_keys

KEPT, TASKS = Path("runs/any_inner"), 3
STYLES = {"before": "--", "after": "-", "best": ":"}


def draw(name, trial):
    """One figure: the scenes of some test tasks, a task a row."""
    _, domain, _ = prepared(name)
    method = trials(name, "imaml")[trial].build(domain)
    theta = imaml.load(KEPT / name / f"imaml-{trial}").theta
    sample = jax.jit(lambda key: domain.sample(key, "test"))
    scenes = []
    values = json.loads((KEPT / f"{name}-imaml-{trial}-test.json").read_text())["values"]
    order = np.argsort(values if not domain.higher_is_better else -np.array(values))
    places = order[[len(order) // 4, len(order) // 2, 3 * len(order) // 4]]
    for key in task_keys(0, 0, len(values))[places]:
        task = sample(key)
        phi, _ = jax.jit(method.adapt)(theta, task.support, key)
        scenes.append(domain.scenes(method.start(theta), phi, task)[0])
    wide = max(len(scene.images) or 1 for scene in scenes)
    size = (1.7 * wide, 2.1 * TASKS) if scenes[0].images else (6, 2.4 * TASKS)
    with figure(FIGURES / f"{name}.png", TASKS, wide, figsize=size) as (drawn, panels):
        for row, scene in zip(panels, scenes, strict=True):
            for panel, (title, image) in zip(row, scene.images.items(), strict=False):
                panel.imshow(1 - np.asarray(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                panel.set_title(title, fontsize=8)
                panel.set(xticks=[], yticks=[])
            for part, (x, y) in scene.lines.items():
                row[0].plot(x, y, STYLES.get(part, "."), ms=4, label=part)
            if scene.lines:
                row[0].set_xlabel(scene.x_name, fontsize=8)
                row[0].legend(fontsize=7)
                row[0].set_title(scene.note, fontsize=8)
            else:
                row[0].set_ylabel("\n".join(textwrap.wrap(scene.note, 26)), fontsize=7)
        if scenes[0].lines:
            drawn.suptitle(scenes[0].title, fontsize=9)


@benchmark("pictures", result=None, positional=("presets",))
def main(run, presets=()):
    """Draws the presets given, by default all that there are."""
    rows = {row["preset"]: row["rows"] for row in Result.read("any_inner.json").rows}
    for name in presets or rows:
        (row,) = (row for row in rows[name] if row["method"] == "imaml")
        draw(name, row["trial"])
