"""The plot of benchmarks/results/peers.json: a panel a work, a bar a peer, as times imaml's."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]


def draw(rows, path):
    """Writes the figure; works on all cores, one panel each."""
    matplotlib.rcParams.update({"svg.hashsalt": "imaml", "font.size": 8})
    most = max(row["threads"] for row in rows)
    timed = [row for row in rows if row["threads"] == most and row["ms_median"] is not None]
    works = list(dict.fromkeys(row["work"] for row in timed))
    columns = 2
    lines = -(-len(works) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(10, 2.6 * lines), layout="constrained", squeeze=False
    )
    for panel in panels.flat[len(works) :]:
        panel.remove()
    for panel, work in zip(panels.flat, works, strict=False):
        bars = sorted((row for row in timed if row["work"] == work), key=lambda row: row["ms_median"])
        names = [row["peer"] for row in bars]
        ratios = [row["times_imaml"] for row in bars]
        colours = ["tab:blue" if name == "imaml" else "tab:grey" for name in names]
        panel.barh(names, ratios, color=colours, left=0)
        for place, (row, ratio) in enumerate(zip(bars, ratios, strict=True)):
            panel.text(
                ratio * 1.05,
                place,
                f"{row['ms_median']:{',.0f' if row['ms_median'] > 1000 else '.3g'}} ms",
                va="center",
                fontsize=7,
            )
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(xscale="log", title=bars[0]["title"], xlabel="time, in imaml's")
        panel.set_xlim(min(ratios) / 1.5, max(ratios) * 4)
        panel.invert_yaxis()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main():
    """Draws the committed results."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())["rows"]
    draw(rows, ROOT / "docs" / "figures" / "peers.svg")


if __name__ == "__main__":
    main()
