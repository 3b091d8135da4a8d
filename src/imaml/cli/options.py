"""The words of one command: positional arguments, flags and options; what was meant where one is misspelt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..core.errors import ConfigError

DATA = {"data": "domain.data"}  # `paths` of the commands that read data
# Values that are lists, to which a repeated option adds.
LISTS = ("domain.features", "domain.texts", "method.adapt")


class Arguments:
    """Positional arguments, flags, and `--name value` or `--name=value` options of one command.

    An option is given once. One whose value is a list (`LISTS`) may be repeated, which joins the lists.

    Attributes:
        values: Options without a dot, by name.
        paths: Options with a dot, "--method.strength=0.5", where the command takes them.
    """

    def __init__(
        self,
        command: str,
        words: Sequence[str],
        options: Sequence[str],
        flags: Sequence[str],
        dotted: bool = False,
        paths: Mapping[str, str] | None = None,
    ) -> None:
        """Sorts the words of a command.

        Args:
            command: The command's name, for messages.
            words: What follows it.
            options: Options that take a value.
            flags: Options that take none.
            dotted: Whether fields of the configuration are options, too.
            paths: The field that an option without a dot sets, "steps" -> "training.steps", so that both
                forms together are recognised as one option given twice.

        Raises:
            ConfigError: If the command has no such option, or an option that is no list is repeated.
        """
        self.command = command
        self.positional: list[str] = []
        self.values: dict[str, str] = {}
        self.flags: set[str] = set()
        self.paths: list[tuple[str, str]] = []
        given: dict[str, tuple[str, str]] = {}  # by field: how it was written, and the value
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
            field = (paths or {}).get(name, name).replace("-", "_")
            if field in given:
                value = self._joined(field, given[field], (f"--{name}", value))
            given[field] = (f"--{name}", value)
            if path:
                self.paths = [*(pair for pair in self.paths if pair[0] != name), (name, value)]
            else:
                self.values[name] = value

    def _joined(self, field: str, first: tuple[str, str], second: tuple[str, str]) -> str:
        """The value of an option that is given twice; ConfigError where it is no list."""
        (name, old), (again, new) = first, second
        if field not in LISTS:
            came = f"{old!r} and {new!r}" if name == again else f"{name} {old!r} and {again} {new!r}"
            raise ConfigError(f"{name}: expected one value, got {came}. Hint: give this option once.")
        if name != again:
            raise ConfigError(
                f"{name}: expected one form of this option, got {name} {old!r} and {again} {new!r}. "
                "Hint: give the whole list to one of them."
            )
        return f"{old},{new}"

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
