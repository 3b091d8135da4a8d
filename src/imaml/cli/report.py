"""`imaml report` and `imaml presets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..core.errors import DataError, ImamlError
from ..core.streams import note
from ..storage.programs import keep_programs
from .own_tasks import object_at


def report_command(
    run: Annotated[Path, Parameter(name="RUN")], /, *, model: str | None = None, loss: str | None = None
) -> None:
    """Write a run's report page again.

    Args:
        run: Run directory.
        model: The model that the run was fitted with if it is your own, FILE.py:NAME. This executes the file.
        loss: Your own loss, in the same form.
    """
    folder = run.parent if run.name == "artefact.safetensors" else run
    if not (folder / "events.jsonl").is_file():
        raise DataError(
            f"report: expected a run directory, got {run}, which holds no events.jsonl. "
            "Hint: give the --out of an imaml train."
        )
    keep_programs()
    from ..predict import load
    from ..report.examples import examples
    from ..report.run_page import write_report

    drawn = []
    try:
        if (folder / "artefact.safetensors").exists():
            brought = {"model": object_at(model, "--model"), "loss": object_at(loss, "--loss")}
            drawn = examples(load(folder, **brought))
    except ImamlError as error:  # such as data that are not on this machine
        note(f"imaml: warning: the report has no example tasks: {error}")
    print(write_report(folder, drawn))


def presets_command() -> None:
    """List the named configurations."""
    from ..config.presets import PRESETS

    for name, entry in PRESETS.items():
        print(f"{name:<24}{entry.about}")
