"""Checks of arguments, and the words of their messages."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


def not_one_of(what: str, value: object, known: Iterable[object]) -> str:
    """Return the message on a value that is none of those known.

    Args:
        what: What the value is for.
        value: The value.
        known: The valid values.

    Returns:
        The message, with the closest valid value as a hint.
    """
    return f"{what}: {no_choice(value, known)}"


def no_choice(value: object, known: Iterable[object]) -> str:
    """Return the message of `not_one_of` without what the value is for.

    Args:
        value: The value.
        known: The valid values.

    Returns:
        The message.
    """
    names = sorted(map(str, known))
    hint = suggestion(value, names)
    return f"expected one of {some_of(names, 5 if hint else 40)}, got {value!r}.{hint}"


def suggestion(value: object, known: Iterable[object], files: bool = False) -> str:
    """Return the hint that names the valid value closest to another one.

    Args:
        value: What was written.
        known: The valid values. Dashes in front of options do not count.
        files: Whether they are names of files, whose suffixes do not count either.

    Returns:
        The hint, with a space before it; empty if none is close.
    """

    def compared(name: object) -> str:
        return Path(str(name)).stem if files else str(name).lstrip("-")

    names = {compared(name): str(name) for name in known}
    cutoff = 0.6 if files else 0.5  # a folder may hold anything
    close = difflib.get_close_matches(compared(value), list(names), n=1, cutoff=cutoff)
    return f" Hint: did you mean {names[close[0]]!r}?" if close else ""


@dataclass(frozen=True)
class Interval:
    """An interval of numbers.

    Attributes:
        least: The lower end.
        below: The upper end, which is excluded.
        open: Whether the lower end is excluded as well.
    """

    least: float = -math.inf
    below: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        """Return whether a number is in the interval."""
        return self.least <= value < self.below and not (self.open and value == self.least)

    def __str__(self) -> str:
        """Return the interval in words."""
        lower = "" if self.least == -math.inf else f"{'above' if self.open else 'of at least'} {self.least}"
        upper = f"below {self.below}" if self.below < math.inf else ""
        return " and ".join(filter(None, (lower, upper)))

    def expected(self, kind: type, value: object) -> str:
        """Return what this interval of a kind of numbers accepts, if it does not accept a value.

        Args:
            kind: `int` or `float`.
            value: The value.

        Returns:
            The phrase for a message; empty if the value is valid.
        """
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
        if isinstance(number, (int, kind)) and math.isfinite(number) and number in self:
            return ""
        return f"a {'whole' if kind is int else 'finite'} number {self}".strip()


def require_number(
    owner: str,
    least: float = 0,
    below: float = math.inf,
    open: bool = False,
    kind: type = float,
    **values: object,
) -> None:
    """Check numbers.

    Args:
        owner: Whose values they are, for the message.
        least: The least value.
        below: What they must be below.
        open: Whether `least` itself is excluded.
        kind: `int` or `float`.
        **values: The values, by name.

    Raises:
        ConfigError: If one is not a number of this kind in the interval.
    """
    for name, value in values.items():
        wanted = Interval(least, below, open).expected(kind, value)
        if wanted:
            raise ConfigError.of_field(owner, name, f"expected {wanted}, got {value!r}.")


def require_whole(owner: str, least: int, **values: object) -> None:
    """Check whole numbers; see `require_number`.

    Args:
        owner: Whose numbers they are, for the message.
        least: The least valid number.
        **values: The numbers by name.

    Raises:
        ConfigError: If one is not a whole number, or is less.
    """
    require_number(owner, least, kind=int, **values)  # type: ignore[arg-type]


def require_one_of(owner: str, name: str, value: object, accepted: Sequence[object]) -> None:
    """Check that a value is among those accepted.

    Args:
        owner: Whose value it is, for the message.
        name: The name of the value.
        value: The value.
        accepted: The values accepted.

    Raises:
        ConfigError: If it is not.
    """
    if value not in accepted:
        raise ConfigError.of_field(owner, name, no_choice(value, accepted))


def require_function(argument: str, value: object, *names: str) -> None:
    """Check that a value can be called.

    Args:
        argument: The name of the argument, for the message.
        value: The value.
        *names: What it is called with; not checked if there are none, or if its signature is not known.

    Raises:
        ConfigError: If it cannot, or takes other arguments.
    """
    wanted = f"a function ({', '.join(names)})" if names else "a function"
    if not callable(value):
        raise ConfigError(f"{argument}: expected {wanted}, got {value!r}.")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # of a builtin
        return
    try:
        signature.bind(*names)
    except TypeError:
        if names:
            name = getattr(value, "__name__", type(value).__name__)
            raise ConfigError(f"{argument}: expected {wanted}, got {name}{signature}.") from None


def require_scalar(argument: str, value: Array) -> Array:
    """Check that what a loss returned is one floating-point number.

    Args:
        argument: The name of the argument that is the loss, for the message.
        value: What it returned.

    Returns:
        The value.

    Raises:
        ConfigError: If it is anything else: a tree, a tuple, None, an array that is not a scalar, an integer.
    """
    import jax
    import jax.numpy as jnp  # late, as the command line imports this module to print its help
    import numpy as np

    if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float | complex):
        found = "None" if value is None else f"a {type(value).__name__}"
        hint = "return the loss alone; `measure` of a method takes other values to report."
    elif jnp.shape(value) != ():
        found, hint = f"an array of shape {jnp.shape(value)}", "take its mean or sum."
    elif not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        found = f"a number of dtype {jnp.result_type(value)}"
        hint = "compute the loss in floating-point numbers."
    else:
        return value
    raise ConfigError(
        f"{argument}: expected a function that returns one floating-point number, got one that returns "
        f"{found}. Hint: {hint}"
    )
