"""The cost of a meta-step: FLOPs counted from shapes, compiled memory, and measured time."""

import contextlib
import math
import statistics
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from ..config.run import Config
from ..core.tree import Tree
from .experiment import Experiment, assemble
from .step import mesh_size
from .step_statistics import Window


class Flops(NamedTuple):
    """FLOPs of the matrix products and convolutions of one call; a multiply and an add are two.

    Attributes:
        flops: The number of FLOPs.
        unbounded: While loops whose number of rounds the program does not show; each counts as one round.
    """

    flops: int
    unbounded: int


def count_flops(function: Callable[..., object], *arguments: Tree) -> Flops:
    """Count the FLOPs of ``function(*arguments)`` from shapes alone: nothing is compiled or run.

    A product (m, k) by (k, n) is 2 m k n. A scan counts its length times. A while loop counts as often as it
    can run at most: the smallest whole number with which its condition compares a counter (``step < 5``).
    XLA's own cost analysis counts both once. Of branches the most expensive counts. On several devices all of
    them count. Sums, activations and normalisations do not count, so that the result can be compared with the
    rate of matrix products.

    Args:
        function: Any function that JAX can trace.
        *arguments: Its arguments: arrays, or `jax.ShapeDtypeStruct`.

    Returns:
        The FLOPs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> a = jnp.ones((2, 3))
        >>> count_flops(lambda a: jax.lax.fori_loop(0, 10, lambda _, b: a @ (a.T @ b), a), a).flops
        720
    """
    # A compiled step traces itself: `jax.make_jaxpr` would nest it in another jit, where XLA's options raise.
    jitted = function if hasattr(function, "trace") else jax.jit(function)
    return _count(jitted.trace(*arguments).jaxpr.jaxpr)


def _count(program: Jaxpr) -> Flops:
    """Count the FLOPs of a program, those of the programs within it as often as they run."""
    flops = unbounded = 0
    for equation in program.eqns:
        name, params = equation.primitive.name, equation.params
        inside, times = [_count(inner) for inner in _inner(equation)], 1
        if name == "dot_general":
            flops += _product(equation)
        elif name == "conv_general_dilated":
            flops += _convolution(equation)
        elif name == "scan":
            times = params["length"]
        elif name == "while":
            times = _rounds(params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr, params["cond_nconsts"])
        elif name == "cond":
            inside = [max(inside)]
        elif name == "shard_map":
            times = params["mesh"].size
        flops += (1 if times is None else times) * sum(part.flops for part in inside)
        unbounded += (times is None) + sum(part.unbounded for part in inside)
    return Flops(flops, unbounded)


def _inner(equation: JaxprEqn) -> list[Jaxpr]:
    """Return the programs in an equation's parameters, without the derivative of a custom rule."""
    values = [
        v for value in equation.params.values() for v in (value if type(value) in (tuple, list) else [value])
    ]
    programs = [getattr(value, "jaxpr", value) for value in values]  # some are closed over constants
    return [program for program in programs if isinstance(program, Jaxpr)]


def _type(variable: Var | Literal) -> ShapedArray:
    return typing.cast(ShapedArray, variable.aval)


def _product(equation: JaxprEqn) -> int:
    """Return 2 * outputs * contracted length."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _type(equation.invars[0]).shape
    return 2 * math.prod(_type(equation.outvars[0]).shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> int:
    """Return 2 * outputs * (kernel's area * inputs of a group)."""
    kernel = _type(equation.invars[1]).shape
    filters = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(_type(equation.outvars[0]).shape) * math.prod(kernel) // filters


# What hands on a flag, or a number, unchanged or for many tasks at once.
_SHAPED = ("broadcast_in_dim", "reshape", "squeeze")
_PASSING = (*_SHAPED, "convert_element_type", "copy", "reduce_or", "reduce_max")


def _rounds(condition: Jaxpr, body: Jaxpr, constants: int) -> int | None:
    """Return the most rounds of a while loop: the smallest whole number that bounds a counter, or None.

    Only the flag that keeps the loop going is followed, through the condition and, where it is carried,
    through the body: other comparisons, such as those of an index with 0, say nothing of the rounds.
    """

    def carried(variable: Var) -> list[int]:
        place = condition.invars.index(variable) - constants
        return _bounds(body, body.outvars[place], lambda _: []) if place >= 0 else []

    return min(_bounds(condition, condition.outvars[0], carried), default=None)


def _made(program: Jaxpr, variable: Var | Literal) -> JaxprEqn | None:
    """Return the equation that a variable is a result of; None for a constant and for an input."""
    return next((each for each in program.eqns if any(variable is out for out in each.outvars)), None)


def _bounds(program: Jaxpr, flag: Var | Literal, outside: Callable[[Var], list[int]]) -> list[int]:
    """Return the whole numbers that a flag compares with; outside: those of a flag that is an input."""
    if isinstance(flag, Literal):
        return []
    if (equation := _made(program, flag)) is None:
        return outside(flag)
    name, given = equation.primitive.name, equation.invars
    if name in ("lt", "gt") and jnp.issubdtype(_type(given[0]).dtype, jnp.integer):
        bound = _constant(program, given[1] if name == "lt" else given[0])
        return [] if bound is None else [bound]
    if name in _PASSING or name == "and":
        return [bound for part in given for bound in _bounds(program, part, outside)]
    inner = _inner(equation)
    if len(inner) == 1 and len(inner[0].invars) == len(given):  # a function called
        called = inner[0]
        back = lambda v: _bounds(program, given[called.invars.index(v)], outside)  # noqa: E731
        return _bounds(called, called.outvars[equation.outvars.index(flag)], back)
    return []


def _constant(program: Jaxpr, variable: Var | Literal) -> int | None:
    """Return the whole number that a variable is, or None where the program does not say."""
    if isinstance(variable, Literal):
        return int(variable.val) if jnp.ndim(variable.val) == 0 else None
    equation = _made(program, variable)
    if equation is None or equation.primitive.name not in _PASSING:
        return None
    return _constant(program, equation.invars[0])


def matmul_rate(sizes: tuple[int, ...] = (512, 1024, 2048), repeats: int = 4) -> float:
    """Measure the best rate of float32 matrix products of all devices together.

    Takes about a second on a laptop. No other program should be running.

    Args:
        sizes: Rows n of the n by n products.
        repeats: How often each product runs, on every device at once.

    Returns:
        The rate, FLOP/s.

    Example:
        >>> matmul_rate((64,), 1) > 0
        True
    """
    multiply = jax.jit(lambda a, b: a @ b)
    best = 0.0
    for size in sizes:
        a = jnp.ones((size, size), jnp.float32)
        placed = [jax.device_put(a, device) for device in jax.devices()]
        jax.block_until_ready([multiply(b, b) for b in placed])
        for _ in range(repeats):
            began = time.perf_counter()
            jax.block_until_ready([multiply(b, b) for b in placed])
            best = max(best, 2 * size**3 * len(placed) / (time.perf_counter() - began))
    return best


@dataclass(frozen=True)
class Cost:
    """The cost of one meta-step of a configuration on this machine; see `measure`.

    Attributes:
        parameters: Number of meta-parameters.
        flops: FLOPs of a step; see `Flops`.
        unbounded_loops: While loops with an unknown number of rounds; see `Flops`.
        temporary_bytes: Memory of one device beside inputs and outputs, as compiled.
        peak_bytes: Peak memory while stepping: of the process on a CPU, else of the devices; 0 if unknown.
        devices: Devices that share the tasks.
        matmul_flops_per_second: The rate of matrix products; see `matmul_rate`.
        first_call_s: Seconds for tracing, compiling and the first step.
        milliseconds: Times of the steps.
    """

    parameters: int
    flops: int
    unbounded_loops: int
    temporary_bytes: int
    peak_bytes: int
    devices: int
    matmul_flops_per_second: float
    first_call_s: float
    milliseconds: tuple[float, ...]

    @property
    def floor_ms(self) -> float:
        """Milliseconds of the products alone, at the machine's rate."""
        return 1e3 * self.flops / self.matmul_flops_per_second

    @property
    def median_ms(self) -> float:
        """The median step, milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def fraction(self) -> float:
        """The share of the machine's rate that the median step reaches."""
        return self.floor_ms / self.median_ms

    def to_json(self) -> dict[str, object]:
        """Return the figures by name, as JSON values."""
        figures = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "milliseconds"}
        times = {
            "ms_median": self.median_ms,
            "ms_min": min(self.milliseconds),
            "ms_max": max(self.milliseconds),
        }
        return {**figures, **times, "floor_ms": self.floor_ms, "fraction_of_rate": self.fraction}


def forget_peak() -> None:
    """Reset the peak memory of the process, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the peak memory: of the devices, or on a CPU of the process since `forget_peak`.

    Returns:
        Bytes, 0 if unknown.

    Example:
        >>> peak_bytes() >= 0
        True
    """
    stats = [device.memory_stats() or {} for device in jax.devices() if device.platform != "cpu"]
    if stats:
        return sum(each.get("peak_bytes_in_use", 0) for each in stats)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def measure(
    config: Config, steps: int = 5, seconds: float = 0.0, experiment: Experiment | None = None
) -> Cost:
    """Measure the cost of a configuration's meta-step on this machine.

    Compiles the step and times it. Nothing is written, and what is learned is discarded.

    Args:
        config: The configuration.
        steps: Steps to time, after the first.
        seconds: Time to go on for at least; a short burst is faster than a long run.
        experiment: The configuration's, where it is assembled already.

    Returns:
        The cost.

    Raises:
        ConfigError: If parts of the configuration do not go together.
        DataError: If the domain's data are missing.

    Example:
        >>> from imaml.config.overrides import override
        >>> from imaml.config.presets import preset
        >>> measure(override(preset("sinusoid"), "training.tasks", "2", "--tasks"), steps=1).parameters
        1761
    """
    rate = matmul_rate()
    experiment = experiment or assemble(config)
    step, (whole, state, key) = experiment.step(), experiment.begin()
    domain = whole.training_domain(0)
    counted = count_flops(experiment.step(estimate=False), domain, state, key)
    began = time.perf_counter()
    compiled = step.lower(domain, state, key).compile()
    state, _ = jax.block_until_ready(compiled(domain, state, key))
    first_call_s = time.perf_counter() - began
    forget_peak()
    taken: list[float] = []
    summing: list[float] = []  # what a line of the log takes, of which each step has its share
    window, every = Window(), config.training.log_every
    end = time.perf_counter() + seconds
    while len(taken) < steps or time.perf_counter() < end:
        began = time.perf_counter()
        state, report = compiled(domain, state, key)
        jax.device_get(report["metrics"].used)  # as training does, which counts where a network is small
        window.add(report)
        taken.append(1e3 * (time.perf_counter() - began))
        if len(taken) % every == 0:
            began = time.perf_counter()
            window.summary()
            summing.append(1e3 * (time.perf_counter() - began) / every)
    share = statistics.median(summing) if summing else 0.0
    return Cost(
        sum(leaf.size for leaf in jax.tree.leaves(state["theta"])),
        *counted,
        compiled.memory_analysis().temp_size_in_bytes,  # type: ignore[union-attr]
        peak_bytes(),
        mesh_size(experiment.method.mesh),
        rate,
        first_call_s,
        tuple(each + share for each in taken),
    )
