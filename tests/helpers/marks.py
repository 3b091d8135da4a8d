"""Marks of parametrised tests."""

import pytest


def slow_after_first(values):
    """Return parameters of which all but the first are slow: `make test` covers the capability once."""
    first, *rest = values
    as_tuple = lambda value: value if isinstance(value, tuple) else (value,)  # noqa: E731
    return [first, *(pytest.param(*as_tuple(value), marks=pytest.mark.slow) for value in rest)]
