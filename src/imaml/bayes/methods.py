"""Methods that learn a prior."""

from __future__ import annotations

from typing import Literal, Unpack

from ..inner.base import InnerSolver
from ..linear.base import LinearSolver
from ..meta.accuracy import Tightening
from ..meta.gradient import MetaGradient, Options
from ..meta.system import QueryLoss
from ..problems.base import Problem
from ..problems.losses import Join, joined
from .curvature import Curvature, Quadrature
from .laplace import Form
from .rules import averaged, evidence, moments


def EmpiricalBayes(
    problem: Problem,
    query_loss: QueryLoss,
    *,
    inner: InnerSolver,
    linear: LinearSolver | None = None,
    determinant: Quadrature | None = None,
    curvature: Curvature = "gauss-newton",
    whole: Join = joined,
    correct: bool = False,
    accuracy: float | Tightening | None = None,
    **options: Unpack[Options],
) -> MetaGradient:
    """Empirical Bayes: learns the mean, precision and noise by the gradient of the tasks' evidence.

    All of a task's rows count: pass them as ``Task(rows)``, or split as ``Task(support, query)``. Both parts
    are joined. `Metrics.loss` is a task's negative log evidence.

    Args:
        problem: ``proximal(likelihood(loss), strength)``, the strength fixed or learned.
        query_loss: The query loss, (phi, theta, batch) -> scalar, which is not used.
        inner: The inner solver, which finds the maximum a posteriori.
        linear: The linear solver.
        determinant: None for an exact result, or a `Quadrature`.
        curvature: The curvature of the likelihood; see `evidence`.
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.
        correct: Whether one more Newton step is taken; see `imaml.implicit`.
        accuracy: The requested relative error; see `imaml.implicit`.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Raises:
        StructureError: If the problem's loss is not a sum of negative log likelihoods.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> from imaml.domains.regression import LinearLoss, Points
        >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), 1.0)
        >>> method = EmpiricalBayes(problem, lambda phi, theta, batch: LinearLoss()(phi, batch),
        ...                         inner=imaml.GradientDescent(0.3, steps=60), linear=imaml.CG(steps=1))
        >>> rows = Points(jnp.ones((4, 1, 1)), jnp.ones((4, 1)))  # one of y = phi + noise
        >>> gradient, metrics = method(jnp.zeros(1), imaml.Task(rows))
        >>> gradient.round(4)  # -1 / 2, as y is N(theta, 1 + 1)
        Array([-0.5], dtype=float32)

    References:
        MacKay (1992); Immer et al. (2021).
    """
    rule = evidence(
        linear, determinant=determinant, curvature=curvature, whole=whole, correct=correct, accuracy=accuracy
    )
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)


def ExpectationMaximisation(
    problem: Problem,
    query_loss: QueryLoss,
    *,
    inner: InnerSolver,
    form: Form = "dense",
    curvature: Curvature = "gauss-newton",
    rank: int = 20,
    whole: Join = joined,
    **options: Unpack[Options],
) -> MetaGradient:
    """Expectation-maximisation: each step sets theta to the moments of the tasks' posteriors; see `moments`.

    The outer optimiser is plain SGD with a learning rate of 1 and all tasks in every step, or with a smaller
    rate.

    Args:
        problem: ``proximal(likelihood(loss), strength)``, the strength fixed or learned.
        query_loss: The query loss, (phi, theta, batch) -> scalar, which is only measured.
        inner: The inner solver, which finds the maximum a posteriori.
        form: The posterior's form; see `posterior`.
        curvature: The curvature of the likelihood.
        rank: The rank, for "low-rank".
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Raises:
        StructureError: If the problem has no step in closed form.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> from imaml.domains.regression import LinearLoss, Points
        >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), imaml.learned(1.0, per="all"))
        >>> method = ExpectationMaximisation(problem, lambda phi, theta, batch: LinearLoss()(phi, batch),
        ...                                  inner=imaml.GradientDescent(0.3, steps=60))
        >>> rows = Points(jnp.ones((2, 1, 1)), jnp.array([[1.0], [-1.0]]))
        >>> step, _ = method(problem.parameters(jnp.zeros(1)), imaml.Task(rows))
        >>> round(float(jnp.exp(step.log_strength)), 3)  # E phi^2 = (1/2)^2 + 1/2
        0.75

    References:
        Dempster, Laird, Rubin (1977).
    """
    rule = moments(form, curvature=curvature, rank=rank, whole=whole)
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)


def IBaML(
    problem: Problem,
    query_loss: QueryLoss,
    *,
    inner: InnerSolver,
    linear: LinearSolver | None = None,
    samples: int = 4,
    form: Literal["dense", "diagonal", "rows"] = "dense",
    curvature: Curvature = "gauss-newton",
    correct: bool = False,
    accuracy: float | Tightening | None = None,
    **options: Unpack[Options],
) -> MetaGradient:
    """iBaML: learns theta by the validation loss, averaged over each task's posterior; see `averaged`.

    Args:
        problem: ``proximal(likelihood(loss), strength)``, the strength fixed or learned.
        query_loss: The query loss, (phi, theta, batch) -> scalar, for categorical rows.
        inner: The inner solver, which finds the maximum a posteriori.
        linear: The linear solver.
        samples: Pairs of draws from the posterior.
        form: The posterior's form: "dense", "rows" or "diagonal".
        curvature: The curvature of the likelihood.
        correct: Whether one more Newton step is taken; see `imaml.implicit`.
        accuracy: The requested relative error; see `imaml.implicit`.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Raises:
        StructureError: If the problem's loss is not a sum of negative log likelihoods.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> from imaml.domains.regression import LinearLoss, Points
        >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), 1.0)
        >>> method = IBaML(problem, lambda phi, theta, batch: LinearLoss()(phi, batch),
        ...                inner=imaml.GradientDescent(0.3, steps=60), linear=imaml.CG(steps=1))
        >>> rows = Points(jnp.ones((4, 1, 1)), jnp.ones((4, 1)))
        >>> method(jnp.zeros(1), imaml.Task(rows, rows))[0].shape
        (1,)

    References:
        Zhang, Li, Gao, Giannakis (2023).
    """
    rule = averaged(
        linear, samples=samples, form=form, curvature=curvature, correct=correct, accuracy=accuracy
    )
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)
