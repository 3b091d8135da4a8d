"""The methods of `imaml compare`, as rows of one table: how each changes a preset's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.method import NewTask
from ..config.methods import changed
from ..config.run import Config
from ..core.errors import ConfigError
from ..core.validation import not_one_of
from ..inner.gradient import as_descent
from ..inner.newton import NewtonCG
from ..linear.cg import CG

STEPS = 10**7  # at most; it is the minutes that end a run
GRID = 200  # steps between validations, each with a checkpoint; the end has both, too
VALIDATION_TASKS = 200


@dataclass(frozen=True)
class Row:
    """One method of the comparison: how it changes a preset's recipe.

    Attributes:
        about: What it is, in a line.
        method: Fields of the method's recipe that differ from the preset's.
        rate: Factor on the preset's inner learning rate in training.
        outer: Factor on the preset's outer learning rate.
        fine: Number of inner steps on a new task, at the preset's rate for new tasks. None leaves what
            ``method`` or the preset says.
        learns: Whether the method learns across tasks.
    """

    about: str
    method: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    outer: float = 1.0
    fine: int | None = None
    learns: bool = True

    def config(self, base: Config, minutes: float, seed: int) -> Config:
        """Make the configuration of one run.

        Args:
            base: A preset's configuration.
            minutes: Training time.
            seed: Random seed.

        Returns:
            The preset's configuration with this row's method.
        """
        training = replace(
            base.training,
            steps=STEPS if self.learns else 0,
            minutes=minutes,
            seed=seed,
            validate_every=GRID if self.learns else 0,
            validation_tasks=VALIDATION_TASKS,
            checkpoint_every=GRID,
            keep=10**6,
            patience=None,
            gradient_below=None,
            test_tasks=0,
        )
        outer = self.outer * base.optimiser.learning_rate
        optimiser = replace(base.optimiser, schedule="constant", learning_rate=outer)
        changes, inner = dict(self.method), base.method.inner
        if "inner" not in changes and (descent := as_descent(inner)) is not None:
            changes["inner"] = replace(descent, learning_rate=self.rate * descent.learning_rate)  # type: ignore[operator]
        if self.fine is not None:
            given = base.method.new_task or NewTask(inner)
            anchored = changes.get("strength", base.method.strength) is not None and "learned" not in changes
            strength = given.strength if anchored else None
            changes["new_task"] = NewTask(replace(given.inner, steps=self.fine), strength)  # type: ignore[type-var]
        return replace(base, method=changed(base.method, **changes), optimiser=optimiser, training=training)


# rate, outer and fine are the best of three trials each, 600 steps, on validation tasks of Omniglot 5-way
# 1-shot: benchmarks/results/tuning-600.json. Trials of 200 steps favour small inner rates (tuning.json).
_PLAIN = {"strength": None, "new_task": None}
ROWS: dict[str, Row] = {
    "scratch": Row(
        "each task from a random initialisation; nothing is learned across tasks",
        {"name": "fomaml", **_PLAIN},
        fine=64,
        learns=False,
    ),
    "transfer-head": Row(
        "one network for all classes, then a new head is fitted",
        {"name": "transfer", **_PLAIN, "adapt": ("head",)},
        outer=2.0,
        fine=8,
    ),
    "transfer": Row(
        "one network for all classes, then fine-tuned as a whole",
        {"name": "transfer", **_PLAIN},
        outer=2.0,
        fine=8,
    ),
    "multitask": Row(
        "one body with a head for each group of classes, then fine-tuned with a new head",
        {"name": "multitask", **_PLAIN},
        outer=2.0,
        fine=32,
    ),
    "maml": Row("MAML, differentiated through every inner step", {"name": "maml", **_PLAIN}, fine=8),
    "fomaml": Row("first-order MAML", {"name": "fomaml", **_PLAIN}, rate=0.5, fine=32),
    "reptile": Row("Reptile: the meta-gradient is theta - phi_k", {"name": "reptile", **_PLAIN}, fine=64),
    "reptile-proximal": Row(
        "Reptile on the regularised inner problem: strength (theta - phi*)",
        {"name": "reptile"},
        rate=0.5,
        fine=64,
    ),
    "anil": Row("MAML that adapts only the head", {"name": "maml", **_PLAIN, "adapt": ("head",)}, rate=0.25),
    "metasgd": Row(
        "Meta-SGD: learns an inner learning rate for every parameter",
        {"name": "metasgd", **_PLAIN},
        rate=0.25,
    ),
    "imaml": Row("implicit MAML with gradient descent as the inner solver"),
    "imaml-hessian-free": Row(
        "implicit MAML with Newton-CG and a line search as the inner solver",
        {"inner": NewtonCG(steps=3, linear=CG(steps=5))},
        outer=0.5,
        fine=16,
    ),
    # Gradient descent on the head alone does not settle once the features have grown, and the implicit
    # gradient is then wrong (its estimate says so); the problem is convex, and Newton's method solves it.
    "imaml-head": Row(
        "implicit MAML that adapts only the head, by Newton-CG",
        {
            "adapt": ("head",),
            "inner": NewtonCG(steps=5, linear=CG(steps=10)),
            "linear": CG(steps=10),
            "new_task": None,
        },
        outer=2.0,
    ),
    "imaml-learned": Row(
        "implicit MAML that learns a regularisation strength for every layer",
        {"learned": "leaf", "new_task": None},
        fine=16,
    ),
    "as-released": Row(
        "the published implementation: another linear system, no regularisation in the inner problem",
        {"name": "as-released"},
        rate=0.5,
    ),
}


def rows_of(names: Sequence[str]) -> dict[str, Row]:
    """Select methods.

    Args:
        names: Keys of `ROWS`; none selects all.

    Returns:
        The rows in the order of `ROWS`.

    Raises:
        ConfigError: If there is no such method.
    """
    for name in names:
        if name not in ROWS:
            raise ConfigError(not_one_of("compare: method", name, ROWS))
    return {name: row for name, row in ROWS.items() if name in names or not names}
