"""What a solve returns: its value, what is known of it, and how it ended."""

import enum
from dataclasses import dataclass

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from .tree import Tree


class Ending(enum.IntEnum):
    """How a solve ended. `advice` says what to do about it."""

    CONVERGED = 0
    STEPS_DONE = 1
    DAMPED = 2
    OUT_OF_STEPS = 3
    NEGATIVE_CURVATURE = 4
    STAGNATED = 5
    BREAKDOWN = 6
    DIVERGED = 7
    CYCLED = 8
    NOT_FINITE = 9

    @property
    def advice(self) -> str:
        """One sentence: what happened, and what to do."""
        return _ADVICE[self]


_ADVICE = {
    Ending.CONVERGED: "The residual is below the tolerance.",
    Ending.STEPS_DONE: "The requested number of steps was taken; the residual shows the accuracy.",
    Ending.DAMPED: "The system showed too little curvature, so (A + d I) u = b was solved instead, with d "
    "in stats.damping. Take more inner steps or raise the strength to solve the original system.",
    Ending.OUT_OF_STEPS: "The tolerance was not reached within the allowed steps; allow more steps, use a "
    "larger tolerance, or raise the strength (a better conditioned system).",
    Ending.NEGATIVE_CURVATURE: "A direction of negative curvature was met; the solver stopped at the "
    "iterate before it. Take more inner steps, raise the strength, or use Gauss-Newton curvature, MINRES, "
    "GMRES or Dense.",
    Ending.STAGNATED: "The residual stopped falling before the tolerance: the system is nearly singular or "
    "the tolerance is below the precision of the dtype; use float64, or a larger tolerance or strength.",
    Ending.BREAKDOWN: "The method broke down (a division by nearly zero, or an answer worse than zero); use "
    "Dense, or GMRES with more steps.",
    Ending.DIVERGED: "The inner solve moved away from a solution: the residual is over ten times that at "
    "the start; lower the learning rate, or raise the strength.",
    Ending.CYCLED: "The inner solve went around instead of towards a solution, as players of a game do. Use "
    "ExtraGradient or OptimisticDescent, lower the learning rate, or raise the strength.",
    Ending.NOT_FINITE: "NaN or infinity appeared: the inner solve diverged or the data are not finite; "
    "lower the learning rate, check the data, or raise the strength.",
}


class Certification(enum.IntEnum):
    """What is known of a meta-gradient's error, or why there is no bound. `advice` says what to do.

    There are three grades, see `grade`: "proved" (PROVED), "certified" (CERTIFIED, CERTIFIED_IF_SMOOTH) and
    "estimated" (all others, which have no bound). docs/certificates.md derives the bound of each grade.
    """

    PROVED = 0
    CERTIFIED = 1
    CERTIFIED_IF_SMOOTH = 2
    ESTIMATED = 3
    ESTIMATE_UNRELIABLE = 4
    ABOVE_REQUEST = 5
    SOLUTION_TOO_FAR = 6
    CURVATURE_UNKNOWN = 7
    NO_BOUND = 8

    @property
    def advice(self) -> str:
        """What is known, and what to do; one or two sentences."""
        return _CERTIFICATION_ADVICE[self]

    @property
    def grade(self) -> str:
        """The grade: "proved", "certified" or "estimated"."""
        if self is Certification.PROVED:
            return "proved"
        return "certified" if self <= Certification.CERTIFIED_IF_SMOOTH else "estimated"


_CERTIFICATION_ADVICE = {
    Certification.PROVED: "The error is at most stats.error_bound: every constant in the bound was computed "
    "exactly or declared.",
    Certification.CERTIFIED: "The error is at most stats.error_bound with probability 1 - p, where p is the "
    "certificate's `failure`: the problem is quadratic, and random probes bound the norms in the bound.",
    Certification.CERTIFIED_IF_SMOOTH: "As CERTIFIED, under the smoothness assumption of "
    "docs/certificates.md: derivatives near the solution are at most twice those sampled. Declare "
    "lipschitz= to avoid this assumption.",
    Certification.ESTIMATED: "No certificate was requested (certify=True); the error is only estimated, see "
    "stats.error_estimate.",
    Certification.ESTIMATE_UNRELIABLE: "The inner residual is so large that the estimate may be far too "
    "small. Take more inner steps, raise the strength, or ask for a bound (certify=True).",
    Certification.ABOVE_REQUEST: "The error bound is above the requested accuracy; allow more inner or "
    "linear steps, request a larger error, or use float64.",
    Certification.SOLUTION_TOO_FAR: "Newton steps did not come close enough to a solution for a bound. Take "
    "more inner steps, raise the strength, or give Certificate(steps=...) more products.",
    Certification.CURVATURE_UNKNOWN: "The curvature has no known lower bound above zero. Take more inner "
    "steps, raise the strength, use Gauss-Newton curvature, declare convex=True if the loss is convex, or "
    "give Certificate(lanczos=...) more products.",
    Certification.NO_BOUND: "A value was not finite, or the system is of a kind (a game, a fixed point, an "
    "F that is not a gradient) that has no error bound here; compare with Dense().",
}


def bounded(code: Array) -> Array:
    """Say whether `stats.error_bound` bounds the error.

    Args:
        code: Codes of `Certification`.

    Returns:
        Booleans, shaped like the codes.
    """
    return code <= int(Certification.CERTIFIED_IF_SMOOTH)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Status:
    """How a solve ended, as an array of codes, so that it travels through jit and vmap.

    Attributes:
        code: Values of `Ending`; shape () for one solve and (tasks,) for a batch.
        certificate: Values of `Certification`, shaped like `code`; None if no bound was requested.

    Example:
        >>> import jax.numpy as jnp
        >>> Status(jnp.asarray(0)).ending
        <Ending.CONVERGED: 0>
    """

    code: Array
    certificate: Array | None = None

    @property
    def ok(self) -> Array:
        """Whether the solve succeeded (it converged, or took all steps), boolean like `code`."""
        return self.code <= Ending.STEPS_DONE

    @property
    def ending(self) -> Ending:
        """The worst ending among the codes (on the host: not inside jit)."""
        return Ending(int(np.max(np.asarray(self.code))))

    @property
    def advice(self) -> str:
        """A sentence on the worst ending (on the host: not inside jit)."""
        return self.ending.advice

    @property
    def certification(self) -> Certification:
        """The worst certification among the solves (on the host: not inside jit)."""
        if self.certificate is None:
            return Certification.ESTIMATED
        return Certification(int(np.max(np.asarray(self.certificate))))

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
    """Statistics of a solve; every field is an array of shape () for one solve, (tasks,) for a batch.

    Attributes:
        steps: Iterations taken.
        residual: Of a linear solve |b - A x| / |b|; of an inner solve the norm |F(phi)|, in the units of the
            loss's gradient.
        negative_curvature: Whether a direction p with p.Ap <= 0 was seen; False for solvers that do not look.
        lanczos: For CG, its coefficients (alpha, beta), each of shape (most steps,), zero where no step was
            taken; otherwise None.
        first: For an inner solve with a fixed number of steps, |F| at the start, by which the solve is
            judged; infinity if phi changed by no more than rounding. Otherwise None.
        returned: For such a solve, if F is not a gradient: |F| halfway if the second half led back there;
            otherwise infinity.
        error_estimate: For an implicit gradient, an estimate of the norm of its error; otherwise None.
        error_bound: A bound of that norm (with certify=True); otherwise None.
        damping: What a solver with damping added to the linear system's diagonal; otherwise None.
    """

    steps: Array
    residual: Array
    negative_curvature: Array
    lanczos: tuple[Array, Array] | None = None
    first: Array | None = None
    returned: Array | None = None
    error_estimate: Array | None = None
    error_bound: Array | None = None
    damping: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Solution:
    """What a solve returns.

    Attributes:
        value: The solution, a tree of arrays.
        stats: What is known of it.
        status: How the solve ended.
    """

    value: Tree
    stats: Stats
    status: Status

    @property
    def certified(self) -> Array:
        """Whether `stats.error_bound` bounds the error (proved or certified), boolean like the codes."""
        if self.status.certificate is None:
            return np.zeros(np.shape(self.status.code), bool)  # type: ignore[return-value]
        return bounded(self.status.certificate)
