"""The degree of a program as a polynomial in its input, read from the program itself.

A function of degree at most 1 has a constant derivative. An error bound that needs no more than that is a
proof for every input, and not only for those that were sampled.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, jaxprs_in_params
from jax.typing import DTypeLike

from ..core.tree import Tree

# The output is linear in the inputs together, so its degree is the largest among them.
_SUMS = ("add", "add_any", "sub", "neg", "reduce_sum", "cumsum", "reduce_window_sum")
_COPIES = ("copy", "copy_p", "real", "imag", "optimization_barrier", "reshape", "squeeze", "expand_dims")
_PIECES = ("rev", "transpose", "broadcast_in_dim", "slice", "split", "concatenate", "pad")
_LINEAR = {*_SUMS, *_COPIES, *_PIECES}
# The output is linear in each of the two inputs, so degrees add up.
_BILINEAR = frozenset(["mul", "dot_general", "conv_general_dilated"])
# The output is linear in the other inputs as long as these, the places or the divisor, are constant.
_CONSTANT = {
    "div": slice(1, None),
    "select_n": slice(0, 1),
    "gather": slice(1, None),
    "dynamic_slice": slice(1, None),
    "dynamic_update_slice": slice(2, None),
    "scatter-add": slice(1, 2),  # (operand, indices, updates)
    "scatter": slice(1, 2),
}
# The equation calls another program. Functions with a derivative of their own are not among them: it need not
# be that of the program.
_CALLS = frozenset(["jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"])


def degree_of(function: Callable[[Tree], Tree], at: Tree) -> float:
    """The degree of a function as a polynomial in its argument; infinity where none is recognised.

    The analysis is abstract interpretation over the jaxpr: sums keep the larger degree, products add degrees,
    and any operation that is not listed as one of these makes the degree infinite where its input is not
    constant. So the degree is an upper bound: of `x * x - x * x` it is 2.

    Args:
        function: A function of one tree of float arrays. What it closes over counts as constant.
        at: A tree of the shapes and dtypes that the function takes; its values do not matter.

    Returns:
        The largest degree among the function's outputs: 0 if it is constant, 1 if it is affine.

    Example:
        >>> import jax.numpy as jnp
        >>> degree_of(jax.grad(lambda x: jnp.sum((2 * x - 1) ** 2)), jnp.ones(3))
        1
        >>> degree_of(jnp.tanh, jnp.ones(3))
        inf
    """
    program = jax.make_jaxpr(function)(at).jaxpr
    if not _pure(program):
        return math.inf
    return max(_degrees(program, [1] * len(program.invars)), default=0)


def _pure(program: Jaxpr) -> bool:
    """Whether a jaxpr has no side effects, mutable arrays or callbacks, through which anything may return."""
    if program.effects:
        return False
    for equation in program.eqns:
        if equation.effects or "callback" in equation.primitive.name or "ref" in equation.primitive.name:
            return False
        if not all(_pure(inner) for inner in jaxprs_in_params(equation.params)):
            return False
    return True


def _degrees(program: Jaxpr, given: Sequence[float]) -> list[float]:
    """The degrees of a jaxpr's outputs from those of its inputs."""
    known: dict[Var, float] = dict(zip(program.invars, given, strict=True))
    known.update(dict.fromkeys(program.constvars, 0))
    read = lambda atom: 0 if isinstance(atom, Literal) else known[atom]  # noqa: E731
    for equation in program.eqns:
        inputs = [read(atom) for atom in equation.invars]
        known.update(zip(equation.outvars, _rule(equation, inputs), strict=True))
    return [read(atom) for atom in program.outvars]


def _rule(equation: JaxprEqn, inputs: list[float]) -> list[float]:
    """The degrees of one equation's outputs."""
    name, count = equation.primitive.name, len(equation.outvars)
    most = max(inputs, default=0)
    if most == 0:
        return [0] * count
    if name in _CALLS:
        inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
        program = getattr(inner, "jaxpr", inner)
        consts = [0] * (len(program.invars) - len(inputs))
        return _degrees(program, [*consts, *inputs])
    if _coarser(equation):
        return [math.inf] * count
    return [_simple(equation, name, inputs, most)] * count


def _coarser(equation: JaxprEqn) -> bool:
    """Whether an equation rounds to a coarser dtype than its inputs have: that is a staircase."""
    precisions = [
        [float(jnp.finfo(dtype).eps) for dtype in map(_dtype, atoms) if jnp.issubdtype(dtype, jnp.inexact)]
        for atoms in (equation.invars, equation.outvars)
    ]
    return max(precisions[1], default=0) > max(precisions[0], default=0)


def _dtype(atom: Var | Literal) -> DTypeLike:
    """The dtype of a variable; bool for what has none, such as a token."""
    return getattr(atom.aval, "dtype", bool)


def _simple(equation: JaxprEqn, name: str, inputs: list[float], most: float) -> float:
    """The degree of all outputs of an equation that calls no other program."""
    params = equation.params
    if name in _LINEAR:
        return most
    if name in _BILINEAR:
        return sum(inputs)
    if name == "square":
        return 2 * most
    if name == "integer_pow" and params["y"] >= 0:
        return most * params["y"]
    if name == "convert_element_type" and jnp.issubdtype(params["new_dtype"], jnp.inexact):
        return most
    applies = name == "scatter" and params.get("update_jaxpr") is not None  # a function to what is there
    if name in _CONSTANT and not any(inputs[_CONSTANT[name]]) and not applies:
        return most
    return math.inf
