"""The version of this package, and of those that it runs on."""

import platform
from importlib import metadata

__version__ = "0.1.0"


def installed_versions(*packages: str) -> dict[str, str]:
    """Looks up the versions in use.

    Args:
        *packages: Names of installed packages.

    Returns:
        The versions of Python and of the packages, by name.
    """
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
