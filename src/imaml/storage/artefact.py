"""The artefact: meta-parameters and their configuration in one safetensors file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ArtefactError
from ..core.validation import some_of
from .atomic import disk_errors, make_folder, reason, write_whole
from .integrity import (
    DTYPES,
    FORMAT,
    DamageError,
    digest_all,
    on_host,
    refuse_non_finite,
    sealed,
    unsealed,
)

ARTEFACT_NAME = "artefact.safetensors"


def write_artefact(path: str | Path, arrays: Mapping[str, Any], description: Mapping[str, Any]) -> None:
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

    host = on_host(dict(arrays), ArtefactError)
    refuse_non_finite(host, "the artefact is not written")
    record = {"format": FORMAT, "arrays": digest_all(host), "description": dict(description)}
    metadata = {"imaml": sealed(record, ArtefactError).decode()}
    path = Path(path, ARTEFACT_NAME) if Path(path).is_dir() else Path(path)
    with disk_errors(f"the artefact {path} cannot be written", ArtefactError):
        make_folder(path.parent)
        write_whole(path, save(host, metadata=metadata), durable=True)


def others(path: Path) -> str:
    """Ends the message about a missing artefact with those near it.

    Args:
        path: Where no artefact is.

    Returns:
        The end of a sentence.
    """
    if (path.parent / "comparison.json").is_file():
        runs = sorted(str(file.parent) for file in path.parent.glob(f"*/*/run/{ARTEFACT_NAME}"))
        return f"; that is a comparison, whose runs are {', '.join(runs[:3])}, ..." if runs else "."
    named = path.parent if path.name == ARTEFACT_NAME else path
    found = [
        file for pattern in ("*.safetensors", f"*/{ARTEFACT_NAME}") for file in named.parent.glob(pattern)
    ]
    there = sorted(file.parent if file.name == ARTEFACT_NAME else file for file in found)
    close = difflib.get_close_matches(named.name, [place.name for place in there], n=1, cutoff=0.7)
    if close:
        return f"; did you mean '{named.with_name(close[0])}'?"
    if there:
        return f"; there is {some_of(there)}."
    return "; expected a run directory, or an artefact (*.safetensors)."


def read_artefact(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
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
        raise ArtefactError(f"no artefact {path}: {reason(error)}{others(path)}") from error
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
        if (record := unsealed(text.encode())) is None:
            raise DamageError("its description is not as it was written")
        if record["format"] != FORMAT:
            raise ArtefactError(
                f"{path}: expected format {FORMAT}, got {record['format']}. Hint: upgrade imaml."
            )
        flat = {key: np.frombuffer(part["data"], DTYPES[part["dtype"]]) for key, part in tensors}
        arrays = {key: flat[key].reshape(part["shape"]).copy() for key, part in tensors}
        if digest_all(arrays) != record["arrays"]:
            raise DamageError("its arrays are not as they were written")
    except (DamageError, SafetensorError, KeyError) as error:
        raise ArtefactError(
            f"the artefact {path} is damaged: {reason(error)}. Hint: export it again."
        ) from error
    refuse_non_finite(arrays, f"the artefact {path} is not used")
    return arrays, record["description"]
