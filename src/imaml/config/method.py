"""The methods as recipes: one class for each, with the options that the method has.

A new method is one class that registers itself with ``@recipe("method")``; docs/methods.md shows how.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Unpack

import jax
from jax.sharding import Mesh

from ..bayes.curvature import Curvature, Quadrature
from ..bayes.methods import EmpiricalBayes, ExpectationMaximisation, IBaML
from ..core.errors import ConfigError
from ..core.fields import Checked, PositiveFloat, PositiveFraction, PositiveInt
from ..core.recipes import Role, recipe
from ..domains.base import Domain
from ..inner.base import InnerSolver
from ..inner.gradient import GradientDescent, as_descent
from ..linear.base import LinearSolver
from ..linear.cg import CG
from ..meta.accuracy import Tightening
from ..meta.gradient import MetaGradient, Options, Origin, Solving
from ..meta.methods import FOMAML, IMAML, MAML, Joint, MetaSGD, Reptile
from ..meta.published import ThenPulled, as_released
from ..problems.base import Problem
from ..problems.likelihoods import likelihood
from ..problems.precision import Learned, learned
from ..problems.proximal import proximal

DENSE_TASKS = 5  # training tasks for each parameter, from which learned="auto" learns a dense precision


@recipe(fresh={"inner": GradientDescent(0.1, steps=5)})
class NewTask(Checked):
    """How a new task is solved in evaluation and use; see `imaml.Solving`.

    Args:
        inner: Inner solver for new tasks.
        strength: Regularisation strength for new tasks, or None for that of training.

    Raises:
        ConfigError: If the strength is not a positive number.
    """

    owner = "new_task"

    inner: Annotated[InnerSolver, Role("inner")]
    strength: PositiveFloat | None = None


@recipe()
class Bayes(Checked):
    """The options of the Bayesian methods evidence, moments and posterior; see `imaml.bayes.rules`.

    Args:
        noise: Variance of Gaussian rows at the start, in squared units of the targets; it is learned.
        determinant: For evidence: how the log-determinant is estimated, or None for the exact value.
        form: Of moments and posterior: the form of a task's posterior covariance, "dense", "rows",
            "diagonal" or, of moments, "low-rank".
        rank: Rank of the form "low-rank".
        samples: For posterior: pairs of samples for each task.
        curvature: Curvature of the posterior, "gauss-newton" or "hessian".

    Raises:
        ConfigError: If a value is outside its range.
    """

    owner = "bayes"

    noise: PositiveFloat = 1.0
    determinant: Quadrature | None = None
    form: Literal["dense", "diagonal", "low-rank", "rows"] = "dense"
    rank: PositiveInt = 20
    samples: PositiveInt = 4
    curvature: Curvature = "gauss-newton"


@dataclass(frozen=True, kw_only=True)
class MethodRecipe(Checked):
    """The base class of the recipes of methods.

    A subclass sets `name`, adds its fields, and sets `function` or defines `make`.

    Attributes:
        name: The method's name.
        factorises: Whether a step factorises dense matrices besides its linear solver.
        function: Makes the method of (problem, query_loss, inner=..., **options); its other parameters are
            given the options of their names.

    Args:
        adapt: Names of the parameters that a task adapts, or None for all; maml that adapts the head alone
            is ANIL.
        inner: Inner solver.
        new_task: How a new task is solved in evaluation and use, or None for the same as in training. The
            meta-parameters do not depend on it.
        policy: What happens when tasks fail numerically: "raise", "warn" or "skip".
        chunk: Tasks worked on at once on each device, None for all, or "auto": `imaml train` measures which
            is fastest and stores that number.

    Raises:
        ConfigError: If a value is outside its range, or two options do not go together.
    """

    owner = "method"
    name: ClassVar[str]
    strength: ClassVar[float | None] = None
    learned: ClassVar[str | None] = None
    factorises: ClassVar[bool] = False
    function: ClassVar[Callable[..., MetaGradient]]

    adapt: tuple[str, ...] | None = None
    inner: Annotated[InnerSolver, Role("inner")] = field(
        default_factory=lambda: GradientDescent(0.2, steps=16)
    )
    new_task: NewTask | None = None
    policy: Literal["raise", "warn", "skip"] = "warn"
    chunk: PositiveInt | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        """Check the fields, and that a strength for new tasks has one of learning to replace."""
        if isinstance(self.adapt, str):
            object.__setattr__(self, "adapt", (self.adapt,))
        super().__post_init__()
        other = None if self.new_task is None else self.new_task.strength
        if other is not None and self.strength is None:
            raise ConfigError(
                f"method: new_task.strength: expected None, as learning has no strength, got {other!r}. "
                "Hint: --method.new_task.strength=none, in Python strength=None."
            )

    def build(self, domain: Domain, mesh: Mesh | None = None) -> MetaGradient:
        """Make the method on a domain's problem.

        Args:
            domain: Gives the inner problem and the query loss.
            mesh: Devices over which the tasks of a step are sharded, or None for one device.

        Returns:
            The method. Its `origin` says what it was built from.

        Raises:
            ConfigError: If ``chunk="auto"``; `imaml.training.chunk_tuning.settled` replaces it by a number.
        """
        if self.chunk == "auto":
            raise ConfigError(
                "method: chunk: expected a whole number, or None for all tasks at once, got 'auto'. Hint: "
                "imaml.training.chunk_tuning.settled(config) measures which number is fastest."
            )
        training, given, new_task = domain.training_domain(0), self.new_task, None
        problem = self.problem(training, self.initial())
        if given is not None or training is not domain:
            other = None if given is None else given.strength
            same = training is domain and other is None
            weaker = problem if same else self.problem(domain, self.initial() if other is None else other)
            new_task = Solving(weaker, self.solver if given is None else given.inner)
        options: Options = {"policy": self.policy, "chunk": self.chunk, "mesh": mesh, "new_task": new_task}
        options["measure"] = training.measure  # type: ignore[attr-defined]
        made = self.make(training, problem, inner=self.solver, **options)
        return made.built_from(Origin(self, domain.recipe))

    @property
    def solver(self) -> InnerSolver:
        """The inner solver of training, with what the method learns of it."""
        return self.inner

    def make(
        self, domain: Domain, problem: Problem, *, inner: InnerSolver, **options: Unpack[Options]
    ) -> MetaGradient:
        """Make the method from its parts.

        Args:
            domain: Gives the query loss.
            problem: The inner problem.
            inner: The inner solver.
            **options: policy, chunk, mesh, new_task and measure of `MetaGradient`.

        Returns:
            The method.
        """
        function = type(self).function
        # Of two options with one name that of `bayes` counts: its curvature and rank are the posterior's.
        own = {**vars(self), **vars(getattr(self, "bayes", self)), "whole": domain.whole}
        taken = inspect.signature(function).parameters.keys() & own.keys() - {"inner"}
        given = {name: own[name] for name in taken}
        return function(problem, domain.query_loss, inner=inner, **given, **options)

    def problem(self, domain: Domain, strength: float | Learned | None) -> Problem:
        """Return the inner problem on a domain.

        Args:
            domain: Gives the loss.
            strength: Regularisation strength, fixed or learned, or None for none.

        Returns:
            The problem.
        """
        return domain.problem(strength, self.adapt)

    def initial(self) -> float | Learned | None:
        """Return the strength that learning begins with: a number, a learned one, or None for none."""
        return self.strength


@dataclass(frozen=True, kw_only=True)
class Anchored(MethodRecipe):
    """A method whose inner problem is regularised towards theta.

    Args:
        strength: Regularisation strength of the inner problem.
    """

    strength: PositiveFloat = 0.5  # type: ignore[misc]  # a field here, a constant of methods without one


@dataclass(frozen=True, kw_only=True)
class PerhapsAnchored(MethodRecipe):
    """A method with or without regularisation towards theta.

    Args:
        strength: Regularisation strength of the inner problem, or None for none.
    """

    strength: PositiveFloat | None = 0.5  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Strengths(Anchored):
    """A method whose strength may be learned.

    Args:
        learned: None for a fixed strength, or how it is learned: "all", "leaf", "parameter", "dense" or
            "low-rank"; "auto" chooses by the numbers of training tasks and of parameters.
        curvature: "hessian", or "gauss-newton", which is never indefinite; see `imaml.proximal`.
    """

    rank: ClassVar[int] = 5

    learned: Literal["all", "leaf", "parameter", "dense", "low-rank", "auto"] | None = None  # type: ignore[misc]
    curvature: Curvature = "hessian"

    def build(self, domain: Domain, mesh: Mesh | None = None) -> MetaGradient:
        """Make the method on a domain's problem; "auto" is decided by the domain's tasks."""
        if self.learned != "auto":
            return super().build(domain, mesh)
        problem = domain.problem(1.0, self.adapt)
        own = jax.eval_shape(lambda key: problem.split(domain.init(key)), jax.random.key(0))
        size, tasks = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(own)), domain.size("train")
        per = (
            "dense"
            if tasks is None or tasks >= DENSE_TASKS * size
            else "parameter"
            if domain.convex
            else "leaf"
        )
        return replace(self, learned=per).build(domain, mesh)

    def initial(self) -> float | Learned:
        """Return the strength that learning begins with."""
        return self.strength if self.learned is None else learned(self.strength, self.learned, self.rank)

    def problem(self, domain: Domain, strength: float | Learned | None) -> Problem:
        """Return the inner problem on a domain, with the requested curvature."""
        if self.curvature == "hessian":
            return super().problem(domain, strength)
        return domain.problem(strength, self.adapt, curvature=self.curvature)  # type: ignore[call-arg]


@dataclass(frozen=True, kw_only=True)
class ImplicitMethod(Strengths):
    """A method that differentiates the inner solution implicitly.

    Args:
        linear: Linear solver for the implicit gradient.
        correct: Whether one more Newton step is taken, after which the error falls quadratically.
        accuracy: Requested accuracy of the meta-gradient instead of step counts, relative to each task's
            meta-gradient, or a `Tightening`; see `imaml.implicit`.
        rank: Rank of a strength that is learned as "low-rank".
    """

    linear: Annotated[LinearSolver, Role("linear")] = field(default_factory=lambda: CG(steps=5))
    correct: bool = False
    accuracy: PositiveFraction | Tightening | None = None
    rank: PositiveInt = 5  # type: ignore[misc]


@recipe("method", kw_only=True)
class IMAMLRecipe(ImplicitMethod):
    """Implicit MAML, the meta-gradient from the solution alone; see `imaml.IMAML`.

    Args:
        rates: How the learning rates of gradient descent are learned: one number ("all"), one for each
            layer's kernel and bias ("leaf") or one for each "parameter"; None for a fixed rate. They follow
            how far one more step lowers the inner objective; see `imaml.GradientDescent.rate_gradient`.

    Raises:
        ConfigError: If rates are learned and the inner solver is not gradient descent.
    """

    name: ClassVar[str] = "imaml"
    function = IMAML

    rates: Literal["all", "leaf", "parameter"] | None = None

    def __post_init__(self) -> None:
        """Check the fields, and that there is a rate to learn."""
        super().__post_init__()
        if self.rates is not None and as_descent(self.inner) is None:
            raise ConfigError(
                "method: rates: expected None, as only GradientDescent has learning rates to learn, got "
                f"{self.rates!r} with inner={self.inner!r}."
            )

    @property
    def solver(self) -> InnerSolver:
        """Gradient descent with its rates learned, or the inner solver as it is."""
        descent = as_descent(self.inner)
        if self.rates is None or descent is None:
            return self.inner
        return replace(descent, learning_rate=learned(descent.learning_rate, self.rates))  # type: ignore[arg-type]


@recipe("method", kw_only=True)
class MAMLRecipe(MethodRecipe):
    """MAML, through every inner step; ANIL where only the head adapts. See `imaml.MAML`."""

    name: ClassVar[str] = "maml"
    function = MAML


@recipe("method", kw_only=True)
class FOMAMLRecipe(MethodRecipe):
    """First-order MAML; see `imaml.FOMAML`."""

    name: ClassVar[str] = "fomaml"
    function = FOMAML


@recipe("method", kw_only=True)
class MetaSGDRecipe(MethodRecipe):
    """Meta-SGD, MAML with a learned inner rate for every parameter; see `imaml.MetaSGD`."""

    name: ClassVar[str] = "metasgd"
    function = MetaSGD


@recipe("method", kw_only=True)
class ReptileRecipe(PerhapsAnchored):
    """Reptile, or with a strength its proximal form; see `imaml.Reptile`."""

    name: ClassVar[str] = "reptile"
    function = Reptile


@recipe("method", kw_only=True)
class TransferRecipe(PerhapsAnchored):
    """Transfer learning, one network for all classes that is fine-tuned; see `imaml.Joint`."""

    name: ClassVar[str] = "transfer"
    grouped: ClassVar[bool] = False

    def make(
        self, domain: Domain, problem: Problem, *, inner: InnerSolver, **options: Unpack[Options]
    ) -> MetaGradient:
        """Make the method from its parts."""
        options.pop("measure", None)  # which is of one task's parameters
        return Joint(domain, problem, inner=inner, grouped=self.grouped, **options)


@recipe("method", kw_only=True)
class MultitaskRecipe(TransferRecipe):
    """Multi-task learning, one body with a head for each group; see `imaml.Joint`."""

    name: ClassVar[str] = "multitask"
    grouped: ClassVar[bool] = True


@recipe("method", kw_only=True)
class AsReleasedRecipe(Anchored):
    """The published implementation's linear system, which is not the paper's; see `imaml.as_released`.

    Args:
        linear: Linear solver of the published system.

    Raises:
        ConfigError: If the inner solver is not gradient descent for a fixed number of steps.
    """

    name: ClassVar[str] = "as-released"

    linear: Annotated[LinearSolver, Role("linear")] = field(default_factory=lambda: CG(steps=5))

    def make(
        self, domain: Domain, problem: Problem, *, inner: InnerSolver, **options: Unpack[Options]
    ) -> MetaGradient:
        """Make the method from its parts."""
        descent = as_descent(inner)
        rate = None if descent is None or descent.tolerance is not None else descent.learning_rate
        if descent is None or descent.steps is None or not isinstance(rate, float | int):
            raise ConfigError(
                "method: inner: expected GradientDescent(rate, steps=...) with name='as-released', got "
                f"{inner!r}."
            )
        solver, rule = ThenPulled(rate, descent.steps), as_released(self.linear)
        return MetaGradient(problem, domain.query_loss, inner=solver, rule=rule, **options)


@dataclass(frozen=True, kw_only=True)
class Bayesian(Strengths):
    """A method whose strength is a prior's precision, and whose loss is a sum over rows.

    Args:
        bayes: The options that Bayesian methods have.
    """

    factorises: ClassVar[bool] = True

    bayes: Bayes = field(default_factory=Bayes)

    def problem(self, domain: Domain, strength: float | Learned | None) -> Problem:
        """Return the inner problem on a domain: a maximum a posteriori, with the noise learned."""
        problem = super().problem(domain, strength)
        gaussian = getattr(getattr(problem.loss, "likelihood", None), "kind", None) == "gaussian"
        loss = likelihood(problem.loss, learned(self.bayes.noise, per="all") if gaussian else None)
        kept = {"curvature": problem.curvature, "convex": problem.convex}
        return proximal(loss, strength, problem.adapt, **kept)


@recipe("method", kw_only=True)
class EvidenceRecipe(ImplicitMethod, Bayesian):
    """Empirical Bayes, a prior by the gradient of the tasks' evidence; see `imaml.EmpiricalBayes`."""

    name: ClassVar[str] = "evidence"
    function = EmpiricalBayes


@recipe("method", kw_only=True)
class PosteriorRecipe(ImplicitMethod, Bayesian):
    """iBaML, the validation loss under the tasks' posteriors; see `imaml.IBaML`."""

    name: ClassVar[str] = "posterior"
    function = IBaML

    def __post_init__(self) -> None:
        """Check the fields, and that derivatives pass through the form of the posterior."""
        super().__post_init__()
        if self.bayes.form == "low-rank":
            raise ConfigError(
                "method: bayes.form: expected 'dense', 'rows' or 'diagonal' with name='posterior', got "
                "'low-rank', through which no derivative passes."
            )


@recipe("method", kw_only=True)
class MomentsRecipe(Bayesian):
    """Expectation-maximisation, prior moments from posterior ones; see `imaml.ExpectationMaximisation`."""

    name: ClassVar[str] = "moments"
    function = ExpectationMaximisation

    def __post_init__(self) -> None:
        """Check the fields, and that the strength has a step in closed form."""
        super().__post_init__()
        if self.learned == "low-rank":
            raise ConfigError(
                "method: learned: expected 'all', 'leaf', 'parameter' or 'dense' with name='moments', got "
                "'low-rank', which has no step in closed form. Hint: choose one of these, or name='evidence'."
            )
