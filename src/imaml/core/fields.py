"""Field types that say which values are valid, and the check of a recipe's fields against its types.

    @recipe("inner")
    class MySolver(Checked):
        steps: PositiveInt
        rate: PositiveFloat = 0.1
        form: Literal["dense", "diagonal"] = "dense"

    MySolver(steps=0)  # ConfigError: MySolver: steps: expected a whole number of at least 1, got 0.

A type may be a number type of this module, `int`, `float`, `bool`, `str`, a `Literal`, a dataclass, a class
with words of its own (`Such`), a `Callable`, ``None``, a tuple of these or a union of these. Fields of other
types are not checked.
"""

import functools
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, ClassVar, Literal

from .errors import ConfigError
from .validation import Interval, suggestion

NonNegativeInt = Annotated[int, Interval(0)]
PositiveInt = Annotated[int, Interval(1)]
SeveralInt = Annotated[int, Interval(2)]
NonNegativeFloat = Annotated[float, Interval(0)]
PositiveFloat = Annotated[float, Interval(0, open=True)]
Fraction = Annotated[float, Interval(0, 1)]
PositiveFraction = Annotated[float, Interval(0, 1, open=True)]


@dataclass(frozen=True)
class Such:
    """Says in words what a field of a class holds: `Annotated[InnerSolver, Such("an inner solver")]`.

    Any function stands for a protocol that has `__call__`; of other classes it must be an instance.

    Attributes:
        words: The phrase for a message.
    """

    words: str


_NAMES: dict[object, str] = {bool: "True or False", str: "a text", types.NoneType: "None"}


def expected(hint: object, value: object) -> str:
    """Return what a type accepts, if it does not accept a value.

    Args:
        hint: The type of a field.
        value: The value.

    Returns:
        The phrase for a message; empty if the value is valid.
    """
    marks: list[object] = []
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
    for mark in marks:
        if isinstance(mark, Such):
            kind = typing.cast(type, hint)
            valid = callable(value) if "__call__" in vars(kind) else isinstance(value, kind)
            return "" if valid else mark.words
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found = [expected(choice, value) for choice in arguments]
        return " or ".join(dict.fromkeys(found)) if all(found) else ""
    if origin is Literal:
        choices = ", ".join(map(repr, arguments))
        return "" if value in arguments else f"one of {choices}" if len(arguments) > 1 else choices
    if origin is tuple:
        if not isinstance(value, tuple):
            return "a tuple"
        alike = arguments[-1:] == (Ellipsis,)
        kinds = arguments[:1] * len(value) if alike else arguments
        if len(kinds) != len(value):
            return f"a tuple of {len(kinds)} items"
        found = [expected(kind, item) for kind, item in zip(kinds, value, strict=True)]
        wrong = next((index for index, phrase in enumerate(found) if phrase), None)
        if wrong is None:
            return ""
        return f"a tuple, {'each item' if alike else f'item {wrong}'} {found[wrong]}"
    if origin is Callable:
        return "" if callable(value) else "a function"
    if hint in (int, float):
        interval = next((mark for mark in marks if isinstance(mark, Interval)), Interval())
        return interval.expected(typing.cast(type, hint), value)
    if hint in _NAMES:
        return "" if isinstance(value, typing.cast(type, hint)) else _NAMES[hint]
    if is_dataclass(hint):
        kind = typing.cast(type, hint)
        return "" if isinstance(value, kind) else kind.__name__
    return ""


@functools.cache
def field_types(kind: type) -> dict[str, object]:
    """Return the types of a dataclass's fields.

    Args:
        kind: The dataclass.

    Returns:
        The types by name, with their annotations.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def without_intervals(hint: object) -> object:
    """Return a type whose numbers may have any value.

    Args:
        hint: A type.

    Returns:
        The type without its `Interval` annotations, also those within unions and tuples.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        marks = [mark for mark in arguments[1:] if not isinstance(mark, Interval)]
        plain = without_intervals(arguments[0])
        return Annotated[(plain, *marks)] if marks else plain  # type: ignore[return-value]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(without_intervals, arguments))]  # noqa: UP007
    return tuple[tuple(map(without_intervals, arguments))] if origin is tuple else hint  # type: ignore[misc]


class Checked:
    """The base of a dataclass whose fields are checked when it is made.

    A subclass with a ``__post_init__`` of its own calls that of this class first.

    Attributes:
        owner: What messages call it; empty for the name of its class.
    """

    owner: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check the fields (ConfigError)."""
        for name, hint in field_types(type(self)).items():
            value = getattr(self, name)
            wanted = expected(hint, value)
            if wanted:
                close = suggestion(value, re.findall("'([^']*)'", wanted))
                problem = f"expected {wanted}, got {value!r}.{close}"
                raise ConfigError.of_field(self.owner or type(self).__name__, name, problem)
