"""How a module of a library is called: as for evaluation, so that it is one fixed function."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable

from ...core.validation import some_of

# What the libraries and their users call the switch between training and evaluation, and its value here.
EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}


def switches(call: Callable) -> dict[str, bool]:
    """Return the arguments that switch a model to evaluation.

    Args:
        call: What is called, such as a module's `__call__`.

    Returns:
        Those of `EVALUATION` that its signature names.
    """
    parameters = inspect.signature(call).parameters
    return {argument: value for argument, value in EVALUATION.items() if argument in parameters}


def warn_of_dropout(model: str) -> None:
    """Warn that a model's dropout is off.

    Args:
        model: What the message calls it.
    """
    warnings.warn(
        f"model: {model}: dropout is off in adaptation, meta-training and prediction, as a task's inner "
        "problem must be one fixed function.",
        RuntimeWarning,
        stacklevel=5,
    )


def warn_of_constants(model: str, paths: Iterable[str]) -> None:
    """Warn of batch statistics that no known layer computes.

    Args:
        model: What the message calls it.
        paths: Their paths; without any there is no warning.
    """
    names = sorted(paths)
    if names:
        warnings.warn(
            f"model: {model}: the batch statistics {some_of(names)} are constant, as they belong to no "
            "layer of batch normalisation of the library.",
            RuntimeWarning,
            stacklevel=5,
        )
