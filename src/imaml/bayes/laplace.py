"""What is known of a task's parameters after its rows: Laplace's Gaussian at the maximum a posteriori.

    phi | rows  ~  N(phi*, (P + H)^-1)          H the curvature of the likelihood, a sum over rows, at phi*

and what that says of new rows, through the network linearised at phi* (MacKay 1992; Immer, Korzepa and Bauer
2021 for the linearised predictive). For linear-Gaussian models nothing of it is an approximation. What a
batch has to have is told in `likelihoods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.errors import ConfigError
from ..core.tree import PyTree, Selection
from ..core.validation import require_one_of, require_whole
from ..linear.lanczos import eigenpairs, krylov
from ..problems.base import Problem
from ..problems.likelihoods import Categorical, Gaussian, NegativeLogLikelihood, by_row, likelihood
from ..problems.precision import Factored, LowRank, Precision, Raised, Strengths
from ..problems.proximal import proximal
from .curvature import Curved, Quadrature, by_rows, curved, determinant, likelihood_of

FORMS = ("dense", "diagonal", "low-rank", "rows")


class Predicted(NamedTuple):
    """What is expected of the network's outputs: mean (n, k), and their covariance row by row, (n, k, k)."""

    mean: Array
    covariance: Array


class Evidence(NamedTuple):
    """The logarithm of a task's evidence, a scalar, and the standard error of it, 0 where it is exact."""

    value: Array
    error: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Laplace:
    """A task's posterior, a Gaussian; made by `posterior`. A tree of arrays and a `Problem`.

    adapted: the adapted leaves at its mean. precision: P + H, or as much of it as its form keeps, over the n
    parameters that it is of; itself a `Precision`. over: which of the adapted leaves those are.
    """

    problem: Problem
    theta: PyTree
    adapted: PyTree
    precision: Precision
    over: Selection = field(default=Selection(), metadata={"static": True})

    def _place(self) -> tuple[Array, Callable[[Array], PyTree]]:
        """The mean as a flat vector, (n,), and how a vector becomes the full tree of parameters."""
        chosen, rest = self.over.split(self.adapted)
        point, unravel = tree.ravel(chosen)
        return point, lambda vector: self.problem.full(self.over.join(unravel(vector), rest), self.theta)

    def _linear(
        self, batch: PyTree, outputs: Callable | None
    ) -> tuple[Array, Callable[[Array], Array], Array]:
        """The outputs for a batch, (rows, k), their derivative v -> J v, and the mean as a flat vector."""
        loss = likelihood_of("posterior", self.problem)
        point, place = self._place()
        outputs = loss.outputs if outputs is None else outputs
        value, along = jax.linearize(lambda vector: by_row(outputs(place(vector), batch)), point)
        return value, along, point

    def variances(self) -> PyTree:
        """The variance of every parameter, a tree like the leaves that the posterior is over."""
        chosen = self.over.split(self.adapted)[0]
        return tree.ravel(chosen)[1](self.precision.variances())

    def covariance(self) -> Array:
        """(P + H)^-1 in full, (n, n)."""
        point = self._place()[0]
        roots = jax.vmap(self.precision.unroot_transposed)(jnp.eye(point.size, dtype=point.dtype))
        return roots @ roots.T

    def sample(self, key: Array, count: int) -> PyTree:
        """Draws, full trees of parameters with a leading axis of `count`."""
        point, place = self._place()
        noise = jax.random.normal(key, (count, point.size), point.dtype)
        return jax.vmap(lambda eps: place(point + self.precision.unroot(eps)))(noise)

    def outputs(self, batch: PyTree, outputs: Callable | None = None) -> Predicted:
        """The network's outputs for a batch, as the linearised network has them; without noise.

        outputs: another function (phi, batch) -> (n, k) of the same parameters, by default the loss's own.
        """
        value, along, point = self._linear(batch, outputs)
        back = jax.linear_transpose(along, point)
        rows, columns = value.shape
        identity = jnp.eye(value.size, dtype=value.dtype).reshape(value.size, rows, columns)
        roots = by_rows(lambda e: self.precision.unroot_transposed(back(e)[0]), identity, point.size)
        roots = roots.reshape(rows, columns, point.size)
        return Predicted(value, jnp.einsum("rip,rjp->rij", roots, roots))

    def predict(self, batch: PyTree, outputs: Callable | None = None) -> tuple[Array, Array]:
        """The mean of new Gaussian rows, and their variance, noise included, each (n, k)."""
        loss = self._of_kind("predict", Gaussian, "probabilities")
        found = self.outputs(batch, outputs)
        return found.mean, jnp.diagonal(found.covariance, axis1=1, axis2=2) + loss.given(self.theta).variance

    def probabilities(
        self,
        batch: PyTree,
        *,
        samples: int | None = None,
        key: Array | None = None,
        outputs: Callable | None = None,
    ) -> Array:
        """The probabilities of new rows' classes, (n, ways).

        ```
        probit    softmax(z_c / sqrt(1 + pi v_c / 8))     v_c the variance of logit c
        sampled   the mean of softmax(z + J (phi - phi*)) over draws of phi
        ```

        samples: None for the probit approximation (MacKay 1992; Bishop 2006, equation 4.153; for more than
        two classes it is one of several, and leaves out how logits covary), or how many draws.
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
        return jnp.mean(by_rows(draw, noise, point.size), 0)

    def _of_kind(self, asked: str, kind: type[Gaussian | Categorical], instead: str) -> NegativeLogLikelihood:
        loss = likelihood_of("posterior", self.problem)
        if not isinstance(loss.likelihood, kind):
            raise ConfigError(
                f"{asked}: expected a posterior of {kind.kind} rows, got one of {loss.likelihood.kind} rows. "
                f"Hint: use {instead}."
            )
        return loss


def shaped(here: Curved, form: str, rank: int = 20, key: Array | None = None) -> Precision:
    """P + H in one of the forms; see `posterior`."""
    require_one_of("posterior", "form", form, FORMS)
    if form == "dense":
        return Factored(jnp.linalg.cholesky(here.precision.matrix() + here.matrix()))
    if form == "diagonal":
        if not isinstance(here.precision, Strengths):
            raise ConfigError(
                "posterior: form='diagonal' with a prior whose precision is a matrix; accepted are 'dense' "
                "and 'low-rank', or a strength learned per 'all', 'leaf' or 'parameter'."
            )
        flat = here.precision.flat + here.diagonal()
        return Strengths(flat, flat)
    if form == "rows":
        if not (isinstance(here.precision, Strengths) and here.gauss_newton):
            raise ConfigError(
                "posterior: form='rows' with a prior whose precision is a matrix, or curvature='hessian'; "
                "accepted are a strength per 'all', 'leaf' or 'parameter' and 'gauss-newton'."
            )
        return LowRank(here.precision.flat, here.rows().T)
    require_whole("posterior", 1, rank=rank)
    key = jax.random.key(0) if key is None else key
    start = jax.random.normal(key, here.point.shape, here.point.dtype)
    within = here.whitened(start)  # its Krylov space has no direction that the data say nothing of
    start = jnp.where(jnp.any(within != 0), within, start)
    basis, diagonal, beside, taken = krylov(here.whitened, start, rank)
    values, turn = eigenpairs(jnp.where(jnp.arange(diagonal.size) < taken, diagonal, 0), beside)
    return Raised(here.precision, basis.T @ turn, values)


def posterior(
    problem: Problem,
    phi: PyTree,
    theta: PyTree,
    batch: PyTree,
    *,
    form: str = "dense",
    over: Any = None,
    curvature: str = "gauss-newton",
    rank: int = 20,
    key: Array | None = None,
) -> Laplace:
    """A task's posterior at its maximum a posteriori phi, a `Laplace`.

    ```
    "dense"      P + H, by a matrix over the parameters
    "diagonal"   the diagonal of P + H                  where P has none but that
    "low-rank"   R^T (I + sum_j k_j u_j u_j^T) R      R^T R = P; k, u by `rank` of Lanczos on R^-T H R^-1
    "rows"       P + J^T J, exactly, with J in full     for tasks of few rows; differentiable; P diagonal
    ```

    problem: `proximal(likelihood(loss), strength)`, else StructureError. phi: the full tree at the inner
    solution. batch: the rows that were learned from. over: None, or the adapted leaves that it is over
    ("head": a last-layer posterior), the others being known; in any form. curvature: as in `proximal`; the
    Hessian's may be indefinite, and then draws are NaN. rank: "low-rank" is exact where it is at least H's,
    at most the number of rows times outputs; else it leaves out of H what Lanczos does not see. key: where
    Lanczos starts.

    Not where the posterior has several modes that matter: it is of the one at phi.

    >>> import imaml, jax.numpy as jnp
    >>> from imaml.domains.regression import LinearLoss, Points
    >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), 1.0)
    >>> rows = Points(jnp.ones((3, 1)), 2 * jnp.ones(3))
    >>> found = imaml.posterior(problem, jnp.array([1.5]), jnp.zeros(1), rows)  # precision 1 + 3
    >>> [float(part[0, 0]) for part in found.predict(Points(jnp.ones((1, 1)), jnp.zeros(1)))]
    [1.5, 1.25]
    """
    adapted, over = problem.split(phi), Selection.of(over)
    here = curved("posterior", problem, adapted, theta, batch, curvature, over)
    return Laplace(problem, theta, adapted, shaped(here, form, rank, key), over)


def summed(problem: Problem, theta: PyTree, batch: PyTree) -> tuple[Problem, PyTree]:
    """The problem, and theta, with the loss as a sum of negative log likelihoods over the batch's rows.

    A problem whose loss is a *mean* over n rows of classes (it declares `averages = True`) has the same
    solution as that of the sum with n times its strength, which is the precision of the prior that it amounts
    to for so many rows. ConfigError where there is no anchor, a strength that is learned as a matrix, or a
    loss of Gaussian rows whose noise is not known.

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
            f"{getattr(rows_are, 'kind', 'undeclared')} rows. Hint: pass likelihood(loss), which knows the "
            "noise of numbers (methods evidence, moments and posterior)."
        )
    rows = batch.labels.shape[0] if averages else 1
    strength: PyTree = problem.learns
    if problem.learns is None:
        strength = jax.tree.map(lambda value: rows * value, problem.strength)
    elif problem.diagonal:
        theta = theta._replace(
            log_strength=jax.tree.map(lambda log: log + math.log(rows), theta.log_strength)
        )
    else:
        raise ConfigError(
            f"posterior: the strength is learned per={problem.learns.per!r}, a matrix, of a mean loss; "
            "accepted are 'all', 'leaf' and 'parameter', or a method whose loss is a sum (evidence, moments)."
        )
    made = proximal(
        likelihood(loss), strength, problem.adapt, curvature=problem.curvature, convex=problem.convex
    )
    return made, theta


def log_evidence(
    problem: Problem,
    phi: PyTree,
    theta: PyTree,
    batch: PyTree,
    *,
    determinant_by: Quadrature | None = None,
    curvature: str = "gauss-newton",
    key: Array | None = None,
) -> Evidence:
    """The logarithm of a task's evidence by Laplace's method, and its standard error.

    ```
    log p(rows | theta)  ~  -objective(phi*, theta) - 1/2 (log |P + H| - log |P|)
    ```

    (MacKay 1992; Bishop 2006, equation 4.137.) Exact for linear-Gaussian models. phi: the full tree at the
    inner solution. determinant_by: None for exactly, or a `Quadrature`. The other arguments as for
    `posterior`.

    >>> import imaml, jax.numpy as jnp
    >>> from imaml.domains.regression import LinearLoss, Points
    >>> problem = imaml.proximal(imaml.likelihood(LinearLoss(), noise=1.0), 1.0)
    >>> rows = Points(jnp.ones((1, 1)), jnp.zeros(1))  # y = phi + noise ~ N(0, 2): -1/2 log (4 pi)
    >>> round(float(imaml.log_evidence(problem, jnp.zeros(1), jnp.zeros(1), rows).value), 4)
    -1.2655
    """
    adapted = problem.split(phi)
    likelihood_of("log_evidence", problem)
    raised = determinant(problem, adapted, theta, batch, determinant_by, curvature, key)
    misfit: Any = problem.objective(adapted, theta, batch)
    return Evidence(-misfit - 0.5 * raised.value, 0.5 * raised.error)
