"""A linear model of a table as a mixed model: what varies, and what was learned, in the table's units."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...core import tree
from ...core.errors import StructureError
from ...core.tree import Tree
from ...meta.marginal import Fitted, fitted
from ...problems.base import Problem
from ...problems.precision import Theta
from ..user_data import Json

if TYPE_CHECKING:
    from .domain import Tables, TablesRecipe

INTERCEPT = "intercept"
NEAR = 0.02  # standard errors from the maximum, within which a fit counts as converged
SINGULAR = (
    1e-3  # of the noise's standard deviation, or of a correlation's distance from 1: no variance is left
)
VAGUE = (
    0.7  # relative standard error of a standard deviation between groups from which it is barely determined
)


@dataclass(frozen=True)
class PartlyVarying:
    """A linear model of which some coefficients vary between tasks, in leaves of their own.

    Args:
        names: All coefficients, intercept first.
        varying: Which of them vary, in their order.
        outputs: Outputs of a row.
        shifts: What is added to the inputs of the varying ones, so that without an intercept among them they
            vary about a column's own zero, not about its mean.
    """

    names: tuple[str, ...]
    varying: tuple[int, ...]
    outputs: int
    shifts: tuple[float, ...]

    @property
    def shared(self) -> tuple[int, ...]:
        """Which coefficients are the same for all tasks."""
        return tuple(i for i in range(len(self.names)) if i not in self.varying)

    @property
    def placement(self) -> np.ndarray:
        """The matrix from one output's flat parameters to coefficients, intercept first."""
        found = np.eye(len(self.names))[:, [*self.shared, *self.varying]]
        found[0, len(self.shared) :] += self.shifts
        return found

    def init(self, key: Array) -> Tree:
        """Return zeros: ``shared (m, outputs)`` and ``varying (r, outputs)``."""
        places = {"shared": self.shared, "varying": self.varying}
        return {name: jnp.zeros((len(at), self.outputs), jnp.float32) for name, at in places.items() if at}

    def forward(self, parameters: Tree, inputs: Array, statistics: Tree = None) -> tuple[Array, Tree]:
        """Return outputs ``(n, outputs)``, and ``statistics`` as they are."""
        design = jnp.concatenate([jnp.ones_like(inputs, shape=(*inputs.shape[:-1], 1)), inputs], -1)
        parts = jnp.concatenate([parameters[name] for name in ("shared", "varying") if name in parameters])
        return design @ (jnp.asarray(self.placement, inputs.dtype) @ parts), statistics


def varying_network(recipe: TablesRecipe) -> PartlyVarying:
    """Return the linear model of a table in which the recipe's `random` coefficients vary.

    Args:
        recipe: The recipe; without `random` all coefficients vary.

    Returns:
        The model.
    """
    layout, owners = recipe.fixed, [INTERCEPT]
    for column in layout.features:
        owners += [column.name] * column.width
    zero = [0.0] + [c.mean / c.scale for c in layout.features for _ in range(c.width)]  # 0 of categories
    varying = tuple(i for i, owner in enumerate(owners) if not recipe.random or owner in recipe.random)
    shifts = tuple(0.0 if varying[0] == 0 else zero[i] for i in varying)
    return PartlyVarying(layout.names, varying, layout.outputs, shifts)


class Prior(TypedDict):
    """A prior over a linear model's coefficients, in the units of the table.

    Attributes:
        mean: The mean of each coefficient by name, intercept first.
        varying: The names of those that vary between tasks.
        covariance: The covariance of these.
        noise_variance: The residual variance; None if none was learned.
    """

    mean: dict[str, float]
    varying: list[str]
    covariance: list[list[float]]
    noise_variance: float | None


class Fit(TypedDict):
    """A fit of a mixed model by maximum likelihood, in the units of the table.

    Attributes:
        standard_errors: Of the fixed effects, by name; None where the data do not determine one.
        standard_deviations: Of the random effects, by name.
        correlations: Of the random effects.
        log_likelihood: The logarithm of the likelihood.
        aic: Akaike's information criterion.
        parameters: How many numbers were learned.
        groups: The number of groups.
        rows: The number of rows.
        converged: Whether theta is the maximum.
        distance: From the maximum, in standard errors; None at a saddle.
        warnings: What is degenerate.
    """

    standard_errors: dict[str, float | None]
    standard_deviations: dict[str, float]
    correlations: list[list[float]]
    log_likelihood: float
    aic: float
    parameters: int
    groups: int
    rows: int
    converged: bool
    distance: float | None
    warnings: list[str]


def _units(recipe: TablesRecipe) -> tuple[np.ndarray, np.ndarray]:
    """The affine map from a model's flat parameters to coefficients in the table's units: matrix, offset."""
    layout, placement = recipe.fixed, recipe.network_placement
    size = len(layout.names)
    nothing = np.zeros((size, size))
    offset = layout.in_units(np.zeros(size), nothing)[0]
    linear = np.stack([layout.in_units(unit, nothing)[0] - offset for unit in np.eye(size)], 1)
    return linear @ placement, offset


def _adapted(problem: Problem, theta: Tree) -> np.ndarray:
    """Which of the flat parameters a task adapts, booleans."""
    mean = problem.mean(theta)
    flags = zip(jax.tree.leaves(problem.adapt.mask(mean)), jax.tree.leaves(mean), strict=True)
    return np.concatenate([np.full(np.size(leaf), flag) for flag, leaf in flags])


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
    own, precision = tree.ravel(adapted)[0], problem.precision(adapted, theta)
    covariance = jax.vmap(precision.inverse, in_axes=1, out_axes=1)(jnp.eye(own.size, dtype=own.dtype))
    linear, offset = _units(recipe)
    found = linear @ np.asarray(tree.ravel(problem.mean(theta))[0], np.float64) + offset
    along = linear[:, _adapted(problem, theta)]
    spread = along @ np.asarray(covariance, np.float64) @ along.T
    some = np.flatnonzero(np.abs(along).max(1) > 1e-9 * np.abs(along).max())
    noise = theta.log_noise if isinstance(theta, Theta) else None
    return {
        "mean": dict(zip(layout.names, found.tolist(), strict=True)),
        "varying": [layout.names[i] for i in some],
        "covariance": spread[np.ix_(some, some)].tolist(),
        "noise_variance": None if noise is None else math.exp(float(noise)) * layout.target.scale**2,
    }


def fit_of(domain: Tables, theta: Tree, problem: Problem, prior: Prior) -> Fit:
    """Return what the likelihood of the training tasks says of a linear model of numbers.

    Args:
        domain: The domain, with its rows.
        theta: The meta-parameters.
        problem: The inner problem, of a `likelihood`.
        prior: What `learned_prior` returned.

    Returns:
        The fit.
    """
    recipe, numbers = domain.recipe, np.asarray(domain.splits["train"])
    tasks = domain.rows_of_tasks(jnp.asarray(numbers))
    found = fitted(problem, theta, tasks)
    linear, _ = _units(recipe)
    variances = np.diag(linear @ found.covariance @ linear.T)
    known = ~np.any(np.abs(linear[1:, ~found.determined]) > 0, axis=1)
    known = [True, *known.tolist()]  # the intercept is that of what is determined
    rows = int(np.asarray(domain.counts)[numbers].sum())
    times = float(np.sum(np.asarray(tasks.weights, np.float64)))  # a row of weight 2 counts as two
    likelihood = found.log_likelihood - times * math.log(recipe.fixed.target.scale)
    spread = np.array(prior["covariance"])
    deviations = np.sqrt(np.diag(spread))
    return {
        "standard_errors": {
            name: math.sqrt(variance) if sure else None
            for name, variance, sure in zip(recipe.fixed.names, variances, known, strict=True)
        },
        "standard_deviations": dict(zip(prior["varying"], deviations.tolist(), strict=True)),
        "correlations": (spread / np.outer(deviations, deviations)).tolist(),
        "log_likelihood": likelihood,
        "aic": 2 * found.parameters - 2 * likelihood,
        "parameters": found.parameters,
        "groups": len(numbers),
        "rows": rows,
        "converged": found.distance < NEAR,
        "distance": found.distance if math.isfinite(found.distance) else None,
        "warnings": _warnings(domain, found, prior, len(numbers), rows, theta),
    }


def _warnings(domain: Tables, found: Fitted, prior: Prior, groups: int, rows: int, theta: Tree) -> list[str]:
    """What is degenerate about a fit, a sentence each."""
    layout, said = domain.recipe.fixed, []
    design = domain.design()
    constant = [
        name for name, column in zip(layout.names[1:], design[:, 1:].T, strict=True) if np.ptp(column) == 0
    ]
    said += [f"column {name!r} is constant, so that it has no coefficient" for name in constant]
    kept = design[:, [i for i, name in enumerate(layout.names) if name not in constant]]
    names = [name for name in layout.names if name not in constant]
    for i in range(1, len(names)):  # a column that earlier ones give
        rest = kept[:, i] - kept[:, :i] @ np.linalg.lstsq(kept[:, :i], kept[:, i], rcond=None)[0]
        if np.linalg.norm(rest) < 1e-5 * np.linalg.norm(kept[:, i]):
            said.append(
                f"column {names[i]!r} is a combination of the columns before it (collinear): their "
                "coefficients are not identifiable"
            )
    count = len(prior["varying"])
    if found.parameters >= rows:
        said.append(f"{found.parameters} numbers are learned from {rows} rows")
    if rows <= groups * count:
        said.append(
            f"{rows} rows do not exceed {groups} groups times {count} varying coefficients, so the noise "
            "and the variance between groups are not identifiable"
        )
    elif groups <= count * (count + 1) // 2:
        said.append(f"a covariance of {count * (count + 1) // 2} numbers is learned from {groups} groups")
    noise = (
        1.0
        if not isinstance(theta, Theta) or theta.log_noise is None
        else math.exp(float(theta.log_noise) / 2)
    )
    none = found.deviations < SINGULAR * noise
    if none.all():
        said.append("the variance between groups is zero (singular fit)")
    elif found.spread.min() < SINGULAR * noise:
        said.append(
            "the covariance between groups is singular: a variance is zero, or a correlation is 1 or -1"
        )
    vague = ~none & (found.deviation_errors > VAGUE * found.deviations)
    if vague.any() and found.distance < NEAR:
        said.append(
            "the data barely determine the variance between groups: its standard error is as large as "
            "itself, or nearly"
        )
    return said


def summary_of(domain: Tables, theta: Tree, problem: Problem) -> tuple[Json, str]:
    """Return what was learned of a linear model, as JSON fields and as text.

    Args:
        domain: The domain. With rows, and a likelihood, the summary has what that says of the training tasks.
        theta: The meta-parameters.
        problem: The inner problem.

    Returns:
        ``{"prior": ..., "fit": ...}`` and a few lines; both empty for models that are not linear.
    """
    prior, fit = learned_prior(domain.recipe, theta, problem), None
    if prior is None:
        return {}, ""
    if domain.inputs is not None and domain.recipe.holdout == "none":  # else theta is for rows held out
        with contextlib.suppress(StructureError):  # no likelihood, or too many numbers for a Hessian
            fit = fit_of(domain, theta, problem, prior)
    return {"prior": prior, **({"fit": fit} if fit else {})}, fit_text(prior, fit)


def fit_text(prior: Prior, fit: Fit | None) -> str:
    """Return the prior as text, and the fit with it.

    Args:
        prior: The prior.
        fit: What the likelihood says of it, or None where that is not known.

    Returns:
        A few lines. The last says whether the fit has converged.
    """
    width = max(len(name) for name in (*prior["mean"], "noise"))
    lines = ["learned from all tasks: the mean of each coefficient" + (", its standard error" if fit else "")]
    lines[0] += ", and its standard deviation from task to task"
    deviations = dict(zip(prior["varying"], np.sqrt(np.diag(prior["covariance"])), strict=True))
    for name, mean in prior["mean"].items():
        error = ""
        if fit is not None:
            known = fit["standard_errors"][name]
            error = "  (not determined)" if known is None else f"  ({known:.4g})"
        varies = f" +- {deviations[name]:.6g}" if name in deviations else "  the same for all tasks"
        lines.append(f"  {name:<{width}}  {mean:.6g}{error}{varies}")
    if prior["noise_variance"] is not None:
        lines.append(f"  {'noise':<{width}}  +- {math.sqrt(prior['noise_variance']):.6g} from row to row")
    if fit is None:
        return "\n".join(lines)
    names = prior["varying"]
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    lines += [
        f"  correlation of {names[j]} and {names[i]}: {fit['correlations'][i][j]:.3f}" for i, j in pairs[:10]
    ]
    facts = f"{fit['rows']} rows of {fit['groups']} groups, {fit['parameters']} parameters"
    lines.append(f"  log likelihood {fit['log_likelihood']:.4f}, AIC {fit['aic']:.4f} ({facts})")
    lines += [f"  warning: {one}" for one in fit["warnings"]]
    far = "a saddle" if fit["distance"] is None else f"{fit['distance']:.2g} standard errors from the maximum"
    lines.append(f"converged: {far}" if fit["converged"] else f"not converged: {far}. Hint: more --steps.")
    return "\n".join(lines)
