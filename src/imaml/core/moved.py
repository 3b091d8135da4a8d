"""Modules that have moved: their old names can be imported for one release, with a DeprecationWarning."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

_NOW_IN = {  # names of modules that were in imaml.domains, by package
    "domains.control": "actor_critic carts markov mazes navigation physics plants",
    "domains.fewshot": "distortion episodes images omniglot omniglot_files pixels strokes",
    "domains.generative": "adversarial densities generation imitation restoration",
}
MOVED = {
    "imaml.domains.drawings": "imaml.domains.generative.characters",
    "imaml.domains.table_files": "imaml.domains.tables.files",
    "imaml.domains.table_layout": "imaml.domains.tables.layout",
    "imaml.errors": "imaml.core.errors",
    **{
        f"imaml.domains.{name}": f"imaml.{new}.{name}"
        for new, names in _NOW_IN.items()
        for name in names.split()
    },
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a moved module under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a moved module, or None for any other."""
        return importlib.util.spec_from_loader(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """None: the usual empty module, which `exec_module` replaces."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module at its new place under the old name, with a warning."""
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} has moved to {new}.", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)


def install() -> None:
    """Makes the old names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
