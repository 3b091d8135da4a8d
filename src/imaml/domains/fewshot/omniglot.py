"""Omniglot, 1,623 handwritten characters of 50 alphabets, each drawn once by 20 people, as a table of images.

Lake, Salakhutdinov and Tenenbaum 2015, Human-level concept learning through probabilistic program induction,
Science 350:1332-1338; github.com/brendenlake/omniglot, MIT licence. Read from upstream's two zip files, from
their unpacked folders, or from one .npz file with the same drawings as packed bits: all give the same table,
bit for bit, and are verified by one digest over the drawings themselves.

    table = read("data/omniglot", split="vinyals")      # pixels uint8 (32460, 28, 28, 1), 255 = ink
    table.ids("test")                                   # 423 class ids
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from imaml.core.errors import ConfigError, DataError
from imaml.core.machine import user_cache
from imaml.core.validation import lacks, some_of
from imaml.domains.fewshot.images import SPLITS as TASK_SPLITS
from imaml.domains.fewshot.images import Images, cached_array, shuffled
from imaml.domains.fewshot.omniglot_files import (
    ACCEPTED,
    ADVICE,
    CHARACTERS,
    DRAWERS,
    HELP,
    SIDE,
    Source,
    content_digest,
    contradictions,
    file_digest,
    open_source,
    parts_of,
)
from imaml.domains.fewshot.pixels import area_average

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
    source = open_source(locate(path))
    drawings = source.drawings
    _refuse_problems(source, contradictions(drawings))
    ids, first, count = np.unique([drawing.id for drawing in drawings], return_index=True, return_counts=True)

    def decoded() -> np.ndarray:
        packed, problems = source.decode()
        _refuse_problems(source, problems)
        if complete and content_digest(packed) != CONTENT_SHA256:
            raise DataError(
                f"{source.path} is not the whole of Omniglot as upstream has it: it holds {len(ids):,} of "
                f"{CHARACTERS:,} characters, {len(packed):,} of {CHARACTERS * DRAWERS:,} drawings, and their "
                f"digest differs; {ADVICE}. "
                "To read a part on purpose: imaml.domains.fewshot.omniglot.read(path, complete=False)"
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
    """Return where Omniglot is: a folder with the two zips or their unpacked folders, or an .npz file.

    What lies there is for `read` and `check` to judge.

    Args:
        data: The path of either, or of a folder that holds it. None looks in the folder named by the
            environment variable IMAML_DATA, then in ./data, then in `user_cache()`, for omniglot/ and
            omniglot.npz in each.

    Returns:
        The path.

    Raises:
        DataError: If none is found.
    """
    if data is not None:
        path = Path(data).expanduser()
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; {HELP}")
        found = _within(path)
        if found is None:
            raise DataError(f"{path} {lacks('Omniglot', sorted(path.iterdir()))}; {HELP}")
        return found
    for place in _places():
        if place.exists() and (found := _within(place)) is not None:
            return found
    raise DataError(f"Omniglot is not in {_places_text()}, where it was looked for; {HELP}")


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
               {ACCEPTED}
mini-imagenet  only with --data PATH: train/, val/ and test/ with a folder of images for each class,
               or train.csv, val.csv and test.csv beside images/"""


def get(folder: str | Path | None = None, fetch: Callable[[str, Path], None] | None = None) -> Path:
    """Download upstream's two archives, unless they are there and intact.

    Archives are fetched beside their place, verified by MD5 and by the digest of all their drawings, and only
    then renamed into it. Upon any failure nothing is kept.

    Args:
        folder: By default `user_cache()`/omniglot.
        fetch: ``fetch(url, file)`` writes the file or raises OSError; by default urllib, giving up after 60
            silent seconds.

    Returns:
        The folder.

    Raises:
        DataError: If there is no network, the folder cannot be written, or archives are not upstream's.
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
    """Check the Omniglot at a path.

    Args:
        path: As for `locate`.

    Returns:
        Counts, digest, duplicates and unreadable files. Damage is in the report, not raised.

    Raises:
        DataError: If no Omniglot is there.
    """
    place = locate(path)
    try:
        source = open_source(place)
        packed, problems = source.decode()
    except DataError as error:
        return Report(place, "unreadable", 0, 0, 0, None, (), (str(error),), ())
    problems = [*contradictions(source.drawings), *problems]
    first: dict[bytes, str] = {}
    duplicates = []
    for drawing, bits in zip(source.drawings, packed, strict=True):
        name = f"{drawing.name}/{drawing.id:04d}_{drawing.drawer:02d}"
        if (earlier := first.setdefault(bits.tobytes(), name)) != name:
            duplicates.append((earlier, name))
    digest = None if problems else content_digest(packed)
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
        if parts_of(folder):
            return folder
        if (folder / "omniglot.npz").is_file():
            return folder / "omniglot.npz"
    return None


def _refuse_problems(source: Source, problems: list[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1:,} more problems)" if len(problems) > 1 else ""
        raise DataError(
            f"{source.path}: {problems[0]}{more}; accepted is Omniglot as upstream has it: "
            f"imaml data check omniglot {source.path} lists what is wrong; {ADVICE}"
        )


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
    text = resources.files("imaml.domains.fewshot").joinpath("vinyals_split.txt").read_text(encoding="utf-8")
    return np.array([int(digit) for line in text.splitlines() if not line.startswith("#") for digit in line])


def _archive_notes(place: Path) -> Iterator[str]:
    for name, md5 in ARCHIVE_MD5.items():
        if (place / name).is_file():
            same = file_digest(place / name, "md5") == md5
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
        found = file_digest(file, "md5")
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
