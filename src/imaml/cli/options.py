"""Options of commands: the kinds of values, options that set a field of the configuration, and messages.

Cyclopts parses each command's own options from its signature. Options with a dot (`--method.inner.steps=8`),
--domain and --method set a field of the configuration. Which fields there are depends on the preset and on
the kinds that other options choose, so these options are taken out first and go to `config.overrides`.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from cyclopts import Group, Parameter, Token
from cyclopts import exceptions as wrong

from ..core.errors import ConfigError
from ..core.validation import suggestion

if TYPE_CHECKING:
    from ..config.run import Config
    from ..core.recipes import JsonObject

DEFAULT = "characters-5w1s"  # the preset of a command that names none
# Options that set a field of the configuration, beside the field's own option.
SHORTHANDS = {
    **{name: f"training.{name}" for name in ("steps", "tasks", "seed", "minutes")},
    **{
        name: f"domain.{name}"
        for name in ("task", "target", "features", "random", "data", "weights", "offset")
    },
    **{name: f"domain.{name}" for name in ("dates", "missing", "unseen", "separator", "encoding", "decimal")},
    "budget": "training.minutes",
}


class Change(NamedTuple):
    """A field of the configuration, the text to set it from, and the option that the user wrote."""

    path: str
    text: str
    option: str


def at_least(least: int) -> Callable[[type, int | None], None]:
    """Make a validator of whole numbers.

    Args:
        least: The least valid number.

    Returns:
        A function of an option's type and value. It raises ValueError if the value is less; None is valid.
    """

    def check(kind: type, value: int | None) -> None:
        if value is not None and value < least:
            raise ValueError(f"expected a whole number of at least {least}, got {value}.")

    return check


def whole(kind: type, tokens: Sequence[Token]) -> int:
    """Convert an option's text to a whole number; Cyclopts would round 1.5 to 2.

    Args:
        kind: The option's type, which Cyclopts passes.
        tokens: The option's text, one item.

    Returns:
        The number.

    Raises:
        ValueError: If the text is not a whole number.
    """
    return int(tokens[0].value)


T = TypeVar("T")
Missing = Literal["error", "drop", "mean"] | None
Unseen = Literal["error", "baseline"] | None


@Parameter(name="*")
@dataclass(frozen=True)
class Text:
    """How a text file with a table is written.

    Args:
        separator: What separates the cells of a text file.
        encoding: Encoding of a text file.
        decimal: Sign before the fraction of a number in a text file.
    """

    separator: str | None = None
    encoding: str | None = None
    decimal: str | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The options that were given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class Reading(Text):
    """How a run reads a new table, if not as in training.

    Args:
        separator: What separates the cells of a text file.
        encoding: Encoding of a text file.
        decimal: Sign before the fraction of a number in a text file.
        missing: What to do about missing cells of a table, if not what the run did.
        unseen: What to do about categories that no training task has, if not what the run did.
    """

    missing: Missing = None
    unseen: Unseen = None


Flag = Annotated[bool, Parameter(negative=(), allow_repeating=True, show_default=False)]
Count = Annotated[int, Parameter(validator=at_least(0), converter=whole)]
Positive = Annotated[int, Parameter(validator=at_least(1), converter=whole)]
Several = Annotated[int, Parameter(validator=at_least(2), converter=whole)]  # an interval needs two
Whole = Annotated[int | None, Parameter(converter=whole)]
Names = Annotated[list[str] | None, Parameter(negative=())]
Changes = Annotated[Sequence[Change], Parameter(parse=False)]


def split_words(words: Iterable[str]) -> tuple[list[str], list[Change]]:
    """Take the options with a dot out of a command line.

    Args:
        words: The words after `imaml`.

    Returns:
        The other words, and the changes of the configuration.

    Raises:
        ConfigError: If an option with a dot has no value.
    """
    others, changes, rest = [], [], iter(words)
    for word in rest:
        option, equals, text = word.partition("=")
        if not re.fullmatch(r"--(domain|method|[\w-]+(\.[\w-]+)+)", option):
            others.append(word)
            continue
        text = text if equals else next(rest, "--")
        if not equals and text.startswith("--"):
            raise ConfigError(f"{option}: expected a value, got none. Hint: write {option}=VALUE.")
        changes.append(Change(option[2:].replace("-", "_"), text, option))
    return others, changes


def split_names(names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names in the texts of an option, each one name or several as A,B.

    Args:
        names: The texts; None for none.

    Returns:
        The names.
    """
    return tuple(part for name in names or () for part in name.split(","))


def with_options(recipe: T, **options: object) -> T:
    """Set fields of a recipe from options of their names.

    Args:
        recipe: The recipe.
        **options: Values by name; None for an option that was not given.

    Returns:
        The changed recipe.

    Raises:
        ConfigError: If the recipe has no such field, or it does not take the value.
    """
    from ..config.overrides import overrides

    given = {name: value for name, value in options.items() if value is not None}
    return overrides(recipe, [(name, as_text(value), f"--{name}") for name, value in given.items()])


def print_json(content: JsonObject) -> None:
    """Print strict JSON in one line.

    Args:
        content: JSON values.
    """
    print(json.dumps(content, allow_nan=False))


def configure(config: Config | str, changes: Iterable[Change], **shorthands: object) -> Config:
    """Set fields of a configuration from options.

    Args:
        config: The configuration, or the name of a preset.
        changes: Options with a dot.
        **shorthands: Values of options in `SHORTHANDS`; None for an option that was not given.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: If a field does not exist or does not take the value, or if an option is repeated whose
            value is not a list.
    """
    from ..config.overrides import overrides, replace_data
    from ..config.presets import preset

    config = preset(config) if isinstance(config, str) else config
    given = {name: value for name, value in shorthands.items() if value is not None}
    asked = [Change(SHORTHANDS[name], as_text(value), f"--{name}") for name, value in given.items()]
    lists = {field.path for field in fields_of(config) if "tuple[" in str(field.hint)}
    merged: dict[str, Change] = {}
    for new in (*changes, *asked):
        old = merged.get(new.path)
        if old is not None and (new.path not in lists or old.option != new.option):
            raise ConfigError(
                f"{new.option}: expected one value, got {old.option}={old.text} and {new.option}={new.text}. "
                "Hint: give this option once."
            )
        merged[new.path] = new if old is None else new._replace(text=f"{old.text},{new.text}")
    data = merged.pop("domain.data", None) if "data" in given else None
    return replace_data(overrides(config, list(merged.values())), data and data.text)


class Field(NamedTuple):
    """A field of a configuration, as the help shows it."""

    path: str
    hint: Any
    value: object
    about: str


def fields_of(recipe: object, above: str = "") -> Iterator[Field]:
    """List the fields of a recipe and of the recipes in it, depth first.

    Args:
        recipe: A dataclass.
        above: The path of the recipe, with a final dot; empty for the outermost.

    Yields:
        The fields, with paths such as "inner.steps".
    """
    from ..core.fields import field_types, without_intervals

    about = _abouts(type(recipe))
    for name, hint in field_types(type(recipe)).items():
        value, path = getattr(recipe, name), f"{above}{name}"
        hint = without_intervals(hint)
        if not is_dataclass(value) or _kinds(hint):
            yield Field(path, hint, value, about.get(name, ""))
        if is_dataclass(value):
            yield from fields_of(value, f"{path}.")


def _abouts(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each field."""
    from docstring_parser import parse

    docs = [parse(base.__doc__ or "") for base in reversed(kind.__mro__) if is_dataclass(base)]
    return {p.arg_name: " ".join((p.description or "").split()) for doc in docs for p in doc.params}


def _kinds(hint: object) -> list[str]:
    """Return the kinds of recipe that a field may hold, where there is a choice."""
    from ..config.overrides import recipes_of

    return sorted(set(map(_kind, recipes_of(hint).values())))


def _kind(recipe: type) -> str:
    """Return the word that chooses a kind of recipe: its `name`, if that is the class's own and no field."""
    own = {field.name for field in fields(recipe)}
    return recipe.__name__ if "name" in own else getattr(recipe, "name", recipe.__name__)


_PLAIN: dict[Any, str] = {int: "INT", float: "FLOAT", str: "STR", bool: "true|false", type(None): "none"}


def _metavar(hint: Any) -> str:
    """Return a field's type as the help shows it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _kinds(hint):
        return "|".join(["KIND", *(_PLAIN[choice] for choice in arguments if choice in _PLAIN)])
    if origin is tuple:
        return f"{_metavar(arguments[0])},..." if arguments[0] in _PLAIN else "VALUE"
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if arguments:  # of a union, those that an option can be set to
        return "|".join(filter(None, map(_metavar, arguments)))
    return _PLAIN.get(hint, "")


def as_text(value: object) -> str:
    """Write a field's value as its option takes it.

    Args:
        value: A text, a number, a truth value, None, a recipe, or a list or tuple of these.

    Returns:
        The text; of a recipe its kind.
    """
    if is_dataclass(value):
        return _kind(type(value))
    if isinstance(value, list | tuple):
        return ",".join(map(as_text, value)) or "()"
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def with_fields(command: Callable[..., int], config: Config) -> Callable[..., int]:
    """Give a command an option for each field of a configuration, for its help and for completion.

    Args:
        command: A command that takes changes of a configuration.
        config: Where the fields and the default values come from.

    Returns:
        A function with the longer signature. It is shown and never called.
    """
    from ..config.presets import PRESETS

    presets = Annotated[str, Parameter(choices=tuple(PRESETS), show_choices=False, metavar="PRESET")]
    own, order = inspect.signature(command, eval_str=True), [field.name for field in fields(config)]
    known = [p.replace(annotation=presets) if p.name == "preset" else p for p in own.parameters.values()]
    added = []
    for path, hint, value, about in fields_of(config):
        top, kinds = path.partition(".")[0], _kinds(hint)
        kind = _kind(type(getattr(config, top)))
        title = top.capitalize() + (f" ({kind})" if kind.lower() != top else "")
        option = Parameter(
            name=f"--{path}",
            help=about,
            group=Group(title, sort_key=1 + order.index(top)),
            metavar=_metavar(hint),
            choices=kinds or (("true", "false") if hint is bool else None),
            show_choices=bool(kinds),
            show_default=as_text,
            negative=(),
        )
        name, annotation = path.replace(".", "_"), Annotated[str, option]
        added.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation)
        )

    def shown() -> int:
        return 0

    shown.__doc__ = command.__doc__
    shown.__signature__ = own.replace(parameters=[*known, *added])  # type: ignore[attr-defined]
    return shown


# What an option of a type accepts, in words, and an example.
_ACCEPTED = {int: ("a whole number", "100"), float: ("a number", "2.5"), bool: ("true or false", "true")}
# What is not a command, but is called so in Python.
_IN_PYTHON = {
    "load": "imaml.load is a Python function; on the command line use imaml adapt",
    "predict": "predict is a Python method; on the command line use imaml adapt",
}


def explain(error: wrong.CycloptsError) -> str:
    """Write a parser's error as `WHAT: expected X, got Y. Hint: ...`.

    Args:
        error: What Cyclopts raised.

    Returns:
        The message, with what was perhaps meant.
    """
    chain, argument, token = error.command_chain or (), error.argument, getattr(error, "token", None)
    program = " ".join(["imaml", *chain])
    what, hint = " ".join(chain) or "command", f"see {program} --help"
    word = (error.unused_tokens or [""])[0] if token is None else token.value
    known, got = [], repr(word)
    match error:
        case wrong.UnknownCommandError():
            known = [name for name in error.app or () if not name.startswith("-")]
            expected = f"one of {', '.join(known)}"
            hint = f"{program} --help lists them"
            if word in _IN_PYTHON and not chain:
                known, hint = [], _IN_PYTHON[word]
        case wrong.UnknownOptionError():
            known = [name for argument in error.argument_collection for name in argument.names]
            got = word = (error.token.keyword or word).partition("=")[0]
            expected = "one of its options"
        case wrong.RepeatArgumentError():
            what, expected, hint = error.token.keyword, "one value", "give this option once"
            got = f"{word!r} as well"
        case wrong.MissingArgumentError() if error.keyword:
            what, expected, got, hint = error.keyword, "a value", "none", f"write {error.keyword}=VALUE"
        case wrong.MissingArgumentError() if argument:
            expected, got = argument.name, "nothing"
        case wrong.CoercionError() if token and argument:
            target = error.target_type
            if type(None) in typing.get_args(target):
                target = typing.get_args(target)[0]
            known = [str(choice) for choice in typing.get_args(target)]
            what = token.keyword or argument.name
            choices = f"one of {', '.join(known)}", (known or [""])[0]
            expected, example = _ACCEPTED.get(target or str, choices)
            hint = f"for example {token.keyword}={example}" if token.keyword and example else hint
        case wrong.ValidationError() if argument:
            return f"{argument.name}: {error.exception_message}"
        case wrong.UnusedCliTokensError():
            expected, got = "fewer arguments", f"{word!r} as well"
        case _:
            return f"{what}: {error}"
    return f"{what}: expected {expected}, got {got}.{suggestion(word, known) or f' Hint: {hint}.'}"
