"""Checkpoints of the training state, written by Orbax and verified by checksums.

A checkpoint is a folder `step-00000123`: `state/`, written by Orbax, and `manifest.json` with the SHA-256 of
every file, the tree's paths, shapes and dtypes, the note, and a digest of its own text. It is written under
another name, flushed to the disk, the manifest last, then renamed: a folder of that name is whole, and later
damage shows. (Orbax alone notices truncation, but not flipped bits.) Nothing is ever unpickled here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
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
from .atomic import disk_errors, flush, make_folder, reason
from .integrity import FORMAT, DamageError

_STEP = re.compile(r"(?:\.replaced-)?step-(\d{8,})")


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
        object.__setattr__(self, "folder", Path(os.path.abspath(self.folder)))

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
            The directory of the checkpoint, which is then on the disk itself.

        Raises:
            CheckpointError: If a leaf is no array, or the directory cannot be written.
        """
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
            raise CheckpointError(f"step: expected a whole number, at least 0, got {step!r}.")
        arrays = integrity.on_host(state, CheckpointError)
        tree = [[k, a.shape, a.dtype.name, integrity.digest(a)] for k, a in arrays.items()]
        record = {"format": FORMAT, "step": int(step), "note": dict(note or {}), "tree": tree}
        integrity.sealed(record, CheckpointError)  # refuses a note that is no JSON before anything is written
        final = self.folder / f"step-{step:08d}"
        writing = final.with_name(f".writing-{final.name}")
        with disk_errors(self.folder, CheckpointError):
            make_folder(self.folder)
            self._clean()
            try:
                writing.mkdir()
                _orbax("save", writing / "state", list(arrays.values()))
                for path in writing.rglob("*"):
                    flush(path)
                record["files"] = integrity.contents(writing)
                (writing / "manifest.json").write_bytes(integrity.sealed(record, CheckpointError))
                flush(writing / "manifest.json")
                flush(writing)
                if final.exists():  # under its other name it counts as long as it is the only one
                    os.rename(final, final.with_name(f".replaced-{final.name}"))
                os.rename(writing, final)
                flush(self.folder)
            finally:
                shutil.rmtree(writing, ignore_errors=True)
        with contextlib.suppress(OSError):  # what cannot be deleted now is deleted after the next save
            for _, path in [(s, path) for s, path in self._candidates() if s <= step][self.keep :]:
                os.rename(path, path.with_name(f".deleting-{path.name}"))  # so none is seen half deleted
            self._clean()
        return final

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
                record = _verified(path, step)
                saved = {k: jax.ShapeDtypeStruct(s, jax.numpy.dtype(d)) for k, s, d, _ in record["tree"]}
                integrity.refuse_differences(str(path), saved, wanted, CheckpointError)
                arrays = _load(path / "state", record["tree"])
            except DamageError as damage:
                skipped.append(f"Skipped the damaged checkpoint of step {step} ({path}): {damage}.")
                continue
            leaves = [_placed(arrays[key], template) for key, template in wanted.items()]
            return Restored(step, jax.tree.structure(like).unflatten(leaves), record["note"], skipped)
        found = f"{self.folder}: expected a checkpoint, got {'damaged ones only' if candidates else 'none'}."
        advice = "Hint: restore a copy of that folder, or begin a new run."
        raise CheckpointError(" ".join([found, *skipped, advice]))

    def _candidates(self) -> list[tuple[int, Path]]:
        """Step and path of what is named as a checkpoint, newest first."""
        paths = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        named = [(match, path) for path in paths if (match := _STEP.fullmatch(path.name))]
        return sorted({int(match[1]): path for match, path in named}.items(), reverse=True)

    def _clean(self) -> None:
        """Deletes what a killed process left behind."""
        for path in list(self.folder.iterdir()):
            if path.name.startswith(".replaced-") and not (home := path.with_name(path.name[10:])).exists():
                os.rename(path, home)
            elif path.name.startswith((".writing-step-", ".deleting-", ".replaced-step-")):
                shutil.rmtree(path, ignore_errors=True)


def _verified(path: Path, step: int) -> JsonObject:
    """The manifest of a checkpoint whose files are exactly those that stand in it; else DamageError."""
    try:
        if not path.is_dir() or not any(path.iterdir()):
            raise DamageError("it is empty")
        record, found = integrity.unsealed((path / "manifest.json").read_bytes()), integrity.contents(path)
    except OSError as error:
        raise DamageError(f"{error.filename}: {reason(error)}") from error
    if record is None:
        raise DamageError("manifest.json is not as it was written")
    if (record["format"], record["step"]) != (FORMAT, step):
        raise DamageError(f"it has format {record['format']} (known: {FORMAT}) and step {record['step']}")
    written = record["files"]
    if changed := sorted(k for k in written.keys() | found.keys() if written.get(k) != found.get(k)):
        what = "missing" if changed[0] not in found else "not as it was written, or not one of its own"
        raise DamageError(f"the file {changed[0]} is {what}")
    return record


def _load(path: Path, tree: list[Json]) -> dict[str, np.ndarray]:
    """The arrays of a verified checkpoint, each with the digest that it had in memory; else DamageError."""
    try:
        blank = [np.empty(shape, jax.numpy.dtype(dtype)) for _, shape, dtype, _ in tree]
        arrays = _orbax("restore", path, blank)
    except Exception as error:  # whatever Orbax finds amiss
        raise DamageError(f"Orbax cannot read it ({reason(error)})") from error
    if [integrity.digest(array) for array in arrays] != [saved for *_, saved in tree]:
        raise DamageError("its arrays are not as they were saved")
    return {key: array for (key, *_), array in zip(tree, arrays, strict=True)}


def _orbax(action: str, path: Path, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The arrays saved, or restored in their places; Orbax refuses empty ones, which need no file."""
    import orbax.checkpoint as orbax  # late: it takes a second

    numbered = {f"{index:05d}": array for index, array in enumerate(arrays) if array.size}
    level = (logger := logging.getLogger("absl")).level
    logger.setLevel(logging.CRITICAL)
    try:
        with orbax.Checkpointer(orbax.StandardCheckpointHandler()) as checkpointer:  # the synchronous one
            if numbered and action == "save":
                checkpointer.save(path, args=orbax.args.StandardSave(numbered))
            elif numbered:
                numbered = checkpointer.restore(path, args=orbax.args.StandardRestore(numbered))
    finally:
        logger.setLevel(level)
    return [np.asarray(numbered.get(f"{index:05d}", array)) for index, array in enumerate(arrays)]


def _placed(array: np.ndarray, like: integrity.Leaf) -> np.ndarray | jax.Array:
    """The array in NumPy, or on the devices of `like`."""
    if isinstance(like, np.ndarray | np.generic) or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array
    pinned = getattr(like, "committed", True)  # an array that was free to move stays so
    return jax.device_put(array, getattr(like, "sharding", None) if pinned else None, may_alias=False)
