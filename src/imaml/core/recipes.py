"""The registry of recipes: frozen dataclasses of numbers and names, which go to JSON and back.

A class that is to be chosen by name (on the command line, in a saved configuration) registers itself:

    @recipe("linear")
    class MySolver:
        steps: int = 5

There is no other list of classes. `role` says which fields may hold it: "linear", "inner", "domain", ...
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import ModuleType
from typing import Any, TypeAlias, TypeVar, dataclass_transform

from .errors import ConfigError
from .validation import not_one_of

PACKAGE = f"{__name__.partition('.')[0]}."
T = TypeVar("T")
Json: TypeAlias = Any  # a JSON value: None, a bool, a number, a text, a list, or a dict with texts as keys
JsonObject: TypeAlias = dict[str, Json]
Fields: TypeAlias = Mapping[str, Any]  # the fields of a recipe, by name
Recipe: TypeAlias = Any  # an instance of a registered class, or what one may hold

_KINDS: dict[str, type] = {}
_ROLES: dict[str, dict[str, type]] = {}
_FRESH: dict[type, Fields] = {}
_FORMER: dict[str, Callable[[Fields], Recipe]] = {}


@dataclass(frozen=True)
class Role:
    """Marks a field that holds any recipe registered for a role: `Annotated[InnerSolver, Role("inner")]`.

    Attributes:
        name: The role, such as "inner".
    """

    name: str


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def recipe(*roles: str, fresh: Fields | None = None, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
    """Makes a class a frozen dataclass, and registers it under its name, its `kind` in JSON.

    Args:
        *roles: The roles that it has, such as "linear" or "inner"; none for a part of another recipe.
        fresh: Arguments for an instance that is chosen by its kind alone, where it has no defaults for all.
        kw_only: Whether its own fields are given by name only.

    Returns:
        The decorator. A class that is a dataclass already is only registered.

    Raises:
        ConfigError: If another class has that name already.

    Example:
        >>> @recipe()
        ... class Example:
        ...     steps: int = 5
        >>> to_json(Example())
        {'kind': 'Example', 'steps': 5}
    """

    def register(kind: type[T]) -> type[T]:
        if "__dataclass_fields__" not in vars(kind):
            kind = dataclass(frozen=True, kw_only=kw_only)(kind)
        other = _KINDS.get(kind.__name__, kind)
        if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ConfigError(
                f"recipe: expected a name that no other recipe has, got {kind.__name__!r}, which is "
                f"{other.__module__}.{other.__qualname__}. Hint: rename the class."
            )
        _KINDS[kind.__name__] = kind
        for role in roles:
            _ROLES.setdefault(role, {})[kind.__name__] = kind
        _FRESH[kind] = fresh or {}
        return kind

    return register


def former(kind: str) -> Callable[[Callable[[Fields], T]], Callable[[Fields], T]]:
    """Registers a function that reads a kind which saved files have, and which is not a class any more.

    Args:
        kind: The kind in those files.

    Returns:
        The decorator of a function from the fields, by name, to a recipe of today.
    """

    def register(read: Callable[[Fields], T]) -> Callable[[Fields], T]:
        _FORMER[kind] = read
        return read

    return register


def kinds_of(role: str) -> dict[str, type]:
    """List the classes that have registered for a role.

    Args:
        role: The role, such as "linear".

    Returns:
        The classes by name; only those whose modules have been imported (see `register_all`).
    """
    return dict(_ROLES.get(role, {}))


def register_all(package: ModuleType) -> None:
    """Import every module of a package, so that the recipes that it defines are registered.

    Args:
        package: The package, such as `imaml.linear`.
    """
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def is_recipe(kind: object) -> bool:
    """Say whether a class has registered.

    Args:
        kind: Anything.

    Returns:
        True for a registered class.
    """
    return isinstance(kind, type) and _KINDS.get(kind.__name__) is kind


def fresh(kind: type[T]) -> T:
    """Make an instance of a registered class that is chosen by its kind alone.

    Args:
        kind: The class.

    Returns:
        The instance, of the arguments that `recipe(fresh=...)` was given.
    """
    return kind(**_FRESH[kind])


def to_json(value: Recipe) -> Json:
    """Write a recipe as JSON values; each dataclass is an object with its kind.

    Args:
        value: A recipe, a tuple of recipes, or a plain value.

    Returns:
        The JSON values.

    Raises:
        ConfigError: If the value, or what it holds, is not a recipe.
    """
    if is_recipe(type(value)):
        content = {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
        return {"kind": type(value).__name__, **content}
    if is_dataclass(value) or callable(value):
        raise ConfigError(
            f"to_json: expected a recipe, got {value!r}, which has no JSON form. Hint: use raw Optax "
            "objects in Python only."
        )
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def text_of(*values: Recipe) -> str | None:
    """Write recipes as one text, from which any process makes the same ones.

    Args:
        *values: The recipes.

    Returns:
        The text, or None if a recipe holds code that is not of this package: a class or an object of the
        user's, which may be another one in the next process under the same name.
    """
    rest: list[object] = list(values)
    for value in rest:  # it grows
        if isinstance(value, tuple):
            rest += value
        elif is_dataclass(value):
            kind = type(value)
            if not kind.__module__.startswith(PACKAGE) or getattr(kind, "of_user", False):
                return None
            rest += [getattr(value, f.name) for f in fields(value)]
        elif callable(value):
            return None
    try:
        return json.dumps([to_json(value) for value in values], sort_keys=True)
    except (ConfigError, TypeError):  # a part of this package that is not a recipe
        return None


def from_json(value: Json) -> Recipe:
    """Read the recipe that `to_json` wrote.

    Args:
        value: JSON values.

    Returns:
        The recipe.

    Raises:
        ConfigError: If a kind or a field is not known.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    given = {name: from_json(item) for name, item in value.items() if name != "kind"}
    if isinstance(kind, str) and kind in _FORMER:
        return _FORMER[kind](given)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(not_one_of("config: kind", kind, _KINDS))
    known = {f.name for f in fields(_KINDS[kind])}  # type: ignore[arg-type]
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(not_one_of(f"config: field of {kind}", unknown[0], known))
    try:
        return _KINDS[kind](**given)
    except TypeError as error:
        raise ConfigError(f"config: {kind}: expected its fields, got an error ({error}).") from error


def parsed(text: str, where: str) -> Json:
    """Read the JSON values in a text.

    Args:
        text: The text.
        where: What holds the text, for the message.

    Returns:
        The JSON values.

    Raises:
        ConfigError: If the text is not valid JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{where}: expected JSON, got an error ({error}). Hint: restore a copy, or begin a new run."
        ) from error
