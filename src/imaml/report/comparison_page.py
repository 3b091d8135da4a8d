"""A comparison as a table, in the terminal and in Markdown, and as one self-contained HTML page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from .charts import Interval, Line, figure, intervals
from .run_page import POLICY, STYLE


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
    """The table's head, and a row of texts for each method."""
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


def _said(summary: Mapping[str, Any]) -> str:
    """What the figures are, in a sentence or two."""
    return (
        f"{summary['minutes']:g} minutes of training each (without compiling and validations), "
        f"{summary['seeds']} seed{'s' if summary['seeds'] > 1 else ''}, {summary['test_tasks']:,} test "
        f"tasks, the same for all; equal tasks: {_equal(summary)}. Of each run's checkpoints, the one best "
        "on validation tasks. ± is the half-width of the 95 % interval over tasks; differences are paired."
        + "".join(_failed(row) + _trade_off(row) for row in summary["rows"])
    )


def _equal(summary: Mapping[str, Any]) -> str:
    """After how many tasks methods are compared at equal tasks."""
    if summary["equal_tasks"]:
        return f"{summary['equal_tasks']:,} seen"
    return "none, as a method did not come to its first checkpoint; give a larger budget"


def _failed(row: Mapping[str, Any]) -> str:
    """That a method's run failed, and when, in a sentence, or nothing."""
    ends = [run["steps"] for run in row["runs"] if run.get("failure")]
    if not ends:
        return ""
    after = " and ".join(f"{steps:,}" for steps in ends)
    return f" {row['method']} failed numerically after {after} steps; tested is what it had learned before."


def _trade_off(row: Mapping[str, Any]) -> str:
    """How evenly joint learning serves the groups of training classes, in a sentence, or nothing."""
    groups = row["runs"][0].get("groups")
    if not groups:
        return ""
    least, lower, middle, upper, most = (100 * share for share in groups["least_quartiles_most"])
    return (
        f" {row['method']} tells the classes within a training group apart in {middle:.1f} % of the drawings "
        f"(median over {len(groups['accuracy'])} groups; half of them between {lower:.1f} and {upper:.1f} %, "
        f"least {least:.1f}, most {most:.1f} %)."
    )


def markdown(summary: Mapping[str, Any]) -> str:
    """The table in Markdown, and what its figures are."""
    head, lines = cells(summary)
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in table) + f"\n\n{_said(summary)}\n"


def text(summary: Mapping[str, Any]) -> str:
    """The table for a terminal."""
    head, lines = cells(summary)
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    rows = []
    for line in (head, *lines):
        padded = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        rows.append("  ".join([line[0].ljust(widths[0]), *padded[1:]]).rstrip())
    return "\n".join([*rows, _said(summary)])


def write_comparison(summary: Mapping[str, Any], folder: Path) -> Path:
    """The path of the page, `folder`/comparison.html; comparison.md is written beside it."""
    name = summary["headline"]
    head, lines = cells(summary)
    title = "Methods compared"
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    about = "".join(
        f"<li><b>{escape(row['method'])}</b>: {escape(row['about'])}</li>" for row in summary["rows"]
    )
    parts = [
        f'<p class="eyebrow">imaml</p><h1>{title}</h1><p class="lead">{escape(_said(summary))}</p>',
        f'<div class="scroll card" style="max-height:none" tabindex="0">{table}</div>',
        f"<details><summary>What each method is</summary><ul>{about}</ul></details>",
        _differences(summary),
        _charts(summary, "tasks", f"{name} by tasks seen", "tasks seen"),
        _charts(summary, "seconds", f"{name} by training time", "seconds"),
        _charts(summary, "steps", f"{name} after more inner steps on a new task", "inner steps"),
    ]
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title><style>{STYLE}td:first-child,th:first-child{{text-align:left}}</style></head>
<body><main>{"".join(parts)}</main></body></html>
"""
    try:
        for file, content in (("comparison.html", page), ("comparison.md", markdown(summary))):
            (folder / f"{file}.part").write_text(content, encoding="utf-8")
            os.replace(folder / f"{file}.part", folder / file)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}); make it writable.") from error
    return folder / "comparison.html"


def _differences(summary: Mapping[str, Any]) -> str:
    """The paired differences from the reference, at equal time and at equal tasks, as a chart."""
    name, against = summary["headline"], summary["reference"]
    if "accuracy" not in name:
        return ""
    rows = []
    for row in summary["rows"]:
        kinds = (("a", "difference_at_equal_time"), ("b", "difference_at_equal_tasks"))
        found = [((row.get(kind) or {}).get(name), style) for style, kind in kinds]
        given = [Interval(one["mean"], one["ci95"], style) for one, style in found if one]
        rows += [(row["method"], given)] if row["method"] != against else []
    key = {"a": "at equal time", "b": "at equal tasks"}
    drawn = intervals(f"{name[:1].upper() + name[1:]} minus that of {against}", rows, key)
    return f"<h2>Paired differences</h2>{drawn}" if drawn else ""


def _charts(summary: Mapping[str, Any], axis: str, title: str, x_name: str) -> str:
    """A small chart for each method beside the reference."""
    name, against = summary["headline"], summary["reference"]
    curves = {row["method"]: _curve(row["runs"][0], axis, name) for row in summary["rows"]}
    kind = "percent" if "accuracy" in name else "log"
    figures = []
    for row in summary["rows"]:
        own = curves[row["method"]]
        lines = [Line(row["method"], *own, "a")] if own else []
        other = curves[against]
        if other and row["method"] != against:
            lines.append(Line(against, *other, "d"))
        figures.append(figure(row["method"], "", lines, x_name, kind) if own else "")
    drawn = "".join(figures)
    if not drawn:
        return ""
    note = "On test tasks." if axis == "steps" else "On validation tasks."
    title = title[:1].upper() + title[1:]
    return f'<h2>{escape(title)}</h2><p class="soft">{note}</p><div class="grid small">{drawn}</div>'


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
