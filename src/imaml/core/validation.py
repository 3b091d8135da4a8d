"""Checks of arguments, and the words of their messages."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:
    from jax import Array


def some_of(names: Sequence[str | Path], most: int = 5) -> str:
    """The first few names as a phrase."""
    shown = [name.name if isinstance(name, Path) else name for name in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(shown) + more) or "nothing"


def lacks(what: str, names: Sequence[str | Path]) -> str:
    """The phrase on a folder that holds none of what it should, from the names of what it holds."""
    return f"holds no {what} but {some_of(names)}" if names else "is empty"


def require_whole(owner: str, least: int, **values: Any) -> None:
    """Refuses values that are no whole numbers of at least `least`, naming whose they are (ConfigError)."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{owner}: {name}={value!r}; accepted is a whole number of at least {least}.")


def require_number(
    owner: str, least: float = 0, below: float = math.inf, open: bool = False, **values: Any
) -> None:
    """Refuses values that are no numbers in [least, below), or (least, below) where `open` (ConfigError)."""
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and least <= value < below and not (open and value == least)):
            bounds = f"above {least}" if open else f"of at least {least}"
            bounds += f" and below {below}" if below < math.inf else ""
            raise ConfigError(f"{owner}: {name}={value!r}; accepted is a finite number {bounds}.")


def require_one_of(owner: str, name: str, value: Any, accepted: Sequence[Any]) -> None:
    """Refuses a value that is not among those accepted, saying what was perhaps meant (ConfigError)."""
    if value not in accepted:
        words = [str(word) for word in accepted]
        raise ConfigError(f"{owner}: {name}={value!r}{meant(str(value), words)}")


def meant(word: str, known: Iterable[str]) -> str:
    """The end of a message about a misspelt word: what was perhaps meant, else what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(names)}."


def require_function(argument: str, value: Any) -> None:
    """Raises ConfigError for what cannot be called."""
    if not callable(value):
        raise ConfigError(f"{argument}: {value!r} is no function.")


def require_scalar(argument: str, value: Any) -> Array:
    """The value; ConfigError for an array that is no scalar."""
    import jax.numpy as jnp  # late, as the command line imports this module to print its help

    if jnp.shape(value) != ():
        raise ConfigError(
            f"{argument}: must return one number; it returned an array of shape {jnp.shape(value)}."
        )
    return value
