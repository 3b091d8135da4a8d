"""Options of commands: the kinds of values, options that set a field of the configuration, and messages.

Cyclopts parses each command's own options from its signature. Options with a dot (`--method.inner.steps=8`)
set a field of the configuration. Which fields there are depends on the preset and on the kinds that other
options choose, so these options are taken out first and go to `config.overrides`.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import (
    CoercionError,
    CombinedShortOptionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    ValidationError,
)

from ..core.errors import ConfigError

if TYPE_CHECKING:
    from ..config.run import Config

DEFAULT = "characters-5w1s"  # the preset of a command that names none
# Options that set a field of the configuration, beside the field's own option.
SHORTHANDS = {
    **{name: f"training.{name}" for name in ("steps", "tasks", "seed", "minutes")},
    **{name: f"domain.{name}" for name in ("task", "target", "features", "data")},
    "budget": "training.minutes",
}


class Change(NamedTuple):
    """A field of the configuration, the text to set it from, and the option that the user wrote."""

    path: str
    text: str
    option: str


def at_least(least: int) -> Callable[[type, int | None], None]:
    """Make a validator that refuses smaller numbers with a ValueError."""

    def check(kind: type, value: int | None) -> None:
        if value is not None and value < least:
            raise ValueError(f"expected a whole number of at least {least}, got {value}.")

    return check


Flag = Annotated[bool, Parameter(negative=(), allow_repeating=True)]
Count = Annotated[int, Parameter(validator=at_least(0))]
Positive = Annotated[int, Parameter(validator=at_least(1))]
Several = Annotated[int, Parameter(validator=at_least(2))]  # an interval needs two
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
        if not re.fullmatch(r"--[\w-]+(\.[\w-]+)+", option):
            others.append(word)
            continue
        text = text if equals else next(rest, "--")
        if not equals and text.startswith("--"):
            raise ConfigError(f"{option}: expected a value, got none. Hint: write {option}=VALUE.")
        changes.append(Change(option[2:].replace("-", "_"), text, option))
    return others, changes


def configure(config: Config, changes: Iterable[Change], **shorthands: object) -> Config:
    """Set fields of a configuration from options.

    Args:
        config: The configuration, for example a preset's.
        changes: Options with a dot.
        **shorthands: Values of options in `SHORTHANDS`; None for an option that was not given.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: If a field does not exist or does not take the value, or if an option is repeated whose
            value is no list.
    """
    from ..config.overrides import overrides, replace_data

    given = {name: value for name, value in shorthands.items() if value is not None}
    asked = [Change(SHORTHANDS[name], as_text(value), f"--{name}") for name, value in given.items()]
    merged: dict[str, Change] = {}
    for new in (*changes, *asked):
        old = merged.get(new.path)
        if old is None:
            merged[new.path] = new
            continue
        same = old.option == new.option
        came = [repr(c.text) if same else f"{c.option} {c.text!r}" for c in (old, new)]
        if not any(field.path == new.path and field.is_list for field in fields_of(config)):
            hint = "give this option once"
        elif not same:
            hint = "give the whole list to one of them"
        else:
            merged[new.path] = new._replace(text=f"{old.text},{new.text}")
            continue
        raise ConfigError(f"{old.option}: expected one value, got {' and '.join(came)}. Hint: {hint}.")
    data = merged.pop("domain.data", None) if "data" in given else None
    return replace_data(overrides(config, list(merged.values())), data and data.text)


class Field(NamedTuple):
    """A field of a configuration, as the help shows it."""

    path: str
    hint: Any
    value: object
    about: str

    @property
    def is_list(self) -> bool:
        """Whether the value is a list, to which a repeated option adds."""
        return any(typing.get_origin(choice) is tuple for choice in (self.hint, *typing.get_args(self.hint)))


def fields_of(recipe: Any, above: str = "") -> Iterator[Field]:
    """List the fields of a recipe and of the recipes in it, depth first."""
    hints, about = typing.get_type_hints(type(recipe), include_extras=True), _abouts(type(recipe))
    for field in fields(recipe):
        value, path = getattr(recipe, field.name), f"{above}{field.name}"
        if not is_dataclass(value) or _kinds(hints[field.name]):
            yield Field(path, hints[field.name], value, about.get(field.name, ""))
        if is_dataclass(value):
            yield from fields_of(value, f"{path}.")


def _abouts(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each field."""
    from docstring_parser import parse

    docs = [parse(base.__doc__ or "") for base in reversed(kind.__mro__) if is_dataclass(base)]
    return {p.arg_name: " ".join((p.description or "").split()) for doc in docs for p in doc.params}


def _kinds(hint: Any) -> list[str]:
    """The kinds of recipe that a field may hold, where there is a choice."""
    from ..core.recipes import Role, is_recipe, kinds_of

    found = [kind.__name__ for kind in typing.get_args(hint) if is_recipe(kind)]
    for mark in getattr(hint, "__metadata__", ()):
        found += kinds_of(mark.name) if isinstance(mark, Role) else ()
    return sorted(set(found))


def _metavar(hint: Any) -> str:
    """A field's type as the help shows it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _kinds(hint):
        plain = [a for a in arguments if a in (int, float, str, types.NoneType)]
        return "|".join(["KIND", *map(_metavar, plain)])
    if origin is tuple:
        return f"{_metavar(arguments[0])},..."
    if origin is typing.Literal:
        return "|".join(arguments)
    if arguments and origin is not dict:
        return "|".join(map(_metavar, arguments[:1] if origin is Annotated else arguments))
    names = {types.NoneType: "none", bool: "true|false", str: "TEXT", float: "NUMBER"}
    return names.get(hint, getattr(hint, "__name__", "VALUE").upper())


def as_text(value: Any) -> str:
    """Write a field's value as its option takes it."""
    if is_dataclass(value):
        return type(value).__name__
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
    own = inspect.signature(command, eval_str=True)
    added = []
    for field in fields_of(config):
        top = field.path.partition(".")[0]
        title = f"{top.capitalize()} ({type(getattr(config, top)).__name__})"
        option = Parameter(
            name=f"--{field.path}",
            help=field.about,
            group=Group(title, sort_key=1 + [f.name for f in fields(config)].index(top)),
            metavar=_metavar(field.hint),
            choices=_kinds(field.hint) or (("true", "false") if field.hint is bool else None),
            show_choices=bool(_kinds(field.hint)),
            show_default=as_text,
            negative=(),
        )
        name = field.path.replace(".", "_")
        kind = Annotated[object, option] if False else Annotated[str, option]
        added.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.value, annotation=kind))

    @functools.wraps(command)
    def shown() -> int:
        return 0

    shown.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
    return shown


def explain(error: CycloptsError) -> str:
    """Write a parser's error as `WHAT: expected X, got Y. Hint: ...`."""
    where = " ".join(["imaml", *(error.command_chain or ())])
    hint = f"see {where} --help"
    argument, token = error.argument, getattr(error, "token", None)
    name = (token and token.keyword) or (argument.name if argument else "")
    match error:
        case UnknownCommandError():
            known = [name for name in error.app or () if not name.startswith("-")]
            word = (error.unused_tokens or [""])[0]
            return f"{where}: expected one of {', '.join(known)}, got {word!r}. Hint: {near(word, known) or hint}."
        case UnknownOptionError():
            word = (name or error.token.value).partition("=")[0]
            known = [name for argument in error.argument_collection for name in argument.names]
            return f"{where}: expected one of its options, got {word}. Hint: {near(word, known) or hint}."
        case RepeatArgumentError() if argument:
            came = [repr(token.value) for token in (*argument.tokens, error.token)]
            return f"{name}: expected one value, got {' and '.join(came)}. Hint: give this option once."
        case MissingArgumentError() if argument and error.keyword:
            return f"{error.keyword}: expected a value, got none. Hint: write {error.keyword}=VALUE."
        case MissingArgumentError() if argument:
            return f"{where}: expected {argument.name}, got nothing. Hint: {hint}."
        case ValidationError():
            return f"{name}: {error.exception_message}"
        case CoercionError() if token:
            kinds = {int: "a whole number", float: "a number", bool: "true or false"}
            choices = [str(choice) for choice in typing.get_args(error.target_type)]
            expected = kinds.get(error.target_type or str) or f"one of {', '.join(choices)}"
            return f"{name}: expected {expected}, got {token.value!r}. Hint: {near(token.value, choices) or hint}."
        case UnusedCliTokensError():
            word = (error.unused_tokens or [""])[0]
            return f"{where}: expected fewer arguments, got {word!r} as well. Hint: {hint}."
    return f"{where}: {error}"


def near(word: str, known: Iterable[str]) -> str:
    """What was perhaps meant by a misspelt word; empty where nothing is alike."""
    names = {name.lstrip("-"): name for name in known}  # dashes make any two options look alike
    found = get_close_matches(word.lstrip("-"), list(names), n=1)
    return f"did you mean {names[found[0]]}?" if found else ""
