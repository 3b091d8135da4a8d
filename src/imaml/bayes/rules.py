"""Learning a Gaussian prior from tasks: its mean, its precision, and the noise (docs/bayes.md).

evidence   the gradient of the negative log evidence of all of a task's rows    empirical Bayes, (b)
moments    prior moments from posterior moments                                 expectation-maximisation, (c)
averaged   the validation loss averaged under the task's posterior              iBaML, (e)

(a), the validation loss at the maximum a posteriori, is `implicit`; (d), the mean of those, is `envelope`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.tree import PyTree
from ..core.validation import require_one_of, require_whole
from ..inner.base import InnerSolver
from ..linear.base import LinearSolver
from ..meta.base import Learning, TaskGradient, refuse_learned_rate
from ..meta.implicit import Implicit, implicit
from ..meta.system import judge_of
from ..problems.base import CURVATURES, Problem, Task
from ..problems.likelihoods import weights_of
from ..problems.losses import joined
from ..problems.precision import Learned, Precision, Theta
from .curvature import Curved, Quadrature, by_rows, curved, determinant, likelihood_of
from .laplace import FORMS, shaped

Whole = Callable[[PyTree, PyTree], PyTree]


@dataclass(frozen=True)
class ByEvidence:
    """The gradient of the negative log evidence; made by `evidence(linear)`."""

    implicit: Implicit
    determinant: Quadrature | None = None
    curvature: str = "gauss-newton"
    whole: Whole = joined
    needs_solution: ClassVar[bool] = True

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError where the loss is no sum of negative log likelihoods."""
        likelihood_of("evidence", problem)
        self.implicit.refuse(problem, inner)

    def at_step(self, step: Any, estimate: Any = True) -> ByEvidence:
        """The rule as it is at a step of outer learning (None: as it ends), estimating its error or not."""
        return replace(self, implicit=self.implicit.at_step(step, estimate))

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """d/dtheta of objective(phi*) + 1/2 log |P + H(phi*)| - 1/2 log |P|; its value is the loss."""
        problem, batch = learning.problem, self.whole(*task)

        def surprise(phi: PyTree, theta: PyTree, batch: PyTree) -> Array:
            adapted = problem.split(phi)
            raised = determinant(problem, adapted, theta, batch, self.determinant, self.curvature, key)
            misfit: Any = problem.objective(adapted, theta, batch)
            return misfit + 0.5 * raised.value

        return self.implicit.under(judge_of(surprise, theta, batch), learning, theta, batch, key)


@dataclass(frozen=True)
class Averaged:
    """The gradient of the validation loss under the posterior; made by `averaged(linear)`."""

    implicit: Implicit
    samples: int = 4
    form: str = "dense"
    curvature: str = "gauss-newton"
    needs_solution: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("averaged", 1, samples=self.samples)
        if self.form not in ("dense", "diagonal", "rows"):
            raise ConfigError(
                f"averaged: form={self.form!r}; accepted are 'dense', 'rows' and 'diagonal', through which a "
                "derivative can pass."
            )

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError where the loss is no sum of negative log likelihoods."""
        likelihood_of("averaged", problem)
        self.implicit.refuse(problem, inner)

    def at_step(self, step: Any, estimate: Any = True) -> Averaged:
        """The rule as it is at a step of outer learning (None: as it ends), estimating its error or not."""
        return replace(self, implicit=self.implicit.at_step(step, estimate))

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """d/dtheta of the mean of the validation loss at phi* + S z and phi* - S z, S S^T = (P + H)^-1."""
        problem, support = learning.problem, task.support
        score = likelihood_of("averaged", problem).score(learning.query_loss)
        key = jax.random.key(0) if key is None else key

        def under(phi: PyTree, theta: PyTree, query: PyTree) -> Array:
            here = curved("averaged", problem, problem.split(phi), theta, support, self.curvature)
            spread = shaped(here, self.form)
            noise = jax.random.normal(key, (self.samples, here.point.size), here.point.dtype)

            def pair(eps: Array) -> Array:
                away = spread.unroot(eps)
                losses = [score(here.place(here.point + side * away), theta, query) for side in (1, -1)]
                return (losses[0] + losses[1]) / 2

            return jnp.mean(by_rows(pair, noise, here.point.size))

        judge = judge_of(under, theta, task.query)
        return self.implicit.under(judge, learning, theta, support, key)


class Statistics(NamedTuple):
    """What one task tells of the prior, and what their mean over tasks is made of.

    share: 1. first: E phi - mean, (n,). second: E (phi - mean)(phi - mean)^T, (n, n), or its diagonal, or
    None where the strength is fixed. noise: the expected sum of squared errors, and how many numbers it is
    a sum of, (2,), or None.
    """

    share: Array
    first: Array
    second: Array | None
    noise: Array | None


@dataclass(frozen=True)
class ByMoments:
    """One step of expectation-maximisation; made by `moments()`."""

    form: str = "dense"
    curvature: str = "gauss-newton"
    rank: int = 20
    whole: Whole = joined
    needs_solution: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_one_of("moments", "form", self.form, FORMS)
        require_one_of("moments", "curvature", self.curvature, CURVATURES)
        require_whole("moments", 1, rank=self.rank)

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Raises StructureError for what has no step in closed form."""
        likelihood_of("moments", problem)
        refuse_learned_rate(inner, "moments()")
        per = None if problem.learns is None else problem.learns.per
        if per == "low-rank":
            raise StructureError(
                "moments() with a low-rank precision has no step in closed form; accepted is one learned per "
                "'all', 'leaf', 'parameter' or 'dense'. Use evidence(...)."
            )
        if per == "dense" and self.form != "dense":
            raise StructureError(
                f"moments(form={self.form!r}) with a dense precision, which takes whole covariances; "
                "accepted is form='dense', or a strength learned per 'parameter'."
            )
        if problem.adapt.choice is not None:
            raise StructureError(
                "moments() is of parameters that every task has of its own, and with adapt= some are shared; "
                "adapt all, or use evidence(...)."
            )

    def estimate(self, learning: Learning, theta: PyTree, task: Task, key: Array | None) -> TaskGradient:
        """The posterior's moments about the prior's mean, `Statistics`, whose mean `combine` takes."""
        problem, batch = learning.problem, self.whole(*task)
        phi, found = learning.solved(theta, batch, key)
        here = curved("moments", problem, found.value, theta, batch, self.curvature)
        spread = shaped(here, self.form, self.rank, key)
        first = tree.ravel(problem.displacement(found.value, theta))[0]
        second = None
        if problem.learns is not None:
            full = problem.learns.per == "dense"
            around = spread.inverse(jnp.eye(first.size, dtype=first.dtype)) if full else spread.variances()
            second = around + (first[:, None] * first[None, :] if full else jnp.square(first))
        loss = learning.query_loss(phi, theta, task.query)
        noise = self._noise(problem, phi, theta, batch, here, spread)
        statistics = Statistics(jnp.ones_like(first[0]), first, second, noise)
        return TaskGradient(statistics, loss, phi, found.stats.residual, found)

    def _noise(
        self, problem: Problem, phi: PyTree, theta: PyTree, batch: PyTree, here: Curved, spread: Precision
    ) -> Array | None:
        """The expected sum of squared errors under the posterior, outputs linearised, and its numbers."""
        loss = likelihood_of("moments", problem)
        if not isinstance(loss.noise, Learned):
            return None
        gaussian: Any = loss.likelihood
        errors = gaussian.errors(loss.outputs(phi, batch), batch)
        weights = weights_of(batch, errors.shape[0], errors.dtype)
        spreads = jax.vmap(spread.unroot_transposed)(here.rows())  # rows are sqrt(w / noise) J
        around = loss.given(theta).variance * jnp.sum(jnp.square(spreads))
        return jnp.stack([jnp.sum(weights[:, None] * errors) + around, errors.shape[1] * jnp.sum(weights)])

    def combine(self, problem: Problem, theta: PyTree, flat: Array) -> PyTree:
        """Theta less what maximises the expected log likelihood, from the mean `Statistics` of tasks.

        ```
        mean + E first        second - (E first)(E first)^T        sum of squares / numbers
        ```

        So plain SGD with an outer learning rate of 1 takes the step, and a smaller one goes a part of the
        way, geometrically in strengths and noise.
        """
        found = tree.ravel(self._like(problem, theta))[1](flat)
        adapted = problem.split(problem.mean(theta))
        moved = tree.ravel(adapted)[1](-found.first)
        if not isinstance(theta, Theta):
            return moved
        change = jax.tree.map(jnp.zeros_like, theta)._replace(mean=moved)
        # NaN where every task failed: the fits below take the identity in its place, as factorisations of NaN
        # need not end, and what comes out is NaN again.
        some = found.share > 0
        if found.second is not None:
            matrix = found.second.ndim == 2
            own = found.first[:, None] * found.first[None, :] if matrix else jnp.square(found.first)
            second = jnp.where(
                some, found.second - own, jnp.eye(own.shape[0], dtype=own.dtype) if matrix else 1
            )
            fitted = problem.learns.fitted(second, adapted)  # type: ignore[union-attr]
            away = jax.tree.map(
                lambda old, new: jnp.where(some, old - new, jnp.nan), theta.log_strength, fitted
            )
            change = change._replace(log_strength=away)
        if found.noise is not None:
            variance = jnp.where(some, found.noise[0] / found.noise[1], 1)
            change = change._replace(log_noise=jnp.where(some, theta.log_noise - jnp.log(variance), jnp.nan))
        return change

    def _like(self, problem: Problem, theta: PyTree) -> Statistics:
        """Statistics of the right shapes."""
        flat = tree.ravel(problem.split(problem.mean(theta)))[0]
        second = None
        if problem.learns is not None:
            full = problem.learns.per == "dense"
            second = jnp.zeros((flat.size, flat.size), flat.dtype) if full else flat
        learned = isinstance(getattr(problem.loss, "noise", None), Learned)
        return Statistics(flat[0], flat, second, jnp.zeros(2, flat.dtype) if learned else None)


def evidence(
    linear: LinearSolver | None = None,
    *,
    determinant: Quadrature | None = None,
    curvature: str = "gauss-newton",
    whole: Whole = joined,
    **options: Any,
) -> ByEvidence:
    """The rule of empirical Bayes: the gradient of a task's negative log evidence by Laplace's method.

    ```
    -log p(rows | theta)  ~  objective(phi*, theta) + 1/2 log |P + H(phi*, theta)| - 1/2 log |P|
    ```

    (MacKay 1992; Bishop 2006, equation 4.137; with Gauss-Newton curvature Immer et al. 2021), differentiated
    through phi* by the implicit rule: objective's own slope is zero at phi*, so what passes through the
    linear system is that of the determinant alone. Learns from all of a task's rows at once,
    whole(support, query); the query loss is not used. Exact for linear-Gaussian models. determinant: None for
    exactly, or a `Quadrature`. curvature: H; the linear system's is the problem's. linear and the other
    options: as of `implicit`.
    """
    require_one_of("evidence", "curvature", curvature, CURVATURES)
    return ByEvidence(implicit(linear, **options), determinant, curvature, whole)


def averaged(
    linear: LinearSolver | None = None,
    *,
    samples: int = 4,
    form: str = "dense",
    curvature: str = "gauss-newton",
    **options: Any,
) -> Averaged:
    """The rule of iBaML: the gradient of the validation loss averaged under the task's posterior.

    ```
    E L(phi, query)        phi ~ N(phi*, (P + H)^-1), from the support rows
    ```

    (Zhang, Li, Gao and Giannakis 2023, whose posterior is a variational Gaussian, here Laplace's), through
    phi* by the implicit rule and through the covariance directly. L is the mean negative log likelihood of a
    query row where rows are Gaussian, which the noise variance is then part of, else the query loss. samples:
    pairs phi* +- S z; a quadratic L has no noise from its linear part. form: of the posterior, "dense",
    "rows" (the same, for many parameters and few rows; see `posterior`), or "diagonal", whose draws are
    nearly the prior's where a task has few rows. linear and the other options: as of `implicit`.
    """
    require_one_of("averaged", "curvature", curvature, CURVATURES)
    return Averaged(implicit(linear, **options), samples, form, curvature)


def moments(
    form: str = "dense", *, curvature: str = "gauss-newton", rank: int = 20, whole: Whole = joined
) -> ByMoments:
    """The rule of expectation-maximisation: prior moments from posterior moments, in closed form.

    ```
    mean' = E phi        P'^-1 = E (phi - mean')(phi - mean')^T        noise' = E |y - z(phi)|^2 / numbers
    ```

    with E over tasks and their posteriors (Dempster, Laird and Rubin 1977; for linear mixed models Laird and
    Ware 1982), and P'^-1 averaged over what is learned as one number. What comes out is theta - theta', in
    units of theta: plain SGD with a learning rate of 1 takes the step. No loss's gradient; for
    linear-Gaussian models no step lowers the evidence of the tasks it is taken on. form, rank: of the
    posterior; see `posterior`. Not for precisions of low rank, nor where tasks share leaves.
    """
    return ByMoments(form, curvature, rank, whole)
