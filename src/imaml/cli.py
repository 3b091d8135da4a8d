"""The command line: parse, call, print. Heavy imports are late, so that `imaml --help` is quick."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .arguments import DATA, Arguments, meant
from .commands_data import data_command, sample_command
from .errors import ConfigError, DataError, ImamlError
from .interrupts import STATUS, leave, watch
from .manual import HELP, USAGE
from .startup import keep_compiled, prepare_jax
from .streams import discard_output, flush_output, note, on_terminal


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        words: The command and its arguments; None means those of this process, the program `imaml`.

    Returns:
        The exit status: 0, 2 for an error that the user can fix, 130 when interrupted.
    """
    if words is not None:
        return _run(list(words))
    watch()
    status = _run(sys.argv[1:])
    if status == STATUS:  # at once: a compilation that was given up may still run in its thread
        with contextlib.suppress(OSError):
            flush_output()
        leave(line=b"")
    return status


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    if words[0] in ("--version", "-V"):
        from . import __version__

        print(f"imaml {__version__}")
        return 0
    command = words[0]
    try:
        if command not in COMMANDS:
            raise ConfigError(f"there is no command {command!r}{meant(command, COMMANDS)}")
        if "--help" in words or "-h" in words:
            print(HELP[command], end="")
            return 0
        status = COMMANDS[command](words[1:])
        flush_output()  # so that a closed pipe shows here
        return status
    except ImamlError as error:
        note(f"imaml: {error}")
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        discard_output()
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        note(f"imaml: {place}{error.strerror or error}; mend that and try again.")
        return 2
    except KeyboardInterrupt:
        note("imaml: interrupted")
        return STATUS
    except Exception as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        note("imaml: out of memory; lower --method.chunk, --training.tasks or --domain.filters.")
        return 2


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
    from .config import Config, load_config, override, overrides, replace_data
    from .presets import preset

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
    if named and not hasattr(config.domain, "target"):
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
        from .chunking import settled

        config = settled(config, note)
    if "dry-run" in arguments.flags:
        from .commands_cost import dry_run

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
    from .domains.fewshot import FewShotRecipe
    from .family import BAYESIAN
    from .general import BiCGStab
    from .linear import CG, Neumann
    from .minres import MINRES

    linear = config.method.linear
    products = isinstance(linear, CG | Neumann | MINRES | BiCGStab) and config.method.name not in BAYESIAN
    products = products and getattr(linear, "precondition", None) is None
    return not (isinstance(config.domain, FewShotRecipe) and products)


def _free_folder(base: Path) -> Path:
    """The folder, or the first of base-2, base-3, ... that does not exist yet, or is empty."""
    folder, number = base, 2
    while folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def _train(config: Any, out: Path, resume: bool, origin: str | None, quiet: bool) -> int:
    import dataclasses

    from .adaptation import load
    from .domain import in_step
    from .folder import check_new, check_resumable
    from .training import devices_mesh, train

    # Before the data are read, which may take long.
    if resume:
        check_resumable(out, config)
    else:
        check_new(out)
    start = None if origin is None else load(origin).theta
    domain = config.domain.build()
    run = train(
        domain,
        config.method.build(domain, devices_mesh(in_step(domain, config.training.tasks))),
        config.optimiser,
        out=out,
        resume=resume,
        start=start,
        progress=False if quiet else None,
        **dataclasses.asdict(config.training),
    )
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
    from .reporting import write_report
    from .shown import examples

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
    from .evaluation import evaluate
    from .journal import Journal

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
            data=getattr(config.domain, "source", type(config.domain).__name__),
        )
    print(result)


def compare_command(words: Sequence[str]) -> int:
    """imaml compare."""
    options = ("preset", "budget", "out", "data", "tasks", "seeds")
    paths = {**DATA, "budget": "training.minutes"}
    arguments = Arguments("compare", words, options, ("quiet", "json"), dotted=True, paths=paths)
    names = [str(name) for name in arguments.take(0, 100, "names of methods") if name is not None]
    values, tasks = arguments.values, arguments.whole("tasks", 1000, 2)
    seeds, name = arguments.whole("seeds", 1, 1), values.get("preset", "characters-5w1s")
    from .config import override, overrides, replace_data
    from .presets import preset

    config = preset(name)
    config = replace_data(overrides(config, arguments.changes()), values.get("data"))
    minutes = override(config, "training.minutes", values.get("budget", "5"), "--budget").training.minutes
    if minutes is None:
        raise ConfigError("--budget none: accepted is a number of minutes for each method.")
    prepare_jax()
    from .compared import rows_of
    from .comparison import Interrupted, compare
    from .comparison_page import text, write_comparison

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


def evaluate_command(words: Sequence[str]) -> int:
    """imaml evaluate."""
    arguments = Arguments("evaluate", words, ("split", "tasks", "seed", "data"), ("json",))
    arguments.take(1, 99, "one run or artefact, and others to compare it with: RUN [NAME=OTHER ...]")
    path, *more = arguments.positional
    tasks, seed = arguments.whole("tasks", 1000, 2), arguments.whole("seed", 0)
    split = arguments.values.get("split", "test")
    if split not in ("train", "validation", "test"):
        raise ConfigError(f"--split {split}: accepted are train, validation and test.")
    prepare_jax()
    import dataclasses

    import jax

    from .adaptation import load
    from .config import FewShotRecipe, TablesRecipe
    from .evaluation import evaluate_theta, same_tasks
    from .training import devices_mesh

    data, mesh = arguments.values.get("data"), devices_mesh(len(jax.devices()))

    def recipe_of(learner: Any) -> Any:
        recipe = learner.config.domain
        if data is None:
            return recipe
        if isinstance(recipe, FewShotRecipe):
            source = "omniglot" if recipe.source == "characters" else recipe.source
            return dataclasses.replace(recipe, source=source, data=data, limits=())
        if isinstance(recipe, TablesRecipe):
            layout = dataclasses.replace(recipe.fixed, splits=())
            return dataclasses.replace(recipe, data=data, layout=layout)
        raise ConfigError(f"--data {data}: this run's domain draws its own tasks and reads no data.")

    def scored(learner: Any, domain: Any) -> Any:
        method = learner.config.method.build(domain, mesh)
        return evaluate_theta(domain, method, learner.theta, split=split, tasks=tasks, seed=seed)

    learned = load(path)
    recipe = recipe_of(learned)
    domain, others = recipe.build(), {}
    for word in more:
        name, equals, file = ("", "", word) if Path(word).exists() else word.partition("=")
        other = load(file if equals else word)
        name = name if equals else other.config.method.name
        if name in others:
            raise ConfigError(
                f"evaluate: two other runs are called {name!r}; name them, as in second={file or word}."
            )
        its = recipe_of(other).build()
        if not same_tasks(domain, its, split):
            raise ConfigError(
                f"evaluate: {file or word} was not learned for the tasks of {path}; accepted are runs whose "
                "domain draws the same ones, so that differences are of the same tasks."
            )
        others[name] = scored(other, its)
    result = scored(learned, domain).beside(others)
    from .prior_units import prior_of, prior_text

    prior = prior_of(learned)
    if "json" in arguments.flags:
        named = getattr(recipe, "source", type(recipe).__name__)
        more = {} if prior is None else {"prior": prior}
        print(json.dumps({**result.to_json(), **more, "data": named, "run": str(path)}, allow_nan=False))
        return 0
    print(result)
    if prior is not None:
        print(prior_text(prior))
    return 0


def adapt_command(words: Sequence[str]) -> int:
    """imaml adapt."""
    arguments = Arguments("adapt", words, ("support", "query"), ("json", "uncertainty"))
    (path,) = arguments.take(1, 1, "one run or artefact")
    for name in ("support", "query"):
        if name not in arguments.values:
            raise ConfigError(f"imaml adapt needs --{name} DIR, or FILE. See imaml adapt --help.")
    keep_compiled()
    import numpy as np

    from .adaptation import load
    from .config import TablesRecipe

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
    from .adaptation import load
    from .reporting import write_report
    from .shown import examples

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
    from .presets import PRESETS

    for name, entry in PRESETS.items():
        print(f"{name:<20} {entry.about}")
    return 0


def bench_command(words: Sequence[str]) -> int:
    """imaml bench."""
    options, flags = ("out", "steps", "data"), ("quick", "json")
    arguments = Arguments("bench", words, options, flags, dotted=True, paths=DATA)
    (name,) = arguments.take(1, 1, "what to measure: a preset, or theory")
    if name != "theory":
        return _bench_preset(str(name), arguments)
    from .theory import draw, measure

    found = measure("quick" in arguments.flags)
    for method, exponents in found["products"]["exponents"].items():
        facts = ", ".join(f"{slope:.2f} to {float(a):.0e}" for a, slope in exponents.items())
        print(f"products grow with the condition number to the power of: {method}: {facts}")
    more = found["correction"]
    for method, slope in more["slopes"].items():
        print(f"error against delta: {method}: slope {slope:.2f}, {more['products'][method]:.0f} products")
    for file in draw(found, Path(arguments.values.get("out", "theory"))):
        print(file)
    return 0


def _bench_preset(name: str, arguments: Arguments) -> int:
    from .config import overrides, replace_data
    from .presets import PRESETS, preset

    if name not in PRESETS:
        raise ConfigError(f"bench: there is no {name!r}{meant(name, ['theory', *PRESETS], 'bench')}")
    steps = arguments.whole("steps", 10, 1)
    config = replace_data(overrides(preset(name), arguments.changes()), arguments.values.get("data"))
    prepare_jax(spare=_factorises(config))
    from .commands_cost import bench

    return bench(config, name, steps, "json" in arguments.flags)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_command,
    "compare": compare_command,
    "evaluate": evaluate_command,
    "adapt": adapt_command,
    "sample": sample_command,
    "data": data_command,
    "report": report_command,
    "presets": presets_command,
    "bench": bench_command,
}
