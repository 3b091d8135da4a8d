"""Saved configurations: what earlier versions accepted and ignored still loads, with a warning."""

import json

import pytest

import imaml
from imaml.config.presets import preset
from imaml.config.run import load_config
from imaml.core.errors import ConfigError
from imaml.core.recipes import from_json, to_json

IGNORED = [
    ("adam", "momentum", 0.9),
    ("sgd", "beta1", 0.5),
    ("rmsprop", "least_side", 8),
    ("adam", "weight_decay", 0.1),
]


def saved(**changes):
    content = to_json(preset("sinusoid"))
    content["optimiser"] |= changes
    return json.dumps(content)


@pytest.mark.parametrize(("name", "option", "value"), IGNORED)
def test_an_option_without_effect_loads_with_a_warning_and_is_refused_when_new(name, option, value):
    with pytest.warns(RuntimeWarning, match=f"{option}={value} is ignored, as {name} has no {option}"):
        config = load_config(saved(name=name, **{option: value}), "config.json")
    assert config.optimiser == imaml.Optimiser(name, 3e-3, clip=1.0)
    with pytest.raises(ConfigError, match=f"{name} has no {option}"):
        imaml.Optimiser(name, **{option: value})


def test_an_option_with_effect_loads_as_it_was(recwarn):
    config = load_config(saved(name="sgd", momentum=0.9), "config.json")
    assert config.optimiser.momentum == 0.9
    assert not recwarn.list


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"momentun": 0.9}, "did you mean 'momentum'"),
        ({"name": "adan"}, "did you mean 'adam'"),
        ({"beta1": 2.0}, "beta1"),
    ],
)
def test_what_no_version_accepted_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        load_config(saved(**change), "config.json")


def test_a_name_to_adapt_is_a_list_of_one():
    first = imaml.config.Method("maml", adapt="head")
    assert first == imaml.config.Method("maml", adapt=("head",)) == from_json(to_json(first))
