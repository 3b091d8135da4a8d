"""A comparison as a table, in the terminal and in Markdown, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..core.errors import DataError
from ..storage.atomic import disk_errors, write_whole
from .charts import Interval, Line, figure, intervals
from .page import render


def _score(name: str, entry: Mapping[str, Any] | None, signed: bool = False) -> str:
    """A mean with its interval; accuracies and calibration errors in per cent."""
    if not entry or entry.get("mean") is None:
        return "–"
    percent = "accuracy" in name or "calibration" in name
    scale, digits = (100.0, 2) if percent else (1.0, 4)
    sign = "+" if signed else ""
    return f"{scale * entry['mean']:{sign}.{digits}f} ± {scale * entry['ci95']:.{digits}f}"


def _calibration(row: Mapping[str, Any]) -> str:
    """The calibration error, in per cent, averaged over seeds."""
    found = [run["scores"].get("calibration_error") for run in row["runs"]]
    known = [value for value in found if value is not None]
    return f"{100 * np.mean(known):.2f}" if known else "–"


def cells(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Formats a comparison as a table.

    Args:
        summary: What `compare` returns.

    Returns:
        The head of the table, and a row of texts for each method.
    """
    name = summary["headline"]
    inductive, against = f"{name}_inductive", summary["reference"]
    both = any(inductive in row["equal_time"] for row in summary["rows"])
    unit = " %" if "accuracy" in name else ""
    head = ["method", "tasks seen", "tested step", name + unit]
    head += [f"inductive{unit}", "log loss", "calibration error %"] if both else []
    head += [f"minus {against}", f"{name}{unit} at equal tasks", f"minus {against}", "adapts in ms"]
    lines = []
    for row in summary["rows"]:
        seen = np.mean([run["tasks_seen"] for run in row["runs"]])
        spent = [run["adaptation_ms"] for run in row["runs"] if run["adaptation_ms"] is not None]
        time, tasks = row["equal_time"], row.get("equal_tasks") or {}
        tested = ", ".join(f"{run['step']:,} of {run['steps']:,}" for run in row["runs"])
        line = [row["method"], f"{seen:,.0f}", tested, _score(name, time.get(name))]
        if both:
            line += [_score(inductive, time.get(inductive)), _score("loss", time.get("loss"))]
            line += [_calibration(row)]
        own = row["method"] == against
        line += ["" if own else _score(name, row["difference_at_equal_time"].get(name), True)]
        line += [_score(name, tasks.get(name))]
        line += ["" if own else _score(name, (row.get("difference_at_equal_tasks") or {}).get(name), True)]
        line += [f"{np.mean(spent):.0f}" if spent else "–"]
        lines.append(line)
    return head, lines


def _explanation(summary: Mapping[str, Any]) -> str:
    """What the columns mean, in a few sentences."""
    return (
        f"Each method trained for {summary['minutes']:g} minutes (without compiling and validations), with "
        f"{summary['seeds']} seed{'s' if summary['seeds'] > 1 else ''}. All are tested on the same "
        f"{summary['test_tasks']:,} tasks, each run at its checkpoint with the best validation score. "
        f"Equal tasks: {_equal(summary)}. ± is the half-width of the 95 % confidence interval over tasks; "
        "differences are paired task by task."
        + "".join(_failed(row) + _trade_off(row) for row in summary["rows"])
    )


def _equal(summary: Mapping[str, Any]) -> str:
    """After how many tasks methods are compared at equal tasks."""
    if summary["equal_tasks"]:
        return f"{summary['equal_tasks']:,} seen in training"
    return "none, as a method did not reach its first checkpoint (give a larger budget)"


def _failed(row: Mapping[str, Any]) -> str:
    """That a method's run failed, and when, in a sentence, or nothing."""
    ends = [run["steps"] for run in row["runs"] if run.get("failure")]
    if not ends:
        return ""
    after = " and ".join(f"{steps:,}" for steps in ends)
    return f" {row['method']} failed numerically after {after} steps and is tested as it was before."


def _trade_off(row: Mapping[str, Any]) -> str:
    """How evenly joint learning serves the groups of training classes, in a sentence, or nothing."""
    groups = row["runs"][0].get("groups")
    if not groups:
        return ""
    least, lower, middle, upper, most = (100 * share for share in groups["least_quartiles_most"])
    return (
        f" {row['method']} classifies {middle:.1f} % of the images within a training group correctly (median "
        f"over {len(groups['accuracy'])} groups; quartiles {lower:.1f} and {upper:.1f} %, "
        f"minimum {least:.1f}, maximum {most:.1f} %)."
    )


def markdown(summary: Mapping[str, Any]) -> str:
    """Formats a comparison as a Markdown table.

    Args:
        summary: What `compare` returns.

    Returns:
        The table, and a paragraph that explains it.
    """
    head, lines = cells(summary)
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table) + f"\n\n{_explanation(summary)}\n"


def text(summary: Mapping[str, Any]) -> str:
    """Formats a comparison as a table for a terminal.

    Args:
        summary: What `compare` returns.

    Returns:
        The table, and a paragraph that explains it.
    """
    head, lines = cells(summary)
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    rows = []
    for line in (head, *lines):
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        rows.append("  ".join([line[0].ljust(widths[0]), *padded[1:]]).rstrip())
    return "\n".join([*rows, _explanation(summary)])


def write_comparison(summary: Mapping[str, Any], folder: Path) -> Path:
    """Writes a comparison as an HTML page and as a Markdown table.

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
    with disk_errors(f"{folder} cannot be written", DataError):
        write_whole(folder / "comparison.html", page)
        write_whole(folder / "comparison.md", markdown(summary))
    return folder / "comparison.html"


def _differences(summary: Mapping[str, Any]) -> Markup:
    """The paired differences from the reference, at equal time and at equal tasks, as a chart."""
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


def _charts(summary: Mapping[str, Any], axis: str, title: str, x_name: str) -> dict[str, Any]:
    """A small chart for each method beside the reference."""
    name, against = summary["headline"], summary["reference"]
    curves = {row["method"]: _curve(row["runs"][0], axis, name) for row in summary["rows"]}
    kind = "percent" if "accuracy" in name else "log"
    figures = []
    for method, own in curves.items():
        lines = [Line(method, *own, "a")] if own else []
        other = curves[against]
        if other and method != against:
            lines.append(Line(against, *other, "d"))
        figures.append(figure(method, "", lines, x_name, kind) if own else "")
    note = "On test tasks." if axis == "steps" else "On validation tasks."
    return {"title": _capital(title), "note": note, "figures": [drawn for drawn in figures if drawn]}


def _capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _curve(run: Mapping[str, Any], axis: str, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The x and y of a run's curve, or None."""
    if axis == "steps":
        swept = run.get("inner_steps") or {}
        x, y = swept.get("steps", ()), swept.get(name, ())
    else:
        x, y = ([point.get(key) for point in run["curve"]] for key in (axis, name))
    if not len(x):
        return None
    return np.asarray(x, float), np.asarray([np.nan if v is None else v for v in y], float)
