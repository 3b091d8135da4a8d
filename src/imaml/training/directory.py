"""The run directory: claimed by one process, created for a new run, checked for one that is resumed."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..config.run import PYTHON, Config, load_config
from ..core.errors import ConfigError
from ..core.recipes import to_json
from ..storage.atomic import disk_errors, is_leftover, write_json
from ..storage.lock import LOCK, Locked, locked
from .journal import FILE

MAY_CHANGE = {
    "domain.": "copies query_copies data quantiles",
    "domain.file.": "path",
    "domain.model.": "name token",
    "domain.loss.": "name token",
    "method.": "new_task",
    "training.": "minutes patience gradient_below checkpoint_every keep log_every test_tasks",
}


@contextlib.contextmanager
def claimed(folder: Path, numbered: bool = False) -> Iterator[Path]:
    """Claim a run directory within the block, so that no other process writes to it.

    A directory that is made for the block and still empty at its end is removed.

    Args:
        folder: The directory.
        numbered: Whether the first of folder-2, folder-3, ... will do that is empty and can be claimed, if
            this one is not or cannot.

    Yields:
        The directory.

    Raises:
        ConfigError: If another process has claimed it, or it cannot be written.
    """
    others = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    with contextlib.ExitStack() as held:
        for place in itertools.chain([folder], others if numbered else ()):
            if numbered and _occupied(place):
                continue
            if place.exists() and not place.is_dir():
                raise ConfigError(
                    f"{place}: expected a directory for the run, got a file. Hint: choose another with --out."
                )
            new = not place.exists()
            try:
                with disk_errors(place, ConfigError):
                    held.enter_context(locked(place))
            except Locked:
                if numbered:
                    continue
                raise ConfigError(
                    f"{place}: expected a directory that no other run is writing to, got one in use. Hint: "
                    "wait for that run to end, or choose another directory (--out)."
                ) from None
            if numbered and _occupied(place):  # by a run that has ended in between
                held.close()
                continue
            try:
                yield place
            finally:
                held.close()
                if new:
                    with contextlib.suppress(OSError):
                        place.rmdir()
            return


def _occupied(place: Path) -> bool:
    """Whether a path is that of a file, or of a directory that is not empty."""
    return place.exists() and not (place.is_dir() and all(entry.name == LOCK for entry in place.iterdir()))


def create_run_directory(folder: Path) -> None:
    """Create the directory of a new run.

    The files of a run that was killed before its first step may be in it: they have no config.json yet.

    Args:
        folder: The run directory, which is `claimed`.

    Raises:
        ConfigError: If it cannot be written, or has other files in it.
    """
    with disk_errors(folder, ConfigError):
        folder.mkdir(parents=True, exist_ok=True)
        found = {entry.name for entry in folder.iterdir() if not is_leftover(entry.name)} - {LOCK}
        saved = {entry.name for entry in (folder / "checkpoints").glob("step-*")}
        tempfile.TemporaryFile(dir=folder).close()
    if found - {FILE, "checkpoints"} or saved - {"step-00000000.checkpoint"}:
        raise ConfigError(
            f"{folder}: expected a new or empty directory, got one with files in it. Hint: resume the run in "
            "it (--resume), or choose another directory (--out)."
        )


def write_config(folder: Path, described: Config | str) -> None:
    """Write config.json, whole or not at all; from then on the run can be resumed.

    Args:
        folder: The run directory.
        described: The configuration, or the reason why there is none.

    Raises:
        ConfigError: If the file cannot be written.
    """
    content = {"kind": PYTHON, "reason": described} if isinstance(described, str) else to_json(described)
    with disk_errors(folder / "config.json", ConfigError):
        write_json(folder / "config.json", content, indent=2)


def read_config(folder: Path) -> Config:
    """Read the configuration of a run.

    Args:
        folder: The run directory.

    Returns:
        The configuration.

    Raises:
        ConfigError: If it holds no run, or one without a configuration.
    """
    return load_config(_content(folder), str(folder / "config.json"))


def _content(folder: Path) -> str:
    """Return the text of config.json."""
    try:
        return (folder / "config.json").read_text(errors="replace")
    except OSError as error:
        raise ConfigError(
            f"{folder}: expected a run to resume, got no config.json in it. Hint: omit resume to start "
            "a run there."
        ) from error


def check_resumable(folder: Path, described: Config | str) -> None:
    """Check that a directory holds a run of a configuration.

    The number of steps may be another one if the learning rate is constant, as steps taken are then the same.

    Args:
        folder: The run directory.
        described: The configuration, or the reason why there is none.

    Raises:
        ConfigError: If it holds no run, or one of another configuration.
    """
    hint = "restore it, or start a new run from this run's parameters (--from)."
    if isinstance(described, str):
        same, difference = f'"kind": "{PYTHON}"' in _content(folder), f"now {described}"
    else:
        old, new = to_json(read_config(folder)), to_json(described)
        if new["optimiser"].get("schedule") == "constant":
            new["training"]["steps"] = old["training"]["steps"]
        difference = first_difference(old, new)
        if new["training"]["steps"] != old["training"]["steps"] and new["optimiser"].get("schedule"):
            hint = (
                "the learning rate falls to zero at the last step, so another number would have changed the "
                "steps already taken. Start a new run from this run's parameters (--from). A run with a "
                "constant learning rate (schedule=constant) can be extended."
            )
        same = difference is None
    if not same:
        raise ConfigError(
            f"{folder}: expected the configuration that the run was started with, got another: {difference}. "
            f"Hint: {hint}"
        )


def first_difference(
    old: object, new: object, path: str = "", may_change: Mapping[str, str] = MAY_CHANGE
) -> str | None:
    """Compare two configurations.

    By default where the data are, when a run stops early, how often it writes and how new tasks are solved
    may change, as no step depends on them.

    Args:
        old: A configuration as JSON values.
        new: Another one.
        path: Where both are in a larger one, with a dot at the end.
        may_change: The names of fields that are not compared, by the path of the recipe that has them.

    Returns:
        A phrase on the first field in which they differ, or None.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new}.difference(may_change.get(path, "").split()))
        found = (
            first_difference(old.get(name), new.get(name), f"{path}{name}.", may_change) for name in names
        )
        return next(filter(None, found), None)
    return None if old == new else f"{path.rstrip('.')} was {old!r} and is now {new!r}"
