"""`imaml adapt`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..core.errors import ConfigError
from ..core.streams import note
from .options import Arguments
from .startup import keep_compiled


def adapt_command(words: Sequence[str]) -> int:
    """imaml adapt."""
    arguments = Arguments("adapt", words, ("support", "query"), ("json", "uncertainty"))
    (path,) = arguments.take(1, 1, "one run or artefact")
    for name in ("support", "query"):
        if name not in arguments.values:
            raise ConfigError(f"imaml adapt needs --{name} DIR, or FILE. See imaml adapt --help.")
    keep_compiled()
    import numpy as np

    from ..domains.tables.domain import TablesRecipe
    from ..predict import load

    learned = load(str(path))
    if isinstance(learned.config.domain, TablesRecipe):
        from .answers import answer_rows

        flags, (few, asked) = arguments.flags, (arguments.values[name] for name in ("support", "query"))
        return answer_rows(learned, few, asked, "json" in flags, "uncertainty" in flags, str(path))
    support = learned.read(arguments.values["support"])
    query = learned.read(arguments.values["query"], flat=True)
    predictor = learned.adapt(support.images, support.labels)
    probabilities = predictor.predict_proba(query.images, "uncertainty" in arguments.flags)
    status = predictor.solution.status
    classes = [] if predictor.classes is None else [str(c) for c in predictor.classes]
    rows = [
        {"file": str(file), "class": classes[int(np.argmax(p))], "probability": round(float(p.max()), 6)}
        for file, p in zip(query.files, probabilities, strict=True)
    ]
    if not bool(status.ok):
        note(f"imaml: the inner solve ended in {status.ending.name}. {status.advice}")
    if "json" not in arguments.flags:
        for row in rows:
            print(f"{row['file']}\t{row['class']}\t{row['probability']:.3f}")
        if set(query.labels) <= set(classes):
            right = sum(row["class"] == label for row, label in zip(rows, query.labels, strict=True))
            note(f"imaml: {right} of {len(rows)} as their folders are named")
        return 0
    for row, p in zip(rows, probabilities, strict=True):
        row["probabilities"] = {c: round(float(v), 6) for c, v in zip(classes, p, strict=True)}
    about = {"classes": classes, "normalisation": "inductive", "status": status.ending.name, "run": str(path)}
    print(json.dumps({**about, "predictions": rows}, allow_nan=False))
    return 0
