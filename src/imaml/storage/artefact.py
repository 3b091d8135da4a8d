"""The artefact: meta-parameters and their configuration in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..core.errors import ArtefactError
from ..core.recipes import Json, JsonObject
from ..core.validation import some_of, suggestion
from . import integrity
from .atomic import disk_errors, make_folder, reason, write_whole
from .integrity import DTYPES, FORMAT, DamageError, Leaf

ARTEFACT_NAME = "artefact.safetensors"


def write_artefact(path: str | Path, arrays: Mapping[str, Leaf], description: Mapping[str, Json]) -> None:
    """Writes one safetensors file, whole or not at all.

    Args:
        path: The file, or a directory for ``artefact.safetensors`` in it.
        arrays: Arrays by name.
        description: Configuration and notes, JSON values. They are stored in the file's metadata under
            "imaml", with digests of the arrays and of themselves.

    Raises:
        ArtefactError: If a value is NaN or infinite, safetensors lacks a dtype, the description does not go
            to JSON, or the file cannot be written.

    Example:
        ``write_artefact("artefact.safetensors", flatten_names(theta), {"config": {"ways": 5}})``
    """
    from safetensors.numpy import save

    host = integrity.on_host(dict(arrays), ArtefactError)
    integrity.refuse_non_finite(host, "the artefact is not written")
    record = {"format": FORMAT, "arrays": integrity.digest_all(host), "description": dict(description)}
    metadata = {"imaml": integrity.sealed(record, ArtefactError).decode()}
    path = Path(path, ARTEFACT_NAME) if Path(path).is_dir() else Path(path)
    with disk_errors(f"the artefact {path} cannot be written", ArtefactError):
        make_folder(path.parent)
        write_whole(path, save(host, metadata=metadata), durable=True)


def near(path: Path) -> str:
    """Return the hint of the message about a missing artefact: what is near it.

    Args:
        path: Where no artefact is.

    Returns:
        A sentence, with a space before it.
    """
    if (path.parent / "comparison.json").is_file():
        runs = sorted(str(file.parent) for file in path.parent.glob(f"*/*/run/{ARTEFACT_NAME}"))
        return f" Hint: {path.parent} is a comparison; name one of its runs: {some_of(runs, 3)}."
    named = path.parent if path.name == ARTEFACT_NAME else path
    found = [*named.parent.glob("*.safetensors"), *named.parent.glob(f"*/{ARTEFACT_NAME}")]
    there = sorted(file.parent.name if file.name == ARTEFACT_NAME else file.name for file in found)
    if there:
        return suggestion(named.name, there) or f" Hint: {named.parent} holds {some_of(there)}."
    return " Hint: name a run directory, or an artefact (*.safetensors)."


def read_artefact(path: str | Path) -> tuple[dict[str, np.ndarray], JsonObject]:
    """Reads an artefact, exactly as it was written; nothing in the file is executed.

    Args:
        path: The file, or a directory with ``artefact.safetensors`` in it.

    Returns:
        The arrays by name, and the description.

    Raises:
        ArtefactError: If there is no such file, it is no artefact, it is damaged or truncated, its format is
            newer, or a value is NaN or infinite.

    Example:
        ``arrays, description = read_artefact("artefact.safetensors")``
    """
    from safetensors import SafetensorError, deserialize

    path = Path(path, ARTEFACT_NAME) if Path(path).is_dir() else Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"no artefact {path}: {reason(error)}.{near(path)}") from error
    end = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] not in (b"{", b""):
        raise ArtefactError(
            f"{path} is no safetensors file. Hint: name one that imaml exported, {ARTEFACT_NAME}."
        )
    try:
        if len(data) < max(9, end):
            raise DamageError("it is truncated within its header")
        tensors = deserialize(data)
        text = json.loads(data[8:end]).get("__metadata__", {}).get("imaml")  # well-formed, or refused above
        if text is None:
            raise ArtefactError(
                f"{path} is a safetensors file, but no artefact of imaml. Hint: name one that is."
            )
        if (record := integrity.unsealed(text.encode())) is None:
            raise DamageError("its description is not as it was written")
        if record["format"] != FORMAT:
            raise ArtefactError(
                f"{path}: expected format {FORMAT}, got {record['format']}. Hint: upgrade imaml."
            )
        flat = {key: np.frombuffer(part["data"], DTYPES[part["dtype"]]) for key, part in tensors}
        arrays = {key: flat[key].reshape(part["shape"]).copy() for key, part in tensors}
        if integrity.digest_all(arrays) != record["arrays"]:
            raise DamageError("its arrays are not as they were written")
    except (DamageError, SafetensorError, KeyError) as error:
        raise ArtefactError(
            f"the artefact {path} is damaged: {reason(error)}. Hint: export it again."
        ) from error
    integrity.refuse_non_finite(arrays, f"the artefact {path} is not used")
    return arrays, record["description"]
