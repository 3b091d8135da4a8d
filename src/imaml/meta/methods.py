"""The methods, each a problem, an inner solver and a rule."""

import functools
from dataclasses import replace
from typing import Protocol, Unpack, runtime_checkable

from jax import Array

from ..core.errors import ConfigError
from ..core.tree import Tree
from ..inner.base import InnerSolver
from ..inner.gradient import GradientDescent, as_descent
from ..linear.base import LinearSolver
from ..problems.base import Problem
from ..problems.losses import Join, joined
from ..problems.precision import learned
from .accuracy import Tightening
from .certificate import Certificate
from .gradient import MetaGradient, Options, View
from .implicit import implicit
from .joint import jointly
from .reptile import displacement, envelope
from .system import QueryLoss
from .unrolled import first_order, unrolled


def IMAML(
    problem: Problem,
    query_loss: QueryLoss,
    *,
    inner: InnerSolver,
    linear: LinearSolver | None = None,
    certify: bool | Certificate = False,
    correct: bool = False,
    accuracy: float | Tightening | None = None,
    **options: Unpack[Options],
) -> MetaGradient:
    """Implicit MAML: the implicit meta-gradient.

    Args:
        problem: One task's inner problem, usually `proximal`.
        query_loss: The outer loss, (phi, theta, batch) -> scalar.
        inner: The inner solver; it determines how accurately each task is solved (delta).
        linear: The linear solver; it determines how accurately the linear system is solved (delta').
        certify: Whether each task's error is bounded (`Metrics.error_bound`): True, or a `Certificate`.
            Without it the error is only estimated.
        correct: Whether one more Newton step is taken, after which the error falls with delta squared.
        accuracy: The requested error, relative to a task's meta-gradient, or a `Tightening`; see `implicit`.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Raises:
        ConfigError: If an argument is not valid.
        StructureError: If the problem is not anchored, or the linear solver does not accept its structure.

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
        >>> method = imaml.IMAML(imaml.proximal(loss, 1.0), lambda phi, theta, x: loss(phi, x),
        ...                      inner=imaml.GradientDescent(0.5, steps=30), linear=imaml.CG(steps=2))
        >>> tasks = imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1)))
        >>> gradient, metrics = method(jnp.zeros(1), tasks, jax.random.key(0))
        >>> gradient
        Array([-0.25], dtype=float32)

    References:
        Rajeswaran et al. (2019), Meta-learning with implicit gradients, Algorithms 1 and 2.
    """
    rule = implicit(linear, certify=certify, correct=correct, accuracy=accuracy)
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)


def MAML(
    problem: Problem, query_loss: QueryLoss, *, inner: InnerSolver, **options: Unpack[Options]
) -> MetaGradient:
    """Model-agnostic meta-learning: the exact gradient through every inner step.

    Args:
        problem: Usually `plain(loss)`, which starts at theta; with ``adapt="head"`` it is ANIL (Raghu et al.
            2020).
        query_loss: The outer loss, (phi, theta, batch) -> scalar.
        inner: An inner solver with a fixed number of steps. Memory grows with them.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Raises:
        StructureError: If reverse mode cannot go through the inner solver.

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
        >>> method = imaml.MAML(imaml.plain(loss), lambda phi, theta, x: loss(phi, x),
        ...                     inner=imaml.GradientDescent(0.5, steps=1))
        >>> method(jnp.zeros(1), imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1))))[0]
        Array([-0.25], dtype=float32)

    References:
        Finn, Abbeel, Levine (2017), Algorithm 1.
    """
    return MetaGradient(problem, query_loss, inner=inner, rule=unrolled(), **options)


def MetaSGD(
    problem: Problem, query_loss: QueryLoss, *, inner: GradientDescent, **options: Unpack[Options]
) -> MetaGradient:
    """Meta-SGD: MAML that learns an inner learning rate for every parameter.

    Unlike in the paper, rates stay positive: their logarithms are learned.

    Args:
        problem: Usually `plain(loss)`.
        query_loss: The outer loss, (phi, theta, batch) -> scalar.
        inner: Gradient descent with a fixed number of steps; its learning_rate is the initial rate.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Raises:
        ConfigError: If `inner` is no `GradientDescent`.

    Example:
        >>> import imaml, jax, jax.numpy as jnp
        >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
        >>> method = imaml.MetaSGD(imaml.plain(loss), lambda phi, theta, x: loss(phi, x),
        ...                        inner=imaml.GradientDescent(0.5, steps=1))
        >>> theta = method.inner.parameters(method.problem, jnp.zeros(1))
        >>> method(theta, imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1))))[0].log_rate
        Array([-0.25], dtype=float32)

    References:
        Li, Zhou, Chen, Li (2017), equation 2.
    """
    descent = as_descent(inner)
    if descent is None:
        raise ConfigError(f"MetaSGD: inner: expected a GradientDescent(rate, steps=...), got {inner!r}.")
    if isinstance(descent.learning_rate, float | int):
        inner = replace(descent, learning_rate=learned(inner.learning_rate, per="parameter"))  # type: ignore[arg-type]
    return MetaGradient(problem, query_loss, inner=inner, rule=unrolled(), **options)


def FOMAML(
    problem: Problem, query_loss: QueryLoss, *, inner: InnerSolver, **options: Unpack[Options]
) -> MetaGradient:
    """First-order MAML: the query loss's gradient at the adapted parameters.

    Args:
        problem: Usually `plain(loss)`.
        query_loss: The outer loss, (phi, theta, batch) -> scalar.
        inner: Any inner solver; it may stop at a tolerance, and need not be differentiable.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
        >>> method = imaml.FOMAML(imaml.plain(loss), lambda phi, theta, x: loss(phi, x),
        ...                       inner=imaml.GradientDescent(0.5, steps=1))
        >>> method(jnp.zeros(1), imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1))))[0]
        Array([-0.5], dtype=float32)

    References:
        Finn, Abbeel, Levine (2017), section 5.2.
    """
    return MetaGradient(problem, query_loss, inner=inner, rule=first_order(), **options)


def Reptile(
    problem: Problem,
    query_loss: QueryLoss,
    *,
    inner: InnerSolver,
    whole: Join = joined,
    **options: Unpack[Options],
) -> MetaGradient:
    """Reptile: theta - phi_k on `plain(loss)`; on `proximal` the gradient of the inner optimum's value.

    Both use all of a task's data as one batch; the query loss is only reported. The displacement theta -
    phi_k has the units of theta: plain SGD with an outer learning rate of 1 moves theta to the mean phi. The
    proximal form is strength (theta - phi*).

    Args:
        problem: `plain(loss)` or `proximal(loss, strength)`.
        query_loss: The outer loss, (phi, theta, batch) -> scalar.
        inner: The inner solver.
        whole: Makes one batch of a task's support and query set, (support, query) -> batch.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Example:
        >>> import imaml, jax.numpy as jnp
        >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - jnp.mean(x)) ** 2)
        >>> method = imaml.Reptile(imaml.plain(loss), lambda phi, theta, x: loss(phi, x),
        ...                        inner=imaml.GradientDescent(0.5, steps=1))
        >>> method(jnp.zeros(1), imaml.Task(jnp.ones((4, 1))))[0]
        Array([-0.5], dtype=float32)

    References:
        Nichol, Achiam, Schulman (2018), Algorithm 1.
    """
    anchored = isinstance(problem, Problem) and problem.anchored
    rule = envelope(whole) if anchored else displacement(whole)
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)


@runtime_checkable
class JointDomain(Protocol):
    """A domain with a loss over the classes of all tasks."""

    def query_loss(self, phi: Tree, theta: Tree, batch: Tree) -> Array:
        """Return the query loss of one task.

        Args:
            phi: Adapted parameters.
            theta: The meta-parameters.
            batch: The query batch.

        Returns:
            A scalar.
        """
        ...

    def joint_loss(self, theta: Tree, batch: Tree, grouped: bool = False) -> Array:
        """Return the loss over the classes of all tasks at once.

        Args:
            theta: Parameters as `wide` returns them.
            batch: All of a task's data, as `whole` returns them.
            grouped: Whether each group of classes has a head of its own.

        Returns:
            A scalar.
        """
        ...

    def wide(self, key: Array) -> Tree:
        """Return fresh parameters with an output for every class.

        Args:
            key: A random key.

        Returns:
            A pytree of float arrays.
        """

    def narrow(self, theta: Tree) -> Tree:
        """Return where a new task starts, with a fresh head.

        Args:
            theta: Parameters as `wide` returns them.

        Returns:
            Parameters of the network for one task.
        """

    def whole(self, support: Tree, query: Tree) -> Tree:
        """Return both sets of a task as one batch.

        Args:
            support: The support batch.
            query: The query batch.

        Returns:
            One batch, with the support's rows first.
        """


def Joint(
    domain: JointDomain,
    problem: Problem,
    *,
    inner: InnerSolver,
    grouped: bool = False,
    **options: Unpack[Options],
) -> MetaGradient:
    """Transfer learning: one network for all training tasks, then fine-tuned.

    Args:
        domain: Gives the loss of all classes at once (`joint_loss`), parameters with all their outputs
            (`wide`), and what a new task starts at, with a fresh head (`narrow`).
        problem: The inner problem of a new task: ``domain.problem(None)`` fine-tunes the whole network,
            ``domain.problem(None, "head")`` only the head.
        inner: The inner solver for new tasks.
        grouped: Whether it is multi-task learning: a head for every group of classes on one shared body,
            instead of one head for all.
        **options: `policy`, `chunk`, `mesh`, `measure` and `new_task` of `MetaGradient`.

    Returns:
        The method: (theta, tasks, key) -> (meta-gradient, Metrics).

    Raises:
        ConfigError: If the domain has no such loss or parameters.

    Example:
        >>> import imaml
        >>> domain = imaml.characters(ways=3, filters=4)
        >>> method = Joint(domain, domain.problem(None), inner=imaml.GradientDescent(0.1, steps=5))
        >>> run = imaml.train(domain, method, imaml.Optimiser("adam", 1e-3), steps=1, tasks=2, progress=False)

    References:
        Caruana (1997), Multitask learning.
    """
    if not isinstance(domain, JointDomain):
        raise ConfigError(
            "Joint: domain: expected one with a loss over all classes, such as imaml.characters(), got "
            f"{type(domain).__name__}. Hint: Joint(domain, domain.problem(None), inner=...)."
        )
    return MetaGradient(
        problem,
        domain.query_loss,
        inner=inner,
        rule=jointly(functools.partial(domain.joint_loss, grouped=grouped), domain.whole),
        view=View(domain.wide, domain.narrow),
        **options,
    )
