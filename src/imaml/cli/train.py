"""`imaml train`."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, ImamlError
from ..core.interrupts import STATUS
from ..core.streams import note, on_terminal
from .options import DATA, Arguments
from .startup import prepare_jax


def _go_on(out: Path, more: str = "") -> str:
    """The command that goes on with a run, as it can be typed here."""
    typed = Path(sys.argv[0])
    program = "imaml" if shutil.which("imaml") or typed.name != "imaml" else typed
    return f"{program} train --resume --out {out}{more}"


COLUMNS = ("task", "target", "features")  # the options of a table, which are fields of the domain


def train_command(words: Sequence[str]) -> int:
    """imaml train."""
    shorthands = {name: f"training.{name}" for name in ("steps", "tasks", "seed", "minutes")}
    columns = {name: f"domain.{name}" for name in COLUMNS}
    arguments = Arguments(
        "train",
        words,
        (*shorthands, *columns, "data", "out", "from"),
        ("resume", "quiet", "dry-run"),
        dotted=True,
        paths={**shorthands, **columns, **DATA},
    )
    (name,) = arguments.take(0, 1, "at most one preset")
    resume, values = "resume" in arguments.flags, arguments.values
    out = Path(values["out"]) if "out" in values else None
    if name is not None and (Path(name) / "config.json").exists():
        raise ConfigError(
            f"{name} is a run's folder, and no preset; to go on: imaml train --resume --out {name}"
        )
    if resume and out is None:
        raise ConfigError("--resume needs --out DIR, the run's folder.")
    if resume and "from" in values:
        raise ConfigError("--from begins a new run and --resume goes on with one; leave out one of the two.")
    from ..config.overrides import override, overrides, replace_data
    from ..config.presets import preset
    from ..config.run import Config, load_config

    kept: int | str | None = None
    config: Config = preset(name or "characters-5w1s")
    if resume and out is not None:
        file = out / "config.json"
        if not file.is_file():
            raise ConfigError(
                f"--resume: {out} holds no run that has begun (no config.json); leave out --resume to start "
                "one there."
            )
        stored = load_config(file.read_text(errors="replace"), str(file))
        config = stored if name is None else config
        kept = stored.method.chunk
    changes = [(path, values[name], f"--{name}") for name, path in shorthands.items() if name in values]
    named = [(path, values[name], f"--{name}") for name, path in columns.items() if name in values]
    if named and not config.domain.reads_table:
        raise ConfigError(
            f"{named[0][2]} {named[0][1]}: {name or 'characters-5w1s'} reads no table; accepted with the "
            "preset tables: imaml train tables --data FILE.csv --task COLUMN --target COLUMN."
        )
    config = overrides(config, [*changes, *named, *arguments.changes()])
    config = replace_data(config, values.get("data"))
    prepare_jax(spare=_factorises(config))
    if config.method.chunk == "auto" and resume:  # a run goes on with what was measured at its start
        config = override(config, "method.chunk", str(kept))
    elif config.method.chunk == "auto":
        from ..training.chunk_tuning import settled

        config = settled(config, note)
    if "dry-run" in arguments.flags:
        from .cost import dry_run

        return dry_run(config)
    quiet = "quiet" in arguments.flags
    if out is None:
        usual = Path("runs") / (name or "characters-5w1s")
        out = _free_folder(usual)
        if out != usual and not quiet:
            note(f"{usual} exists, so this run is in {out}")
    new = not out.exists()
    try:
        return _train(config, out, resume, values.get("from"), quiet)
    except ImamlError:
        if new:  # what failed before it began leaves nothing behind
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def _factorises(config: Any) -> bool:
    """Whether a step may have dense factorisations: any but that of images by solvers that take products."""
    linear = getattr(config.method, "linear", None)
    dense = config.method.factorises or getattr(linear, "factorises", False)
    return dense or config.domain.factorises


def _free_folder(base: Path) -> Path:
    """The folder, or the first of base-2, base-3, ... that does not exist yet, or is empty."""
    folder, number = base, 2
    while folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def _train(config: Any, out: Path, resume: bool, origin: str | None, quiet: bool) -> int:
    from ..predict import load
    from ..training.directory import check_new, check_resumable
    from ..training.experiment import assemble

    # Before the data are read, which may take long.
    if resume:
        check_resumable(out, config)
    else:
        check_new(out)
    start = None if origin is None else load(origin).theta
    progress = False if quiet else None
    run = assemble(config).train(out=out, resume=resume, start=start, progress=progress)
    if run.reason == "interrupted":
        print(f"go on with: {_go_on(out)}")
        return STATUS
    _score(run, out, config, quiet)
    if run.reason == "minutes":
        cut = ", so the learning rate's schedule was cut off" if config.optimiser.schedule == "cosine" else ""
        more = f" --minutes {2 * config.training.minutes:g}"
        print(f"at step {run.step} of {config.training.steps} the time was up{cut};")
        print(f"go on with: {_go_on(out, more)}")
    print(f"run      {out}")
    from ..report.examples import examples
    from ..report.run_page import write_report

    print(f"report   {write_report(out, examples(run))}")
    return 0


def _scoring(quiet: bool) -> Callable[[int, int], None] | None:
    """Says how far the scoring is: a live line on a terminal, else nothing until the end."""
    if quiet or not on_terminal(sys.stderr):
        return None

    def say(done: int, tasks: int) -> None:
        end = "\r" if done < tasks else "\r\033[K"
        note(f"scored {done:,} of {tasks:,} test tasks", end=end)

    return say


def _score(run: Any, out: Path, config: Any, quiet: bool) -> None:
    """Prints the evaluation that ends a run, and writes it to the run's events."""
    from ..training.evaluation import evaluate
    from ..training.journal import Journal

    if not config.training.test_tasks:
        return
    if not quiet:
        words = f"scoring on {config.training.test_tasks:,} test tasks (--training.test_tasks) ..."
        note(words)
    result = evaluate(run, split="test", tasks=config.training.test_tasks, progress=_scoring(quiet))
    with Journal(out, progress=False, append=True) as journal:
        journal.write(
            "evaluation",
            split=result.split,
            scores=dict(result.scores),
            ci95=dict(result.ci95),
            before=dict(result.before),
            before_ci95=dict(result.before_ci95),
            baselines=dict(result.baselines),
            baselines_ci95=dict(result.baselines_ci95),
            tasks=result.tasks,
            seed=result.seed,
            data=config.domain.data_name,
        )
    print(result)
