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
from jax import Array

from ..core import tree
from ..core.errors import ConfigError, StructureError
from ..core.tree import Selection
from ..core.validation import require_number
from .precision import Learned, Precision, Strengths, Theta, spread_over

Loss = Callable[[Any, Any], Array]
CURVATURES = ("hessian", "gauss-newton")


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
            return Strengths(spread_over(self.strength, phi, self.adapt), phi)
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


def guarded(kind: str, init: Callable | None, compute: Callable, phi: Any) -> Any:
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


def require_anchor(problem: Problem) -> None:
    """Raises StructureError for a problem whose solution is no function of theta."""
    if not problem.anchored:
        raise StructureError(
            "the implicit rule needs a solution that depends on theta itself, and plain(loss) only starts "
            "there. Use proximal(loss, strength), or the rules unrolled() (MAML) or first_order() (FOMAML)."
        )
