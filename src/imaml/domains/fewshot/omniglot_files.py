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

from ...core.errors import DataError
from ...core.validation import some_of
from .pixels import open_image

SIDE, CHARACTERS, DRAWERS = 105, 1623, 20

SETS = ("images_background", "images_evaluation")
_PACKED = (SIDE * SIDE + 7) // 8
_FILE = re.compile(r"(?:^|/)([^/]+)/character(\d+)/(\d{4})_(\d{2})\.png$")
_HIDDEN = re.compile(r"(?:^|/)(?:\.|__MACOSX)")
# By name: the kind of entries, the array that is as long, and the array whose entries they number.
_ARRAYS = {
    "label": (np.integer, "label", "char_id"),
    "drawer": (np.integer, "label", None),
    "char_alphabet": (np.integer, "char_id", "alphabet_name"),
    "char_number": (np.integer, "char_id", None),
    "char_id": (np.integer, "char_id", None),
    "char_is_evaluation": (np.bool_, "char_id", None),
    "alphabet_name": (np.str_, "alphabet_name", None),
}
FORMS = "a folder with images_background.zip and images_evaluation.zip (or both unpacked), or omniglot.npz"
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


def not_omniglot(path: Path | str, found: str, expected: str = FORMS) -> DataError:
    """Return the error on data that are not Omniglot.

    Args:
        path: Where they are.
        found: What was found.
        expected: What was expected.

    Returns:
        The error, which says how to get Omniglot.
    """
    return DataError(
        f"{path}: expected {expected}, got {found}. Hint: give its place with --data PATH, or download it "
        "with: imaml data get omniglot; for drawings of your own use imaml train images --data PATH."
    )


def parts_of(folder: Path) -> dict[str, Path]:
    """Return the sets of drawings in a folder.

    Args:
        folder: The folder.

    Returns:
        A set's name to its zip file, or else to its unpacked folder.
    """
    places = {name: (folder / f"{name}.zip", folder / name) for name in SETS}
    found = {name: next(filter(Path.exists, either), None) for name, either in places.items()}
    return {name: place for name, place in found.items() if place is not None}


def open_source(path: Path) -> Source:
    """Return the drawings at a path, in whichever form they are there.

    Args:
        path: A folder or an .npz file.

    Returns:
        The source.

    Raises:
        DataError: If there are none.
    """
    if path.is_file():
        return _open_npz(path)
    parts = parts_of(path)
    for name in SETS:
        if name not in parts:
            raise not_omniglot(path, f"no {name}.zip and no folder {name}")
    return _open_files(path, parts)


def contradictions(drawings: list[Drawing]) -> list[str]:
    """Return what is wrong with drawings' names.

    Args:
        drawings: The drawings.

    Returns:
        One sentence each.
    """
    problems: list[str] = []
    first: dict[object, object] = {}
    for drawing in drawings:
        where = f"{drawing.file.name}: {drawing.member}"
        if not (1 <= drawing.id <= CHARACTERS and 1 <= drawing.drawer <= DRAWERS):
            problems.append(
                f"{where} has id {drawing.id} and drawer {drawing.drawer}; ids go to {CHARACTERS:,}"
            )
        for key, value, what in (
            ((drawing.id, drawing.drawer), where, "the id and drawer"),
            (drawing.id, drawing.name, "the id"),
            (drawing.name, drawing.id, "the character"),
        ):
            if (other := first.setdefault(key, value)) != value:
                problems.append(f"{where} has {what} of {other}")
    return problems


def _open_files(path: Path, parts: dict[str, Path]) -> Source:
    """Upstream's archives or their unpacked folders."""
    drawings = []
    for part, location in parts.items():
        with _opened(location) as (names, _):
            members = sorted(name for name in names if not _HIDDEN.search(name))
        matches = [match for member in members if (match := _FILE.search(member))]
        if not matches:
            raise not_omniglot(location, some_of(members), "drawings ALPHABET/characterNN/NNNN_MM.png")
        drawings += [
            Drawing(int(m[3]), int(m[4]), f"{m[1]}/character{m[2]}", part == SETS[1], location, m.string)
            for m in matches
        ]
    drawings.sort()

    def decode() -> tuple[np.ndarray, list[str]]:
        packed, problems = np.zeros((len(drawings), _PACKED), np.uint8), []
        with contextlib.ExitStack() as stack:
            readers = {location: stack.enter_context(_opened(location))[1] for location in parts.values()}
            for row, drawing in enumerate(drawings):
                try:
                    packed[row] = _packed_png(readers[drawing.file](drawing.member))
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


@contextlib.contextmanager
def _opened(location: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Names of what is inside an archive or a folder, with forward slashes, and what reads one of them."""
    if location.is_dir():
        names = [file.relative_to(location).as_posix() for file in location.rglob("*")]
        yield names, lambda member: (location / member).read_bytes()
        return
    try:
        archive = zipfile.ZipFile(location)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise not_omniglot(location, f"an error ({error})", "a zip file") from None

    def member_bytes(member: str) -> bytes:
        if archive.getinfo(member).file_size > 1_000_000:  # a drawing has about 200 bytes
            raise ValueError("larger than 1 MB, so not a drawing")
        return archive.read(member)

    with archive:
        yield archive.namelist(), member_bytes


def _packed_png(content: bytes) -> np.ndarray:
    """One drawing's bits, uint8 (1379,), 1 = ink; upstream's files have ink = 0."""
    with open_image(content, formats=("PNG",)) as image:
        if image.size != (SIDE, SIDE):
            raise DataError(f"expected {SIDE} x {SIDE} pixels, got {image.size[0]} x {image.size[1]}")
        return np.packbits(np.asarray(image.convert("L")) < 128)


def _open_npz(path: Path) -> Source:
    """An .npz file with `images` (packed bits, 1 = ink), one row a drawing, and the arrays of `_ARRAYS`.

    label, drawer: one entry a drawing; char_*: one a character, label being its index; alphabet_name: one an
    alphabet, char_alphabet being its index. `images`, by far the largest, is read only where it is needed.
    """
    arrays = _npz_arrays(path, tuple(_ARRAYS))
    for name, (kind, like, numbered) in _ARRAYS.items():
        array, shape = arrays[name], arrays[like].shape
        if not np.issubdtype(array.dtype, kind) or array.ndim != 1 or array.shape != shape or not array.size:
            found = f"{array.dtype} of shape {array.shape}"
            raise not_omniglot(path, found, f"{name} of kind {kind.__name__}, (n,), as long as {like}")
        if numbered and not 0 <= array.min() <= array.max() < arrays[numbered].size:
            found = f"{array.min()} to {array.max()}"
            raise not_omniglot(path, found, f"{name} from 0 to {arrays[numbered].size - 1}")
    # Two levels of indices: a drawing's label numbers a character, whose char_alphabet numbers an alphabet.
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
            expected = f"images of packed bits, uint8 {len(drawings), _PACKED}"
            raise not_omniglot(path, f"{images.dtype} {images.shape}", expected)
        return images[[int(drawing.member) for drawing in drawings]], []

    return Source(path, "npz file", drawings, decode, lambda: file_digest(path))


def _npz_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except (*_DAMAGE, TypeError) as error:  # TypeError: one array, in a .npy file
        expected = f"an .npz file with the arrays {', '.join(('images', *_ARRAYS))}"
        raise not_omniglot(path, f"an error ({error})", expected) from None


def content_digest(packed: np.ndarray) -> str:
    """Return the digest of packed drawings; see CONTENT_SHA256 in `omniglot`.

    Args:
        packed: The drawings.

    Returns:
        The SHA-256, hexadecimal.
    """
    return hashlib.sha256(np.ascontiguousarray(packed).data).hexdigest()


def file_digest(file: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file's bytes.

    Args:
        file: The file.
        algorithm: One of hashlib's names.

    Returns:
        Hexadecimal digits.
    """
    return hashlib.new(algorithm, file.read_bytes(), usedforsecurity=False).hexdigest()
