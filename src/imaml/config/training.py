"""How long a run goes on, and how often it looks."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.recipes import recipe
from ..core.validation import require_number, require_whole


@recipe()
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
