"""What all benchmarks share: registration, options, result files, resuming, timing, intervals and figures.

A benchmark is a function in any module of this package::

    @benchmark("accuracy", quick={"each": 3}, double=True)
    def main(run, each=100):
        for kind in KINDS:
            run.add(measure(kind, each))

Its parameters after ``run`` are its options on the command line: their defaults give type and choices.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from imaml.core.statistics import mean_intervals

HERE = Path(__file__).parent
ROOT, RESULTS, FIGURES = HERE.parent, HERE / "results", HERE.parent / "docs" / "figures"
PACKAGES = ("imaml", "jax", "jaxlib", "optax", "lineax", "numpy")
QUIET: dict[str, Any] = {"validate_every": 0, "progress": False}  # options of `imaml.train`
REGISTERED: dict[str, Benchmark] = {}
Measure = Callable[..., int | None]


@dataclass(frozen=True)
class Benchmark:
    """A registered measurement.

    Args:
        name: Name on the command line.
        measure: Function of a `Run` and its options.
        result: File under `results` that it writes; None where it only prints.
        quick: Values of its options with ``--quick``.
        double: Whether JAX computes in float64.
        devices: Whether every processor core is a JAX device, as in `imaml train`.
        positional: Options that are given without their names.
        draw: Draws the figures of a result file, called with the `Run` and the `Result` after `measure`.
    """

    name: str
    measure: Measure
    result: str | None
    quick: Mapping[str, Any] = field(default_factory=dict)
    double: bool = False
    devices: bool = False
    positional: tuple[str, ...] = ()
    draw: Callable[[Run, Result], None] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Default of each option by name, from the signature of `measure`."""
        parameters = list(inspect.signature(self.measure).parameters.values())[1:]
        return {option.name: option.default for option in parameters}

    def parser(self) -> argparse.ArgumentParser:
        """Returns the parser of the options."""
        about = inspect.getdoc(inspect.getmodule(self.measure))
        form = argparse.RawDescriptionHelpFormatter
        name = f"python -m benchmarks run {self.name}"
        made = argparse.ArgumentParser(name, description=about, formatter_class=form)
        for option, default in self.options.items():
            how = _how(default)
            flag = f"--{option.replace('_', '-')}"
            if option in self.positional:
                flag, how = option, {} if how.pop("required", False) else {"nargs": "?", **how}
            made.add_argument(flag, **how)
        if self.draw is not None:
            made.add_argument("--draw-only", action="store_true", help="draw the result file as it is")
        made.add_argument("--quick", action="store_true", help="a tiny version, to see whether it works")
        made.add_argument("--out", type=Path, help="result file, by default the committed one")
        return made


def _how(default: Any) -> dict[str, Any]:
    """Keywords of `add_argument` for an option with that default."""
    if default is inspect.Parameter.empty:
        return {"required": True}
    if isinstance(default, bool):
        return {"action": "store_true"}
    if isinstance(default, tuple):
        kind = type(default[0]) if default else str
        choices = default if kind is str and not any("/" in value for value in default) else None
        return {
            "nargs": "*",
            "type": kind,
            "default": default,
            "choices": choices or None,
            "metavar": "VALUE",
        }
    return {"default": default, "type": str if default is None else type(default)}


def benchmark(name: str, *, result: str | None = "", **how: Any) -> Callable[[Measure], Measure]:
    """Registers a measurement.

    Args:
        name: Name on the command line.
        result: File under `results` that it writes, by default named after it; None where it only prints.
        how: Other fields of `Benchmark`.

    Returns:
        A decorator that returns its function unchanged.
    """

    def register(measure: Measure) -> Measure:
        file = f"{name}.json" if result == "" else result
        REGISTERED[name] = Benchmark(name, measure, file, **how)
        return measure

    return register


def names() -> dict[str, str]:
    """Returns the module of every benchmark by name, read from the files without importing them."""
    found = {}
    for file in sorted(HERE.rglob("*.py")):
        for name in re.findall(r'^@benchmark\(\s*"(\w+)"', file.read_text(), re.MULTILINE):
            found[name] = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return found


@dataclass(frozen=True)
class Result:
    """The schema of a result file: a JSON object with these keys, and the figures beside them.

    Args:
        command: Command that wrote it.
        machine: ``processor``, ``cores`` and ``python``; None where it was not recorded.
        versions: Versions of the packages that the numbers depend on; None where they were not recorded.
        rows: One object for each thing measured.
        figures: Other keys, for example the number of tasks.
    """

    command: str
    machine: dict[str, Any] | None
    versions: dict[str, str] | None
    rows: list[dict[str, Any]]
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        machine, rows = {"processor", "cores", "python"}, self.rows
        expected = {
            "command: expected a string": isinstance(self.command, str) and self.command,
            "machine: expected processor, cores and python": set(self.machine or machine) == machine,
            "versions: expected strings": all(isinstance(v, str) for v in (self.versions or {}).values()),
            "rows: expected a list of objects": isinstance(rows, list)
            and all(isinstance(r, dict) for r in rows),
        }
        for message, holds in expected.items():
            if not holds:
                raise ValueError(f"result file: {message}")

    @classmethod
    def read(cls, file: str | Path) -> Result:
        """Reads and validates a file of `results`; older ones have the versions in ``machine``.

        Raises:
            ValueError: If the file does not have this schema.
        """
        whole = json.loads((RESULTS / file).read_text())
        if not isinstance(whole, dict) or not {"command", "machine", "rows"} <= set(whole):
            raise ValueError(f"{file}: expected an object with command, machine, versions and rows")
        if "versions" not in whole:
            machine = whole["machine"]
            whole["versions"] = {name: machine.pop(name) for name in PACKAGES if name in machine}
        return cls(*(whole.pop(key) for key in ("command", "machine", "versions", "rows")), whole)

    def to_json(self) -> dict[str, Any]:
        """Returns the object that the file has."""
        kept = {"command": self.command, "machine": self.machine, "versions": self.versions}
        return {**kept, **self.figures, "rows": self.rows}


def machine() -> dict[str, Any]:
    """Returns processor, cores and the version of Python; nothing that names a host."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        model = found[1].strip() if found else model
    return {"processor": model, "cores": cores(), "python": platform.python_version()}


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _plain(value: Any) -> Any:
    """What JSON has no form for: arrays as lists, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def write_json(file: Path, value: Any) -> None:
    """Writes JSON in one step: a reader sees the old file or the new one. Arrays become lists."""
    text = json.dumps(value, default=_plain)
    text = text if len(text) > 200_000 else json.dumps(value, indent=1, default=_plain)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_text(text + "\n")
    part.replace(file)


@dataclass(frozen=True)
class Run:
    """What a benchmark is given: where its results go, and what an earlier call has kept.

    Args:
        command: Command line that repeats it, recorded in the result file.
        out: Result file; None where none is written.
        quick: Whether it only has to show that it works.
        kept: Directory of values that `once` keeps.
        rows: What `add` was given.
    """

    command: str
    out: Path | None
    quick: bool
    kept: Path
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any], **figures: Any) -> None:
        """Prints a row, and writes the result file with all rows so far and other figures."""
        self.rows.append(row)
        say(row)
        self.write(self.rows, **figures)

    def write(self, rows: list[dict[str, Any]], **figures: Any) -> None:
        """Writes the result file."""
        versions = {name: metadata.version(name) for name in PACKAGES}
        if self.out is not None:
            write_json(self.out, Result(self.command, machine(), versions, rows, figures).to_json())

    def before(self, here: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Returns the rows of the result file as it is; none where it is missing or not of machine `here`."""
        if self.out is None or not self.out.exists():
            return []
        found = Result.read(self.out.absolute())
        return found.rows if here in (None, found.machine) else []

    def once(self, key: str, compute: Callable[..., Any], *given: Any) -> Any:
        """Returns ``compute(*given)`` by way of JSON; kept, so that the same command resumes after it."""
        file = self.kept / (re.sub(r"[^\w.]+", "-", key) + ".json")
        if not file.exists():
            write_json(file, compute(*given))
        return json.loads(file.read_text())

    def place(self, name: str) -> Path:
        """Returns where a figure goes: to docs/figures with the committed result, else beside ``--out``."""
        return FIGURES / name if self.out is None or RESULTS in self.out.parents else self.out.parent / name


def start(name: str, words: list[str]) -> int:
    """Runs a benchmark with the words of a command line; returns the exit status."""
    import_module(names()[name])
    chosen = REGISTERED[name]
    parser = chosen.parser()
    if "--quick" in words:
        parser.set_defaults(**chosen.quick)
    given = vars(parser.parse_args(words))
    quick, out, draw_only = (given.pop(name, False) for name in ("quick", "out", "draw_only"))
    usual = RESULTS / chosen.result if chosen.result else None
    if quick and out is None and usual:
        out = Path("runs") / "quick" / usual.name
    said = ["python", "-m", "benchmarks", "run", name]
    for option, value in given.items():
        if value != chosen.options[option]:
            values = value if isinstance(value, tuple | list) else [] if value is True else [value]
            path = option in ("data", "before") or option.endswith("_data")
            said += [] if option in chosen.positional else [f"--{option.replace('_', '-')}"]
            said += ["PATH"] if path else map(str, values)
    if chosen.devices:
        from imaml.cli.startup import prepare_jax

        prepare_jax()
    if chosen.double:
        import jax

        jax.config.update("jax_enable_x64", True)
    kept = Path("runs") / name if out is None else out.with_suffix("")
    run = Run(" ".join(said), out or usual, quick, kept)
    status = 0 if draw_only else chosen.measure(run, **given) or 0
    if chosen.draw is not None:
        chosen.draw(run, Result.read(run.out.absolute()))
    return status


def say(row: Mapping[str, Any]) -> None:
    """Prints a row as JSON at once, without its long values."""
    texts = {key: json.dumps(value, default=_plain) for key, value in row.items()}
    shown = ", ".join(f'"{key}": {text}' for key, text in texts.items() if len(text) < 500)
    print(f"{{{shown}}}", flush=True)


def interval(values: Any, student: bool = False) -> tuple[float, float]:
    """Returns the mean and the half-width of its 95 % interval over independent values.

    Args:
        values: Array; values that are not finite are excluded.
        student: Whether the interval is Student's, for few values.
    """
    values = np.asarray(values, np.float64)
    means, widths = mean_intervals({"": values}, np.arange(len(values)) if student else None)
    return means[""], widths[""]


def in_turn(
    calls: Mapping[str, Callable[[], Any]], rounds: int = 5, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Times functions in turn, so that what slows the machine slows all alike.

    Args:
        calls: Functions by name. Each is called once before, to compile.
        rounds: Least number of rounds; each begins with another function.
        seconds: Least time of measured calls for each function, on average.

    Returns:
        Milliseconds of every call, by name.
    """
    import jax

    order, times, done = list(calls), {name: [] for name in calls}, 0
    for call in calls.values():
        jax.block_until_ready(call())
    end = time.perf_counter() + seconds * len(calls)
    while done < rounds or time.perf_counter() < end:
        first = done % len(order)
        for name in order[first:] + order[:first]:
            began = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(1e3 * (time.perf_counter() - began))
        done += 1
    return times


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[[], Any], int]:
    """Compiles a function for its arguments; returns the call with them, and XLA's temporary bytes."""
    import jax

    made = jax.jit(function).lower(*arguments).compile()
    return lambda: made(*arguments), made.memory_analysis().temp_size_in_bytes


def mapped(function: Callable[..., Any], batch_size: int | None = None) -> Callable[..., Any]:
    """Compiles a function of one task to one of many, computed one after another or `batch_size` at once.

    Returns:
        A function of arrays with a leading axis of tasks; so have its results, which are of NumPy.
    """
    import jax

    run = jax.jit(lambda *many: jax.lax.map(lambda one: function(*one), many, batch_size=batch_size))
    return lambda *many: jax.device_get(run(*many))


def spread(values: list[float], form: str = "ms_{}") -> dict[str, float]:
    """Returns median, least and greatest value, each named by `form`."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {form.format(name): value for name, value in figures.items()}


def exponent(x: Any, y: Any) -> float:
    """Returns the slope of log y against log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def prepared(name: str, data: str | None = None) -> tuple[Any, Any, Any]:
    """Returns a preset's configuration, its domain, and the mesh that its tasks share."""
    from imaml.config.overrides import replace_data
    from imaml.config.presets import preset
    from imaml.training.step import devices_mesh

    config = replace_data(preset(name), data)
    return config, config.domain.build(), devices_mesh(config.training.tasks)


def trained(
    domain: Any, method: Any, optimiser: Any, *, out: Path | None = None, **options: Any
) -> tuple[Any, float]:
    """Trains; with a directory `out`, its run is kept, and resumed where it was interrupted.

    Returns:
        The meta-parameters, and how many seconds training took, of a resumed run those of the last part.
    """
    import imaml

    began, done = time.perf_counter(), out and out / "seconds"
    if done and done.exists():
        with contextlib.suppress(imaml.ImamlError):  # a method that an artefact cannot describe is resumed
            return imaml.load(out).theta, float(done.read_text())
    if out and out.exists():
        options |= {"resume": True, "start": None}
    run = imaml.train(domain, method, optimiser, out=out, **options, **QUIET)
    if run.reason == "interrupted":
        raise SystemExit("interrupted; the same command resumes")
    seconds = time.perf_counter() - began
    if done and not done.exists():
        done.write_text(str(seconds))
    return run.theta, float(done.read_text()) if done else seconds


@contextlib.contextmanager
def figure(path: Path, rows: int = 1, columns: int = 1, font: int = 10, **how: Any) -> Iterator[Any]:
    """Draws a figure in the style of the docs: yields figure and panels, then writes it and prints where."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context({"svg.hashsalt": "imaml", "font.size": font}):
        drawn, panels = plt.subplots(rows, columns, layout="constrained", squeeze=False, **how)
        yield drawn, panels
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=90, metadata={"Date" if path.suffix == ".svg" else "Software": None})
        plt.close(drawn)
    print(path)
