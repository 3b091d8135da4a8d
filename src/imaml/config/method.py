"""The methods as one table of recipes: what each is made of, and its options as JSON values.

A method is a row of `FAMILY` and, where it is new mathematics, a rule of its own; docs/methods.md shows how
to add one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from ..bayes.curvature import Quadrature
from ..bayes.laplace import FORMS
from ..bayes.methods import EmpiricalBayes, ExpectationMaximisation, IBaML
from ..bayes.rules import Averaged, ByEvidence, ByMoments
from ..core.errors import ConfigError
from ..core.recipes import Role, recipe
from ..core.validation import require_number, require_one_of, require_whole
from ..inner.base import InnerSolver
from ..inner.gradient import GradientDescent
from ..linear.base import LinearSolver
from ..linear.cg import CG
from ..meta.accuracy import Tightening, check_accuracy
from ..meta.gradient import POLICIES, MetaGradient, Solving
from ..meta.implicit import Implicit
from ..meta.joint import Jointly
from ..meta.methods import FOMAML, IMAML, MAML, Joint, MetaSGD, Reptile
from ..meta.published import ThenPulled, as_released
from ..meta.reptile import Displacement, Envelope
from ..meta.unrolled import FirstOrder, Unrolled
from ..problems.base import CURVATURES, Problem
from ..problems.likelihoods import likelihood
from ..problems.precision import PER, Learned, learned
from ..problems.proximal import proximal

ANCHORS = ("needed", "none", "either")


@recipe(fresh={"inner": GradientDescent(0.1, steps=5)})
@dataclass(frozen=True)
class NewTask:
    """How a new task is solved in evaluation and use; see `imaml.meta.gradient.Solving`.

    inner: what solves it. strength: the anchor's, or None for that of learning.
    """

    inner: Annotated[InnerSolver, Role("inner")]
    strength: float | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        if self.strength is not None:
            require_number("new_task", 0, open=True, strength=self.strength)


@recipe()
@dataclass(frozen=True)
class Bayes:
    """What evidence, moments and posterior have beside the others; see `imaml.bayes.rules`.

    noise: the variance of Gaussian rows that learning begins with, in squared units of the targets; it is
    learned. determinant: of evidence, how the log-determinant is had, None for exactly. form: of moments and
    posterior, the task posterior's, "dense", "rows", "diagonal" or (moments) "low-rank". rank: of "low-rank".
    samples: of posterior, pairs of draws a task. curvature: the posterior's, "gauss-newton" or "hessian".
    """

    noise: float = 1.0
    determinant: Quadrature | None = None
    form: str = "dense"
    rank: int = 20
    samples: int = 4
    curvature: str = "gauss-newton"

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_number("bayes", 0, open=True, noise=self.noise)
        require_one_of("bayes", "form", self.form, FORMS)
        require_one_of("bayes", "curvature", self.curvature, CURVATURES)
        require_whole("bayes", 1, rank=self.rank, samples=self.samples)
        if not isinstance(self.determinant, Quadrature | None):
            raise ConfigError(
                f"bayes: determinant={self.determinant!r}; accepted is Quadrature(steps, probes), or None."
            )


BAYESIAN = ("evidence", "moments", "posterior")
IMPLICIT = ("imaml", "evidence", "posterior")


@recipe()
@dataclass(frozen=True)
class Method:
    """The method as a recipe that goes to JSON; `build(domain)` makes it.

    name: a row of `FAMILY`: imaml, maml, fomaml, metasgd, reptile, transfer, multitask, as-released, or,
    where the strength is a prior's precision and the loss a sum over rows, evidence, moments or posterior.
    strength: the anchor's; None for none. What learns by the solution itself needs one, what learns by the
    steps taken has none; with one, reptile is its proximal form, and fine-tuning after transfer is anchored.
    adapt: names of the branches that a task adapts, or None for all; maml that adapts the head is ANIL.
    inner: what solves a task. new_task: how a new one is solved in evaluation and use, None for as in
    learning; theta does not depend on it. linear: of imaml and as-released. policy: what happens when tasks
    fail numerically, "raise", "warn" or "skip". chunk: tasks worked on at once on each device, None for
    all, or "auto": `imaml train` measures which is fastest, and puts the number here.

    Of imaml, evidence, moments and posterior: learned: None for fixed, or how the strength is learned, "all",
    "leaf", "parameter", "dense" or "low-rank" (not of moments), whose rank is `rank`. curvature: "hessian",
    or "gauss-newton", which is never indefinite (see `imaml.proximal`). But for moments, correct: whether a
    Newton step more is taken; accuracy: the accuracy asked for instead of step counts, relative to a task's
    meta-gradient (see `imaml.implicit`), or a `Tightening`. bayes: of evidence, moments and posterior.
    """

    name: str = "imaml"
    strength: float | None = 0.5
    learned: str | None = None
    adapt: tuple[str, ...] | None = None
    inner: Annotated[InnerSolver, Role("inner")] = field(
        default_factory=lambda: GradientDescent(0.2, steps=16)
    )
    new_task: NewTask | None = None
    linear: Annotated[LinearSolver, Role("linear")] = field(default_factory=lambda: CG(steps=5))
    policy: str = "warn"
    chunk: int | Literal["auto"] | None = None
    curvature: str = "hessian"
    correct: bool = False
    accuracy: float | Tightening | None = None
    rank: int = 5
    bayes: Bayes = field(default_factory=Bayes)

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_one_of("method", "name", self.name, tuple(FAMILY))
        require_one_of("method", "learned", self.learned, (None, *PER))
        require_whole("method", 1, rank=self.rank)
        require_one_of("method", "policy", self.policy, POLICIES)
        anchor = FAMILY[self.name].anchor
        if self.strength is not None:
            require_number("method", 0, open=True, strength=self.strength)
        if self.strength is None and anchor == "needed":
            raise ConfigError(
                f"method: strength=None with name={self.name!r}; accepted is a positive number."
            )
        if self.strength is not None and anchor == "none":
            raise ConfigError(
                f"method: strength={self.strength!r} with name={self.name!r}, which has no anchor; accepted "
                "is none: --method.strength=none, in Python strength=None."
            )
        require_one_of("method", "curvature", self.curvature, CURVATURES)
        check_accuracy("method", self.accuracy)
        strengths, solves = ("imaml", *BAYESIAN), IMPLICIT
        usual = {
            "learned": (None, strengths),
            "curvature": ("hessian", strengths),
            "correct": (False, solves),
            "accuracy": (None, solves),
            "bayes": (Bayes(), BAYESIAN),
        }
        for name, (value, methods) in usual.items():
            if getattr(self, name) != value and self.name not in methods:
                raise ConfigError(
                    f"method: {name}={getattr(self, name)!r} with name={self.name!r}; accepted is {value!r}, "
                    f"or name={' or '.join(map(repr, methods))}."
                )
        if self.name == "moments" and self.learned == "low-rank":
            raise ConfigError(
                "method: learned='low-rank' with name='moments', which has no step in closed form for it; "
                "accepted is another way of learning the strength, or name='evidence'."
            )
        if self.name == "posterior" and self.bayes.form == "low-rank":
            raise ConfigError(
                "method: bayes.form='low-rank' with name='posterior', as no derivative passes through it; "
                "accepted are 'dense', 'rows' and 'diagonal'."
            )
        if not isinstance(self.new_task, NewTask | None):
            raise ConfigError(f"method: new_task={self.new_task!r}; accepted is a NewTask(inner), or None.")
        other = None if self.new_task is None else self.new_task.strength
        if other is not None and self.strength is None:
            raise ConfigError(
                f"method: new_task.strength={other!r} where learning has none; accepted is none: "
                "--method.new_task.strength=none, in Python strength=None."
            )
        if self.chunk is not None and self.chunk != "auto":
            require_whole("method", 1, chunk=self.chunk)

    def build(self, domain: Any, mesh: Any = None) -> MetaGradient:
        """The method on a domain's problem, its tasks shared over a mesh's devices.

        ConfigError for chunk="auto", which `imaml.training.chunk_tuning.settled` has to make a number of.
        """
        if self.chunk == "auto":
            raise ConfigError(
                'method: chunk="auto" is for imaml train, which measures; accepted here is a whole number, '
                "or None for all tasks at once (imaml.training.chunk_tuning.settled(config) measures, too)."
            )
        strength: Any = self.strength
        if self.learned is not None and strength is not None:
            strength = learned(strength, self.learned, self.rank)
        curved = {} if self.curvature == "hessian" else {"curvature": self.curvature}

        def made(strength: Any) -> Problem:
            return FAMILY[self.name].problem(self, domain.problem(strength, self.adapt, **curved))

        problem = made(strength)
        new_task = None
        if self.new_task is not None:
            other = self.new_task.strength
            new = problem if other is None else made(other)
            new_task = Solving(new, self.new_task.inner)
        common = {"policy": self.policy, "chunk": self.chunk, "mesh": mesh, "new_task": new_task}
        return FAMILY[self.name].make(self, domain, problem, common)


@dataclass(frozen=True)
class Kin:
    """One method of the family.

    about: what it is, in a line. make: (recipe, domain, problem, options) -> MetaGradient. fits: whether a
    MetaGradient is of this method. anchor: whether its problem is "needed" to have one, has "none", or
    "either". fields: the fields of `Method` that a MetaGradient of it amounts to, beyond those of all.
    problem: (recipe, the domain's problem) -> the problem of this method.
    """

    about: str
    make: Callable[[Method, Any, Problem, Mapping[str, Any]], MetaGradient]
    fits: Callable[[Any], bool]
    anchor: str = "needed"
    fields: Callable[[Any], dict[str, Any]] = lambda method: {}
    problem: Callable[[Method, Problem], Problem] = lambda recipe, problem: problem


def _split(make: Callable) -> Callable:
    """A method that learns from the query loss after solving the support."""

    def made(recipe: Method, domain: Any, problem: Problem, options: Mapping[str, Any], **more: Any) -> Any:
        more = {"inner": recipe.inner, "measure": domain.measure, **options, **more}
        return make(problem, domain.query_loss, **more)

    return made


def _joint(recipe: Method, domain: Any, problem: Problem, options: Mapping[str, Any]) -> MetaGradient:
    return Joint(domain, problem, inner=recipe.inner, grouped=recipe.name == "multitask", **options)


def _joined(grouped: bool) -> Callable[[MetaGradient], bool]:
    def fits(method: MetaGradient) -> bool:
        loss = method.rule.loss if isinstance(method.rule, Jointly) else None
        return isinstance(loss, functools.partial) and loss.keywords.get("grouped", False) == grouped

    return fits


def _by(*rules: type) -> Callable[[MetaGradient], bool]:
    return lambda method: isinstance(method.rule, rules)


def _rate(method: MetaGradient) -> Any:
    """The learned rate of a method's inner solver, or None."""
    rate = getattr(method.inner, "learning_rate", None)
    return rate if isinstance(rate, Learned) else None


def _probable(recipe: Method, problem: Problem) -> Problem:
    """The problem with its loss as a sum of negative log likelihoods, the noise learned."""
    gaussian = getattr(getattr(problem.loss, "likelihood", None), "kind", None) == "gaussian"
    noise = learned(recipe.bayes.noise, per="all") if gaussian else None
    strength = problem.strength if problem.learns is None else problem.learns
    return proximal(
        likelihood(problem.loss, noise),
        strength,
        problem.adapt,
        curvature=problem.curvature,
        convex=problem.convex,
    )


def _implied(rule: Implicit) -> dict[str, Any]:
    """The fields of an implicit rule."""
    return {"linear": rule.linear, "correct": rule.correct, "accuracy": rule.accuracy}


def _of_bayes(method: MetaGradient, **fields: Any) -> dict[str, Any]:
    """The fields of a Bayesian method's problem and posterior."""
    noise = getattr(method.problem.loss, "noise", None)
    if noise is not None and not isinstance(noise, Learned):
        raise ConfigError("the noise is fixed; one that is learned has a JSON form.")
    fields = {"curvature": method.rule.curvature, **fields}  # type: ignore[union-attr]
    bayes = Bayes(**fields) if noise is None else Bayes(noise=noise.initial, **fields)
    return {"curvature": method.problem.curvature, "bayes": bayes}


def _released(recipe: Method, domain: Any, problem: Problem, options: Mapping[str, Any]) -> MetaGradient:
    inner: Any = recipe.inner
    rate = getattr(inner, "learning_rate", None)
    if not isinstance(rate, float | int) or inner.steps is None or inner.tolerance is not None:
        raise ConfigError(
            f"method: inner={inner!r} with name='as-released'; accepted is GradientDescent(rate, steps=...)."
        )
    return _split(MetaGradient)(
        recipe, domain, problem, options,
        inner=ThenPulled(rate, inner.steps), rule=as_released(recipe.linear),
    )  # fmt: skip


FAMILY: dict[str, Kin] = {
    "imaml": Kin(
        "implicit MAML: the meta-gradient from the solution alone",
        lambda recipe, *rest: _split(IMAML)(
            recipe, *rest, linear=recipe.linear, correct=recipe.correct, accuracy=recipe.accuracy
        ),
        _by(Implicit),
        fields=lambda method: {**_implied(method.rule), "curvature": method.problem.curvature},
    ),
    "evidence": Kin(
        "empirical Bayes: a prior by the gradient of the tasks' evidence",
        lambda recipe, domain, *rest: _split(EmpiricalBayes)(
            recipe,
            domain,
            *rest,
            linear=recipe.linear,
            determinant=recipe.bayes.determinant,
            curvature=recipe.bayes.curvature,
            whole=domain.whole,
            correct=recipe.correct,
            accuracy=recipe.accuracy,
        ),
        _by(ByEvidence),
        fields=lambda method: {
            **_implied(method.rule.implicit),
            **_of_bayes(method, determinant=method.rule.determinant),
        },
        problem=_probable,
    ),
    "moments": Kin(
        "expectation-maximisation: prior moments from posterior moments",
        lambda recipe, domain, *rest: _split(ExpectationMaximisation)(
            recipe,
            domain,
            *rest,
            form=recipe.bayes.form,
            curvature=recipe.bayes.curvature,
            rank=recipe.bayes.rank,
            whole=domain.whole,
        ),
        _by(ByMoments),
        fields=lambda method: _of_bayes(method, form=method.rule.form, rank=method.rule.rank),
        problem=_probable,
    ),
    "posterior": Kin(
        "iBaML: the validation loss under the tasks' posteriors",
        lambda recipe, *rest: _split(IBaML)(
            recipe,
            *rest,
            linear=recipe.linear,
            samples=recipe.bayes.samples,
            form=recipe.bayes.form,
            curvature=recipe.bayes.curvature,
            correct=recipe.correct,
            accuracy=recipe.accuracy,
        ),
        _by(Averaged),
        fields=lambda method: {
            **_implied(method.rule.implicit),
            **_of_bayes(method, samples=method.rule.samples, form=method.rule.form),
        },
        problem=_probable,
    ),
    "maml": Kin(
        "MAML: through every inner step; ANIL where only the head adapts",
        _split(MAML),
        lambda method: _by(Unrolled)(method) and _rate(method) is None,
        "none",
    ),
    "fomaml": Kin("first-order MAML", _split(FOMAML), _by(FirstOrder), "none"),
    "metasgd": Kin(
        "Meta-SGD: MAML with a learned inner rate for every parameter",
        _split(MetaSGD),
        lambda method: _by(Unrolled)(method) and getattr(_rate(method), "per", None) == "parameter",
        "none",
        lambda method: {"inner": replace(method.inner, learning_rate=_rate(method).initial)},
    ),
    "reptile": Kin(
        "Reptile: where the tasks went; with an anchor its proximal form",
        lambda recipe, domain, *rest: _split(Reptile)(recipe, domain, *rest, whole=domain.whole),
        _by(Displacement, Envelope),
        "either",
    ),
    "transfer": Kin("transfer: one network for all classes, fine-tuned", _joint, _joined(False), "either"),
    "multitask": Kin("multi-task: one body, a head for each group", _joint, _joined(True), "either"),
    "as-released": Kin(
        "the published code's linear system, which is not the paper's",
        _released,
        lambda method: method.rule == as_released(getattr(method.rule, "linear", None)),
        fields=lambda method: {
            "linear": method.rule.linear,
            "inner": GradientDescent(method.inner.learning_rate, method.inner.steps),
        },
    ),
}


def fields_of(method: MetaGradient) -> dict[str, Any]:
    """The fields of `Method` that a MetaGradient amounts to; ConfigError where it has no JSON form."""
    for name, kin in FAMILY.items():
        if kin.fits(method):
            return {"name": name, "inner": method.inner, **kin.fields(method)}
    raise ConfigError(f"the rule, {type(method.rule).__name__}, has no JSON form.")
