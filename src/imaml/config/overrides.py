"""Fields of a configuration set from text."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from typing import Any, TypeVar

from ..core.errors import ConfigError
from ..core.fields import field_types, without_intervals
from ..core.recipes import Role, fresh, is_recipe, kinds_of
from ..core.validation import not_one_of
from .method import MethodRecipe
from .methods import carried, fitting, methods, named
from .run import Config

T = TypeVar("T")


def override(config: T, path: str, text: str, option: str | None = None) -> T:
    """Set one field from text; see `overrides`.

    Args:
        config: The configuration.
        path: The field, such as "method.inner.steps".
        text: The value.
        option: How the user wrote the option, for messages; by default ``--path``.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: If there is no such field, or the value is not accepted.
    """
    return overrides(config, [(path, text, option or f"--{path}")])


def overrides(config: T, changes: Sequence[tuple[str, str, str]]) -> T:
    """Set fields from text, all at once, so that values that are valid only together are accepted.

    A field that holds one of several recipes is set by the name of its class, such as "GMRES". The method is
    set by its name, such as "maml"; it takes over what it has in common with the one before.

    Args:
        config: The configuration.
        changes: Fields as (path, text, option); option is how the user wrote it, for messages.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: If there is no such field, or a value is not accepted.

    Example:
        >>> from imaml.config.presets import preset
        >>> overrides(preset("sinusoid"), [("method.inner.steps", "8", "--steps")]).method.inner.steps
        8
    """
    named = [(path.replace("-", "_").split("."), text, option) for path, text, option in changes]
    return _overrides(config, named, "")


_Changes = Sequence[tuple[list[str], str, str]]


def _overrides(config: Any, changes: _Changes, above: str) -> Any:
    """Return a recipe with fields set, (path, text, option); above: the path of the recipe with a dot."""
    kind, hints = type(config), _hints(type(config))
    method = isinstance(config, MethodRecipe)
    if method:
        words = [text for path, text, _ in changes if path == ["name"]]
        kind = named(words[-1]) if words else kind
        changes = [change for change in changes if change[0] != ["name"]]
        for other in (*methods().values(), kind):  # what another method has may be said to be none
            hints |= _hints(other)
    values, deeper = {}, {}
    for (name, *below), text, option in changes:
        if name not in hints:
            raise ConfigError(not_one_of(option, name, hints))
        if not below and isinstance(getattr(config, name, None), MethodRecipe):
            below = ["name"]
        if below:
            deeper.setdefault(name, []).append((below, text, option))
        elif method and name not in _hints(kind) and text.lower() == "none":
            values[name] = None
        else:
            values[name] = _parse(hints[name], text, option)
    if method:
        values = fitting(kind, values)
        kept = carried(config, kind, values)
    else:
        kept = {name: getattr(config, name) for name in hints}
    for name, those in deeper.items():
        value = values.get(name, kept.get(name))
        if not is_dataclass(value):
            found = f"a plain value, {value!r}" if name in kept else f"which {kind.name!r} does not have"
            raise ConfigError(f"{those[0][2]}: expected fields below {above + name!r}, got {found}.")
        values[name] = _overrides(value, those, f"{above}{name}.")
    try:
        return kind(**{**kept, **values})  # type: ignore[arg-type]
    except ConfigError as error:
        typed = {name: option for (name, *below), _, option in changes if not below}
        if error.field not in typed:
            raise
        raise ConfigError(f"{typed[error.field]}: {error.problem}") from error


def _hints(kind: type) -> dict[str, object]:
    """Return the types of a recipe's fields, by name."""
    return {name: without_intervals(hint) for name, hint in field_types(kind).items()}


def recipes_of(hint: object) -> dict[str, type]:
    """Return the recipes that a field may hold, where there is a choice.

    Args:
        hint: The field's type, a union with recipes, or marked with a role.

    Returns:
        The classes by name.
    """
    found = {kind.__name__: kind for kind in typing.get_args(hint) if is_recipe(kind)}
    for mark in getattr(hint, "__metadata__", ()):
        found |= kinds_of(mark.name) if isinstance(mark, Role) else {}
    return found


_EXAMPLES = {bool: "true", tuple: "1,2", int: "100", float: "0.5"}  # in the order in which they are tried
_WORDS = {int: "whole number", float: "number", bool: "true or false", types.NoneType: "none"}


def _parse(hint: Any, text: str, option: str) -> object:
    """Return the value that `text` means for a field of type `hint`."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    choices: tuple[Any, ...] = typing.get_args(hint) if union else (hint,)
    kinds = {hint.__name__: hint} if is_recipe(hint) else recipes_of(hint)
    literals = [choice for choice in choices if typing.get_origin(choice) is typing.Literal]
    if types.NoneType in choices and text.lower() in ("none", "null"):
        return None
    if text in kinds:
        return fresh(kinds[text])
    if any(text in typing.get_args(choice) for choice in literals):
        return text
    if kinds and not {int, float, bool} & set(choices):
        raise ConfigError(not_one_of(option, text, kinds))
    try:
        if bool in choices:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        for choice in choices:
            if typing.get_origin(choice) is tuple:
                kind = typing.get_args(choice)[0]
                return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
        if int in choices:
            return int(text)
        return float(text) if float in choices else text
    except (KeyError, ValueError) as error:
        accepted = " or ".join(map(_said, choices))
        given = [typing.get_origin(choice) or choice for choice in choices]
        example = next(example for kind, example in _EXAMPLES.items() if kind in given)
        raise ConfigError(
            f"{option}: expected a {accepted}, got {text!r}. Hint: for example {option}={example}."
        ) from error


def _said(choice: Any) -> str:
    """Return a field's type in words."""
    if typing.get_origin(choice) is tuple:
        return f"list such as 1,2, each a {_said(typing.get_args(choice)[0])}"
    if typing.get_origin(choice) is typing.Literal:
        return " or ".join(map(str, typing.get_args(choice)))
    return _WORDS.get(choice, getattr(choice, "__name__", ""))


def replace_data(config: Config, data: str | None) -> Config:
    """Set where a domain's data are.

    Args:
        config: The configuration.
        data: The path, or None to leave it as it is.

    Returns:
        The changed configuration.

    Raises:
        ConfigError: If the domain reads no data.
    """
    return config if data is None else replace(config, domain=config.domain.with_data(data))
