"""The posterior of a task's parameters: Laplace's Gaussian at the maximum a posteriori.

    phi | rows  ~  N(phi*, (P + H)^-1)          H the curvature of the likelihood, a sum over rows, at phi*

Predictions for new rows use the network linearised at phi* (MacKay 1992; Immer, Korzepa, Bauer 2021). For
linear-Gaussian models nothing is approximate. `likelihoods` says which fields a batch needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError
from ..core.tree import Selection, Tree
from ..core.validation import require_one_of, require_whole
from ..linear.lanczos import eigenpairs, krylov
from ..problems.base import Key, Problem
from ..problems.likelihoods import (
    Categorical,
    Gaussian,
    NegativeLogLikelihood,
    by_row,
    likelihood,
    likelihood_of,
)
from ..problems.matrices import Factored, LowRank, Precision, Strengths, Updated
from ..problems.proximal import Adapt, proximal
from .curvature import LocalCurvature, Quadrature, Value, curvature_at, determinant, map_rows

Outputs = Callable[[Tree, Tree], Array]  # (phi, batch) -> (n, k)
Form = Literal["dense", "diagonal", "low-rank", "rows"]
FORMS = get_args(Form)


class Predicted(NamedTuple):
    """A network's outputs under a posterior.

    Attributes:
        mean: ``(n, k)``.
        covariance: Of each row's outputs, ``(n, k, k)``.
    """

    mean: Array
    covariance: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Laplace:
    """A task's posterior, a Gaussian; made by `posterior`. A pytree.

    Attributes:
        problem: The problem.
        theta: The meta-parameters.
        adapted: The adapted parameters at its mean.
        precision: P + H over n parameters, or as much of it as its form keeps.
        over: Which of the adapted parameters these parameters are.
    """

    problem: Problem
    theta: Tree
    adapted: Tree
    precision: Precision
    over: Selection = field(default=Selection(), metadata={"static": True})

    def _place(self) -> tuple[Array, Callable[[Array], Tree]]:
        """The mean as a flat vector, (n,), and how a vector becomes the full tree of parameters."""
        chosen, rest = self.over.split(self.adapted)
        point, unravel = tree.ravel(chosen)
        return point, lambda vector: self.problem.full(self.over.join(unravel(vector), rest), self.theta)

    def _linear(self, batch: Tree, outputs: Outputs | None) -> tuple[Array, Callable[[Array], Array], Array]:
        """The outputs for a batch, (rows, k), their derivative v -> J v, and the mean as a flat vector."""
        loss = likelihood_of("posterior", self.problem)
        point, place = self._place()
        outputs = loss.outputs if outputs is None else outputs
        value, along = jax.linearize(lambda vector: by_row(outputs(place(vector), batch)), point)
        return value, along, point

    def variances(self) -> Tree:
        """The variance of every parameter.

        Returns:
            A tree like the leaves that the posterior is over.
        """
        chosen = self.over.split(self.adapted)[0]
        return tree.ravel(chosen)[1](self.precision.variances())

    def covariance(self) -> Array:
        """The covariance matrix (P + H)^-1.

        Returns:
            ``(n, n)``.
        """
        point = self._place()[0]
        roots = jax.vmap(self.precision.unroot_transposed)(jnp.eye(point.size, dtype=point.dtype))
        return roots @ roots.T

    def sample(self, key: Array, count: int) -> Tree:
        """Draws parameters.

        Args:
            key: A random key.
            count: How many draws.

        Returns:
            Full trees of parameters with a leading axis of `count`.
        """
        point, place = self._place()
        noise = jax.random.normal(key, (count, point.size), point.dtype)
        return jax.vmap(lambda eps: place(point + self.precision.unroot(eps)))(noise)

    def outputs(self, batch: Tree, outputs: Outputs | None = None) -> Predicted:
        """The outputs for a batch by the linearised network, without noise.

        Args:
            batch: The new rows.
            outputs: Another function (phi, batch) -> ``(n, k)`` of the same parameters; by default the loss's
                own.

        Returns:
            Their mean and covariance.
        """
        value, along, point = self._linear(batch, outputs)
        back = jax.linear_transpose(along, point)
        rows, columns = value.shape
        identity = jnp.eye(value.size, dtype=value.dtype).reshape(value.size, rows, columns)
        roots = map_rows(lambda e: self.precision.unroot_transposed(back(e)[0]), identity, point.size)
        roots = roots.reshape(rows, columns, point.size)
        return Predicted(value, jnp.einsum("rip,rjp->rij", roots, roots))

    @property
    def noise(self) -> Array | None:
        """The noise variance of Gaussian rows, a scalar; None of other rows."""
        loss = likelihood_of("posterior", self.problem)
        return jnp.asarray(loss.given(self.theta).variance) if isinstance(loss.likelihood, Gaussian) else None

    def predict(self, batch: Tree, outputs: Outputs | None = None) -> tuple[Array, Array]:
        """The distribution of new Gaussian rows.

        Args:
            batch: The new rows.
            outputs: Another function (phi, batch) -> ``(n, k)`` of the same parameters; by default the loss's
                own.

        Returns:
            Their mean, and their variance including noise, each shaped like the model's outputs, ``(n,)`` or
            ``(n, k)``.

        Raises:
            ConfigError: If rows are not Gaussian.
        """
        loss = self._of_kind("predict", Gaussian, "probabilities")
        found, (point, place) = self.outputs(batch, outputs), self._place()
        shape = jax.eval_shape(outputs or loss.outputs, place(point), batch).shape
        variance = jnp.diagonal(found.covariance, axis1=1, axis2=2) + loss.given(self.theta).variance
        return found.mean.reshape(shape), variance.reshape(shape)

    def probabilities(
        self, batch: Tree, *, samples: int | None = None, key: Key = None, outputs: Outputs | None = None
    ) -> Array:
        """The probabilities of new rows' classes.

        ```
        probit    softmax(z_c / sqrt(1 + pi v_c / 8))     v_c the variance of logit c
        sampled   the mean of softmax(z + J (phi - phi*)) over draws of phi
        ```

        The probit approximation neglects covariances between logits; for more than two classes it is one of
        several.

        Args:
            batch: The new rows.
            samples: None for the probit approximation, or how many draws.
            key: A random key for the draws; the default is ``jax.random.key(0)``.
            outputs: Another function (phi, batch) -> ``(n, k)`` of the same parameters; by default the loss's
                own.

        Returns:
            ``(n, ways)``.

        Raises:
            ConfigError: If rows are not categorical.

        References:
            MacKay (1992); Bishop (2006), equation 4.153.
        """
        self._of_kind("probabilities", Categorical, "predict")
        if samples is None:
            mean, covariance = self.outputs(batch, outputs)
            variance = jnp.diagonal(covariance, axis1=1, axis2=2)
            return jax.nn.softmax(mean / jnp.sqrt(1 + math.pi / 8 * variance))
        require_whole("probabilities", 1, samples=samples)
        value, along, point = self._linear(batch, outputs)
        key = jax.random.key(0) if key is None else key
        noise = jax.random.normal(key, (samples, point.size), point.dtype)
        draw = lambda eps: jax.nn.softmax(value + along(self.precision.unroot(eps)))  # noqa: E731
        return jnp.mean(map_rows(draw, noise, point.size), 0)

    def _of_kind(
        self, asked: str, kind: type[Gaussian] | type[Categorical], instead: str
    ) -> NegativeLogLikelihood:
        """The loss; ConfigError where rows are of another kind."""
        loss = likelihood_of("posterior", self.problem)
        if not isinstance(loss.likelihood, kind):
            raise ConfigError(
                f"{asked}: expected a posterior of {kind.kind} rows, got one of {loss.likelihood.kind} rows. "
                f"Hint: use {instead}."
            )
        return loss


def posterior_precision(here: LocalCurvature, form: str, rank: int = 20, key: Key = None) -> Precision:
    """The precision P + H in one of the forms; see `posterior`.

    Args:
        here: The likelihood at the maximum a posteriori.
        form: The form.
        rank: The rank, for "low-rank".
        key: A random key for Lanczos' start; the default is ``jax.random.key(0)``.

    Returns:
        The precision.

    Raises:
        ConfigError: If the form is unknown, or does not fit the prior or the curvature.
    """
    require_one_of("posterior", "form", form, FORMS)
    if form == "dense":
        return Factored(jnp.linalg.cholesky(here.precision.matrix() + here.matrix()))
    if form in ("diagonal", "rows"):
        if not (isinstance(here.precision, Strengths) and here.gauss_newton):
            raise ConfigError(
                f"posterior: form={form!r}: expected a strength per 'all', 'leaf' or 'parameter' and "
                "curvature 'gauss-newton', got a prior whose precision is a matrix, or curvature='hessian'. "
                "Hint: use form='dense' or 'low-rank'."
            )
        if form == "rows":
            return LowRank(here.precision.flat, here.rows().T)
        flat = here.precision.flat + here.diagonal()
        return Strengths(flat, flat)
    # "low-rank": the Ritz pairs of K, the curvature in units of the prior's.
    require_whole("posterior", 1, rank=rank)
    key = jax.random.key(0) if key is None else key
    start = jax.random.normal(key, here.point.shape, here.point.dtype)
    within = here.whitened(start)  # its Krylov space has no direction that the data say nothing of
    start = jnp.where(jnp.any(within != 0), within, start)
    # Equal eigenvalues, as of balanced designs, are found as often as they occur: hence the second key.
    found = krylov(here.whitened, start, rank, jax.random.fold_in(key, 1))
    basis, diagonal, offdiagonal, taken = found
    values, vectors = eigenpairs(jnp.where(jnp.arange(diagonal.size) < taken, diagonal, 0), offdiagonal)
    return Updated(here.precision, basis.T @ vectors, values)


def posterior(
    problem: Problem,
    phi: Tree,
    theta: Tree,
    batch: Tree,
    *,
    form: str = "dense",
    over: Adapt = None,
    curvature: str = "gauss-newton",
    rank: int = 20,
    key: Key = None,
) -> Laplace:
    """A task's posterior at its maximum a posteriori phi.

    ```
    "dense"      P + H, by a matrix over the parameters
    "diagonal"   the diagonal of P + H                  for a diagonal P
    "low-rank"   R^T (I + sum_j k_j u_j u_j^T) R      R^T R = P; k, u by `rank` of Lanczos on R^-T H R^-1
    "rows"       P + J^T J, exactly, with J in full     for tasks of few rows; differentiable; P diagonal
    ```

    It is the posterior of the mode at phi, so it is misleading where several modes matter.

    Args:
        problem: ``proximal(likelihood(loss), strength)``.
        phi: The full tree at the inner solution.
        theta: The meta-parameters.
        batch: The rows that were learned from.
        form: The form, in the table above.
        over: Which of the adapted parameters it is over, such as "head" for a last-layer posterior, the
            others being known; None for all.
        curvature: As in `proximal`. The Hessian may be indefinite, and then draws are NaN.
        rank: For "low-rank", which is exact if it is at least the rank of H, at most rows times outputs.
        key: A random key for Lanczos' start; the default is ``jax.random.key(0)``.

    Returns:
        The posterior.

    Raises:
        StructureError: If the problem's loss is not a sum of negative log likelihoods.
        ConfigError: If an argument is not valid.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> from imaml.domains.regression import LinearLoss, Points
        >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), 1.0)
        >>> rows = Points(jnp.ones((3, 1)), 2 * jnp.ones(3))
        >>> found = imaml.posterior(problem, jnp.array([1.5]), jnp.zeros(1), rows)  # precision 1 + 3
        >>> [float(part[0]) for part in found.predict(Points(jnp.ones((1, 1)), jnp.zeros(1)))]
        [1.5, 1.25]

    References:
        MacKay (1992); Immer, Korzepa, Bauer (2021), Improving predictions of Bayesian neural nets via local
        linearization.
    """
    adapted, over = problem.split(phi), Selection.of(over)
    here = curvature_at("posterior", problem, adapted, theta, batch, curvature, over)
    return Laplace(problem, theta, adapted, posterior_precision(here, form, rank, key), over)


def summed(problem: Problem, theta: Tree, batch: Tree) -> tuple[Problem, Tree]:
    """The problem, and theta, with the loss as a sum of negative log likelihoods over the batch's rows.

    A problem whose loss is a *mean* over n rows of classes (it declares `averages = True`) has the same
    solution as that of the sum with n times its strength. That is the precision of the prior for so many
    rows.

    Args:
        problem: The problem.
        theta: The meta-parameters.
        batch: The rows, of which only shapes matter.

    Returns:
        The problem and theta.

    Raises:
        ConfigError: If there is no anchor, the strength is learned as a matrix, or rows are Gaussian with an
            unknown noise.

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> domain = imaml.characters()
        >>> support = jax.eval_shape(lambda: domain.sample(jax.random.key(0), "test").support)
        >>> summed(domain.problem(0.5), None, support)[0].strength  # five rows
        2.5
    """
    loss: Any = problem.loss
    if getattr(loss, "summed", False):
        return problem, theta
    rows_are = getattr(loss, "likelihood", None)
    averages = getattr(loss, "averages", None)
    if not problem.has_precision or not isinstance(rows_are, Categorical) or averages is None:
        raise ConfigError(
            f"posterior: expected proximal(loss, strength) of classes, got a {problem.kind} problem of "
            f"{getattr(rows_are, 'kind', 'undeclared')} rows. Hint: pass likelihood(loss), which has the "
            "noise variance of numbers (methods evidence, moments and posterior)."
        )
    # The posterior needs the sum over rows. With n rows, n (mean loss + strength/2 |phi - theta|^2)
    # is the sum plus n strength/2 |phi - theta|^2, and both have the same minimiser.
    rows = batch.labels.shape[0] if averages else 1
    strength: Tree = problem.learns
    if problem.learns is None:
        strength = jax.tree.map(lambda value: rows * value, problem.strength)
    elif problem.diagonal:  # log(n strength) = log n + log strength
        theta = theta._replace(
            log_strength=jax.tree.map(lambda log: log + math.log(rows), theta.log_strength)
        )
    else:
        raise ConfigError(
            "posterior: expected a strength learned per 'all', 'leaf' or 'parameter' with a mean loss, got "
            f"per={problem.learns.per!r}. Hint: use a method whose loss is a sum (evidence, moments)."
        )
    made = proximal(
        likelihood(loss), strength, problem.adapt, curvature=problem.curvature, convex=problem.convex
    )
    return made, theta


def log_evidence(
    problem: Problem,
    phi: Tree,
    theta: Tree,
    batch: Tree,
    *,
    determinant_by: Quadrature | None = None,
    curvature: str = "gauss-newton",
    key: Key = None,
) -> Value:
    """The logarithm of a task's evidence by Laplace's method.

    ```
    log p(rows | theta)  ~  -objective(phi*, theta) - 1/2 (log |P + H| - log |P|)
    ```

    It is exact for linear-Gaussian models.

    Args:
        problem: ``proximal(likelihood(loss), strength)``.
        phi: The full tree at the inner solution.
        theta: The meta-parameters.
        batch: The rows.
        determinant_by: None for an exact result, or a `Quadrature`.
        curvature: "gauss-newton" or "hessian".
        key: A random key for the quadrature's probes; the default is ``jax.random.key(0)``.

    Returns:
        The value and its standard error.

    Raises:
        StructureError: If the problem's loss is not a sum of negative log likelihoods.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> from imaml.domains.regression import LinearLoss, Points
        >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), 1.0)
        >>> rows = Points(jnp.ones((1, 1)), jnp.zeros(1))  # y = phi + noise ~ N(0, 2): -1/2 log (4 pi)
        >>> round(float(imaml.log_evidence(problem, jnp.zeros(1), jnp.zeros(1), rows).value), 4)
        -1.2655

    References:
        MacKay (1992); Bishop (2006), equation 4.137.
    """
    adapted = problem.split(phi)
    likelihood_of("log_evidence", problem)
    raised = determinant(problem, adapted, theta, batch, determinant_by, curvature, key)
    misfit: Any = problem.objective(adapted, theta, batch)
    return Value(-misfit - 0.5 * raised.value, 0.5 * raised.error)
