"""One task's inner problem: a residual F(phi, theta, batch) that is zero at the solution, and its structure.

class        residual F
Proximal     d/dphi loss(phi, batch) + strength (phi - theta)        the paper's problem, eq. 3
                                                                     (or P (phi - theta), see `precision`)
Plain        d/dphi loss(phi, batch), started at theta               MAML and its kin
Stationary   d/dphi objective(phi, theta, batch)
FixedPoint   phi - update(phi, theta, batch)
Game         (d/dx loss_x, d/dy loss_y), phi = (x, y)
Equilibrium  field(phi, batch) + strength (phi - theta)              where nothing is minimised

A new kind of problem is a frozen dataclass derived from `Problem` that defines `kind`, `structure` and
`residual`; see `Problem`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core import tree
from ..core.content import ByContent
from ..core.errors import ConfigError, StructureError
from ..core.tree import Selection, Tree
from ..core.validation import require_number
from .matrices import Precision, Strengths
from .precision import Learned, Theta, spread_over

if TYPE_CHECKING:
    from .linear_outputs import LinearSquares

Key = Array | None  # a random key, if one is given
Loss = Callable[[Tree, Tree], Array]  # (phi, batch) -> scalar
Start = Callable[[Tree, Tree, Array | None], Tree]  # (theta, batch, key) -> phi
ALL = Selection()  # a task adapts every leaf
CURVATURES = ("hessian", "gauss-newton")


class Task(NamedTuple):
    """Tasks to learn from, with a leading axis of tasks on every leaf.

    Attributes:
        support: The data that a task adapts to, any pytree.
        query: The data that the adapted parameters are scored on, any pytree. It may be None for methods that
            learn from all of a task's rows at once (evidence, moments, reptile); otherwise they join both
            sets.
    """

    support: Tree
    query: Tree = None

    @property
    def asked(self) -> Tree:
        """The query set, or the support set if there is no query set."""
        return self.support if self.query is None else self.query

    def whole(self, join: Callable[[Tree, Tree], Tree]) -> Tree:
        """Return all of a task's rows as one batch.

        Args:
            join: Joins both sets, (support, query) -> batch.

        Returns:
            The batch; the support set if there is no query set.
        """
        return self.support if self.query is None else join(self.support, self.query)


class Problem(ByContent):
    """One inner problem, made by `proximal`, `plain`, `stationary`, `fixed_point`, `game` or `equilibrium`.

    Two problems are equal if they have the same class and their fields have equal content. So `jax.jit`
    compiles a function once for equal problems.

    A problem is also a pytree. Its only leaf is the strength, which can be traced, batched and
    differentiated; the rest is static. In `residual` and `objective`, `phi` holds the adapted parameters
    only, and None in the places of shared ones; `full` gives the whole tree that losses take.

    A kind of your own is a frozen dataclass with `kind`, `structure` and `residual`. It is registered as a
    pytree automatically; the fields named in `leaves` are its leaves.

    Attributes:
        kind: The name in messages.
        structure: Of A = dF/dphi at the solution: "spd", "symmetric" or "general".
        leaves: The names of the fields that are pytree leaves.
        anchored: Whether the solution depends on theta other than through where the solver starts.
        has_objective: Whether F is the gradient of a scalar, which `objective` returns.
        has_precision: Whether F has a term P (phi - theta), with P given by `precision`.
        diagonal: Whether A is a loss's curvature plus a known diagonal, a strength for each parameter.
        loss: The loss (phi, batch) -> scalar, or the field, where there is one.
        strength: The regularisation strength, None where there is none or it is learned.
        adapt: Which leaves a task adapts.
        learns: The learned strength, or None.
        convex: Whether the loss is declared convex.
        curvature: "hessian" or "gauss-newton".

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, eq=False)
        ... class Halfway(imaml.Problem):
        ...     kind, structure = "halfway", "spd"
        ...     def residual(self, phi, theta, batch):
        ...         return 2 * phi - theta - batch
        >>> inner, rule = imaml.GradientDescent(0.5, steps=1), imaml.implicit(imaml.CG(steps=1))
        >>> imaml.solve(Halfway(), jnp.zeros(1), jnp.ones(1), inner=inner, rule=rule)
        Array([0.5], dtype=float32)
    """

    kind: ClassVar[str]
    leaves: ClassVar[tuple[str, ...]] = ()
    anchored: bool = True
    has_objective: ClassVar[bool] = False
    has_precision: bool = False
    diagonal: bool = False
    structure: str
    loss: Any = None  # each kind declares its own
    strength: Tree = None
    adapt: Selection = ALL
    learns: Learned | None = None
    convex: bool = False
    curvature: str = "hessian"
    start: Start | None = None

    def __init_subclass__(cls) -> None:
        """Makes the class a pytree."""
        jax.tree_util.register_pytree_node(cls, _flatten, _unflatten)

    @property
    def learns_more(self) -> bool:
        """Whether the problem depends on more of theta than its mean: a learned strength, or noise."""
        return self.learns is not None or isinstance(getattr(self.loss, "noise", None), Learned)

    def residual(self, phi: Tree, theta: Tree, batch: Tree) -> Tree:
        """Compute F(phi, theta, batch), which is zero at the solution.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.
            batch: The support set.

        Returns:
            F, a tree shaped like `phi`.
        """
        raise NotImplementedError

    def guarded(self, compute: Callable[[], Tree], phi: Tree) -> Tree:
        """Call a user's function that must return something shaped like phi.

        Args:
            compute: Calls the user's function.
            phi: A tree of the shape that is expected.

        Returns:
            What `compute` returned.

        Raises:
            ConfigError: If it fails, or returns another structure or other shapes; with a hint on `init`.
        """
        advice = "Hint: phi starts at what `init` returned; check its shapes."
        if self.start is None:
            advice = (
                "Hint: phi starts at theta by default; where a task's parameters are shaped otherwise, pass "
                "init=(theta, batch, key) -> phi."
            )
        what = f"{self.kind}: expected a result shaped like phi, {tree.shapes(phi)}, got"
        try:
            result = compute()
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise ConfigError(f"{what} an error: {error}. {advice}") from error
        if not tree.same(result, phi):
            raise ConfigError(f"{what} {tree.shapes(result)}. {advice}")
        # In phi's dtypes, which a loop must keep, whatever those of theta and the data are.
        return jax.tree.map(lambda new, old: jnp.asarray(new, jnp.result_type(old)), result, phi)

    def objective(self, phi: Tree, theta: Tree, batch: Tree) -> Array | None:
        """Compute the scalar whose gradient is F.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.
            batch: The support set.

        Returns:
            The value, a scalar; None if F is not a gradient (`has_objective` is False).
        """
        return None

    def slope(self, phi: Tree, theta: Tree, batch: Tree) -> Tree:
        """Compute F by a program whose derivative in phi is the objective's Hessian.

        The derivative of `residual` is the Gauss-Newton matrix if the problem has Gauss-Newton curvature.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.
            batch: The support set.

        Returns:
            F, a tree shaped like `phi`.
        """
        if self.curvature != "gauss-newton":
            return self.residual(phi, theta, batch)
        return jax.grad(lambda p: self.objective(p, theta, batch))(phi)

    def init(self, theta: Tree, batch: Tree, key: Key = None) -> Tree:
        """Return the point at which the inner solver starts.

        Args:
            theta: The meta-parameters.
            batch: The support set.
            key: A random key for a problem whose `init` draws its start.

        Returns:
            The adapted parameters of theta, or what the problem's own `init` function returns.
        """
        if self.start is not None:
            return self.start(theta, batch, key)
        mean = self.adapt.split(self.mean(theta))[0]
        # A head that is one column in theta has a column for each class of a task.
        expand_head = getattr(self.loss, "expand_head", None)
        return mean if expand_head is None else expand_head(mean, batch)

    def parameters(self, mean: Tree) -> Tree:
        """Make theta for a given mean.

        Args:
            mean: The full tree of parameters that tasks start at or are anchored to.

        Returns:
            The mean itself, or a `Theta` if a strength or a noise variance is learned.
        """
        theta = mean if self.learns is None else Theta(mean, self.learns.logs(self.split(mean)))
        learns = getattr(self.loss, "parameters", None)
        return theta if learns is None else learns(theta)

    def loss_at(self, theta: Tree) -> Tree:
        """Return the loss (phi, batch) -> scalar at a theta, which may hold a learned noise variance.

        Args:
            theta: The meta-parameters.

        Returns:
            The loss.
        """
        given = getattr(self.loss, "given", None)
        return self.loss if given is None else given(theta)

    def mean(self, theta: Tree) -> Tree:
        """Return the part of theta that is shaped like the full tree of a task's parameters.

        Args:
            theta: The meta-parameters.

        Returns:
            ``theta.mean`` of a `Theta`, or theta itself.
        """
        return theta.mean if isinstance(theta, Theta) else theta

    def split(self, phi: Tree) -> Tree:
        """Select the adapted parameters of a full tree.

        Args:
            phi: A full tree.

        Returns:
            A tree like `phi` with None in the places of shared parameters.
        """
        return self.adapt.split(phi)[0]

    def full(self, phi: Tree, theta: Tree) -> Tree:
        """Make the full tree that losses take.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.

        Returns:
            The adapted parameters of phi joined with the shared parameters of theta.
        """
        if self.adapt.choice is None:
            return phi
        return self.adapt.join(phi, self.adapt.split(self.mean(theta))[1])

    def displacement(self, phi: Tree, theta: Tree) -> Tree:
        """Compute the difference phi - theta of the adapted parameters.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.

        Returns:
            A tree shaped like `phi`.
        """
        return tree.minus(phi, self.split(self.mean(theta)))

    def precision(self, phi: Tree, theta: Tree) -> Precision:
        """Return the precision P of the term P (phi - theta).

        Args:
            phi: The adapted parameters, of which only structure and shapes matter.
            theta: The meta-parameters, which may hold a learned strength.

        Returns:
            The precision; by default diag(strength).

        Raises:
            StructureError: If the problem has no such term.
            ConfigError: If the strength is learned and theta does not hold it, or does not fit phi.
        """
        if self.strength is None:
            raise StructureError(
                f"precision: expected a problem with a strength, got {self.kind}. Hint: use proximal(loss, "
                "strength)."
            )
        return Strengths(spread_over(self.strength, phi, self.adapt), phi)

    def strengths(self, phi: Tree, theta: Tree) -> Tree:
        """Return the strength of every adapted parameter.

        Args:
            phi: The adapted parameters, of which only structure and shapes matter.
            theta: The meta-parameters, which may hold a learned strength.

        Returns:
            A tree like `phi` of arrays that broadcast to its leaves.

        Raises:
            StructureError: If the precision is a matrix.
        """
        precision = self.precision(phi, theta)
        if isinstance(precision, Strengths):
            return precision.values
        raise StructureError(
            "strengths: expected one number for every parameter, got a matrix, learned "
            f"per={getattr(self.learns, 'per', None)!r}. Hint: use problem.precision(phi, theta)."
        )

    def anchor_diagonal(self, phi: Tree, theta: Tree) -> Tree:
        """Return the diagonal that the anchor adds to the loss's curvature.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.

        Returns:
            A tree like `phi` of arrays that broadcast to its leaves; None where `diagonal` is False.
        """
        return self.strengths(phi, theta) if self.diagonal else None

    @property
    def squares(self) -> LinearSquares | None:
        """The loss, if it is of squares that are linear in the adapted parameters; else None."""
        return None

    @property
    def invertible(self) -> bool:
        """Whether `inverse` has a closed form."""
        return False

    def inverse(self, phi: Tree, theta: Tree, batch: Tree) -> Callable[[Tree], Tree]:
        """Return the function v -> A^-1 v, in closed form.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.
            batch: The support set.

        Returns:
            The function, between trees like `phi`.

        Raises:
            StructureError: If there is no closed form (`invertible` is False).
        """
        raise StructureError(
            f"inverse: expected a proximal problem of a squared loss of the head, got {self.kind}. Hint: use "
            "CG()."
        )

    def curvature_floor(self, phi: Tree, theta: Tree) -> Array | None:
        """Bound the eigenvalues of A from below, at every phi.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.

        Returns:
            The bound, a scalar; None if the problem gives none.
        """
        return None

    def least_strength(self, phi: Tree, theta: Tree) -> Array | None:
        """Bound the eigenvalues of P from below, which a loss's curvature is added to.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.

        Returns:
            The bound, a scalar; None if the problem has no such P.
        """
        return None

    def coupling_norm(self, phi: Tree, theta: Tree) -> Array | None:
        """Return the spectral norm of dF/dtheta, where it is known without a product.

        Args:
            phi: The adapted parameters.
            theta: The meta-parameters.

        Returns:
            The norm, a scalar; None if it is not known.
        """
        return None

    def hessian_lipschitz(self, batch: Tree) -> Array | None:
        """Return the declared Lipschitz constant of the loss's Hessian.

        Args:
            batch: The support set.

        Returns:
            The constant, a scalar; None if none was declared.
        """
        return None


def _flatten(problem: Problem) -> tuple[tuple, Problem]:
    """The leaves of a problem, and the problem without them as static data."""
    names = problem.leaves
    rest = replace(problem, **dict.fromkeys(names)) if names else problem  # type: ignore[type-var]
    return tuple(getattr(problem, name) for name in names), rest


def _unflatten(rest: Problem, leaves: tuple) -> Problem:
    """The problem that `_flatten` took apart."""
    return replace(rest, **dict(zip(rest.leaves, leaves, strict=True))) if leaves else rest  # type: ignore[type-var]


def declared(owner: str, constant: float | Callable[[Tree], Tree], batch: Tree) -> Array:
    """Evaluate a declared constant on a batch.

    Args:
        owner: The name in the message.
        constant: A number, or a function batch -> number.
        batch: The batch.

    Returns:
        The constant, a scalar; infinity in the place of a negative number or NaN, which bound nothing.

    Raises:
        ConfigError: If it is not one number.
    """
    value = jnp.asarray(constant(batch) if callable(constant) else constant)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
        raise ConfigError(
            f"{owner}: lipschitz: expected a number, or a function batch -> number; got an array of shape "
            f"{value.shape}, {value.dtype}. Hint: return one scalar, such as a maximum over the rows."
        )
    return jnp.where(value >= 0, value, jnp.inf)


def check_lipschitz(owner: str, constant: object) -> None:
    """Check a declared Lipschitz constant.

    Args:
        owner: The name in the message.
        constant: None, a number, or a function.

    Raises:
        ConfigError: If it is none of None, a function, and a finite number of at least 0.
    """
    if constant is not None and not callable(constant):
        require_number(owner, 0, lipschitz=constant)


RULES = "the rules unrolled() or first_order()"


def require_anchor(
    problem: Problem, owner: str = "implicit", instead: str = "MAML(...) or FOMAML(...)"
) -> None:
    """Check that a problem's solution is a function of theta.

    Args:
        problem: The problem.
        owner: Who needs it, for the message.
        instead: What takes a problem without an anchor; `RULES` where no method is meant.

    Raises:
        StructureError: If theta enters only as where the solver starts.
    """
    if not problem.anchored:
        raise StructureError(
            f"{owner}: expected a problem whose solution depends on theta, got {problem.kind}, which only "
            f"starts there. Hint: use proximal(loss, strength), or {instead}."
        )
