"""What a result was measured on: processor, cores and versions; nothing that names a host."""

import os
import platform
from importlib.metadata import version


def describe_machine() -> dict:
    """Processor, cores, Python and the versions of what the numbers depend on."""
    model = platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next(
                (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
            )
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: version(name) for name in ("imaml", "jax", "jaxlib", "optax", "lineax", "numpy")}
    return {"processor": model, "cores": cores, "python": platform.python_version(), **versions}
