"""Facts of the machine: its processor, and where a user keeps caches."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path


def processor() -> str:
    """Name this kind of processor.

    Returns:
        A hash of its name and the instructions that it has, 16 characters.
    """
    about = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = ("model name", "flags", "Features")
        about += "".join(sorted({line for line in lines if line.startswith(said)}))
    except OSError:
        pass
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def user_cache() -> Path:
    """Find the folder of downloads and resized tables.

    Returns:
        $XDG_CACHE_HOME/imaml, by default ~/.cache/imaml.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "imaml"
