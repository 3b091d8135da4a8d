"""Hand-made SVG charts of the reports: lines, bands, points, columns and intervals, with axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ROWS = 400  # of a table, and half the points of a line; longer ones are thinned evenly


def number(value: Any) -> str:
    """A number as people read it, a dash where it is not finite."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e9 else f"{value:.4g}"


@dataclass(frozen=True)
class Line:
    """One line of a chart. style: a solid, b dashed with dots, c dotted, d dashed, point, column."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str
    half: np.ndarray | None = None
    smooth: bool = False


class _Axis:
    """Where values lie between two ends of a drawing."""

    def __init__(self, values: np.ndarray, start: float, stop: float, log: bool, pad: float) -> None:
        low, high = np.log10([values.min(), values.max()]) if log else (values.min(), values.max())
        pad = pad * (high - low) if high > low else 0.5 * abs(high) or 0.5
        self.low, self.high, self.start, self.stop, self.log = low - pad, high + pad, start, stop, log

    def __call__(self, value: Any) -> Any:
        share = ((np.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + np.clip(share, 0, 1) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            from matplotlib.ticker import MaxNLocator

            found = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
            return [float(t) for t in found if self.low <= t <= self.high]
        factors = (1,) if self.high - self.low > 2 else (1, 2, 5)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [t for n in decades for f in factors if self.low <= math.log10(t := f * 10.0**n) <= self.high]
        return found[:: math.ceil(len(found) / 7)]


def figure(title: str, note: str, lines: Sequence[Line], x_name: str, kind: str = "") -> str:
    """A chart as inline SVG with its caption; what is not finite leaves gaps. kind: percent, log or none."""
    lines = [line for line in lines if np.isfinite(line.x + line.y).any()]
    if not lines:
        return ""
    x, y = (np.concatenate([getattr(line, axis) for line in lines]) for axis in "xy")
    for line in lines:
        if line.half is not None:
            y = np.concatenate([y, line.y - line.half, line.y + line.half])
    x, y, percent = x[np.isfinite(x)], y[np.isfinite(y)], kind == "percent"
    y = np.append(y, 0) if lines[0].style == "column" else np.clip(y, 0, 1) if percent else y
    log, scale, label = kind == "log" and y.min() > 0 and y.max() > 8 * y.min(), 1.0, x_name
    if x_name == "seconds":
        units = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
        scale, label = next((unit for unit in units if x.max() > 3 * unit[0]), units[-1])
        label += " of training"
    margin = max(0.03, 0.6 / x.size if lines[0].style == "column" else 0.0)
    xs, ys = _Axis(x / scale, 56, 444, False, margin), _Axis(y, 212, 8, bool(log), 0.05)
    marks = [f'<text x="252" y="252" text-anchor="middle">{label}</text>']
    for tick in ys.ticks():
        text, at = f"{100 * tick:.4g} %" if percent else f"{tick:,.6g}", ys(tick)
        marks.append(f'<path class="axis" d="M56 {at:.1f}H444"/>')
        marks.append(f'<text x="50" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    marks += [f'<text x="{xs(t):.1f}" y="231" text-anchor="middle">{t:,.6g}</text>' for t in xs.ticks()]
    said, key = [], []
    for line in lines:
        marks += _marks(line, xs, ys, scale)
        v = line.y[np.isfinite(line.y)]
        first, last, least, most = (number(value) for value in (v[0], v[-1], v.min(), v.max()))
        said.append(f"{line.name} first {first}, last {last}, least {least}, most {most}")
        drawn = f'<path class="{line.style}" d="M0 5H26"/>' if line.style != "point" else ""
        drawn += (
            f'<circle class="{line.style} dot" cx="13" cy="5" r="3"/>' if line.style in ("b", "point") else ""
        )
        key.append(f'<span><svg viewBox="0 0 26 10" aria-hidden="true">{drawn}</svg>{line.name}</span>')
    legend = f'<div class="key">{"".join(key)}</div>' if lines[0].name else ""
    alt = f"{title} over {label}: {'; '.join(said)}"
    svg = f'<svg viewBox="0 0 460 258" role="img" aria-label="{alt}">{"".join(marks)}</svg>'
    note += ", logarithmic" if log and note else ""
    return f"<figure><figcaption><b>{title}</b>{note}</figcaption>{legend}{svg}</figure>"


@dataclass(frozen=True)
class Interval:
    """A number with the half-width of its interval, in a chart of intervals. style: a or b."""

    mean: float
    half: float
    style: str


def intervals(title: str, rows: Sequence[tuple[str, Sequence[Interval]]], key: Mapping[str, str]) -> str:
    """Intervals about zero, a row for each name, as inline SVG; per cent. key: what each style means."""
    rows = [(name, [i for i in given if math.isfinite(i.mean + i.half)]) for name, given in rows]
    found = [i for _, given in rows for i in given]
    if not found:
        return ""
    ends = np.array([0.0, *(i.mean - i.half for i in found), *(i.mean + i.half for i in found)])
    xs, foot = _Axis(100 * ends, 170, 690, False, 0.03), 26 * len(rows) + 8
    marks = [f'<text x="430" y="{foot + 42}" text-anchor="middle">points of per cent</text>']
    for tick in xs.ticks():
        at = xs(tick)
        marks.append(f'<path class="axis" d="M{at:.1f} 4V{foot}"/>')
        marks.append(f'<text x="{at:.1f}" y="{foot + 20}" text-anchor="middle">{tick:+.4g}</text>')
    marks.append(f'<path class="c" d="M{xs(0.0):.1f} 4V{foot}"/>')
    said = []
    for number, (name, given) in enumerate(rows):
        middle = 26 * number + 20
        marks.append(f'<text x="160" y="{middle + 4}" text-anchor="end">{name}</text>')
        for place, one in enumerate(given):
            y = middle + 7 * (place - (len(given) - 1) / 2)
            low, mean, high = (xs(100 * v) for v in (one.mean - one.half, one.mean, one.mean + one.half))
            marks.append(f'<path class="{one.style}" d="M{low:.1f} {y:.1f}H{high:.1f}"/>')
            marks.append(f'<circle class="{one.style} dot" cx="{mean:.1f}" cy="{y:.1f}" r="3.5"/>')
            said.append(f"{name} {key[one.style]} {100 * one.mean:+.2f} ± {100 * one.half:.2f}")
    drawn = '<svg viewBox="0 0 26 10" aria-hidden="true"><path class="{}" d="M0 5H26"/></svg>'
    legend = "".join(f"<span>{drawn.format(style)}{meaning}</span>" for style, meaning in key.items())
    svg = f'<svg viewBox="0 0 700 {foot + 50}" role="img" aria-label="{title}: {"; ".join(said)}">'
    caption = f"<figcaption><b>{title}</b></figcaption>"
    return f'<figure>{caption}<div class="key">{legend}</div>{svg}{"".join(marks)}</svg></figure>'


def _marks(line: Line, xs: _Axis, ys: _Axis, scale: float) -> list[str]:
    """What is drawn for one line."""
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
    """The points of a line as an SVG path, thinned where very many, with gaps where not finite."""
    stride, text, pen = max(1, x.size // (2 * ROWS)), [], "M"
    for a, b in zip(x[::stride], y[::stride], strict=True):
        text += [f"{pen}{a:.1f} {b:.1f}"] if math.isfinite(b) else []
        pen = "L" if math.isfinite(b) else "M"
    return "".join(text)
