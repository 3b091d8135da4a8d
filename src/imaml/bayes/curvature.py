"""The curvature of one task's likelihood at a point, and by how much it raises the prior's determinant.

With J the Jacobian of the outputs and B B^T the second derivative of the likelihood in them,

    H = J^T B B^T J    "gauss-newton"        or the Hessian, which it equals where outputs are linear in phi
    log |P + H| - log |P|  =  log |I + B^T J P^-1 J^T B|          of rows by rows, where those are fewer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.recipes import recipe
from ..core.tree import PyTree, Selection
from ..core.validation import require_one_of, require_whole
from ..linear.lanczos import eigenpairs, krylov
from ..problems.base import CURVATURES, Problem
from ..problems.likelihoods import NegativeLogLikelihood, by_row
from ..problems.precision import Precision, log_determinant

LARGE = 20_000  # parameters, from which vectors of their size are worked on one after another
EXACT_MOST = 5_000  # the smaller of rows times outputs and parameters, for a determinant or a matrix in full


@recipe()
@dataclass(frozen=True)
class Quadrature:
    """Stochastic Lanczos quadrature for a log-determinant (Ubaru, Chen and Saad 2017).

    ```
    log |I + K|  =  E z^T log(I + K) z      z of random signs;  each term by `steps` of Lanczos from z
    ```

    with K the likelihood's curvature in units of the prior's, so that the variance falls to zero with K. Its
    derivative is that of E z^T dK (I + K)^-1 z with the same probes. `probes` of them; memory for `probes`
    times `steps` vectors. Exact in expectation but for the quadrature's error, which vanishes where `steps`
    are as many as K has distinct eigenvalues. For problems too large for the exact determinant, the default.
    """

    steps: int = 30
    probes: int = 8

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("Quadrature", 1, steps=self.steps)
        require_whole("Quadrature", 2, probes=self.probes)  # a standard error needs two


def by_rows(function: Callable[[PyTree], PyTree], rows: PyTree, size: int) -> PyTree:
    """What `function` makes of each of the rows, stacked; size: numbers in the vectors within it.

    Large ones go one after another: under `vmap` each row of a convolutional network has kernels of its own,
    which takes a CPU several times as long, and as much memory as there are rows.
    """
    return lax.map(function, rows) if size >= LARGE else jax.vmap(function)(rows)


class Determinant(NamedTuple):
    """log |P + H| - log |P|, and its standard error, 0 where it is exact."""

    value: Array
    error: Array


@dataclass(frozen=True)
class Curved:
    """One task's likelihood at a point, over a flat vector of the n parameters chosen; made by `curved`.

    point: (n,). outputs: (rows, k), the network's. along: v (n,) -> J v (rows, k). half: v (n,) -> B^T J v,
    (rows k,). product: v -> H v. precision: P, the prior's. place: (n,) -> the full tree of parameters.
    gauss_newton: which curvature H is.
    """

    point: Array
    outputs: Array
    along: Callable[[Array], Array]
    half: Callable[[Array], Array]
    product: Callable[[Array], Array]
    precision: Precision
    place: Callable[[Array], PyTree]
    gauss_newton: bool

    def rows(self) -> Array:
        """B^T J as a matrix, (rows k, n), by as few products as there are."""
        size, count = self.outputs.size, self.point.size
        self._bounded(min(size, count))
        if size > count:
            return jax.vmap(self.half, out_axes=1)(jnp.eye(count, dtype=self.point.dtype))
        back = jax.linear_transpose(self.half, self.point)
        return by_rows(lambda e: back(e)[0], jnp.eye(size, dtype=self.outputs.dtype), count)

    def matrix(self) -> Array:
        """H as a matrix, (n, n)."""
        if self.gauss_newton:
            rows = self.rows()
            return rows.T @ rows
        self._bounded(self.point.size)
        return jax.vmap(self.product)(jnp.eye(self.point.size, dtype=self.point.dtype))

    def diagonal(self) -> Array:
        """The diagonal of the Gauss-Newton matrix, (n,), a product for every row and output."""
        if not self.gauss_newton:
            raise ConfigError(
                "posterior: form='diagonal' with curvature='hessian'; accepted is 'gauss-newton', whose "
                "diagonal takes one product for every row and output, and is never negative."
            )
        back = jax.linear_transpose(self.half, self.point)

        def add(total: Array, row: Array) -> tuple[Array, None]:
            return total + jnp.square(back(row)[0]), None

        identity = jnp.eye(self.outputs.size, dtype=self.outputs.dtype)
        return lax.scan(add, jnp.zeros_like(self.point), identity)[0]

    def exact(self) -> Determinant:
        """The determinant by a matrix of rows or of parameters, whichever are fewer; differentiable."""
        size, count = self.outputs.size, self.point.size
        if self.gauss_newton and size < count:
            rows = self.rows()
            inner = jax.vmap(self.precision.inverse)(rows)
            value = log_determinant(jnp.eye(size, dtype=rows.dtype) + rows @ inner.T)
        else:
            value = log_determinant(self.precision.matrix() + self.matrix())
            value = value - self.precision.log_determinant()
        return Determinant(value, jnp.zeros_like(value))

    def whitened(self, vector: Array) -> Array:
        """K v with K = R^-T H R^-1: the likelihood's curvature in units of the prior's."""
        return self.precision.unroot_transposed(self.product(self.precision.unroot(vector)))

    def _bounded(self, size: int) -> None:
        if size > EXACT_MOST:
            raise StructureError(
                f"curvature: a matrix in full would have a side of {size}; accepted are up to {EXACT_MOST}. "
                "Use Quadrature() for a determinant, form='low-rank' or 'diagonal' for a posterior, or "
                "adapt fewer leaves."
            )


def likelihood_of(owner: str, problem: Problem) -> NegativeLogLikelihood:
    """The problem's loss; StructureError where it is no sum of negative log likelihoods with a prior."""
    if problem.has_precision and isinstance(problem.loss, NegativeLogLikelihood):
        return problem.loss
    raise StructureError(
        f"{owner}: needs proximal(likelihood(loss), strength), where the strength is a prior's precision; "
        f"this problem is {problem.kind}, and its loss, {type(problem.loss).__name__}, does not say that it "
        "is a sum over rows. A mean loss over n rows with a strength is as a likelihood with the precision "
        "n times that strength."
    )


def curved(
    owner: str,
    problem: Problem,
    adapted: PyTree,
    theta: PyTree,
    batch: PyTree,
    curvature: str = "gauss-newton",
    over: Selection | None = None,
) -> Curved:
    """One task's likelihood at its adapted leaves, differentiable in them and in theta.

    owner: whom messages name. over: which of the adapted leaves, None for all; the others stay as they are.
    """
    loss = likelihood_of(owner, problem).given(theta)
    require_one_of(owner, "curvature", curvature, CURVATURES)
    over = over or Selection()
    chosen, rest = over.split(adapted)
    point, unravel = tree.ravel(chosen)

    def place(vector: Array) -> PyTree:
        return problem.full(over.join(unravel(vector), rest), theta)

    def outputs_at(vector: Array) -> Array:
        return by_row(loss.outputs(place(vector), batch))

    outputs, along = jax.linearize(outputs_at, point)

    def half(vector: Array) -> Array:
        return jnp.ravel(loss.likelihood.half(outputs, batch, loss.variance, along(vector)))

    if curvature == "gauss-newton":
        back = jax.linear_transpose(half, point)
        product = lambda vector: back(half(vector))[0]  # noqa: E731
    else:
        slope = jax.grad(lambda vector: loss(place(vector), batch))
        _, product = jax.linearize(slope, point)
    precision = problem.precision(adapted, theta)
    if over.choice is not None:
        precision = precision.part(_flags(over.mask(adapted), adapted))
    return Curved(point, outputs, along, half, product, precision, place, curvature == "gauss-newton")


def _flags(mask: PyTree, adapted: PyTree) -> np.ndarray:
    """The mask of leaves as one of parameters, (n,)."""
    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(adapted), strict=True)
    return np.concatenate([np.full(np.size(leaf), flag) for flag, leaf in pairs])


def determinant(
    problem: Problem,
    adapted: PyTree,
    theta: PyTree,
    batch: PyTree,
    how: Quadrature | None = None,
    curvature: str = "gauss-newton",
    key: Array | None = None,
) -> Determinant:
    """log |P + H| - log |P| at a task's adapted leaves, differentiable (once, where it is a quadrature).

    how: None for exactly. key: of the probes, key(0) for None.
    """
    here = curved("determinant", problem, adapted, theta, batch, curvature)
    if how is None:
        return here.exact()
    key = jax.random.key(0) if key is None else key
    fixed = curved("determinant", problem, *lax.stop_gradient((adapted, theta)), batch, curvature)
    size = here.point.size

    def one(key: Array) -> tuple[Array, Array]:
        probe = jax.random.rademacher(key, (size,), here.point.dtype)
        basis, diagonal, beside, _ = krylov(fixed.whitened, probe, how.steps)
        values, turn = eigenpairs(diagonal, beside)
        value = size * jnp.sum(turn[0] ** 2 * jnp.log1p(values))
        solved = size**0.5 * (basis.T @ (turn @ (turn[0] / (1 + values))))
        # tr (P + H)^-1 dH + tr ((P + H)^-1 - P^-1) dP, with x = (P + H)^-1 R^T z and y = R^-1 z held fixed.
        x, y = lax.stop_gradient((fixed.precision.unroot(solved), fixed.precision.unroot(probe)))
        apart, unravel = x - y, tree.ravel(adapted)[1]
        bent = here.half(x) @ here.half(y) if here.gauss_newton else x @ here.product(y)
        slope = bent + apart @ tree.ravel(here.precision.pull(unravel(y)))[0]
        return lax.stop_gradient(value), slope - lax.stop_gradient(slope)

    values, slopes = by_rows(one, jax.random.split(key, how.probes), here.point.size)
    error = jnp.std(values, ddof=1) / how.probes**0.5
    return Determinant(jnp.mean(values) + jnp.mean(slopes), lax.stop_gradient(error))
