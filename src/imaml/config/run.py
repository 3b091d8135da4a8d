"""A run's configuration: the recipes of its domain, method, optimiser and training."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from .. import bayes, domains, inner, linear, meta
from ..core.errors import ConfigError
from ..core.recipes import Role, from_json, parsed, recipe
from ..domains.fewshot.domain import FewShotRecipe
from .method import IMAMLRecipe, MethodRecipe
from .optimiser import Optimiser
from .training import Training

PYTHON = "Python"  # the kind in the config.json of a run whose objects have no JSON form

# Recipes register where they are defined, so a configuration can name one only once its module is imported.
for _package in (linear, inner, meta, bayes, domains):
    for _module in pkgutil.walk_packages(_package.__path__, f"{_package.__name__}."):
        importlib.import_module(_module.name)


@recipe()
@dataclass(frozen=True)
class Config:
    """A whole run.

    Args:
        domain: Where tasks come from.
        method: How theta is learned.
        optimiser: The outer optimiser.
        training: How long, and how often it looks.
    """

    domain: Annotated[Any, Role("domain")] = field(default_factory=FewShotRecipe)
    method: Annotated[MethodRecipe, Role("method")] = field(default_factory=IMAMLRecipe)
    optimiser: Optimiser = field(default_factory=Optimiser)
    training: Training = field(default_factory=Training)


def load_config(text: str, where: str) -> Config:
    """The Config in a JSON text; ConfigError naming `where` it came from."""
    value = parsed(text, where)
    if isinstance(value, Mapping) and value.get("kind") == PYTHON:
        raise ConfigError(
            f"{where}: this run was started from Python with something that has no JSON form "
            f"({value.get('reason')}), so it can only go on from Python, with the same objects: "
            "imaml.train(..., out=..., resume=True)."
        )
    try:
        config = from_json(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{where} holds no run's configuration but {type(config).__name__}.")
    return config
