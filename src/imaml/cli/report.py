"""`imaml report` and `imaml presets`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError, ImamlError
from ..core.streams import note
from .options import Arguments
from .startup import keep_compiled


def report_command(words: Sequence[str]) -> int:
    """imaml report."""
    arguments = Arguments("report", words, (), ())
    (path,) = arguments.take(1, 1, "one run's folder")
    folder = Path(str(path))
    if folder.name == "artefact.safetensors":
        folder = folder.parent
    if not (folder / "events.jsonl").is_file():
        raise DataError(f"imaml report: {path} is no run's folder (it has no events.jsonl); accepted is one.")
    keep_compiled()
    from ..predict import load
    from ..report.examples import examples
    from ..report.run_page import write_report

    drawn: list[Any] = []
    if (folder / "artefact.safetensors").exists():
        try:
            drawn = examples(load(folder))
        except ImamlError as error:  # such as data that are not on this machine
            note(f"imaml: the report has no example tasks: {error}")
    print(write_report(folder, drawn))
    return 0


def presets_command(words: Sequence[str]) -> int:
    """imaml presets."""
    Arguments("presets", words, (), ()).take(0, 0, "no argument")
    from ..config.presets import PRESETS

    for name, entry in PRESETS.items():
        print(f"{name:<20} {entry.about}")
    return 0
