"""The machine's float32 matrix-multiply rate, the best of XLA's and PyTorch's over several sizes.

python -m benchmarks.peers.rate jax|torch THREADS     # prints GFLOP/s
"""

import subprocess
import sys
import time

from . import environments
from .side import limit_threads

SIZES = (512, 1024, 2048)
SECONDS = 1.5  # for each size


def rates(threads):
    """GFLOP/s by library; one that is not installed is omitted."""
    found = {}
    for library, name in (("jax", "imaml"), ("torch", "torch")):
        if name == "imaml" or environments.install(name) is None:
            command = [environments.python_of(name), "-m", "benchmarks.peers.rate", library, str(threads)]
            found[library] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def _product(library, threads):
    """A function of a size that gives a function which takes one product."""
    limit_threads(threads)
    if library == "torch":
        import torch

        torch.set_num_threads(threads)
        return lambda size: (lambda a: lambda: a @ a)(torch.ones(size, size) / size)
    import jax

    product = jax.jit(lambda a: a @ a)
    return lambda size: (lambda a: lambda: jax.block_until_ready(product(a)))(jax.numpy.ones((size, size)))


def main():
    """Prints the best rate of any size, of the fastest call."""
    library, threads = sys.argv[1], int(sys.argv[2])
    make, best = _product(library, threads), 0.0
    for size in SIZES:
        take, end = make(size), time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            began = time.perf_counter()
            take()
            best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    print(best)


if __name__ == "__main__":
    main()
