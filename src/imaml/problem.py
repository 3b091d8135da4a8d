"""One task's inner problem: a residual F(phi, theta, batch) that is zero at the solution, and its structure.

proximal     F = d/dphi loss(phi, batch) + strength (phi - theta)        the paper's problem, eq. 3
                                                                         (or P (phi - theta), see `prior`)
plain        F = d/dphi loss(phi, batch), started at theta               MAML and its kin
stationary   F = d/dphi objective(phi, theta, batch)
fixed_point  F = phi - update(phi, theta, batch)
game         F = (d/dx loss_x, d/dy loss_y), phi = (x, y)
equilibrium  F = field(phi, batch) + strength (phi - theta)              what nothing need be minimised by
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from . import tree
from .errors import ConfigError, StructureError, require_number, require_one_of
from .prior import Learned as Learned
from .prior import Precision, Strengths
from .prior import Theta as Theta
from .prior import learned as learned
from .tree import Selection

Loss = Callable[[Any, Any], Array]
CURVATURES = ("hessian", "gauss-newton")


@dataclass(frozen=True)
class Composed:
    """A loss that is a convex cost of a model's outputs; made by `composed`."""

    outputs: Callable[[Any, Any], Any]
    cost: Callable[[Any, Any], Array]

    def __call__(self, phi: Any, batch: Any) -> Array:
        """The loss, a scalar."""
        return self.cost(self.outputs(phi, batch), batch)


def _gauss_newton_slope(loss: Any, phi: Any, full: Callable[[Any], Any], batch: Any) -> Any:
    """The loss's gradient at phi, whose derivative in phi is the Gauss-Newton matrix.

    J(phi)^T cost'(outputs(phi)) with J held fixed: what is dropped is cost' times the outputs' curvature.
    """
    of = lambda p: loss.outputs(full(p), batch)  # noqa: E731
    value = of(phi)
    _, pull = jax.vjp(of, lax.stop_gradient(phi))
    return pull(jax.grad(lambda z: _scalar("cost", loss.cost(z, batch)))(value))[0]


def composed(outputs: Callable[[Any, Any], Any], cost: Callable[[Any, Any], Array]) -> Composed:
    """The loss cost(outputs(phi, batch), batch), with cost convex in the outputs, for Gauss-Newton curvature.

    A loss of your own with two such methods, `outputs` and `cost`, does as well. outputs: (phi, batch) -> any
    tree. cost: (outputs, batch) -> scalar.

    >>> import jax.numpy as jnp
    >>> fit = lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2)
    >>> loss = composed(lambda phi, batch: jnp.tanh(batch[0] @ phi), fit)
    >>> problem = proximal(loss, 0.5, curvature="gauss-newton")
    """
    _check_callable("outputs", outputs)
    _check_callable("cost", cost)
    return Composed(outputs, cost)


class Task(NamedTuple):
    """Tasks to learn from: `support` is learned from, `query` is scored; any trees, leading axis: tasks."""

    support: Any
    query: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Problem:
    """One inner problem. Made by `proximal`, `plain`, `stationary`, `fixed_point`, `game` or `equilibrium`.

    A tree: `strength` is its leaf (it can be traced, batched and differentiated); all else is static. `phi`
    in `residual` and `objective` holds the adapted leaves only (None in the others' places); `full` gives the
    whole tree that losses see.
    """

    strength: Any
    kind: str = field(metadata={"static": True})
    structure: str = field(metadata={"static": True})
    residual_of: Callable = field(metadata={"static": True})
    objective_of: Callable | None = field(default=None, metadata={"static": True})
    start: Callable | None = field(default=None, metadata={"static": True})
    adapt: Selection = field(default=Selection(), metadata={"static": True})
    learns: Learned | None = field(default=None, metadata={"static": True})
    loss: Callable | None = field(default=None, metadata={"static": True})
    convex: bool = field(default=False, metadata={"static": True})
    curvature: str = field(default="hessian", metadata={"static": True})
    lipschitz: Any = field(default=None, metadata={"static": True})

    @property
    def anchored(self) -> bool:
        """Whether the solution is a function of theta apart from where the solver starts."""
        return self.kind != "plain"

    def parameters(self, mean: Any) -> Any:
        """Theta for a given mean: the mean itself, or a `Theta` where a strength or a noise is learned."""
        theta = mean if self.learns is None else Theta(mean, self.learns.logs(self.split(mean)))
        learns = getattr(self.loss, "parameters", None)
        return theta if learns is None else learns(theta)

    def loss_at(self, theta: Any) -> Any:
        """The loss (phi, batch) -> scalar where theta is known, which a noise variance may be part of."""
        given = getattr(self.loss, "given", None)
        return self.loss if given is None else given(theta)

    def mean(self, theta: Any) -> Any:
        """The part of theta that is shaped like the full tree of a task's parameters."""
        return theta.mean if isinstance(theta, Theta) else theta

    def init(self, theta: Any, batch: Any, key: Array | None = None) -> Any:
        """Where the inner solver starts: the adapted leaves of theta, or what the problem's `init` gives."""
        if self.start is not None:
            return self.start(theta, batch, key)
        return self.adapt.split(self.mean(theta))[0]

    def split(self, phi: Any) -> Any:
        """The adapted leaves of a full tree."""
        return self.adapt.split(phi)[0]

    def full(self, phi: Any, theta: Any) -> Any:
        """The whole tree that losses see: the adapted leaves of phi, the shared leaves of theta."""
        if self.adapt.choice is None:
            return phi
        return self.adapt.join(phi, self.adapt.split(self.mean(theta))[1])

    def residual(self, phi: Any, theta: Any, batch: Any) -> Any:
        """F(phi, theta, batch), shaped like `phi` (the adapted leaves); zero at the solution."""
        return self.residual_of(self, phi, theta, batch)

    def slope(self, phi: Any, theta: Any, batch: Any) -> Any:
        """F(phi, theta, batch) as a program whose derivative in phi is the true one.

        That of `residual` is the Gauss-Newton matrix where the problem has Gauss-Newton curvature.
        """
        if self.curvature != "gauss-newton":
            return self.residual(phi, theta, batch)
        return jax.grad(lambda p: self.objective(p, theta, batch))(phi)

    def hessian_lipschitz(self, batch: Any) -> Array | None:
        """The declared Lipschitz constant of the loss's Hessian on a batch, a scalar; None if none was."""
        return None if self.lipschitz is None else declared("proximal", self.lipschitz, batch)

    def objective(self, phi: Any, theta: Any, batch: Any) -> Array | None:
        """The scalar of which F is the gradient, or None where there is none."""
        return None if self.objective_of is None else self.objective_of(self, phi, theta, batch)

    def precision(self, phi: Any, theta: Any) -> Precision:
        """The precision P of the anchored term 1/2 (phi - theta)^T P (phi - theta), of a proximal problem."""
        if self.learns is None:
            return Strengths(_spread(self.strength, phi, self.adapt), phi)
        if getattr(theta, "log_strength", None) is None:
            raise ConfigError(
                "this problem learns its strength, so theta must be a Theta(mean, log_strength); it came "
                f"as {type(theta).__name__}. Make it with problem.parameters(mean)."
            )
        return self.learns.precision(theta.log_strength, phi)

    @property
    def diagonal(self) -> bool:
        """Whether the anchor has a strength for every parameter, and is no matrix that mixes them."""
        return self.learns is None or self.learns.diagonal

    @property
    def learns_more(self) -> bool:
        """Whether the problem depends on more of theta than its mean: a learned strength, or noise."""
        return self.learns is not None or isinstance(getattr(self.loss, "noise", None), Learned)

    def strengths(self, phi: Any, theta: Any) -> Any:
        """The strength of every adapted leaf, a tree like `phi` of arrays that broadcast to its leaves."""
        precision = self.precision(phi, theta)
        if isinstance(precision, Strengths):
            return precision.values
        raise StructureError(
            f"strengths: learned per={self.learns.per!r} they are a matrix, with no number of their own for "  # type: ignore[union-attr]
            "every parameter; use problem.precision(phi, theta)."
        )

    def displacement(self, phi: Any, theta: Any) -> Any:
        """phi - theta over the adapted leaves."""
        return tree.minus(phi, self.split(self.mean(theta)))

    def curvature_floor(self, phi: Any, theta: Any) -> Array | None:
        """A lower bound of A's eigenvalues that the problem's kind gives, the least strength; or None.

        It is given for losses declared convex, and for Gauss-Newton curvature.
        """
        given = self.kind == "proximal" and (self.convex or self.curvature == "gauss-newton")
        return self.least_strength(phi, theta) if given else None

    def least_strength(self, phi: Any, theta: Any) -> Array:
        """The least strength of all adapted parameters, of a proximal problem: a lower bound of P."""
        return self.precision(phi, theta).least()


def declared(owner: str, constant: Any, batch: Any) -> Array:
    """A declared constant as a scalar: a number, or what a function makes of a batch."""
    value = jnp.asarray(
        constant(batch) if callable(constant) else constant
    )  # what is not >= 0 bounds nothing
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
        raise ConfigError(
            f"{owner}: lipschitz: expected a number, or a function batch -> number; got an array of shape "
            f"{value.shape}, {value.dtype}. Hint: return one scalar, such as a maximum over the rows."
        )
    return jnp.where(value >= 0, value, jnp.inf)


def check_lipschitz(owner: str, constant: Any) -> None:
    """Raises ConfigError for a declared constant that is no function and no finite number of at least 0."""
    if constant is not None and not callable(constant):
        require_number(owner, 0, lipschitz=constant)


def _spread(strength: Any, phi: Any, adapt: Selection) -> Any:
    """The strength as a tree like phi; ConfigError where it fits neither phi's leaves nor its shapes."""
    cast = lambda value, leaf: jnp.asarray(value, jnp.result_type(leaf))  # noqa: E731
    if jax.tree.structure(strength) == jax.tree.structure(0) and jnp.ndim(strength) == 0:
        return jax.tree.map(lambda leaf: cast(strength, leaf), phi)
    if jax.tree.structure(strength) != jax.tree.structure(phi) and adapt.choice is not None:
        strength = adapt.split(strength)[0]
    if jax.tree.structure(strength) != jax.tree.structure(phi):
        raise ConfigError(
            f"strength: came as {tree.shapes(strength)}; accepted are one number, or a tree like the adapted "
            f"parameters, {tree.shapes(phi)}, with one number a leaf or one a parameter."
        )

    def fit(value: Any, leaf: Any) -> Array:
        if jnp.shape(value) not in ((), jnp.shape(leaf)):
            raise ConfigError(
                f"strength: a leaf of shape {jnp.shape(value)} for a parameter of shape {jnp.shape(leaf)}; "
                "accepted are one number or an array of the parameter's shape."
            )
        return cast(value, leaf)

    return jax.tree.map(fit, strength, phi)


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
    _check_callable("loss", loss)
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
            slope = _gauss_newton_slope(fit, phi, full, batch)
        else:
            slope = jax.grad(lambda p: _scalar("loss", fit(full(p), batch)))(phi)
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
    _check_callable("loss", loss)

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        return jax.grad(lambda p: _scalar("loss", loss(problem.full(p, theta), batch)))(phi)

    def objective(problem: Problem, phi: Any, theta: Any, batch: Any) -> Array:
        return loss(problem.full(phi, theta), batch)

    return Problem(None, "plain", "symmetric", residual, objective, adapt=Selection.of(adapt), loss=loss)


def stationary(objective: Callable, init: Callable | None = None, structure: str = "spd") -> Problem:
    """The problem d/dphi objective(phi, theta, batch) = 0.

    init: (theta, batch, key) -> phi, by default theta itself. structure: "spd" at a strict minimum,
    "symmetric" at a saddle.
    """
    _check_callable("objective", objective)
    if structure not in ("spd", "symmetric"):
        raise ConfigError(
            f"stationary: structure={structure!r}; accepted: 'spd' (a minimum), 'symmetric' (a saddle)."
        )

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        return _guarded("stationary", init, lambda: jax.grad(objective)(phi, theta, batch), phi)

    def value(problem: Problem, phi: Any, theta: Any, batch: Any) -> Array:
        return objective(phi, theta, batch)

    return Problem(None, "stationary", structure, residual, value, start=init)


def fixed_point(update: Callable, init: Callable | None = None) -> Problem:
    """The problem phi = update(phi, theta, batch), with F = phi - update(phi, theta, batch), "general".

    init: (theta, batch, key) -> phi, by default theta itself. `GradientDescent(1.0, ...)` is then plain
    fixed-point iteration.
    """
    _check_callable("update", update)

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        new = _guarded("fixed_point", init, lambda: update(phi, theta, batch), phi)
        return jax.tree.map(jnp.subtract, phi, new)

    return Problem(None, "fixed_point", "general", residual, start=init)


def game(loss_x: Callable, loss_y: Callable, init: Callable | None = None) -> Problem:
    """The two-player game: x minimises loss_x(x, y, theta, batch), y minimises loss_y(x, y, theta, batch).

    phi = (x, y); F = (d/dx loss_x, d/dy loss_y); "general". init: (theta, batch, key) -> (x, y), by default
    theta, which must then be such a pair.
    """
    _check_callable("loss_x", loss_x)
    _check_callable("loss_y", loss_y)

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        if not (isinstance(phi, tuple) and len(phi) == 2):
            raise ConfigError(
                f"game: phi must be a pair (x, y); it came as {tree.shapes(phi)}. By default it starts at "
                "theta: pass init=(theta, batch, key) -> (x, y) where theta is no such pair."
            )
        x, y = phi
        parts = (jax.grad(loss_x, argnums=0), jax.grad(loss_y, argnums=1))
        return _guarded("game", init, lambda: tuple(part(x, y, theta, batch) for part in parts), phi)

    return Problem(None, "game", "general", residual, start=init)


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
    _check_callable("field", field)
    if isinstance(strength, Learned):
        raise ConfigError(
            f"equilibrium: strength={strength!r}; accepted is a positive number, a tree of them, or None."
        )
    if strength is not None:
        _check_positive(strength)

    def residual(problem: Problem, phi: Any, theta: Any, batch: Any) -> Any:
        full = problem.full(phi, theta)
        slope = problem.split(_guarded("equilibrium", None, lambda: field(full, batch), full))
        if problem.strength is None:
            return slope
        pulled = problem.precision(phi, theta).pull(problem.displacement(phi, theta))
        return jax.tree.map(jnp.add, slope, pulled)

    kind = "plain" if strength is None else "equilibrium"
    return Problem(strength, kind, "general", residual, adapt=Selection.of(adapt), loss=field)


def _guarded(kind: str, init: Callable | None, compute: Callable, phi: Any) -> Any:
    """The residual's part shaped like phi; where it is not, or fails, advice on `init`."""
    advice = (
        "phi starts at theta by default; where a task's parameters are shaped otherwise, pass "
        "init=(theta, batch, key) -> phi."
        if init is None
        else "phi starts at what `init` returned; check its shapes."
    )
    try:
        result = compute()
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ConfigError(f"{kind}: failed at phi = {tree.shapes(phi)}: {error}. {advice}") from error
    if not tree.same(result, phi):
        raise ConfigError(
            f"{kind}: gives {tree.shapes(result)} for phi = {tree.shapes(phi)}; they must have the same "
            f"structure and shapes. {advice}"
        )
    return result


def _check_callable(argument: str, value: Any) -> None:
    if not callable(value):
        raise ConfigError(f"{argument}: {value!r} is no function.")


def _scalar(argument: str, value: Any) -> Array:
    if jnp.shape(value) != ():
        raise ConfigError(
            f"{argument}: must return one number; it returned an array of shape {jnp.shape(value)}."
        )
    return value


def require_anchor(problem: Problem) -> None:
    """Raises StructureError for a problem whose solution is no function of theta."""
    if not problem.anchored:
        raise StructureError(
            "the implicit rule needs a solution that depends on theta itself, and plain(loss) only starts "
            "there. Use proximal(loss, strength), or the rules unrolled() (MAML) or first_order() (FOMAML)."
        )
