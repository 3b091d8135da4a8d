"""Omniglot, 1,623 handwritten characters of 50 alphabets, each drawn once by 20 people, as a table of images.

Lake, Salakhutdinov and Tenenbaum 2015, Human-level concept learning through probabilistic program induction,
Science 350:1332-1338; github.com/brendenlake/omniglot, MIT licence. Read from upstream's two zip files, from
their unpacked folders, or from one .npz file with the same drawings as packed bits: all give the same table,
bit for bit, and are verified by one digest over the drawings themselves.

    table = read("data/omniglot", split="vinyals")      # pixels uint8 (32460, 28, 28, 1), 255 = ink
    table.ids("test")                                   # 423 class ids
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imaml.domains.images import SPLITS as TASK_SPLITS
from imaml.domains.images import Images, area_average, cached_array, shuffled, some_of, user_cache
from imaml.errors import ConfigError, DataError

SIDE, CHARACTERS, DRAWERS = 105, 1623, 20
SETS = ("images_background", "images_evaluation")
SPLITS = ("vinyals", "background", "random")

# SHA-256 of the 32,460 drawings in ascending (upstream id, drawer), each np.packbits of its 105 x 105 pixels
# in row order, 1 = ink, 1,379 bytes. Computed from a copy of the unpacked archives, not from the archives.
CONTENT_SHA256 = "36fc02a2da7b2746cbc586c7d6af60fe816de828c2ed207f66a2e6933b920c20"

# The SHA-256 of upstream's archives are not known to us; these are the MD5 by which torchvision verifies them
# (pytorch/vision, torchvision/datasets/omniglot.py, `zips_md5`).
ARCHIVE_MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
UPSTREAM = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"

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
_ACCEPTED = (
    "accepted is a folder with images_background.zip and images_evaluation.zip (or both unpacked), "
    "or an omniglot.npz"
)
_ADVICE = "give its place with --data PATH, or download it with: imaml data get omniglot"
_HELP = f"{_ACCEPTED}; {_ADVICE}"
_DAMAGE = (OSError, ValueError, EOFError, KeyError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Report:
    """What `check` found: `ok`, and as text one fact a line.

    digest: SHA-256 of the drawings, None where not all could be read; duplicates: pairs of identical drawings
    (upstream has one such pair); problems: what is wrong; notes: what is merely known.
    """

    path: Path
    kind: str
    alphabets: int
    characters: int
    drawings: int
    digest: str | None
    duplicates: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every drawing is there and as upstream has it."""
        return self.digest == CONTENT_SHA256 and not self.problems

    def __str__(self) -> str:
        """The report as lines of text."""
        verdict = "complete and intact" if self.ok else "NOT as upstream has it"
        lines = [
            f"{self.path} ({self.kind}): {verdict}",
            f"  {self.alphabets} alphabets, {self.characters:,} of {CHARACTERS:,} characters, "
            f"{self.drawings:,} of {CHARACTERS * DRAWERS:,} drawings",
            f"  SHA-256 of the drawings: {self.digest or 'not computed'}",
        ]
        lines += [f"  identical drawings: {one} and {two}" for one, two in self.duplicates[:10]]
        if len(self.duplicates) > 10:
            lines.append(f"  and {len(self.duplicates) - 10:,} more identical pairs")
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  problem: {problem}" for problem in self.problems]
        return "\n".join(lines)


class _Drawing(NamedTuple):
    """One drawing and where it lies; in order of upstream id, then drawer."""

    id: int
    drawer: int
    name: str  # ALPHABET/characterNN
    evaluation: bool
    file: Path  # the archive, folder or .npz file
    member: str  # its name in an archive or folder, its row in an .npz file


@dataclass(frozen=True)
class _Source:
    """Drawings that can be read."""

    path: Path
    kind: str
    drawings: list[_Drawing]
    decode: Callable[[], tuple[np.ndarray, list[str]]]  # -> packed bits (drawings, 1379), problems
    fingerprint: Callable[[], str]  # SHA-256 of the files' bytes


def read(
    path: str | Path | None = None,
    split: str = "vinyals",
    *,
    side: int = 28,
    seed: int = 0,
    complete: bool = True,
    cache: bool = True,
) -> Images:
    """Omniglot as a table: 20 drawings of each character, area-averaged to side x side, 255 = ink.

    Classes come in ascending upstream id (class id + 1 is the upstream id); names are ALPHABET/characterNN,
    groups the alphabets. path: as for `locate`. Splits, always disjoint:

    - "vinyals": 1,028 train, 172 validation, 423 test characters of Vinyals et al. 2016, alphabets kept whole
      but for one. The list, `vinyals_split.txt`, is pytorch-meta's (MIT licence), from prototypical-networks.
    - "background": upstream's evaluation set (659 characters, 20 alphabets) is test; of its 30 background
      alphabets, 5 drawn by the seed are validation and 25 train.
    - "random": 1,200/423 characters drawn by the seed, 100 of the 1,200 being validation: 1,100/100/423.

    complete: refuse anything but the whole of Omniglot, verified by its digest; False reads what is there,
    and a split is what is left of it. cache: keep the resized table of a verified source in `user_cache()`.
    Errors: `DataError` for data, `ConfigError` for an unknown split or side.
    """
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; accepted are {', '.join(SPLITS)}")
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= SIDE:
        raise ConfigError(f"side is {side!r}; accepted is a whole number of pixels from 1 to {SIDE}")
    source = _open(locate(path))
    drawings = source.drawings
    _refuse_problems(source, _contradictions(drawings))
    ids, first, count = np.unique([drawing.id for drawing in drawings], return_index=True, return_counts=True)

    def decoded() -> np.ndarray:
        packed, problems = source.decode()
        _refuse_problems(source, problems)
        if complete and _digest(packed) != CONTENT_SHA256:
            raise DataError(
                f"{source.path} is not the whole of Omniglot as upstream has it: it holds {len(ids):,} of "
                f"{CHARACTERS:,} characters, {len(packed):,} of {CHARACTERS * DRAWERS:,} drawings, and their "
                f"digest differs; {_ADVICE}. "
                "To read a part on purpose: imaml.domains.omniglot.read(path, complete=False)"
            )
        return _resized(packed, side)

    if cache and complete:
        pixels = cached_array(f"omniglot-{CONTENT_SHA256[:8]}-{source.fingerprint()[:32]}-{side}", decoded)
    else:
        pixels = decoded()
    names = tuple(drawings[i].name for i in first)
    groups = tuple(name.rpartition("/")[0] for name in names)
    splits = _splits(split, seed, ids, names, np.array([drawings[i].evaluation for i in first]))
    return Images(pixels, first, count, names, groups, splits)


def locate(data: str | Path | None = None) -> Path:
    """Where Omniglot is: a folder with the two zips or their unpacked folders, or an .npz file.

    data: the path of either, or of a folder that holds it. None looks in the folder named by the environment
    variable IMAML_DATA, then in ./data, then in `user_cache()`, for omniglot/ and omniglot.npz in each. What
    lies there is for `read` and `check` to judge. Errors: `DataError` says what was looked for.
    """
    if data is not None:
        path = Path(data).expanduser()
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; {_HELP}")
        found = _within(path)
        if found is None:
            content = some_of(sorted(path.iterdir()))
            raise DataError(f"{path} holds no Omniglot but {content}; {_HELP}")
        return found
    for place in _places():
        if place.exists() and (found := _within(place)) is not None:
            return found
    raise DataError(f"Omniglot is not in {_places_text()}, where it was looked for; {_HELP}")


def listing() -> str:
    """What data can be read and where it is looked for, as lines of text."""
    try:
        found = f"found: {locate()}"
    except DataError:
        found = "not found; download it with: imaml data get omniglot"
    return f"""\
characters     drawn as they are needed; no data
omniglot       {found}
               looked for in {_places_text()}, or --data PATH
               {_ACCEPTED}
mini-imagenet  only with --data PATH: train/, val/ and test/ with a folder of images for each class,
               or train.csv, val.csv and test.csv beside images/"""


def get(folder: str | Path | None = None, fetch: Callable[[str, Path], None] | None = None) -> Path:
    """The folder with upstream's two archives, downloaded unless they are there and intact.

    folder: by default `user_cache()`/omniglot. Archives are fetched beside their place, verified by MD5 and
    by the digest of all their drawings, and only then renamed into it; upon any failure nothing is kept.
    fetch(url, file) writes the file or raises OSError; by default urllib, giving up after 60 silent seconds.
    Errors: `DataError` for no network, an unwritable folder, or archives that are not upstream's.
    """
    folder = Path(folder).expanduser() if folder is not None else user_cache() / "omniglot"
    if all((folder / name).is_file() for name in ARCHIVE_MD5) and check(folder).ok:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder, prefix=".part-"))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); accepted is a writable folder: "
            "give one with imaml data get omniglot DIR"
        ) from None
    try:
        for name, md5 in ARCHIVE_MD5.items():
            _fetch_verified(fetch or _fetch, UPSTREAM + name, part / name, md5)
        report = check(part)
        if not report.ok:
            raise DataError(
                f"the archives from {UPSTREAM} do not hold the drawings known as Omniglot "
                f"({report.characters:,} characters, {report.drawings:,} drawings, digest "
                f"{report.digest}, problems: {some_of(report.problems, 1)}); nothing was kept: "
                "compare with another copy before using them"
            )
        for name in ARCHIVE_MD5:
            os.replace(part / name, folder / name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror}); nothing was kept: free some space or give "
            "another folder with imaml data get omniglot DIR"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def check(path: str | Path | None = None) -> Report:
    """A report on the Omniglot at `path` (as for `locate`): counts, digest, duplicates, unreadable files.

    Damage is in the report, not raised; only a place without any Omniglot is a `DataError`.
    """
    place = locate(path)
    try:
        source = _open(place)
        packed, problems = source.decode()
    except DataError as error:
        return Report(place, "unreadable", 0, 0, 0, None, (), (str(error),), ())
    problems = [*_contradictions(source.drawings), *problems]
    first: dict[bytes, str] = {}
    duplicates = []
    for drawing, bits in zip(source.drawings, packed, strict=True):
        name = f"{drawing.name}/{drawing.id:04d}_{drawing.drawer:02d}"
        if (earlier := first.setdefault(bits.tobytes(), name)) != name:
            duplicates.append((earlier, name))
    digest = None if problems else _digest(packed)
    if digest not in (None, CONTENT_SHA256):
        problems.append(f"the digest of the drawings differs from upstream's, {CONTENT_SHA256}")
    names = {drawing.name for drawing in source.drawings}
    alphabets = {name.rpartition("/")[0] for name in names}
    counts = (len(alphabets), len(names), len(packed))
    notes = tuple(_archive_notes(place))
    return Report(place, source.kind, *counts, digest, tuple(duplicates), tuple(problems), notes)


def _places() -> list[Path]:
    named = os.environ.get("IMAML_DATA")
    return [*([Path(named).expanduser()] if named else []), Path.cwd() / "data", user_cache()]


def _places_text() -> str:
    return ", ".join(map(str, _places())) + (
        "" if os.environ.get("IMAML_DATA") else " (IMAML_DATA is not set)"
    )


def _within(path: Path) -> Path | None:
    """The Omniglot at or just inside a path; a file is taken at its word."""
    if path.is_file():
        return path
    for folder in (path, *(path / name for name in ("omniglot", "python", "omniglot-py"))):
        if _parts(folder):
            return folder
        if (folder / "omniglot.npz").is_file():
            return folder / "omniglot.npz"
    return None


def _parts(folder: Path) -> dict[str, Path]:
    """Set name -> its zip file, or else its unpacked folder."""
    parts = {}
    for name in SETS:
        if (folder / f"{name}.zip").is_file():
            parts[name] = folder / f"{name}.zip"
        elif (folder / name).is_dir():
            parts[name] = folder / name
    return parts


def _open(path: Path) -> _Source:
    if path.is_file():
        return _open_npz(path)
    parts = _parts(path)
    for name in SETS:
        if name not in parts:
            raise DataError(f"{path} has no {name}.zip and no folder {name}; {_HELP}")
    return _open_files(path, parts)


def _contradictions(drawings: list[_Drawing]) -> list[str]:
    """What is wrong with the drawings' names, one sentence each."""
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


def _open_files(path: Path, parts: dict[str, Path]) -> _Source:
    """Upstream's archives or their unpacked folders."""
    drawings = []
    for part, location in parts.items():
        members = _members(location)
        matches = [match for member in members if (match := _FILE.search(member))]
        if not matches:
            raise DataError(
                f"{location} holds no ALPHABET/characterNN/NNNN_MM.png but {some_of(members)}; {_HELP}"
            )
        drawings += [
            _Drawing(int(m[3]), int(m[4]), f"{m[1]}/character{m[2]}", part == SETS[1], location, m.string)
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
        digests = [_file_digest(location) for location in parts.values() if location.is_file()]
        for drawing in drawings:
            if drawing.file.is_dir():
                digests.append(drawing.member + _file_digest(drawing.file / drawing.member))
        return hashlib.sha256(repr(digests).encode()).hexdigest()

    kinds = {"zip files" if part.is_file() else "unpacked folders" for part in parts.values()}
    return _Source(path, " and ".join(sorted(kinds)), drawings, decode, fingerprint)


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
        raise DataError(f"{location} cannot be read as a zip file ({error}); {_HELP}") from None


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
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        if image.size != (SIDE, SIDE):
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels where {SIDE} x {SIDE} are accepted")
        return np.packbits(np.asarray(image.convert("L")) < 128)


def _open_npz(path: Path) -> _Source:
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
                f"dimension of {kind}, as long as {like}; {_ADVICE}"
            )
    for name, indexed in (("label", "char_id"), ("char_alphabet", "alphabet_name")):
        low, high, length = arrays[name].min(), arrays[name].max(), arrays[indexed].size
        if low < 0 or high >= length:
            raise DataError(
                f"{path}: {name} goes from {low} to {high}; accepted is 0 to {length - 1}, an index of "
                f"{indexed}; {_ADVICE}"
            )
    alphabets = arrays["alphabet_name"][arrays["char_alphabet"]].tolist()
    numbers, ids = arrays["char_number"].tolist(), arrays["char_id"].tolist()
    names = [f"{alphabet}/character{number:02d}" for alphabet, number in zip(alphabets, numbers, strict=True)]
    evaluation = arrays["char_is_evaluation"].tolist()
    rows = enumerate(zip(arrays["label"].tolist(), arrays["drawer"].tolist(), strict=True))
    drawings = sorted(
        _Drawing(ids[c], drawer, names[c], evaluation[c], path, str(row)) for row, (c, drawer) in rows
    )

    def decode() -> tuple[np.ndarray, list[str]]:
        images = _npz_arrays(path, ("images",))["images"]
        if images.dtype != np.uint8 or images.shape != (len(drawings), _PACKED):
            raise DataError(
                f"{path}: the array images is {images.dtype} of shape {images.shape}; accepted is uint8 "
                f"({len(drawings)}, {_PACKED}), packed bits of {SIDE} x {SIDE} pixels; {_ADVICE}"
            )
        return images[[int(drawing.member) for drawing in drawings]], []

    return _Source(path, "npz file", drawings, decode, lambda: _file_digest(path))


def _npz_arrays(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    missing: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            missing += [name for name in names if f"{name}.npy" not in archive.namelist()]
        if not missing:
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names}
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read as an .npz file ({error}); {_HELP}") from None
    needed = ", ".join(("images", *_ARRAYS))
    raise DataError(f"{path} has no array {missing[0]!r}; accepted are npz files with {needed}; {_ADVICE}")


def _refuse_problems(source: _Source, problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1:,} more problems)" if len(problems) > 1 else ""
        raise DataError(
            f"{source.path}: {problems[0]}{more}; accepted is Omniglot as upstream has it: "
            f"imaml data check omniglot {source.path} lists what is wrong; {_ADVICE}"
        )


def _digest(packed: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(packed).data).hexdigest()


def _file_digest(file: Path, algorithm: str = "sha256") -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _resized(packed: np.ndarray, side: int) -> np.ndarray:
    """The table uint8 (drawings, side, side, 1), 255 = ink; in pieces, for all bits unpacked take 358 MB."""
    pixels = np.empty((len(packed), side, side, 1), np.uint8)
    for start in range(0, len(packed), 1000):
        bits = np.unpackbits(packed[start : start + 1000], axis=1, count=SIDE * SIDE).reshape(-1, SIDE, SIDE)
        pixels[start : start + 1000, ..., 0] = np.rint(255 * area_average(bits, side))
    return pixels


def _splits(
    split: str, seed: int, ids: np.ndarray, names: tuple[str, ...], evaluation: np.ndarray
) -> dict[str, np.ndarray]:
    if split == "vinyals":
        part = _vinyals()[ids - 1]
    elif split == "background":
        groups = [name.rpartition("/")[0] for name in names]
        background = {groups[i] for i in np.flatnonzero(~evaluation)}
        held_out = set(shuffled(background, seed)[: len(background) // 6])
        part = np.where(evaluation, 2, [group in held_out for group in groups])
    else:
        place = {name: index for index, name in enumerate(shuffled(names, seed))}
        ends = np.rint(np.array([1100, 1200]) * len(place) / CHARACTERS)
        part = np.searchsorted(ends, [place[name] for name in names], side="right")
    splits = {name: np.flatnonzero(part == index) for index, name in enumerate(TASK_SPLITS)}
    return {name: chosen for name, chosen in splits.items() if chosen.size}


def _vinyals() -> np.ndarray:
    """Upstream id - 1 -> 0 train, 1 validation, 2 test."""
    text = resources.files("imaml.domains").joinpath("vinyals_split.txt").read_text(encoding="utf-8")
    return np.array([int(digit) for line in text.splitlines() if not line.startswith("#") for digit in line])


def _archive_notes(place: Path) -> Iterator[str]:
    for name, md5 in ARCHIVE_MD5.items():
        if (place / name).is_file():
            same = _file_digest(place / name, "md5") == md5
            yield f"{name}: MD5 {'as torchvision has it' if same else 'other than torchvision has it'}"


def _fetch(url: str, file: Path) -> None:
    import urllib.request

    with urllib.request.urlopen(url, timeout=60) as response, file.open("wb") as stream:
        shutil.copyfileobj(response, stream)


def _fetch_verified(fetch: Callable[[str, Path], None], url: str, file: Path, md5: str) -> None:
    import http.client

    elsewhere = "copy both archives from another machine and give their folder with --data PATH"
    try:
        fetch(url, file)
        found = _file_digest(file, "md5")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"{url} cannot be fetched ({reason}); nothing was kept: see to the network, or {elsewhere}"
        ) from None
    if found != md5:
        raise DataError(
            f"{url} gave {file.stat().st_size:,} bytes with MD5 {found}; accepted is {md5}; nothing was "
            f"kept: try again, or {elsewhere}"
        )
