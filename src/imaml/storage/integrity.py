"""Named arrays in safetensors files with checksums, and the names of leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from ..core.errors import ArtefactError, CheckpointError, ImamlError
from ..core.recipes import Json, JsonObject
from ..core.tree import Tree, name
from .atomic import disk_errors, make_folder, reason, write_whole

FORMAT = 1
BLANK = "0" * 64
CODES = "BOOL F16 BF16 F32 F64 C64 I8 I16 I32 I64 U8 U16 U32 U64"
NAMES = "bool float16 bfloat16 float32 float64 complex64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"
DTYPES = dict(zip(CODES.split(), map(jax.numpy.dtype, NAMES.split()), strict=True))

Leaf = np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct


class DamageError(Exception):
    """Why a file cannot be used: its content is not as it was written."""


class ForeignError(DamageError):
    """What a file is that this package has not written."""


def flatten_names(tree: Tree, refusal: type[ImamlError] = ArtefactError) -> dict[str, Leaf]:
    """Names the leaves of a tree.

    A name joins keys of dicts, fields of records and positions in lists by "/".

    Args:
        tree: A tree of arrays.
        refusal: The error to raise.

    Returns:
        The leaves by name, in the tree's order. A tree that is one leaf has the name "value".

    Raises:
        ImamlError: ``refusal``, if a leaf is not an array, or two leaves have one name.

    Example:
        ``flatten_names({"conv1": {"weight": weight}})`` returns ``{"conv1/weight": weight}``.
    """
    leaves: dict[str, Leaf] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        key = name(path) or "value"
        if key in leaves or key == "__metadata__":  # the one name that safetensors keeps to itself
            raise refusal(
                f"{key}: expected a name of its own for each array, got one that is taken. Hint: keep '/' "
                "and '__metadata__' out of the keys of dicts."
            )
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise refusal(f"{key}: expected an array or a registered record, got a {type(leaf).__name__}.")
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise refusal(f"{key}: expected an array, got a random key. Hint: use jax.random.key_data(key).")
        leaves[key] = leaf
    return leaves


def unflatten_names(like: Tree, arrays: Mapping[str, Leaf]) -> Tree:
    """Puts named arrays into a tree; undoes `flatten_names`.

    Args:
        like: A tree of arrays or `jax.ShapeDtypeStruct` with the structure wanted.
        arrays: Arrays by name.

    Returns:
        A tree like ``like`` with the arrays.

    Raises:
        ArtefactError: If an array is missing, unexpected, or of another shape or dtype.

    Example:
        ``theta = unflatten_names(theta, read_artefact("artefact.safetensors")[0])``
    """
    wanted = flatten_names(like)
    refuse_differences("the artefact", arrays, wanted, ArtefactError)
    return jax.tree.structure(like).unflatten(arrays[key] for key in wanted)


def on_host(tree: Tree, refusal: type[ImamlError]) -> dict[str, np.ndarray]:
    """Copies the leaves of a tree to NumPy, in C order: safetensors scrambles transposed arrays.

    Args:
        tree: A tree of arrays.
        refusal: The error to raise.

    Returns:
        NumPy arrays by name.

    Raises:
        ImamlError: ``refusal``, if a leaf is not an array, or its dtype cannot be stored.
    """
    arrays = {key: np.asarray(leaf, order="C") for key, leaf in flatten_names(tree, refusal).items()}
    for key, array in arrays.items():
        if array.dtype not in DTYPES.values():
            raise refusal(f"{key}: expected one of the dtypes {NAMES.replace(' ', ', ')}, got {array.dtype}.")
    return arrays


def refuse_differences(
    what: str, found: Mapping[str, Leaf], wanted: Mapping[str, Leaf], refusal: type[ImamlError]
) -> None:
    """Checks that leaves agree in name, dtype and shape.

    Args:
        what: What the leaves are, the beginning of the message.
        found: Arrays by name.
        wanted: Arrays by name.
        refusal: The error to raise.

    Raises:
        ImamlError: ``refusal``, if they differ.
    """
    here, there = ({k: f"{a.dtype}{list(a.shape)}" for k, a in leaves.items()} for leaves in (found, wanted))
    if keys := [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]:
        unlike = [f"{k}: expected {there.get(k, 'nothing')}, got {here.get(k, 'nothing')}" for k in keys[:4]]
        unlike += [f"and {len(keys) - 4} more"] * (len(keys) > 4)
        raise refusal(f"{what}: {'; '.join(unlike)}. Hint: use the configuration that it was saved with.")


def refuse_non_finite(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Checks that arrays are finite.

    Args:
        arrays: Arrays by name.
        path: The file that they are in, or would be written to.

    Raises:
        ArtefactError: If a value is NaN or infinite.
    """
    if bad := [key for key, array in arrays.items() if not np.isfinite(array).all()]:
        raise ArtefactError(
            f"{path}: expected finite parameters, got NaN or infinity in {', '.join(bad[:4])}. Hint: train "
            "at a lower learning rate."
        )


def sealed(record: Mapping[str, Json], refusal: type[ImamlError]) -> bytes:
    """Encodes a record with the SHA-256 of its own text, taken while 64 zeros stand in that place.

    Args:
        record: JSON values.
        refusal: The error to raise.

    Returns:
        JSON.

    Raises:
        ImamlError: ``refusal``, if the record does not go to JSON.
    """
    try:  # a checkpoint's note may hold NaN and infinity; an artefact is strict JSON
        text = json.dumps({"seal": BLANK, **record}, indent=1, allow_nan=refusal is CheckpointError).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise refusal(
            f"{'note' if refusal is CheckpointError else 'description'}: expected values that go to JSON, "
            f"got an error ({error}). Hint: use numbers, strings, lists, dicts."
        ) from error
    return text.replace(BLANK.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def unsealed(data: bytes) -> JsonObject | None:
    """Decodes what `sealed` encoded.

    Args:
        data: JSON.

    Returns:
        The record, or None where any bit of its text has changed.
    """
    start = len('{\n "seal": "')
    seal, blank = data[start : start + 64], data[:start] + BLANK.encode() + data[start + 64 :]
    return json.loads(data) if hashlib.sha256(blank).hexdigest().encode() == seal else None


def digest_all(arrays: Mapping[str, np.ndarray]) -> str:
    """Computes one SHA-256 of all names, dtypes, shapes and values.

    Args:
        arrays: Arrays by name.

    Returns:
        64 hexadecimal digits.
    """
    parts = [
        [key, array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
        for key, array in sorted(arrays.items())
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], record: Mapping[str, Json], refusal: type[ImamlError]
) -> None:
    """Writes one safetensors file, whole or not at all; it is then on the disk itself.

    Args:
        path: The file.
        arrays: Arrays by name, from `on_host`.
        record: JSON values. They are stored in the file's metadata under "imaml", with digests of the arrays
            and of themselves.
        refusal: The error to raise.

    Raises:
        ImamlError: ``refusal``, if the record does not go to JSON, or the file cannot be written.
    """
    from safetensors.numpy import save

    text = sealed({"format": FORMAT, "arrays": digest_all(arrays), **record}, refusal).decode()
    with disk_errors(path, refusal):
        make_folder(path.parent)
        write_whole(path, save(dict(arrays), metadata={"imaml": text}), durable=True)


def read_record(data: bytes) -> JsonObject:
    """Reads the record of `write_arrays`, exactly as it was written; nothing in the file is executed.

    Args:
        data: The content of the file.

    Returns:
        The record. Its "format" says whether `read_arrays` reads the rest.

    Raises:
        DamageError: If it has changed, or the file is of another kind (`ForeignError`).
    """
    from safetensors import SafetensorError, deserialize

    end = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] not in (b"{", b""):
        raise ForeignError("a file of another format")
    if len(data) < max(9, end):
        raise DamageError("it is truncated within its header")
    try:
        deserialize(data)  # refuses a header that is not well-formed
    except SafetensorError as error:
        raise DamageError(reason(error)) from error
    text = json.loads(data[8:end]).get("__metadata__", {}).get("imaml")
    if text is None:
        raise ForeignError("a safetensors file of another program")
    if (record := unsealed(text.encode())) is None:
        raise DamageError("its description is not as it was written")
    return record


def read_arrays(data: bytes, record: JsonObject) -> dict[str, np.ndarray]:
    """Reads the arrays of `write_arrays`, exactly as they were written.

    Args:
        data: The content of the file.
        record: Its record, from `read_record`.

    Returns:
        The arrays by name.

    Raises:
        DamageError: If an array has changed.
    """
    from safetensors import deserialize

    tensors = deserialize(data)
    if unknown := {part["dtype"] for _, part in tensors} - DTYPES.keys():
        raise DamageError(f"its dtypes {', '.join(unknown)} are unknown")
    flat = {key: np.frombuffer(part["data"], DTYPES[part["dtype"]]) for key, part in tensors}
    arrays = {key: flat[key].reshape(part["shape"]).copy() for key, part in tensors}
    if digest_all(arrays) != record["arrays"]:
        raise DamageError("its arrays are not as they were written")
    return arrays
