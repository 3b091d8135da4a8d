"""Methods that learn a prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..inner.base import InnerSolver
from ..linear.base import LinearSolver
from ..meta.gradient import MetaGradient
from ..problems.base import Problem
from ..problems.losses import joined
from .curvature import Quadrature
from .rules import Whole, averaged, evidence, moments


def EmpiricalBayes(
    problem: Problem,
    query_loss: Callable,
    *,
    inner: InnerSolver,
    linear: LinearSolver | None = None,
    determinant: Quadrature | None = None,
    curvature: str = "gauss-newton",
    whole: Whole = joined,
    correct: bool = False,
    accuracy: Any = None,
    **options: Any,
) -> MetaGradient:
    """Empirical Bayes: theta, mean, precision and noise, by the gradient of the tasks' evidence.

    problem: `proximal(likelihood(loss), strength)`, strength fixed or learned. inner: what finds the maximum
    a posteriori. The other arguments as for `evidence` and `IMAML`. `Metrics.loss` is a task's negative log
    evidence.

    >>> import imaml, jax.numpy as jnp
    >>> from imaml.domains.regression import LinearLoss, Points
    >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), 1.0)
    >>> method = EmpiricalBayes(problem, lambda phi, theta, batch: LinearLoss()(phi, batch),
    ...                         inner=imaml.GradientDescent(0.3, steps=60), linear=imaml.CG(steps=1))
    >>> rows = Points(jnp.ones((4, 1, 1)), jnp.ones((4, 1)))  # two of y = phi + noise
    >>> gradient, metrics = method(jnp.zeros(1), imaml.Task(rows, rows))
    >>> gradient.round(4)  # -2 / 3, as the mean of both is N(theta, 1 + 1/2)
    Array([-0.6667], dtype=float32)
    """
    rule = evidence(
        linear, determinant=determinant, curvature=curvature, whole=whole, correct=correct, accuracy=accuracy
    )
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)


def ExpectationMaximisation(
    problem: Problem,
    query_loss: Callable,
    *,
    inner: InnerSolver,
    form: str = "dense",
    curvature: str = "gauss-newton",
    rank: int = 20,
    whole: Whole = joined,
    **options: Any,
) -> MetaGradient:
    """Expectation-maximisation: each step's theta are the moments of the tasks' posteriors; see `moments`.

    For an outer optimiser that is plain SGD with a learning rate of 1, and all tasks in every step, or a
    smaller rate.

    >>> import imaml, jax.numpy as jnp
    >>> from imaml.domains.regression import LinearLoss, Points
    >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), imaml.learned(1.0, per="all"))
    >>> method = ExpectationMaximisation(problem, lambda phi, theta, batch: LinearLoss()(phi, batch),
    ...                                  inner=imaml.GradientDescent(0.3, steps=60))
    >>> rows = Points(jnp.ones((2, 1, 1)), jnp.array([[1.0], [-1.0]]))
    >>> step, _ = method(problem.parameters(jnp.zeros(1)), imaml.Task(rows, rows))
    >>> round(float(jnp.exp(step.log_strength)), 3)  # E phi^2 = (2/3)^2 + 1/3
    0.778
    """
    rule = moments(form, curvature=curvature, rank=rank, whole=whole)
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)


def IBaML(
    problem: Problem,
    query_loss: Callable,
    *,
    inner: InnerSolver,
    linear: LinearSolver | None = None,
    samples: int = 4,
    form: str = "dense",
    curvature: str = "gauss-newton",
    correct: bool = False,
    accuracy: Any = None,
    **options: Any,
) -> MetaGradient:
    """iBaML: theta by the validation loss averaged under each task's posterior; see `averaged`.

    problem: `proximal(likelihood(loss), strength)`, strength fixed or learned. The other arguments as for
    `averaged` and `IMAML`.
    """
    rule = averaged(
        linear, samples=samples, form=form, curvature=curvature, correct=correct, accuracy=accuracy
    )
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)
