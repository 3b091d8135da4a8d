"""What a solve returns: its value, what is known of it, and how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer


class Ending(enum.IntEnum):
    """How a solve ended. `advice` says what to do about it."""

    CONVERGED = 0
    STEPS_DONE = 1
    OUT_OF_STEPS = 2
    NEGATIVE_CURVATURE = 3
    STAGNATED = 4
    BREAKDOWN = 5
    DIVERGED = 6
    NOT_FINITE = 7

    @property
    def advice(self) -> str:
        """One sentence: what happened, and what to do."""
        return _ADVICE[self]


_ADVICE = {
    Ending.CONVERGED: "The residual is below the tolerance.",
    Ending.STEPS_DONE: "The asked number of steps was taken; the residual says how good the value is.",
    Ending.OUT_OF_STEPS: "The tolerance was not reached within the allowed steps; allow more steps, ask for "
    "less, or raise the strength (a better conditioned system).",
    Ending.NEGATIVE_CURVATURE: "A direction of negative curvature was met, so the system is not positive "
    "definite, and the solver stopped at the iterate before it; raise the strength, take more inner steps or "
    "use a solver for indefinite systems (GMRES, BiCGStab, Dense).",
    Ending.STAGNATED: "The residual stopped falling before the tolerance: the system is nearly singular or "
    "the tolerance is below what the precision gives; use float64, ask for less, or raise strength.",
    Ending.BREAKDOWN: "The method broke down (a division by nearly zero, or an answer worse than zero); use "
    "Dense, or GMRES with more steps.",
    Ending.DIVERGED: "The inner solve moved away from a solution: the residual is over ten times that at "
    "the start; lower the learning rate, or raise the strength.",
    Ending.NOT_FINITE: "NaN or infinity appeared: the inner solve diverged or the data are not finite; lower "
    "the learning rate, check the data, or raise the strength.",
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Status:
    """How a solve ended, as an array of codes, so that it travels through jit and vmap.

    `code` has shape () for one solve and (tasks,) for a batch; its values are those of `Ending`.

    >>> import jax.numpy as jnp
    >>> Status(jnp.asarray(0)).ending
    <Ending.CONVERGED: 0>
    """

    code: Array

    @property
    def ok(self) -> Array:
        """Whether the value is what was asked for (converged, or all the steps done), boolean like `code`."""
        return self.code <= Ending.STEPS_DONE

    @property
    def ending(self) -> Ending:
        """The worst ending among the codes (on the host: not inside jit)."""
        return Ending(int(np.max(np.asarray(self.code))))

    @property
    def advice(self) -> str:
        """A sentence on the worst ending (on the host: not inside jit)."""
        return self.ending.advice

    def __str__(self) -> str:
        """How many solves ended how."""
        if isinstance(self.code, Tracer):
            return f"Status({self.code})"
        codes, counts = np.unique(np.asarray(self.code), return_counts=True)
        return ", ".join(
            f"{count} x {Ending(int(code)).name}" for code, count in zip(codes, counts, strict=True)
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stats:
    """What a solve left behind; every field an array of shape () for one solve, (tasks,) for a batch.

    steps: iterations taken. residual: of a linear solve |b - A x| / |b|; of an inner solve the norm |F(phi)|
    itself, in the units of the loss's gradient. negative_curvature: whether a direction p with p.Ap <= 0 was
    seen (always False for solvers that do not look). lanczos: of CG its coefficients (alpha, beta), each of
    shape (max_steps,), zero where no step was taken; else None. first: of an inner solve of a fixed number of
    steps the norm of F where it started, by which it is judged; else None.
    """

    steps: Array
    residual: Array
    negative_curvature: Array
    lanczos: tuple[Array, Array] | None = None
    first: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Solution:
    """A solve's value, statistics and status."""

    value: Any
    stats: Stats
    status: Status
