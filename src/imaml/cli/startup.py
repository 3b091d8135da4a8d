"""What a program sets before JAX starts: cores as devices, and where compiled programs are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.machine import processor, usable_cores, user_cache

if TYPE_CHECKING:
    from ..config.run import Config

MOST = 2**30  # bytes of compiled programs that are kept; the oldest go first
LEAST = 0.3  # seconds: what compiles faster is not kept


def prepare_jax(spare: bool = True) -> None:
    """Set all that follows. Call it before JAX starts its devices.

    Args:
        spare: See `use_all_cores`.
    """
    use_all_cores(spare)
    keep_compiled()


def use_all_cores(spare: bool = True) -> None:
    """Make every core of a CPU a device of its own, so that tasks run side by side.

    Call it before JAX starts its devices. Where the user has set the number of devices, that stands. GPU and
    TPU ignore the flags.

    Args:
        spare: Whether to have one thread more than devices. Without it, devices that wait for each other may
            wait for ever where a step has dense factorisations (docs/gotchas.md, 14). With it, a step of
            nothing but large matrix products takes longer.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        cores = usable_cores()
        ours = f"--xla_force_host_platform_device_count={cores} --xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = f"{flags} {ours}".strip()
        if spare:
            os.environ.setdefault("PJRT_NPROC", str(cores + 1))


def keep_compiled() -> None:
    """Keep compiled programs on disk, so that the same run starts sooner the next time.

    They are in `compiled` under $XDG_CACHE_HOME/imaml, by default ~/.cache/imaml, at most MOST bytes. Each
    kind of processor has a directory, as a program compiled for one may not run on another. Where the user
    has set JAX's own JAX_COMPILATION_CACHE_DIR (a path) or JAX_ENABLE_COMPILATION_CACHE=false, that stands.
    Where the directory cannot be written, programs are compiled anew each time.
    """
    import jax

    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    try:
        folder = user_cache() / "compiled" / processor()
        folder.mkdir(parents=True, exist_ok=True)
        _trim(folder.parent)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    if os.access(folder, os.W_OK):
        # JAX reads the environment once, when it is imported: later only its configuration counts.
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)


def factorises(config: Config) -> bool:
    """Tell whether a step may have dense factorisations, which need a spare thread.

    Args:
        config: A run's configuration.

    Returns:
        False for few-shot images with linear solvers that take products only.
    """
    linear = getattr(config.method, "linear", None)
    dense = config.method.factorises or getattr(linear, "factorises", False)
    return dense or config.domain.factorises


def _trim(folder: Path) -> None:
    """Delete the oldest files while there are more than MOST bytes."""
    found = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in folder.rglob("*") if f.is_file())
    total = sum(size for _, size, _ in found)
    for _, size, file in found:
        if total <= MOST:
            return
        file.unlink(missing_ok=True)
        total -= size
