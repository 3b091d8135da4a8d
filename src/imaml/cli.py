"""The command line: parse, call, print. Heavy imports are late, so that `imaml --help` is quick."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError, ImamlError

USAGE = """\
imaml: meta-learning with implicit gradients

  imaml train [PRESET] [--a.b=c ...]   learn across tasks (default preset: characters-5w1s)
      --steps N --seed S --data PATH --out DIR --minutes M
      --resume                         go on with the run in DIR
      --from ARTEFACT                  start from what an earlier run has learned
      --quiet                          no progress
  imaml evaluate RUN                   score what was learned on new tasks
      --split train|validation|test --tasks N --seed S --data PATH --json
  imaml adapt RUN --support DIR --query DIR [--json]
                                       learn a new task from images, a folder a class, and predict
  imaml data list | get NAME [DIR] | check NAME [PATH]
  imaml report RUN                     write the run's report page again
  imaml presets                        what can be trained, a line each

RUN is a run's folder or an artefact. `imaml COMMAND --help` says more; so does the README.
"""

HELP = {
    "train": """\
imaml train [PRESET] [options]

Learns across tasks and writes a folder with config.json, events.jsonl, checkpoints/, artefact.safetensors and
report.html; then scores what was learned on test tasks. Any field of the configuration can be set by its path:

  --domain.ways=20 --method.strength=0.5 --method.inner.steps=32 --method.linear=GMRES --optimiser.learning_rate=1e-3

`imaml presets` lists the presets, and config.json in a run's folder all fields. With --resume, --out names the
run; its own configuration is used, and options given must agree with it.
""",
    "evaluate": """\
imaml evaluate RUN [--split test] [--tasks 1000] [--seed 0] [--data PATH] [--json]

Adapts to random tasks of a split and scores the query sets: before and after adaptation, transductive (normalised
by the query batch's own statistics, as in the literature) and inductive (by the support set's), with 95 % intervals
over tasks. --data PATH scores a few-shot run on Omniglot found at PATH, whatever it was trained on.
""",
    "adapt": """\
imaml adapt RUN --support DIR --query DIR [--json]

Learns a new task from DIR/CLASS/*.png (any size; dark on light or light on dark) and predicts the class of every
image below the query folder, one line each: file, class, probability.
""",
    "data": """\
imaml data list               what can be read, and where it is looked for
imaml data get omniglot [DIR] downloads Omniglot and verifies it
imaml data check omniglot [PATH]
""",
    "report": "imaml report RUN\n\nWrites RUN/report.html again from the run's events.\n",
    "presets": "imaml presets\n\nLists what can be trained.\n",
}


class _Arguments:
    """Positional arguments, flags, and `--name value` or `--name=value` options of one command."""

    def __init__(
        self, command: str, words: Sequence[str], options: Sequence[str], flags: Sequence[str]
    ) -> None:
        self.command, self.positional, self.values, self.flags = command, [], {}, set()
        self.paths: list[tuple[str, str]] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--"):
                self.positional.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            if name in flags and not equals:
                self.flags.add(name)
                continue
            if name not in options and "." not in name:
                from difflib import get_close_matches

                near = get_close_matches(name, [*options, *flags], n=1, cutoff=0.5)
                what = f"did you mean --{near[0]}?" if near else f"see imaml {command} --help."
                raise ConfigError(f"imaml {command} has no option --{name}; {what}")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise ConfigError(f"--{name} needs a value: --{name} VALUE.")
                value = rest.pop(0)
            if "." in name:
                self.paths.append((name, value))
            else:
                self.values[name] = value

    def take(self, least: int, most: int, what: str) -> list[str | None]:
        """The positional arguments, padded with None; ConfigError where there are too few or many."""
        if not least <= len(self.positional) <= most:
            raise ConfigError(f"imaml {self.command}: {what}; {len(self.positional)} came. See --help.")
        return [*self.positional, *[None] * (most - len(self.positional))]

    def whole(self, name: str, default: int | None, least: int = 0) -> int | None:
        """An option that is a whole number."""
        if name not in self.values:
            return default
        try:
            value = int(self.values[name])
        except ValueError as error:
            raise ConfigError(f"--{name} {self.values[name]}: accepted is a whole number.") from error
        if value < least:
            raise ConfigError(f"--{name} {value}: accepted is a whole number of at least {least}.")
        return value


def use_all_cores() -> None:
    """On a CPU, makes every core a device of its own, so that tasks run side by side; nothing where set already.

    Must come before JAX starts. On GPU and TPU the flags change nothing.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        ours = f"--xla_force_host_platform_device_count={cores} --xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = f"{flags} {ours}".strip()


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    words = list(sys.argv[1:] if words is None else words)
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
            from difflib import get_close_matches

            near = get_close_matches(command, COMMANDS, n=1, cutoff=0.4)
            raise ConfigError(
                f"there is no command {command!r}; "
                + (f"did you mean {near[0]!r}?" if near else "see imaml --help.")
            )
        if "--help" in words or "-h" in words:
            print(HELP[command], end="")
            return 0
        return COMMANDS[command](words[1:]) or 0
    except ImamlError as error:
        print(f"imaml: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("imaml: interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        print("imaml: out of memory; lower --training.tasks or --method.chunk.", file=sys.stderr)
        return 2


def train_command(words: Sequence[str]) -> int:
    """imaml train."""
    options = ("steps", "seed", "data", "out", "from", "minutes", "tasks")
    arguments = _Arguments("train", words, options, ("resume", "quiet"))
    (name,) = arguments.take(0, 1, "at most one preset")
    from .config import Config, load_config, override, preset, replace_data

    resume = "resume" in arguments.flags
    config: Config = preset(name or "characters-5w1s")
    out = Path(arguments.values["out"]) if "out" in arguments.values else None
    if resume:
        if out is None:
            raise ConfigError("--resume needs --out DIR, the run's folder.")
        file = out / "config.json"
        if not file.exists():
            raise ConfigError(f"--resume: {out} holds no run (no config.json in it).")
        stored = load_config(file.read_text(), str(file))
        config = stored if name is None else config
    settings = [
        (f"training.{n}", arguments.values[n])
        for n in ("steps", "seed", "minutes", "tasks")
        if n in arguments.values
    ]
    for path, value in [*settings, *arguments.paths]:
        config = override(config, path, value)
    config = replace_data(config, arguments.values.get("data"))
    if out is None:
        out = _free_folder(Path("runs") / (name or "characters-5w1s"))
    use_all_cores()
    return _train(config, out, resume, arguments.values.get("from"), "quiet" in arguments.flags)


def _free_folder(base: Path) -> Path:
    """The folder, or the first of base-2, base-3, ... that does not exist yet."""
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def _train(config: Any, out: Path, resume: bool, origin: str | None, quiet: bool) -> int:
    import dataclasses

    from .adaptation import load
    from .journal import Journal
    from .reporting import write_report
    from .training import devices_mesh, prepare_folder, train

    if not resume:
        prepare_folder(
            out, config, False
        )  # before the data are read: a folder that cannot be written is told at once
        (out / "config.json").unlink()
    start = None
    if origin is not None and not resume:
        start = load(origin).theta
    domain = config.domain.build()
    method = config.method.build(domain, devices_mesh(config.training.tasks))
    run = train(
        domain,
        method,
        config.optimiser,
        out=out,
        resume=resume,
        start=start,
        progress=False if quiet else None,
        **dataclasses.asdict(config.training),
    )
    if run.reason == "interrupted":
        print(f"interrupted at step {run.step}; go on with: imaml train --resume --out {out}")
        return 130
    from .evaluation import evaluate

    result = evaluate(run, split="test", tasks=1000 if config.training.validation_tasks else 100)
    with Journal(out, progress=False, append=True) as journal:
        journal.write(
            "evaluation",
            split=result.split,
            scores=dict(result.scores),
            ci95=dict(result.ci95),
            before=dict(result.before),
            baselines=dict(result.baselines),
            tasks=result.tasks,
            seed=result.seed,
            data=getattr(config.domain, "source", type(config.domain).__name__),
        )
    print(result)
    print(f"run      {out}")
    print(f"report   {write_report(out, examples(run))}")
    return 0


def examples(run: Any, number: int = 4) -> list[Any]:
    """Example tasks of the test split with what a run predicts, for the report."""
    import jax
    import numpy as np

    from .config import FewShotRecipe
    from .reporting import Example

    if run.config is None or not isinstance(run.config.domain, FewShotRecipe):
        return []
    made = []
    for index in range(number):
        task = jax.device_get(run.domain.sample(jax.random.fold_in(jax.random.key(7), index), "test"))
        predictor = run.adapt(task.support.images, task.support.labels)
        probabilities = predictor.predict_proba(task.query.images)
        made.append(
            Example(
                support=task.support.images,
                support_labels=task.support.labels,
                query=task.query.images,
                query_labels=task.query.labels,
                predicted=np.argmax(probabilities, axis=1),
                probabilities=probabilities,
            )
        )
    return made


def evaluate_command(words: Sequence[str]) -> int:
    """imaml evaluate."""
    arguments = _Arguments("evaluate", words, ("split", "tasks", "seed", "data"), ("json",))
    (path,) = arguments.take(1, 1, "one run or artefact")
    tasks, seed = arguments.whole("tasks", 1000, 2), arguments.whole("seed", 0)
    use_all_cores()
    import dataclasses

    from .adaptation import load
    from .config import FewShotRecipe
    from .evaluation import evaluate_theta
    from .training import devices_mesh

    learned = load(str(path))
    recipe = learned.config.domain
    data = arguments.values.get("data")
    if data is not None:
        if not isinstance(recipe, FewShotRecipe):
            raise ConfigError(f"--data {data}: this run's domain draws its own tasks and reads no data.")
        source = "omniglot" if recipe.source == "characters" else recipe.source
        recipe = dataclasses.replace(recipe, source=source, data=data)
    domain = recipe.build()
    method = learned.config.method.build(domain, devices_mesh(len(_devices())))
    result = evaluate_theta(
        domain,
        method,
        learned.theta,
        split=arguments.values.get("split", "test"),
        tasks=tasks or 0,
        seed=seed or 0,
    )
    if "json" in arguments.flags:
        named = getattr(recipe, "source", type(recipe).__name__)
        print(json.dumps({**result.to_json(), "data": named, "run": str(path)}))
    else:
        print(result)
    return 0


def _devices() -> list[Any]:
    import jax

    return jax.devices()


def adapt_command(words: Sequence[str]) -> int:
    """imaml adapt."""
    arguments = _Arguments("adapt", words, ("support", "query"), ("json",))
    (path,) = arguments.take(1, 1, "one run or artefact")
    for name in ("support", "query"):
        if name not in arguments.values:
            raise ConfigError(f"imaml adapt needs --{name} DIR. See imaml adapt --help.")
    import numpy as np

    from .adaptation import load
    from .config import FewShotRecipe
    from .domains.images import image_files, read_image

    learned = load(str(path))
    recipe = learned.config.domain
    if not isinstance(recipe, FewShotRecipe):
        raise ConfigError(
            f"imaml adapt reads images, and {path} has learned {type(recipe).__name__}; use Python."
        )
    network = recipe.network

    def read(folder: str, flat: bool) -> tuple[list[Path], np.ndarray, list[str]]:
        found = image_files(folder, flat=flat)
        files = [(file, label) for label, group in found.items() for file in group]
        images = [read_image(file, network.side, network.channels) for file, _ in files]
        return [file for file, _ in files], np.stack(images), [label for _, label in files]

    _, support, labels = read(arguments.values["support"], False)
    files, query, _ = read(arguments.values["query"], True)
    shape = (-1, network.side, network.side, network.channels)
    predictor = learned.adapt(support.reshape(shape), labels)
    probabilities = predictor.predict_proba(query.reshape(shape))
    assert predictor.classes is not None
    classes = [str(c) for c in predictor.classes]
    rows = [
        {"file": str(file), "class": classes[int(np.argmax(p))], "probability": round(float(p.max()), 6)}
        for file, p in zip(files, probabilities, strict=True)
    ]
    if "json" in arguments.flags:
        each = [dict(zip(classes, (round(float(v), 6) for v in p), strict=True)) for p in probabilities]
        status = {"status": predictor.solution.status.ending.name, "normalisation": "inductive"}
        print(
            json.dumps(
                {
                    "classes": classes,
                    **status,
                    "predictions": [{**row, "probabilities": p} for row, p in zip(rows, each, strict=True)],
                }
            )
        )
    else:
        for row in rows:
            print(f"{row['file']}\t{row['class']}\t{row['probability']:.3f}")
    return 0


def data_command(words: Sequence[str]) -> int:
    """imaml data."""
    arguments = _Arguments("data", words, (), ())
    action, name, path = arguments.take(1, 3, "list, get NAME [DIR], or check NAME [PATH]")
    from .domains import omniglot

    if action == "list":
        print(omniglot.listing())
        return 0
    if action not in ("get", "check"):
        raise ConfigError(f"imaml data {action}: accepted are list, get and check.")
    if name != "omniglot":
        raise ConfigError(f"imaml data {action} {name or ''}: accepted is omniglot.")
    if action == "get":
        print(f"Omniglot is in {omniglot.get(path)}")
        return 0
    print(omniglot.check(path))
    return 0


def report_command(words: Sequence[str]) -> int:
    """imaml report."""
    arguments = _Arguments("report", words, (), ())
    (path,) = arguments.take(1, 1, "one run's folder")
    folder = Path(str(path))
    if not folder.is_dir():
        raise DataError(f"imaml report: {folder} is no folder; accepted is a run's folder.")
    from .adaptation import load
    from .reporting import write_report

    drawn: list[Any] = []
    if (folder / "artefact.safetensors").exists():
        drawn = examples(load(folder))
    print(write_report(folder, drawn))
    return 0


def presets_command(words: Sequence[str]) -> int:
    """imaml presets."""
    from .config import PRESETS

    for name, entry in PRESETS.items():
        print(f"{name:<20} {entry.about}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_command,
    "evaluate": evaluate_command,
    "adapt": adapt_command,
    "data": data_command,
    "report": report_command,
    "presets": presets_command,
}

if __name__ == "__main__":
    sys.exit(main())
