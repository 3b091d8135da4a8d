"""A comparison as a table, in the terminal and in Markdown, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from ..core.errors import DataError
from ..core.recipes import JsonObject
from ..storage.atomic import disk_errors, write_whole
from .charts import Interval, Line, figure, intervals
from .page import render

Column = Callable[[JsonObject], str]  # row -> cell


def _score(name: str, entry: JsonObject | None, signed: bool = False) -> str:
    """Return a mean with its interval; accuracies and calibration errors in per cent."""
    if not entry or entry.get("mean") is None:
        return "–"
    percent = "accuracy" in name or "calibration" in name
    scale, digits = (100.0, 2) if percent else (1.0, 4)
    sign = "+" if signed else ""
    return f"{scale * entry['mean']:{sign}.{digits}f} ± {scale * entry['ci95']:.{digits}f}"


def _known_mean(values: Sequence[float | None], form: str) -> str:
    """Return the mean over seeds of what is known."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):{form}}" if known else "–"


def _calibration(row: JsonObject) -> str:
    """Return the calibration error, in per cent, averaged over seeds."""
    found = [run["scores"].get("calibration_error") for run in row["runs"]]
    return _known_mean([None if value is None else 100 * value for value in found], ".2f")


def cells(summary: JsonObject) -> tuple[list[str], list[list[str]]]:
    """Format a comparison as a table.

    Args:
        summary: What `compare` returns.

    Returns:
        The head of the table, and a row of texts for each method.
    """
    name, against = summary["headline"], summary["reference"]
    inductive, unit = f"{name}_inductive", " %" if "accuracy" in name else ""

    def mean(kind: str, score: str = name) -> Column:
        return lambda row: _score(score, (row.get(kind) or {}).get(score))

    def difference(kind: str) -> Column:
        own = lambda row: _score(name, (row.get(kind) or {}).get(name), signed=True)  # noqa: E731
        return lambda row: "" if row["method"] == against else own(row)

    columns: list[tuple[str, Column]] = [
        ("method", lambda row: row["method"]),
        ("tasks seen", lambda row: f"{np.mean([run['tasks_seen'] for run in row['runs']]):,.0f}"),
        ("tested step", lambda row: ", ".join(f"{r['step']:,} of {r['steps']:,}" for r in row["runs"])),
        (name + unit, mean("equal_time")),
    ]
    if any(inductive in row["equal_time"] for row in summary["rows"]):
        columns += [
            (f"inductive{unit}", mean("equal_time", inductive)),
            ("log loss", mean("equal_time", "loss")),
            ("calibration error %", _calibration),
        ]
    columns += [
        (f"minus {against}", difference("difference_at_equal_time")),
        (f"{name}{unit} at equal tasks", mean("equal_tasks")),
        (f"minus {against}", difference("difference_at_equal_tasks")),
        ("adapts in ms", lambda row: _known_mean([run["adaptation_ms"] for run in row["runs"]], ".0f")),
    ]
    return [head for head, _ in columns], [[cell(row) for _, cell in columns] for row in summary["rows"]]


def _explanation(summary: JsonObject) -> str:
    """Return what the columns mean, in a few sentences."""
    return (
        f"Each method trained for {summary['minutes']:g} minutes (without compiling and validations), with "
        f"{summary['seeds']} seed{'s' if summary['seeds'] > 1 else ''}. All are tested on the same "
        f"{summary['test_tasks']:,} tasks, each run at its checkpoint with the best validation score. "
        f"Equal tasks: {_equal(summary)}. ± is the half-width of the 95 % confidence interval over tasks; "
        "differences are paired task by task."
        + "".join(_failed(row) + _trade_off(row) for row in summary["rows"])
    )


def _equal(summary: JsonObject) -> str:
    """Return after how many tasks methods are compared at equal tasks."""
    if summary["equal_tasks"]:
        return f"{summary['equal_tasks']:,} seen in training"
    return "none, as a method did not reach its first checkpoint (give a larger budget)"


def _failed(row: JsonObject) -> str:
    """Return that a method's run failed, and when, in a sentence, or nothing."""
    ends = [run["steps"] for run in row["runs"] if run.get("failure")]
    if not ends:
        return ""
    after = " and ".join(f"{steps:,}" for steps in ends)
    return f" {row['method']} failed numerically after {after} steps and is tested as it was before."


def _trade_off(row: JsonObject) -> str:
    """Return how evenly joint learning serves the groups of training classes, in a sentence, or nothing."""
    groups = row["runs"][0].get("groups")
    if not groups:
        return ""
    least, lower, middle, upper, most = (100 * share for share in groups["least_quartiles_most"])
    return (
        f" {row['method']} classifies {middle:.1f} % of the images within a training group correctly (median "
        f"over {len(groups['accuracy'])} groups; quartiles {lower:.1f} and {upper:.1f} %, "
        f"minimum {least:.1f}, maximum {most:.1f} %)."
    )


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
    rows = []
    for row in summary["rows"]:
        kinds = (("a", "difference_at_equal_time"), ("b", "difference_at_equal_tasks"))
        found = [((row.get(kind) or {}).get(name), style) for style, kind in kinds]
        given = [Interval(one["mean"], one["ci95"], style) for one, style in found if one]
        rows += [(row["method"], given)] if row["method"] != against else []
    key = {"a": "at equal time", "b": "at equal tasks"}
    return intervals(f"{_capital(name)} minus that of {against}", rows, key)


def _charts(summary: JsonObject, axis: str, title: str, x_name: str) -> JsonObject:
    """Return a small chart for each method beside the reference."""
    name, against = summary["headline"], summary["reference"]
    curves = {row["method"]: _curve(row["runs"][0], axis, name) for row in summary["rows"]}
    drawn = {method: Line(method, *curve, "a") for method, curve in curves.items() if curve}
    kind, figures = "percent" if "accuracy" in name else "log", []
    for method, line in drawn.items():
        beside = [replace(drawn[against], style="d")] if against in drawn and method != against else []
        figures.append(figure(method, "", [line, *beside], x_name, kind))
    note = "On test tasks." if axis == "steps" else "On validation tasks."
    return {"title": _capital(title), "note": note, "figures": [one for one in figures if one]}


def _capital(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _curve(run: JsonObject, axis: str, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the x and y of a run's curve, or None."""
    if axis == "steps":
        swept = run.get("inner_steps") or {}
        x, y = swept.get("steps", ()), swept.get(name, ())
    else:
        x, y = ([point.get(key) for point in run["curve"]] for key in (axis, name))
    if not len(x):
        return None
    return np.asarray(x, float), np.asarray([np.nan if v is None else v for v in y], float)
