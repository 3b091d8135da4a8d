"""The outer optimiser as a recipe."""

from __future__ import annotations

import functools
import inspect
import typing
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import GradientTransformation, Schedule, contrib

from ..core.errors import ConfigError
from ..core.fields import Checked, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from ..core.recipes import former, recipe
from ..core.tree import Tree
from ..core.validation import not_one_of
from ..problems.precision import Theta

Name = Literal["adam", "sgd", "rmsprop", "adamw", "muon", "newton"]

# The parameters of Optax's constructors that each option sets. A constructor without them lacks the option.
PARAMETERS = {
    "epsilon": ("eps",),
    "beta1": ("b1", "adam_b1"),
    "beta2": ("b2", "adam_b2"),
    "momentum": ("momentum", "beta"),
    "weight_decay": ("weight_decay", "adam_weight_decay"),
    "least_side": ("muon_weight_dimension_numbers",),
    "adam_scale": ("adam_learning_rate",),
}
# Options that all optimisers have but Newton's method, whose steps have a length of their own.
OF_RATES = ("learning_rate", "schedule", "warmup", "clip", "average", "log_scale")


class Outer(NamedTuple):
    """The outer optimiser of a run.

    Attributes:
        transform: The Optax transform.
        rate: The learning rate as a function of the step, or None where it is not known.
        average: Decay of the moving average of the meta-parameters, 0 for none.
        newton: Whether steps are Newton's on the likelihood, for which the transform has no part but memory.
    """

    transform: GradientTransformation
    rate: Schedule | None
    average: float
    newton: bool = False


@recipe()
class Optimiser(Checked):
    """The outer optimiser as a recipe that goes to JSON.

    Muon (Jordan 2024) orthogonalises the update of every large matrix, and scales it to the typical size of
    Adam's updates (Liu et al. 2025, section 2.2: a root mean square of 0.2 learning rates). The other
    parameters use Adam with Nesterov's momentum.

    "newton" maximises the likelihood of linear models with the method "evidence", by damped Newton steps on
    all training tasks (see `imaml.meta.marginal`). It has no learning rate, and so no schedule,
    clipping or moving average.

    Args:
        name: "adam", "adamw", "sgd", "rmsprop", "muon" or "newton".
        learning_rate: Learning rate, after the warm-up and at the start of the schedule.
        schedule: "cosine" (to zero at the last step) or "constant".
        warmup: Steps of linear warm-up from 0, so the first step does not move the meta-parameters.
        clip: Largest global norm of the meta-gradient, or None.
        epsilon: Epsilon of the denominator, of all but sgd.
        beta1: Decay of the first moment, of adam, adamw and muon.
        beta2: Decay of the second moment, of adam, adamw and muon.
        momentum: Momentum of sgd and rmsprop (None for 0) and of muon (None for 0.95).
        weight_decay: Weight decay, of adamw and muon.
        average: Decay of the moving average of the meta-parameters that evaluation uses, 0 for none.
        least_side: Of muon: matrices with both sides at least this long are updated by it. The first layer
            and the head, whose sides have a meaning, are usually smaller.
        adam_scale: Of muon: learning rate of the other parameters, relative to `learning_rate`.
        log_scale: Learning rate of logarithms (learned strengths, inner rates, noise), relative to
            `learning_rate`. These may have to change by orders of magnitude.

    Raises:
        ConfigError: If a value is outside its range, or the named optimiser lacks an option.

    Example:
        >>> Optimiser("adam", 3e-3).schedule
        'cosine'
    """

    owner = "optimiser"

    name: Name = "adam"
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: NonNegativeInt = 0
    clip: PositiveFloat | None = None
    epsilon: PositiveFloat = 1e-8
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    momentum: Fraction | None = None
    weight_decay: NonNegativeFloat = 0.0
    average: Fraction = 0.0
    least_side: PositiveInt = 32
    adam_scale: PositiveFloat = 0.5
    log_scale: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        """Check the fields, and that the optimiser has the options that are set."""
        super().__post_init__()
        for option, default in _without_effect(self.name, vars(self)).items():
            having = " or ".join(repr(name) for name in typing.get_args(Name) if _has(name, option))
            raise ConfigError(
                f"optimiser: expected {option}={default!r}, as {self.name} has no {option}, got "
                f"{option}={getattr(self, option)!r} with name={self.name!r}. Hint: omit it, or choose "
                f"name={having}."
            )

    def rate(self, steps: int) -> Schedule:
        """Return the learning rate as an Optax schedule.

        Args:
            steps: Steps of the run.

        Returns:
            The function from a step to its learning rate.
        """
        if self.schedule == "constant":
            main = optax.constant_schedule(self.learning_rate)
        else:
            main = optax.cosine_decay_schedule(self.learning_rate, max(steps - self.warmup, 1))
        if not self.warmup:
            return main
        rise = optax.linear_schedule(0.0, self.learning_rate, self.warmup)
        return optax.join_schedules([rise, main], [self.warmup])

    def build(self, steps: int) -> GradientTransformation:
        """Make the Optax transform.

        Args:
            steps: Steps of the run, over which the schedule goes.

        Returns:
            The transform.
        """
        rate, muon = self.rate(steps), self.name == "muon"
        values: dict[str, object] = {name: getattr(self, name) for name in PARAMETERS}
        values["momentum"] = self.momentum or None
        if muon:
            values["momentum"] = 0.95 if self.momentum is None else self.momentum
            values["least_side"] = self._large
            values["adam_scale"] = lambda step: self.adam_scale * rate(step)
        options = {p: values[option] for option in PARAMETERS for p in _parameters(self.name, option)}
        if muon:
            options["consistent_rms"] = 0.2  # an update as large as Adam's (Liu et al. 2025, section 2.2)
        inner = _constructor(self.name)(rate, **options)
        if self.log_scale != 1:
            inner = optax.chain(inner, optax.stateless(self._scaled))
        # Nested as it is: checkpoints have the states of a chain's parts in this order.
        return inner if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), inner)

    def _scaled(self, updates: Tree, _: Tree) -> Tree:
        """Return updates, those of logarithms `log_scale` times."""
        if not isinstance(updates, Theta):
            return updates
        return Theta(updates.mean, *jax.tree.map(lambda step: self.log_scale * step, updates[1:]))

    def _large(self, theta: Tree) -> Tree:
        """Return the dimension numbers of the matrices that Muon updates, None for other parameters."""
        if isinstance(theta, Theta):  # a strength's or a rate's logarithm is not a layer, whatever its shape
            return Theta(self._large(theta.mean), *jax.tree.map(lambda _: None, theta[1:]))
        numbers = contrib.MuonDimensionNumbers((0,), (1,))
        chosen = lambda leaf: leaf.ndim == 2 and min(leaf.shape) >= self.least_side  # noqa: E731
        return jax.tree.map(lambda leaf: numbers if chosen(leaf) else None, theta)


@recipe(fresh={"name": "an Optax transform"})
class OptaxTransform(Checked):
    """Stands in a configuration for an Optax transform, which has no JSON form.

    What was learned with it can be loaded, adapted and evaluated. The run can be resumed from Python alone.

    Args:
        name: What the transform is, for messages.
    """

    owner = "optimiser"

    name: str


@former("Optimiser")
def _saved(options: Mapping[str, object]) -> Optimiser:
    """Read an optimiser from a file. Options without effect, once accepted, are reset with a warning."""
    known = {field.name for field in fields(Optimiser)}
    for option in options.keys() - known:
        raise ConfigError(not_one_of("config: field of Optimiser", option, known))
    name = options.get("name", Optimiser.name)
    reset = _without_effect(name, options)
    for option in reset:
        message = f"optimiser: {option}={options[option]!r} is ignored, as {name} has no {option}."
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return Optimiser(**{**options, **reset})  # type: ignore[arg-type]


@functools.lru_cache(maxsize=16)  # runs of equal optimisers share their compiled steps
def _outer(optimiser: Optimiser, steps: int) -> Outer:
    newton = optimiser.name == "newton"
    rate = None if newton else optimiser.rate(steps)
    return Outer(optimiser.build(steps), rate, optimiser.average, newton)


def outer(optimiser: Optimiser | GradientTransformation, steps: int) -> Outer:
    """Make the outer optimiser of a run of so many steps.

    Args:
        optimiser: A recipe, or an Optax transform.
        steps: Steps of the run.

    Returns:
        The transform, and what is known of it.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(optimiser, Optimiser):
        return _outer(optimiser, steps)
    if isinstance(optimiser, OptaxTransform):
        raise ConfigError(
            f"optimiser: expected imaml.Optimiser, got {optimiser.name}, which a configuration cannot hold. "
            "Hint: resume the run from Python, with the same objects."
        )
    if not hasattr(optimiser, "update"):
        raise ConfigError(
            f"train: optimiser: expected imaml.Optimiser or an Optax transform, got optimiser={optimiser!r}."
        )
    return Outer(optimiser, None, 0.0)


def described(optimiser: Optimiser | GradientTransformation) -> Optimiser:
    """Return what a configuration holds of an optimiser.

    Args:
        optimiser: A recipe, or an Optax transform.

    Returns:
        The recipe, or what stands for the transform.
    """
    if isinstance(optimiser, Optimiser):
        return optimiser
    return OptaxTransform("an Optax transform")  # type: ignore[return-value]  # only its JSON form is read


def _constructor(name: str) -> Callable[..., GradientTransformation]:
    """Return Optax's constructor of an optimiser."""
    if name == "newton":
        return _newton
    return contrib.muon if name == "muon" else getattr(optax, name)


def _newton(learning_rate: Schedule) -> GradientTransformation:
    """Return the memory of Newton's method: NaN until the first step."""
    unknown = lambda params: jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)  # noqa: E731
    return GradientTransformation(unknown, optax.identity().update)


@functools.cache
def _parameters(name: str, option: str) -> tuple[str, ...]:
    """Return the parameters of an optimiser's constructor that an option sets."""
    known = inspect.signature(_constructor(name)).parameters
    return tuple(parameter for parameter in PARAMETERS[option] if parameter in known)


def _has(name: str, option: str) -> bool:
    """Whether an optimiser has an option."""
    return bool(_parameters(name, option)) if option in PARAMETERS else name != "newton"


def _without_effect(name: object, options: Mapping[str, object]) -> dict[str, object]:
    """Return the defaults of the options that an optimiser lacks, and that have other values."""
    known = (*PARAMETERS, *OF_RATES)
    defaults = {f.name: f.default for f in fields(Optimiser) if f.name in options and f.name in known}
    return {
        option: default
        for option, default in defaults.items()
        if name in typing.get_args(Name) and options[option] != default and not _has(str(name), option)
    }
