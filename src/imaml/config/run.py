"""A run as nested frozen dataclasses: recipes, presets, JSON round trip, options from the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ..bayes.curvature import Quadrature
from ..core.errors import ConfigError
from ..core.validation import meant
from ..domains.control.carts import CartsRecipe
from ..domains.control.mazes import MazesRecipe
from ..domains.control.navigation import NavigationRecipe
from ..domains.control.plants import PlantsRecipe
from ..domains.fewshot.domain import FewShotRecipe
from ..domains.generative.densities import DensitiesRecipe
from ..domains.generative.generation import GenerationRecipe
from ..domains.generative.imitation import ImitationRecipe
from ..domains.generative.restoration import RestorationRecipe
from ..domains.regression import LinearGaussianRecipe, SinusoidRecipe
from ..domains.tables.domain import TablesRecipe
from ..domains.tables.layout import Column, Layout
from ..inner.games import ExtraGradient, OptimisticDescent
from ..inner.gradient import Descent, GradientDescent, ProximalGradient
from ..inner.newton import NewtonCG
from ..linear.bicgstab import BiCGStab
from ..linear.cg import CG
from ..linear.damped_cg import DampedCG
from ..linear.dense import Dense
from ..linear.gmres import GMRES
from ..linear.minres import MINRES
from ..linear.neumann import Neumann
from ..linear.preconditioners import Diagonal, Nystrom
from ..meta.accuracy import Tightening
from .method import Bayes, Method, NewTask
from .optimiser import Optimiser
from .training import Training

PYTHON = "Python"  # the kind in the config.json of a run whose objects have no JSON form


@dataclass(frozen=True)
class Config:
    """A whole run."""

    domain: (
        FewShotRecipe
        | SinusoidRecipe
        | LinearGaussianRecipe
        | TablesRecipe
        | MazesRecipe
        | PlantsRecipe
        | DensitiesRecipe
        | NavigationRecipe
        | CartsRecipe
        | ImitationRecipe
        | GenerationRecipe
        | RestorationRecipe
    ) = field(default_factory=FewShotRecipe)
    method: Method = field(default_factory=Method)
    optimiser: Optimiser = field(default_factory=Optimiser)
    training: Training = field(default_factory=Training)


_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        FewShotRecipe,
        SinusoidRecipe,
        LinearGaussianRecipe,
        TablesRecipe,
        MazesRecipe,
        PlantsRecipe,
        DensitiesRecipe,
        NavigationRecipe,
        CartsRecipe,
        ImitationRecipe,
        GenerationRecipe,
        RestorationRecipe,
        Layout,
        Column,
        GradientDescent,
        ProximalGradient,
        ExtraGradient,
        OptimisticDescent,
        NewtonCG,
        CG,
        Neumann,
        GMRES,
        BiCGStab,
        MINRES,
        Dense,
        DampedCG,
        Diagonal,
        Nystrom,
        Tightening,
        NewTask,
        Quadrature,
        Bayes,
        Method,
        Optimiser,
        Training,
        Config,
    )
}


def to_json(recipe: Any) -> Any:
    """A recipe as JSON values; each dataclass an object with its kind."""
    if is_dataclass(recipe) and not isinstance(recipe, type):
        if type(recipe).__name__ not in _KINDS:
            raise ConfigError(f"{recipe!r} has no JSON form; a raw Optax object is welcome from Python only.")
        return {
            "kind": type(recipe).__name__,
            **{f.name: to_json(getattr(recipe, f.name)) for f in fields(recipe)},
        }
    if isinstance(recipe, Descent) or callable(recipe):
        raise ConfigError(f"{recipe!r} has no JSON form; a raw Optax object is welcome from Python only.")
    return [to_json(item) for item in recipe] if isinstance(recipe, tuple) else recipe


def from_json(value: Any) -> Any:
    """The recipe that `to_json` gave; ConfigError for kinds and fields that are not known."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"config: kind={kind!r}{meant(str(kind), _KINDS)}")
    known = {f.name for f in fields(_KINDS[kind])}
    given = {name: from_json(item) for name, item in value.items() if name != "kind"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"config: {kind} has no field {unknown[0]!r}{meant(unknown[0], known)}")
    try:
        return _KINDS[kind](**given)
    except TypeError as error:
        raise ConfigError(f"config: {kind}: {error}.") from error


def load_config(text: str, where: str) -> Config:
    """The Config in a JSON text; ConfigError naming `where` it came from."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON ({error}); put back a copy, or begin a new run.") from error
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
