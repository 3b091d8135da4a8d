"""Problems of a loss, with or without quadratic regularisation, and of a field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from ..core import tree
from ..core.errors import ConfigError
from ..core.tree import Selection, Tree
from ..core.validation import require_function, require_one_of, require_scalar
from .base import ALL, CURVATURES, Loss, Problem, check_lipschitz, declared
from .linear_outputs import LinearSquares, ridge_inverse, squares_of
from .losses import HalfSquares, composed, gauss_newton_slope
from .matrices import Precision
from .precision import Learned, logs_in

Field = Callable[[Tree, Tree], Tree]  # (phi, batch) -> a tree like phi
Adapt = str | Sequence[str] | Set[str] | Mapping[str, object] | Callable[[Tree], Tree] | Selection | None


@dataclass(frozen=True, eq=False)
class Proximal(Problem):
    """The paper's inner problem, made by `proximal`.

    ```
    F = d/dphi loss(phi, batch) + P (phi - theta)        P = strength I, diag(strength), or learned
    ```

    References:
        Rajeswaran et al. (2019), equation 3.
    """

    loss: Loss = field()
    strength: Tree = None
    adapt: Selection = ALL
    learns: Learned | None = None
    curvature: str = "hessian"
    convex: bool = False
    lipschitz: float | Callable[[Tree], Tree] | None = None
    kind: ClassVar[str] = "proximal"
    leaves: ClassVar[tuple[str, ...]] = ("strength",)
    structure: ClassVar[str] = "spd"
    has_objective: ClassVar[bool] = True
    has_precision: ClassVar[bool] = True

    @property
    def diagonal(self) -> bool:  # type: ignore[override]
        """Whether the anchor has one strength for every parameter, and is not a matrix that mixes them."""
        return self.learns is None or self.learns.diagonal

    def residual(self, phi: Tree, theta: Tree, batch: Tree) -> Tree:
        """The loss's gradient plus P (phi - theta); see `Problem.residual`."""
        full, fit = lambda p: self.full(p, theta), self.loss_at(theta)
        if self.curvature == "gauss-newton":
            slope = gauss_newton_slope(fit, phi, full, batch)
        else:
            slope = jax.grad(lambda p: require_scalar("loss", fit(full(p), batch)))(phi)
        return _anchored(self, slope, phi, theta)

    def objective(self, phi: Tree, theta: Tree, batch: Tree) -> Array:
        """loss(phi, batch) + 1/2 (phi - theta)^T P (phi - theta); see `Problem.objective`."""
        away = self.displacement(phi, theta)
        anchored = tree.dot(away, self.precision(phi, theta).pull(away))
        return require_scalar("loss", self.loss_at(theta)(self.full(phi, theta), batch)) + 0.5 * anchored

    def precision(self, phi: Tree, theta: Tree) -> Precision:
        """P, from the fixed strength or from theta; see `Problem.precision`."""
        if self.learns is None:
            return super().precision(phi, theta)
        return self.learns.precision(logs_in("proximal", theta, "log_strength"), phi)

    @property
    def squares(self) -> LinearSquares | None:
        """The loss, if it is of squares that are linear in phi."""
        return squares_of(self.loss, self.adapt.choice)

    @property
    def invertible(self) -> bool:
        """Whether the loss is of squares that are linear in phi, with one strength for each parameter."""
        return self.squares is not None and self.diagonal

    def inverse(self, phi: Tree, theta: Tree, batch: Tree) -> Callable[[Tree], Tree]:
        """(X^T X / n + P)^-1; see `Problem.inverse`."""
        loss = self.squares
        if loss is None or not self.diagonal:
            return super().inverse(phi, theta, batch)
        design = self.split(loss.design(self.full(phi, theta), batch))
        return ridge_inverse(design, self.strengths(phi, theta), phi)

    def curvature_floor(self, phi: Tree, theta: Tree) -> Array | None:
        """The least strength, if the loss is declared convex or A is a Gauss-Newton matrix."""
        return self.least_strength(phi, theta) if self.convex or self.curvature == "gauss-newton" else None

    def least_strength(self, phi: Tree, theta: Tree) -> Array:
        """A lower bound of the eigenvalues of P; see `Problem.least_strength`."""
        return self.precision(phi, theta).least()

    def coupling_norm(self, phi: Tree, theta: Tree) -> Array | None:
        """The largest strength, if theta enters F only there; see `Problem.coupling_norm`."""
        if self.adapt.choice is not None or self.learns_more or self.loss_at(theta) is not self.loss:
            return None
        return jnp.max(jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(self.strengths(phi, theta))]))

    def hessian_lipschitz(self, batch: Tree) -> Array | None:
        """The declared constant on a batch; see `Problem.hessian_lipschitz`."""
        return None if self.lipschitz is None else declared("proximal", self.lipschitz, batch)


@dataclass(frozen=True, eq=False)
class Plain(Problem):
    """The inner problem without an anchor, made by `plain`: F = d/dphi loss(phi, batch)."""

    loss: Loss = field()
    adapt: Selection = ALL
    kind: ClassVar[str] = "plain"
    structure: ClassVar[str] = "symmetric"
    anchored: ClassVar[bool] = False
    has_objective: ClassVar[bool] = True

    @property
    def squares(self) -> LinearSquares | None:
        """The loss, if it is of squares that are linear in phi."""
        return squares_of(self.loss, self.adapt.choice)

    def residual(self, phi: Tree, theta: Tree, batch: Tree) -> Tree:
        """The loss's gradient; see `Problem.residual`."""
        return jax.grad(lambda p: self.objective(p, theta, batch))(phi)

    def objective(self, phi: Tree, theta: Tree, batch: Tree) -> Array:
        """The loss; see `Problem.objective`."""
        return require_scalar("loss", self.loss(self.full(phi, theta), batch))


@dataclass(frozen=True, eq=False)
class Equilibrium(Problem):
    """The anchored zero of a field, made by `equilibrium`: F = field(phi, batch) + strength (phi - theta)."""

    loss: Field = field()  # the field
    strength: Tree = None
    adapt: Selection = ALL
    leaves: ClassVar[tuple[str, ...]] = ("strength",)
    kind: ClassVar[str] = "equilibrium"
    structure: ClassVar[str] = "general"

    @property
    def anchored(self) -> bool:  # type: ignore[override]
        """Whether there is a strength."""
        return self.strength is not None

    has_precision = anchored  # type: ignore[assignment]

    def residual(self, phi: Tree, theta: Tree, batch: Tree) -> Tree:
        """The field plus strength (phi - theta); see `Problem.residual`."""
        full = self.full(phi, theta)
        slope = self.split(self.guarded(lambda: self.loss(full, batch), full))
        return slope if self.strength is None else _anchored(self, slope, phi, theta)


def _anchored(problem: Problem, slope: Tree, phi: Tree, theta: Tree) -> Tree:
    """A slope plus P (phi - theta)."""
    pulled = problem.precision(phi, theta).pull(problem.displacement(phi, theta))
    return jax.tree.map(jnp.add, slope, pulled)


def least_squares(residuals: Callable[[Tree, Tree], Tree], strength: Tree, adapt: Adapt = None) -> Proximal:
    """Make the problem min_phi 1/2 |residuals(phi, batch)|^2 + strength/2 |phi - theta|^2.

    Its curvature is Gauss-Newton's. `LevenbergMarquardt` needs such a problem.

    Args:
        residuals: (phi, batch) -> any pytree. For a mean over n rows divide by sqrt(n).
        strength: The regularisation strength; see `proximal`.
        adapt: Which leaves a task adapts; see `proximal`.

    Returns:
        The problem.

    Raises:
        ConfigError: If `residuals` cannot be called, or an argument is not valid.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> problem = least_squares(lambda phi, x: phi - x, 1.0)
        >>> problem.residual(jnp.ones(2), jnp.zeros(2), jnp.ones(2))
        Array([1., 1.], dtype=float32)
    """
    return proximal(composed(residuals, HalfSquares()), strength, adapt, curvature="gauss-newton")


def _check_positive(strength: Tree) -> None:
    """Raise ConfigError for strengths that are concrete and not positive and finite."""
    if not jax.tree.leaves(strength):
        raise ConfigError(
            f"strength: expected a positive number, a tree of them, or learned(...), got {strength!r}."
        )
    for leaf in jax.tree.leaves(strength):
        values = np.ones(()) if isinstance(leaf, Tracer) else np.asarray(leaf)
        number = jnp.issubdtype(values.dtype, np.number) or values.dtype == bool
        if not (number and np.all(np.isfinite(values) & (values > 0))):
            raise ConfigError(
                f"strength: expected positive finite numbers, got {leaf!r}. Hint: without an anchor there is "
                "no implicit gradient; for that, use plain(loss) with unrolled() or first_order()."
            )


def proximal(
    loss: Loss,
    strength: Tree,
    adapt: Adapt = None,
    *,
    curvature: str = "hessian",
    convex: bool = False,
    lipschitz: float | Callable[[Tree], Tree] | None = None,
) -> Proximal:
    """Make the paper's inner problem: minimise loss(phi, batch) + strength/2 |phi - theta|^2 over phi.

    Its structure is "spd". That is correct if the loss's curvature exceeds -strength at the solution; linear
    solvers report if they find that it does not.

    Args:
        loss: (phi, batch) -> scalar; phi is the full tree of parameters, batch any pytree.
        strength: The regularisation strength: a positive number, a tree with one number for each leaf or each
            parameter, or `learned(...)`, which may be a matrix. For a mean loss over n rows, the precision of
            the Gaussian prior is n times the strength (see `likelihood`).
        adapt: Which leaves a task adapts: a name, names, a mask, or a function theta -> mask; None for all.
            The others are shared: they stay at theta, and get their exact gradient through F.
        curvature: "hessian", or "gauss-newton" for a loss made by `composed`. A is then J^T H J + strength
            and never indefinite. The implicit gradient is that of the problem with its outputs linearised at
            phi. It differs from the exact one unless the outputs are linear or fit the data.
        convex: Whether the loss is convex in phi, which a certificate may rely on.
        lipschitz: A Lipschitz constant of the loss's Hessian in the adapted parameters (in the spectral
            norm): a number, or a function support -> number. A certificate may rely on it instead of
            sampling. For logistic regression it is mean(|x|^3) / (6 sqrt(3)).

    Returns:
        The problem.

    Raises:
        ConfigError: If an argument is not valid.

    Example:
        >>> import jax.numpy as jnp
        >>> problem = proximal(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2), 1.0)
        >>> problem.residual(jnp.ones(2), jnp.zeros(2), jnp.ones(2))
        Array([1., 1.], dtype=float32)

    References:
        Rajeswaran et al. (2019), equation 3.
    """
    require_function("loss", loss, "phi", "batch")
    # A learned strength is part of theta, so the problem holds its form and no number.
    learns = strength if isinstance(strength, Learned) else None
    if learns is None:
        _check_positive(strength)
    require_one_of("proximal", "curvature", curvature, CURVATURES)
    check_lipschitz("proximal", lipschitz)
    # J^T H J needs the loss in two parts: outputs with Jacobian J, and a cost with Hessian H.
    if curvature == "gauss-newton" and not (hasattr(loss, "outputs") and hasattr(loss, "cost")):
        raise ConfigError(
            "proximal: loss: expected one made by composed(outputs, cost), for Gauss-Newton curvature, got "
            f"{loss!r}. Hint: pass such a loss, or curvature='hessian'."
        )

    fixed = None if learns else strength
    return Proximal(loss, fixed, Selection.of(adapt), learns, curvature, convex, lipschitz)


def plain(loss: Loss, adapt: Adapt = None) -> Plain:
    """Make the inner problem without regularisation: minimise loss(phi, batch) starting at theta, as in MAML.

    Its solution depends on theta only through the path taken, so the implicit rule does not accept it; use
    `unrolled()` or `first_order()`.

    Args:
        loss: (phi, batch) -> scalar.
        adapt: Which leaves a task adapts; see `proximal`.

    Returns:
        The problem.

    Raises:
        ConfigError: If `loss` cannot be called, or `adapt` is not a selection.

    Example:
        >>> import jax.numpy as jnp
        >>> plain(lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)).anchored
        False
    """
    require_function("loss", loss, "phi", "batch")
    return Plain(loss, Selection.of(adapt))


def equilibrium(field: Field, strength: Tree, adapt: Adapt = None) -> Equilibrium:
    """Make the anchored problem field(phi, batch) + strength (phi - theta) = 0; its structure is "general".

    It is for learners that do not follow the gradient of one loss, such as temporal differences or the
    players of a game. The solution is stable if no eigenvalue of the field's derivative has a real part of
    -strength or less.

    Args:
        field: (phi, batch) -> a tree like phi, the full tree. A solver steps against it; for a loss to be
            minimised it is the gradient.
        strength: As in `proximal`, but fixed. None for no anchor: the problem then starts at theta, as
            `plain`.
        adapt: Which leaves a task adapts; see `proximal`.

    Returns:
        The problem.

    Raises:
        ConfigError: If an argument is not valid.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> rotation = lambda phi, batch: jnp.array([phi[1], -phi[0]])  # of a game of two players
        >>> problem = equilibrium(rotation, 1.0)
        >>> theta, inner = jnp.array([1.0, 1.0]), imaml.GradientDescent(0.5, tolerance=1e-6)
        >>> imaml.solve(problem, theta, None, inner=inner, rule=imaml.implicit(imaml.Dense())).round(3)
        Array([0., 1.], dtype=float32)
    """
    require_function("field", field, "phi", "batch")
    if isinstance(strength, Learned):
        raise ConfigError(
            f"equilibrium: strength: expected a positive number, a tree of them, or None, got {strength!r}."
        )
    if strength is not None:
        _check_positive(strength)
    return Equilibrium(field, strength, Selection.of(adapt))
