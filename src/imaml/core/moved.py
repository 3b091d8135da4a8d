"""Modules that have moved: their old names can be imported for one release, with a DeprecationWarning."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "imaml.domains.actor_critic": "imaml.domains.control.actor_critic",
    "imaml.domains.adversarial": "imaml.domains.generative.adversarial",
    "imaml.domains.carts": "imaml.domains.control.carts",
    "imaml.domains.densities": "imaml.domains.generative.densities",
    "imaml.domains.distortion": "imaml.domains.fewshot.distortion",
    "imaml.domains.drawings": "imaml.domains.generative.characters",
    "imaml.domains.episodes": "imaml.domains.fewshot.episodes",
    "imaml.domains.generation": "imaml.domains.generative.generation",
    "imaml.domains.images": "imaml.domains.fewshot.images",
    "imaml.domains.imitation": "imaml.domains.generative.imitation",
    "imaml.domains.markov": "imaml.domains.control.markov",
    "imaml.domains.mazes": "imaml.domains.control.mazes",
    "imaml.domains.navigation": "imaml.domains.control.navigation",
    "imaml.domains.omniglot": "imaml.domains.fewshot.omniglot",
    "imaml.domains.omniglot_files": "imaml.domains.fewshot.omniglot_files",
    "imaml.domains.physics": "imaml.domains.control.physics",
    "imaml.domains.pixels": "imaml.domains.fewshot.pixels",
    "imaml.domains.plants": "imaml.domains.control.plants",
    "imaml.domains.restoration": "imaml.domains.generative.restoration",
    "imaml.domains.strokes": "imaml.domains.fewshot.strokes",
    "imaml.domains.table_files": "imaml.domains.tables.files",
    "imaml.domains.table_layout": "imaml.domains.tables.layout",
    "imaml.errors": "imaml.core.errors",
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
