"""The methods of `imaml compare`, as rows of one table, `rows.toml`: how each changes a preset's recipe."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from ..config.method import NewTask
from ..config.methods import changed
from ..config.run import Config
from ..core.errors import ConfigError
from ..core.recipes import from_json
from ..core.validation import not_one_of
from ..inner.gradient import as_descent

STEPS = 10**7  # at most; it is the minutes that end a run
GRID = 200  # steps between validations, each with a checkpoint; the end has both, too
VALIDATION_TASKS = 200
# What the protocol sets itself, by field, with the option of `imaml compare` that does it instead.
SET = {
    **{f"training.{name}": "" for name in ("steps", "validate_every", "validation_tasks", "keep")},
    **{f"training.{name}": "" for name in ("checkpoint_every", "patience", "restore_best", "gradient_below")},
    "training.seed": "--seeds",
    "training.test_tasks": "--tasks",
    "optimiser.schedule": "",
    "method": "",
    "method.name": "",
}


@dataclass(frozen=True)
class Row:
    """One method of the comparison: how it changes a preset's recipe.

    Attributes:
        about: What it is, in a line.
        method: Fields of the method's recipe that differ from the preset's, and its name.
        rate: Factor on the preset's inner learning rate in training.
        outer: Factor on the preset's outer learning rate.
        fine: Number of inner steps on a new task, at the preset's rate for new tasks. None leaves what
            ``method`` or the preset says.
        learns: Whether the method learns across tasks.
    """

    about: str
    method: Mapping[str, Any]
    rate: float = 1.0
    outer: float = 1.0
    fine: int | None = None
    learns: bool = True

    def config(self, base: Config, minutes: float, seed: int) -> Config:
        """Make the configuration of one run.

        Args:
            base: A preset's configuration. The fields in `SET` are the protocol's and the row's instead.
            minutes: Training time.
            seed: Random seed.

        Returns:
            The preset's configuration with this row's method.

        Raises:
            ConfigError: If the optimiser is one of the method evidence alone.
        """
        if base.optimiser.name == "newton":
            raise ConfigError(
                "compare: expected an optimiser that takes the meta-gradients of every method, got 'newton', "
                "which only the method evidence supports. Hint: --optimiser.name=adam."
            )
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
            restore_best=False,  # every checkpoint is scored
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


def _read() -> dict[str, Row]:
    """Return the rows of `rows.toml` by name."""
    text = resources.files("imaml.compare").joinpath("rows.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)
    for row in rows.values():
        row["method"] = {
            name: None if value == "none" else from_json(value) for name, value in row["method"].items()
        }
    return {name: Row(**row) for name, row in rows.items()}


ROWS: dict[str, Row] = _read()


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


def refuse_fields(changes: Iterable[tuple[str, str, str]]) -> None:
    """Check that options set no field that a comparison sets itself.

    Args:
        changes: Fields as (path, text, option); option is how the user wrote it.

    Raises:
        ConfigError: If one does.
    """
    for path, text, option in changes:
        if path not in SET:
            continue
        hint = f"use {SET[path]}." if SET[path] else "omit it."
        why = "which is the same for all methods"
        if path.startswith("method"):
            why, hint = "as each row has its own", "name the rows to compare, as in imaml compare imaml maml."
        raise ConfigError(
            f"{option}: expected a field that a comparison does not set itself, got {text!r} for {path}, "
            f"{why}. Hint: {hint}"
        )
