"""The methods, each a problem, an inner solver and a rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..core.errors import ConfigError
from ..core.tree import PyTree
from ..inner.base import InnerSolver
from ..inner.gradient import GradientDescent
from ..linear.base import LinearSolver
from ..problems.base import Problem
from ..problems.losses import joined
from ..problems.precision import learned
from .accuracy import Tightening
from .certificate import Certificate
from .gradient import MetaGradient, View
from .implicit import implicit
from .joint import jointly
from .reptile import displacement, envelope
from .unrolled import first_order, unrolled


def IMAML(
    problem: Problem,
    query_loss: Callable,
    *,
    inner: InnerSolver,
    linear: LinearSolver | None = None,
    certify: bool | Certificate = False,
    correct: bool = False,
    accuracy: float | Tightening | None = None,
    **options: Any,
) -> MetaGradient:
    """Implicit MAML: the implicit meta-gradient (Rajeswaran et al. 2019, Algorithms 1 and 2).

    problem: one task's inner problem, usually `proximal`. query_loss: (phi, theta, batch) -> scalar. inner,
    linear: how well each task is solved (delta) and its linear system (delta'). certify: whether each task's
    error is bounded (`Metrics.error_bound`, see `Certificate`); without, it is only estimated. correct:
    whether one Newton step more is taken, after which the error falls with delta squared. accuracy: the error
    asked for instead, relative to a task's meta-gradient, or a `Tightening`, see `implicit`. options: policy,
    chunk, mesh, measure, of `MetaGradient`. The result is the gradient of `theta`, shaped like it: the direct
    term plus `implicit_vjp`.

    >>> import imaml, jax, jax.numpy as jnp
    >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
    >>> method = imaml.IMAML(imaml.proximal(loss, 1.0), lambda phi, theta, x: loss(phi, x),
    ...                      inner=imaml.GradientDescent(0.5, steps=30), linear=imaml.CG(steps=2))
    >>> tasks = imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1)))
    >>> gradient, metrics = method(jnp.zeros(1), tasks, jax.random.key(0))
    >>> gradient
    Array([-0.25], dtype=float32)
    """
    rule = implicit(linear, certify=certify, correct=correct, accuracy=accuracy)
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)


def MAML(problem: Problem, query_loss: Callable, *, inner: InnerSolver, **options: Any) -> MetaGradient:
    """Model-agnostic meta-learning: through every inner step (Finn, Abbeel, Levine 2017, Algorithm 1).

    problem: usually `plain(loss)`, which starts at theta; with adapt="head" it is ANIL (Raghu et al. 2020).
    inner: for a fixed number of steps. Memory grows with them. The other arguments as for `IMAML`.

    >>> import imaml, jax.numpy as jnp
    >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
    >>> method = imaml.MAML(imaml.plain(loss), lambda phi, theta, x: loss(phi, x),
    ...                     inner=imaml.GradientDescent(0.5, steps=1))
    >>> method(jnp.zeros(1), imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1))))[0]
    Array([-0.25], dtype=float32)
    """
    return MetaGradient(problem, query_loss, inner=inner, rule=unrolled(), **options)


def MetaSGD(
    problem: Problem, query_loss: Callable, *, inner: GradientDescent, **options: Any
) -> MetaGradient:
    """Meta-SGD: MAML that learns an inner learning rate for every parameter (Li, Zhou, Chen, Li 2017, eq. 2).

    inner: its learning_rate is what the rates begin with, its number of steps is fixed. Unlike in the paper,
    rates stay positive: their logarithms are learned. The other arguments as for `MAML`.

    >>> import imaml, jax, jax.numpy as jnp
    >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - x) ** 2)
    >>> method = imaml.MetaSGD(imaml.plain(loss), lambda phi, theta, x: loss(phi, x),
    ...                        inner=imaml.GradientDescent(0.5, steps=1))
    >>> theta = method.inner.parameters(method.problem, jnp.zeros(1))
    >>> method(theta, imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1))))[0].log_rate
    Array([-0.25], dtype=float32)
    """
    if not isinstance(inner, GradientDescent):
        raise ConfigError(f"MetaSGD: inner={inner!r}; accepted is a GradientDescent(rate, steps=...).")
    if isinstance(inner.learning_rate, float | int):
        inner = replace(inner, learning_rate=learned(inner.learning_rate, per="parameter"))
    return MetaGradient(problem, query_loss, inner=inner, rule=unrolled(), **options)


def FOMAML(problem: Problem, query_loss: Callable, *, inner: InnerSolver, **options: Any) -> MetaGradient:
    """First-order MAML: the query loss's gradient at the adapted parameters (Finn et al. 2017, section 5.2).

    Arguments as for `MAML`; the inner solver may also stop at a tolerance, or be one that cannot be
    differentiated.
    """
    return MetaGradient(problem, query_loss, inner=inner, rule=first_order(), **options)


def Reptile(
    problem: Problem,
    query_loss: Callable,
    *,
    inner: InnerSolver,
    whole: Callable[[PyTree, PyTree], PyTree] = joined,
    **options: Any,
) -> MetaGradient:
    """Reptile: theta - phi_k on `plain(loss)` (Nichol, Achiam, Schulman 2018); on `proximal` its proximal
    form, the gradient of the inner optimum's value, strength (theta - phi*).

    Each learns from a task's data as one batch, whole(support, query); the query loss is only measured. The
    displacement is in units of theta: plain SGD with an outer learning rate of 1 moves theta to the mean phi.

    >>> import imaml, jax.numpy as jnp
    >>> loss = lambda phi, x: 0.5 * jnp.sum((phi - jnp.mean(x)) ** 2)
    >>> method = imaml.Reptile(imaml.plain(loss), lambda phi, theta, x: loss(phi, x),
    ...                        inner=imaml.GradientDescent(0.5, steps=1))
    >>> method(jnp.zeros(1), imaml.Task(jnp.ones((4, 1)), jnp.ones((4, 1))))[0]
    Array([-0.5], dtype=float32)
    """
    anchored = isinstance(problem, Problem) and problem.anchored
    rule = envelope(whole) if anchored else displacement(whole)
    return MetaGradient(problem, query_loss, inner=inner, rule=rule, **options)


def Joint(
    domain: Any, problem: Problem, *, inner: InnerSolver, grouped: bool = False, **options: Any
) -> MetaGradient:
    """Transfer learning: one network for all training tasks, then fine-tuned; grouped: multi-task learning.

    domain: gives the loss of all classes at once (`joint_loss`), the parameters with all their outputs
    (`wide`), and what a new task starts at, with a fresh head (`narrow`). grouped: a head for every group of
    classes on one shared body (Caruana 1997), instead of one head for all. problem, inner: how a new task is
    learned from there; `domain.problem(None)` fine-tunes the whole network, `domain.problem(None, "head")`
    the head alone. options: as of `MetaGradient`. ConfigError where domain has no such loss or parameters.

    >>> import imaml
    >>> domain = imaml.characters(ways=3, filters=4)
    >>> method = Joint(domain, domain.problem(None), inner=imaml.GradientDescent(0.1, steps=5))
    >>> run = imaml.train(domain, method, imaml.Optimiser("adam", 1e-3), steps=1, tasks=2, progress=False)
    """
    if not all(hasattr(domain, name) for name in ("joint_loss", "wide", "narrow", "whole", "query_loss")):
        raise ConfigError(
            f"Joint: domain is a {type(domain).__name__}; accepted is a domain with a loss over all "
            "classes, such as imaml.characters(): Joint(domain, domain.problem(None), inner=...)."
        )
    return MetaGradient(
        problem,
        domain.query_loss,
        inner=inner,
        rule=jointly(functools.partial(domain.joint_loss, grouped=grouped), domain.whole),
        view=View(domain.wide, domain.narrow),
        **options,
    )
