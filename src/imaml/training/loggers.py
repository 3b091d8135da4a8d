"""Loggers: callbacks of `fit` and `train` that write scores to TensorBoard, Weights & Biases or MLflow.

log = imaml.loggers.TensorBoard("logs/first")
imaml.fit(tasks, on_step=log, on_validation=log)

Their libraries are imported when a logger is made: `pip install "imaml[tensorboard]"`, `wandb` or `mlflow`.
"""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core.errors import ConfigError

OMITTED = ("step", "theta")  # of what callbacks are given


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in what a callback is given.

    Args:
        record: What `on_step` or `on_validation` is called with.

    Returns:
        The numbers by name, those of a dict in it as "scores/rmse"; none of a step that is not logged.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        parts = value if isinstance(value, Mapping) else {"": value}
        for part, number in parts.items() if name not in OMITTED else ():
            if isinstance(number, numbers.Real) and not isinstance(number, bool):
                found[f"{name}/{part}" if part else name] = float(number)
    return found if set(found) - {"seconds"} else {}


class Logger:
    """The base of a logger: a callback for `on_step` and `on_validation`.

    A subclass defines `write`.
    """

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write the numbers of a step that is logged (`log_every`), or of a validation.

        Args:
            record: What `fit` and `train` call their callbacks with.
        """
        found = scalars(record)
        if found:
            prefix = "validation/" if "scores" in record else "train/"
            self.write({prefix + name: value for name, value in found.items()}, int(record["step"]))

    def write(self, values: dict[str, float], step: int) -> None:
        """Write numbers.

        Args:
            values: The numbers by name.
            step: The step that they are of.
        """
        raise NotImplementedError


class TensorBoard(Logger):
    """Writes event files that TensorBoard shows.

    Args:
        folder: The folder of the event files.

    Raises:
        ConfigError: If neither tensorboardX nor PyTorch's TensorBoard writer is installed.

    Example:
        >>> log = TensorBoard("logs/first")  # doctest: +SKIP
        >>> imaml.fit(tasks, on_step=log, on_validation=log)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a new event file."""
        module = _library("TensorBoard", "tensorboardX", "torch.utils.tensorboard", extra="tensorboard")
        self.writer = module.SummaryWriter(str(folder))

    def write(self, values: dict[str, float], step: int) -> None:
        """Write numbers, at once."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()


class WandB(Logger):
    """Logs to Weights & Biases.

    Args:
        run: A run of Weights & Biases; by default the current one, or a new one.

    Raises:
        ConfigError: If wandb is not installed.

    Example:
        >>> log = WandB()  # doctest: +SKIP
    """

    def __init__(self, run: Any = None) -> None:
        """Find or begin the run."""
        module = _library("WandB", "wandb")
        self.run = run or module.run or module.init()

    def write(self, values: dict[str, float], step: int) -> None:
        """Log numbers."""
        self.run.log(values, step=step)


class MLflow(Logger):
    """Logs to the active run of MLflow, which begins one if there is none.

    Raises:
        ConfigError: If mlflow is not installed.

    Example:
        >>> log = MLflow()  # doctest: +SKIP
    """

    def __init__(self) -> None:
        """Import MLflow."""
        self.mlflow = _library("MLflow", "mlflow")

    def write(self, values: dict[str, float], step: int) -> None:
        """Log numbers."""
        self.mlflow.log_metrics(values, step=step)


def _library(logger: str, *names: str, extra: str = "") -> ModuleType:
    """The first library that is installed; ConfigError if none is."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    command = f'pip install "imaml[{extra}]"' if extra else f"pip install {names[0]}"
    raise ConfigError(
        f"loggers.{logger}: expected {' or '.join(names)}, got none installed. Hint: {command}."
    )
