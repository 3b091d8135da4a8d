"""The curvature of one task's likelihood at a point, and the determinant of the posterior's precision.

With J the Jacobian of the outputs and B B^T the second derivative of the likelihood in them,

    H = J^T B B^T J    "gauss-newton"        or the Hessian, which it equals where outputs are linear in phi
    log |P + H| - log |P|  =  log |I + B^T J P^-1 J^T B|          of rows by rows, where those are fewer
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core import tree
from ..core.errors import StructureError
from ..core.fields import Checked, PositiveInt, SeveralInt
from ..core.recipes import recipe
from ..core.tree import Selection, Tree
from ..core.validation import require_one_of
from ..linear.lanczos import eigenpairs, krylov
from ..problems.base import CURVATURES, Key, Problem
from ..problems.likelihoods import by_row, likelihood_of
from ..problems.matrices import Precision, log_determinant

Curvature = Literal["hessian", "gauss-newton"]
LARGE = 20_000  # parameters, from which vectors of their size are worked on one after another
EXACT_MOST = 5_000  # the smaller of rows times outputs and parameters, for a determinant or a matrix in full


@recipe()
class Quadrature(Checked):
    """Stochastic Lanczos quadrature for a log-determinant.

    ```
    log |I + K|  =  E z^T log(I + K) z      z of random signs;  each term by `steps` of Lanczos from z
    ```

    K is the likelihood's curvature in units of the prior's, so that the variance falls to zero with K. The
    derivative is that of E z^T dK (I + K)^-1 z with the same probes. It is exact in expectation, up to the
    quadrature's error. That error vanishes if K has at most `steps` distinct eigenvalues. Memory is needed
    for `probes` times `steps` vectors.

    Attributes:
        steps: Lanczos steps for each probe.
        probes: The number of probes, at least 2.

    Example:
        >>> Quadrature(steps=10, probes=4)
        Quadrature(steps=10, probes=4)

    References:
        Ubaru, Chen, Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.
    """

    steps: PositiveInt = 30
    probes: SeveralInt = 8  # a standard error needs two


def map_rows(function: Callable[[Tree], Tree], rows: Tree, size: int) -> Tree:
    """Applies a function to each of the rows and stacks the results.

    Large rows are processed one after another: under `vmap` each row of a convolutional network has its own
    kernels. That takes several times as long on a CPU, and memory in proportion to the number of rows.

    Args:
        function: A function of one row.
        rows: A tree with a leading axis on every leaf.
        size: The number of entries in the vectors that `function` computes with.

    Returns:
        The results, with a leading axis.
    """
    return lax.map(function, rows) if size >= LARGE else jax.vmap(function)(rows)


class Value(NamedTuple):
    """The logarithm of a determinant, or of a task's evidence.

    Attributes:
        value: A scalar.
        error: Its standard error, 0 where it is exact.
    """

    value: Array
    error: Array


@dataclass(frozen=True)
class LocalCurvature:
    """One task's likelihood at a point, over a flat vector of n parameters; made by `curvature_at`.

    Attributes:
        point: The parameters, ``(n,)``.
        outputs: The network's outputs, ``(rows, k)``.
        along: v ``(n,)`` -> J v ``(rows, k)``.
        half: v ``(n,)`` -> B^T J v ``(rows k,)``.
        product: v -> H v.
        precision: The prior's precision P.
        place: ``(n,)`` -> the full tree of parameters.
        gauss_newton: Whether H is the Gauss-Newton matrix, else the Hessian.
    """

    point: Array
    outputs: Array
    along: Callable[[Array], Array]
    half: Callable[[Array], Array]
    product: Callable[[Array], Array]
    precision: Precision
    place: Callable[[Array], Tree]
    gauss_newton: bool

    def rows(self) -> Array:
        """The matrix B^T J, by as few products as possible.

        Returns:
            ``(rows k, n)``.

        Raises:
            StructureError: If it would be too large.
        """
        size, count = self.outputs.size, self.point.size
        self._bounded(min(size, count))
        if size > count:
            return jax.vmap(self.half, out_axes=1)(jnp.eye(count, dtype=self.point.dtype))
        back = jax.linear_transpose(self.half, self.point)
        return map_rows(lambda e: back(e)[0], jnp.eye(size, dtype=self.outputs.dtype), count)

    def matrix(self) -> Array:
        """The matrix H.

        Returns:
            ``(n, n)``.

        Raises:
            StructureError: If it would be too large.
        """
        if self.gauss_newton:
            rows = self.rows()
            return rows.T @ rows
        self._bounded(self.point.size)
        return jax.vmap(self.product)(jnp.eye(self.point.size, dtype=self.point.dtype))

    def diagonal(self) -> Array:
        """The diagonal of the Gauss-Newton matrix, by one product for every row and output.

        Returns:
            ``(n,)``, never negative.
        """
        back = jax.linear_transpose(self.half, self.point)

        def add(total: Array, row: Array) -> tuple[Array, None]:
            return total + jnp.square(back(row)[0]), None

        identity = jnp.eye(self.outputs.size, dtype=self.outputs.dtype)
        return lax.scan(add, jnp.zeros_like(self.point), identity)[0]

    def exact(self) -> Value:
        """The determinant by a matrix of rows or of parameters, whichever are fewer; differentiable.

        Returns:
            log |P + H| - log |P|.

        Raises:
            StructureError: If the matrix would be too large.
        """
        size, count = self.outputs.size, self.point.size
        if self.gauss_newton and size < count:
            rows = self.rows()
            inner = jax.vmap(self.precision.inverse)(rows)
            value = log_determinant(jnp.eye(size, dtype=rows.dtype) + rows @ inner.T)
        else:
            value = log_determinant(self.precision.matrix() + self.matrix())
            value = value - self.precision.log_determinant()
        return Value(value, jnp.zeros_like(value))

    def whitened(self, vector: Array) -> Array:
        """The product K v with K = R^-T H R^-1, the likelihood's curvature in units of the prior's.

        Args:
            vector: v, ``(n,)``.

        Returns:
            K v, ``(n,)``.
        """
        return self.precision.unroot_transposed(self.product(self.precision.unroot(vector)))

    def _bounded(self, size: int) -> None:
        if size > EXACT_MOST:
            raise StructureError(
                f"curvature: expected a matrix of at most {EXACT_MOST} rows, got {size}. Hint: use "
                "Quadrature() for a determinant, form='low-rank' or 'diagonal' for a posterior, or adapt "
                "fewer leaves."
            )


def curvature_at(
    owner: str,
    problem: Problem,
    adapted: Tree,
    theta: Tree,
    batch: Tree,
    curvature: str = "gauss-newton",
    over: Selection | None = None,
) -> LocalCurvature:
    """One task's likelihood at its adapted parameters, differentiable in them and in theta.

    Args:
        owner: The name in messages.
        problem: The problem.
        adapted: The adapted parameters.
        theta: The meta-parameters.
        batch: The rows.
        curvature: "gauss-newton" or "hessian".
        over: Which of the adapted parameters; None for all. The others are constants.

    Returns:
        The likelihood and its curvature.

    Raises:
        StructureError: If the loss is not a sum of negative log likelihoods.
        ConfigError: If `curvature` is another value.
    """
    loss = likelihood_of(owner, problem).given(theta)
    require_one_of(owner, "curvature", curvature, CURVATURES)
    over = over or Selection()
    chosen, rest = over.split(adapted)
    point, unravel = tree.ravel(chosen)

    # The outputs as a function of the flat vector of chosen parameters, and v -> J v and v -> B^T J v.
    def place(vector: Array) -> Tree:
        return problem.full(over.join(unravel(vector), rest), theta)

    def outputs_at(vector: Array) -> Array:
        return by_row(loss.outputs(place(vector), batch))

    outputs, along = jax.linearize(outputs_at, point)

    def half(vector: Array) -> Array:
        return jnp.ravel(loss.likelihood.half(outputs, batch, loss.variance, along(vector)))

    # H v = J^T B B^T J v, or the derivative of the loss's gradient along v.
    if curvature == "gauss-newton":
        back = jax.linear_transpose(half, point)
        product = lambda vector: back(half(vector))[0]  # noqa: E731
    else:
        slope = jax.grad(lambda vector: loss(place(vector), batch))
        _, product = jax.linearize(slope, point)
    precision = problem.precision(adapted, theta)
    if over.choice is not None:
        precision = precision.part(_flags(over.mask(adapted), adapted))
    return LocalCurvature(point, outputs, along, half, product, precision, place, curvature == "gauss-newton")


def _flags(mask: Tree, adapted: Tree) -> np.ndarray:
    """The mask of leaves as one of parameters, (n,)."""
    pairs = zip(jax.tree.leaves(mask), jax.tree.leaves(adapted), strict=True)
    return np.concatenate([np.full(np.size(leaf), flag) for flag, leaf in pairs])


def determinant(
    problem: Problem,
    adapted: Tree,
    theta: Tree,
    batch: Tree,
    how: Quadrature | None = None,
    curvature: str = "gauss-newton",
    key: Key = None,
) -> Value:
    """The log-determinant log |P + H| - log |P| at a task's adapted parameters, differentiable.

    Args:
        problem: The problem.
        adapted: The adapted parameters.
        theta: The meta-parameters.
        batch: The rows.
        how: None for an exact result, or a `Quadrature`, which is differentiable once.
        curvature: "gauss-newton" or "hessian".
        key: A random key for the probes; the default is ``jax.random.key(0)``.

    Returns:
        The determinant and its standard error.
    """
    here = curvature_at("determinant", problem, adapted, theta, batch, curvature)
    if how is None:
        return here.exact()
    key = jax.random.key(0) if key is None else key
    fixed = curvature_at("determinant", problem, *lax.stop_gradient((adapted, theta)), batch, curvature)
    size = here.point.size

    def one(key: Array) -> tuple[Array, Array]:
        # z^T log(I + K) z by Lanczos from z: the Gauss quadrature of Golub and Meurant.
        probe = jax.random.rademacher(key, (size,), here.point.dtype)
        basis, diagonal, offdiagonal, _ = krylov(fixed.whitened, probe, how.steps)
        values, vectors = eigenpairs(diagonal, offdiagonal)
        value = size * jnp.sum(vectors[0] ** 2 * jnp.log1p(values))
        solved = size**0.5 * (basis.T @ (vectors @ (vectors[0] / (1 + values))))
        # tr (P + H)^-1 dH + tr ((P + H)^-1 - P^-1) dP, with x = (P + H)^-1 R^T z and y = R^-1 z held fixed.
        x, y = lax.stop_gradient((fixed.precision.unroot(solved), fixed.precision.unroot(probe)))
        difference, unravel = x - y, tree.ravel(adapted)[1]
        likelihood_term = here.half(x) @ here.half(y) if here.gauss_newton else x @ here.product(y)
        slope = likelihood_term + difference @ tree.ravel(here.precision.pull(unravel(y)))[0]
        return lax.stop_gradient(value), slope - lax.stop_gradient(slope)

    # Each probe gives an unbiased value, and a surrogate whose derivative is an unbiased derivative.
    values, slopes = map_rows(one, jax.random.split(key, how.probes), here.point.size)
    error = jnp.std(values, ddof=1) / how.probes**0.5
    return Value(jnp.mean(values) + jnp.mean(slopes), lax.stop_gradient(error))
