"""The linear system that a problem makes at its solution."""

from __future__ import annotations

from typing import Any

from jax import lax

from ..core.errors import StructureError
from ..core.solution import Solution
from ..linear.base import LinearSolver, Matvec, refuse_structure, uses_anchor
from .base import Problem


def anchor_of(problem: Problem, adapted: Any, theta: Any) -> Any:
    """The diagonal that a problem adds to its loss's curvature, a tree like the adapted leaves; else None."""
    return lax.stop_gradient(problem.anchor_diagonal(adapted, theta))


def solve_anchored(
    linear: LinearSolver, product: Matvec, right: Any, structure: str, anchor: Any
) -> Solution:
    """A linear solver's Solution; it is told of the anchor where it uses one."""
    given = {"anchor": anchor} if uses_anchor(linear) else {}
    return linear(product, right, structure=structure, **given)


def refuse_system(linear: LinearSolver, problem: Problem) -> None:
    """Raises StructureError, with advice, where a linear solver is not made for a problem's systems."""
    refuse_structure(linear, problem.structure)
    if not uses_anchor(linear) or problem.diagonal:
        return
    if problem.learns is None:
        raise StructureError(
            f"{linear!r} needs the strengths of proximal(loss, strength); this problem is {problem.kind}. "
            "Use CG() without a preconditioner, GMRES or Dense."
        )
    raise StructureError(
        f"{linear!r} needs a strength for every parameter; this problem's is a matrix, learned "
        f"per={problem.learns.per!r}. Use CG() without a preconditioner, or Dense."
    )
