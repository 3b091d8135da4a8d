"""SVG charts for the report pages: lines, bands, points, columns and confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from .page import render

ROWS = 400  # of a table, and half the points of a line; longer ones are thinned evenly
DOTTED = ("b", "point")  # styles with a dot at each point
UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


def number(value: float) -> str:
    """Format a number for reading.

    Args:
        value: Any number.

    Returns:
        Whole numbers with thousands separators, others with four digits, a dash for NaN and infinity.
    """
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: What the legend calls it. A chart has no legend where its first line's name is empty.
        x: Positions, shape ``(n,)``.
        y: Values, shape ``(n,)``. Values that are not finite leave gaps.
        style: ``"a"`` solid, ``"b"`` dashed with dots, ``"c"`` dotted, ``"d"`` dashed, ``"point"`` or
            ``"column"``.
        half: Half-widths of confidence intervals, drawn as a band, shape ``(n,)``.
        smooth: Whether to draw a moving average over a thin line.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str
    half: np.ndarray | None = None
    smooth: bool = False


class _Axis:
    """Maps values to positions in a drawing."""

    def __init__(self, values: np.ndarray, start: float, stop: float, log: bool, pad: float) -> None:
        low, high = np.log10([values.min(), values.max()]) if log else (values.min(), values.max())
        pad = pad * (high - low) if high > low else 0.5 * abs(high) or 0.5
        self.low, self.high, self.start, self.stop, self.log = low - pad, high + pad, start, stop, log

    def __call__(self, value: np.ndarray | float) -> np.ndarray:
        share = ((np.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + np.clip(share, 0, 1) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Return round values on the axis: two to seven."""
        if not self.log:
            return _round_values(self.low, self.high)
        factors = (1,) if self.high - self.low > 2 else (1, 2, 5)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [t for n in decades for f in factors if self.low <= math.log10(t := f * 10.0**n) <= self.high]
        return found[:: math.ceil(len(found) / 7)]


def _round_values(low: float, high: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten between two values, at most seven."""
    least = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def figure(title: str, note: str, lines: Sequence[Line], x_name: str, kind: str = "") -> Markup:
    """Draw lines over a common axis.

    Args:
        title: What the chart shows.
        note: A remark below the title.
        lines: The lines; those without a finite value are not drawn.
        x_name: What the horizontal axis is. ``"seconds"`` becomes hours or minutes where that reads better.
        kind: ``"percent"`` for shares, ``"log"`` for a logarithmic axis where values span a factor of
            eight, or ``""``.

    Returns:
        A ``<figure>`` element, empty where no line has a finite value.
    """
    lines = [line for line in lines if np.isfinite(line.x + line.y).any()]
    if not lines:
        return Markup("")
    x, y = (np.concatenate([getattr(line, axis) for line in lines]) for axis in "xy")
    for line in lines:
        if line.half is not None:
            y = np.concatenate([y, line.y - line.half, line.y + line.half])
    x, y, percent = x[np.isfinite(x)], y[np.isfinite(y)], kind == "percent"
    y = np.append(y, 0) if lines[0].style == "column" else np.clip(y, 0, 1) if percent else y
    log, scale, label = kind == "log" and y.min() > 0 and y.max() > 8 * y.min(), 1.0, x_name
    if x_name == "seconds":
        scale, unit = next((unit for unit in UNITS if x.max() > 3 * unit[0]), UNITS[-1])
        label = f"{unit} of training"
    margin = max(0.03, 0.6 / x.size if lines[0].style == "column" else 0.0)
    xs, ys = _Axis(x / scale, 56, 444, False, margin), _Axis(y, 212, 8, bool(log), 0.05)
    form = "{:.4g} %" if percent else "{:,.6g}"
    described = []
    for line in lines:
        v = line.y[np.isfinite(line.y)]
        first, last, least, most = (number(value) for value in (v[0], v[-1], v.min(), v.max()))
        described.append(f"{line.name} first {first}, last {last}, lowest {least}, highest {most}")
    return render(
        "lines.html",
        title=title,
        note=f"{note}, logarithmic" if log and note else note,
        legend=[(line.name, line.style, line.style in DOTTED) for line in lines if lines[0].name],
        alt=f"{title} over {label}: {'; '.join(described)}",
        label=label,
        up=[(ys(tick), form.format(100 * tick if percent else tick)) for tick in ys.ticks()],
        across=[(xs(tick), f"{tick:,.6g}") for tick in xs.ticks()],
        drawn=[_drawn(line, xs, ys, scale) for line in lines],
    )


def intervals(
    title: str, rows: Sequence[tuple[str, Mapping[str, tuple[float, float]]]], key: Mapping[str, str]
) -> Markup:
    """Draw confidence intervals about zero, in percentage points.

    Args:
        title: What the chart shows.
        rows: The name of each row, and its intervals by style: the mean and the half-width.
        key: What each style means.

    Returns:
        A ``<figure>`` element, empty where there is no interval.
    """
    found = [interval for _, given in rows for interval in given.values()]
    ends = np.array([0.0, *(mean + sign * half for mean, half in found for sign in (-1, 1))])
    xs = _Axis(ends, 170, 690, False, 0.03)
    legend = [(meaning, style, True) for style, meaning in key.items()]
    values = {"title": title, "note": "", "rows": rows, "key": key, "legend": legend, "xs": xs}
    return render("intervals.html", **values) if found else Markup("")


def _drawn(line: Line, xs: _Axis, ys: _Axis, scale: float) -> dict[str, object]:
    """Return what is drawn of one line: SVG paths, each with its style, and the places of dots."""
    keep = np.isfinite(line.x)
    x, y = xs(line.x[keep] / scale), line.y[keep]
    good, height, window, paths = np.isfinite(y), ys(y), x.size // 20, []
    if line.style == "column":
        columns = "".join(
            f"M{a:.1f} {ys(0):.1f}V{b:.1f}" for a, b in zip(x[y > 0], height[y > 0], strict=True)
        )
        width = max(0.8 * (xs.stop - xs.start) / x.size, 2.0)
        return {"style": "column", "paths": [("column", columns)], "width": width, "dots": []}
    if line.half is not None:
        half, there = line.half[keep][good], x[good]
        half = np.where(np.isfinite(half), half, 0)
        low, high = (ys(y[good] + sign * half) for sign in (-1, 1))  # above zero where the axis is log
        outline = _path(np.append(there, there[::-1]), np.append(low, high[::-1]))
        paths.append(("band", f"{outline}Z"))
    dotted = line.style in DOTTED or good.sum() == 1
    dots = list(zip(x[good], height[good], strict=True)) if dotted else []
    if line.smooth and window > 1:
        paths.append(("faint", _path(x, height)))
        kernel = np.ones(2 * (window // 2) + 1)
        known = np.convolve(good, kernel, "same")
        height = np.convolve(np.where(good, height, 0), kernel, "same") / np.where(known > 0, known, np.nan)
    if line.style != "point":
        paths.append((line.style, _path(x, height)))
    return {"style": line.style, "paths": paths, "width": None, "dots": dots}


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Return the points of a line as an SVG path, thinned where very many, with gaps where not finite."""
    stride, text, pen = max(1, x.size // (2 * ROWS)), [], "M"
    for a, b in zip(x[::stride], y[::stride], strict=True):
        text += [f"{pen}{a:.1f} {b:.1f}"] if math.isfinite(b) else []
        pen = "L" if math.isfinite(b) else "M"
    return "".join(text)
