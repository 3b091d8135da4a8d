"""The configuration that a run from Python objects amounts to, or why it has none."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

from ..core.errors import ConfigError
from ..core.recipes import to_json
from ..meta.gradient import MetaGradient
from .method import Method, NewTask, fields_of
from .optimiser import Optimiser
from .run import Config
from .training import Training


def describe(domain: Any, method: Any, optimiser: Any, training: Training) -> Config | str:
    """The Config that a run from Python objects amounts to, or the reason why there is none."""
    if not isinstance(optimiser, Optimiser):
        return f"the optimiser, {type(optimiser).__name__}, is a raw Optax object and no imaml.Optimiser"
    if method.problem.kind not in ("proximal", "plain", "equilibrium"):
        return f"the method's problem is a {method.problem.kind} and no proximal, plain or equilibrium one"
    problem, recipe, maker = method.problem, getattr(domain, "recipe", None), method.query_loss
    if recipe is None:
        return f"the domain, {type(domain).__name__}, has no recipe"
    own = getattr(maker, "__self__", None)
    if (
        getattr(problem.loss, "model", problem.loss) != domain.problem(1.0).loss
        or getattr(maker, "__func__", None) is not getattr(type(domain), "query_loss", None)
        or _apart_from_data(getattr(own, "recipe", None)) != _apart_from_data(recipe)
    ):
        return "the method's loss or query_loss is not the domain's own"
    strength = problem.learns.initial if problem.learns is not None else problem.strength
    if isinstance(strength, bool) or not isinstance(strength, (int, float, types.NoneType)):
        return "the strength is not one number"
    if callable(problem.adapt.choice):
        return "adapt= is a function; names of leaves have a JSON form"
    try:
        described = Method(
            **fields_of(method),
            strength=None if strength is None else float(strength),
            learned=None if problem.learns is None else problem.learns.per,
            **({} if problem.learns is None else {"rank": problem.learns.rank}),
            adapt=problem.adapt.choice,
            new_task=_new_task(method),
            policy=method.policy,
            chunk=method.chunk,
        )
        config = Config(recipe, described, optimiser, training)
        to_json(config)
    except ConfigError as error:
        return str(error).rstrip(".")
    return config


def _new_task(method: MetaGradient) -> NewTask | None:
    """The recipe of how a method solves new tasks."""
    if method.new_task is None:
        return None
    problem, inner = method.new_task
    if problem is method.problem:
        return NewTask(inner)  # type: ignore[arg-type]
    if problem.loss != method.problem.loss or problem.adapt != method.problem.adapt:
        raise ConfigError("the problem of new tasks has another loss, or adapts other leaves.")
    return NewTask(inner, problem.strength)  # type: ignore[arg-type]


def _apart_from_data(recipe: Any) -> Any:
    """A domain's recipe without what its losses do not depend on: where the data lie, which classes."""
    blank = {name: value for name, value in (("data", None), ("limits", ())) if hasattr(recipe, name)}
    return dataclasses.replace(recipe, **blank) if blank else recipe
