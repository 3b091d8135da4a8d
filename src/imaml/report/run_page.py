"""A run's report: one self-contained HTML page from its events.jsonl and config.json."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..domains.scenes import Example, Scene
from ..training.journal import FILE, REASONS, clock, read_events, score_text
from .charts import ROWS, Line, figure, number

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the page loads and runs nothing
STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf7;--card:#fff;--ink:#1c2127;--soft:#5b646e;--line:#e3e0d8;
--a:#0b6e69;--b:#b4430d;--bad:#b3261e;--track:#eeece5}@media(prefers-color-scheme:dark){:root{--paper:#14171b;
--card:#1c2026;--ink:#e8e6e1;--soft:#a0a8b0;--line:#333941;--a:#5cd0c5;--b:#f59a62;--bad:#ff8a80;
--track:#2a2f37}.ink img{filter:invert(1);mix-blend-mode:screen}}*{box-sizing:border-box}body{margin:0;
background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}main{max-width:1040px;
margin:0 auto;padding:2.5rem 1.1rem 4rem}p{margin:.4rem 0;max-width:68ch}h2{font-size:1.35rem;
margin:3rem 0 .3rem}h3{font-size:1rem;margin:0 0 .2rem}h1{font-size:clamp(1.8rem,5vw,2.6rem);line-height:1.15;
margin:.1rem 0 .5rem;letter-spacing:-.02em;text-wrap:balance}
.eyebrow{font-size:.85rem;color:var(--a);font-weight:600;margin:0}
.lead{font-size:1.15rem;line-height:1.5}.soft,figcaption,.facts dt,small{color:var(--soft)}
.notice{border-left:4px solid var(--b)!important}.card,figure{background:var(--card);
border:1px solid var(--line);border-radius:12px;padding:1rem 1.1rem;margin:0}.card+.card{margin-top:1rem}
.grid>.card{margin:0}.grid{display:grid;gap:1rem;margin:1rem 0;align-items:start;
grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}
.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr));align-items:stretch}
.facts{display:flex;flex-wrap:wrap;gap:.6rem 2.2rem;margin:1.2rem 0}.facts dt{font-size:.8rem}
.facts dd{margin:0;font-weight:600}.bar{display:grid;grid-template-columns:17rem 1fr 13rem;gap:.1rem 1rem;
align-items:center;margin:.7rem 0}.bar small{display:block;line-height:1.3}
.value{font-variant-numeric:tabular-nums;text-align:right;white-space:nowrap}.first .value{font-size:1.35rem;
font-weight:700}.first .fill{background:var(--a);opacity:1}.track{position:relative;height:1.1rem;
background:var(--track);border-radius:4px}.fill{height:100%;border-radius:4px;background:var(--soft);
opacity:.55}.whisker{position:absolute;top:15%;height:70%;border:solid var(--ink);border-width:0 2px}
figure{display:flex;flex-direction:column}figcaption{font-size:.85rem;line-height:1.4}
figcaption b{color:var(--ink);font-size:1rem;display:block}.key{display:flex;flex-wrap:wrap;gap:0 1.1rem;
font-size:.85rem}.key svg{width:26px;height:10px;margin-right:.4rem;vertical-align:middle}
figure>svg{width:100%;height:auto;display:block;margin-top:auto;padding-top:.4rem}svg text{fill:var(--soft);
font:13px system-ui,sans-serif}.small svg text{font-size:17px}.axis{stroke:var(--line)}.a,.b,.c,.d{fill:none;
stroke:var(--a);stroke-width:2.2;stroke-linejoin:round}.b,.d{stroke:var(--b);stroke-dasharray:7 4}
.c{stroke:var(--ink);stroke-dasharray:2 4}.faint{fill:none;stroke:var(--a);opacity:.3}.band{fill:var(--b);
opacity:.18}.column{fill:var(--a)}.dot{fill:var(--card);stroke-dasharray:none}.dot.point{fill:var(--ink)}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--a);font-size:.95rem}.scroll{overflow:auto;
max-height:26rem;padding:0 .5rem}table{border-collapse:collapse;font-size:.85rem;
font-variant-numeric:tabular-nums}td,th{padding:.25rem .7rem;text-align:right;
border-bottom:1px solid var(--line);white-space:nowrap}th{position:sticky;top:0;background:var(--card)}
.class{display:flex;gap:.7rem;padding:.5rem 0;border-top:1px solid var(--line)}.name{font-weight:700;
width:1.2rem;padding-top:.8rem}.shots,.queries{display:flex;flex-wrap:wrap;gap:.4rem}
.shots{border-right:1px solid var(--line);padding-right:.7rem;max-width:40%}.tile{width:52px;font-size:.8rem;
text-align:center;line-height:1.25}.tile img{width:100%;height:auto;display:block;border-radius:4px}
.tile small{display:block}
.tile.wide{width:132px}.tile.wide img{image-rendering:pixelated}
.shots .tile{padding:4px}.tile span{display:block;border:2px solid var(--a);
border-radius:6px;padding:2px}.wrong span{border:2px dashed var(--bad)}.right{color:var(--a)}
.wrong{color:var(--bad);font-weight:700}.tree{list-style:none;padding-left:1.1rem;margin:.2rem 0}
.tree details{margin:0}code{font:.9em ui-monospace,monospace}
@media(max-width:640px){.bar{grid-template-columns:1fr auto}.track{grid-column:1/-1;grid-row:2}
.first .value{font-size:1.2rem}svg text,.small svg text{font-size:15px}.class{gap:.4rem}.tile{width:45px}
.shots{padding-right:.4rem}.queries{gap:.25rem}}@media print{body{background:#fff}
figure,.card{break-inside:avoid}}
"""
KINDS = {  # of the numerics: title, what it is, how it is drawn
    "inner_residual": ("Inner residual", "how far from its optimum adaptation stopped; mean norm", "log"),
    "linear_residual": ("Linear residual", "relative error left in the implicit system; mean", "log"),
    "error_estimate": ("Error, estimated", "of a task's meta-gradient, relative; median, no bound", "log"),
    "error_bound": ("Error, certified bound", "of a task's meta-gradient, relative; median", "log"),
    "certified": ("Certified tasks", "share of tasks whose error is bounded", "percent"),
    "negative_curvature": ("Negative curvature", "share of tasks where the linear solver met it", "percent"),
    "failed": ("Failed tasks", "left out of the meta-gradient for numerical reasons", "column"),
    "gradient_norm": ("Meta-gradient norm", "of the mean over tasks", "log"),
    "learning_rate": ("Learning rate", "of the outer optimiser", ""),
}


def write_report(folder: Path, examples: Sequence[Example | Scene] | None = None) -> Path:
    """The path of the page, `folder`/report.html, made from the run's events and configuration.

    A run that is unfinished, was interrupted or has said nothing yet gets a page that says so. DataError
    where the folder or a file in it cannot be read or written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; expected is a run's, with config.json and {FILE}.")
    source, path, config = folder / "config.json", folder / "report.html", None
    try:
        config = json.loads(source.read_text(encoding="utf-8")) if source.exists() else None
    except (OSError, ValueError) as error:
        raise DataError(f"{source} cannot be read ({error}); restore it, or remove it.") from error
    run = _Run(read_events(folder / FILE) if (folder / FILE).exists() else [], config)
    title, head = _head(run)
    body = [head, _results(run), _curves(run), _tasks(examples or ()), _numerics(run), _warnings(run)]
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{title}</title><style>{STYLE}</style></head>
<body><main>{"".join(body)}{_origin(run)}</main></body></html>
"""
    try:
        path.with_suffix(".part").write_text(page, encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); make its folder writable.") from error
    return path


class _Run:
    """A run's events put in order: what a resumed run repeats replaces what was there."""

    def __init__(self, events: Iterable[Mapping[str, Any]], config: Any) -> None:
        domain = config.get("domain") if isinstance(config, dict) else None
        self.config, self.domain = config, domain if isinstance(domain, dict) else {}
        self.start, self.end, self.resumes, self.last = {}, {}, 0, 0
        self.warnings: list[str] = []
        self.evaluations: dict[Any, Mapping[str, Any]] = {}
        lines: dict[str, dict[int, Mapping[str, Any]]] = {"step": {}, "validation": {}}
        for event in events:
            kind, step = event["event"], event.get("step")
            self.last = self.last if step is None else step
            if kind in ("start", "end"):
                setattr(self, kind, event)
            elif kind == "resume":
                self.resumes, self.end = self.resumes + 1, {}
                lines = {k: {s: e for s, e in old.items() if s <= (step or 0)} for k, old in lines.items()}
            elif kind in lines and step is not None:
                lines[kind][step] = event
            elif kind == "warning":
                self.warnings.append(str(event.get("message")))
            elif kind == "evaluation":
                self.evaluations[event.get("data"), event.get("split")] = event
        self.steps, self.validations = ([old[k] for k in sorted(old)] for old in lines.values())
        scores = [e.get("scores") or {} for e in (*self.validations, *self.evaluations.values())]
        names = [name for given in scores for name in given]
        guess = "accuracy" if "accuracy" in names or not names else names[0]
        self.headline = str(self.start.get("headline") or guess)
        timed = (*self.steps, *self.validations, self.end)
        self.seconds = max((event.get("seconds") or 0.0) for event in timed)

    def column(self, name: str) -> np.ndarray:
        """A number of every step event."""
        return _column(self.steps, name)


def _column(events: Sequence[Mapping[str, Any]], *path: str) -> np.ndarray:
    """One number of each event as float64, nan where there is none."""
    values = []
    for event in events:
        value: Any = event
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        values.append(math.nan if value is None else float(value))
    return np.array(values, np.float64)


def _words(name: Any) -> str:
    text = str(name).removesuffix("Recipe").replace("_", " ")
    return escape(text[:1].upper() + text[1:])


def _head(run: _Run) -> tuple[str, str]:
    """The page's title, and what was learned and how long it took."""
    title = _words(run.domain.get("source") or run.domain.get("kind") or "A run")
    count, ways, shots = run.start.get("parameters"), run.domain.get("ways"), run.domain.get("shots")
    about = "A starting point" + (f" of {count:,} parameters" if isinstance(count, int) else "")
    if isinstance(ways, int) and isinstance(shots, int):
        title += f", {ways}-way {shots}-shot"
        each = "one example" if shots == 1 else f"{shots} examples"
        about += f" from which a network learns to tell apart {ways} classes never seen, from {each} of each."
    else:
        about += " from which a new task is learned by a short adaptation."
    total, reason = run.start.get("steps"), run.end.get("reason")
    facts = {
        "Steps": f"{run.last:,}" + (f" of {total:,}" if total else ""),
        "Training time": clock(run.seconds),
        "Tasks a step": run.start.get("tasks"),
        "Devices": run.start.get("devices"),
        "Ended": REASONS.get(str(reason), reason) if run.end else "no end was recorded",
        "Resumed": {0: None, 1: "once"}.get(run.resumes, f"{run.resumes} times"),
    }
    given = {name: escape(str(value)) for name, value in facts.items() if value is not None}
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in given.items())
    empty = '<p class="card notice">This run has written no events yet.</p>'
    body = f'<dl class="facts">{listed}</dl>' if run.start or run.steps else empty
    eyebrow = '<p class="eyebrow">imaml · meta-learning with implicit gradients</p>'
    return title, f'<header>{eyebrow}<h1>{title}</h1><p class="lead">{about}</p>{body}</header>'


def _results(run: _Run) -> str:
    """The scores after and before adaptation beside the baselines, for each data set measured on."""
    own = run.domain.get("source")
    found = sorted(run.evaluations.values(), key=lambda e: (e.get("split") != "test", e.get("data") != own))
    if found:
        return "<h2>Result</h2>" + "".join(_result(run, event) for event in found)
    if run.validations:
        return "<h2>Result so far</h2>" + _result(run, {"split": "validation", **run.validations[-1]})
    return ""


def _result(run: _Run, event: Mapping[str, Any]) -> str:
    name, inductive = run.headline, f"{run.headline}_inductive"
    scores, before, others = (event.get(part) or {} for part in ("scores", "before", "baselines"))
    both, percent = inductive in scores, "accuracy" in run.headline
    note = "the query images normalised by their own statistics, as in the literature" if both else ""
    rows = [("After adaptation" + ", transductive" * both, note, scores, "ci95", name)]
    note = "normalised by the support images alone: no answer depends on the other queries"
    rows.append(("After adaptation, inductive", note, scores, "ci95", inductive))
    rows.append(("Before adaptation", "the learned starting point as it is", before, "before_ci95", name))
    note = "a baseline that learns nothing across tasks"
    rows += [(_words(other), note, others, "baselines_ci95", other) for other in others]
    rows = [row for row in rows if row[-1] in row[2]]
    top = 1.0 if percent else 1.1 * max((row[2][row[-1]] or 0.0 for row in rows), default=1.0) or 1.0
    lines = []
    for label, note, values, intervals, key in rows:
        value, half = values[key], (event.get(intervals) or {}).get(key)
        low, share, high = (min(max(((value or 0) + s * (half or 0)) / top, 0), 1) for s in (-1, 0, 1))
        mark = f'<div class="whisker" style="left:{low:.2%};width:{high - low:.2%}"></div>' if half else ""
        bar = f'<div class="fill" style="width:{share:.2%}"></div>{mark}'
        lines.append(f"""<div class="bar{"" if lines else " first"}"><div>{label}<small>{note}</small></div>
<div class="track" aria-hidden="true">{bar}</div>
<div class="value">{score_text(name, value, half).replace("+-", "±")}</div></div>""")
    text = _words(name) + (f" on {_words(event['data']).lower()}" if event.get("data") else "")
    text += f", {escape(str(event.get('tasks')))} tasks of the {escape(str(event.get('split')))} split"
    text += f", seed {escape(str(event['seed']))}" if event.get("seed") is not None else ""
    better = "Higher" if run.start.get("higher_is_better", percent) else "Lower"
    note = f"{better} is better. ± is the half-width of the 95 % interval over tasks."
    return f'<div class="card"><h3>{text}</h3><p class="soft">{note}</p>{"".join(lines)}</div>'


def _curves(run: _Run) -> str:
    """Training and validation by steps and by time."""
    if not run.steps and not run.validations:
        return ""
    figures, checks = [], run.validations
    for name in dict.fromkeys([run.headline, "loss"]):
        mean, half = _column(checks, "scores", name), _column(checks, "ci95", name)
        for axis, words in (("step", "step"), ("seconds", "training time")):
            lines = [
                Line("training", run.column(axis), run.column(name), "a", smooth=True),
                Line("validation", _column(checks, axis), mean, "b", half),
            ]
            kind = "percent" if "accuracy" in name else "log"
            figures.append(figure(f"{_words(name)} by {words}", "", lines, axis, kind))
    text = "Training is measured on the tasks learned from, validation on tasks kept apart; shaded: its 95 % "
    text += (
        "interval. Where a line is noisy, the thin one is every logged value, the thick one a running mean."
    )
    columns = {name: run.column(name) for name in ("step", "seconds", "loss", "accuracy")}
    checked = {name: _column(checks, name) for name in ("step", "seconds")}
    for name in dict.fromkeys(name for event in checks for name in event.get("scores") or {}):
        checked |= {name: _column(checks, "scores", name), f"{name} ±": _column(checks, "ci95", name)}
    tables = _table("training", columns) + _table("validation", checked)
    grid = f'<div class="grid">{"".join(figures)}</div>{tables}'
    return f'<h2>Learning curves</h2><p class="soft">{text}</p>{grid}'


def _numerics(run: _Run) -> str:
    """How well the inner and the linear problems were solved."""
    figures, sentences = [], []
    spread = {"": "mean", "_median": "median", "_p90": "ninth decile", "_max": "most"}
    names = ("step", *KINDS, *(f"{n}_steps{of}" for n in ("inner", "linear") for of in spread))
    columns = {name: run.column(name) for name in names}
    for name, (title, note, kind) in KINDS.items():
        if kind == "column" and columns[name].size and not np.nansum(columns[name]):
            sentences.append("No task failed numerically.")
        else:
            smooth, style = kind in ("log", "percent"), "column" if kind == "column" else "a"
            line = Line("", columns["step"], columns[name], style, smooth=smooth)
            figures.append(figure(title, note, [line], "step", kind))
    for name in ("inner_steps", "linear_steps"):
        words, known = name.replace("_", " "), {of: columns[f"{name}{of}"] for of in spread}
        known = {of: y for of, y in known.items() if np.isfinite(y).any()}
        if not known:
            continue
        ends = np.concatenate([y[np.isfinite(y)] for y in known.values()])
        if np.ptp(ends) < 1e-6:
            sentences.append(f"Every task took {ends[0]:g} {words}.")
        else:
            styles = {"": "a", "_median": "d", "_p90": "b", "_max": "c"}
            lines = [Line(spread[of], columns["step"], y, styles[of]) for of, y in known.items()]
            figures.append(figure(_words(words), "a task, over the tasks of each logged line", lines, "step"))
    drawn, text = "".join(figures), " ".join(sentences)
    if not drawn and not text:
        return ""
    grid = f'<div class="grid small">{drawn}</div>{_table("numerics", columns)}'
    return f'<h2>Numerics</h2><p class="soft">{text}</p>{grid}'


def _tasks(examples: Sequence[Example | Scene]) -> str:
    if not examples:
        return ""
    drawn = [_drawn(i, e) for i, e in enumerate(examples, 1)]
    text = "Tasks never seen in training."
    if isinstance(examples[0], Example) and np.ndim(examples[0].query) > 2:
        text += " Each row is a class: what the network adapted to, then what it answered, and how sure."
        text += " ✓ and a solid frame: right. ✗ and a dashed frame: wrong."
    return f'<h2>Example tasks</h2><p class="soft">{text}</p><div class="grid">{"".join(drawn)}</div>'


def _drawn(number: int, example: Example | Scene) -> str:
    """One task's picture."""
    if isinstance(example, Scene):
        return _scene(number, example)
    return _images(number, example) if np.ndim(example.query) > 2 else _curve(number, example)


def _scene(number: int, scene: Scene) -> str:
    """What a domain shows of a task: a chart of its lines, or its images side by side."""
    title, note = f"Task {number}: {scene.title}", f" {scene.note}" if scene.note else ""
    if not scene.images:
        styles = {"best": "c", "before": "d", "after": "a"}
        lines = [
            Line(name, np.ravel(x), np.ravel(y), styles.get(name, "point"))
            for name, (x, y) in scene.lines.items()
        ]
        return figure(title, note, lines, scene.x_name)
    tiles = "".join(
        f'<div class="tile wide">{_png(image, f"{title}, {name}", 132)}{name}</div>'
        for name, image in scene.images.items()
    )
    text = f'<p class="soft">{scene.note}</p>' if scene.note else ""
    return f'<div class="card ink"><h3>{title}</h3>{text}<div class="queries">{tiles}</div></div>'


def _images(number: int, example: Example) -> str:
    """A classification task: a row for each class, its support images and its queries."""
    truth, given, known = (
        np.asarray(a) for a in (example.query_labels, example.predicted, example.support_labels)
    )
    sure, rows = example.probabilities, []
    for label in np.unique(np.concatenate([known, truth])):
        name, tiles = _class(label), []
        shots = [_png(example.support[i], f"example of class {name}") for i in np.flatnonzero(known == label)]
        for i in np.flatnonzero(truth == label):
            word, sign = ("right", "✓") if given[i] == label else ("wrong", "✗")
            share = "" if sure is None else f"{100 * float(sure[i][int(given[i])]):.0f} %"
            alt = f"query of class {name}, answered {_class(given[i])} {share}, {word}"
            image = f"<span>{_png(example.query[i], alt)}</span>{sign} {_class(given[i])}"
            tiles.append(f'<div class="tile {word}">{image}<small>{share}</small></div>')
        left = "".join(f'<div class="tile">{image}</div>' for image in shots)
        right = f'<div class="queries">{"".join(tiles)}</div>'
        rows.append(
            f'<div class="class"><div class="name">{name}</div><div class="shots">{left}</div>{right}</div>'
        )
    coloured = np.ndim(example.query) == 4 and np.shape(example.query)[-1] == 3
    title = f"<h3>Task {number}: {int((truth == given).sum())} of {truth.size} right</h3>"
    return f'<div class="card{"" if coloured else " ink"}">{title}{"".join(rows)}</div>'


def _class(label: Any) -> str:
    return chr(65 + int(label)) if 0 <= int(label) < 26 else str(int(label))


def _png(image: Any, alt: str, width: int = 52) -> str:
    """An image as a data URI, so many pixels wide; one channel is drawn dark on light, 1 = ink."""
    from PIL import Image

    pixels = np.nan_to_num(np.clip(np.asarray(image, np.float64), 0, 1))
    pixels = (
        pixels
        if pixels.shape[2:] == (3,)
        else 1 - pixels.reshape(pixels.shape[0], pixels.shape[1], -1)[..., 0]
    )
    file = io.BytesIO()
    Image.fromarray(np.round(255 * pixels).astype(np.uint8)).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{alt}" width="{width}" height="{width}" src="data:image/png;base64,{data}">'


def _curve(number: int, example: Example) -> str:
    """A regression task: its points, and the curves before and after adaptation."""
    x = np.ravel(example.query)
    order = np.argsort(x)
    curves = {
        "true": (example.query_labels, "c"),
        "before": (example.before, "d"),
        "after": (example.predicted, "a"),
    }
    lines = [
        Line(n, x[order], np.ravel(y)[order], style) for n, (y, style) in curves.items() if y is not None
    ]
    lines.append(Line("support", np.ravel(example.support), np.ravel(example.support_labels), "point"))
    return figure(f"Task {number}", "", lines, "input")


def _warnings(run: _Run) -> str:
    if not run.warnings:
        return ""
    counts = Counter(run.warnings).items()
    lines = [f"<li>{escape(text)}{f' ({n} times)' if n > 1 else ''}</li>" for text, n in counts]
    more = f"<details><summary>{len(lines) - 8} more</summary><ul>{''.join(lines[8:])}</ul></details>"
    shown = f"<ul>{''.join(lines[:8])}</ul>{more if len(lines) > 8 else ''}"
    return f'<h2>Warnings</h2><div class="card notice">{shown}</div>'


def _origin(run: _Run) -> str:
    """The versions, and the configuration, folded."""
    import platform
    from importlib import metadata

    versions = {
        "Python": platform.python_version(),
        **{n: metadata.version(n) for n in ("jax", "numpy", "optax")},
    }
    trained = f"Trained with imaml {escape(str(run.start['version']))}. " if run.start.get("version") else ""
    text = f"{trained}This page was written with {', '.join(f'{n} {v}' for n, v in versions.items())}."
    tree = f"<details><summary>Configuration</summary>{_tree(run.config)}</details>" if run.config else ""
    return f'<h2>Configuration and versions</h2><p class="soft">{text}</p>{tree}'


def _tree(value: Any) -> str:
    """Nested JSON as nested lists, each object to be unfolded."""
    if not isinstance(value, dict | list) or not value:
        return f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"
    lines = []
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        label, inside = escape(str(name)), _tree(item)
        if isinstance(item, dict) and item:
            label += f" <code>{escape(str(item.get('kind', '')))}</code>"
            lines.append(f"<li><details open><summary>{label}</summary>{inside}</details></li>")
        else:
            lines.append(f"<li>{label}: {inside}</li>")
    return f'<ul class="tree">{"".join(lines)}</ul>'


def _table(name: str, columns: Mapping[str, np.ndarray]) -> str:
    """Numbers as a folded table, thinned evenly where there are very many."""
    columns = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    if not columns:
        return ""
    count = len(next(iter(columns.values())))
    rows = np.unique(np.linspace(0, count - 1, min(count, ROWS)).round().astype(int))
    head = "".join(f'<th scope="col">{escape(name.replace("_", " "))}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{number(c[i])}</td>' for c in columns.values())}</tr>" for i in rows)
    text = f"Numbers: {name}" + (f" ({ROWS} of {count} rows, evenly chosen)" if count > ROWS else "")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<details><summary>{text}</summary><div class="scroll card" tabindex="0">{table}</div></details>'
