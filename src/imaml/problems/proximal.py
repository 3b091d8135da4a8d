"""Problems of a loss: with a quadratic anchor, without one, and of a field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from ..core import tree
from ..core.errors import ConfigError
from ..core.tree import Selection
from ..core.validation import require_function, require_one_of, require_scalar
from .base import CURVATURES, Loss, Problem, check_lipschitz, guarded
from .losses import HalfSquares, composed, gauss_newton_slope
from .precision import Learned


def least_squares(residuals: Callable[[Any, Any], Any], strength: Any, adapt: Any = None) -> Problem:
    """The problem min_phi 1/2 |residuals(phi, batch)|^2 + strength/2 |phi - theta|^2.

    Its curvature is Gauss-Newton's. residuals: (phi, batch) -> any tree; for a mean over n rows divide by
    sqrt(n). `LevenbergMarquardt` needs such a problem. The other arguments as for `proximal`.

    >>> import imaml, jax.numpy as jnp
    >>> problem = least_squares(lambda phi, x: phi - x, 1.0)
    >>> problem.residual(jnp.ones(2), jnp.zeros(2), jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """
    return proximal(composed(residuals, HalfSquares()), strength, adapt, curvature="gauss-newton")


def _check_positive(strength: Any) -> None:
    """Refuses strengths that are concrete and not positive and finite."""
    if not jax.tree.leaves(strength):
        raise ConfigError(
            f"strength: {strength!r}; accepted are a positive number, a tree of them, or learned(...)."
        )
    for leaf in jax.tree.leaves(strength):
        if isinstance(leaf, Tracer):
            continue
        try:
            values = np.asarray(leaf, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"strength: {leaf!r} is no number.") from error
        if not np.all(np.isfinite(values) & (values > 0)):
            raise ConfigError(
                f"strength: {leaf!r}; accepted are positive finite numbers. (Without an anchor there is no "
                "implicit gradient: for that, use plain(loss) with unrolled() or first_order().)"
            )


def proximal(
    loss: Loss,
    strength: Any,
    adapt: Any = None,
    *,
    curvature: str = "hessian",
    convex: bool = False,
    lipschitz: float | Callable[[Any], Any] | None = None,
) -> Problem:
    """The paper's inner problem: minimise loss(phi, batch) + strength/2 |phi - theta|^2 over phi (eq. 3).

    loss: (phi, batch) -> scalar; phi the full tree, batch any tree. strength: a positive number, a tree with
    one number a leaf or one a parameter, or `learned(...)`, which may be a matrix; for a mean loss over n
    rows the Gaussian prior's precision is n times it (see `likelihood`). adapt: which leaves a task adapts (a
    name, names, a mask, or a function theta -> mask); the others are shared, stay at theta, and get their
    exact gradient through F.
    Declared "spd": true where the loss's curvature exceeds -strength at the solution; solvers say when not.
    curvature: "hessian", or "gauss-newton" for a loss made by `composed`: A is then J^T H J + strength, never
    indefinite, and the implicit gradient is that of the problem with its outputs linearised at phi, which is
    another one unless the outputs fit or are linear. convex: whether the loss is convex in phi, which a
    certificate may then rely on. lipschitz: a Lipschitz constant of the loss's Hessian in the adapted leaves
    (in the spectral norm), a number or a function support -> number, which a certificate may then rely on
    instead of sampling: of logistic regression mean(|x|^3) / (6 sqrt(3)).

    >>> import jax.numpy as jnp
    >>> problem = proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
    >>> problem.residual(jnp.ones(2), jnp.zeros(2), jnp.ones(2))
    Array([1., 1.], dtype=float32)
    """
    require_function("loss", loss)
    learns = strength if isinstance(strength, Learned) else None
    if learns is None:
        _check_positive(strength)
    require_one_of("proximal", "curvature", curvature, CURVATURES)
    check_lipschitz("proximal", lipschitz)
    if curvature == "gauss-newton" and not (hasattr(loss, "outputs") and hasattr(loss, "cost")):
        raise ConfigError(
            "proximal: Gauss-Newton curvature needs to know what the loss is a cost of; pass a loss made by "
            "composed(outputs, cost), or curvature='hessian'."
        )

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        full, fit = lambda p: problem.full(p, theta), problem.loss_at(theta)
        if curvature == "gauss-newton":
            slope = gauss_newton_slope(fit, phi, full, batch)
        else:
            slope = jax.grad(lambda p: require_scalar("loss", fit(full(p), batch)))(phi)
        pulled = problem.precision(phi, theta).pull(problem.displacement(phi, theta))
        return jax.tree.map(jnp.add, slope, pulled)

    def objective(problem: Problem, phi: Any, theta: Any, batch: Any) -> Array:
        apart = problem.displacement(phi, theta)
        anchored = tree.dot(apart, problem.precision(phi, theta).pull(apart))
        return problem.loss_at(theta)(problem.full(phi, theta), batch) + 0.5 * anchored

    fixed = None if learns else strength
    return Problem(
        fixed,
        "proximal",
        "spd",
        residual,
        objective,
        adapt=Selection.of(adapt),
        learns=learns,
        loss=loss,
        convex=convex,
        curvature=curvature,
        lipschitz=lipschitz,
    )


def plain(loss: Loss, adapt: Any = None) -> Problem:
    """The inner problem without an anchor: minimise loss(phi, batch) from theta on, for MAML and its kin.

    Its solution depends on theta only through the path taken, so the implicit rule refuses it; use
    `unrolled()` or `first_order()`. loss and adapt as in `proximal`.
    """
    require_function("loss", loss)

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        return jax.grad(lambda p: require_scalar("loss", loss(problem.full(p, theta), batch)))(phi)

    def objective(problem: Problem, phi: Any, theta: Any, batch: Any) -> Array:
        return loss(problem.full(phi, theta), batch)

    return Problem(None, "plain", "symmetric", residual, objective, adapt=Selection.of(adapt), loss=loss)


def equilibrium(field: Callable, strength: Any, adapt: Any = None) -> Problem:
    """The anchored problem field(phi, batch) + strength (phi - theta) = 0; "general".

    For what learns by no gradient of one loss: temporal differences, the players of a game, each near what
    they start from. field: (phi, batch) -> a tree like phi, the full tree; what a solver goes against, of a
    loss to be minimised its gradient. strength, adapt: as in `proximal`, but fixed; None for no anchor, which
    is `plain` then, started at theta. Its solution is stable where the field's derivative has no eigenvalue
    whose real part is -strength or less.

    >>> import imaml, jax.numpy as jnp
    >>> turning = lambda phi, batch: jnp.array([phi[1], -phi[0]])  # a game without an equilibrium but at 0
    >>> problem = equilibrium(turning, 1.0)
    >>> theta, inner = jnp.array([1.0, 1.0]), imaml.GradientDescent(0.5, tolerance=1e-6)
    >>> imaml.solve(problem, theta, None, inner=inner, rule=imaml.implicit(imaml.Dense())).round(3)
    Array([0., 1.], dtype=float32)
    """
    require_function("field", field)
    if isinstance(strength, Learned):
        raise ConfigError(
            f"equilibrium: strength={strength!r}; accepted is a positive number, a tree of them, or None."
        )
    if strength is not None:
        _check_positive(strength)

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        full = problem.full(phi, theta)
        slope = problem.split(guarded("equilibrium", None, lambda: field(full, batch), full))
        if problem.strength is None:
            return slope
        pulled = problem.precision(phi, theta).pull(problem.displacement(phi, theta))
        return jax.tree.map(jnp.add, slope, pulled)

    kind = "plain" if strength is None else "equilibrium"
    return Problem(strength, kind, "general", residual, adapt=Selection.of(adapt), loss=field)
