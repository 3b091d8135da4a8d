"""SVG charts for the report pages: lines, bands, points, columns and confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from .page import render

ROWS = 400  # of a table, and half the points of a line; longer ones are thinned evenly
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


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, in a chart of intervals.

    Attributes:
        mean: The mean, as a share.
        half: Half-width of the interval.
        style: ``"a"`` or ``"b"``, as in `Line`.
    """

    mean: float
    half: float
    style: str


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
        legend=[_key(line.name, line.style) for line in lines] if lines[0].name else [],
        alt=f"{title} over {label}: {'; '.join(described)}",
        label=label,
        up=[(ys(tick), form.format(100 * tick if percent else tick)) for tick in ys.ticks()],
        across=[(xs(tick), f"{tick:,.6g}") for tick in xs.ticks()],
        marks=Markup("".join(mark for line in lines for mark in _marks(line, xs, ys, scale))),
    )


def intervals(title: str, rows: Sequence[tuple[str, Sequence[Interval]]], key: Mapping[str, str]) -> Markup:
    """Draw confidence intervals about zero, in percentage points.

    Args:
        title: What the chart shows.
        rows: The name of each row, and its intervals.
        key: What each style means.

    Returns:
        A ``<figure>`` element, empty where no interval is finite.
    """
    rows = [(name, [i for i in given if math.isfinite(i.mean + i.half)]) for name, given in rows]
    found = [i for _, given in rows for i in given]
    if not found:
        return Markup("")
    ends = np.array([0.0, *(i.mean - i.half for i in found), *(i.mean + i.half for i in found)])
    xs = _Axis(100 * ends, 170, 690, False, 0.03)
    placed = lambda one: [xs(100 * (one.mean + sign * one.half)) for sign in (-1, 0, 1)]  # noqa: E731
    described = [
        f"{name} {key[one.style]} {100 * one.mean:+.2f} ± {100 * one.half:.2f}"
        for name, given in rows
        for one in given
    ]
    return render(
        "intervals.html",
        title=title,
        note="",
        legend=[(meaning, style, "") for style, meaning in key.items()],
        alt=f"{title}: {'; '.join(described)}",
        across=[(xs(tick), f"{tick:+.4g}") for tick in xs.ticks()],
        zero=xs(0.0),
        rows=[(name, [(one.style, *placed(one)) for one in given]) for name, given in rows],
    )


def _key(name: str, style: str) -> tuple[str, str, str]:
    """Return a line's entry in the legend: its name, and the styles of its stroke and of its dot."""
    return name, "" if style == "point" else style, style if style in ("b", "point") else ""


def _marks(line: Line, xs: _Axis, ys: _Axis, scale: float) -> list[str]:
    """Return the SVG elements of one line."""
    keep = np.isfinite(line.x)
    x, y, style = xs(line.x[keep] / scale), line.y[keep], line.style
    good = np.isfinite(y)
    if style == "column":
        width, foot = max(0.8 * (xs.stop - xs.start) / x.size, 2.0), ys(0)
        text = '<rect class="column" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
        return [
            text.format(a - width / 2, ys(b), width, foot - ys(b)) for a, b in zip(x, y, strict=True) if b > 0
        ]
    made = []
    if line.half is not None:
        half = np.nan_to_num(line.half[keep])
        ends = [np.column_stack([x, ys(np.maximum(y + sign * half, 1e-12))])[good] for sign in (-1, 1)]
        corners = " ".join(f"{a:.1f},{b:.1f}" for a, b in np.concatenate([ends[0], ends[1][::-1]]))
        made.append(f'<polygon class="band" points="{corners}"/>')
    height, window = ys(y), x.size // 20
    if line.smooth and window > 1:
        made.append(f'<path class="faint" d="{_path(x, height)}"/>')
        kernel = np.ones(2 * (window // 2) + 1)
        known = np.convolve(good, kernel, "same")
        height = np.convolve(np.where(good, height, 0), kernel, "same") / np.where(known > 0, known, np.nan)
    made.append(f'<path class="{style}" d="{_path(x, height)}"/>' if style != "point" else "")
    if style in ("b", "point") or good.sum() == 1:
        dot = f'<circle class="{style} dot" cx="{{:.1f}}" cy="{{:.1f}}" r="4"/>'
        made += [dot.format(a, b) for a, b in zip(x[good], ys(y[good]), strict=True)]
    return made


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Return the points of a line as an SVG path, thinned where very many, with gaps where not finite."""
    stride, text, pen = max(1, x.size // (2 * ROWS)), [], "M"
    for a, b in zip(x[::stride], y[::stride], strict=True):
        text += [f"{pen}{a:.1f} {b:.1f}"] if math.isfinite(b) else []
        pen = "L" if math.isfinite(b) else "M"
    return "".join(text)
