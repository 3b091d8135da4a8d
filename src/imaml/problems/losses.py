"""Losses with more structure than a plain function: compositions, half squares, joined tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from ..core import tree
from ..core.errors import ConfigError
from ..core.tree import Tree
from ..core.validation import require_function, require_scalar

Join = Callable[[Tree, Tree], Tree]  # (support, query) -> batch


class CompositeLoss:
    """The base of a loss that is a cost of a model's outputs: loss(phi, batch) = cost(outputs, batch).

    A subclass is a frozen dataclass that defines `outputs` and `cost`, the parts that Gauss-Newton curvature
    and likelihoods need.

    Attributes:
        likelihood: The distribution of a row, `imaml.Gaussian()` or `imaml.Categorical()`, if it is declared.
        expand_head: If it is declared, (mean, batch) -> the adapted parameters that a task starts at, where
            these are larger than those of theta; they must broadcast against each other.
        outputs_per_row: How many outputs each row of a batch has; the likelihood of rows needs one.
    """

    likelihood: Any

    @property
    def outputs_per_row(self) -> int:
        """See above."""
        return 1

    def outputs(self, phi: Tree, batch: Tree) -> Tree:
        """Return the model's outputs.

        Args:
            phi: The full tree of parameters.
            batch: The batch; leaves ``(rows, ...)``.

        Returns:
            Outputs, rows first.
        """
        raise NotImplementedError

    def cost(self, outputs: Tree, batch: Tree) -> Array:
        """Return the cost of outputs, which is convex in them.

        Args:
            outputs: What `outputs` returned.
            batch: The same batch.

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def __call__(self, phi: Tree, batch: Tree) -> Array:
        """Return the loss of parameters on a batch, a scalar."""
        return self.cost(self.outputs(phi, batch), batch)


@dataclass(frozen=True)
class HalfSquares:
    """The cost 1/2 |z|^2 of residuals z."""

    def __call__(self, residuals: Tree, batch: Tree) -> Array:
        """Compute the cost.

        Args:
            residuals: z, any pytree.
            batch: Not used.

        Returns:
            1/2 |z|^2, a scalar.
        """
        return 0.5 * tree.dot(residuals, residuals)


@dataclass(frozen=True)
class Composed(CompositeLoss):
    """A loss that is a convex cost of a model's outputs; made by `composed`."""

    outputs: Callable[[Tree, Tree], Tree] = field()
    cost: Callable[[Tree, Tree], Array] = field()


def gauss_newton_slope(loss: CompositeLoss, phi: Tree, full: Callable[[Tree], Tree], batch: Tree) -> Tree:
    """Compute the loss's gradient at phi by a program whose derivative in phi is the Gauss-Newton matrix.

    ```
    J(phi)^T cost'(outputs(phi))        J held fixed, so cost' times the outputs' curvature drops out
    ```

    Args:
        loss: The loss.
        phi: The adapted parameters.
        full: phi -> the full tree that the loss takes.
        batch: The batch.

    Returns:
        The gradient, a tree like `phi`.

    References:
        Schraudolph (2002), Fast curvature matrix-vector products.
    """
    of = lambda p: loss.outputs(full(p), batch)  # noqa: E731
    value = of(phi)
    _, pull = jax.vjp(of, lax.stop_gradient(phi))  # J^T at a fixed phi, so that J itself has no derivative
    return pull(jax.grad(lambda z: require_scalar("cost", loss.cost(z, batch)))(value))[0]


def composed(outputs: Callable[[Tree, Tree], Tree], cost: Callable[[Tree, Tree], Array]) -> Composed:
    """Make the loss cost(outputs(phi, batch), batch), in the two parts that Gauss-Newton curvature needs.

    You may instead pass your own object with the two methods `outputs` and `cost`.

    Args:
        outputs: The model, (phi, batch) -> any pytree.
        cost: (outputs, batch) -> scalar, convex in the outputs.

    Returns:
        The loss.

    Raises:
        ConfigError: If one of them cannot be called.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> fit = lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2)
        >>> loss = composed(lambda phi, batch: jnp.tanh(batch[0] @ phi), fit)
        >>> imaml.proximal(loss, 0.5, curvature="gauss-newton").curvature
        'gauss-newton'
    """
    require_function("outputs", outputs)
    require_function("cost", cost)
    return Composed(outputs, cost)


def joined(support: Tree, query: Tree) -> Tree:
    """Join both batches of a task.

    Args:
        support: The support set; leaves ``(rows, ...)``.
        query: The query set, a tree of the same structure.

    Returns:
        Their leaves, concatenated along the rows.

    Raises:
        ConfigError: If their structures differ.
    """
    if jax.tree.structure(support) != jax.tree.structure(query):
        raise ConfigError(
            f"joined: expected support and query of one structure, got {tree.shapes(support)} and "
            f"{tree.shapes(query)}. Hint: pass whole=(support, query) -> batch."
        )
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query)


def same_arrays(support: Tree, query: Tree) -> bool:
    """Return whether two batches are the same rows.

    Args:
        support: The support set.
        query: The query set.

    Returns:
        Whether each leaf of one is that of the other, or has its values. False for arguments of a compiled
        function, whose values are not known.
    """
    leaves, others = jax.tree.leaves(support), jax.tree.leaves(query)
    if len(leaves) != len(others) or any(isinstance(leaf, Tracer) for leaf in (*leaves, *others)):
        return False
    return all(a is b or np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))
