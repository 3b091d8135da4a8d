"""The fastest number of tasks to work on at once, measured before a run and cached.

Which chunk is fastest depends on the machine: networks with their own kernels for every task are fastest
one after another on a CPU, and all at once on a GPU. The number is stored in the run's configuration, so that
a resumed run repeats itself on any machine.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax

from ..config.run import Config
from ..core.machine import processor, user_cache
from ..core.recipes import to_json
from ..core.version import __version__
from ..domains.base import in_step
from ..storage.atomic import write_json
from .experiment import assemble

STEPS = 3  # that each chunk is timed by
SHARE = 0.5  # of the free memory that a chunk may take


def settled(config: Config, say: Callable[[str], None] = lambda line: None) -> Config:
    """Replace ``chunk="auto"`` by the fastest chunk on this machine.

    Compiles a meta-step for one, four and all tasks at once, and times a few steps of each. The user's cache
    keeps the result for the same step on the same machine.

    Args:
        config: The configuration. One with another chunk is returned unchanged.
        say: Called with a line on what was measured.

    Returns:
        The configuration with a number for the chunk, or None for all tasks at once.

    Example:
        >>> from imaml.config.overrides import override
        >>> from imaml.config.presets import preset
        >>> settled(override(preset("sinusoid"), "method.chunk", "2")).method.chunk
        2
    """
    if config.method.chunk != "auto":
        return config
    file, key = user_cache() / "chunks.json", _key(config)
    known = _known(file)
    if key not in known:
        found = {str(each): _milliseconds(with_chunk(config, each)) for each in _candidates(config)}
        usable = {name: ms for name, ms in found.items() if ms is not None}
        best = min(usable, key=lambda name: usable[name], default="1")
        known[key] = {"chunk": None if best == "None" else int(best), "milliseconds": found}
        with contextlib.suppress(OSError):  # a cache that cannot be written is none
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, known)
    chunk, found = known[key]["chunk"], known[key]["milliseconds"]
    times = [
        f"{'all' if name == 'None' else name} at once {'too large' if ms is None else f'{ms:.1f} ms'}"
        for name, ms in found.items()
    ]
    say(f"chunk={chunk}: a step takes {', '.join(times)}")
    return with_chunk(config, chunk)


def with_chunk(config: Config, chunk: int | Literal["auto"] | None) -> Config:
    """Return the configuration with a chunk.

    Args:
        config: The configuration.
        chunk: Tasks worked on at once, or None for all.

    Returns:
        The changed configuration.
    """
    return replace(config, method=replace(config.method, chunk=chunk))


def _candidates(config: Config) -> list[int | None]:
    """Return one task, four, and all of a device's at once."""
    tasks = in_step(config.domain.build(), config.training.tasks)
    share = tasks // jax.device_count() if tasks % jax.device_count() == 0 else tasks
    return [*(chunk for chunk in (1, 4) if chunk < share), None]


def _milliseconds(config: Config) -> float | None:
    """Return the shortest time of a step, or None if it would take too much memory."""
    experiment = assemble(config)
    whole, state, key = experiment.begin()
    domain = whole.training_domain(0)
    compiled = experiment.step().lower(domain, state, key).compile()
    room, wanted = _room(), compiled.memory_analysis()
    if room and wanted is not None and wanted.temp_size_in_bytes > SHARE * room:
        return None
    best = float("inf")
    for _ in range(1 + STEPS):  # the first is not counted, unless it is the least
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(domain, state, key))
        best = min(best, 1e3 * (time.perf_counter() - began))
    return best


def _room() -> int:
    """Return the free bytes on a device, 0 where unknown."""
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _key(config: Config) -> str:
    """Return a digest of the step and the machine."""
    training = config.training
    parts = [to_json(config.domain), to_json(with_chunk(config, None).method), to_json(config.optimiser)]
    parts += [training.tasks, __version__, jax.__version__, processor()]
    parts += [jax.device_count(), jax.devices()[0].device_kind]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _known(file: Path) -> dict[str, Any]:
    """Return what was measured before; nothing if the file cannot be read."""
    try:
        known = json.loads(file.read_text())
        return {k: v for k, v in known.items() if set(v) == {"chunk", "milliseconds"}}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
