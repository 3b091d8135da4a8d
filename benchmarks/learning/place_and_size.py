"""How much place, size and shape of a drawing vary within and between the characters of Omniglot.

    python -m benchmarks run place_and_size --data PATH

A quantity that varies more within a character than between characters tells little about which one it is.
Drawings of Vinyals' training characters only, 28 pixels a side.
"""

import numpy as np

from benchmarks.harness import benchmark
from imaml.domains.fewshot import omniglot


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
