"""Counts of whole training steps that must not grow unnoticed: FLOPs, memory, compilations, collectives.

    python -m benchmarks run counts            # writes benchmarks/results/counts.json
    python -m benchmarks run counts --check    # compares with it; exit status 1 where they differ

Counts and no seconds, so that they mean the same on a busy machine. Two devices, float32.
"""

import os
import re

import jax

from benchmarks.harness import benchmark, say
from imaml.config.overrides import overrides
from imaml.config.presets import preset
from imaml.training.cost import count_flops
from imaml.training.experiment import assemble

SLACK = 0.1  # of temporary bytes, which depend a little on the processor
SMALL = {"training.tasks": "2", "domain.filters": "4", "domain.ways": "3"}
WORKS = {
    "sinusoid": ("sinusoid", {"training.tasks": "4"}),
    "characters, 4 filters": ("characters-5w1s", SMALL),
}


def count(work: str) -> dict[str, int]:
    """The counts of one work: its step compiled for two devices, and taken three times."""
    name, changes = WORKS[work]
    config = overrides(preset(name), [(path, text, f"--{path}") for path, text in changes.items()])
    experiment = assemble(config)
    step, (whole, state, key) = experiment.step(), experiment.begin()
    domain = whole.training_domain(0)
    compiled = step.lower(domain, state, key).compile()
    flops = count_flops(experiment.step(estimate=False), domain, state, key).flops
    for _ in range(3):
        state, _ = step(domain, state, key)
    return {
        "flops": flops,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compilations": step._cache_size(),
        "all_reduces": len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text())),
    }


def differences(work: str, found: dict[str, int], committed: dict[str, int]) -> list[str]:
    """A sentence for each count that is not the committed one; none where all agree."""
    slack = {"temporary_bytes": SLACK}
    changed = {k: v for k, v in committed.items() if abs(found[k] - v) > slack.get(k, 0) * v}
    return [f"{work}: {name}: {found[name]:,}, committed {value:,}" for name, value in changed.items()]


@benchmark("counts")
def main(run, check=False):
    """Writes the counts, or compares them; returns the exit status."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    jax.config.update("jax_platforms", "cpu")
    found = {work: count(work) for work in WORKS}
    say(found)
    if not check:
        return run.write([{"work": work, **counts} for work, counts in found.items()])
    committed = {row.pop("work"): row for row in run.before()}
    said = [f"{work}: not committed" for work in WORKS if work not in committed]
    for work in committed:
        said += differences(work, found[work], committed[work]) if work in found else [f"{work}: gone"]
    if said:
        print("\n".join(said))
        print("Where that is meant: python -m benchmarks run counts, and commit its result with the reason.")
    return len(said) > 0
