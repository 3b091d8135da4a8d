"""Accuracy as a request: Newton steps and linear solves just far enough for an error asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import Array

from . import tree
from .certificate import Certificate, anchor_weight, bound_after, error_after, sensitivity
from .errors import ConfigError, require_number
from .loops import repeat_while
from .refinement import SAFETY, Move, newton_move
from .solution import Certification, Ending, Solution, Stats, Status
from .spectrum import ritz
from .system import Case, System

ROUNDS = 20
MOST = 1000  # steps of conjugate gradients in one solve


@dataclass(frozen=True)
class Tightening:
    """An accuracy that tightens as learning goes on: max(last, first / (1 + step / pace)^power).

    Far from where theta ends a rough meta-gradient does; outer learning converges if the accuracies have a
    finite sum, so power > 1 (Pedregosa 2016, Theorem 2; the quadratic decrease of its section 4 is power=2).
    first, last: relative to a task's meta-gradient, as `accuracy`; last is what the precision or the patience
    allows. step: of outer learning, from 0. Without one (a gradient outside of training) it is last.

    >>> Tightening(first=0.1, last=1e-3, pace=10).at(10)
    0.025
    """

    first: float = 0.1
    last: float = 1e-4
    pace: float = 100.0
    power: float = 2.0

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_number("Tightening", 0, below=1, open=True, first=self.first, last=self.last)
        require_number("Tightening", 0, open=True, pace=self.pace)
        require_number("Tightening", 1, open=True, power=self.power)
        if self.last > self.first:
            raise ConfigError(f"Tightening: last={self.last!r}; accepted is at most first={self.first!r}.")

    def at(self, step: Any) -> Any:
        """The accuracy at an outer step, a number or an array."""
        if step is None:
            return self.last
        now = self.first / (1 + step / self.pace) ** self.power
        return max(self.last, now) if isinstance(step, int) else jnp.maximum(self.last, now)


def check_accuracy(owner: str, accuracy: Any) -> None:
    """Refuses what is no accuracy (ConfigError)."""
    if accuracy is not None and not isinstance(accuracy, Tightening):
        require_number(owner, 0, below=1, open=True, accuracy=accuracy)


def until_accurate(
    accuracy: Any,
    certificate: Certificate | None,
    case: Case,
    system: System,
    solution: Solution,
    adapted: Any,
    key: Array,
) -> tuple[Move, Solution]:
    """Newton steps from the adapted leaves until the meta-gradient is off by at most `accuracy` of its norm.

    Each round takes a Newton step and goes on with the linear system there. The Newton step is solved to
    where what is left of the way matters half of what may be wrong, the linear system to the other half, but
    no further than the solution is known: c, the change along the last step, says what a way matters (see
    `certificate.Certificate`). mu and |B| are those of the certificate where the problem's kind gives
    them; else the least Ritz value seen, or the least strength if that is less, and |B^T u| / |u|, and then
    the error is an estimate unless a certificate is asked for.

    Returns the last step, and the Solution: its steps count all products with A (the first solve's among
    them), its status is CONVERGED, or says why not.
    """
    problem, theta, _, _ = case
    least = problem.least_strength(adapted, theta) if problem.kind == "proximal" else jnp.inf
    floor = problem.curvature_floor(adapted, theta)
    recipe, known = certificate or Certificate(), anchor_weight(case, adapted)
    weight = sensitivity(system, solution.value) if known is None else known

    def curvature(smallest: Array) -> Array:
        mu = jnp.minimum(smallest, least) if floor is None else floor
        return jnp.where(mu > 0, mu, 1)

    def off(move: Move) -> Array:
        return error_after(move, curvature(move.smallest), weight)

    def advance(state: tuple) -> tuple:
        move, count, size = state
        mu = curvature(move.smallest)
        allowed = accuracy * size * mu / weight  # of |v - A u| + 3 c |F| / mu
        here = case.system(move.adapted)

        def until_step(residual: Array) -> Array:
            matters = SAFETY * move.turning / mu
            enough = allowed / 2 / jnp.where(matters > 0, matters, 1)
            return jnp.where(matters > 0, jnp.clip(enough, 1e-4 * residual, 0.1 * residual), 0.1 * residual)

        def until_linear(left: Array, turning: Array, residual: Array) -> Array:
            return jnp.maximum(allowed / 2, jnp.minimum(SAFETY * turning * residual / mu, 0.5 * left))

        thresholds = (until_step, until_linear)
        new = newton_move(case, here, move.adapted, move.u, MOST, thresholds)
        new = replace(
            new,
            products=move.products + new.products,
            smallest=jnp.minimum(move.smallest, new.smallest),
            negative=move.negative | new.negative,
        )
        return new, count + 1, tree.norm(new.gradient)

    def going(state: tuple) -> Array:
        move, count, size = state
        wanting = ~(off(move) <= accuracy * size) | (count == 0)
        return wanting & (count < ROUNDS) & ~move.negative & tree.finite(move.gradient)

    gradient = system.gradient(solution.value)
    start = _start(system, solution, adapted, gradient)
    move, _, size = repeat_while(going, advance, (start, jnp.asarray(0), tree.norm(gradient)))
    estimate = off(move)
    good = estimate <= accuracy * size
    code = jnp.where(good, int(Ending.CONVERGED), int(Ending.OUT_OF_STEPS))
    code = jnp.where(move.negative, int(Ending.NEGATIVE_CURVATURE), code)
    code = jnp.where(tree.finite(move.gradient), code, int(Ending.NOT_FINITE))
    bound, certified = None, jnp.full_like(code, int(Certification.NOT_ASKED))
    if certificate is not None or (floor is not None and known is not None):
        bound, certified = bound_after(recipe, case, move, key)
        above = (certified == int(Certification.CERTIFIED)) & (bound > accuracy * size)
        certified = jnp.where(above, int(Certification.ABOVE_REQUEST), certified)
    share = move.left / jnp.where(move.size > 0, move.size, 1)
    stats = Stats(move.products, share, move.negative, error_estimate=estimate, error_bound=bound)
    return move, Solution(move.u, stats, Status(code, certified))


def _start(system: System, solution: Solution, adapted: Any, gradient: Any) -> Move:
    """The state before the first round, as a step that was not taken."""
    nothing = jnp.zeros_like(solution.stats.residual)
    smallest = jnp.full_like(nothing, jnp.inf)
    if solution.stats.lanczos is not None:
        smallest = ritz(solution.stats.lanczos, solution.stats.steps)[0]
    return Move(
        adapted=adapted,
        u=solution.value,
        gradient=gradient,
        before=tree.norm(system.residual),
        residual=tree.norm(system.residual),
        left=solution.stats.residual * tree.norm(system.right),
        size=tree.norm(system.right),
        length=nothing,
        turning=nothing,
        drifting=nothing,
        bending=nothing,
        products=solution.stats.steps,
        smallest=smallest,
        negative=jnp.asarray(False),
        loss=system.loss,
    )
