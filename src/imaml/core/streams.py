"""Lines for the user on stderr, also where there is none.

A program without a console (pythonw, a service, a closed descriptor) has `sys.stderr` or `sys.stdout` None.
`print(..., file=None)` then writes to stdout, and `None.isatty()` fails, so
lines for stderr go through here.
"""

import os
import sys
from typing import TextIO


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
    """Writes out what was printed; OSError where the reader has gone."""
    if _usable(sys.stdout):
        sys.stdout.flush()


def discard_output() -> None:
    """From now on stdout goes nowhere; for after its reader has gone."""
    if _usable(sys.stdout):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usable(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed
