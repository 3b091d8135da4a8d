"""A learned prior over a table's coefficients, in the table's own units."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core import tree
from ...problems.precision import Theta
from .domain import TablesRecipe


def prior_of(learned: Any) -> dict[str, Any] | None:
    """What a run has learned of a linear model: mean by name, covariance, noise variance; None for others.

    {"mean": {"intercept": m, ...}, "covariance": [[...]], "noise_variance": v}, in the units of the table,
    intercept first: with `tables-evidence` the fixed effects, the random effects' covariance, and the
    residual variance of a linear mixed model. The noise variance is None where none was learned.
    """
    recipe, theta = learned.config.domain, learned.theta
    if not isinstance(recipe, TablesRecipe) or recipe.hidden or recipe.fixed.target.levels is not None:
        return None
    problem, layout = learned.method.problem, recipe.fixed
    if problem.kind != "proximal":
        return None
    theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), theta)
    adapted = problem.split(problem.mean(theta))
    mean, _ = tree.ravel(adapted)
    precision = problem.precision(adapted, theta)
    covariance = jax.vmap(precision.inverse, in_axes=1, out_axes=1)(jnp.eye(mean.size, dtype=mean.dtype))
    found, spread = layout.in_units(np.asarray(mean), np.asarray(covariance))
    assert spread is not None
    noise = theta.log_noise if isinstance(theta, Theta) else None
    return {
        "mean": dict(zip(layout.names, found.tolist(), strict=True)),
        "covariance": spread.tolist(),
        "noise_variance": None if noise is None else math.exp(float(noise)) * layout.target.scale**2,
    }


def prior_text(prior: dict[str, Any]) -> str:
    """The prior as a few lines: each coefficient's mean and standard deviation over tasks, and the noise."""
    width = max(len(name) for name in (*prior["mean"], "noise"))
    lines = ["what is learned of all tasks: mean, and standard deviation from task to task"]
    for place, (name, mean) in enumerate(prior["mean"].items()):
        lines.append(f"  {name:<{width}}  {mean:.6g} +- {math.sqrt(prior['covariance'][place][place]):.6g}")
    if prior["noise_variance"] is not None:
        lines.append(f"  {'noise':<{width}}  +- {math.sqrt(prior['noise_variance']):.6g} from row to row")
    return "\n".join(lines)
