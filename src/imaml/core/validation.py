"""Checks of arguments, and the words of their messages."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from jax import Array


def some_of(names: Sequence[str | Path], most: int = 5) -> str:
    """Make a phrase of the first few names.

    Args:
        names: The names, or paths, of which the last part is shown.
        most: How many to show.

    Returns:
        The phrase, "a, b and 3 more".
    """
    shown = [name.name if isinstance(name, Path) else name for name in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(shown) + more) or "nothing"


def lacks(what: str, names: Sequence[str | Path]) -> str:
    """Make the phrase on a folder that holds none of what it should.

    Args:
        what: What it should hold.
        names: The names of what it holds.

    Returns:
        The phrase, "holds no images but a, b".
    """
    return f"holds no {what} but {some_of(names)}" if names else "is empty"


def require_whole(owner: str, least: int, **values: object) -> None:
    """Check whole numbers.

    Args:
        owner: Whose values they are, for the message.
        least: The least value.
        **values: The values, by name.

    Raises:
        ConfigError: If one is no whole number of at least `least`.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{owner}: {name}={value!r}; accepted is a whole number of at least {least}.")


def require_number(
    owner: str, least: float = 0, below: float = math.inf, open: bool = False, **values: object
) -> None:
    """Check numbers.

    Args:
        owner: Whose values they are, for the message.
        least: The least value.
        below: What they must be below.
        open: Whether `least` itself is excluded.
        **values: The values, by name.

    Raises:
        ConfigError: If one is no number in the interval.
    """
    for name, value in values.items():
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if not (least <= number < below and not (open and number == least)):
            bounds = f"above {least}" if open else f"of at least {least}"
            bounds += f" and below {below}" if below < math.inf else ""
            raise ConfigError(f"{owner}: {name}={value!r}; accepted is a finite number {bounds}.")


def require_one_of(owner: str, name: str, value: object, accepted: Sequence[object]) -> None:
    """Check that a value is among those accepted.

    Args:
        owner: Whose value it is, for the message.
        name: The name of the value.
        value: The value.
        accepted: The values accepted.

    Raises:
        ConfigError: If it is not; the message says what was perhaps meant.
    """
    if value not in accepted:
        words = [str(word) for word in accepted]
        raise ConfigError(f"{owner}: {name}={value!r}{meant(str(value), words)}")


def meant(word: str, known: Iterable[str]) -> str:
    """Make the end of a message about a misspelt word.

    Args:
        word: The word.
        known: The words that there are.

    Returns:
        What was perhaps meant, else what there is.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(names)}."


def require_function(argument: str, value: object) -> None:
    """Check that a value can be called.

    Args:
        argument: The name of the argument, for the message.
        value: The value.

    Raises:
        ConfigError: If it cannot.
    """
    if not callable(value):
        raise ConfigError(f"{argument}: {value!r} is no function.")


def require_scalar(argument: str, value: Array) -> Array:
    """Check that a value is a scalar.

    Args:
        argument: The name of the argument, for the message.
        value: A number or an array.

    Returns:
        The value.

    Raises:
        ConfigError: If it is an array that is no scalar.
    """
    import jax.numpy as jnp  # late, as the command line imports this module to print its help

    if jnp.shape(value) != ():
        raise ConfigError(
            f"{argument}: must return one number; it returned an array of shape {jnp.shape(value)}."
        )
    return value
