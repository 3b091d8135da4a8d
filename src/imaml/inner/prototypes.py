"""The head of a prototypical network, as an inner solver."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core.errors import StructureError
from ..core.fields import Checked
from ..core.recipes import recipe
from ..core.solution import Ending, Solution, Stats, Status
from .base import Instance, Solver


@recipe("inner")
class Prototypes(Checked, Solver):
    """Compares with each class's mean: outputs are -|x - m_c|^2 up to a number that is equal for all classes.

    With x the features of a row and m_c their mean over the support rows of the class c,

        -|x - m_c|^2 = 2 m_c . x - |m_c|^2 - |x|^2

    is linear in x except for its last term, which does not change a softmax. So a class's column of the head
    has the weights 2 m_c and the bias -|m_c|^2. That solves no inner problem, so only the rule `unrolled()`
    (the method `maml`) accepts it. It then learns the features of a prototypical network.

    It needs a problem whose loss derives from `imaml.LinearSquares` and has unit vectors as targets; of the
    adapted parameters one is a bias ``(c,)``, whose part of the design is ones, and the others are weights
    ``(d_i, c)``. A class without support rows has its mean at the origin.

    Example:
        >>> import imaml
        >>> from imaml.config.methods import Method
        >>> Method("maml", adapt=("head",), inner=imaml.Prototypes()).adapt
        ('head',)

    References:
        Snell, Swersky, Zemel (2017), Prototypical networks for few-shot learning, equations 1, 2 and 8.
    """

    solves: ClassVar[bool] = False

    def _solve(self, task: Instance) -> Solution:
        """The Solution, whose residual is |F| of the problem that it does not solve."""
        problem, phi = task.problem, task.start
        loss = problem.squares
        if loss is None:
            raise StructureError(
                "Prototypes: expected a problem whose loss is of squares, linear in the adapted parameters, "
                f"got {problem.kind}. Hint: --domain.inner_loss=squared --method.adapt=head, or a loss that "
                "derives from imaml.LinearSquares."
            )
        leaves, structure = jax.tree.flatten(phi)
        if len(leaves) < 2 or sorted(leaf.ndim for leaf in leaves) != [1] + [2] * (len(leaves) - 1):
            raise StructureError(
                "Prototypes: expected a bias (c,) and weights (d, c) as the adapted parameters, got shapes "
                f"{[leaf.shape for leaf in leaves]}."
            )
        chosen = loss.targets(task.batch, leaves[0].shape[-1])
        shares = chosen / jnp.maximum(chosen.sum(0, keepdims=True), 1)
        design = problem.split(loss.design(problem.full(phi, task.theta), task.batch))
        means = [part.T @ shares for part in jax.tree.leaves(design)]  # of each part (d_i, c)
        wide = [mean for mean, leaf in zip(means, leaves, strict=True) if leaf.ndim == 2]
        squares = jnp.square(jnp.concatenate(wide)).sum(0)

        def of(leaf: Array, mean: Array) -> Array:
            return (2 * mean if leaf.ndim == 2 else -squares).astype(leaf.dtype)

        value = structure.unflatten(of(leaf, mean) for leaf, mean in zip(leaves, means, strict=True))
        stats = Stats(jnp.asarray(1), task.size(value), jnp.asarray(False))
        return Solution(value, stats, Status(jnp.asarray(int(Ending.STEPS_DONE))))
