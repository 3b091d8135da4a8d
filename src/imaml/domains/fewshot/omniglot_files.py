"""Where Omniglot lies and in which form: upstream's zips, their unpacked folders, or one .npz file."""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imaml.core.errors import DataError
from imaml.core.validation import some_of
from imaml.domains.fewshot.pixels import open_image

SIDE, CHARACTERS, DRAWERS = 105, 1623, 20

SETS = ("images_background", "images_evaluation")
_PACKED = (SIDE * SIDE + 7) // 8
_FILE = re.compile(r"(?:^|/)([^/]+)/character(\d+)/(\d{4})_(\d{2})\.png$")
_ARRAYS = (
    "label",
    "drawer",
    "char_alphabet",
    "char_number",
    "char_id",
    "char_is_evaluation",
    "alphabet_name",
)
ACCEPTED = (
    "accepted is a folder with images_background.zip and images_evaluation.zip (or both unpacked), "
    "or an omniglot.npz"
)
ADVICE = "give its place with --data PATH, or download it with: imaml data get omniglot"
HELP = f"{ACCEPTED}; {ADVICE}"
_DAMAGE = (OSError, ValueError, EOFError, KeyError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Drawing(NamedTuple):
    """One drawing and where it lies; in order of upstream id, then drawer."""

    id: int
    drawer: int
    name: str  # ALPHABET/characterNN
    evaluation: bool
    file: Path  # the archive, folder or .npz file
    member: str  # its name in an archive or folder, its row in an .npz file


@dataclass(frozen=True)
class Source:
    """Drawings that can be read."""

    path: Path
    kind: str
    drawings: list[Drawing]
    decode: Callable[[], tuple[np.ndarray, list[str]]]  # -> packed bits (drawings, 1379), problems
    fingerprint: Callable[[], str]  # SHA-256 of the files' bytes


def parts_of(folder: Path) -> dict[str, Path]:
    """Return the sets of drawings in a folder.

    Args:
        folder: The folder.

    Returns:
        A set's name to its zip file, or else to its unpacked folder.
    """
    parts = {}
    for name in SETS:
        if (folder / f"{name}.zip").is_file():
            parts[name] = folder / f"{name}.zip"
        elif (folder / name).is_dir():
            parts[name] = folder / name
    return parts


def open_source(path: Path) -> Source:
    """Return the drawings at a path, in whichever form they are there.

    Args:
        path: A folder or an .npz file.

    Returns:
        The source.

    Raises:
        DataError: If there are none; says what to do.
    """
    if path.is_file():
        return _open_npz(path)
    parts = parts_of(path)
    for name in SETS:
        if name not in parts:
            raise DataError(f"{path} has no {name}.zip and no folder {name}; {HELP}")
    return _open_files(path, parts)


def contradictions(drawings: list[Drawing]) -> list[str]:
    """Return what is wrong with drawings' names.

    Args:
        drawings: The drawings.

    Returns:
        One sentence each.
    """
    problems, seen = [], {}
    name_of: dict[int, str] = {}
    id_of: dict[str, int] = {}
    for drawing in drawings:
        where = f"{drawing.file.name}: {drawing.member}"
        if not (1 <= drawing.id <= CHARACTERS and 1 <= drawing.drawer <= DRAWERS):
            problems.append(
                f"{where} has id {drawing.id} and drawer {drawing.drawer}; ids go to {CHARACTERS:,}"
            )
        if (first := seen.setdefault((drawing.id, drawing.drawer), where)) != where:
            problems.append(f"{where} has the id and drawer of {first}")
        if (name := name_of.setdefault(drawing.id, drawing.name)) != drawing.name:
            problems.append(f"{where} has the id of {name}")
        if (number := id_of.setdefault(drawing.name, drawing.id)) != drawing.id:
            problems.append(f"{where} is of the character with id {number}")
    return problems


def _open_files(path: Path, parts: dict[str, Path]) -> Source:
    """Upstream's archives or their unpacked folders."""
    drawings = []
    for part, location in parts.items():
        members = _members(location)
        matches = [match for member in members if (match := _FILE.search(member))]
        if not matches:
            raise DataError(
                f"{location} holds no ALPHABET/characterNN/NNNN_MM.png but {some_of(members)}; {HELP}"
            )
        drawings += [
            Drawing(int(m[3]), int(m[4]), f"{m[1]}/character{m[2]}", part == SETS[1], location, m.string)
            for m in matches
        ]
    drawings.sort()

    def decode() -> tuple[np.ndarray, list[str]]:
        packed, problems = np.zeros((len(drawings), _PACKED), np.uint8), []
        with contextlib.ExitStack() as stack:
            openers = {location: stack.enter_context(_opener(location)) for location in parts.values()}
            for row, drawing in enumerate(drawings):
                try:
                    packed[row] = _packed_png(openers[drawing.file](drawing.member))
                except _DAMAGE as error:
                    problems.append(f"{drawing.file.name}: {drawing.member} cannot be read ({error})")
        return packed, problems

    def fingerprint() -> str:
        digests = [file_digest(location) for location in parts.values() if location.is_file()]
        for drawing in drawings:
            if drawing.file.is_dir():
                digests.append(drawing.member + file_digest(drawing.file / drawing.member))
        return hashlib.sha256(repr(digests).encode()).hexdigest()

    kinds = {"zip files" if part.is_file() else "unpacked folders" for part in parts.values()}
    return Source(path, " and ".join(sorted(kinds)), drawings, decode, fingerprint)


def _members(location: Path) -> list[str]:
    """Names of all files inside an archive or a folder, with forward slashes, without hidden ones."""
    if location.is_dir():
        names = [file.relative_to(location).as_posix() for file in location.rglob("*") if file.is_file()]
    else:
        with _opened_zip(location) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return sorted(
        name for name in names if not any(step.startswith((".", "__MACOSX")) for step in name.split("/"))
    )


def _opened_zip(location: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(location)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{location} cannot be read as a zip file ({error}); {HELP}") from None


@contextlib.contextmanager
def _opener(location: Path) -> Iterator[Callable[[str], bytes]]:
    """A function that returns a member's bytes; none may be large, for a drawing has about 200 bytes."""
    if location.is_dir():
        yield lambda member: (location / member).read_bytes()
        return
    with _opened_zip(location) as archive:

        def member_bytes(member: str) -> bytes:
            if archive.getinfo(member).file_size > 1_000_000:
                raise ValueError("larger than 1 MB, so not a drawing")
            return archive.read(member)

        yield member_bytes


def _packed_png(content: bytes) -> np.ndarray:
    """One drawing's bits, uint8 (1379,), 1 = ink; upstream's files have ink = 0."""
    with open_image(content, "the drawing", formats=("PNG",)) as image:
        if image.size != (SIDE, SIDE):
            raise DataError(f"{image.size[0]} x {image.size[1]} pixels where {SIDE} x {SIDE} are accepted")
        return np.packbits(np.asarray(image.convert("L")) < 128)


def _open_npz(path: Path) -> Source:
    """An .npz file with `images` (packed bits, 1 = ink), one row a drawing, and the arrays of `_ARRAYS`.

    label, drawer: one entry a drawing; char_*: one a character, label being its index; alphabet_name: one an
    alphabet, char_alphabet being its index. `images`, by far the largest, is read only where it is needed.
    """
    arrays = _npz_arrays(path, _ARRAYS)
    for name, array in arrays.items():
        kinds = {"alphabet_name": "U", "char_is_evaluation": "b"}.get(name, "iu")
        like = {"drawer": "label", "label": "label", "alphabet_name": "alphabet_name"}.get(name, "char_id")
        if (
            array.ndim != 1
            or array.dtype.kind not in kinds
            or array.size != arrays[like].size
            or not array.size
        ):
            kind = {"U": "names", "b": "truth values", "iu": "integers"}[kinds]
            raise DataError(
                f"{path}: the array {name} is {array.dtype} of shape {array.shape}; accepted is one "
                f"dimension of {kind}, as long as {like}; {ADVICE}"
            )
    for name, indexed in (("label", "char_id"), ("char_alphabet", "alphabet_name")):
        low, high, length = arrays[name].min(), arrays[name].max(), arrays[indexed].size
        if low < 0 or high >= length:
            raise DataError(
                f"{path}: {name} goes from {low} to {high}; accepted is 0 to {length - 1}, an index of "
                f"{indexed}; {ADVICE}"
            )
    alphabets = arrays["alphabet_name"][arrays["char_alphabet"]].tolist()
    numbers, ids = arrays["char_number"].tolist(), arrays["char_id"].tolist()
    names = [f"{alphabet}/character{number:02d}" for alphabet, number in zip(alphabets, numbers, strict=True)]
    evaluation = arrays["char_is_evaluation"].tolist()
    rows = enumerate(zip(arrays["label"].tolist(), arrays["drawer"].tolist(), strict=True))
    drawings = sorted(
        Drawing(ids[c], drawer, names[c], evaluation[c], path, str(row)) for row, (c, drawer) in rows
    )

    def decode() -> tuple[np.ndarray, list[str]]:
        images = _npz_arrays(path, ("images",))["images"]
        if images.dtype != np.uint8 or images.shape != (len(drawings), _PACKED):
            raise DataError(
                f"{path}: the array images is {images.dtype} of shape {images.shape}; accepted is uint8 "
                f"({len(drawings)}, {_PACKED}), packed bits of {SIDE} x {SIDE} pixels; {ADVICE}"
            )
        return images[[int(drawing.member) for drawing in drawings]], []

    return Source(path, "npz file", drawings, decode, lambda: file_digest(path))


def _npz_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    missing: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            missing += [name for name in names if f"{name}.npy" not in archive.namelist()]
        if not missing:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names}
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read as an .npz file ({error}); {HELP}") from None
    needed = ", ".join(("images", *_ARRAYS))
    raise DataError(f"{path} has no array {missing[0]!r}; accepted are npz files with {needed}; {ADVICE}")


def content_digest(packed: np.ndarray) -> str:
    """The SHA-256 of packed drawings, hexadecimal; see CONTENT_SHA256 in `imaml.domains.fewshot.omniglot`."""
    return hashlib.sha256(np.ascontiguousarray(packed).data).hexdigest()


def file_digest(file: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file's bytes.

    Args:
        file: The file.
        algorithm: One of hashlib's names.

    Returns:
        Hexadecimal digits.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
