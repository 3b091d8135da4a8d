"""Every registered recipe goes to JSON text and back."""

import json
from dataclasses import fields

import pytest

import imaml
import imaml.config.run  # which registers every recipe
from imaml.core import recipes
from imaml.core.recipes import fresh, from_json, to_json
from imaml.domains.tables.layout import Column, Layout

KINDS = {name: kind for name, kind in recipes._KINDS.items() if kind.__module__.startswith("imaml.")}
# Recipes that have no instance by their kind alone.
MADE = {
    "Column": Column("dose"),
    "Layout": Layout(features=(Column("dose"), Column("site", ("a", "b"))), target=Column("response")),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_goes_to_json_and_back(name):
    made = MADE[name] if name in MADE else fresh(KINDS[name])
    written = json.loads(json.dumps(to_json(made), allow_nan=False))
    assert written["kind"] == name
    assert list(written)[1:] == [field.name for field in fields(made)]
    read = from_json(written)
    assert type(read) is type(made)
    assert read == made
    assert hash(read) == hash(made)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"kind": "CGG", "steps": 1}, "config: kind: expected one of .*, got 'CGG'. Hint: did you mean 'CG'"),
        ({"kind": "CG", "step": 1}, "config: field of CG: expected one of .*, got 'step'.*'steps'"),
        ({"steps": 1}, "config: kind: expected one of .*, got None"),
        ({"kind": "DensitiesRecipe", "shots": 1}, "shots: expected a whole number of at least 2, got 1"),
        ({"kind": "Column"}, "config: Column: .*missing"),
    ],
)
def test_other_json_is_refused(value, words):
    with pytest.raises(imaml.ConfigError, match=words):
        from_json(value)


def test_what_has_no_json_form_is_refused():
    with pytest.raises(imaml.ConfigError, match=r"to_json: expected a recipe, got .* which has no JSON form"):
        to_json(lambda: None)
