"""A run's configuration: the recipes of its domain, method, optimiser and training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated

from .. import bayes, domains, inner, linear, meta
from ..core.errors import ConfigError
from ..core.recipes import Role, from_json, parsed, recipe, register_all
from ..core.recipes import to_json as to_json
from ..domains.fewshot.domain import FewShotRecipe
from ..domains.recipes import DomainRecipe
from .method import MethodRecipe
from .methods import Method
from .optimiser import Optimiser
from .training import Training

PYTHON = "Python"  # the kind in the config.json of a run whose objects have no JSON form

# Recipes register where they are defined, so a configuration can name one only once its module is imported.
for _package in (linear, inner, meta, bayes, domains):
    register_all(_package)


@recipe()
class Config:
    """The configuration of a run; `imaml.training.experiment.assemble` builds its objects.

    Args:
        domain: Where tasks come from.
        method: How the meta-parameters are learned.
        optimiser: The outer optimiser, or the `OptaxTransform` that stands for one.
        training: How long the run takes, and how often it validates and saves.
    """

    domain: Annotated[DomainRecipe, Role("domain")] = field(default_factory=FewShotRecipe)
    method: Annotated[MethodRecipe, Role("method")] = field(default_factory=Method)
    optimiser: Optimiser = field(default_factory=Optimiser)
    training: Training = field(default_factory=Training)


def load_config(text: str, where: str) -> Config:
    """Read a configuration.

    Args:
        text: The configuration as JSON.
        where: Where the text came from, for messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: If the text is not the configuration of a run, or is that of a run without one.
    """
    value = parsed(text, where)
    if isinstance(value, Mapping) and value.get("kind") == PYTHON:
        raise ConfigError(
            f"{where}: expected a run with a configuration, got one of objects that have no JSON form "
            f"({value.get('reason')}). Hint: resume it from Python, with the same objects: "
            "imaml.train(..., out=..., resume=True)."
        )
    try:
        config = from_json(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{where}: expected the configuration of a run, got {type(config).__name__}.")
    return config
