"""The artefact: meta-parameters and their configuration in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..core.errors import ArtefactError
from ..core.recipes import Json, JsonObject
from ..core.validation import some_of, suggestion
from . import integrity
from .atomic import reason
from .integrity import FORMAT, DamageError, ForeignError, Leaf

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
    host = integrity.on_host(dict(arrays), ArtefactError)
    path = Path(path, ARTEFACT_NAME) if Path(path).is_dir() else Path(path)
    integrity.refuse_non_finite(host, path)
    integrity.write_arrays(path, host, {"description": dict(description)}, ArtefactError)


def missing(path: Path, error: OSError) -> str:
    """Return the message about a missing artefact.

    Args:
        path: Where no artefact is.
        error: Why it cannot be read.

    Returns:
        What is there instead, and what could be meant.
    """
    named = path.parent if path.name == ARTEFACT_NAME and path.parent.is_dir() else path
    runs = [str(file.parent) for file in sorted(named.glob(f"*/*/run/{ARTEFACT_NAME}"))]
    inside, beside = artefacts_in(named), artefacts_in(named.parent)
    hint = suggestion(named.name, beside, files=True) or " Hint: imaml train --out DIR makes one."
    if not named.is_dir():
        absent = isinstance(error, FileNotFoundError)
        found = "no such file or folder" if absent else f"an error ({reason(error)})"
    elif (named / "comparison.json").is_file():
        found, hint = "a comparison", f" Hint: name one of its runs: {some_of(runs, 3)}."
    elif (named / "config.json").is_file():
        found = "a run without an artefact"
        hint = f" Hint: the run has not ended; continue it with imaml train --resume --out {named}."
    elif inside:
        found = "a folder that holds some" if len(inside) > 1 else "a folder that holds one"
        hint = f" Hint: name what is in it: {some_of([str(named / name) for name in inside], 3)}."
    else:
        found = "a folder without one" if any(named.iterdir()) else "an empty folder"
    return f"{named}: expected a run directory or an artefact (*.safetensors), got {found}.{hint}"


def artefacts_in(folder: Path) -> list[str]:
    """List the artefacts and the run directories in a folder.

    Args:
        folder: The folder.

    Returns:
        Their names, sorted; those of runs that have an artefact.
    """
    found = [*folder.glob("*.safetensors"), *folder.glob(f"*/{ARTEFACT_NAME}")]
    return sorted(file.parent.name if file.name == ARTEFACT_NAME else file.name for file in found)


def read_artefact(path: str | Path) -> tuple[dict[str, np.ndarray], JsonObject]:
    """Reads an artefact, exactly as it was written; nothing in the file is executed.

    Args:
        path: The file, or a directory with ``artefact.safetensors`` in it.

    Returns:
        The arrays by name, and the description.

    Raises:
        ArtefactError: If there is no such file, it is not an artefact, it is damaged or truncated, its format
            is newer, or a value is NaN or infinite.

    Example:
        ``arrays, description = read_artefact("artefact.safetensors")``
    """
    path = Path(path, ARTEFACT_NAME) if Path(path).is_dir() else Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(missing(path, error)) from error
    try:
        record = integrity.read_record(data)
        if record["format"] != FORMAT:
            raise ArtefactError(
                f"{path}: expected format {FORMAT}, got {record['format']}. Hint: upgrade imaml."
            )
        if "description" not in record:
            raise ForeignError("a checkpoint")
        arrays = integrity.read_arrays(data, record)
    except ForeignError as error:
        raise ArtefactError(
            f"{path}: expected an artefact of imaml, got {error}. Hint: name the {ARTEFACT_NAME} of a run."
        ) from error
    except DamageError as error:
        raise ArtefactError(
            f"{path}: expected a whole artefact, got a damaged one: {error}. Hint: restore a copy, or export "
            "it again."
        ) from error
    integrity.refuse_non_finite(arrays, path)
    return arrays, record["description"]
