"""Compiling the large programs: steps, evaluations and solves."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Wrapped as JitWrapped

# On a CPU these halve the time to compile Conv4's step, and its speed is the same (docs/performance.md).
SOONER = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}


def whole_program(function: Callable) -> JitWrapped:
    """Mark a large program for compilation: `jax.jit`, on a CPU with the options `SOONER` if XLA has them.

    Args:
        function: The function. Its result must not be called inside another `jax.jit` (JAX's ValueError).

    Returns:
        The function, which is compiled when it is first called.

    Example:
        >>> int(whole_program(lambda x: 2 * x)(3))
        6
    """
    disabled = jax.config.read("jax_disable_most_optimizations")
    return jax.jit(function, compiler_options=None if disabled else _options())


@functools.cache
def _options() -> dict[str, Any] | None:
    """The options that a small program was compiled with; None on GPU, TPU, or where one is unknown."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=SOONER)(0)
    except jax.errors.JaxRuntimeError:
        return None
    return SOONER
