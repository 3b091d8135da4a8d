"""A learned prior over a table's coefficients, in the table's own units."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

import jax
import jax.numpy as jnp

from ...core import tree
from ...core.tree import Tree
from ...problems.base import Problem
from ...problems.precision import Theta

if TYPE_CHECKING:
    from .domain import TablesRecipe


class Prior(TypedDict):
    """A prior over a linear model's coefficients, in the units of the table.

    Attributes:
        mean: The mean of each coefficient by name, intercept first.
        covariance: Their covariance.
        noise_variance: The residual variance; None if none was learned.
    """

    mean: dict[str, float]
    covariance: list[list[float]]
    noise_variance: float | None


def learned_prior(recipe: TablesRecipe, theta: Tree, problem: Problem) -> Prior | None:
    """Return the learned prior of a linear model's coefficients, in the units of the table.

    With `tables-evidence` these are the fixed effects, the random effects' covariance, and the residual
    variance of a linear mixed model.

    Args:
        recipe: The recipe of the table.
        theta: The meta-parameters.
        problem: The inner problem.

    Returns:
        The prior; None for a model that is not linear or predicts classes.
    """
    layout = recipe.fixed
    if recipe.hidden or layout.target.levels is not None or problem.kind != "proximal":
        return None
    theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), theta)
    adapted = problem.split(problem.mean(theta))
    mean, _ = tree.ravel(adapted)
    precision = problem.precision(adapted, theta)
    covariance = jax.vmap(precision.inverse, in_axes=1, out_axes=1)(jnp.eye(mean.size, dtype=mean.dtype))
    found, spread = layout.in_units(mean, covariance)
    noise = theta.log_noise if isinstance(theta, Theta) else None
    return {
        "mean": dict(zip(layout.names, found.tolist(), strict=True)),
        "covariance": spread.tolist(),
        "noise_variance": None if noise is None else math.exp(float(noise)) * layout.target.scale**2,
    }


def prior_text(prior: Prior) -> str:
    """Return the prior as text: each coefficient's mean and standard deviation over tasks, and the noise.

    Args:
        prior: The prior.

    Returns:
        A few lines.
    """
    width = max(len(name) for name in (*prior["mean"], "noise"))
    lines = ["what is learned of all tasks: mean, and standard deviation from task to task"]
    for place, (name, mean) in enumerate(prior["mean"].items()):
        lines.append(f"  {name:<{width}}  {mean:.6g} +- {math.sqrt(prior['covariance'][place][place]):.6g}")
    if prior["noise_variance"] is not None:
        lines.append(f"  {'noise':<{width}}  +- {math.sqrt(prior['noise_variance']):.6g} from row to row")
    return "\n".join(lines)
