"""A run as nested frozen dataclasses: recipes, presets, the JSON round trip, and options from the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from .domains.fewshot import FewShotRecipe
from .domains.regression import LinearGaussianRecipe, SinusoidRecipe
from .errors import ConfigError
from .inner import Descent, GradientDescent
from .linear import CG, GMRES, BiCGStab, Dense, Neumann
from .methods import IMAML, POLICIES
from .problem import learned

SCHEDULES = ("constant", "cosine")
OPTIMISERS = ("adam", "sgd", "rmsprop", "adamw")


def _number(recipe: str, least: float, **values: Any) -> None:
    """Refuses values that are no finite numbers of at least `least` (ConfigError)."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
            raise ConfigError(f"{recipe}: {name}={value!r}; accepted is a number of at least {least}.")


@dataclass(frozen=True)
class Optimiser:
    """The outer optimiser as a recipe that goes to JSON; `build(steps)` makes the Optax transform.

    name: adam, adamw, sgd or rmsprop. schedule: "cosine" (to zero at the last step) or "constant". warmup: steps
    of linear warm-up. clip: the largest global norm of the meta-gradient, or None. epsilon, beta1, beta2: of Adam.
    momentum: of SGD. average: decay of the moving average of theta that evaluation uses, 0 for none.

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
    momentum: float = 0.0
    weight_decay: float = 0.0
    average: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMISERS:
            raise ConfigError(f"optimiser: name={self.name!r}; accepted: {', '.join(OPTIMISERS)}.")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"optimiser: schedule={self.schedule!r}; accepted: {', '.join(SCHEDULES)}.")
        if not (isinstance(self.learning_rate, (int, float)) and 0 < self.learning_rate < float("inf")):
            raise ConfigError(f"optimiser: learning_rate={self.learning_rate!r}; accepted is a positive number.")
        _number("optimiser", 0, warmup=self.warmup, weight_decay=self.weight_decay, epsilon=self.epsilon)
        for name in ("beta1", "beta2", "momentum", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimiser: {name}={getattr(self, name)!r}; accepted is a number in [0, 1).")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise ConfigError(f"optimiser: clip={self.clip!r}; accepted is a positive number, or None.")

    def rate(self, steps: int) -> Any:
        """The learning rate as an Optax schedule, step -> rate, for a run of `steps`."""
        import optax

        if self.schedule == "constant":
            main = optax.constant_schedule(self.learning_rate)
        else:
            main = optax.cosine_decay_schedule(self.learning_rate, max(steps - self.warmup, 1))
        if not self.warmup:
            return main
        return optax.join_schedules([optax.linear_schedule(0.0, self.learning_rate, self.warmup), main], [self.warmup])

    def build(self, steps: int) -> Any:
        """The Optax transform for a run of `steps` steps."""
        import optax

        rate = self.rate(steps)
        if self.name == "adam":
            inner = optax.adam(rate, self.beta1, self.beta2, self.epsilon)
        elif self.name == "adamw":
            inner = optax.adamw(rate, self.beta1, self.beta2, self.epsilon, weight_decay=self.weight_decay)
        elif self.name == "rmsprop":
            inner = optax.rmsprop(rate, eps=self.epsilon)
        else:
            inner = optax.sgd(rate, self.momentum or None)
        return inner if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), inner)


@dataclass(frozen=True)
class Method:
    """The method as a recipe that goes to JSON; `build(domain)` makes it.

    strength: the anchor's. learned: None for fixed, or how it is learned, "all", "leaf" or "parameter". adapt: the
    names of the branches that a task adapts, or None for all. chunk: tasks worked on at once on each device, or None.
    """

    name: str = "imaml"
    strength: float = 0.5
    learned: str | None = None
    adapt: tuple[str, ...] | None = None
    inner: GradientDescent = GradientDescent(0.2, steps=16)
    linear: CG | Neumann | GMRES | BiCGStab | Dense = CG(steps=5)
    policy: str = "warn"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.name != "imaml":
            raise ConfigError(f"method: name={self.name!r}; accepted: imaml.")
        if not (isinstance(self.strength, (int, float)) and 0 < self.strength < float("inf")):
            raise ConfigError(
                f"method: strength={self.strength!r}; accepted is a positive finite number (it anchors a task's "
                "parameters at theta)."
            )
        if self.learned not in (None, "all", "leaf", "parameter"):
            raise ConfigError(f"method: learned={self.learned!r}; accepted: None, 'all', 'leaf', 'parameter'.")
        if self.policy not in POLICIES:
            raise ConfigError(f"method: policy={self.policy!r}; accepted: {', '.join(POLICIES)}.")

    def build(self, domain: Any, mesh: Any = None) -> IMAML:
        """The method on a domain's problem, its tasks shared over a mesh's devices."""
        strength = self.strength if self.learned is None else learned(self.strength, self.learned)
        return IMAML(
            domain.problem(strength, self.adapt),
            domain.query_loss,
            inner=self.inner,
            linear=self.linear,
            policy=self.policy,
            chunk=self.chunk,
            mesh=mesh,
            measure=domain.measure,
        )


@dataclass(frozen=True)
class Training:
    """How long and how often.

    steps, tasks: outer steps, and tasks a step. seed: of everything. minutes: a budget of training time after which
    it stops, or None. validate_every, validation_tasks: a validation on the validation split, 0 for none.
    checkpoint_every, keep: steps between checkpoints, and how many are kept. patience: stop after so many
    validations without improvement, or None. gradient_below: stop when the meta-gradient's norm, averaged over
    `log_every` steps, falls below it, or None.
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

    def __post_init__(self) -> None:
        least = {"steps": 0, "tasks": 1, "seed": 0, "validate_every": 0, "validation_tasks": 2}
        for name, low in {**least, "checkpoint_every": 1, "keep": 1, "log_every": 1}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ConfigError(f"training: {name}={value!r}; accepted is a whole number of at least {low}.")
        if self.seed >= 2**32:
            raise ConfigError(f"training: seed={self.seed}; accepted is a whole number below 2**32.")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ConfigError(f"training: minutes={self.minutes!r}; accepted is a positive number, or None.")
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise ConfigError(f"training: patience={self.patience!r}; accepted is a whole number >= 1, or None.")
        if self.gradient_below is not None and not 0 < self.gradient_below < float("inf"):
            raise ConfigError(f"training: gradient_below={self.gradient_below!r}; accepted is a positive number.")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    domain: FewShotRecipe | SinusoidRecipe | LinearGaussianRecipe = FewShotRecipe()
    method: Method = Method()
    optimiser: Optimiser = Optimiser()
    training: Training = Training()


_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        FewShotRecipe,
        SinusoidRecipe,
        LinearGaussianRecipe,
        GradientDescent,
        CG,
        Neumann,
        GMRES,
        BiCGStab,
        Dense,
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
        return {"kind": type(recipe).__name__, **{f.name: to_json(getattr(recipe, f.name)) for f in fields(recipe)}}
    if isinstance(recipe, Descent) or callable(recipe):
        raise ConfigError(f"{recipe!r} has no JSON form; a raw Optax object is welcome from Python only.")
    return list(recipe) if isinstance(recipe, tuple) else recipe


def from_json(value: Any) -> Any:
    """The recipe that `to_json` gave; ConfigError for kinds and fields that are not known."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if kind not in _KINDS:
        raise ConfigError(f"config: kind={kind!r}; accepted: {', '.join(_KINDS)}.")
    known = {f.name for f in fields(_KINDS[kind])}
    given = {name: from_json(item) for name, item in value.items() if name != "kind"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(f"config: {kind} has no field {unknown[0]!r}{meant(unknown[0], known)}")
    try:
        return _KINDS[kind](**given)
    except TypeError as error:
        raise ConfigError(f"config: {kind}: {error}.") from error


def meant(word: str, known: Any) -> str:
    """The end of a message about a misspelt word: what was perhaps meant, else what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(names)}."


def override(config: Any, path: str, text: str) -> Any:
    """The config with one field, "method.inner.steps", set from text; ConfigError says what was meant.

    A field that holds a recipe of several kinds is set by kind, "CG" or "GMRES".
    """
    return _override(config, path.replace("-", "_").split("."), text, path)


def _override(config: Any, names: list[str], text: str, path: str) -> Any:
    known = {f.name: f for f in fields(config)}
    name = names[0]
    if name not in known:
        prefix = path.replace("-", "_").rsplit(name, 1)[0]
        raise ConfigError(f"option --{path}: there is no {prefix + name!r}{meant(name, known)}")
    value = getattr(config, name)
    if len(names) > 1:
        if not is_dataclass(value):
            raise ConfigError(f"option --{path}: {name!r} is a plain value, {value!r}, with nothing below it.")
        return replace(config, **{name: _override(value, names[1:], text, path)})
    return replace(config, **{name: _parse(typing.get_type_hints(type(config))[name], text, path)})


def _parse(hint: Any, text: str, path: str) -> Any:
    """The value that `text` means for a field of type `hint`."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = {c.__name__: c for c in choices if is_dataclass(c)}
    if kinds:
        chosen = kinds.get(text)
        if chosen is None:
            raise ConfigError(f"option --{path}: {text!r} is no kind of it{meant(text, kinds)}")
        return chosen(steps=5) if "steps" in {f.name for f in fields(chosen)} else chosen()
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    try:
        if bool in choices:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if any(typing.get_origin(choice) is tuple for choice in choices):
            return tuple(part for part in text.split(",") if part)
        if int in choices:
            return int(text)
        if float in choices:
            return float(text)
    except (KeyError, ValueError) as error:
        wanted = " or ".join("none" if c is type(None) else getattr(c, "__name__", str(c)) for c in choices)
        raise ConfigError(f"option --{path}: {text!r} is no {wanted}.") from error
    return text


def load_config(text: str, where: str) -> Config:
    """The Config in a JSON text; ConfigError naming `where` it came from."""
    try:
        config = from_json(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is no JSON ({error.msg} at line {error.lineno}).") from error
    if not isinstance(config, Config):
        raise ConfigError(f"{where} holds no run's configuration but {type(config).__name__}.")
    return config


def _omniglot(ways: int, shots: int, tasks: int) -> Config:
    return Config(
        FewShotRecipe("omniglot", ways, shots, queries=5 if ways == 5 else 2),
        Method(strength=0.1, inner=GradientDescent(0.4, steps=16), chunk=1),
        Optimiser("adam", 3e-3),
        Training(steps=3000, tasks=tasks),
    )


@dataclass(frozen=True)
class Preset:
    """A named configuration with one line of what it is."""

    about: str
    config: Config = field(default_factory=Config)


PRESETS: dict[str, Preset] = {
    "characters-5w1s": Preset(
        "read procedural handwriting, 5 ways, 1 shot; needs no data, about three minutes",
        Config(
            FewShotRecipe("characters", 5, 1, queries=5, normalisation="inductive"),
            Method(strength=0.1, inner=GradientDescent(0.4, steps=8), linear=CG(steps=3), chunk=1),
            Optimiser("adam", 5e-3),
            Training(steps=400, tasks=8, minutes=3, validate_every=100, validation_tasks=100, checkpoint_every=50),
        ),
    ),
    "omniglot-5w1s": Preset("real handwriting, 5 ways, 1 shot", _omniglot(5, 1, 16)),
    "omniglot-5w5s": Preset("real handwriting, 5 ways, 5 shots", _omniglot(5, 5, 16)),
    "omniglot-20w1s": Preset("real handwriting, 20 ways, 1 shot", _omniglot(20, 1, 8)),
    "omniglot-20w5s": Preset("real handwriting, 20 ways, 5 shots", _omniglot(20, 5, 8)),
    "sinusoid": Preset(
        "regression of sinusoids from 10 points; seconds",
        Config(
            SinusoidRecipe(),
            Method(strength=0.5, inner=GradientDescent(0.02, steps=32), linear=CG(steps=8)),
            Optimiser("adam", 3e-3),
            Training(steps=5000, tasks=25, validate_every=1000, validation_tasks=500, checkpoint_every=1000),
        ),
    ),
    "mini-imagenet-5w1s": Preset(
        "mini-ImageNet from its usual folders, 84 x 84 x 3 (bring the data)",
        Config(
            FewShotRecipe("mini-imagenet", 5, 1, queries=5, rotations=False, filters=32),
            Method(strength=0.5, inner=GradientDescent(0.1, steps=10), chunk=1),
            Optimiser("adam", 1e-3),
            Training(steps=10_000, tasks=4),
        ),
    ),
}


def preset(name: str) -> Config:
    """The configuration of a preset; a misspelt name says what was meant."""
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}{meant(name, PRESETS)}")
    return PRESETS[name].config


def replace_data(config: Config, data: str | None) -> Config:
    """The config with its domain's data path set; ConfigError where the domain has none."""
    if data is None:
        return config
    if not isinstance(config.domain, FewShotRecipe) or config.domain.source == "characters":
        raise ConfigError(f"--data {data}: this run's domain draws its own tasks and reads no data.")
    return dataclasses.replace(config, domain=replace(config.domain, data=data))
