"""`imaml compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ConfigError
from ..core.interrupts import STATUS
from .options import DATA, Arguments
from .startup import prepare_jax


def compare_command(words: Sequence[str]) -> int:
    """imaml compare."""
    options = ("preset", "budget", "out", "data", "tasks", "seeds")
    paths = {**DATA, "budget": "training.minutes"}
    arguments = Arguments("compare", words, options, ("quiet", "json"), dotted=True, paths=paths)
    names = [str(name) for name in arguments.take(0, 100, "names of methods") if name is not None]
    values, tasks = arguments.values, arguments.whole("tasks", 1000, 2)
    seeds, name = arguments.whole("seeds", 1, 1), values.get("preset", "characters-5w1s")
    from ..config.overrides import override, overrides, replace_data
    from ..config.presets import preset

    config = preset(name)
    config = replace_data(overrides(config, arguments.changes()), values.get("data"))
    minutes = override(config, "training.minutes", values.get("budget", "5"), "--budget").training.minutes
    if minutes is None:
        raise ConfigError("--budget none: accepted is a number of minutes for each method.")
    prepare_jax()
    from ..compare.runner import Interrupted, compare
    from ..compare.variants import rows_of
    from ..report.comparison_page import text, write_comparison

    rows_of(names)  # a misspelt one is told before anything is read
    out = Path(values.get("out", f"runs/compare-{name}"))
    say = (lambda line: None) if "quiet" in arguments.flags else (lambda line: print(line, flush=True))
    try:
        options = {"out": out, "minutes": minutes, "tasks": tasks, "seeds": seeds, "progress": False}
        summary = compare(config, names, say=say, **options)
    except Interrupted:
        print(f"interrupted; the same command goes on with what is in {out}")
        return STATUS
    page = write_comparison(summary, out)
    print(json.dumps(summary, allow_nan=False) if "json" in arguments.flags else text(summary))
    if "json" not in arguments.flags:
        print(f"report   {page}")
    return 0
