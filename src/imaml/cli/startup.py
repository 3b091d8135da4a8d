"""What a program sets before JAX starts: cores as devices, and where compiled programs are kept."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..core.machine import usable_cores
from ..storage.programs import keep_programs

if TYPE_CHECKING:
    from ..config.run import Config


def prepare_jax(spare: bool = True) -> None:
    """Set all that follows. Call it before JAX starts its devices.

    Args:
        spare: See `use_all_cores`.
    """
    use_all_cores(spare)
    keep_programs()


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
