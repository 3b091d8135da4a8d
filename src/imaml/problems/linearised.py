"""The linear system that a problem makes at its solution."""

from __future__ import annotations

from typing import NamedTuple

from jax import lax

from ..core.errors import StructureError
from ..core.solution import Solution
from ..core.tree import Tree
from ..linear.base import LinearSolver, Matvec, refuse_structure, uses_anchor, uses_inverse
from .base import Problem


class Known(NamedTuple):
    """What a problem knows of the matrix A besides products with it.

    Attributes:
        anchor: The diagonal that the anchor adds to the loss's curvature, a tree like the adapted parameters,
            without a derivative; None if the problem has no such diagonal.
        inverse: b -> A^-1 b; None if the problem has no closed form of it. Nothing is computed before it is
            called.
    """

    anchor: Tree = None
    inverse: Matvec | None = None

    @classmethod
    def of(cls, problem: Problem, adapted: Tree, theta: Tree, batch: Tree) -> Known:
        """Ask a problem.

        Args:
            problem: The problem.
            adapted: The adapted parameters.
            theta: The meta-parameters.
            batch: The support set.

        Returns:
            What it knows of A there.
        """
        anchor = lax.stop_gradient(problem.anchor_diagonal(adapted, theta))
        if not problem.invertible:
            return cls(anchor)
        # As constants: derivatives go through the system, not through how it is solved.
        fixed, *at = lax.stop_gradient((problem, adapted, theta, batch))
        return cls(anchor, lambda b: fixed.inverse(*at)(b))


def solve_known(linear: LinearSolver, product: Matvec, right: Tree, structure: str, known: Known) -> Solution:
    """Solve a linear system, and tell the solver what it uses of what is known.

    Args:
        linear: The linear solver.
        product: v -> A v.
        right: The right-hand side.
        structure: The structure of A.
        known: What the problem knows of A.

    Returns:
        The Solution, shaped like `right`.
    """
    given = {"anchor": known.anchor} if uses_anchor(linear) else {}
    given |= {"inverse": known.inverse} if uses_inverse(linear) else {}
    return linear(product, right, structure=structure, **given)


def solve_linear(linear: LinearSolver, product: Matvec, right: Tree, structure: str, known: Known) -> Tree:
    """Solve a linear system; derivatives go through the system itself, not through the solver's steps.

    Args:
        linear: The linear solver.
        product: v -> A v, a linear function that JAX can transpose.
        right: The right-hand side.
        structure: The structure of A.
        known: What the problem knows of A.

    Returns:
        The solution, shaped like `right`.
    """

    def solve(matvec: Matvec, b: Tree) -> Tree:
        return solve_known(linear, matvec, b, structure, known).value

    symmetric = structure != "general"
    transposed = None if symmetric else solve
    return lax.custom_linear_solve(product, right, solve, transposed, symmetric=symmetric)


def refuse_system(linear: LinearSolver, problem: Problem) -> None:
    """Check that a linear solver accepts a problem's systems.

    Args:
        linear: The linear solver.
        problem: The problem.

    Raises:
        StructureError: If the solver does not accept their structure, or needs strengths or an inverse that
            they lack.
    """
    refuse_structure(linear, problem.structure)
    if uses_anchor(linear) and not problem.diagonal:
        got = f"a matrix, learned per={problem.learns.per!r}" if problem.learns else problem.kind
        raise StructureError(
            f"{linear!r}: expected a problem made by proximal(loss, strength) with one strength for every "
            f"parameter, got {got}. Hint: use CG() without a preconditioner, or Dense."
        )
    if uses_inverse(linear) and not problem.invertible:
        raise StructureError(
            f"{linear!r}: expected a problem whose inverse has a closed form, as a proximal one of a squared "
            "loss that adapts the head alone (imaml.LinearSquares) with one strength for each row, got "
            f"{problem.kind}. Hint: use CG()."
        )
