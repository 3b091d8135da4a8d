"""`imaml adapt`."""

from __future__ import annotations

import json as json_format
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..core.errors import DataError
from ..core.streams import note
from .options import Flag
from .startup import keep_compiled

if TYPE_CHECKING:
    import numpy as np

    from ..domains.tables.files import Table
    from ..predict import Learner

LEVEL = 0.9  # of the intervals


def adapt_command(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    support: str,
    query: str,
    uncertainty: Flag = False,
    json: Flag = False,
) -> int:
    """Adapt a trained run to a new task, and predict.

    For a run on images, the support directory holds a directory of images for each class. Prints a line for
    each query image: file, class, probability. PNG, JPEG, GIF, BMP, TIFF, WebP, PGM and PPM are read, up to
    40 million pixels when padded to a square, dark on light or light on dark. Each answer depends on its own
    image and the support set alone.

    For a run on a table, both files hold rows of the new task, the support file with the target's column.
    Prints a line for each query row: row, answer.

    Args:
        run: Run directory or artefact.
        support: Labelled examples of the new task: DIR/CLASS/*.png, or FILE.csv.
        query: What to predict: a directory of images, or FILE.csv.
        uncertainty: Use the task's posterior. Probabilities are lower where the support set says little,
            which helps to detect images of none of the classes; they are not calibrated. Numbers of a table
            get an interval of 90 % probability.
        json: Print JSON.

    Returns:
        The exit status.
    """
    keep_compiled()
    import numpy as np

    from ..domains.tables.domain import TablesRecipe
    from ..predict import load

    learned = load(run)
    if isinstance(learned.config.domain, TablesRecipe):
        return _answer_rows(learned, support, query, json, uncertainty, run)
    few = learned.read(support)
    asked = learned.read(query, flat=True)
    predictor = learned.adapt(few.images, few.labels)
    probabilities = predictor.predict_proba(asked.images, uncertainty)
    status = predictor.solution.status
    classes = [] if predictor.classes is None else [str(c) for c in predictor.classes]
    rows: list[dict[str, Any]] = [
        {"file": str(file), "class": classes[int(np.argmax(p))], "probability": round(float(p.max()), 6)}
        for file, p in zip(asked.files, probabilities, strict=True)
    ]
    if not bool(status.ok):
        note(f"imaml: warning: the inner solve ended in {status.ending.name}. {status.advice}")
    if not json:
        for row in rows:
            print(f"{row['file']}\t{row['class']}\t{row['probability']:.3f}")
        if set(asked.labels) <= set(classes):
            right = sum(row["class"] == label for row, label in zip(rows, asked.labels, strict=True))
            note(f"imaml: {right} of {len(rows)} match the names of their directories")
        return 0
    for row, p in zip(rows, probabilities, strict=True):
        row["probabilities"] = {c: round(float(v), 6) for c, v in zip(classes, p, strict=True)}
    about = {"classes": classes, "normalisation": "inductive", "status": status.ending.name, "run": run}
    print(json_format.dumps({**about, "predictions": rows}, allow_nan=False))
    return 0


def _answer_rows(learned: Learner, support: str, query: str, as_json: bool, sure: bool, run: str) -> int:
    """Adapt to the support file's rows and print an answer for every row of the query file.

    With `sure`, numbers have intervals, and classes the probabilities of the task's posterior. Where the
    query has the target's column, a line on stderr says how far the answers are from it.
    """
    recipe: Any = learned.config.domain
    table: Table = recipe.read(query, "--query")
    few = recipe.read(support, "--support")
    whose = dict.fromkeys([*recipe.tasks_of(few), *recipe.tasks_of(table)])
    predictor: Any = learned.adapt(few)
    if len(whose) > 1:
        raise DataError(
            f"--query: expected rows of the task in {support}, got {query} with rows of other tasks "
            f"({recipe.task!r}: {', '.join(list(whose)[:3])}). Hint: keep one task's rows, or leave out "
            "that column."
        )
    answers = predictor.predict(table)
    target, status = recipe.fixed.target, predictor.solution.status
    if not bool(status.ok):
        note(f"imaml: warning: the inner solve ended in {status.ending.name}. {status.advice}")
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
        print(json_format.dumps({**about, "predictions": rows}, allow_nan=False))
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
    """An answer as a JSON value."""
    return str(answer) if isinstance(answer, str) else round(float(answer), 9)


def _judged(table: Table, target: Any, answers: np.ndarray) -> str:
    """How right the answers were, as a phrase."""
    import numpy as np

    if target.levels is not None:
        right = sum(a == b for a, b in zip(answers, table.columns[target.name], strict=True))
        return f"{right} of {table.rows} match the column {target.name!r}"
    errors = answers - target.numbers(table, "the target")
    return f"root mean squared error from the column {target.name!r}: {np.sqrt(np.mean(errors**2)):.6g}"
