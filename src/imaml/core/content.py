"""Equality by content, so that equal objects are one static argument to `jax.jit` and compile once."""

import functools
import hashlib
from dataclasses import fields, is_dataclass
from types import MethodType

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

LARGEST = 1 << 20  # entries of an array whose bytes are compared; larger arrays are compared by identity


class _Same:
    """Compares a value without hashable content by identity; keeps it alive, so its id stays its own."""

    def __init__(self, value: object) -> None:
        """Wraps a value."""
        self.value = value

    def __eq__(self, other: object) -> bool:
        """Whether both wrap the same object."""
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        """The hash of the identity."""
        return id(self.value)


class ByContent:
    """Equality and hash by the content of fields; a base of frozen dataclasses with ``eq=False``.

    The equality that `dataclass` generates fails on arrays, and compares partials and bound methods by
    identity. This one compares arrays by their bytes, partials by their parts, and bound methods by their
    functions and owners. What cannot be hashed is compared by identity, and so is a traced array.

    Example:
        >>> import functools
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Scaled(ByContent):
        ...     function: object
        ...     scale: object
        >>> make = lambda: Scaled(functools.partial(pow, 2), np.ones(3))
        >>> make() == make(), len({make(), make()})
        (True, 1)
    """

    @functools.cached_property
    def _content(self) -> tuple[int, tuple]:
        content = (type(self), *(content_of(getattr(self, field.name)) for field in fields(self)))  # type: ignore[arg-type]
        return hash(content), content

    def __eq__(self, other: object) -> bool:
        """Whether both are of one class and their fields have equal content."""
        if self is other:
            return True
        return isinstance(other, ByContent) and self._content == other._content

    def __hash__(self) -> int:
        """The hash of the content."""
        return self._content[0]


def content_of(value: object) -> object:
    """A hashable object that is equal for two values of equal content.

    Args:
        value: A number, an array, a tree, a function, a dataclass, or any other object.

    Returns:
        For arrays, containers, partials, bound methods and frozen dataclasses a tuple made of their parts;
        for other hashable objects the object; for the rest a wrapper that compares by identity.
    """
    if isinstance(value, ByContent) or value is None or isinstance(value, (str, type)):
        return value
    if isinstance(value, Tracer):
        return _Same(value)
    if isinstance(value, (bool, int, float)):
        return type(value), value
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array(value)
    if isinstance(value, dict):
        return dict, frozenset((key, content_of(item)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return type(value), *map(content_of, value)
    if isinstance(value, functools.partial):
        return type(value), *map(content_of, (value.func, value.args, value.keywords))
    if isinstance(value, MethodType):
        return MethodType, value.__func__, content_of(value.__self__)
    made = getattr(type(value), "__dataclass_params__", None)
    if is_dataclass(value) and made is not None and made.eq and made.frozen:
        return type(value), *(
            content_of(getattr(value, field.name)) for field in fields(value) if field.compare
        )
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _array(value: np.ndarray | np.generic | jax.Array) -> object:
    """The content of an array: kind, dtype, shape and a digest of its bytes; the array itself if large."""
    if value.size > LARGEST or value.dtype == object or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return _Same(value)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return _Same(value)
    kind, weak = isinstance(value, jax.Array), getattr(value, "weak_type", False)
    digest = hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16).digest()
    return kind, weak, value.dtype.name, value.shape, digest
