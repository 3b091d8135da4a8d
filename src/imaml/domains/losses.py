"""The base of domains' losses."""

from __future__ import annotations

from jax import Array

from ..core.tree import Tree


class CompositeLoss:
    """The base of a loss that is a cost of a model's outputs: loss(phi, batch) = cost(outputs, batch).

    A subclass is a frozen dataclass that defines `outputs` and `cost`, the parts that Gauss-Newton curvature
    and likelihoods need.
    """

    def outputs(self, phi: Tree, batch: Tree) -> Array:
        """Return the model's outputs.

        Args:
            phi: Adapted parameters.
            batch: The batch; leaves ``(rows, ...)``.

        Returns:
            Outputs, rows first.
        """
        raise NotImplementedError

    def cost(self, outputs: Array, batch: Tree) -> Array:
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
