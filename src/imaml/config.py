"""A run as nested frozen dataclasses: recipes, presets, JSON round trip, options from the command line."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from .accuracy import Tightening
from .curvature import Quadrature
from .damped import DampedCG
from .domains.carts import CartsRecipe
from .domains.densities import DensitiesRecipe
from .domains.fewshot import FewShotRecipe
from .domains.generation import GenerationRecipe
from .domains.imitation import ImitationRecipe
from .domains.mazes import MazesRecipe
from .domains.navigation import NavigationRecipe
from .domains.plants import PlantsRecipe
from .domains.regression import LinearGaussianRecipe, SinusoidRecipe
from .domains.restoration import RestorationRecipe
from .domains.table_layout import Column, Layout
from .domains.tables import TablesRecipe
from .errors import ConfigError, meant, require_number, require_one_of, require_whole
from .family import Bayes, Method, NewTask
from .game_solvers import ExtraGradient, OptimisticDescent
from .general import BiCGStab, Dense
from .gmres import GMRES
from .inner import Descent, GradientDescent, ProximalGradient
from .linear import CG, Neumann
from .minres import MINRES
from .newton import NewtonCG
from .nystrom import Diagonal, Nystrom
from .problem import Theta

PYTHON = "Python"  # the kind in the config.json of a run whose objects have no JSON form
SCHEDULES = ("constant", "cosine")
OPTIMISERS = ("adam", "sgd", "rmsprop", "adamw", "muon")


@dataclass(frozen=True)
class Optimiser:
    """The outer optimiser as a recipe that goes to JSON; `build(steps)` makes the Optax transform.

    name: adam, adamw, sgd, rmsprop or muon. schedule: "cosine" (to zero at the last step) or "constant".
    warmup: steps of linear warm-up. clip: the largest global norm of the meta-gradient, or None. epsilon: of
    all but SGD; beta1, beta2: of Adam and AdamW; momentum: of SGD, RMSprop (by default 0) and Muon (0.95);
    weight_decay: of AdamW and Muon. average: decay of the moving average of theta that evaluation uses, 0
    for none. log_scale: the logarithms in theta (learned strengths, inner rates, noise) step by so many
    times the learning rate, as they may have far to go where parameters have not.

    Muon (Jordan 2024) makes the update of every large matrix orthogonal, scaled to the size that Adam's
    entries have (Liu et al. 2025, section 2.2: a root mean square of 0.2 learning rates); the rest goes by
    Adam with Nesterov's momentum, at adam_scale times the learning rate. least_side: a matrix both of whose
    sides are at least that is large, so that the first layer and the head, with sides that mean something,
    are not.

    >>> Optimiser("adam", 3e-3).schedule
    'cosine'
    """

    name: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 0
    clip: float | None = None
    epsilon: float = 1e-8
    beta1: float = 0.9
    beta2: float = 0.999
    momentum: float | None = None
    weight_decay: float = 0.0
    average: float = 0.0
    least_side: int = 32
    adam_scale: float = 0.5
    log_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_one_of("optimiser", "name", self.name, OPTIMISERS)
        require_one_of("optimiser", "schedule", self.schedule, SCHEDULES)
        require_number("optimiser", 0, open=True, learning_rate=self.learning_rate, epsilon=self.epsilon)
        require_whole("optimiser", 0, warmup=self.warmup)
        require_number("optimiser", 0, weight_decay=self.weight_decay)
        decays = {name: getattr(self, name) for name in ("beta1", "beta2", "momentum", "average")}
        require_number(
            "optimiser", 0, 1, **{name: value for name, value in decays.items() if value is not None}
        )
        require_whole("optimiser", 1, least_side=self.least_side)
        require_number("optimiser", 0, open=True, adam_scale=self.adam_scale, log_scale=self.log_scale)
        if self.weight_decay and self.name not in ("adamw", "muon"):
            raise ConfigError(
                f"optimiser: weight_decay={self.weight_decay!r} with name={self.name!r}; accepted is 0, or "
                "name='adamw' or 'muon'."
            )
        if self.clip is not None:
            require_number("optimiser", 0, open=True, clip=self.clip)

    def rate(self, steps: int) -> Any:
        """The learning rate as an Optax schedule, step -> rate, for a run of `steps`."""
        import optax

        if self.schedule == "constant":
            main = optax.constant_schedule(self.learning_rate)
        else:
            main = optax.cosine_decay_schedule(self.learning_rate, max(steps - self.warmup, 1))
        if not self.warmup:
            return main
        rise = optax.linear_schedule(0.0, self.learning_rate, self.warmup)
        return optax.join_schedules([rise, main], [self.warmup])

    def build(self, steps: int) -> Any:
        """The Optax transform for a run of `steps` steps."""
        import optax

        rate = self.rate(steps)
        if self.name == "adam":
            inner = optax.adam(rate, self.beta1, self.beta2, self.epsilon)
        elif self.name == "adamw":
            inner = optax.adamw(rate, self.beta1, self.beta2, self.epsilon, weight_decay=self.weight_decay)
        elif self.name == "muon":
            inner = self._muon(rate)
        elif self.name == "rmsprop":
            inner = optax.rmsprop(rate, eps=self.epsilon, momentum=self.momentum or None)
        else:
            inner = optax.sgd(rate, self.momentum or None)
        if self.log_scale != 1:
            inner = optax.chain(inner, optax.stateless(self._scaled))
        return inner if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), inner)

    def _scaled(self, updates: Any, _: Any) -> Any:
        """Updates, those of logarithms `log_scale` times."""
        if not isinstance(updates, Theta):
            return updates
        import jax

        return Theta(updates.mean, *jax.tree.map(lambda step: self.log_scale * step, updates[1:]))

    def _muon(self, rate: Any) -> Any:
        """Optax's Muon with this recipe's choice of matrices."""
        import jax
        from optax import contrib

        def large(theta: Any) -> Any:
            if isinstance(theta, Theta):  # a strength's or a rate's logarithm is no layer, whatever its shape
                return Theta(large(theta.mean), *jax.tree.map(lambda _: None, theta[1:]))
            numbers = contrib.MuonDimensionNumbers((0,), (1,))
            chosen = lambda leaf: leaf.ndim == 2 and min(leaf.shape) >= self.least_side  # noqa: E731
            return jax.tree.map(lambda leaf: numbers if chosen(leaf) else None, theta)

        return contrib.muon(
            rate,
            beta=0.95 if self.momentum is None else self.momentum,
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            adam_b1=self.beta1,
            adam_b2=self.beta2,
            adam_weight_decay=self.weight_decay,
            adam_learning_rate=lambda step: self.adam_scale * rate(step),
            muon_weight_dimension_numbers=large,
            consistent_rms=0.2,
        )


@dataclass(frozen=True)
class Training:
    """How long and how often.

    steps, tasks: outer steps, and tasks a step, 0 for every training task of a domain that has only so many.
    seed: of everything. minutes: a budget of training time
    (without validations, and without the first step, which compiles) after which it stops, or None.
    validate_every, validation_tasks: a validation on the validation split, 0 for none. checkpoint_every,
    keep: steps between checkpoints, and how many are kept. patience: stop after so many validations without
    improvement, or None. gradient_below: stop when the meta-gradient's norm, averaged over `log_every` steps,
    falls below it, or None. test_tasks: of the evaluation that ends a run of the command line, 0 for none.
    certify_every: steps between those whose meta-gradients get a certified bound (of imaml; see
    `imaml.Certificate`), 0 for none.
    """

    steps: int = 1000
    tasks: int = 16
    seed: int = 0
    minutes: float | None = None
    validate_every: int = 200
    validation_tasks: int = 200
    checkpoint_every: int = 200
    keep: int = 3
    patience: int | None = None
    gradient_below: float | None = None
    log_every: int = 10
    test_tasks: int = 1000
    certify_every: int = 0

    def __post_init__(self) -> None:
        """Refuses what makes no sense (ConfigError)."""
        require_whole("training", 0, steps=self.steps, seed=self.seed, validate_every=self.validate_every)
        require_whole("training", 0, tasks=self.tasks)
        require_whole("training", 1, checkpoint_every=self.checkpoint_every, keep=self.keep)
        require_whole("training", 1, log_every=self.log_every)
        require_whole("training", 0, certify_every=self.certify_every)
        require_whole("training", 2, validation_tasks=self.validation_tasks)  # an interval needs two
        if self.test_tasks != 0:
            require_whole("training", 2, test_tasks=self.test_tasks)
        if self.seed >= 2**32:
            raise ConfigError(f"training: seed={self.seed}; accepted is a whole number below 2**32.")
        for name in ("minutes", "gradient_below"):
            if getattr(self, name) is not None:
                require_number("training", 0, open=True, **{name: getattr(self, name)})
        if self.patience is not None:
            require_whole("training", 1, patience=self.patience)
            if not self.validate_every:
                raise ConfigError(
                    f"training: patience={self.patience} counts validations, and validate_every=0 has none; "
                    "set validate_every, or leave patience out."
                )


@dataclass(frozen=True)
class Config:
    """A whole run."""

    domain: (
        FewShotRecipe
        | SinusoidRecipe
        | LinearGaussianRecipe
        | TablesRecipe
        | MazesRecipe
        | PlantsRecipe
        | DensitiesRecipe
        | NavigationRecipe
        | CartsRecipe
        | ImitationRecipe
        | GenerationRecipe
        | RestorationRecipe
    ) = field(default_factory=FewShotRecipe)
    method: Method = field(default_factory=Method)
    optimiser: Optimiser = Optimiser()
    training: Training = Training()


_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        FewShotRecipe,
        SinusoidRecipe,
        LinearGaussianRecipe,
        TablesRecipe,
        MazesRecipe,
        PlantsRecipe,
        DensitiesRecipe,
        NavigationRecipe,
        CartsRecipe,
        ImitationRecipe,
        GenerationRecipe,
        RestorationRecipe,
        Layout,
        Column,
        GradientDescent,
        ProximalGradient,
        ExtraGradient,
        OptimisticDescent,
        NewtonCG,
        CG,
        Neumann,
        GMRES,
        BiCGStab,
        MINRES,
        Dense,
        DampedCG,
        Diagonal,
        Nystrom,
        Tightening,
        NewTask,
        Quadrature,
        Bayes,
        Method,
        Optimiser,
        Training,
        Config,
    )
}


def to_json(recipe: Any) -> Any:
    """A recipe as JSON values; each dataclass an object with its kind."""
    if is_dataclass(recipe) and not isinstance(recipe, type):
        if type(recipe).__name__ not in _KINDS:
            raise ConfigError(f"{recipe!r} has no JSON form; a raw Optax object is welcome from Python only.")
        return {
            "kind": type(recipe).__name__,
            **{f.name: to_json(getattr(recipe, f.name)) for f in fields(recipe)},
        }
    if isinstance(recipe, Descent) or callable(recipe):
        raise ConfigError(f"{recipe!r} has no JSON form; a raw Optax object is welcome from Python only.")
    return [to_json(item) for item in recipe] if isinstance(recipe, tuple) else recipe


def from_json(value: Any) -> Any:
    """The recipe that `to_json` gave; ConfigError for kinds and fields that are not known."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"config: kind={kind!r}{meant(str(kind), _KINDS)}")
    known = {f.name for f in fields(_KINDS[kind])}
    given = {name: from_json(item) for name, item in value.items() if name != "kind"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"config: {kind} has no field {unknown[0]!r}{meant(unknown[0], known)}")
    try:
        return _KINDS[kind](**given)
    except TypeError as error:
        raise ConfigError(f"config: {kind}: {error}.") from error


def override(config: Any, path: str, text: str, option: str | None = None) -> Any:
    """The config with one field, "method.inner.steps", set from text; see `overrides`."""
    return overrides(config, [(path, text, option or f"--{path}")])


def overrides(config: Any, changes: Sequence[tuple[str, str, str]]) -> Any:
    """The config with fields set, (path, text, option); ConfigError says what was meant.

    All at once, so that what makes sense only together is accepted. A field that holds a recipe of several
    kinds is set by kind, "CG" or "GMRES", and then its own fields. option: how the user wrote it, for
    messages.
    """
    named = [(path.replace("-", "_").split("."), text, option) for path, text, option in changes]
    return _overrides(config, named, "")


def _overrides(config: Any, changes: Sequence[tuple[list[str], str, str]], above: str) -> Any:
    known = {f.name for f in fields(config)}
    values: dict[str, Any] = {}
    for (name, *below), text, option in changes:
        if name not in known:
            raise ConfigError(f"option {option}: there is no {above + name!r}{meant(name, known)}")
        if not below:
            values[name] = _parse(typing.get_type_hints(type(config))[name], text, option)
    deeper: dict[str, list[tuple[list[str], str, str]]] = {}
    for (name, *below), text, option in changes:
        if below:
            deeper.setdefault(name, []).append((below, text, option))
    for name, those in deeper.items():
        value = values.get(name, getattr(config, name))
        if not is_dataclass(value):
            raise ConfigError(
                f"option {those[0][2]}: {above + name!r} is a plain value, {value!r}, with nothing below it."
            )
        values[name] = _overrides(value, those, f"{above}{name}.")
    return replace(config, **values) if values else config


_WORDS = {int: "whole number", float: "number", bool: "true or false", types.NoneType: "none"}


def _parse(hint: Any, text: str, option: str) -> Any:
    """The value that `text` means for a field of type `hint`."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    choices: tuple[Any, ...] = typing.get_args(hint) if union else (hint,)
    kinds: dict[str, Any] = {}
    for choice in choices:
        if is_dataclass(choice) and isinstance(choice, type) and choice.__name__ in _KINDS:
            kinds[choice.__name__] = choice
    if types.NoneType in choices and text.lower() in ("none", "null"):
        return None
    if text in kinds:
        return _fresh(kinds[text])
    if any(
        typing.get_origin(choice) is typing.Literal and text in typing.get_args(choice) for choice in choices
    ):
        return text
    if kinds and not set(choices) & set(_WORDS) - {types.NoneType}:
        raise ConfigError(f"option {option}: {text!r} is no kind of it{meant(text, kinds)}")
    try:
        if bool in choices:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        for choice in choices:
            if typing.get_origin(choice) is tuple:
                kind = typing.get_args(choice)[0]
                return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
        if int in choices:
            return int(text)
        if float in choices:
            return float(text)
    except (KeyError, ValueError) as error:
        accepted = " or ".join(_said(choice) for choice in choices)
        raise ConfigError(f"option {option}: {text!r} came; accepted is a {accepted}.") from error
    return text


def _said(choice: Any) -> str:
    """A field's type as people say it."""
    if typing.get_origin(choice) is tuple:
        return f"list such as 1,2, each a {_said(typing.get_args(choice)[0])}"
    if typing.get_origin(choice) is typing.Literal:
        return " or ".join(typing.get_args(choice))
    return _WORDS.get(choice, getattr(choice, "__name__", ""))


def _fresh(kind: Any) -> Any:
    """A recipe of a kind with its defaults; solvers that must be told when to stop take five steps."""
    needs = {f.name for f in fields(kind)}
    if kind in (GradientDescent, ProximalGradient, ExtraGradient, OptimisticDescent):
        return kind(0.1, steps=5)
    if kind is NewTask:
        return kind(_fresh(GradientDescent))
    return kind(steps=5) if "steps" in needs else kind()


def load_config(text: str, where: str) -> Config:
    """The Config in a JSON text; ConfigError naming `where` it came from."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON ({error}); put back a copy, or begin a new run.") from error
    if isinstance(value, Mapping) and value.get("kind") == PYTHON:
        raise ConfigError(
            f"{where}: this run was started from Python with something that has no JSON form "
            f"({value.get('reason')}), so it can only go on from Python, with the same objects: "
            "imaml.train(..., out=..., resume=True)."
        )
    try:
        config = from_json(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{where} holds no run's configuration but {type(config).__name__}.")
    return config


def replace_data(config: Config, data: str | None) -> Config:
    """The config with its domain's data path set; ConfigError where the domain has none."""
    if data is None:
        return config
    if not hasattr(config.domain, "data") or getattr(config.domain, "source", "") == "characters":
        raise ConfigError(
            f"--data {data}: this run's domain draws its own tasks and reads no data; leave it out, or "
            "choose a preset that reads images or a table (see imaml presets)."
        )
    return replace(config, domain=replace(config.domain, data=data))
