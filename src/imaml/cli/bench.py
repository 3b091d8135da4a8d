"""`imaml bench`, and what `imaml train --dry-run` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Changes, Flag, Positive, configure, print_json
from .startup import factorises, prepare_jax

if TYPE_CHECKING:
    from ..config.run import Config
    from ..training.cost import Cost

PROBE, SECONDS = 5, 3.0  # steps that a dry run times, and for how long at least


def bench_command(
    preset: str,
    /,
    *,
    steps: Positive = 10,
    data: str | None = None,
    json: Flag = False,
    changes: Changes = (),
) -> None:
    """Time a preset's meta-steps on this machine.

    Prints their time beside the FLOPs of their matrix products and the rate at which this machine multiplies
    matrices. Every field of the preset is an option, as for imaml train.

    Args:
        preset: Named configuration. `imaml presets` lists them.
        steps: Meta-steps to time.
        data: File or directory with the data, for presets that read data.
        json: Print JSON.
        changes: Fields of the configuration set by options with a dot.
    """
    config = configure(preset, changes, data=data)
    prepare_jax(spare=factorises(config))
    from ..training.cost import measure

    cost = measure(config, steps)
    if json:
        print_json({"preset": preset, "steps": steps, **cost.to_json()})
        return
    _print_cost(cost)
    low, high = min(cost.milliseconds), max(cost.milliseconds)
    print(f"a step            {cost.median_ms:,.2f} ms, median of {steps} ({low:,.2f} to {high:,.2f})")
    print(f"first call        {cost.first_call_s:.1f} s, with compiling")
    if cost.fraction <= 1:
        print(f"achieved          {100 * cost.fraction:.0f} % of this machine's rate")


def print_prediction(config: Config) -> None:
    """Print what a run would cost, from a short probe, and train nothing.

    Args:
        config: The run's configuration.
    """
    from ..training.cost import measure
    from ..training.experiment import assemble

    experiment = assemble(config)
    for line in experiment.domain.about():
        print(line)
    cost, steps = measure(config, PROBE, SECONDS, experiment), config.training.steps
    _print_cost(cost)
    taken = len(cost.milliseconds)
    print(f"predicted step    {cost.median_ms:,.2f} ms, the median of a probe of {taken} steps")
    whole = cost.first_call_s + steps * cost.median_ms / 1e3
    if config.training.minutes is not None:
        whole = min(whole, cost.first_call_s + 60 * config.training.minutes)
    duration = f"{whole:.0f} s" if whole < 120 else f"{whole / 60:.0f} minutes"
    print(f"predicted run     {duration} for {steps:,} steps, without validations and scoring")
    print("dry run: nothing was trained or written")


def _print_cost(cost: Cost) -> None:
    """Print what both commands print."""
    shared = "" if cost.devices == 1 else f" on each of {cost.devices} devices"
    note = f" ({cost.unbounded_loops} loops of unknown length counted once)" if cost.unbounded_loops else ""
    floor = f"{cost.floor_ms:,.2f} ms a step, for the matrix products alone"
    if cost.floor_ms > cost.median_ms:
        note, floor = " at most: loops that end sooner count in full", "unknown, as the loops end sooner"
    print(f"parameters        {cost.parameters:,}")
    print(f"matrix products   {cost.flops / 1e9:,.3f} GFLOP a step{note}")
    print(f"this machine      {cost.matmul_flops_per_second / 1e9:,.0f} GFLOP/s in float32 matrix products")
    print(f"lower bound       {floor}")
    print(f"temporary memory  {cost.temporary_bytes / 2**20:,.1f} MiB{shared}, as compiled")
    print(f"peak memory       {cost.peak_bytes / 2**20:,.0f} MiB while it took steps")
