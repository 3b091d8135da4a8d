"""Compiled programs kept on disk, so that another process need not compile them again."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.machine import processor, user_cache

MOST = 2**30  # bytes of compiled programs that are kept; the oldest go first
LEAST = 0.3  # seconds: what compiles faster is not kept
_kept: list[Path] = []  # the folder that programs are kept in, once one was asked for


def keep_programs(folder: str | Path | None = None, *, least: float = LEAST) -> Path | None:
    """Keep compiled programs on disk, so that the same work starts sooner in the next process.

    This turns on JAX's persistent compilation cache, which is shared by the whole process: it also stores
    your own programs. So only this function and the command line turn it on. Call it once, before the first
    `imaml.load` or `imaml.fit`. If JAX_COMPILATION_CACHE_DIR is set, that folder is used. JAX trusts the
    stored programs: do not share the folder with users that you do not trust.

    Args:
        folder: The folder. By default ``$XDG_CACHE_HOME/imaml/compiled``, or ``~/.cache/imaml/compiled``,
            which keeps at most 1 GiB. Each kind of processor has a folder inside, as a program compiled for
            one may not run on another.
        least: Seconds that a program must take to compile to be kept.

    Returns:
        The folder that programs are kept in; None if it cannot be written, so that nothing is kept.

    Example:
        >>> import imaml
        >>> folder = imaml.keep_programs()  # doctest: +SKIP
    """
    import jax  # late, as the command line sets what JAX reads when it is imported

    already = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if already:
        _kept[:] = [Path(already)]
        return Path(already)
    try:
        root = user_cache() / "compiled" if folder is None else Path(folder).expanduser()
        place = root / processor()
        place.mkdir(parents=True, exist_ok=True)
        if folder is None:
            trim(root)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    if not os.access(place, os.W_OK):
        return None
    # JAX reads the environment once, when it is imported: later only its configuration counts.
    jax.config.update("jax_compilation_cache_dir", str(place))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
    _kept[:] = [place]
    return place


def kept_folder() -> Path | None:
    """Return the folder that `keep_programs` has chosen.

    Returns:
        The folder; None if `keep_programs` was not called, or found none that can be written.
    """
    return _kept[0] if _kept else None


def trim(folder: Path) -> None:
    """Delete the oldest files while there are more than MOST bytes.

    Args:
        folder: The folder, with all folders inside.
    """
    found = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in folder.rglob("*") if f.is_file())
    total = sum(size for _, size, _ in found)
    for _, size, file in found:
        if total <= MOST:
            return
        file.unlink(missing_ok=True)
        total -= size
