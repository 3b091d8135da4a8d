"""The outer optimiser as a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core.errors import ConfigError
from ..core.recipes import recipe
from ..core.validation import require_number, require_one_of, require_whole
from ..problems.precision import Theta

SCHEDULES = ("constant", "cosine")
OPTIMISERS = ("adam", "sgd", "rmsprop", "adamw", "muon")


@recipe()
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
