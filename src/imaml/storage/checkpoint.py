"""Checkpoints of the training state, verified by checksums.

A checkpoint is one safetensors file, `step-00000123.checkpoint`, with the step and the note in its metadata
and digests of both (`storage/integrity.py`). It is written under another name, flushed to the disk and then
renamed: a file of that name is whole, and later damage shows. Nothing is ever unpickled here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from ..core.errors import CheckpointError
from ..core.fields import Checked, PositiveInt
from ..core.recipes import Json, JsonObject
from ..core.tree import Tree
from . import integrity
from .atomic import is_leftover, reason
from .integrity import FORMAT, DamageError

_STEP = re.compile(r"step-(\d{8,})\.checkpoint")


@dataclass(frozen=True)
class Restored:
    """A restored training state.

    Attributes:
        step: The step after which it was saved.
        state: The state.
        note: What was saved with it.
        skipped: A sentence for each damaged checkpoint that is newer.
    """

    step: int
    state: Tree
    note: JsonObject
    skipped: list[str]


@dataclass(frozen=True)
class Checkpoints(Checked):
    """The newest checkpoints of one run in one directory, each whole or not there at all.

    To share a result, use `write_artefact`. Only one process may save into a directory.

    Attributes:
        folder: The directory.
        keep: How many checkpoints are kept.

    Example::

        checkpoints = Checkpoints(Path("run/checkpoints"))
        checkpoints.save(100, {"theta": theta}, {"best": 0.91})
        theta = checkpoints.restore({"theta": theta}).state["theta"]
    """

    folder: Path
    keep: PositiveInt = 3

    def __post_init__(self) -> None:
        """Raises `ConfigError` if `keep` is below 1."""
        super().__post_init__()
        object.__setattr__(self, "folder", Path(self.folder).absolute())

    def steps(self) -> list[int]:
        """Lists the steps with a checkpoint.

        Returns:
            Steps in ascending order. No checkpoint is verified.
        """
        return sorted(step for step, _ in self._candidates())

    def save(self, step: int, state: Tree, note: Mapping[str, Json] | None = None) -> Path:
        """Saves a checkpoint, and deletes older ones beyond `keep`.

        A checkpoint of the same step is replaced. Later ones belong to another run, or are damaged, and stay.

        Args:
            step: The step after which the state is saved.
            state: A tree of NumPy and JAX arrays; random keys as `jax.random.key_data`.
            note: JSON values to store with it.

        Returns:
            The file, which is then on the disk itself.

        Raises:
            CheckpointError: If a leaf is not an array, or the directory cannot be written.
        """
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
            raise CheckpointError(f"step: expected a whole number, at least 0, got {step!r}.")
        arrays = integrity.on_host(state, CheckpointError)
        path = self.folder / f"step-{step:08d}.checkpoint"
        # First, as the disk may be full of what killed processes left.
        _delete([leftover for leftover in self.folder.glob(".*") if is_leftover(leftover.name)])
        integrity.write_arrays(path, arrays, {"step": int(step), "note": dict(note or {})}, CheckpointError)
        _delete([path for found, path in self._candidates() if found <= step][self.keep :])
        return path

    def restore(self, like: Tree, most: int | None = None) -> Restored:
        """Restores the newest sound checkpoint, bit for bit as it was saved; verifies every file first.

        Args:
            like: A tree of arrays or `jax.ShapeDtypeStruct` with the structure to restore. A NumPy array
                restores as NumPy, anything else as a (strongly typed) JAX array with the same sharding.
                64-bit values stay in NumPy while JAX has x64 off.
            most: The newest step to consider, by default any.

        Returns:
            The restored state.

        Raises:
            CheckpointError: If there is no checkpoint, all are damaged, or another tree was saved.
        """
        wanted = integrity.flatten_names(like, CheckpointError)
        skipped: list[str] = []
        candidates = [(step, path) for step, path in self._candidates() if most is None or step <= most]
        for step, path in candidates:
            try:
                arrays, saved = _verified(path, step)
            except DamageError as damage:
                skipped.append(f"Skipped the damaged checkpoint of step {step} ({path}): {damage}.")
                continue
            integrity.refuse_differences(str(path), arrays, wanted, CheckpointError)
            leaves = [_placed(arrays[key], template) for key, template in wanted.items()]
            return Restored(step, jax.tree.structure(like).unflatten(leaves), saved, skipped)
        found = f"{self.folder}: expected a checkpoint, got {'damaged ones only' if candidates else 'none'}."
        advice = "Hint: restore a copy of that folder, or begin a new run."
        raise CheckpointError(" ".join([found, *skipped, advice]))

    def _candidates(self) -> list[tuple[int, Path]]:
        """Step and path of what is named as a checkpoint, newest first."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        named = [(match, path) for path in paths if (match := _STEP.fullmatch(path.name))]
        return sorted(((int(match[1]), path) for match, path in named), reverse=True)


def _delete(paths: list[Path]) -> None:
    """Deletes files; what cannot be deleted now is deleted at the next save."""
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def _verified(path: Path, step: int) -> tuple[dict[str, np.ndarray], JsonObject]:
    """The arrays and the note of a checkpoint, exactly as they were saved; else DamageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DamageError(reason(error)) from error
    record = integrity.read_record(data)
    if (record["format"], record.get("step")) != (FORMAT, step):
        raise DamageError(f"it has format {record['format']} (known: {FORMAT}) and step {record.get('step')}")
    return integrity.read_arrays(data, record), record["note"]


def _placed(array: np.ndarray, like: integrity.Leaf) -> np.ndarray | jax.Array:
    """The array in NumPy, or on the devices of `like`."""
    if isinstance(like, np.ndarray | np.generic) or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array
    pinned = getattr(like, "committed", True)  # an array that was free to move stays so
    return jax.device_put(array, getattr(like, "sharding", None) if pinned else None, may_alias=False)
