"""The program `imaml`, and `python -m imaml`."""

import sys

from .core.interrupts import watch


def program() -> int:
    """Run the command line.

    Returns:
        The exit status.
    """
    watch()  # before the other imports, so that Ctrl-C within them ends the program as it does later
    from .cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(program())
