"""A comparison as a table, in the terminal and in Markdown, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ..core.errors import DataError
from ..core.recipes import JsonObject
from ..storage.atomic import disk_errors, write_whole
from .charts import Line, figure, intervals
from .page import render, render_text


def _score(name: str, entry: JsonObject | None, signed: bool = False) -> str:
    """Return a mean with its interval; accuracies and calibration errors in per cent."""
    if not entry or entry.get("mean") is None:
        return "–"
    percent = "accuracy" in name or "calibration" in name
    scale, digits = (100.0, 2) if percent else (1.0, 4)
    sign = "+" if signed else ""
    return f"{scale * entry['mean']:{sign}.{digits}f} ± {scale * entry['ci95']:.{digits}f}"


def _known_mean(values: Iterable[float | None], form: str, scale: float = 1.0) -> str:
    """Return the mean over seeds of what is known."""
    known = [value for value in values if value is not None]
    return f"{scale * np.mean(known):{form}}" if known else "–"


def _cells(summary: JsonObject, row: JsonObject) -> Iterator[tuple[str, str]]:
    """Yield the head and the text of each cell of a method's row."""
    name, against, runs = summary["headline"], summary["reference"], row["runs"]
    inductive, unit = f"{name}_inductive", " %" if "accuracy" in name else ""

    def score(kind: str, score: str = name, signed: bool = False) -> str:
        return _score(score, (row.get(kind) or {}).get(score), signed)

    def difference(kind: str) -> str:
        return "" if row["method"] == against else score(kind, signed=True)

    kinds = [kind for kind in ("equal_time", "equal_tasks") if _failed(summary["rows"], kind)]

    yield "method", row["method"]
    yield "tasks seen", f"{np.mean([run['tasks_seen'] for run in runs]):,.0f}"
    yield "tested step", ", ".join(f"{run['step']:,} of {run['steps']:,}" for run in runs)
    yield name + unit, score("equal_time")
    if any(inductive in each["equal_time"] for each in summary["rows"]):
        yield f"inductive{unit}", score("equal_time", inductive)
        yield "log loss", score("equal_time", "loss")
        errors = (run["scores"].get("calibration_error") for run in runs)
        yield "calibration error %", _known_mean(errors, ".2f", 100)
    yield f"minus {against}", difference("difference_at_equal_time")
    yield f"{name}{unit} at equal tasks", score("equal_tasks")
    yield f"minus {against}", difference("difference_at_equal_tasks")
    for kind in kinds:
        count = len(row.get(f"failed_at_{kind}", ())) * summary["test_tasks"]
        share = f"{_failed([row], kind):,} of {count:,}" if count else "–"
        yield f"failed tasks at {kind.replace('_', ' ')}", share
    yield "adapts in ms", _known_mean((run["adaptation_ms"] for run in runs), ".0f")


def _failed(rows: Iterable[JsonObject], kind: str) -> int:
    """Return how many test tasks of some methods failed numerically, over all seeds."""
    return sum(sum(row.get(f"failed_at_{kind}", ())) for row in rows)


def cells(summary: JsonObject) -> tuple[list[str], list[list[str]]]:
    """Format a comparison as a table.

    Args:
        summary: What `compare` returns.

    Returns:
        The head of the table, and a row of texts for each method.
    """
    rows = [list(_cells(summary, row)) for row in summary["rows"]]
    return [head for head, _ in rows[0]], [[cell for _, cell in row] for row in rows]


def _explanation(summary: JsonObject) -> str:
    """Return what the columns mean, in a few sentences."""
    failed = any(_failed(summary["rows"], kind) for kind in ("equal_time", "equal_tasks"))
    return " ".join(render_text("explanation.txt", **summary, failed=failed).split())


def markdown(summary: JsonObject) -> str:
    """Format a comparison as a Markdown table.

    Args:
        summary: What `compare` returns.

    Returns:
        The table, and a paragraph that explains it.
    """
    head, lines = cells(summary)
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table) + f"\n\n{_explanation(summary)}\n"


def text(summary: JsonObject) -> str:
    """Format a comparison as a table for a terminal.

    Args:
        summary: What `compare` returns.

    Returns:
        The table, and a paragraph that explains it.
    """
    head, lines = cells(summary)
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rows = []
    for first, *others in (head, *lines):
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        rows.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
    return "\n".join([*rows, _explanation(summary)])


def write_comparison(summary: JsonObject, folder: Path) -> Path:
    """Write a comparison as an HTML page and as a Markdown table.

    Args:
        summary: What `compare` returns.
        folder: Where ``comparison.html`` and ``comparison.md`` are written.

    Returns:
        The path of the page.

    Raises:
        DataError: If the folder cannot be written.
    """
    name, folder = summary["headline"], Path(folder)
    head, rows = cells(summary)
    charts = {
        "tasks": (f"{name} by tasks seen", "tasks seen"),
        "seconds": (f"{name} by training time", "seconds"),
        "steps": (f"{name} after more inner steps on a new task", "inner steps"),
    }
    page = render(
        "comparison.html",
        title="Methods compared",
        about=_explanation(summary),
        head=head,
        rows=rows,
        methods=[(row["method"], row["about"]) for row in summary["rows"]],
        differences=_differences(summary),
        charts=[_charts(summary, axis, *words) for axis, words in charts.items()],
    )
    with disk_errors(folder, DataError):
        write_whole(folder / "comparison.html", page)
        write_whole(folder / "comparison.md", markdown(summary))
    return folder / "comparison.html"


def _differences(summary: JsonObject) -> Markup:
    """Return the paired differences from the reference, at equal time and at equal tasks, as a chart."""
    name, against = summary["headline"], summary["reference"]
    if "accuracy" not in name:
        return Markup("")
    kinds, rows = {"a": "difference_at_equal_time", "b": "difference_at_equal_tasks"}, []
    for row in summary["rows"]:
        found = {style: (row.get(kind) or {}).get(name) for style, kind in kinds.items()}
        given = {style: (100 * one["mean"], 100 * one["ci95"]) for style, one in found.items() if one}
        rows += [(row["method"], given)] if row["method"] != against else []
    key = {"a": "at equal time", "b": "at equal tasks"}
    return intervals(f"{name} minus that of {against}".capitalize(), rows, key)


def _charts(summary: JsonObject, axis: str, title: str, x_name: str) -> JsonObject:
    """Return a small chart for each method beside the reference."""
    name, against = summary["headline"], summary["reference"]
    lines = {row["method"]: _curve(row, axis, name) for row in summary["rows"]}
    kind, figures = "percent" if "accuracy" in name else "log", []
    for method, line in lines.items():
        if line.y.size:
            beside = [replace(lines[against], style="d")] if method != against else []
            figures.append(figure(method, "", [line, *beside], x_name, kind))
    note = "On validation tasks."
    if axis == "steps":
        note = "On test tasks. A number of steps after which a task's score is not finite is excluded."
    return {"title": title.capitalize(), "note": note, "figures": [one for one in figures if one]}


def _curve(row: JsonObject, axis: str, name: str) -> Line:
    """Return the curve of a method's first run; it may be empty."""
    run = row["runs"][0]
    if axis == "steps":
        swept = run.get("inner_steps") or {}
        x, y = swept.get("steps", ()), swept.get(name, ())
    else:
        x, y = ([point.get(key) for point in run["curve"]] for key in (axis, name))
    return Line(row["method"], np.array(x, float), np.array(y, float), "a")  # None becomes nan
