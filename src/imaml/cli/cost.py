"""What `imaml train --dry-run` and `imaml bench PRESET` print."""

from __future__ import annotations

import json
from typing import Any

from ..training.cost import Cost, measure

PROBE, SECONDS = 5, 3.0  # steps that a dry run times, and for how long at least


def _lines(cost: Cost) -> list[str]:
    """What both commands say."""
    shared = "" if cost.devices == 1 else f" on each of {cost.devices} devices"
    note = f" ({cost.unbounded} loops of unknown length counted once)" if cost.unbounded else ""
    floor = f"{cost.floor_ms:,.2f} ms a step, were there nothing else to do"
    if cost.floor_ms > cost.median_ms:
        note, floor = " at most: loops that end sooner count in full", "unknown, as the loops end sooner"
    return [
        f"parameters        {cost.parameters:,}",
        f"a step's products {cost.flops / 1e9:,.3f} GFLOP{note}",
        f"this machine      {cost.rate / 1e9:,.0f} GFLOP/s in float32 matrix products",
        f"floor             {floor}",
        f"temporary memory  {cost.temporary_bytes / 2**20:,.1f} MiB{shared}, as compiled",
        f"memory in all     {cost.peak_bytes / 2**20:,.0f} MiB at most while it stepped",
    ]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def dry_run(config: Any) -> int:
    """Prints what a run would cost, from a short probe, and trains nothing; the exit status 0."""
    cost, steps = measure(config, PROBE, SECONDS), config.training.steps
    print("\n".join(_lines(cost)))
    taken = len(cost.milliseconds)
    print(f"predicted step    {cost.median_ms:,.2f} ms, the median of a probe of {taken} steps")
    whole = cost.first_call_s + steps * cost.median_ms / 1e3
    if config.training.minutes is not None:
        whole = min(whole, cost.first_call_s + 60 * config.training.minutes)
    print(f"predicted run     {_duration(whole)} for {steps:,} steps, without validations and scoring")
    print("dry run: nothing was trained or written")
    return 0


def bench(config: Any, name: str, steps: int, as_json: bool) -> int:
    """Prints what a preset's meta-step takes on this machine; the exit status 0."""
    cost = measure(config, steps)
    if as_json:
        print(json.dumps({"preset": name, "steps": steps, **cost.to_json()}, allow_nan=False))
        return 0
    print("\n".join(_lines(cost)))
    low, high = min(cost.milliseconds), max(cost.milliseconds)
    print(f"a step            {cost.median_ms:,.2f} ms, median of {steps} ({low:,.2f} to {high:,.2f})")
    print(f"first call        {cost.first_call_s:.1f} s, with compiling")
    if cost.fraction <= 1:
        print(f"of the rate       {100 * cost.fraction:.0f} %")
    return 0
