"""Field types: which values each accepts, the message on any other, and that they cover every recipe."""

import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest

import imaml
import imaml.config.run  # which registers every recipe
from imaml.core import recipes
from imaml.core.fields import (
    Checked,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    SeveralInt,
    expected,
    field_types,
    without_intervals,
)
from imaml.core.recipes import Role

# A type, values that it accepts, values that it does not, and what a message says.
TYPES = {
    "int": (int, [0, -3], [1.0, True, "1", None], "a whole number"),
    "float": (float, [0, -1.5, np.float64(2)], [math.nan, math.inf, True, "1"], "a finite number"),
    "bool": (bool, [True, False], [0, 1, "yes", None], "True or False"),
    "str": (str, ["", "a"], [1, None], "a text"),
    "None": (types.NoneType, [None], [0, ""], "None"),
    "NonNegativeInt": (NonNegativeInt, [0, 7], [-1, 0.0], "a whole number of at least 0"),
    "PositiveInt": (PositiveInt, [1, 2], [0, True, 1.0], "a whole number of at least 1"),
    "SeveralInt": (SeveralInt, [2, 9], [1], "a whole number of at least 2"),
    "NonNegativeFloat": (NonNegativeFloat, [0, 0.5], [-1e-9, math.inf], "a finite number of at least 0"),
    "PositiveFloat": (PositiveFloat, [1, 1e-30], [0, -1.0], "a finite number above 0"),
    "Fraction": (Fraction, [0, 0.999], [1, -0.1], "a finite number of at least 0 and below 1"),
    "PositiveFraction": (PositiveFraction, [0.5], [0, 1.0], "a finite number above 0 and below 1"),
    "Literal": (Literal["a", "b"], ["a"], ["c", None], "one of 'a', 'b'"),
    "union": (PositiveInt | None, [None, 1], [0, "1"], "a whole number of at least 1 or None"),
    "Union": (
        typing.Union[int, Literal["auto"]],  # noqa: UP007
        [3, "auto"],
        [0.5, "a"],
        "a whole number or 'auto'",
    ),
    "tuple": (
        tuple[PositiveInt, ...],
        [(), (1, 2)],
        [(1, 0), ("a",)],
        "a tuple, each item a whole number of at least 1",
    ),
    "tuple, not a list": (tuple[str, ...], [("a",)], [["a"], "a", None], "a tuple"),
    "pair": (
        tuple[str, tuple[int, ...]],
        [("a", (1, 2))],
        [("a", (1, "b"))],
        "a tuple, item 1 a tuple, each",
    ),
    "pair, not three": (tuple[str, int], [("a", 1)], [("a",), ("a", 1, 2)], "a tuple of 2 items"),
    "recipe": (imaml.CG, [imaml.CG(steps=1)], [imaml.MINRES(), None], "CG"),
    "recipe or None": (imaml.Quadrature | None, [None, imaml.Quadrature()], [7], "Quadrature or None"),
    "function": (Callable[[int], int], [abs, imaml.CG(steps=1)], [1, None], "a function"),
    "role": (Annotated[int, Role("count")], [1], ["1"], "a whole number"),
    "unchecked": (typing.Any, [1, None, "a"], [], ""),
    "unchecked in a union": (PositiveInt | np.ndarray, [1, 0, "a"], [], ""),
}


@pytest.mark.parametrize("name", TYPES)
def test_which_values_a_type_accepts(name):
    hint, valid, invalid, phrase = TYPES[name]
    assert [expected(hint, value) for value in valid] == [""] * len(valid)
    for value in invalid:
        assert expected(hint, value).startswith(phrase)


@dataclass(frozen=True)
class Sample(Checked):
    steps: PositiveInt
    form: Literal["dense", "diagonal"] = "dense"
    other: object = None


@dataclass(frozen=True)
class Owned(Sample):
    owner = "sampling"

    last: PositiveFloat = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.last > self.steps:
            raise imaml.ConfigError("sampling: last: expected at most steps")


def test_messages_name_owner_field_type_value_and_the_closest_choice():
    for make, message in (
        (lambda: Sample(0), "Sample: steps: expected a whole number of at least 1, got 0."),
        (
            lambda: Sample(1, "diagnal"),
            "Sample: form: expected one of 'dense', 'diagonal', got 'diagnal'. "
            "Hint: did you mean 'diagonal'?",
        ),
        (lambda: Owned(True), "sampling: steps: expected a whole number of at least 1, got True."),
        (lambda: Owned(1, last=2.0), "sampling: last: expected at most steps"),
    ):
        with pytest.raises(imaml.ConfigError) as caught:
            make()
        assert str(caught.value) == message
    assert Owned(2, "diagonal", other=object).steps == 2


def test_types_without_intervals():
    assert without_intervals(PositiveInt) is int
    assert without_intervals(PositiveInt | None) == int | None
    assert without_intervals(tuple[PositiveInt, ...]) == tuple[int, ...]
    assert without_intervals(Annotated[int, Role("count")]) == Annotated[int, Role("count")]


# Deliberately unchecked: any recipe that has registered for a role may be there; `learned` makes a Learned.
ROLES = {"InnerSolver", "LinearSolver", "MethodRecipe", "DomainRecipe", "Network", "RowLoss"}
UNCHECKED = {*ROLES, "Any", "Learned"}


def understood(hint):
    """Whether `expected` checks a type in full."""
    if typing.get_origin(hint) is Annotated:
        return understood(typing.get_args(hint)[0])
    if typing.get_origin(hint) is Literal or hint in (int, float, bool, str, types.NoneType):
        return True
    if typing.get_args(hint):
        return all(understood(part) for part in typing.get_args(hint) if part is not Ellipsis)
    return recipes.is_recipe(hint) or getattr(hint, "__name__", str(hint)) in UNCHECKED


@pytest.mark.parametrize("kind", [k for k in recipes._KINDS.values() if k.__module__.startswith("imaml.")])
def test_the_types_of_every_recipe_are_understood(kind):
    assert [name for name, hint in field_types(kind).items() if not understood(hint)] == []
