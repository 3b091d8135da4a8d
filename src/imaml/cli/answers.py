"""What `imaml adapt` says of a table's rows: an answer a row, as text or JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.streams import note
from ..domains.tables.files import Table

LEVEL = 0.9  # of the intervals


def answer_rows(learned: Any, support: str, query: str, as_json: bool, sure: bool, run: str) -> int:
    """Adapts to the support file's rows and prints an answer for every row of the query file; returns 0.

    sure: with 90 % intervals, or probabilities by the task's posterior. Where the query has the target's
    column, a line on stderr says how far the answers were from it.
    """
    recipe = learned.config.domain
    table: Table = recipe.read(query, "--query")
    few = recipe.read(support, "--support")
    whose = dict.fromkeys([*recipe.tasks_of(few), *recipe.tasks_of(table)])
    predictor = learned.adapt(few)
    if len(whose) > 1:
        raise DataError(
            f"{query}: has rows of other tasks than {support} ({recipe.task!r}: "
            f"{', '.join(list(whose)[:3])}); accepted are rows of the task that is "
            "learned from, or rows without that column."
        )
    answers = predictor.predict(table)
    target, status = recipe.fixed.target, predictor.solution.status
    if not bool(status.ok):
        note(f"imaml: the inner solve ended in {status.ending.name}. {status.advice}")
    rows: list[dict[str, Any]] = [{"row": i + 1, target.name: _plain(a)} for i, a in enumerate(answers)]
    if sure and target.levels is None:
        found = predictor.predict_interval(table, LEVEL)
        for row, low, high in zip(rows, found.low, found.high, strict=True):
            row |= {"low": _plain(low), "high": _plain(high)}
    if target.levels is not None:
        for row, p in zip(rows, predictor.predict_proba(table, sure), strict=True):
            row["probability"] = round(float(p.max()), 6)
            row["probabilities"] = {c: round(float(v), 6) for c, v in zip(target.levels, p, strict=True)}
    if as_json:
        about: dict[str, Any] = {"level": LEVEL} if sure and target.levels is None else {}
        about |= {"target": target.name, "status": status.ending.name, "run": run}
        print(json.dumps({**about, "predictions": rows}, allow_nan=False))
        return 0
    for row in rows:
        more = f"\t{row['probability']:.3f}" if "probability" in row else ""
        more += f"\t{row['low']:.6g} to {row['high']:.6g}" if "low" in row else ""
        answer = row[target.name]
        print(f"{row['row']}\t{answer if isinstance(answer, str) else format(answer, '.6g')}{more}")
    if target.name in table.columns:
        note(f"imaml: {_judged(table, target, answers)}")
    return 0


def _plain(answer: Any) -> str | float:
    return str(answer) if isinstance(answer, str) else round(float(answer), 9)


def _judged(table: Table, target: Any, answers: np.ndarray) -> str:
    """How right the answers were, as a phrase."""
    if target.levels is not None:
        right = sum(a == b for a, b in zip(answers, table.columns[target.name], strict=True))
        return f"{right} of {table.rows} as the column {target.name!r} has them"
    errors = answers - target.numbers(table, "the target")
    return f"root mean squared error from the column {target.name!r}: {np.sqrt(np.mean(errors**2)):.6g}"
