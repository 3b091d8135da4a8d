"""What a report shows of a task: an example with predictions, or a scene of lines or images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jax.typing import ArrayLike

from ..core.errors import DataError


@dataclass(frozen=True)
class Example:
    """One task of classifying images, with what was predicted.

    Attributes:
        support: Images ``(n, height, width[, channels])`` in [0, 1], 1 = ink.
        support_labels: Classes ``(n,)`` from 0.
        query: Images ``(m, height, width[, channels])``.
        query_labels: Classes ``(m,)``.
        predicted: Classes ``(m,)``.
        probabilities: ``(m, ways)``, or None.

    Raises:
        DataError: If the parts do not fit together.
    """

    support: ArrayLike
    support_labels: ArrayLike
    query: ArrayLike
    query_labels: ArrayLike
    predicted: ArrayLike
    probabilities: ArrayLike | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        for name in ("support_labels", "query_labels", "predicted", "probabilities"):
            value, whole = getattr(self, name), "support" if name == "support_labels" else "query"
            found, shape = np.shape(value), np.shape(getattr(self, whole))
            if value is not None and found[:1] != shape[:1]:
                raise DataError(
                    f"Example: {name}: expected {shape[:1]} rows, as {whole} has, got {found[:1]}."
                )
        if np.ndim(self.query) < 3:
            raise DataError(f"Example: query: expected images, got shape {np.shape(self.query)}.")


@dataclass(frozen=True)
class Scene:
    """One picture of a task: lines or images.

    Attributes:
        title: The heading.
        note: One sentence below it.
        lines: ``(x, y)``, each ``(n,)``, by name. "before", "after", "best" and "true" are drawn as lines,
            others as points.
        x_name: What x is.
        images: Arrays ``(rows, columns)`` in [0, 1], 1 = dark, by name.
    """

    title: str
    note: str = ""
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]] = field(default_factory=dict)
    x_name: str = ""
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


def compared(title: str, true: ArrayLike, before: ArrayLike, after: ArrayLike, name: str) -> Scene:
    """Return a scene of predictions before and after adaptation, drawn over the true targets.

    Args:
        title: The heading.
        true: The targets, ``(n,)``.
        before: Predictions before adaptation, ``(n,)``.
        after: Predictions after adaptation, ``(n,)``.
        name: What the target is.

    Returns:
        The scene.
    """
    true, before, after = (np.ravel(np.asarray(part, np.float64)) for part in (true, before, after))
    order = np.argsort(true)
    parts = {"best": true, "before": before, "after": after}
    errors = [np.sqrt(np.mean(np.square(part - true))) for part in (before, after)]
    note = "root mean squared error: {:.3g} before, {:.3g} after".format(*errors)
    lines = {label: (true[order], part[order]) for label, part in parts.items()}
    return Scene(title, note, lines, f"true {name}")
