"""Files that are whole or not there at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import DataError, ImamlError
from ..core.recipes import Json, JsonObject

_SUFFIX = ".writing"


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Renames a temporary file to ``path`` at the end of the block, unless the block raises.

    Args:
        path: The file to create or replace.
        durable: Whether the file is on the disk itself, and no longer in a cache, after the block.

    Yields:
        The path of the temporary file, in the same directory.
    """
    # The process id: two processes may write the same file, and each must rename what it wrote itself.
    writing = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        yield writing
        if durable:
            flush(writing)
        os.replace(writing, path)
    finally:
        writing.unlink(missing_ok=True)
    if durable:
        flush(path.parent)


def write_whole(path: Path, content: str | bytes, *, durable: bool = False) -> None:
    """Writes a file of which readers see the old content or the new one, never a part.

    Args:
        path: The file to create or replace.
        content: Text, written in UTF-8, or bytes.
        durable: Whether the content is on the disk itself when this returns.

    Raises:
        OSError: If the file cannot be written.
    """
    with replacing(path, durable=durable) as writing:
        writing.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Json, *, indent: int | None = 1) -> None:
    """Writes strict JSON as `write_whole` does.

    Args:
        path: The file to create or replace.
        content: JSON values.
        indent: Spaces per level; None for one line.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If a number is NaN or infinite.
    """
    write_whole(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def read_json(path: Path) -> JsonObject:
    """Reads a file of JSON.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DataError: If it cannot be read, or holds something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: expected JSON, got an error ({error}). Hint: restore it, or remove it."
        ) from error


def is_leftover(name: str) -> bool:
    """Tells whether a file is what a killed process leaves of `replacing`.

    Args:
        name: The file's name, without its directory.

    Returns:
        True for the name of a temporary file.
    """
    return name.startswith(".") and name.endswith(_SUFFIX)


def flush(path: Path) -> None:
    """Waits until a file's bytes, or a directory's list of names, are on the disk itself.

    Args:
        path: The file or directory.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a directory and its parents durably.

    Args:
        folder: The directory; it may exist.
    """
    if not folder.is_dir():  # each new directory's name is flushed to the disk, too
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


@contextlib.contextmanager
def disk_errors(path: str | Path | None, refusal: type[ImamlError]) -> Iterator[None]:
    """Turns errors of the disk within the block into an error of this package.

    Args:
        path: What is written, the beginning of the message.
        refusal: The error to raise.

    Yields:
        Nothing; the block runs once.

    Raises:
        ImamlError: An instance of ``refusal``, if the block raises OSError or ValueError.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise refusal(
            f"{path}: expected a place that can be written, got an error ({reason(error)}). Hint: free space "
            "there, or choose another folder."
        ) from error


def reason(error: BaseException) -> str:
    """Describes an error in a few words.

    Args:
        error: Any exception.

    Returns:
        One line of at most 200 characters, without a full stop.
    """
    if isinstance(error, FileExistsError):
        return f"{error.filename} is a file, not a folder"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:200].rstrip(".") or type(error).__name__
