"""A Newton step from a task's solution, the linear system solved again there, and what the step shows.

The meta-gradient after it is off by the square of the error before (to second order it is the correction
`A w = -r`, `A du = dv - dA u` along w at the old point, but it takes no third-order product: the new system,
begun at the old u, starts from that very right-hand side).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import tree
from .linear import conjugate_gradients
from .spectrum import ritz
from .system import Case, System

SAFETY = 3.0  # the change along one direction is sampled; that along others is taken to be this much more


# How far the Newton step is solved, |F| before -> |F + A w|, and the linear system, (|v - A u|, turning, |F|)
# there -> |v - A u|.
Thresholds = tuple[Callable[[Array], Array], Callable[[Array, Array, Array], Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Move:
    """What a Newton step w left: where it leads, and how things changed along it, by |w|.

    adapted, u, gradient: after it. before: |F| where it began; residual: |F| there; left: |v - A u| there,
    and size |v|. length: |w|. turning: the change of v - A u at fixed u; drifting: that of the meta-gradient
    at fixed u; bending: that of A u over |u|. products: with A, that it took. smallest: the least Ritz value
    seen; negative: whether negative curvature was. loss: the query loss there.
    """

    adapted: Any
    u: Any
    gradient: Any
    before: Array
    residual: Array
    left: Array
    size: Array
    length: Array
    turning: Array
    drifting: Array
    bending: Array
    products: Array
    smallest: Array
    negative: Array
    loss: Array


def newton_move(case: Case, system: System, adapted: Any, u: Any, steps: int, thresholds: Thresholds) -> Move:
    """One step from the adapted leaves with solution u; `system` is theirs, its structure "spd".

    steps: of conjugate gradients at most, for the Newton step and for the linear system. thresholds: how far
    each goes, two functions: |F| before -> |F + A w|, and (|v - A u|, turning, |F|) there -> |v - A u|.
    """
    until_step, until_linear = thresholds
    way = conjugate_gradients(system.product, system.residual, steps, until_step(tree.norm(system.residual)))
    length, width = tree.norm(way.value), tree.norm(u)
    nearer = tree.minus(adapted, way.value)
    there = case.system(nearer)
    image, new_image = system.product(u), there.product(u)
    left, new_left = tree.minus(system.right, image), tree.minus(there.right, new_image)
    per = lambda change: tree.norm(change) / jnp.where(length > 0, length, 1)  # noqa: E731
    turning = per(tree.minus(new_left, left))
    beyond = tree.norm(there.residual)
    further = conjugate_gradients(
        there.product, new_left, steps, until_linear(tree.norm(new_left), turning, beyond)
    )
    refined = jax.tree.map(jnp.add, u, further.value)
    smallest = jnp.minimum(ritz(way.coefficients, way.steps)[0], ritz(further.coefficients, further.steps)[0])
    return Move(
        nearer,
        refined,
        there.gradient(refined),
        tree.norm(system.residual),
        beyond,
        further.residual,
        tree.norm(there.right),
        length,
        turning,
        per(tree.minus(there.gradient(u), system.gradient(u))),
        per(tree.minus(new_image, image)) / jnp.where(width > 0, width, 1),
        way.steps + further.steps + 2,
        smallest,
        way.negative | further.negative,
        there.loss,
    )
