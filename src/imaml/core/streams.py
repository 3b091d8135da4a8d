"""Lines for the user on stderr, also where there is none, and output whose reader has gone.

A program without a console (pythonw, a service, a closed descriptor) has `sys.stderr` or `sys.stdout` None.
`print(..., file=None)` then writes to stdout, and `None.isatty()` fails, so
lines for stderr go through here.

A reader such as `head` closes its pipe when it has had enough, and the next write to it raises
BrokenPipeError. A training run must not end by that: a program calls `outlive_readers`.
"""

import os
import sys
from collections.abc import Callable
from typing import TextIO, TypeVar

T = TypeVar("T")


class Lasting:
    """A text stream that lasts when its reader has gone; from then on what is written is lost.

    Args:
        stream: The stream, which has a file descriptor.
    """

    def __init__(self, stream: TextIO) -> None:
        """See the class."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text.

        Args:
            text: The text.

        Returns:
            Its length.
        """
        return self._last(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Write out what is in the buffer."""
        self._last(self._stream.flush, None)

    def _last(self, write: Callable[[], T], lost: T) -> T:
        """Return what a call returns, or where the reader has gone what is said instead."""
        try:
            return write()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            return lost

    def __getattr__(self, name: str) -> object:
        """Return everything else, such as `isatty`, of the stream."""
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """Let this program go on, without output, when the reader of its stdout or stderr has gone."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if _usable(stream):
            setattr(sys, name, Lasting(stream))


def note(text: str, end: str = "\n") -> None:
    """Writes a line to stderr, at once; nothing where there is no stderr.

    Args:
        text: The line.
        end: What follows it.
    """
    if _usable(sys.stderr):
        print(text, end=end, file=sys.stderr, flush=True)


def on_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is there, open, and a terminal.

    Args:
        stream: `sys.stderr` or `sys.stdout`.

    Returns:
        False for None and for a closed stream.
    """
    return _usable(stream) and stream.isatty()  # type: ignore[union-attr]


def flush_output() -> None:
    """Writes out what was printed; OSError where that fails, as on a full disk."""
    if _usable(sys.stdout):
        sys.stdout.flush()


def _usable(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed
