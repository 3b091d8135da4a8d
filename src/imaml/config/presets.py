"""Named configurations, each chosen by trials on its validation split; they are in `presets.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import NamedTuple

from ..core.errors import ConfigError
from ..core.recipes import Json, from_json
from ..core.validation import not_one_of
from .run import Config


class Preset(NamedTuple):
    """A named configuration.

    Attributes:
        about: What it is, in one line.
        config: The configuration.
    """

    about: str
    config: Config


def _merged(base: Json, changes: Json) -> Json:
    """Return nested tables with some of their entries changed; one of another kind takes over nothing."""
    if not isinstance(base, dict) or changes.get("kind", base.get("kind")) != base.get("kind"):
        return changes
    found = {name: _merged(base[name], value) if name in base else value for name, value in changes.items()}
    return {**base, **found}


def _read() -> dict[str, Preset]:
    """Return the presets by name; entries of the file without `about` are none."""
    text = resources.files("imaml.config").joinpath("presets.toml").read_text(encoding="utf-8")
    entries = {"": {"kind": "Config", "optimiser": {"kind": "Optimiser"}, "training": {"kind": "Training"}}}
    for name, content in tomllib.loads(text).items():
        entries[name] = _merged(entries[content.pop("like", "")], content)
    abouts = {name: entry.pop("about") for name, entry in entries.items() if "about" in entry}
    return {name: Preset(about, from_json(entries[name])) for name, about in abouts.items()}


PRESETS: dict[str, Preset] = _read()


def preset(name: str) -> Config:
    """Return the configuration of a preset.

    Args:
        name: A key of `PRESETS`.

    Returns:
        The configuration.

    Raises:
        ConfigError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(not_one_of("preset", name, PRESETS))
    return PRESETS[name].config
