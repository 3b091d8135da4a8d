"""Facts of the machine: its processor, and where a user keeps caches."""

import hashlib
import os
import platform
from pathlib import Path


def processor() -> str:
    """Identifies this kind of processor with its instruction set.

    Returns:
        A digest of 16 hexadecimal digits.
    """
    about = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        said = ("model name", "flags", "Features")
        about += "".join(sorted({line for line in lines if line.startswith(said)}))
    except OSError:
        pass
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def usable_cores() -> int:
    """Counts the cores that this process may use.

    Returns:
        At least 1.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def user_cache() -> Path:
    """Finds the directory of downloads and resized tables.

    Returns:
        ``$XDG_CACHE_HOME/imaml``, by default ``~/.cache/imaml``. It may not exist.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "imaml"
