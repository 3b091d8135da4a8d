"""Tasks read from tables."""

import lazy_loader

# What the module of this name had; for one release.
_NAMES = ["Rows", "Tables", "TablesRecipe", "tables"]
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"domain": _NAMES})
