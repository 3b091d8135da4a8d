"""The folder of a run: made for a new one, checked to be the same for one that goes on."""

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
    """Makes the folder of a new run; ConfigError where it cannot be written or holds anything already.

    What a run leaves that was killed before its first step (it has no config.json yet) does not count.
    """
    advice = "resume the run in it (--resume), or choose another folder (--out)"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; a run needs a folder of its own (--out).")
    try:
        found = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        saved = {entry.name for entry in (folder / "checkpoints").glob("step-*")}
        if found - {FILE, "checkpoints", "config.json.part"} or saved - {"step-00000000"}:
            raise ConfigError(f"{folder} exists and is not empty; {advice}.")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / "config.json.part"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); choose another (--out)."
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
    """ConfigError where a folder holds no run, or not one of this configuration (the first difference)."""
    file = folder / "config.json"
    try:
        text = file.read_text()
    except OSError as error:
        raise ConfigError(
            f"resume: {folder} holds no run that has begun (no config.json); leave out resume to start one "
            "there."
        ) from error
    if isinstance(described, str):
        if f'"kind": "{PYTHON}"' not in text:
            raise ConfigError(f"resume: {folder} was started with another configuration: now {described}.")
        return
    difference = first_difference(to_json(load_config(text, str(file))), to_json(described))
    if difference:
        raise ConfigError(
            f"resume: {folder} was started with another configuration: {difference}. Leave that as it was, "
            "or begin a new run from what this one has learned (--from)."
        )


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """A sentence on the first field in which two JSON configurations differ, or None.

    Where the data lie, when a run stops early, how often it writes and how new tasks are solved may change:
    no step depends on them.
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
