"""The log of a run: events.jsonl, one JSON object in each line, and progress lines on stderr.

Events, each with `time` (Unix seconds), and their fields: start (version, steps, tasks, parameters, headline,
higher_is_better, held_out, the splits with tasks of their own, devices); resume (step); step (step, seconds,
loss, accuracy where there is one, gradient_norm, inner_residual, inner_steps, linear_residual, linear_steps
(both means over tasks, with _median, _p90, the ninth decile, and _max beside them), negative_curvature,
error_estimate, error_unreliable (the share of tasks with ESTIMATE_UNRELIABLE), certified, error_bound,
failed, learning_rate); validation (step, seconds, scores, ci95, before, tasks, different, the number of
different tasks, failed, best); checkpoint (step); warning (message); end (step, reason, seconds; kept, the
step of the final parameters if it is an earlier one); evaluation (split, scores, ci95, before, baselines,
tasks, seed, different, held_out, failed, unscored, oracles, data), of what the last step left. Shares are in
[0, 1]; `seconds` is the training time so far, without validations and without the first step of a call, which
compiles.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ..core.errors import ConfigError, DataError
from ..core.recipes import JsonObject
from ..core.streams import note, on_terminal
from ..storage.atomic import disk_errors

FILE = "events.jsonl"
PLAIN_SECONDS = 10.0  # between two plain lines about steps
WINDOW = 20  # step events that the rate is taken over
REASONS = {
    "steps": "all steps are done",
    "minutes": "the time budget is used up",
    "converged": "the validation no longer improves",
    "gradient": "the meta-gradient's norm fell below its threshold",
    "interrupted": "interrupted",
}


class Journal:
    """The log of one run; a context manager.

    Args:
        folder: The run directory, where events.jsonl is written, or None for no file.
        progress: None or True shows the run on stderr, as a live line on a terminal and plain lines
            elsewhere; False shows warnings only.
        total: Steps of the run, for the time left.
        minutes: Time budget of the run, for the time left.
        append: Whether to continue an existing file, without a half-written last line; else a new file
            replaces it.

    Raises:
        ConfigError: If the file cannot be written.

    Example:
        >>> with Journal(None, progress=False) as journal:
        ...     journal.write("step", step=10, seconds=1.0, loss=0.5)
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        progress: bool | None = None,
        total: int | None = None,
        minutes: float | None = None,
        append: bool = False,
    ) -> None:
        """Open the file and, on a terminal, the live line."""
        self._path = None if folder is None else Path(folder) / FILE
        self._file: TextIO | None = None
        words = _Words(total, minutes)
        with disk_errors(self._path, ConfigError):
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                if append and self._path.exists():
                    events, length = _split(self._path.read_bytes())
                    os.truncate(self._path, length)
                    for event in events:
                        words.learn(event or {})
                self._file = self._path.open("a" if append else "w", encoding="utf-8")
        self._display = _Display(words, progress is not False)

    def write(self, event: str, /, **fields: object) -> None:
        """Write an event to the file, flushed, and show it.

        A float that is not finite is written as null, so that every line is valid JSON. The list "nonfinite"
        then has its name, with dots for nested ones.

        Args:
            event: The kind of event.
            **fields: Its fields. Numbers may be NumPy or JAX scalars.

        Raises:
            DataError: If the file cannot be written, as on a full disk.
        """
        lost: list[str] = []
        record = {"event": event, "time": round(time.time(), 3), **json_values(fields, lost)}
        if lost:
            record["nonfinite"] = lost
        if self._file is not None:
            with disk_errors(self._path, DataError):
                self._file.write(json.dumps(record, allow_nan=False) + "\n")
                self._file.flush()
        self._display.show(record)

    def close(self) -> None:
        """End the live line and close the file. A second call does nothing."""
        self._display.close()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        """Return the log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def read_events(path: Path | str) -> list[JsonObject]:
    """Read the log of a run.

    If a killed process left the last line half written, that line is dropped, and a warning event at the end
    of the list says so.

    Args:
        path: An events.jsonl, or the run directory.

    Returns:
        The events in the order in which they were written.

    Raises:
        DataError: If there is no such file, or a line other than the last is damaged.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: expected the log of a run, got an error ({error.strerror}). Hint: name a run "
            f"directory, or its {FILE}."
        ) from error
    events, length = _split(text)
    if None in events:
        line = events.index(None) + 1
        raise DataError(
            f"{path}, line {line}: expected an event as JSON, got something else. Hint: restore the file, or "
            "remove that line."
        )
    kept = [event for event in events if event is not None]
    if length < len(text):
        message = f"The last line of {FILE} was half written (the process was killed) and is excluded."
        kept.append({"event": "warning", "time": kept[-1].get("time") if kept else None, "message": message})
    return kept


def _split(text: bytes) -> tuple[list[JsonObject | None], int]:
    """Return the events up to the last valid line (None: a damaged one), and how many bytes they are."""
    lines = text.split(b"\n")[:-1]
    events = [_parse(line) for line in lines]
    while events and events[-1] is None:
        events.pop()
    return events, sum(len(line) + 1 for line in lines[: len(events)])


def _parse(line: bytes) -> JsonObject | None:
    """Return the event that a line holds, or None."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def json_values(value: Any, lost: list[str] | None = None, name: str = "") -> Any:
    """Return a value as strict JSON holds it, with None for a float that is not finite.

    Args:
        value: A number, an array, a text, a path, or a mapping or list of these.
        lost: Receives the names of floats that are not finite, with dots for nested ones.
        name: What the value is called in there.

    Returns:
        JSON values.
    """
    if isinstance(value, Mapping):
        below = f"{name}." if name else ""
        return {str(key): json_values(item, lost, f"{below}{key}") for key, item in value.items()}
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy and JAX
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [json_values(item, lost, f"{name}.{index}") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        if lost is not None:
            lost.append(name)
        return None
    return str(value) if isinstance(value, Path) else value


def clock(seconds: float) -> str:
    """Format a duration.

    Args:
        seconds: The duration.

    Returns:
        A text such as "42 s", "3:05 min" or "1:02:03 h".
    """
    minutes, rest = divmod(max(round(seconds), 0), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d} h"


def draws_text(draws: int, different: int) -> str:
    """Describe draws of which some are of the same task.

    Args:
        draws: The number of draws.
        different: The number of different tasks.

    Returns:
        Both numbers as text.
    """
    return f"{draws} draws from {different} task{'s' * (different != 1)}"


def score_text(name: str, value: float | None, ci95: float | None = None) -> str:
    """Format a score, accuracies in percent.

    Args:
        name: The name of the score.
        value: The score, or None if it is not finite.
        ci95: Half-width of its 95 % interval, or None.

    Returns:
        A text such as "91.23 +- 0.50 %".
    """
    if value is None:
        return "not finite"
    scale, digits, unit = (100, ".2f", " %") if "accuracy" in name else (1, ".4g", "")
    interval = "" if ci95 is None else f" +- {scale * ci95:{digits}}"
    return f"{scale * value:{digits}}{interval}{unit}"


def _percent(share: float) -> str:
    """Return a share as percent, to two digits; 1,200 and not 1.2e+03."""
    return f"{float(f'{100 * share:.2g}'):,.10g} %"


def _error(event: JsonObject) -> list[str]:
    """Return what is known of the meta-gradient's error, in words: certified before estimated.

    An unknown error is not part of the line: the line at the end counts the steps where it was unknown.
    """
    bound, estimate = event.get("error_bound"), event.get("error_estimate")
    if event.get("certified"):
        share = f"{100 * event['certified']:.0f} % of tasks certified"
        return [f"gradient error at most {_percent(bound)}, {share}" if bound is not None else share]
    if estimate is None or _error_unknown(event):
        return []
    doubt = event.get("error_unreliable") or 0.0
    share = f", unreliable for {100 * doubt:.0f} % of tasks" if doubt >= 0.005 else ""
    return [f"gradient error about {_percent(estimate)}{share}"]


def _error_unknown(event: JsonObject) -> bool:
    """Return whether a step was asked for its error and has neither a bound nor a reliable estimate."""
    if "error_estimate" not in event or event.get("certified"):
        return False
    return event["error_estimate"] is None or (event.get("error_unreliable") or 0.0) >= 0.5


class _Words:
    """Events in words; keeps what it needs of those that came before."""

    def __init__(self, total: int | None, minutes: float | None) -> None:
        self.total, self.minutes, self.headline = total, minutes, ""
        self.recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self.logged = self.unknown = 0  # logged steps, and those of unknown gradient error

    def learn(self, event: JsonObject) -> None:
        if event.get("event") == "start":
            self.headline, self.total = event.get("headline") or "", self.total or event.get("steps")
        if event.get("event") == "step":
            self.logged += 1
            self.unknown += _error_unknown(event)

    def step(self, event: JsonObject) -> list[str]:
        """Return the parts of a line about a step, the most important first."""
        step, seconds = event.get("step", 0), event.get("seconds") or 0.0
        parts = [f"step {step}" + (f"/{self.total}" if self.total else "")]
        self.recent.append((step, seconds))
        steps, spent = step - self.recent[0][0], seconds - self.recent[0][1]
        if steps > 0 and spent > 0:
            rate = steps / spent
            parts.append(f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step")
            left = [(self.total - step) / rate] if self.total else []
            left += [60 * self.minutes - seconds] if self.minutes else []
            parts += [f"{clock(min(left))} left"] if left else []
        parts += [f"failed tasks {event['failed']:g}"] if event.get("failed") else []
        parts += [f"{name} {score_text(name, event[name])}" for name in ("loss", "accuracy") if name in event]
        found = {kind: event.get(f"{kind}_residual") for kind in ("inner", "linear")}
        residuals = [f"{kind} {value:.0e}" for kind, value in found.items() if value is not None]
        parts += [f"residuals: {', '.join(residuals)}"] if residuals else []
        curved = event.get("negative_curvature")
        parts += [f"negative curvature {100 * curved:.0f} %"] if curved is not None else []
        return parts + _error(event)

    def line(self, event: JsonObject) -> str | None:
        """Return an event other than a step as one line; None for one that is not shown."""
        kind, get, at = event["event"], event.get, f"step {event.get('step')}"
        if kind == "start":
            counts = {"steps": "steps", "tasks": "tasks a step", "parameters": "parameters"}
            facts = [f"{event[name]:,} {unit}" for name, unit in counts.items() if get(name) is not None]
            if self.minutes:
                facts[0] = f"at most {facts[0]} or {clock(60 * self.minutes)}"
            return "training: " + ", ".join(facts + ([f"on {event['devices']}"] if get("devices") else []))
        if kind == "validation":
            scores, ci95, before = (get(name) or {} for name in ("scores", "ci95", "before"))
            names = sorted(scores, key=lambda name: name != self.headline)  # the headline first
            facts = [f"{n.replace('_', ' ')} {score_text(n, scores[n], ci95.get(n))}" for n in names]
            facts += [f"before adaptation {score_text(n, before[n])}" for n in names[:1] if n in before]
            tasks = f"{get('tasks')} tasks"
            if get("different") not in (None, get("tasks")):  # None in the logs of earlier versions
                tasks = draws_text(event["tasks"], event["different"])
            tasks += f", {event['failed']} failed" if get("failed") else ""
            best = ", best so far" if get("best") else ""
            return f"validation at {at}: {', '.join(facts)} ({tasks}){best}"
        if kind == "end":
            after = "" if get("seconds") is None else f" after {clock(event['seconds'])} of training"
            at += f" of {self.total}" if self.total and get("reason") not in ("steps", "failed") else ""
            ended = f"ended at {at}{after}: {REASONS.get(get('reason', ''), get('reason'))}"
            if get("kept") is not None:
                ended += f"; kept the parameters of step {event['kept']}, with the best validation score"
            if get("converged") is not None:
                ended += f"; {'converged' if event['converged'] else 'not converged'}"
            if not self.unknown:
                return ended
            return (
                f"{ended}; meta-gradient error unknown in {self.unknown} of {self.logged} logged steps, as "
                "inner solves end far from a solution (docs/certificates.md)"
            )
        return {"resume": f"resumed at {at}", "warning": f"warning: {get('message')}"}.get(kind)


class _Display:
    """Events on stderr: one live line at the foot of a terminal, else plain lines."""

    def __init__(self, words: _Words, visible: bool) -> None:
        self.words, self.visible, self.last, self.live = words, visible, -math.inf, None
        if visible and on_terminal(sys.stderr) and os.environ.get("TERM", "dumb") != "dumb":
            from rich.console import Console
            from rich.live import Live

            console, both = Console(stderr=True, highlight=False, markup=False), on_terminal(sys.stdout)
            self.live = Live(console=console, transient=True, redirect_stdout=both)
            self.live.start()
            self.foot("preparing the first step (compiling)")

    def foot(self, *parts: str) -> None:
        """Show the live line, cut where the terminal ends."""
        from rich.text import Text

        assert self.live is not None
        self.live.update(Text("  ".join(parts), style="cyan", no_wrap=True, overflow="ellipsis"))

    def show(self, event: JsonObject) -> None:
        self.words.learn(event)
        if event["event"] == "step":
            parts, now = self.words.step(event), time.monotonic()
            if self.live is not None:
                self.foot(*parts)
            elif self.visible and now - self.last >= PLAIN_SECONDS:
                self.last = now
                note("  ".join(parts))
            return
        line = self.words.line(event)
        if self.live is not None and line is not None:
            style = {"validation": "bold", "warning": "yellow"}.get(event["event"], "")
            self.live.console.print(line, style=style, soft_wrap=True)
        elif line is not None and (self.visible or event["event"] == "warning"):
            note(line)
        if event["event"] == "end":
            self.close()

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
