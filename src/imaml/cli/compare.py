"""`imaml compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from ..core.errors import ConfigError
from ..core.interrupts import STATUS
from ..core.streams import note
from .options import DEFAULT, Changes, Flag, Positive, Several, configure, print_json
from .startup import prepare_jax

MINUTES = 5.0  # of training for each method, by default


def _number(kind: type, tokens: Sequence[Token]) -> float:
    """Convert an option's text to a number; Cyclopts would take "none" for an option that is not given."""
    return float(tokens[0].value)


def compare_command(
    *methods: str,
    preset: str = DEFAULT,
    budget: Annotated[float | None, Parameter(converter=_number)] = None,
    seeds: Positive = 1,
    tasks: Several = 1000,
    data: str | None = None,
    out: Path | None = None,
    json: Flag = False,
    quiet: Flag = False,
    changes: Changes = (),
) -> int | None:
    """Train several methods and score them on the same test tasks.

    Compares at equal training time and at equal numbers of tasks seen, with paired differences from imaml.
    Writes comparison.json, comparison.md and comparison.html. Every field of the preset is an option, as for
    imaml train, for example --domain.ways=20, except those that the comparison sets, such as
    --training.steps.

    Args:
        methods: Methods to compare (default: all): scratch, transfer-head, transfer, multitask, maml, fomaml,
            reptile, reptile-proximal, anil, metasgd, imaml, imaml-hessian-free, imaml-head, imaml-learned,
            as-released.
        preset: Named configuration. `imaml presets` lists them.
        budget: Minutes of training for each method (default: 5); short for --training.minutes.
        seeds: Runs of each method, averaged task by task.
        tasks: Test tasks.
        data: File or directory with the data, for presets that read data.
        out: Directory for the results (default: runs/compare-PRESET). The same command continues what an
            interrupted one left there.
        json: Print JSON instead of a table; each method that is done is then reported on stderr.
        quiet: Do not report each method that is done.
        changes: Fields of the configuration set by options with a dot.

    Returns:
        The exit status when interrupted.
    """
    from ..compare.variants import refuse_fields

    refuse_fields(changes)
    config = configure(preset, changes, budget=budget, data=data)
    minutes = config.training.minutes
    if minutes is None:
        if any(change.path == "training.minutes" for change in changes):
            raise ConfigError("--training.minutes: expected a number of minutes, got none.")
        minutes = MINUTES
    prepare_jax()
    from ..compare.runner import Interrupted, compare
    from ..report.comparison_page import text, write_comparison

    out = out or Path(f"runs/compare-{preset}")

    def report(line: str) -> None:
        if json:
            note(line)
        else:
            print(line, flush=True)

    say = (lambda line: None) if quiet else report
    try:
        summary = compare(
            config, methods, say=say, out=out, minutes=minutes, tasks=tasks, seeds=seeds, progress=False
        )
    except Interrupted:
        report(f"interrupted; the same command continues what is in {out}")
        return STATUS
    page = write_comparison(summary, out)
    if json:
        print_json(summary)
    else:
        print(f"{text(summary)}\nreport   {page}")
    return None
