"""The report of a run: one self-contained HTML page from its events.jsonl and config.json."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from ..core.errors import DataError
from ..core.recipes import JsonObject
from ..core.version import installed_versions
from ..domains.scenes import Example, Scene
from ..storage.atomic import disk_errors, read_json, write_whole
from ..training.journal import FILE, REASONS, clock, read_events, score_text
from .charts import ROWS, Line, figure, number
from .page import render

KINDS = {  # of the numerics: title, what it is, how it is drawn
    "inner_residual": ("Inner residual", "gradient norm where adaptation stopped, mean over tasks", "log"),
    "linear_residual": ("Linear residual", "relative residual of the linear system, mean over tasks", "log"),
    "error_estimate": ("Estimated error", "median relative error of a task's meta-gradient; no bound", "log"),
    "error_bound": ("Certified error bound", "median relative error of a task's meta-gradient", "log"),
    "certified": ("Certified tasks", "share of tasks with a certified error bound", "percent"),
    "negative_curvature": ("Negative curvature", "share of tasks where the linear solver met it", "percent"),
    "failed": ("Failed tasks", "excluded from the meta-gradient for numerical reasons", "column"),
    "gradient_norm": ("Meta-gradient norm", "of the mean over tasks", "log"),
    "learning_rate": ("Learning rate", "of the outer optimiser", ""),
}
SPREAD = {"": "mean", "_median": "median", "_p90": "90th percentile", "_max": "maximum"}


def write_report(folder: Path, examples: Sequence[Example | Scene] = ()) -> Path:
    """Write the report of a run from its events and configuration.

    A run that is unfinished, was interrupted or has no events yet gets a page that says so.

    Args:
        folder: The run directory.
        examples: Example tasks to show.

    Returns:
        The path of the page, ``folder/report.html``.

    Raises:
        DataError: If the directory or a file in it cannot be read or written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"report: expected a run directory with config.json and {FILE}, got {folder}.")
    source, path = folder / "config.json", folder / "report.html"
    config = read_json(source) if source.exists() else None
    run = _Run(read_events(folder / FILE) if (folder / FILE).exists() else [], config)
    reason, shape = run.end.get("reason"), (run.domain.get("ways"), run.domain.get("shots"))
    page = render(
        "run.html",
        run=run,
        title=_words(run.domain.get("source") or run.domain.get("kind") or "A run"),
        shape=shape if all(isinstance(number, int) for number in shape) else None,
        time=clock(run.seconds),
        ended=REASONS.get(str(reason), reason) if run.end else "no end was recorded",
        better="Higher" if run.start.get("higher_is_better", "accuracy" in run.headline) else "Lower",
        results=[(event, _full(event, run.headline)) for event in _evaluations(run)],
        score_text=score_text,
        words=_words,
        curves=_curves(run),
        tasks=[
            _scene(f"Task {i}", task) if isinstance(task, Scene) else _classes(f"Task {i}", task)
            for i, task in enumerate(examples, 1)
        ],
        classes=isinstance(next(iter(examples), None), Example),
        numerics=_numerics(run),
        warnings=[text + (f" ({n} times)" if n > 1 else "") for text, n in Counter(run.warnings).items()],
        versions=", ".join(f"{n} {v}" for n, v in installed_versions("jax", "numpy", "optax").items()),
    )
    with disk_errors(path, DataError):
        write_whole(path, page)
    return path


class _Run:
    """A run's events put in order: what a resumed run repeats replaces what was there."""

    def __init__(self, events: Iterable[JsonObject], config: object) -> None:
        domain = config.get("domain") if isinstance(config, dict) else None
        self.config, self.domain = config, domain if isinstance(domain, dict) else {}
        self.start, self.end, self.resumes, self.last = {}, {}, 0, 0
        self.warnings: list[str] = []
        evaluations: dict[tuple[object, object], tuple[int, JsonObject]] = {}
        lines: dict[str, dict[int, JsonObject]] = {"step": {}, "validation": {}}
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
                evaluations[event.get("data"), event.get("split")] = self.last, event
        # Those of what the run ended with: one that was continued has learned something else since.
        self.evaluations = [event for step, event in evaluations.values() if step == self.last]
        self.steps, self.validations = ([old[k] for k in sorted(old)] for old in lines.values())
        self.headline = str(self.start.get("headline") or "loss")
        training = config.get("training") if isinstance(config, dict) else None
        # The configuration is of the newest call, which may have prolonged the run.
        asked = training.get("steps") if isinstance(training, dict) else None
        self.total = asked or self.start.get("steps")
        held_out = self.start.get("held_out")
        known = held_out if isinstance(held_out, list) else None
        # By split; empty where the run does not say.
        self.held_out = {} if known is None else {split: split in known for split in ("validation", "test")}
        timed = (*self.steps, *self.validations, self.end)
        self.seconds = max((event.get("seconds") or 0.0) for event in timed)


def _column(events: Sequence[JsonObject], name: str, part: str = "") -> np.ndarray:
    """Return one number of each event, or of a part of it, as float64, nan where there is none."""
    parts = [event.get(part) or {} for event in events] if part else events
    return np.array([found.get(name) for found in parts], np.float64)  # None becomes nan


def _words(name: object) -> str:
    """Return a name in the JSON files as words."""
    text = str(name).removesuffix("Recipe").replace("_", " ")
    return text[:1].upper() + text[1:]


def _evaluations(run: _Run) -> list[JsonObject]:
    """Return the evaluation of each data set, those on test tasks and on the run's own data first."""
    own = run.domain.get("source")
    found = sorted(run.evaluations, key=lambda e: (e.get("split") != "test", e.get("data") != own))
    split, held_out = "validation", run.held_out.get("validation")
    return found or [{"split": split, "held_out": held_out, **event} for event in run.validations[-1:]]


def _full(event: JsonObject, name: str) -> float:
    """Return the score for which a bar has its full length."""
    if "accuracy" in name:
        return 1.0
    scores, before, others = (event.get(part) or {} for part in ("scores", "before", "baselines"))
    shown = (scores.get(name), scores.get(f"{name}_inductive"), before.get(name), *others.values())
    return 1.1 * max(0.0, *(value or 0.0 for value in shown)) or 1.0


def _curves(run: _Run) -> dict[str, list[Markup]] | None:
    """Return training and validation scores by steps and by time, as charts and tables."""
    if not run.steps and not run.validations:
        return None
    figures, checks = [], run.validations
    for name in dict.fromkeys([run.headline, "loss"]):
        mean, half = _column(checks, name, "scores"), _column(checks, name, "ci95")
        for axis, words in (("step", "step"), ("seconds", "training time")):
            lines = [
                Line("training", _column(run.steps, axis), _column(run.steps, name), "a", smooth=True),
                Line("validation", _column(checks, axis), mean, "b", half),
            ]
            kind = "percent" if "accuracy" in name else "log"
            figures.append(figure(f"{_words(name)} by {words}", "", lines, axis, kind))
    columns = {name: _column(run.steps, name) for name in ("step", "seconds", "loss", "accuracy")}
    checked = {name: _column(checks, name) for name in ("step", "seconds", "tasks", "failed")}
    for name in dict.fromkeys(name for event in checks for name in event.get("scores") or {}):
        checked |= {name: _column(checks, name, "scores"), f"{name} ±": _column(checks, name, "ci95")}
    return {"figures": figures, "tables": [_table("training", columns), _table("validation", checked)]}


def _numerics(run: _Run) -> dict[str, object] | None:
    """Return how accurately the inner and linear problems were solved; None where nothing is known."""
    figures, sentences = [], []
    names = ("step", *KINDS, *(f"{n}_steps{of}" for n in ("inner", "linear") for of in SPREAD))
    columns = {name: _column(run.steps, name) for name in names}
    for name, (title, note, kind) in KINDS.items():
        if kind == "column" and columns[name].size and not np.nansum(columns[name]):
            sentences.append("No task failed numerically.")
        else:
            smooth, style = kind in ("log", "percent"), "column" if kind == "column" else "a"
            line = Line("", columns["step"], columns[name], style, smooth=smooth)
            figures.append(figure(title, note, [line], "step", kind))
    styles = dict(zip(SPREAD, "adbc", strict=True))
    for name in ("inner_steps", "linear_steps"):
        words, taken = name.replace("_", " "), {of: columns[f"{name}{of}"] for of in SPREAD}
        known = np.concatenate(list(taken.values()))
        known = known[np.isfinite(known)]
        if known.size and np.ptp(known) < 1e-6:
            sentences.append(f"Every task took {known[0]:g} {words}.")
        else:
            lines = [Line(SPREAD[of], columns["step"], y, styles[of]) for of, y in taken.items()]
            note = "per task, over the tasks of each logged step"
            figures.append(figure(_words(words), note, lines, "step"))
    if not any(figures) and not sentences:
        return None
    return {"figures": figures, "sentences": sentences, "table": _table("numerics", columns)}


def _scene(title: str, scene: Scene) -> Markup:
    """Return a scene as a chart of its lines, or its images side by side."""
    title += f": {scene.title}"
    if scene.images:
        return render("images.html", title=title, note=scene.note, images=scene.images, png=_png)
    styles = {"best": "c", "true": "c", "before": "d", "after": "a"}
    lines = [
        Line(name, np.ravel(x), np.ravel(y), styles.get(name, "point"))
        for name, (x, y) in scene.lines.items()
    ]
    return figure(title, f" {scene.note}" if scene.note else "", lines, scene.x_name)


def _classes(title: str, example: Example) -> Markup:
    """Return a classification task: a row for each class, its support images and its queries."""
    arrays = (example.query_labels, example.predicted, example.support_labels, example.support, example.query)
    truth, given, known, support, query = map(np.asarray, arrays)
    shares = [""] * given.size
    if example.probabilities is not None:
        chosen = np.asarray(example.probabilities)[np.arange(given.size), given.astype(int)]
        shares = [f"{100 * share:.0f} %" for share in chosen.astype(float)]
    return render(
        "classes.html",
        title=f"{title}: {int((truth == given).sum())} of {truth.size} correct",
        labels=np.unique(np.concatenate([known, truth])),
        shots=list(zip(known, support, strict=True)),
        queries=list(zip(truth, query, given, shares, strict=True)),
        coloured=query.ndim == 4 and query.shape[-1] == 3,
        name_of=_class,
        png=_png,
    )


def _class(label: float) -> str:
    """Return a class's letter, or its number where letters run out."""
    return chr(65 + int(label)) if 0 <= int(label) < 26 else str(int(label))


def _png(image: ArrayLike, alt: str, width: int = 52) -> Markup:
    """Return an image as a data URI, so many pixels wide; one channel is drawn dark on light, 1 = ink."""
    from PIL import Image

    pixels = np.nan_to_num(np.clip(np.asarray(image, np.float64), 0, 1))
    if pixels.shape[2:] != (3,):
        pixels = 1 - pixels.reshape(*pixels.shape[:2], -1)[..., 0]
    file = io.BytesIO()
    Image.fromarray(np.round(255 * pixels).astype(np.uint8)).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    image_tag = Markup('<img alt="{}" width="{}" height="{}" src="data:image/png;base64,{}">')
    return image_tag.format(alt, width, width, data)


def _table(name: str, columns: Mapping[str, np.ndarray]) -> Markup:
    """Return numbers as a folded table, thinned evenly where there are very many."""
    columns = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    if not columns:
        return Markup("")
    count = len(next(iter(columns.values())))
    chosen = np.unique(np.linspace(0, count - 1, min(count, ROWS)).round().astype(int))
    return render(
        "table.html",
        summary=f"Numbers: {name}" + (f" ({ROWS} of {count} rows, evenly spaced)" if count > ROWS else ""),
        head=[name.replace("_", " ") for name in columns],
        rows=[[number(float(column[i])) for column in columns.values()] for i in chosen],
    )
