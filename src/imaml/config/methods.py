"""Methods by name: the table of those that have registered, and how one is made from options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import fields

from jax.sharding import Mesh

from ..core.errors import ConfigError
from ..core.recipes import former, kinds_of
from ..core.validation import not_one_of
from ..domains.base import Domain
from ..meta.gradient import MetaGradient, require_method
from ..problems.losses import joined
from .method import Anchored, MethodRecipe


def methods() -> dict[str, type[MethodRecipe]]:
    """Return the classes that have registered as methods, by `name`."""
    return {kind.name: kind for kind in kinds_of("method").values()}


def named(name: object) -> type[MethodRecipe]:
    """Return the class of a method.

    Args:
        name: Its `name`, such as "imaml".

    Returns:
        The class.

    Raises:
        ConfigError: If there is no such method.
    """
    for known, kind in methods().items():
        if known == name:
            return kind
    raise ConfigError(not_one_of("method: name", name, methods()))


def Method(name: str = "imaml", **options: object) -> MethodRecipe:
    """Make the recipe of a method by its name.

    Args:
        name: The method: imaml, maml, fomaml, metasgd, reptile, transfer, multitask, as-released, evidence,
            moments or posterior.
        **options: The fields of its class, such as `imaml.config.IMAMLRecipe`.

    Returns:
        The recipe.

    Raises:
        ConfigError: If there is no such method, it lacks an option, or a value is outside its range.

    Example:
        >>> import imaml
        >>> Method("maml", inner=imaml.GradientDescent(0.1, steps=5)).inner.steps
        5
    """
    kind = named(name)
    return kind(**fitting(kind, options))  # type: ignore[arg-type]


def changed(method: MethodRecipe, **changes: object) -> MethodRecipe:
    """Change some fields of a method; ``name=...`` makes another method.

    The other method takes over the fields that both have.

    Args:
        method: The method to start from.
        **changes: New values of fields, and perhaps name.

    Returns:
        The recipe.

    Raises:
        ConfigError: If the method lacks a field, or values do not go together.

    Example:
        >>> changed(Method("imaml", strength=0.3, chunk=2), name="maml").chunk
        2
    """
    kind = named(changes.pop("name", method.name))
    changes = fitting(kind, changes)
    return kind(**{**carried(method, kind, changes), **changes})  # type: ignore[arg-type]


def carried(
    method: MethodRecipe, kind: type[MethodRecipe], changes: Mapping[str, object]
) -> dict[str, object]:
    """Return the fields that another method takes over.

    Args:
        method: The method to start from.
        kind: The class of the other method.
        changes: Fields that the other method has from elsewhere.

    Returns:
        The values of the fields that both have; of one that only the other has, its default.
    """
    kept = {f.name: getattr(method, f.name, default_of(f.name)) for f in fields(kind)}
    if kept.get("strength", 0) is None and issubclass(kind, Anchored):
        kept["strength"] = default_of("strength")
    if changes.get("strength", kept.get("strength")) is None and method.new_task is not None:
        kept["new_task"] = dataclasses.replace(method.new_task, strength=None)
    return kept


def default_of(option: str) -> object:
    """Return the default of an option, the same in all methods that have it.

    Args:
        option: The name of a field.

    Returns:
        The default.

    Raises:
        ConfigError: If no method has such a field.
    """
    known = {f.name: f for kind in methods().values() for f in fields(kind)}
    if option not in known:
        raise ConfigError(not_one_of("method: option", option, known))
    made = known[option].default_factory
    return known[option].default if made is dataclasses.MISSING else made()


def fitting(kind: type[MethodRecipe], options: Mapping[str, object]) -> dict[str, object]:
    """Return the options that a method has.

    Args:
        kind: The method's class.
        options: Options by name. One that the method lacks may be given as None (strength), or as the default
            that it has in other methods.

    Returns:
        The options without those.

    Raises:
        ConfigError: If an option that the method lacks has another value.
    """
    own = {f.name for f in fields(kind)}
    for name in set(options) - own:
        default, value = default_of(name), options[name]
        if value != (None if name == "strength" else default):
            having = [other.name for other in methods().values() if name in {f.name for f in fields(other)}]
            raise ConfigError(
                f"method: expected no {name} with name={kind.name!r}, got {name}={value!r}. Hint: omit it, "
                f"or choose name={' or '.join(map(repr, having))}."
            )
    return {name: value for name, value in options.items() if name in own}


def made(method: MethodRecipe | MetaGradient, domain: Domain, mesh: Mesh | None) -> MetaGradient:
    """Return a method that is ready to learn.

    Args:
        method: A recipe, or a method without or with a mesh of its own.
        domain: What a recipe is built on.
        mesh: Devices over which tasks are sharded, where the method does not say.

    Returns:
        The method.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(method, MethodRecipe):
        return method.build(domain, mesh)
    method = require_method(method)
    if (
        getattr(method.rule, "whole", None) is joined
    ):  # the domain knows whether both batches have the same rows
        rule = dataclasses.replace(method.rule, whole=domain.whole)  # type: ignore[type-var, call-arg]
        method = dataclasses.replace(method, rule=rule).built_from(method.origin)
    return method if mesh is None or method.mesh is not None else method.on(mesh)


@former("Method")
def _of_earlier_files(options: Mapping[str, object]) -> MethodRecipe:
    """Read a method from an earlier file, which has one kind for all, with the fields of all."""
    kind = named(options.get("name", "imaml"))
    own = {f.name for f in fields(kind)}
    for name in options.keys() - own - {"name"}:
        default_of(name)  # ConfigError for an option that no method has
    return kind(**{name: value for name, value in options.items() if name in own})  # type: ignore[arg-type]
