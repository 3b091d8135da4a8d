"""A lock on a directory: one process writes there, and the lock ends with it, however it ends."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: dict[str, int] = {}  # directories that this process has locked, and in which thread


class Locked(Exception):
    """The directory is locked by another process, or by another thread of this one."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a directory within the block, with a file ``.lock`` that is gone after it.

    The operating system releases the lock when the process ends. So the file of a killed process locks
    nothing. On file systems without locks, such as some network file systems, nothing is locked.

    Args:
        folder: The directory; it is made if it is missing. The thread that has locked it may lock it again.

    Yields:
        Nothing; the block runs once.

    Raises:
        Locked: If it is locked already.
        OSError: If the file cannot be written.
    """
    place = os.path.realpath(folder)
    if _held.get(place) == threading.get_ident():
        yield
        return
    handle = _acquired(folder)
    _held[place] = threading.get_ident()
    try:
        yield
    finally:
        del _held[place]
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # while it is locked, so that it is this process's own
        os.close(handle)


def _acquired(folder: Path) -> int:
    """The handle of the locked file."""
    path = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has removed the empty directory in between
            continue
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise Locked from None
        except OSError:  # of a file system without locks
            return handle
        # Between the two calls the process that had it may have removed the file: the lock is then of none.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)
