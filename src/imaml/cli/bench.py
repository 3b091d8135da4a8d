"""`imaml bench`."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ConfigError
from .options import DATA, Arguments, meant
from .startup import prepare_jax
from .train import _factorises


def bench_command(words: Sequence[str]) -> int:
    """imaml bench."""
    options, flags = ("out", "steps", "data"), ("quick", "json")
    arguments = Arguments("bench", words, options, flags, dotted=True, paths=DATA)
    (name,) = arguments.take(1, 1, "what to measure: a preset, or theory")
    if name != "theory":
        return _bench_preset(str(name), arguments)
    raise ConfigError(
        "bench: expected a preset, got 'theory'. Hint: this study is in the repository's "
        "benchmarks; run python -m benchmarks run theory there."
    )


def _bench_preset(name: str, arguments: Arguments) -> int:
    from ..config.overrides import overrides, replace_data
    from ..config.presets import PRESETS, preset

    if name not in PRESETS:
        raise ConfigError(f"bench: there is no {name!r}{meant(name, ['theory', *PRESETS], 'bench')}")
    steps = arguments.whole("steps", 10, 1)
    config = replace_data(overrides(preset(name), arguments.changes()), arguments.values.get("data"))
    prepare_jax(spare=_factorises(config))
    from .cost import bench

    return bench(config, name, steps, "json" in arguments.flags)
