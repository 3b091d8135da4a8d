"""The command line: parse, call, print. Heavy imports are late, so that `imaml --help` is quick."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence

from ..core.errors import ConfigError, ImamlError
from ..core.interrupts import STATUS, leave, watch
from ..core.streams import discard_output, flush_output, note
from .adapt import adapt_command
from .bench import bench_command
from .compare import compare_command
from .data import data_command, sample_command
from .evaluate import evaluate_command
from .manual import HELP, USAGE
from .options import meant
from .report import presets_command, report_command
from .train import train_command


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        words: The command and its arguments; None means those of this process, the program `imaml`.

    Returns:
        The exit status: 0, 2 for an error that the user can fix, 130 when interrupted.
    """
    if words is not None:
        return _run(list(words))
    watch()
    status = _run(sys.argv[1:])
    if status == STATUS:  # at once: a compilation that was given up may still run in its thread
        with contextlib.suppress(OSError):
            flush_output()
        leave(line=b"")
    return status


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(USAGE, end="")
        return 0
    if words[0] in ("--version", "-V"):
        from ..core.version import __version__

        print(f"imaml {__version__}")
        return 0
    command = words[0]
    try:
        if command not in COMMANDS:
            raise ConfigError(f"there is no command {command!r}{meant(command, COMMANDS)}")
        if "--help" in words or "-h" in words:
            print(HELP[command], end="")
            return 0
        status = COMMANDS[command](words[1:])
        flush_output()  # so that a closed pipe shows here
        return status
    except ImamlError as error:
        note(f"imaml: {error}")
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        discard_output()
        return 0
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        note(f"imaml: {place}{error.strerror or error}; mend that and try again.")
        return 2
    except KeyboardInterrupt:
        note("imaml: interrupted")
        return STATUS
    except Exception as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        note("imaml: out of memory; lower --method.chunk, --training.tasks or --domain.filters.")
        return 2


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train_command,
    "compare": compare_command,
    "evaluate": evaluate_command,
    "adapt": adapt_command,
    "sample": sample_command,
    "data": data_command,
    "report": report_command,
    "presets": presets_command,
    "bench": bench_command,
}
