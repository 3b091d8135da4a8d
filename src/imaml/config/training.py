"""How long a run takes, and how often it validates, saves and logs."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.recipes import recipe
from ..core.validation import require_number, require_whole


@recipe()
@dataclass(frozen=True)
class Training:
    """How long a run takes, and how often it validates, saves and logs.

    Args:
        steps: Outer steps.
        tasks: Tasks in each step, or 0 for all training tasks of a domain with a fixed number of them.
        seed: Seed of all random numbers.
        minutes: Training time after which the run stops, or None. Validations and the first step, which
            compiles, do not count.
        validate_every: Steps between validations, 0 for none.
        validation_tasks: Tasks in each validation.
        checkpoint_every: Steps between checkpoints.
        keep: Number of checkpoints that are kept.
        patience: Validations without improvement after which the run stops, or None.
        gradient_below: The run stops when the norm of the meta-gradient, averaged over `log_every` steps,
            falls below this, or None.
        log_every: Steps between lines of the log.
        test_tasks: Tasks in the evaluation at the end of a run of the command line, 0 for none.
        certify_every: Of imaml: steps between those whose meta-gradients get a certified error bound (see
            `imaml.Certificate`), 0 for none.

    Raises:
        ConfigError: If a value is outside its range.
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
        """Checks the values."""
        require_whole("training", 0, steps=self.steps, seed=self.seed, validate_every=self.validate_every)
        require_whole("training", 0, tasks=self.tasks)
        require_whole("training", 1, checkpoint_every=self.checkpoint_every, keep=self.keep)
        require_whole("training", 1, log_every=self.log_every)
        require_whole("training", 0, certify_every=self.certify_every)
        require_whole("training", 2, validation_tasks=self.validation_tasks)  # an interval needs two
        if self.test_tasks != 0:
            require_whole("training", 2, test_tasks=self.test_tasks)
        if self.seed >= 2**32:
            raise ConfigError(f"training: expected a whole number below 2**32, got seed={self.seed}.")
        for name in ("minutes", "gradient_below"):
            if getattr(self, name) is not None:
                require_number("training", 0, open=True, **{name: getattr(self, name)})
        if self.patience is not None:
            require_whole("training", 1, patience=self.patience)
            if not self.validate_every:
                raise ConfigError(
                    "training: expected validations where patience counts them, got "
                    f"patience={self.patience} with validate_every=0. Hint: set validate_every, or omit "
                    "patience."
                )
