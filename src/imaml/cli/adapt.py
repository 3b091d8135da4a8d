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
    from ..predict import load

    learned = load(str(path))
    domain = learned.config.domain.without_data()
    support = domain.read(arguments.values["support"])
    query = domain.read(arguments.values["query"], query=True)
    predictor = learned.adapt(support)
    found = domain.answers(predictor, support, query, "uncertainty" in arguments.flags)
    status = predictor.solution.status
    if not bool(status.ok):
        note(f"imaml: the inner solve ended in {status.ending.name}. {status.advice}")
    if "json" in arguments.flags:
        about = {**found.about, "status": status.ending.name, "run": str(path)}
        print(json.dumps({**about, "predictions": found.rows}, allow_nan=False))
        return 0
    for line in found.lines:
        print(line)
    if judged := found.note():
        note(f"imaml: {judged}")
    return 0
