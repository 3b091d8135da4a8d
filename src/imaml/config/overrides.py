"""Fields of a configuration set from text."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from ..core.errors import ConfigError
from ..core.recipes import Role, fresh, is_recipe, kinds_of
from ..core.validation import meant
from .run import Config


def override(config: Any, path: str, text: str, option: str | None = None) -> Any:
    """The config with one field, "method.inner.steps", set from text; see `overrides`."""
    return overrides(config, [(path, text, option or f"--{path}")])


def overrides(config: Any, changes: Sequence[tuple[str, str, str]]) -> Any:
    """The config with fields set, (path, text, option); ConfigError says what was meant.

    All at once, so that what makes sense only together is accepted. A field that holds a recipe of several
    kinds is set by kind, "CG" or "GMRES", and then its own fields. option: how the user wrote it, for
    messages.
    """
    named = [(path.replace("-", "_").split("."), text, option) for path, text, option in changes]
    return _overrides(config, named, "")


def _overrides(config: Any, changes: Sequence[tuple[list[str], str, str]], above: str) -> Any:
    known = {f.name for f in fields(config)}
    values: dict[str, Any] = {}
    for (name, *below), text, option in changes:
        if name not in known:
            raise ConfigError(f"option {option}: there is no {above + name!r}{meant(name, known)}")
        if not below:
            values[name] = _parse(
                typing.get_type_hints(type(config), include_extras=True)[name], text, option
            )
    deeper: dict[str, list[tuple[list[str], str, str]]] = {}
    for (name, *below), text, option in changes:
        if below:
            deeper.setdefault(name, []).append((below, text, option))
    for name, those in deeper.items():
        value = values.get(name, getattr(config, name))
        if not is_dataclass(value):
            raise ConfigError(
                f"option {those[0][2]}: {above + name!r} is a plain value, {value!r}, with nothing below it."
            )
        values[name] = _overrides(value, those, f"{above}{name}.")
    return replace(config, **values) if values else config


_WORDS = {int: "whole number", float: "number", bool: "true or false", types.NoneType: "none"}


def _parse(hint: Any, text: str, option: str) -> Any:
    """The value that `text` means for a field of type `hint`."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    choices: tuple[Any, ...] = typing.get_args(hint) if union else (hint,)
    kinds: dict[str, Any] = {choice.__name__: choice for choice in choices if is_recipe(choice)}
    for mark in getattr(hint, "__metadata__", ()):
        if isinstance(mark, Role):
            kinds |= kinds_of(mark.name)
    if types.NoneType in choices and text.lower() in ("none", "null"):
        return None
    if text in kinds:
        return fresh(kinds[text])
    if any(
        typing.get_origin(choice) is typing.Literal and text in typing.get_args(choice) for choice in choices
    ):
        return text
    if kinds and not set(choices) & set(_WORDS) - {types.NoneType}:
        raise ConfigError(f"option {option}: {text!r} is no kind of it{meant(text, kinds)}")
    try:
        if bool in choices:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        for choice in choices:
            if typing.get_origin(choice) is tuple:
                kind = typing.get_args(choice)[0]
                return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
        if int in choices:
            return int(text)
        if float in choices:
            return float(text)
    except (KeyError, ValueError) as error:
        accepted = " or ".join(_said(choice) for choice in choices)
        raise ConfigError(f"option {option}: {text!r} came; accepted is a {accepted}.") from error
    return text


def _said(choice: Any) -> str:
    """A field's type as people say it."""
    if typing.get_origin(choice) is tuple:
        return f"list such as 1,2, each a {_said(typing.get_args(choice)[0])}"
    if typing.get_origin(choice) is typing.Literal:
        return " or ".join(typing.get_args(choice))
    return _WORDS.get(choice, getattr(choice, "__name__", ""))


def replace_data(config: Config, data: str | None) -> Config:
    """The config with its domain's data path set; ConfigError where the domain has none."""
    if data is None:
        return config
    return replace(config, domain=config.domain.with_data(data))
