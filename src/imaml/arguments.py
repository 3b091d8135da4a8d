"""The words of one command: positional arguments, flags and options; what was meant where one is misspelt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import ConfigError


class Arguments:
    """Positional arguments, flags, and `--name value` or `--name=value` options of one command.

    paths: options with a dot, "--method.strength=0.5", where the command takes them.
    """

    def __init__(
        self,
        command: str,
        words: Sequence[str],
        options: Sequence[str],
        flags: Sequence[str],
        dotted: bool = False,
    ) -> None:
        """Sorts the words of a command; ConfigError for an option that it does not have."""
        self.command = command
        self.positional: list[str] = []
        self.values: dict[str, str] = {}
        self.flags: set[str] = set()
        self.paths: list[tuple[str, str]] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("-") or word == "-":
                self.positional.append(word)
                continue
            name, equals, value = word.lstrip("-").partition("=")
            if name in flags:
                if equals:
                    raise ConfigError(f"--{name} takes no value; {word!r} came.")
                self.flags.add(name)
                continue
            path = "." in name and dotted
            if (name not in options and not path) or not word.startswith("--"):
                known = [f"--{other}" for other in (*options, *flags)]
                raise ConfigError(
                    f"imaml {command} has no option "
                    f"{word.partition('=')[0]}{meant('--' + name, known, command)}"
                )
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise ConfigError(f"--{name} needs a value: --{name}=VALUE.")
                value = rest.pop(0)
            if path:
                self.paths.append((name, value))
            else:
                self.values[name] = value

    def changes(self) -> list[tuple[str, str, str]]:
        """The dotted options as changes of a configuration: path, text, and how it was written."""
        return [(path, text, f"--{path}") for path, text in self.paths]

    def take(self, least: int, most: int, what: str) -> list[str | None]:
        """The positional arguments, padded with None; ConfigError where there are too few or many."""
        if not least <= len(self.positional) <= most:
            came = " ".join(self.positional) or "nothing"
            raise ConfigError(f"imaml {self.command}: accepted is {what}; {came} came. See --help.")
        return [*self.positional, *[None] * (most - len(self.positional))]

    def whole(self, name: str, default: int, least: int = 0) -> int:
        """An option that is a whole number."""
        if name not in self.values:
            return default
        text = self.values[name]
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise ConfigError(f"--{name} {text}: accepted is a whole number of at least {least}.")
        return value


def meant(word: str, known: Iterable[str], command: str = "") -> str:
    """The end of a message about a misspelt word: what was perhaps meant, else where to read on."""
    from difflib import get_close_matches

    bare = {name.lstrip("-"): name for name in known}  # dashes make any two options look alike
    near = get_close_matches(word.lstrip("-"), list(bare), n=1, cutoff=0.6)
    if near:
        return f"; did you mean {bare[near[0]]}?"
    return f"; see imaml {command + ' ' if command else ''}--help."
