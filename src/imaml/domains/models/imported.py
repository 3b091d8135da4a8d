"""Models and losses by the place of their Python code, as the command line names them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ...core.errors import ConfigError
from ...core.validation import not_one_of

FORM = "FILE.py:NAME or package.module:NAME"


@dataclass(frozen=True, eq=False)
class Imported:
    """An object and where it was imported from; `fit`, `load` and the like take one for the object.

    Attributes:
        object: The model or the loss.
        place: The text that it was named by; saved runs hold it, and never import it by themselves.
    """

    object: object
    place: str


def imported(place: str, option: str = "--model", made: bool = True) -> Imported:
    """Import an object of the user's own code. This executes the code.

    Args:
        place: "FILE.py:NAME" or "package.module:NAME". Modules are looked for in the current directory, too.
        option: What messages call the text.
        made: Whether a class or a function is called, without arguments, to make the object.

    Returns:
        The object.

    Raises:
        ConfigError: If there is no such file, module or name, or the user's code fails.

    Example:
        >>> imported("math:pi").object
        3.141592653589793
    """
    where, _, name = place.rpartition(":")
    if not where or not name.isidentifier():
        hint = "name your own model or loss; a name of imaml's needs no file"
        if ":" in place or place.endswith(".py"):
            hint = f"name the object in it, {place.rstrip(':')}:NAME"
        raise ConfigError(f"{option}: expected {FORM}, got {place!r}. Hint: {hint}.")
    module = _module(where, option)
    if not hasattr(module, name):
        own = [known for known in vars(module) if not known.startswith("_")]
        raise ConfigError(not_one_of(f"{option}: name in {where}", name, own))
    found = getattr(module, name)
    if made and (inspect.isclass(found) or inspect.isfunction(found) or isinstance(found, functools.partial)):
        try:
            found = found()
        except Exception as error:  # the user's own code
            raise ConfigError(
                f"{option}: {place}: expected an object, or a class or function that is called without "
                f"arguments, got an error ({_first_line(error)}). Hint: write a function that returns "
                "the model."
            ) from error
    return Imported(found, place)


def unwrapped(given: object) -> tuple[object, str]:
    """Return an object, and the place that it was imported from, if there is one.

    Args:
        given: The object, or an `Imported`.

    Returns:
        The object, and the place or an empty text.
    """
    return (given.object, given.place) if isinstance(given, Imported) else (given, "")


def _module(where: str, option: str) -> ModuleType:
    """The module of a file or a name; ConfigError if it cannot be imported."""
    try:
        if not where.endswith(".py"):
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(where)
        file = Path(where).expanduser().resolve()
        if not file.is_file():
            raise ConfigError(
                f"{option}: expected a Python file, got no such file: {where}. Hint: check the path."
            )
        spec = importlib.util.spec_from_file_location(f"_imaml_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        if str(file.parent) not in sys.path:  # as `python FILE.py` does, for what it imports
            sys.path.insert(0, str(file.parent))
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look for their module there
        spec.loader.exec_module(module)
        return module
    except ConfigError:
        raise
    except Exception as error:  # the user's own code
        raise ConfigError(
            f"{option}: expected Python code that can be imported, got an error in {where} "
            f"({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else ''}"
