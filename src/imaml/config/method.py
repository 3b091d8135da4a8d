"""The methods as recipes: one class for each, with the options that the method has.

A new method is one class that registers itself with ``@recipe("method")``; docs/methods.md shows how.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from jax.sharding import Mesh

from ..bayes.curvature import Quadrature
from ..bayes.laplace import FORMS
from ..bayes.methods import EmpiricalBayes, ExpectationMaximisation, IBaML
from ..core.errors import ConfigError
from ..core.recipes import Role, recipe
from ..core.validation import require_number, require_one_of, require_whole
from ..domains.base import Domain
from ..inner.base import InnerSolver
from ..inner.gradient import GradientDescent, as_descent
from ..linear.base import LinearSolver
from ..linear.cg import CG
from ..meta.accuracy import Tightening, check_accuracy
from ..meta.gradient import POLICIES, MetaGradient, Origin, Solving
from ..meta.methods import FOMAML, IMAML, MAML, Joint, MetaSGD, Reptile
from ..meta.published import ThenPulled, as_released
from ..problems.base import CURVATURES, Problem
from ..problems.likelihoods import likelihood
from ..problems.precision import PER, Learned, learned
from ..problems.proximal import proximal


@recipe(fresh={"inner": GradientDescent(0.1, steps=5)})
@dataclass(frozen=True)
class NewTask:
    """How a new task is solved in evaluation and use; see `imaml.Solving`.

    Args:
        inner: Inner solver for new tasks.
        strength: Regularisation strength for new tasks, or None for that of learning.

    Raises:
        ConfigError: If the strength is not a positive number.
    """

    inner: Annotated[InnerSolver, Role("inner")]
    strength: float | None = None

    def __post_init__(self) -> None:
        """Checks the strength."""
        if self.strength is not None:
            require_number("new_task", 0, open=True, strength=self.strength)


@recipe()
@dataclass(frozen=True)
class Bayes:
    """The options of the Bayesian methods evidence, moments and posterior; see `imaml.bayes.rules`.

    Args:
        noise: Variance of Gaussian rows at the start, in squared units of the targets; it is learned.
        determinant: Of evidence: how the log-determinant is estimated, or None for the exact one.
        form: Of moments and posterior: the form of a task's posterior covariance, "dense", "rows",
            "diagonal" or, of moments, "low-rank".
        rank: Rank of the form "low-rank".
        samples: Of posterior: pairs of samples for each task.
        curvature: Curvature of the posterior, "gauss-newton" or "hessian".

    Raises:
        ConfigError: If a value is outside its range.
    """

    noise: float = 1.0
    determinant: Quadrature | None = None
    form: str = "dense"
    rank: int = 20
    samples: int = 4
    curvature: str = "gauss-newton"

    def __post_init__(self) -> None:
        """Checks the values."""
        require_number("bayes", 0, open=True, noise=self.noise)
        require_one_of("bayes", "form", self.form, FORMS)
        require_one_of("bayes", "curvature", self.curvature, CURVATURES)
        require_whole("bayes", 1, rank=self.rank, samples=self.samples)
        if not isinstance(self.determinant, Quadrature | None):
            raise ConfigError(
                f"bayes: determinant: expected Quadrature(steps, probes) or None, got {self.determinant!r}."
            )


@dataclass(frozen=True, kw_only=True)
class MethodRecipe:
    """What all methods have: the base of the recipes of methods.

    A subclass sets `name` and `about`, adds its fields and defines `make`.

    Args:
        adapt: Names of the parameters that a task adapts, or None for all; maml that adapts the head alone
            is ANIL.
        inner: Inner solver.
        new_task: How a new task is solved in evaluation and use, or None for as in learning. The
            meta-parameters do not depend on it.
        policy: What happens when tasks fail numerically: "raise", "warn" or "skip".
        chunk: Tasks worked on at once on each device, None for all, or "auto": `imaml train` measures which
            is fastest and stores that number.

    Raises:
        ConfigError: If a value is outside its range, or two options do not go together.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    strength: ClassVar[float | None] = None
    learned: ClassVar[str | None] = None
    factorises: ClassVar[bool] = False  # whether a step factorises dense matrices besides its linear solver

    adapt: tuple[str, ...] | None = None
    inner: Annotated[InnerSolver, Role("inner")] = field(
        default_factory=lambda: GradientDescent(0.2, steps=16)
    )
    new_task: NewTask | None = None
    policy: str = "warn"
    chunk: int | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        require_one_of("method", "policy", self.policy, POLICIES)
        if self.strength is not None:
            require_number("method", 0, open=True, strength=self.strength)
        if self.chunk is not None and self.chunk != "auto":
            require_whole("method", 1, chunk=self.chunk)
        if not isinstance(self.new_task, NewTask | None):
            raise ConfigError(f"method: new_task: expected NewTask(inner) or None, got {self.new_task!r}.")
        other = None if self.new_task is None else self.new_task.strength
        if other is not None and self.strength is None:
            raise ConfigError(
                f"method: new_task.strength: expected None, as learning has no strength, got {other!r}. "
                "Hint: --method.new_task.strength=none, in Python strength=None."
            )

    def build(self, domain: Domain, mesh: Mesh | None = None) -> MetaGradient:
        """Makes the method on a domain's problem.

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
        problem, new_task = self.problem(domain, self.initial()), None
        if self.new_task is not None:
            other = self.new_task.strength
            weaker = problem if other is None else self.problem(domain, other)
            new_task = Solving(weaker, self.new_task.inner)
        shared = {"inner": self.inner, "policy": self.policy, "chunk": self.chunk}
        shared |= {"mesh": mesh, "new_task": new_task, "measure": domain.measure}  # type: ignore[attr-defined]
        return self.make(domain, problem, **shared).built_from(Origin(self, domain.recipe))

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts; each subclass defines it.

        Args:
            domain: Gives the query loss.
            problem: The inner problem.
            **shared: Arguments of `MetaGradient`: inner, policy, chunk, mesh, new_task and measure.

        Returns:
            The method.
        """
        raise NotImplementedError

    def problem(self, domain: Domain, strength: float | Learned | None) -> Problem:
        """The inner problem on a domain.

        Args:
            domain: Gives the loss.
            strength: Regularisation strength, fixed or learned, or None for none.

        Returns:
            The problem.
        """
        return domain.problem(strength, self.adapt)

    def initial(self) -> float | Learned | None:
        """The strength that learning begins with.

        Returns:
            A number, a learned one, or None where the method has none.
        """
        return self.strength


@dataclass(frozen=True, kw_only=True)
class Anchored(MethodRecipe):
    """A method whose inner problem is regularised towards theta.

    Args:
        strength: Regularisation strength of the inner problem.
    """

    strength: float = 0.5  # type: ignore[misc]  # a field here, a constant of methods without one

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.strength is None:
            raise ConfigError(
                f"method: strength: expected a positive number with name={self.name!r}, got None."
            )
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class PerhapsAnchored(MethodRecipe):
    """A method with or without regularisation towards theta.

    Args:
        strength: Regularisation strength of the inner problem, or None for none.
    """

    strength: float | None = 0.5  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Strengths(Anchored):
    """A method whose strength may be learned.

    Args:
        learned: None for a fixed strength, or how it is learned: "all", "leaf", "parameter", "dense" or
            "low-rank".
        curvature: "hessian", or "gauss-newton", which is never indefinite; see `imaml.proximal`.
    """

    rank: ClassVar[int] = 5

    learned: str | None = None  # type: ignore[misc]
    curvature: str = "hessian"

    def __post_init__(self) -> None:
        """Checks the values."""
        require_one_of("method", "learned", self.learned, (None, *PER))
        require_one_of("method", "curvature", self.curvature, CURVATURES)
        super().__post_init__()

    def initial(self) -> float | Learned:
        """The strength that learning begins with."""
        return self.strength if self.learned is None else learned(self.strength, self.learned, self.rank)

    def problem(self, domain: Domain, strength: float | Learned | None) -> Problem:
        """The inner problem on a domain, with the curvature asked for."""
        if self.curvature == "hessian":
            return super().problem(domain, strength)
        return domain.problem(strength, self.adapt, curvature=self.curvature)  # type: ignore[call-arg]


@dataclass(frozen=True, kw_only=True)
class ImplicitMethod(Strengths):
    """A method that differentiates the inner solution implicitly.

    Args:
        linear: Linear solver for the implicit gradient.
        correct: Whether one more Newton step is taken, after which the error falls quadratically.
        accuracy: Accuracy of the meta-gradient asked for instead of step counts, relative to each task's
            meta-gradient, or a `Tightening`; see `imaml.implicit`.
        rank: Rank of a strength that is learned as "low-rank".
    """

    linear: Annotated[LinearSolver, Role("linear")] = field(default_factory=lambda: CG(steps=5))
    correct: bool = False
    accuracy: float | Tightening | None = None
    rank: int = 5  # type: ignore[misc]

    def __post_init__(self) -> None:
        """Checks the values."""
        require_whole("method", 1, rank=self.rank)
        check_accuracy("method", self.accuracy)
        super().__post_init__()

    def implicit(self) -> dict[str, Any]:
        """The options of the implicit gradient.

        Returns:
            linear, correct and accuracy, by name.
        """
        return {"linear": self.linear, "correct": self.correct, "accuracy": self.accuracy}


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class IMAMLRecipe(ImplicitMethod):
    """Implicit MAML; see `imaml.IMAML`."""

    name: ClassVar[str] = "imaml"
    about: ClassVar[str] = "implicit MAML: the meta-gradient from the solution alone"

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        return IMAML(problem, domain.query_loss, **self.implicit(), **shared)


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class MAMLRecipe(MethodRecipe):
    """MAML; see `imaml.MAML`."""

    name: ClassVar[str] = "maml"
    about: ClassVar[str] = "MAML: through every inner step; ANIL where only the head adapts"

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        return MAML(problem, domain.query_loss, **shared)


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class FOMAMLRecipe(MethodRecipe):
    """First-order MAML; see `imaml.FOMAML`."""

    name: ClassVar[str] = "fomaml"
    about: ClassVar[str] = "first-order MAML"

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        return FOMAML(problem, domain.query_loss, **shared)


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class MetaSGDRecipe(MethodRecipe):
    """Meta-SGD; see `imaml.MetaSGD`."""

    name: ClassVar[str] = "metasgd"
    about: ClassVar[str] = "Meta-SGD: MAML with a learned inner rate for every parameter"

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        return MetaSGD(problem, domain.query_loss, **shared)


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class ReptileRecipe(PerhapsAnchored):
    """Reptile, or with a strength its proximal form; see `imaml.Reptile`."""

    name: ClassVar[str] = "reptile"
    about: ClassVar[str] = "Reptile: where the tasks went; with a strength its proximal form"

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        return Reptile(problem, domain.query_loss, whole=domain.whole, **shared)


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class TransferRecipe(PerhapsAnchored):
    """Transfer learning; see `imaml.Joint`."""

    name: ClassVar[str] = "transfer"
    about: ClassVar[str] = "transfer: one network for all classes, fine-tuned"
    grouped: ClassVar[bool] = False

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        del shared["measure"]  # which is of one task's parameters
        return Joint(domain, problem, grouped=self.grouped, **shared)


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class MultitaskRecipe(TransferRecipe):
    """Multi-task learning; see `imaml.Joint`."""

    name: ClassVar[str] = "multitask"
    about: ClassVar[str] = "multi-task: one body, a head for each group"
    grouped: ClassVar[bool] = True


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class AsReleasedRecipe(Anchored):
    """The published implementation; see `imaml.as_released`.

    Args:
        linear: Linear solver of the published system.

    Raises:
        ConfigError: If the inner solver is not gradient descent for a fixed number of steps.
    """

    name: ClassVar[str] = "as-released"
    about: ClassVar[str] = "the published code's linear system, which is not the paper's"

    linear: Annotated[LinearSolver, Role("linear")] = field(default_factory=lambda: CG(steps=5))

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        inner = shared.pop("inner")
        descent = as_descent(inner)
        plain = descent is not None and isinstance(descent.learning_rate, float | int)
        if not plain or inner.steps is None or inner.tolerance is not None:
            raise ConfigError(
                "method: inner: expected GradientDescent(rate, steps=...) with name='as-released', got "
                f"{inner!r}."
            )
        return MetaGradient(
            problem,
            domain.query_loss,
            inner=ThenPulled(inner.learning_rate, inner.steps),  # type: ignore[arg-type]
            rule=as_released(self.linear),
            **shared,
        )


@dataclass(frozen=True, kw_only=True)
class Bayesian(Strengths):
    """A method whose strength is a prior's precision, and whose loss is a sum over rows.

    Args:
        bayes: The options that Bayesian methods have.
    """

    factorises: ClassVar[bool] = True

    bayes: Bayes = field(default_factory=Bayes)

    def problem(self, domain: Domain, strength: float | Learned | None) -> Problem:
        """The inner problem on a domain: a maximum a posteriori, with the noise learned."""
        problem = super().problem(domain, strength)
        gaussian = getattr(getattr(problem.loss, "likelihood", None), "kind", None) == "gaussian"
        return proximal(
            likelihood(problem.loss, learned(self.bayes.noise, per="all") if gaussian else None),
            strength,
            problem.adapt,
            curvature=problem.curvature,
            convex=problem.convex,
        )


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class EvidenceRecipe(ImplicitMethod, Bayesian):
    """Empirical Bayes; see `imaml.EmpiricalBayes`."""

    name: ClassVar[str] = "evidence"
    about: ClassVar[str] = "empirical Bayes: a prior by the gradient of the tasks' evidence"

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        own = {"determinant": self.bayes.determinant, "curvature": self.bayes.curvature}
        own |= {"whole": domain.whole, **self.implicit()}
        return EmpiricalBayes(problem, domain.query_loss, **own, **shared)


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class PosteriorRecipe(ImplicitMethod, Bayesian):
    """iBaML; see `imaml.IBaML`."""

    name: ClassVar[str] = "posterior"
    about: ClassVar[str] = "iBaML: the validation loss under the tasks' posteriors"

    def __post_init__(self) -> None:
        """Checks the values."""
        super().__post_init__()
        if self.bayes.form == "low-rank":
            raise ConfigError(
                "method: bayes.form: expected 'dense', 'rows' or 'diagonal' with name='posterior', got "
                "'low-rank', through which no derivative passes."
            )

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        own = {name: getattr(self.bayes, name) for name in ("samples", "form", "curvature")}
        return IBaML(problem, domain.query_loss, **own, **self.implicit(), **shared)


@recipe("method")
@dataclass(frozen=True, kw_only=True)
class MomentsRecipe(Bayesian):
    """Expectation-maximisation; see `imaml.ExpectationMaximisation`."""

    name: ClassVar[str] = "moments"
    about: ClassVar[str] = "expectation-maximisation: prior moments from posterior moments"

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.learned == "low-rank":
            raise ConfigError(
                "method: learned: expected 'all', 'leaf', 'parameter' or 'dense' with name='moments', got "
                "'low-rank', which has no step in closed form. Hint: choose one of these, or name='evidence'."
            )
        super().__post_init__()

    def make(self, domain: Domain, problem: Problem, **shared: Any) -> MetaGradient:
        """Makes the method from its parts."""
        own = {name: getattr(self.bayes, name) for name in ("form", "curvature", "rank")}
        return ExpectationMaximisation(problem, domain.query_loss, whole=domain.whole, **own, **shared)
