"""`imaml bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
    from .theory import draw, measure

    found = measure("quick" in arguments.flags)
    for method, exponents in found["products"]["exponents"].items():
        facts = ", ".join(f"{slope:.2f} to {float(a):.0e}" for a, slope in exponents.items())
        print(f"products grow with the condition number to the power of: {method}: {facts}")
    more = found["correction"]
    for method, slope in more["slopes"].items():
        print(f"error against delta: {method}: slope {slope:.2f}, {more['products'][method]:.0f} products")
    for file in draw(found, Path(arguments.values.get("out", "theory"))):
        print(file)
    return 0


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
