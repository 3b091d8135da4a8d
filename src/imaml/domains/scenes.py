"""What a domain shows of one task before and after adaptation, for the report: lines, or images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scene:
    """One picture of a task.

    title, note: said above it. lines: (x (n,), y (n,)) by name; those named "before", "after" and "best" have
    a style of their own, others are drawn as points. x_name: what x is. images: arrays (rows, columns) in
    [0, 1], 1 = dark, by what they are.
    """

    title: str
    note: str = ""
    lines: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    x_name: str = ""
    images: Mapping[str, Any] = field(default_factory=dict)
