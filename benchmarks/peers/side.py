"""Child process of one peer: computes one meta-gradient for each count that it reads, and prints seconds.

python -m benchmarks.peers.side PEER WORK FOLDER THREADS
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """A library, as it is used by one of the modules beside this one.

    Args:
        module: Module of the function that builds it.
        function: Name of that function.
        package: The package measured, and the name of the environment where it runs.
        note: Said in each of its rows.
        only: The works that it is tried on, where others would take longer still to compile.
        options: Further keywords of the function.
    """

    module: str
    function: str
    package: str
    note: str = ""
    only: tuple[str, ...] = ()
    options: dict[str, bool] = field(default_factory=dict)


WHOLE = ("a", "b", "c-4")  # sixteen unrolled steps in one program
COMPILED = {"compiled": True}
OTHER = "another gradient: MAML's own, by unrolling"
PEERS = {
    "imaml": Peer("jax_sides", "imaml", "imaml"),
    "jaxopt, XLA's convolution": Peer("jax_sides", "jaxopt", "jaxopt"),
    "jaxopt, imaml's convolution": Peer("jax_sides", "jaxopt", "jaxopt", options={"xla_convolution": False}),
    "Optimistix": Peer("jax_sides", "optimistix", "optimistix"),
    "PyTorch, eager loop": Peer("torch_sides", "eager", "torch"),
    "torch.func, loop": Peer("torch_sides", "func_loop", "torch"),
    "torch.func, vmap": Peer("torch_sides", "func_vmap", "torch"),
    "torch.compile, whole step": Peer("torch_sides", "func_vmap", "torch", "under vmap", WHOLE, COMPILED),
    "torch.compile, whole task": Peer("torch_sides", "func_loop", "torch", "a loop", WHOLE, COMPILED),
    "torch.compile, pieces": Peer("torch_sides", "compiled_pieces", "torch", "a loop"),
    "TorchOpt": Peer("torch_libraries", "torchopt", "torchopt"),
    "TorchOpt, normal equations": Peer(
        "torch_libraries", "torchopt", "torchopt", "the solver of its own example", options={"normal": True}
    ),
    "higher": Peer("torch_libraries", "higher", "higher", "the implicit step written by hand"),
    "higher, unrolled": Peer("torch_libraries", "higher", "higher", OTHER, options={"unrolled": True}),
    "hypergrad": Peer("torch_libraries", "hypergrad", "hypergrad"),
    "Betty": Peer("torch_libraries", "betty", "betty-ml"),
}


def memory(name, process="self"):
    """MiB of a process: "VmRSS" now, "VmHWM" at most (`ru_maxrss` counts its parent); 0 once it ended."""
    with open(f"/proc/{process}/status") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0) / 2**10


def _forget_peak():
    """Lets the peak start anew, from what the process has now: what compiling took is no part of a step."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        print(f"peak memory is with that of compiling: {error}", file=sys.stderr)


def limit_threads(threads):
    """Sets the number of threads, before anything is imported that would choose its own."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if threads == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _settle(peer, work, threads):
    """Threads and precision, before anything is imported that would choose its own."""
    limit_threads(threads)
    if peer == "imaml":
        devices = f"--xla_force_host_platform_device_count={threads}"
        # As the command line starts.
        os.environ["XLA_FLAGS"] = f"{devices} --xla_cpu_multi_thread_eigen=false"
    os.environ["JAX_ENABLE_X64"] = str(int(work.dtype == "float64"))


def main():
    """Builds the side, computes once, saves the meta-gradient, then serves."""
    from .works import WORKS, read

    name, work_name, folder, threads = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    peer, work, threads = PEERS[name], WORKS[work_name], int(threads)
    _settle(name, work, threads)
    build = getattr(import_module(f"benchmarks.peers.{peer.module}"), peer.function)
    if peer.module != "jax_sides":
        import torch

        torch.set_num_threads(threads)
    run, vector = build(work, read(folder), threads, **peer.options)
    before, began = memory("VmRSS"), time.perf_counter()
    gradient = run()
    first = time.perf_counter() - began
    _forget_peak()
    import numpy as np

    np.save(Path(folder) / f"{list(PEERS).index(name)}.npy", vector(gradient))
    about = {"version": metadata.version(peer.package), "first_call_s": first}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        print(json.dumps({"seconds": times, "peak_mib": memory("VmHWM") - before}), file=answers, flush=True)


if __name__ == "__main__":
    main()
