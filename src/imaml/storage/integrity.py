"""Checksums, names of leaves, and writes that are whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.errors import ArtefactError, CheckpointError, ImamlError
from ..core.tree import PyTree, name

FORMAT = 1
BLANK = "0" * 64
CODES = "BOOL F16 BF16 F32 F64 C64 I8 I16 I32 I64 U8 U16 U32 U64"
NAMES = "bool float16 bfloat16 float32 float64 complex64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"
DTYPES = dict(zip(CODES.split(), map(jax.numpy.dtype, NAMES.split()), strict=True))


class DamageError(Exception):
    """Why one checkpoint cannot be used."""


def flatten_names(tree: PyTree, refusal: type[ImamlError] = ArtefactError) -> dict[str, Any]:
    """The leaves by name: keys of dicts, fields of records, positions in lists, joined by "/".

    They keep the tree's order; a tree that is one leaf has the name "value". `refusal` is the error for a
    leaf that is no array, and for two leaves of one name.

        flatten_names({"conv1": {"weight": weight}})     # {"conv1/weight": weight}
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = name(path) or "value"
        if key in leaves or key == "__metadata__":  # the one name that safetensors keeps to itself
            raise refusal(f"the name {key!r} is taken: keep '/' and '__metadata__' out of the keys of dicts.")
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise refusal(f"{key}: a {type(leaf).__name__} came; accepted are arrays and registered records.")
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise refusal(f"{key}: a random key came; accepted are arrays: give jax.random.key_data(key).")
        leaves[key] = leaf
    return leaves


def unflatten_names(like: PyTree, arrays: Mapping[str, Any]) -> PyTree:
    """The tree of the structure of `like` with the arrays in it; undoes `flatten_names`.

    ArtefactError names what is missing, unexpected, of another shape or dtype than in `like` (arrays or
    `jax.ShapeDtypeStruct`s).

        theta = unflatten_names(theta, read_artefact("artefact.safetensors")[0])
    """
    wanted = flatten_names(like)
    refuse_differences("the artefact", arrays, wanted, ArtefactError)
    return jax.tree.structure(like).unflatten(arrays[key] for key in wanted)


def on_host(tree: PyTree, refusal: type[ImamlError]) -> dict[str, np.ndarray]:
    """The leaves in NumPy, in C order: safetensors stores a transposed array scrambled."""
    arrays = {key: np.asarray(leaf, order="C") for key, leaf in flatten_names(tree, refusal).items()}
    for key, array in arrays.items():
        if array.dtype not in DTYPES.values():
            raise refusal(f"{key}: the dtype {array.dtype} came; accepted are {NAMES.replace(' ', ', ')}.")
    return arrays


def refuse_differences(what: str, came: Any, wanted: Any, refusal: type[ImamlError]) -> None:
    """Raises `refusal` where leaves differ in name, dtype or shape."""
    here, there = ({k: f"{a.dtype}{list(a.shape)}" for k, a in leaves.items()} for leaves in (came, wanted))
    if keys := [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]:
        told = [
            f"{k}: {here.get(k, 'nothing')} came, {there.get(k, 'nothing')} is expected" for k in keys[:4]
        ]
        told += [f"and {len(keys) - 4} more"] * (len(keys) > 4)
        raise refusal(f"{what} is of another model: {'; '.join(told)}. Use the configuration it came with.")


def refuse_non_finite(arrays: Mapping[str, np.ndarray], consequence: str) -> None:
    """Raises ArtefactError for arrays with NaN or infinity."""
    if bad := [key for key, array in arrays.items() if not np.isfinite(array).all()]:
        raise ArtefactError(f"NaN or infinity in {', '.join(bad[:4])}: {consequence}. Train at a lower rate.")


def sealed(record: Mapping[str, Any], refusal: type[ImamlError]) -> bytes:
    """The record as JSON with the SHA-256 of its own text, taken while 64 zeros stand in that place."""
    try:  # a note may hold NaN and infinity; what leaves the house is strict JSON
        text = json.dumps({"seal": BLANK, **record}, indent=1, allow_nan=refusal is CheckpointError).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise refusal(f"it does not go to JSON ({error}): give numbers, texts, lists and dicts.") from error
    return text.replace(BLANK.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def unsealed(data: bytes) -> dict[str, Any] | None:
    """The record, or None where any bit of its text has changed."""
    start = len('{\n "seal": "')
    seal, blank = data[start : start + 64], data[:start] + BLANK.encode() + data[start + 64 :]
    return json.loads(data) if hashlib.sha256(blank).hexdigest().encode() == seal else None


def digest(array: Any) -> str:
    """The SHA-256 of an array's bytes."""
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()


def digest_all(arrays: Mapping[str, np.ndarray]) -> str:
    """One digest of all names, dtypes, shapes and values."""
    parts = [[key, array.dtype.name, array.shape, digest(array)] for key, array in sorted(arrays.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def contents(folder: Path) -> dict[str, list[Any]]:
    """Size in bytes and SHA-256 of every file below the folder but the manifest, by relative path."""
    paths = [path for path in folder.rglob("*") if not path.is_dir() and path != folder / "manifest.json"]
    read = ((path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths)
    return {relative: [len(data), hashlib.sha256(data).hexdigest()] for relative, data in read}


def flush(path: Path) -> None:
    """Nothing, once the file's bytes, or the folder's list of names, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents."""
    if not folder.is_dir():  # each new folder's name is flushed to the disk, too
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


@contextlib.contextmanager
def telling(what: str, refusal: type[ImamlError]) -> Iterator[None]:
    """Turns errors of the disk into `refusal`, with what to do."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore raises the last two for a full disk
        raise refusal(f"{what}: {reason(error)}. Free space there, or name a folder to write to.") from error


def reason(error: BaseException) -> str:
    """The error in a few words, on one line."""
    if isinstance(error, FileExistsError):
        return f"{error.filename} is a file, not a folder"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:200].rstrip(".") or type(error).__name__
