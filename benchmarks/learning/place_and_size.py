"""How much place, size and shape of a drawing vary within and between the characters of Omniglot.

    python -m benchmarks run place_and_size --data PATH

A quantity that varies more within a character than between characters tells little about which one it is.
Drawings of Vinyals' training characters only, 28 pixels a side. It also draws docs/figures/aligned.png: some
drawings, as they are and aligned.
"""

import jax.numpy as jnp
import numpy as np

from benchmarks.harness import benchmark, figure
from imaml.domains.fewshot import omniglot
from imaml.domains.resampling import aligned

CHARACTERS, DRAWERS = 6, 4  # in the picture
GREY = "#767676"  # readable on white and on black


def quantities(images):
    """Returns the mean position of the ink, and the logarithms of its spread and of its aspect ratio.

    Positions are in half sides. The spread is the root mean square distance from the mean along an axis.
    """
    side = images.shape[1]
    line = (np.arange(side) - (side - 1) / 2) / (side / 2)
    ink = images.astype(np.float64).sum(3)
    rows, columns = ink.sum(2), ink.sum(1)
    mass = rows.sum(1)
    down, across = rows @ line / mass, columns @ line / mass
    tall, wide = rows @ line**2 / mass - down**2, columns @ line**2 / mass - across**2
    return {
        "down": down,
        "across": across,
        "log spread": np.log((tall + wide) / 2) / 2,
        "log aspect ratio": np.log(tall / wide) / 2,
    }


@benchmark("place_and_size", quick={"classes": 5})
def main(run, data, classes=None):
    """Standard deviations of drawings within a character, and of the characters' means."""
    table = omniglot.read(data)
    chosen = table.splits["train"][:classes]
    rows = table.first[chosen][:, None] + np.arange(table.count[chosen].min())
    for name, values in quantities(table.pixels[rows.ravel()]).items():
        values = values.reshape(rows.shape)
        within = np.sqrt(values.var(axis=1, ddof=1).mean())
        run.add({"quantity": name, "within": within, "between": values.mean(1).std(ddof=1)})
    draw(run.place("aligned.png"), table.pixels[rows[:: max(len(rows) // CHARACTERS, 1)][:CHARACTERS]])


def draw(place, pixels):
    """Draws a row for each of some drawers: the characters as they are, and aligned."""
    shown = 1 - jnp.asarray(pixels[:, :DRAWERS], jnp.float32) / 255
    seen = 1 - aligned((1 - shown).reshape(-1, *shown.shape[2:])).reshape(shown.shape)
    sides = {"as drawn": shown, "as the network sees them": seen}
    how = {"figsize": (12, 3.4), "gridspec_kw": {"width_ratios": ([1] * len(shown) + [0.4]) * 2}}
    with figure(place, DRAWERS, 2 * len(shown) + 2, **how) as (_, panels):
        for panel in panels.flat:
            panel.axis("off")
        for side, (title, images) in enumerate(sides.items()):
            first = side * (len(shown) + 1)
            panels[0, first].set_title(title, fontsize=8, color=GREY, loc="left")
            for character, drawings in enumerate(images):
                for drawer, drawing in enumerate(drawings):
                    panels[drawer, first + character].imshow(drawing[..., 0], cmap="gray", vmin=0, vmax=1)
