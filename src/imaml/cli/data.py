"""The commands of data: `imaml data`, and `imaml sample`, which writes a task as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ConfigError
from ..core.interrupts import Interrupts
from .options import DATA, Arguments, meant
from .startup import prepare_jax


def sample_command(words: Sequence[str]) -> int:
    """imaml sample."""
    arguments = Arguments("sample", words, ("out", "seed", "split", "data"), (), dotted=True, paths=DATA)
    (name,) = arguments.take(0, 1, "one preset")
    out, seed = Path(arguments.values.get("out", "sample")), arguments.whole("seed", 0)
    from ..config.overrides import overrides, replace_data
    from ..config.presets import preset

    config = preset(name or "characters-5w1s")
    config = replace_data(overrides(config, arguments.changes()), arguments.values.get("data"))
    prepare_jax()
    from .samples import write_task

    split = arguments.values.get("split", "test")
    few, asked = write_task(config.domain.build(), out, split=split, seed=seed)
    print(f"{out} holds a task: {few} support and {asked} query examples.")
    return 0


def data_command(words: Sequence[str]) -> int:
    """imaml data."""
    arguments = Arguments("data", words, (), ())
    action, name, path = arguments.take(1, 3, "list, get NAME [DIR], or check NAME [PATH]")
    actions = ("list", "get", "check")
    if action not in actions:
        raise ConfigError(f"imaml data has no {action!r}{meant(str(action), actions, 'data')}")
    if action != "list" and name != "omniglot":
        raise ConfigError(f"imaml data {action}: {name or 'nothing'} came; accepted is omniglot.")
    from ..domains.fewshot import omniglot

    if action == "list":
        print(omniglot.listing())
        return 0
    if action == "get":
        with Interrupts(visible=False) as interrupts, interrupts.stoppable():  # it removes what is half done
            folder = omniglot.get(path)
        print(f"Omniglot is in {folder}")
        return 0
    report = omniglot.check(path)
    print(report)
    return 0 if report.ok else 2
