"""The methods that `imaml compare` has, as rows of one table: how each changes a preset's recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.method import NewTask, changed
from ..config.run import Config
from ..core.errors import ConfigError
from ..core.validation import meant
from ..inner.gradient import GradientDescent
from ..inner.newton import NewtonCG
from ..linear.cg import CG

STEPS = 10**7  # at most; it is the minutes that end a run
GRID = 200  # steps between validations, each with a checkpoint; the end has both, too
VALIDATION_TASKS = 200


@dataclass(frozen=True)
class Row:
    """One method of the comparison: how it changes a preset's recipe.

    about: what it is, in a line. method: fields that differ from the preset's. rate, outer: by how much the
    preset's inner learning rate, in learning, and its outer one are multiplied. fine: how many steps a new
    task is solved by, at the preset's rate for new tasks; None for as `method` says, else as the preset.
    learns: whether it learns across tasks at all.
    """

    about: str
    method: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    outer: float = 1.0
    fine: int | None = None
    learns: bool = True

    def config(self, base: Config, minutes: float, seed: int) -> Config:
        """The run that this row makes of a preset."""
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
        if "inner" not in changes and isinstance(inner, GradientDescent):
            changes["inner"] = replace(inner, learning_rate=self.rate * inner.learning_rate)  # type: ignore[operator]
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
        "each task from a random start, nothing learned across tasks",
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
        "one body with a head for every group of classes, then fine-tuned with a new head",
        {"name": "multitask", **_PLAIN},
        outer=2.0,
        fine=32,
    ),
    "maml": Row("MAML, through every inner step", {"name": "maml", **_PLAIN}, fine=8),
    "fomaml": Row("first-order MAML", {"name": "fomaml", **_PLAIN}, rate=0.5, fine=32),
    "reptile": Row("Reptile, theta - phi_k", {"name": "reptile", **_PLAIN}, fine=64),
    "reptile-proximal": Row(
        "Reptile on the anchored problem, strength (theta - phi*)", {"name": "reptile"}, rate=0.5, fine=64
    ),
    "anil": Row("MAML that adapts the head alone", {"name": "maml", **_PLAIN, "adapt": ("head",)}, rate=0.25),
    "metasgd": Row(
        "Meta-SGD, an inner rate learned for every parameter", {"name": "metasgd", **_PLAIN}, rate=0.25
    ),
    "imaml": Row("implicit MAML, gradient descent inside"),
    "imaml-hessian-free": Row(
        "implicit MAML, Newton-CG with a line search inside",
        {"inner": NewtonCG(steps=3, linear=CG(steps=5))},
        outer=0.5,
        fine=16,
    ),
    # Gradient descent on the head alone does not settle once the features have grown, and the implicit
    # gradient is then wrong (its estimate says so); the problem is convex, and Newton's method solves it.
    "imaml-head": Row(
        "implicit MAML that adapts the head alone, by Newton-CG",
        {
            "adapt": ("head",),
            "inner": NewtonCG(steps=5, linear=CG(steps=10)),
            "linear": CG(steps=10),
            "new_task": None,
        },
        outer=2.0,
    ),
    "imaml-learned": Row(
        "implicit MAML, a strength learned for every layer", {"learned": "leaf", "new_task": None}, fine=16
    ),
    "as-released": Row(
        "the published implementation: another linear system, no anchor inside",
        {"name": "as-released"},
        rate=0.5,
    ),
}


def rows_of(names: Sequence[str]) -> dict[str, Row]:
    """The rows named, in the table's order, or all; ConfigError says what was meant."""
    for name in names:
        if name not in ROWS:
            raise ConfigError(f"compare: there is no method {name!r}{meant(name, ROWS)}")
    return {name: row for name, row in ROWS.items() if name in names or not names}
