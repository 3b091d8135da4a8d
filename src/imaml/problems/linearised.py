"""The linear system that a problem makes at its solution."""

from __future__ import annotations

from jax import lax

from ..core.errors import StructureError
from ..core.solution import Solution
from ..core.tree import Tree
from ..linear.base import LinearSolver, Matvec, refuse_structure, uses_anchor
from .base import Problem


def anchor_of(problem: Problem, adapted: Tree, theta: Tree) -> Tree:
    """Return the diagonal that the anchor adds to the loss's curvature, without a derivative.

    Args:
        problem: The problem.
        adapted: The adapted parameters.
        theta: The meta-parameters.

    Returns:
        A tree like `adapted`; None if the problem has no such diagonal.
    """
    return lax.stop_gradient(problem.anchor_diagonal(adapted, theta))


def solve_anchored(
    linear: LinearSolver, product: Matvec, right: Tree, structure: str, anchor: Tree
) -> Solution:
    """Solve a linear system, and tells the solver of the anchor where it uses one.

    Args:
        linear: The linear solver.
        product: v -> A v.
        right: The right-hand side.
        structure: The structure of A.
        anchor: The diagonal added to the curvature, or None.

    Returns:
        The Solution, shaped like `right`.
    """
    given = {"anchor": anchor} if uses_anchor(linear) else {}
    return linear(product, right, structure=structure, **given)


def solve_linear(linear: LinearSolver, product: Matvec, right: Tree, structure: str, anchor: Tree) -> Tree:
    """Solve a linear system; derivatives go through the system itself, not through the solver's steps.

    Args:
        linear: The linear solver.
        product: v -> A v, a linear function that JAX can transpose.
        right: The right-hand side.
        structure: The structure of A.
        anchor: The diagonal added to the curvature, or None.

    Returns:
        The solution, shaped like `right`.
    """

    def solve(matvec: Matvec, b: Tree) -> Tree:
        return solve_anchored(linear, matvec, b, structure, anchor).value

    symmetric = structure != "general"
    transposed = None if symmetric else solve
    return lax.custom_linear_solve(product, right, solve, transposed, symmetric=symmetric)


def refuse_system(linear: LinearSolver, problem: Problem) -> None:
    """Check that a linear solver accepts a problem's systems.

    Args:
        linear: The linear solver.
        problem: The problem.

    Raises:
        StructureError: If the solver does not accept their structure, or needs strengths that they lack.
    """
    refuse_structure(linear, problem.structure)
    if uses_anchor(linear) and not problem.diagonal:
        got = f"a matrix, learned per={problem.learns.per!r}" if problem.learns else problem.kind
        raise StructureError(
            f"{linear!r}: expected a problem made by proximal(loss, strength) with one strength for every "
            f"parameter, got {got}. Hint: use CG() without a preconditioner, or Dense."
        )
