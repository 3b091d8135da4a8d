"""The command line: parse, call, print.

JAX and all that imports it are imported late, within commands, so that `imaml --help` is quick.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App, Group
from cyclopts.exceptions import CycloptsError

from ..core.errors import ImamlError
from ..core.interrupts import STATUS, leave, watch
from ..core.streams import flush_output, note, outlive_readers
from ..core.version import __version__
from .adapt import adapt_command
from .bench import bench_command
from .compare import compare_command
from .data import data_app, sample_command
from .evaluate import evaluate_command
from .options import DEFAULT, explain, split_words, with_fields
from .own_tasks import OWN
from .report import presets_command, report_command
from .train import train_command

if TYPE_CHECKING:
    from ..config.run import Config

ABOUT = (
    "imaml: meta-learning with implicit gradients. Train on many related tasks, then learn a new task from a "
    "few examples. A first run needs no data: imaml train"
)
PACKAGE, _usual_warning = str(Path(__file__).parents[1]), warnings.showwarning
COMMANDS = {
    "train": train_command,
    "compare": compare_command,
    "evaluate": evaluate_command,
    "adapt": adapt_command,
    "sample": sample_command,
    "data": data_app,
    "report": report_command,
    "presets": presets_command,
    "bench": bench_command,
}
HELP = {"--help", "-h"}
CONFIGURED = ("train", "compare", "sample", "bench")  # commands that set fields of a configuration


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: The command and its arguments; None means those of this process, the program `imaml`.

    Returns:
        The exit status: 0, 2 for an error that the user can fix, 130 when interrupted.
    """
    if words is not None:
        return _run(list(words))
    watch()
    outlive_readers()
    status = _run(sys.argv[1:])
    if status == STATUS:  # at once: a compilation that was given up may still run in its thread
        with contextlib.suppress(OSError):
            flush_output()
        leave(line=b"")
    return status


def parser(words: Sequence[str] = ()) -> App:
    """Make the parser.

    Args:
        words: The command line. Where it asks for help with a command that has a configuration, or for
            shell completion, the parser lists the fields of the configuration, too.

    Returns:
        The Cyclopts application.
    """
    app = App(
        name="imaml",
        help=ABOUT,
        version=f"imaml {__version__}",
        version_flags=("--version", "-V"),
        help_format="markdown",
        result_action="return_value",
        group_parameters=Group("Options", sort_key=0),
    )
    completing = words[:1] == ["--install-completion"]
    helping = not HELP.isdisjoint(words)
    for order, (name, command) in enumerate(COMMANDS.items()):
        if name in CONFIGURED and (completing or (helping and words[0] == name and _configured(words))):
            command = with_fields(command, _config_in(words))
        if isinstance(command, App):
            command.sort_key = order
            app.command(command)
        elif name == "train":  # a preset, or a kind of one's own tasks
            train = App(name=name, sort_key=order, group_commands=Group("Tasks of your own", sort_key=0))
            train.default(command)
            for kind, own in OWN.items():
                train.command(own, name=kind)
            app.command(train)
        else:
            app.command(command, name=name, sort_key=order)
    app.register_install_completion_command(help="Set up completion of commands and options in your shell.")
    return app


def _config_in(words: Sequence[str]) -> Config:
    """Return the configuration that a command line asks for."""
    from ..config.overrides import overrides
    from ..config.presets import PRESETS, preset

    others, changes = split_words(words)
    named = (word.removeprefix("--preset=") for word in others)
    return overrides(preset(next((word for word in named if word in PRESETS), DEFAULT)), changes)


def _configured(words: Sequence[str]) -> bool:
    """Whether a command sets fields of a configuration; tasks of one's own have options instead."""
    return words[0] in CONFIGURED and not (words[0] == "train" and len(words) > 1 and words[1] in OWN)


def _show_warning(message: Warning | str, kind: type[Warning], file: str, *where: Any) -> None:
    """Show this package's warnings as one line each, without file and line."""
    if issubclass(kind, RuntimeWarning) and file.startswith(PACKAGE):
        note(f"imaml: warning: {' '.join(str(message).split())}")
    else:
        _usual_warning(message, kind, file, *where)


def _run(words: list[str]) -> int:
    """Run one command, which returns a status where that is not 0, and tell its errors in one line."""
    words = words if words and words != ["help"] else ["--help"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            others, changes = split_words(words) if _configured(words) else (words, [])
            command, bound, unparsed = parser(words).parse_args(
                others, print_error=False, exit_on_error=False, help_on_error=False, verbose=False
            )
            if "changes" in unparsed:
                bound.arguments["changes"] = changes
            status = command(*bound.args, **bound.kwargs)
            flush_output()  # so that a full disk shows here
            return status if isinstance(status, int) else 0
    except (ImamlError, CycloptsError) as error:
        note(f"imaml: {explain(error) if isinstance(error, CycloptsError) else error}")
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        note(f"imaml: {place}{error.strerror or error}. Hint: fix this and try again.")
        return 2
    except KeyboardInterrupt:
        note("imaml: interrupted")
        return STATUS
    except Exception as error:
        if not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        note("imaml: out of memory. Hint: lower --method.chunk, --training.tasks or --domain.filters.")
        return 2
