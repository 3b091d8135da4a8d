"""Learning a Gaussian prior from tasks: its mean, its precision, and the noise (docs/bayes.md).

evidence   the gradient of the negative log evidence of all of a task's rows    empirical Bayes, (b)
moments    prior moments from posterior moments                                 expectation-maximisation, (c)
averaged   the validation loss averaged under the task's posterior              iBaML, (e)

(a), the validation loss at the maximum a posteriori, is `implicit`; (d), the regularised loss, is `envelope`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import StructureError
from ..core.fields import PositiveInt
from ..core.tree import Tree
from ..inner.base import InnerSolver
from ..meta.base import Learning, RuleBase, TaskGradient
from ..meta.implicit import ImplicitBase
from ..meta.system import outer_loss_of
from ..problems.base import Key, Problem, Task
from ..problems.likelihoods import likelihood_of, weights_of
from ..problems.losses import Join, joined
from ..problems.matrices import Precision
from ..problems.precision import Learned, Theta
from .curvature import (
    Curvature,
    LocalCurvature,
    Quadrature,
    curvature_at,
    determinant,
    map_rows,
)
from .laplace import Form, posterior_precision


@dataclass(frozen=True)
class ByEvidence(ImplicitBase):
    """The rule of empirical Bayes: the gradient of a task's negative log evidence by Laplace's method.

    ```
    -log p(rows | theta)  ~  objective(phi*, theta) + 1/2 log |P + H(phi*, theta)| - 1/2 log |P|
    ```

    The implicit rule differentiates it through phi*. The gradient of the objective is zero at phi*, so only
    that of the determinant passes through the linear system. The rule learns from all of a task's rows at
    once; the query loss is not used. It is exact for linear-Gaussian models.

    Args:
        linear: The linear solver.
        certify: See `implicit`.
        correct: See `implicit`.
        accuracy: See `implicit`.
        estimating: See `implicit`.
        determinant: None for an exact result, or a `Quadrature`.
        curvature: The curvature H; the linear system's is the problem's.
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.

    Raises:
        ConfigError: If an argument is not valid.

    References:
        MacKay (1992); Bishop (2006), equation 4.137; Immer et al. (2021), Scalable marginal likelihood
        estimation.
    """

    owner: ClassVar[str] = "evidence"
    marginal: ClassVar[bool] = True  # its loss is the likelihood of all rows, which Newton's method maximises

    determinant: Quadrature | None = None
    curvature: Curvature = "gauss-newton"
    whole: Join = joined

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the loss is a sum of negative log likelihoods, and what `implicit` checks."""
        likelihood_of(self.owner, problem)
        super().refuse(problem, inner)

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """Differentiate objective(phi*) + 1/2 log |P + H(phi*)| - 1/2 log |P|, which is the loss."""
        problem, batch = learning.problem, task.whole(self.whole)

        def surprise(phi: Tree, theta: Tree, batch: Tree) -> Array:
            adapted = problem.split(phi)
            raised = determinant(problem, adapted, theta, batch, self.determinant, self.curvature, key)
            return problem.objective(adapted, theta, batch) + 0.5 * raised.value  # type: ignore[operator]

        return self.under(outer_loss_of(surprise, theta, batch), learning, theta, batch, key)


@dataclass(frozen=True)
class Averaged(ImplicitBase):
    """The rule of iBaML: the gradient of the validation loss averaged under the task's posterior.

    ```
    E L(phi, query)        phi ~ N(phi*, (P + H)^-1), from the support rows
    ```

    The gradient passes through phi* by the implicit rule, and through the covariance directly. For Gaussian
    rows, L is the mean negative log likelihood of a query row, which includes the noise variance. Otherwise L
    is the query loss. The paper's posterior is a variational Gaussian; this one is Laplace's.

    Args:
        linear: The linear solver.
        certify: See `implicit`.
        correct: See `implicit`.
        accuracy: See `implicit`.
        estimating: See `implicit`.
        samples: Pairs phi* +- S z; a quadratic L has no noise from its linear part.
        form: Of the posterior: "dense", "rows" (the same, for many parameters and few rows; see `posterior`),
            or "diagonal", whose draws are nearly the prior's where a task has few rows. No derivative passes
            through "low-rank".
        curvature: The curvature H.

    Raises:
        ConfigError: If an argument is not valid.

    References:
        Zhang, Li, Gao, Giannakis (2023), Scalable Bayesian meta-learning through generalized implicit
        gradients.
    """

    owner: ClassVar[str] = "averaged"

    samples: PositiveInt = 4
    form: Literal["dense", "diagonal", "rows"] = "dense"
    curvature: Curvature = "gauss-newton"

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the loss is a sum of negative log likelihoods, and what `implicit` checks."""
        likelihood_of(self.owner, problem)
        super().refuse(problem, inner)

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """Differentiate the mean loss at phi* + S z and phi* - S z, where S S^T = (P + H)^-1."""
        problem, support = learning.problem, task.support
        score = likelihood_of("averaged", problem).score(learning.query_loss)
        key = jax.random.key(0) if key is None else key

        def under(phi: Tree, theta: Tree, query: Tree) -> Array:
            here = curvature_at("averaged", problem, problem.split(phi), theta, support, self.curvature)
            spread = posterior_precision(here, self.form)
            noise = jax.random.normal(key, (self.samples, here.point.size), here.point.dtype)

            def pair(eps: Array) -> Array:
                away = spread.unroot(eps)
                losses = [score(here.place(here.point + side * away), theta, query) for side in (1, -1)]
                return (losses[0] + losses[1]) / 2

            return jnp.mean(map_rows(pair, noise, here.point.size))

        outer = outer_loss_of(under, theta, task.query)
        return self.under(outer, learning, theta, support, key)


class Statistics(NamedTuple):
    """One task's contribution to the prior's moments.

    Attributes:
        share: 1.
        first: E phi - mean, ``(n,)``.
        second: E (phi - mean)(phi - mean)^T, ``(n, n)``, or its diagonal; None if the strength is fixed.
        noise: The expected sum of squared errors, and the number of its terms, ``(2,)``; None if noise is
            fixed.
    """

    share: Array
    first: Array
    second: Array | None
    noise: Array | None


@dataclass(frozen=True)
class ByMoments(RuleBase):
    """The rule of expectation-maximisation: prior moments from posterior moments, in closed form.

    ```
    mean' = E phi        P'^-1 = E (phi - mean')(phi - mean')^T        noise' = E |y - z(phi)|^2 / numbers
    ```

    E is over tasks and their posteriors, and P'^-1 is averaged over what is learned as one number. The result
    is theta - theta', in units of theta: plain SGD with a learning rate of 1 takes the step. It is the
    gradient of no loss; for linear-Gaussian models no step lowers the evidence of the tasks it is taken on.
    Precisions of low rank and shared parameters have no such step.

    Args:
        form: Of the posterior; see `posterior`.
        curvature: The curvature H.
        rank: The rank, for "low-rank".
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.

    Raises:
        ConfigError: If an argument is not valid.

    References:
        Dempster, Laird, Rubin (1977); Laird, Ware (1982), Random-effects models for longitudinal data.
    """

    owner: ClassVar[str] = "moments"

    form: Form = "dense"
    _: KW_ONLY
    curvature: Curvature = "gauss-newton"
    rank: PositiveInt = 20
    whole: Join = joined

    def refuse(self, problem: Problem, inner: InnerSolver) -> None:
        """Check that the problem has a step in closed form."""
        likelihood_of("moments", problem)
        super().refuse(problem, inner)
        per = None if problem.learns is None else problem.learns.per
        if per == "low-rank":
            raise StructureError(
                "moments: expected a precision learned per 'all', 'leaf', 'parameter' or 'dense', got "
                "'low-rank', which has no step in closed form. Hint: use evidence(...)."
            )
        if per == "dense" and self.form != "dense":
            raise StructureError(
                "moments: form: expected 'dense' for a dense precision, which needs full covariances, got "
                f"{self.form!r}. Hint: use form='dense', or a strength learned per 'parameter'."
            )
        if problem.adapt.choice is not None:
            raise StructureError(
                "moments: adapt: expected None, as every parameter must be a task's own, got some that are "
                "shared. Hint: adapt all, or use evidence(...)."
            )

    def task_gradient(self, learning: Learning, theta: Tree, task: Task, key: Key) -> TaskGradient:
        """Compute the posterior's moments about the prior's mean, whose mean over tasks `combine` takes."""
        problem, batch = learning.problem, task.whole(self.whole)
        phi, found = learning.solved(theta, batch, key)
        # Moments about the prior's mean: phi* - mean, and the posterior's covariance plus its outer product.
        here = curvature_at("moments", problem, found.value, theta, batch, self.curvature)
        spread = posterior_precision(here, self.form, self.rank, key)
        first = tree.ravel(problem.displacement(found.value, theta))[0]
        second = None
        if problem.learns is not None:
            full = problem.learns.per == "dense"
            around = spread.inverse(jnp.eye(first.size, dtype=first.dtype)) if full else spread.variances()
            second = around + (jnp.outer(first, first) if full else jnp.square(first))
        loss = learning.query_loss(phi, theta, task.asked)
        noise = self._noise(problem, phi, theta, batch, here, spread)
        statistics = Statistics(jnp.ones_like(first[0]), first, second, noise)
        return TaskGradient(statistics, loss, phi, found.stats.residual, found)

    def _noise(
        self,
        problem: Problem,
        phi: Tree,
        theta: Tree,
        batch: Tree,
        here: LocalCurvature,
        spread: Precision,
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

    def combine(self, problem: Problem, theta: Tree, flat: Array) -> Tree:
        """Theta less the maximiser of the expected log likelihood, from the mean `Statistics` of tasks.

        ```
        mean + E first        second - (E first)(E first)^T        sum of squares / numbers
        ```

        Plain SGD with an outer learning rate of 1 takes the step. A smaller rate goes a part of the way,
        geometrically in strengths and noise.

        Args:
            problem: The inner problem.
            theta: The meta-parameters.
            flat: The mean `Statistics` as a flat vector.

        Returns:
            A tree like theta; NaN if every task failed.
        """
        found = tree.ravel(self._like(problem, theta))[1](flat)
        adapted = problem.split(problem.mean(theta))
        moved = tree.ravel(adapted)[1](-found.first)
        if not isinstance(theta, Theta):
            return moved
        change = jax.tree.map(jnp.zeros_like, theta)._replace(mean=moved)
        # Where every task failed, second is NaN. The fits take the identity in its place, as factorisations
        # of NaN need not end, and the result is NaN again.
        some = found.share > 0
        less = lambda old, new: jnp.where(some, old - new, jnp.nan)  # noqa: E731
        if found.second is not None:
            own, valid = jnp.square(found.first), jnp.ones_like(found.first)
            if found.second.ndim == 2:
                own, valid = jnp.outer(found.first, found.first), jnp.eye(own.size, dtype=own.dtype)
            second = jnp.where(some, found.second - own, valid)
            fitted = problem.learns.fitted(second, adapted)  # type: ignore[union-attr]
            change = change._replace(log_strength=jax.tree.map(less, theta.log_strength, fitted))
        if found.noise is not None:
            variance = jnp.where(some, found.noise[0] / found.noise[1], 1)
            change = change._replace(log_noise=less(theta.log_noise, jnp.log(variance)))
        return change

    def _like(self, problem: Problem, theta: Tree) -> Statistics:
        """Statistics of the right shapes."""
        flat = tree.ravel(problem.split(problem.mean(theta)))[0]
        second = None
        if problem.learns is not None:
            full = problem.learns.per == "dense"
            second = jnp.zeros((flat.size, flat.size), flat.dtype) if full else flat
        learned = isinstance(getattr(problem.loss, "noise", None), Learned)
        return Statistics(flat[0], flat, second, jnp.zeros(2, flat.dtype) if learned else None)


evidence = ByEvidence
averaged = Averaged
moments = ByMoments
