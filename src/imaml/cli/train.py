"""`imaml train`."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from statistics import correlation, median
from typing import TYPE_CHECKING, Literal

from ..core.errors import ConfigError
from ..core.interrupts import STATUS
from ..core.streams import note, on_terminal
from .options import DEFAULT, Changes, Flag, Missing, Names, Unseen, Whole, configure
from .startup import factorises, prepare_jax

if TYPE_CHECKING:
    from ..config.run import Config
    from ..training.loop import Run

EPISODES = 300  # test tasks of a user's own, if they are episodes
SCORES = ("split", "scores", "ci95", "before", "before_ci95", "baselines", "baselines_ci95", "tasks", "seed")
SCORES += ("different", "held_out", "failed", "unscored", "oracles")


def train_command(
    preset: str | None = None,
    /,
    *,
    steps: Whole = None,
    tasks: Whole = None,
    seed: Whole = None,
    minutes: float | None = None,
    data: str | None = None,
    task: str | None = None,
    target: str | None = None,
    features: Names = None,
    weights: str | None = None,
    offset: str | None = None,
    missing: Missing = None,
    unseen: Unseen = None,
    dates: Literal["error", "days"] | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    decimal: str | None = None,
    random: Names = None,
    out: Path | None = None,
    resume: Flag = False,
    from_: str | None = None,
    model: str | None = None,
    loss: str | None = None,
    quiet: Flag = False,
    dry_run: Flag = False,
    changes: Changes = (),
) -> int | None:
    """Train on many tasks, score the result on test tasks, and write a run directory.

    The run directory holds config.json, events.jsonl, checkpoints/, artefact.safetensors and report.html.
    Ctrl-C stops the run after the current step, with a checkpoint. Every field of the configuration is an
    option, for example --method.inner.steps=8 or --method.linear=GMRES.

    imaml train arrays, images and frame learn from tasks of your own, with a model of your own if you like;
    see their --help.

    Args:
        preset: Named configuration (default: characters-5w1s). `imaml presets` lists them.
        steps: Outer steps; short for --training.steps.
        tasks: Tasks in each step; short for --training.tasks.
        seed: Random seed; short for --training.seed.
        minutes: Stop after this many minutes of training; short for --training.minutes.
        data: File or directory with the images or the table, for presets that read data.
        task: Table column that names the task of each row (preset tables).
        target: Table column to predict (preset tables).
        features: Table columns to predict from, as A,B (preset tables; default: all other informative
            columns); none for no features.
        random: Coefficients that vary between tasks, "intercept" and columns, as A,B (default: all).
        weights: Table column that says how many times a row counts.
        offset: Table column that is added to predictions.
        missing: What to do about missing cells of a table: "drop" their rows, or fill in the "mean" of a
            feature (default: error).
        unseen: What to do about a category that no training task has: "error", or "baseline" to encode it as
            the first category (default: error).
        dates: Take dates of a table as days since 1970-01-01, a number (default: error).
        separator: What separates the cells of a text file (default: the most frequent separator in its
            header).
        encoding: Encoding of a text file, such as cp1252 (default: utf-8).
        decimal: Sign before the fraction of a number in a text file, "." or "," (default: ".").
        out: Run directory (default: runs/PRESET, then runs/PRESET-2, and so on).
        resume: Continue the run in --out with its own configuration.
        from_: Start a new run from the parameters of this run directory or artefact; "omniglot" and
            "characters" are those of this package.
        model: With --resume, the model that the run started with if it is your own, FILE.py:NAME.
        loss: With --resume, your own loss, in the same form.
        quiet: Show no progress.
        dry_run: Print parameters, memory and time that the run would need; train and write nothing.
        changes: Fields of the configuration set by options with a dot.

    Returns:
        The exit status when interrupted.
    """
    if preset is not None and (Path(preset) / "config.json").exists():
        raise ConfigError(
            f"train: expected a preset, got the run directory {preset}. "
            f"Hint: to continue that run, use imaml train --resume --out {preset}."
        )
    if resume and out is None:
        raise ConfigError("--resume: expected --out with a run directory, got none. Hint: add --out DIR.")
    if resume and from_ is not None:
        raise ConfigError(
            f"--resume: expected an existing run, got --from {from_} as well, which starts a new one. "
            "Hint: omit one of the two."
        )
    from ..config.presets import preset as configuration
    from ..training.directory import read_config

    stored = read_config(out) if resume and out else None
    config = configuration(preset or DEFAULT) if stored is None or preset else stored
    columns = {"task": task, "target": target, "features": features, "random": random, "weights": weights}
    columns |= {"offset": offset, "missing": missing, "unseen": unseen, "dates": dates}
    columns |= {"separator": separator, "encoding": encoding, "decimal": decimal}
    named = [f"--{name}" for name, value in columns.items() if value is not None]
    if named and not config.domain.reads_table:
        raise ConfigError(
            f"{named[0]}: expected a preset that reads a table, got {preset or DEFAULT}. "
            "Hint: imaml train tables --data FILE.csv --task COLUMN --target COLUMN."
        )
    given = {"steps": steps, "tasks": tasks, "seed": seed, "minutes": minutes, "data": data}
    config = configure(config, changes, **given, **columns)
    prepare_jax(spare=factorises(config))
    if config.method.chunk == "auto":
        from ..training.chunk_tuning import settled, with_chunk

        # A run continues with what was measured at its start.
        config = with_chunk(config, stored.method.chunk) if stored else settled(config, note)
    if stored is not None:
        from .own_tasks import object_at

        brought = object_at(model, "--model"), object_at(loss, "--loss")
        config = replace(config, domain=config.domain.with_objects(*brought))
    elif model or loss:
        raise ConfigError(
            f"--{'model' if model else 'loss'}: expected a run on tasks of your own, got the preset "
            f"{preset or DEFAULT}. Hint: imaml train arrays --data FILE.npz --model FILE.py:NAME."
        )
    if dry_run:
        from .bench import print_prediction

        print_prediction(config)
        return None
    from ..training.directory import check_resumable, claimed, create_run_directory

    # Before the data are read, which may take long.
    if resume and out:
        check_resumable(out, config)
    wanted = out or Path("runs") / (preset or DEFAULT)
    with claimed(wanted, numbered=out is None) as place:
        if place != wanted and not quiet:
            note(f"{wanted} exists, so this run is written to {place}")
        if not resume:
            create_run_directory(place)
        return _train(config, place, resume, from_, quiet)


def _train(config: Config, out: Path, resume: bool, origin: str | None, quiet: bool) -> int | None:
    """Train, score and report; return the exit status when interrupted."""
    from ..predict import load
    from ..training.experiment import assemble
    from .own_tasks import shipped

    start = None if origin is None else load(shipped(origin)).theta
    progress = False if quiet else None
    experiment = assemble(config)
    for line in () if quiet else experiment.domain.about():
        print(line)
    if config.method.learned == "auto" and not quiet:
        per = experiment.config.method.learned  # type: ignore[union-attr]
        note(f"chosen   --method.learned={per}, by the number of training tasks for each parameter of a task")
    run = experiment.train(out=out, resume=resume, start=start, progress=progress)
    if config.domain.own_tasks and run.reason != "interrupted":
        from ..training.fit import finish

        run = finish(run)
    return conclude(run, out, quiet)


def conclude(run: Run, out: Path, quiet: bool) -> int | None:
    """Score a run on test tasks, and write its report.

    Args:
        run: The run.
        out: Its directory.
        quiet: Whether to show no progress.

    Returns:
        The exit status when interrupted.
    """
    config = run.config
    assert config is not None
    typed = Path(sys.argv[0])
    program = "imaml" if shutil.which("imaml") or typed.name != "imaml" else typed
    brought = "".join(f" --{option} {place}" for option, place in config.domain.brought.items())
    onwards = f"continue with: {program} train --resume --out {out}{brought}"  # can be typed here
    if run.reason == "interrupted":
        print(onwards)
        return STATUS
    _score(run, out, config, quiet)
    if run.reason == "minutes":
        cut = ", before the learning rate had decayed" if config.optimiser.schedule == "cosine" else ""
        print(f"stopped by --minutes at step {run.step} of {config.training.steps}{cut}")
        print(f"{onwards} --minutes {2 * (config.training.minutes or 1):.2g}")
    print(f"run      {out}")
    print(f"artefact {out / 'artefact.safetensors'}")
    from ..report.examples import examples
    from ..report.run_page import write_report

    print(f"report   {write_report(out, examples(run))}")
    if config.domain.own_tasks:
        print(f"a new task: {program} adapt {out} --support FILE --query FILE{brought}")
    for doubt in _doubts(run, out) if config.domain.reads_table else ():
        print(f"warning: {doubt}")
    if summary := run.domain.summary(run.theta, run.method.problem)[1]:
        print(summary)
    return None


def _doubts(run: Run, out: Path) -> list[str]:
    """Return the warnings on a run on a table: a loss that still falls, intervals wider than the data."""
    import jax

    from ..core.statistics import NORMAL_QUANTILE
    from ..training.journal import read_events

    said = []
    losses = [event["loss"] for event in read_events(out) if event["event"] == "step"]
    half = losses[len(losses) // 2 :]
    if run.reason == "steps" and len(half) >= 10 and None not in half and len(set(half)) > 1:
        related = correlation(range(len(half)), half)  # of a trend; t is Student's
        if related * (len(half) - 2) ** 0.5 < -3 * (1 - related**2) ** 0.5:
            said.append("the loss is still falling. Hint: train for more --steps.")
    target = run.domain.recipe.fixed.target  # type: ignore[union-attr]
    if target.levels is None and getattr(run.method.problem.loss, "summed", False):
        rows = run.domain.sample(jax.random.key(0), "train").support
        found = run.learner.adapt(rows).predict_interval(rows)
        if median(found.high - found.low) > 2 * NORMAL_QUANTILE * target.scale:
            said.append(
                "intervals are wider than the spread of the data. Hint: train for more --steps, or learn "
                "fewer numbers, with --method.learned=all, fewer features or a smaller --domain.hidden."
            )
    return said


def _score(run: Run, out: Path, config: Config, quiet: bool) -> None:
    """Print the evaluation that ends a run, and write it to the run's events."""
    from ..training.evaluation import evaluate, usual
    from ..training.journal import Journal

    count, size = config.training.test_tasks, run.domain.size("test")
    if not count:
        return
    if config.domain.own_tasks:
        count = min(count, EPISODES) if size is None else usual(run.domain, "test")

    def say(done: int, tasks: int) -> None:
        end = "\r" if done < tasks else "\r\033[K"  # a live line
        note(f"scored {done:,} of {tasks:,} test tasks", end=end)

    if not quiet:
        option = "" if config.domain.own_tasks else " (--training.test_tasks)"
        note(f"scoring on {count:,} test tasks{option} ...")
    progress = say if not quiet and on_terminal(sys.stderr) else None
    result = evaluate(run, split="test", tasks=count, progress=progress)
    with Journal(out, progress=False, append=True) as journal:
        facts = {name: getattr(result, name) for name in SCORES}
        journal.write("evaluation", **facts, data=config.domain.data_name)
    print(result)
