"""`imaml compare`."""

from __future__ import annotations

from pathlib import Path

from ..core.interrupts import STATUS
from .options import DEFAULT, Changes, Flag, Positive, Several, configure, print_json
from .startup import prepare_jax


def compare_command(
    *methods: str,
    preset: str = DEFAULT,
    budget: float = 5.0,
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
    imaml train, for example --domain.ways=20.

    Args:
        methods: Methods to compare (default: all): scratch, transfer-head, transfer, multitask, maml, fomaml,
            reptile, reptile-proximal, anil, metasgd, imaml, imaml-hessian-free, imaml-head, imaml-learned,
            as-released.
        preset: Named configuration. `imaml presets` lists them.
        budget: Minutes of training for each method.
        seeds: Runs of each method, averaged task by task.
        tasks: Test tasks.
        data: File or directory with the data, for presets that read data.
        out: Directory for the results (default: runs/compare-PRESET). The same command continues what an
            interrupted one left there.
        json: Print JSON instead of a table.
        quiet: Do not report each method that is done.
        changes: Fields of the configuration set by options with a dot.

    Returns:
        The exit status when interrupted.
    """
    config = configure(preset, changes, budget=budget, data=data)
    prepare_jax()
    from ..compare.runner import Interrupted, compare
    from ..report.comparison_page import text, write_comparison

    out = out or Path(f"runs/compare-{preset}")
    say = (lambda line: None) if quiet else (lambda line: print(line, flush=True))
    minutes = config.training.minutes or budget
    options = {"out": out, "minutes": minutes, "tasks": tasks, "seeds": seeds, "progress": False}
    try:
        summary = compare(config, methods, say=say, **options)
    except Interrupted:
        print(f"interrupted; the same command continues what is in {out}")
        return STATUS
    page = write_comparison(summary, out)
    if json:
        print_json(summary)
    else:
        print(f"{text(summary)}\nreport   {page}")
