"""Training state on disk (Orbax, with checksums); the artefact that leaves the house (safetensors + JSON).

A checkpoint is a folder `step-00000123`: `state/`, written by Orbax, and `manifest.json` with the SHA-256 of
every file, the tree's paths, shapes and dtypes, the note, and a digest of its own text. It is written under
another name, flushed to the disk, the manifest last, then renamed: a folder of that name is whole, and later
damage shows. (Orbax alone notices truncation, but not flipped bits.) Nothing is ever unpickled here.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .errors import ArtefactError, CheckpointError, ConfigError, ImamlError, some_of
from .tree import Tree, name

FORMAT = 1
ARTEFACT_NAME = "artefact.safetensors"
_BLANK = "0" * 64
_STEP = re.compile(r"(?:\.replaced-)?step-(\d{8,})")
_CODES = "BOOL F16 BF16 F32 F64 C64 I8 I16 I32 I64 U8 U16 U32 U64"
_NAMES = "bool float16 bfloat16 float32 float64 complex64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"
_DTYPES = dict(zip(_CODES.split(), map(jax.numpy.dtype, _NAMES.split()), strict=True))


@dataclass(frozen=True)
class Restored:
    """A training state as saved at `step`, its note, and a sentence for each damaged newer checkpoint."""

    step: int
    state: Tree
    note: dict[str, Any]
    skipped: list[str]


@dataclass(frozen=True)
class Checkpoints:
    """The newest `keep` checkpoints of one run, in one folder, each whole or not there at all.

    Not for handing a result on: that is `write_artefact`. Only one process may save into a folder.

        checkpoints = Checkpoints(Path("run/checkpoints"))
        checkpoints.save(100, {"theta": theta}, {"best": 0.91})
        theta = checkpoints.restore({"theta": theta}).state["theta"]
    """

    folder: Path
    keep: int = 3

    def __post_init__(self) -> None:
        """Refuses a `keep` below 1 with a ConfigError."""
        object.__setattr__(self, "folder", Path(os.path.abspath(self.folder)))
        if type(self.keep) is not int or self.keep < 1:
            raise ConfigError(f"keep: {self.keep!r} came; accepted is a whole number, at least 1.")

    def steps(self) -> list[int]:
        """The steps with a checkpoint, ascending, by the folder's names alone: none is verified."""
        return sorted(step for step, _ in self._candidates())

    def save(self, step: int, state: Tree, note: Mapping[str, Any] | None = None) -> Path:
        """The folder of the checkpoint, which is then on the disk; older ones beyond `keep` are deleted.

        `state` is a tree of NumPy and JAX arrays (random keys as `jax.random.key_data`), `note` goes to JSON.
        A checkpoint of the same step is replaced; later ones are another run's, or damaged, and stay.
        CheckpointError: a leaf that is no array, a folder that cannot be written, a full disk.
        """
        if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
            raise CheckpointError(f"step: {step!r} came; accepted is a whole number, at least 0.")
        arrays = _on_host(state, CheckpointError)
        tree = [[key, array.shape, array.dtype.name, _digest(array)] for key, array in arrays.items()]
        record = {"format": FORMAT, "step": int(step), "note": dict(note or {}), "tree": tree}
        _sealed(record, CheckpointError)  # refuses a note that is no JSON before anything is written
        final = self.folder / f"step-{step:08d}"
        writing = final.with_name(f".writing-{final.name}")
        with _telling(f"the checkpoint of step {step} cannot be written to {self.folder}", CheckpointError):
            _make_folder(self.folder)
            self._clean()
            try:
                writing.mkdir()
                _orbax("save", writing / "state", list(arrays.values()))
                for path in writing.rglob("*"):
                    _flush(path)
                record["files"] = _contents(writing)
                (writing / "manifest.json").write_bytes(_sealed(record, CheckpointError))
                _flush(writing / "manifest.json")
                _flush(writing)
                if final.exists():  # under its other name it counts as long as it is the only one
                    os.rename(final, final.with_name(f".replaced-{final.name}"))
                os.rename(writing, final)
                _flush(self.folder)
            finally:
                shutil.rmtree(writing, ignore_errors=True)
        with contextlib.suppress(OSError):  # what cannot be deleted now is deleted after the next save
            for _, path in [(s, path) for s, path in self._candidates() if s <= step][self.keep :]:
                os.rename(path, path.with_name(f".deleting-{path.name}"))  # so none is seen half deleted
            self._clean()
        return final

    def restore(self, like: Tree, most: int | None = None) -> Restored:
        """The newest checkpoint that is whole, bit for bit as saved, in the structure of `like`.

        most: the newest step that is wanted, by default any.

        `like` has arrays or `jax.ShapeDtypeStruct`s. For a NumPy array a NumPy array returns, otherwise a
        (strongly typed) JAX array, sharded as there; 64-bit values stay in NumPy while JAX has x64 off. Every
        file is verified first. CheckpointError: there is none, all are damaged, or another tree was saved.
        """
        wanted = flatten_names(like, CheckpointError)
        skipped: list[str] = []
        candidates = [(step, path) for step, path in self._candidates() if most is None or step <= most]
        for step, path in candidates:
            try:
                record = _verified(path, step)
                saved = {k: jax.ShapeDtypeStruct(s, jax.numpy.dtype(d)) for k, s, d, _ in record["tree"]}
                _refuse_differences(str(path), saved, wanted, CheckpointError)
                arrays = _load(path / "state", record["tree"])
            except _DamageError as damage:
                skipped.append(f"Passed over the damaged checkpoint of step {step} ({path}): {damage}.")
                continue
            leaves = [_placed(arrays[key], template) for key, template in wanted.items()]
            return Restored(step, jax.tree.structure(like).unflatten(leaves), record["note"], skipped)
        what = "no checkpoint can be used" if candidates else "there is no checkpoint"
        advice = "Put back a copy of that folder, or begin a new run"
        raise CheckpointError(f"{what} in {self.folder}. {' '.join([*skipped, advice])}.")

    def _candidates(self) -> list[tuple[int, Path]]:
        """Step and path of what is named as a checkpoint, newest first."""
        paths = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        named = [(match, path) for path in paths if (match := _STEP.fullmatch(path.name))]
        return sorted({int(match[1]): path for match, path in named}.items(), reverse=True)

    def _clean(self) -> None:
        """Nothing; deletes what a killed process left behind."""
        for path in list(self.folder.iterdir()):
            if path.name.startswith(".replaced-") and not (home := path.with_name(path.name[10:])).exists():
                os.rename(path, home)
            elif path.name.startswith((".writing-step-", ".deleting-", ".replaced-step-")):
                shutil.rmtree(path, ignore_errors=True)


class _DamageError(Exception):
    """Why one checkpoint cannot be used."""


def _verified(path: Path, step: int) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are exactly those that stand in it; else _DamageError."""
    try:
        if not path.is_dir() or not any(path.iterdir()):
            raise _DamageError("it is empty")
        record, found = _unsealed((path / "manifest.json").read_bytes()), _contents(path)
    except OSError as error:
        raise _DamageError(f"{error.filename}: {_reason(error)}") from error
    if record is None:
        raise _DamageError("manifest.json is not as it was written")
    if (record["format"], record["step"]) != (FORMAT, step):
        raise _DamageError(f"it has format {record['format']} (known: {FORMAT}) and step {record['step']}")
    written = record["files"]
    if changed := sorted(k for k in written.keys() | found.keys() if written.get(k) != found.get(k)):
        what = "missing" if changed[0] not in found else "not as it was written, or not one of its own"
        raise _DamageError(f"the file {changed[0]} is {what}")
    return record


def _load(path: Path, tree: list[Any]) -> dict[str, np.ndarray]:
    """The arrays of a verified checkpoint, each with the digest that it had in memory; else _DamageError."""
    try:
        blank = [np.empty(shape, jax.numpy.dtype(dtype)) for _, shape, dtype, _ in tree]
        arrays = _orbax("restore", path, blank)
    except Exception as error:  # whatever Orbax finds amiss
        raise _DamageError(f"Orbax cannot read it ({_reason(error)})") from error
    if [_digest(array) for array in arrays] != [digest for *_, digest in tree]:
        raise _DamageError("its arrays are not as they were saved")
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


def _placed(array: np.ndarray, like: Any) -> Any:
    """The array in NumPy, or on the devices of `like`."""
    if isinstance(like, np.ndarray | np.generic) or jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array
    pinned = getattr(like, "committed", True)  # an array that was free to move stays so
    return jax.device_put(array, getattr(like, "sharding", None) if pinned else None, may_alias=False)


def write_artefact(path: str | Path, arrays: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Nothing; one safetensors file is then on the disk, whole or not at all.

    `description` (configuration, notes) goes to the file's metadata under "imaml", as JSON, with digests of
    the arrays and of itself. A folder as `path` means `artefact.safetensors` in it. ArtefactError: NaN or
    infinity, a dtype that safetensors lacks, a description that is no JSON, a place that cannot be written.

        write_artefact("artefact.safetensors", flatten_names(theta), {"config": {"ways": 5}})
    """
    from safetensors.numpy import save

    host = _on_host(dict(arrays), ArtefactError)
    _refuse_non_finite(host, "the artefact is not written")
    record = {"format": FORMAT, "arrays": _digest_all(host), "description": dict(description)}
    metadata = {"imaml": _sealed(record, ArtefactError).decode()}
    path = Path(path, ARTEFACT_NAME) if Path(path).is_dir() else Path(path)
    writing = path.with_name(f".{path.name}.{os.getpid()}.writing")
    with _telling(f"the artefact {path} cannot be written", ArtefactError):
        _make_folder(path.parent)
        try:
            writing.write_bytes(save(host, metadata=metadata))
            _flush(writing)
            os.replace(writing, path)
        finally:
            writing.unlink(missing_ok=True)
        _flush(path.parent)


def _others(path: Path) -> str:
    """The end of a message on an artefact that is not there: those near it."""
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
    return "; accepted is a run's folder, or an artefact (*.safetensors)."


def read_artefact(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays by name, and the description, exactly as written; nothing in the file is executed.

    `path` is the file, or a folder with `artefact.safetensors` in it. ArtefactError: no such file, no
    safetensors, not imaml's, truncated, a bit changed anywhere, a newer format, NaN or infinity.

        arrays, description = read_artefact("artefact.safetensors")
    """
    from safetensors import SafetensorError, deserialize

    path = Path(path, ARTEFACT_NAME) if Path(path).is_dir() else Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"no artefact {path}: {_reason(error)}{_others(path)}") from error
    end = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] not in (b"{", b""):
        raise ArtefactError(f"{path} is no safetensors file: name one that imaml exported, {ARTEFACT_NAME}.")
    try:
        if len(data) < max(9, end):
            raise _DamageError("it is truncated within its header")
        tensors = deserialize(data)
        text = json.loads(data[8:end]).get("__metadata__", {}).get("imaml")  # well-formed, or refused above
        if text is None:
            raise ArtefactError(f"{path} is a safetensors file, but no artefact of imaml: name one that is.")
        if (record := _unsealed(text.encode())) is None:
            raise _DamageError("its description is not as it was written")
        if record["format"] != FORMAT:
            raise ArtefactError(f"{path} has format {record['format']}, not {FORMAT}: upgrade imaml.")
        flat = {key: np.frombuffer(part["data"], _DTYPES[part["dtype"]]) for key, part in tensors}
        arrays = {key: flat[key].reshape(part["shape"]).copy() for key, part in tensors}
        if _digest_all(arrays) != record["arrays"]:
            raise _DamageError("its arrays are not as they were written")
    except (_DamageError, SafetensorError, KeyError) as error:
        raise ArtefactError(f"the artefact {path} is damaged: {_reason(error)}. Export it again.") from error
    _refuse_non_finite(arrays, f"the artefact {path} is not used")
    return arrays, record["description"]


def flatten_names(tree: Tree, refusal: type[ImamlError] = ArtefactError) -> dict[str, Any]:
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


def unflatten_names(like: Tree, arrays: Mapping[str, Any]) -> Tree:
    """The tree of the structure of `like` with the arrays in it; undoes `flatten_names`.

    ArtefactError names what is missing, unexpected, of another shape or dtype than in `like` (arrays or
    `jax.ShapeDtypeStruct`s).

        theta = unflatten_names(theta, read_artefact("artefact.safetensors")[0])
    """
    wanted = flatten_names(like)
    _refuse_differences("the artefact", arrays, wanted, ArtefactError)
    return jax.tree.structure(like).unflatten(arrays[key] for key in wanted)


def _on_host(tree: Tree, refusal: type[ImamlError]) -> dict[str, np.ndarray]:
    """The leaves in NumPy, in C order: safetensors stores a transposed array scrambled."""
    arrays = {key: np.asarray(leaf, order="C") for key, leaf in flatten_names(tree, refusal).items()}
    for key, array in arrays.items():
        if array.dtype not in _DTYPES.values():
            raise refusal(f"{key}: the dtype {array.dtype} came; accepted are {_NAMES.replace(' ', ', ')}.")
    return arrays


def _refuse_differences(what: str, came: Any, wanted: Any, refusal: type[ImamlError]) -> None:
    here, there = ({k: f"{a.dtype}{list(a.shape)}" for k, a in leaves.items()} for leaves in (came, wanted))
    if keys := [key for key in sorted(here.keys() | there.keys()) if here.get(key) != there.get(key)]:
        told = [
            f"{k}: {here.get(k, 'nothing')} came, {there.get(k, 'nothing')} is expected" for k in keys[:4]
        ]
        told += [f"and {len(keys) - 4} more"] * (len(keys) > 4)
        raise refusal(f"{what} is of another model: {'; '.join(told)}. Use the configuration it came with.")


def _refuse_non_finite(arrays: Mapping[str, np.ndarray], consequence: str) -> None:
    if bad := [key for key, array in arrays.items() if not np.isfinite(array).all()]:
        raise ArtefactError(f"NaN or infinity in {', '.join(bad[:4])}: {consequence}. Train at a lower rate.")


def _sealed(record: Mapping[str, Any], refusal: type[ImamlError]) -> bytes:
    """The record as JSON with the SHA-256 of its own text, taken while 64 zeros stand in that place."""
    try:  # a note may hold NaN and infinity; what leaves the house is strict JSON
        text = json.dumps({"seal": _BLANK, **record}, indent=1, allow_nan=refusal is CheckpointError).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise refusal(f"it does not go to JSON ({error}): give numbers, texts, lists and dicts.") from error
    return text.replace(_BLANK.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def _unsealed(data: bytes) -> dict[str, Any] | None:
    """The record, or None where any bit of its text has changed."""
    start = len('{\n "seal": "')
    seal, blank = data[start : start + 64], data[:start] + _BLANK.encode() + data[start + 64 :]
    return json.loads(data) if hashlib.sha256(blank).hexdigest().encode() == seal else None


def _digest(array: Any) -> str:
    return hashlib.sha256(np.asarray(array).tobytes()).hexdigest()


def _digest_all(arrays: Mapping[str, np.ndarray]) -> str:
    """One digest of all names, dtypes, shapes and values."""
    parts = [[key, array.dtype.name, array.shape, _digest(array)] for key, array in sorted(arrays.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _contents(folder: Path) -> dict[str, list[Any]]:
    """Size in bytes and SHA-256 of every file below the folder but the manifest, by relative path."""
    paths = [path for path in folder.rglob("*") if not path.is_dir() and path != folder / "manifest.json"]
    read = ((path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths)
    return {relative: [len(data), hashlib.sha256(data).hexdigest()] for relative, data in read}


def _flush(path: Path) -> None:
    """Nothing, once the file's bytes, or the folder's list of names, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():  # each new folder's name is flushed to the disk, too
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _flush(folder.parent)


@contextlib.contextmanager
def _telling(what: str, refusal: type[ImamlError]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore raises the last two for a full disk
        raise refusal(f"{what}: {_reason(error)}. Free space there, or name a folder to write to.") from error


def _reason(error: BaseException) -> str:
    """The error in a few words, on one line."""
    if isinstance(error, FileExistsError):
        return f"{error.filename} is a file, not a folder"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:200].rstrip(".") or type(error).__name__
