"""How long a run takes, and how often it validates, saves and logs."""

from __future__ import annotations

from typing import Annotated, Literal

from ..core.errors import ConfigError
from ..core.fields import Checked, NonNegativeInt, PositiveFloat, PositiveInt, SeveralInt
from ..core.recipes import recipe
from ..core.validation import Interval


@recipe()
class Training(Checked):
    """How long a run takes, and how often it validates, saves and logs.

    Args:
        steps: Outer steps.
        tasks: Tasks in each step, or 0 for all training tasks of a domain with a fixed number of them.
        seed: Seed of the initial parameters, and of which training tasks are drawn.
        minutes: Training time after which the run stops, or None. Validations and the first step, which
            compiles, do not count.
        validate_every: Steps between validations, 0 for none.
        validation_tasks: Tasks in each validation.
        checkpoint_every: Steps between checkpoints.
        keep: Number of checkpoints that are kept.
        restore_best: Whether the run ends with the parameters of its best validation, instead of the last
            ones. The parameters that it starts from are then validated, too. A run that ended at a limit
            and is prolonged has one more validation, at that limit.
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

    owner = "training"

    steps: NonNegativeInt = 1000
    tasks: NonNegativeInt = 16
    seed: Annotated[int, Interval(0, 2**32)] = 0
    minutes: PositiveFloat | None = None
    validate_every: NonNegativeInt = 200
    validation_tasks: SeveralInt = 200  # an interval needs two
    checkpoint_every: PositiveInt = 200
    keep: PositiveInt = 3
    restore_best: bool = False
    patience: PositiveInt | None = None
    gradient_below: PositiveFloat | None = None
    log_every: PositiveInt = 10
    test_tasks: SeveralInt | Literal[0] = 1000
    certify_every: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Check the fields, and that there are validations where something depends on them."""
        super().__post_init__()
        for name in ("patience", "restore_best"):
            if (value := getattr(self, name)) and not self.validate_every:
                raise ConfigError(
                    f"training: expected validations where {name} needs them, got {name}={value} with "
                    f"validate_every=0. Hint: set validate_every, or omit {name}."
                )
