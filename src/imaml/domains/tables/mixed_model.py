"""A learned prior over a table's coefficients, in the table's own units."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core import tree
from ...core.tree import Tree
from ...problems.base import Problem
from ...problems.precision import Theta


def prior_of(learned: Any) -> dict[str, Any] | None:
    """Return what a run has learned of a linear model, in the units of the table; see `learned_prior`.

    Args:
        learned: What `imaml.load` returns.

    Returns:
        The prior, or None for a run on no table.
    """
    return learned_prior(learned.config.domain, learned.theta, learned.method.problem)


def learned_prior(recipe: Any, theta: Tree, problem: Problem) -> dict[str, Any] | None:
    """Return the learned prior of a linear model's coefficients, in the units of the table.

    With `tables-evidence` these are the fixed effects, the random effects' covariance, and the residual
    variance of a linear mixed model.

    Args:
        recipe: The recipe of the table.
        theta: The meta-parameters.
        problem: The inner problem.

    Returns:
        ``{"mean": {"intercept": m, ...}, "covariance": [[...]], "noise_variance": v}``, intercept first. The
        noise variance is None if none was learned. None for a model that is not linear or predicts classes.
    """
    if not recipe.reads_table or recipe.hidden or recipe.fixed.target.levels is not None:
        return None
    layout = recipe.fixed
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
    """Return the prior as text: each coefficient's mean and standard deviation over tasks, and the noise.

    Args:
        prior: What `learned_prior` returned.

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
