"""The run directory: created for a new run, checked for one that is resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..config.run import PYTHON, Config, load_config
from ..core.errors import ConfigError
from ..core.recipes import to_json
from .journal import FILE

MAY_CHANGE = {
    "domain.": ("data",),
    "method.": ("new_task",),
    "training.": (
        "minutes",
        "patience",
        "gradient_below",
        "checkpoint_every",
        "keep",
        "log_every",
        "test_tasks",
    ),
}


def check_new(folder: Path) -> None:
    """Creates the directory of a new run.

    The files of a run that was killed before its first step may be in it: they have no config.json yet.

    Args:
        folder: The run directory.

    Raises:
        ConfigError: If it cannot be written, or has other files in it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file. Hint: choose a directory for the run (--out).")
    try:
        found = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        saved = {entry.name for entry in (folder / "checkpoints").glob("step-*")}
        if found - {FILE, "checkpoints", "config.json.part"} or saved - {"step-00000000"}:
            raise ConfigError(
                f"{folder} exists and is not empty. Hint: resume the run in it (--resume), or choose another "
                "directory (--out)."
            )
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / "config.json.part"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}). Hint: choose another (--out)."
        ) from error


def write_config(folder: Path, described: Config | str) -> None:
    """Writes config.json, whole or not at all; from then on the run can be resumed.

    Args:
        folder: The run directory.
        described: The configuration, or the reason why there is none.

    Raises:
        ConfigError: If the file cannot be written.
    """
    content = {"kind": PYTHON, "reason": described} if isinstance(described, str) else to_json(described)
    file, part = folder / "config.json", folder / "config.json.part"
    try:
        part.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(part, file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}). Hint: make it writable.") from error


def check_resumable(folder: Path, described: Config | str) -> None:
    """Checks that a directory holds a run of a configuration.

    Args:
        folder: The run directory.
        described: The configuration, or the reason why there is none.

    Raises:
        ConfigError: If it holds no run, or one of another configuration.
    """
    file = folder / "config.json"
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigError(
            f"resume: expected a run in {folder}, got no config.json. Hint: omit resume to start a run there."
        ) from error
    if isinstance(described, str):
        if f'"kind": "{PYTHON}"' not in text:
            raise ConfigError(f"resume: {folder} was started with another configuration: now {described}.")
        return
    difference = first_difference(to_json(load_config(text, str(file))), to_json(described))
    if difference:
        raise ConfigError(
            f"resume: {folder} was started with another configuration: {difference}. Leave that as it was, "
            "or start a new run from what this one has learned (--from)."
        )


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """Compares two configurations.

    Where the data are, when a run stops early, how often it writes and how new tasks are solved may change,
    as no step depends on them.

    Args:
        old: A configuration as JSON values.
        new: Another one.
        path: Where both are in a larger one, with a dot at the end.

    Returns:
        A phrase on the first field in which they differ, or None.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(set(old) | set(new)):
            if name in MAY_CHANGE.get(path, ()):
                continue
            found = first_difference(old.get(name), new.get(name), f"{path}{name}.")
            if found:
                return found
        return None
    return None if old == new else f"{path.rstrip('.')} was {old!r} and is now {new!r}"
