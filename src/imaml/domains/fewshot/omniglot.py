"""Omniglot, 1,623 handwritten characters of 50 alphabets, each drawn once by 20 people, as a table of images.

Lake, Salakhutdinov and Tenenbaum 2015, Human-level concept learning through probabilistic program induction,
Science 350:1332-1338; github.com/brendenlake/omniglot, MIT licence. Read from upstream's two zip files, from
their unpacked folders, or from one .npz file with the same drawings as packed bits: all give the same table,
bit for bit, and are verified by one digest over the drawings themselves.

    table = read("data/omniglot", split="vinyals")      # pixels uint8 (32460, 28, 28, 1), 255 = ink
    table.ids("test")                                   # 423 class ids
"""

import http.client
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from ...core.errors import DataError
from ...core.machine import user_cache
from ...core.validation import require_number, require_one_of, some_of
from .images import SPLITS as TASK_SPLITS
from .images import Images, cached_array, shuffled
from .omniglot_files import (
    CHARACTERS,
    DRAWERS,
    FORMS,
    SIDE,
    Source,
    content_digest,
    contradictions,
    file_digest,
    not_omniglot,
    open_source,
    parts_of,
)
from .pixels import area_average

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
    """What `check` found; as text, one fact a line.

    Attributes:
        path: Where the data are.
        kind: Their form, such as "zip files".
        alphabets: How many alphabets there are.
        characters: How many characters.
        drawings: How many drawings.
        digest: SHA-256 of the drawings, None if not all could be read.
        duplicates: Pairs of identical drawings (upstream has one such pair).
        problems: What is wrong.
        notes: What is merely known.
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
        """Whether all drawings are there, and are those of upstream."""
        return self.digest == CONTENT_SHA256 and not self.problems

    def __str__(self) -> str:
        """Return the report as lines of text."""
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
) -> Images:
    """Read Omniglot as a table: 20 drawings of each character, 255 = ink.

    Classes come in ascending upstream id (class id + 1 is the upstream id). Their names are
    ALPHABET/characterNN, their groups the alphabets. Splits are disjoint:

    - "vinyals": 1,028 train, 172 validation, 423 test characters of Vinyals et al. 2016, alphabets kept whole
      but for one. The list, `vinyals_split.txt`, is pytorch-meta's (MIT licence), from prototypical-networks.
    - "background": upstream's evaluation set (659 characters, 20 alphabets) is test; of its 30 background
      alphabets, 5 drawn by the seed are validation and 25 train.
    - "random": 1,200/423 characters drawn by the seed, 100 of the 1,200 being validation: 1,100/100/423.

    Args:
        path: As for `locate`.
        split: Which of these splits.
        side: Pixels a side, to which drawings are averaged.
        seed: Draws the split.
        complete: Whether to accept only the whole of Omniglot, verified by its digest, and to keep the
            resized table in `user_cache()`. Otherwise what is there is read, and a split is what is left.

    Returns:
        The table.

    Raises:
        DataError: If the data are not Omniglot, or are damaged.
        ConfigError: If the split is not known, or the side is not in 1 to 105.
    """
    require_one_of("omniglot", "split", split, SPLITS)
    require_number("omniglot", 1, SIDE + 1, kind=int, side=side)
    source = open_source(locate(path))
    drawings = source.drawings
    # Drawings are sorted by id, so that `first` and `count` give each character's rows.
    _require_none(source, contradictions(drawings))
    ids, first, count = np.unique([drawing.id for drawing in drawings], return_index=True, return_counts=True)

    def decoded() -> np.ndarray:
        packed, problems = source.decode()
        _require_none(source, problems)
        if complete and content_digest(packed) != CONTENT_SHA256:
            found = f"{len(ids):,} and {len(packed):,}, or others (complete=False reads them anyway)"
            whole = f"Omniglot's {CHARACTERS:,} characters and {CHARACTERS * DRAWERS:,} drawings"
            raise not_omniglot(source.path, found, whole)
        return _resized(packed, side)

    # The key holds all that the resized table depends on: content, files and size.
    if complete:
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
    places = _places() if data is None else [Path(data).expanduser()]
    for place in places:
        if (found := _within(place)) is not None:
            return found
    if data is None:
        raise not_omniglot(_places_text(), "none")
    held = some_of(sorted(places[0].iterdir())) if places[0].exists() else "no such file or folder"
    raise not_omniglot(places[0], held)


def listing() -> str:
    """Return what data can be read and where imaml looks for them, as lines of text."""
    try:
        found = f"found: {locate()}"
    except DataError:
        found = "not found; download it with: imaml data get omniglot"
    return f"""\
characters     drawn as they are needed; no data
omniglot       {found}
               looked for in {_places_text()}, or --data PATH
               expected is {FORMS}
mini-imagenet  only with --data PATH: train/, val/ and test/ with a folder of images for each class,
               or train.csv, val.csv and test.csv beside images/"""


def fetched(url: str, file: Path) -> None:
    """Download a file, giving up after 60 silent seconds.

    Args:
        url: Where it is.
        file: Where to write it.

    Raises:
        OSError: If it cannot be downloaded or written.
    """
    with urllib.request.urlopen(url, timeout=60) as response, file.open("wb") as stream:
        shutil.copyfileobj(response, stream)


def get(folder: str | Path | None = None, fetch: Callable[[str, Path], None] = fetched) -> Path:
    """Download upstream's two archives, unless they are there and intact.

    Archives are fetched beside their place, verified by MD5 and by the digest of all their drawings, and only
    then renamed into it. Upon any failure nothing is kept.

    Args:
        folder: By default `user_cache()`/omniglot.
        fetch: ``fetch(url, file)`` writes the file or raises OSError.

    Returns:
        The folder.

    Raises:
        DataError: If there is no network, the folder cannot be written, or archives are not upstream's.
    """
    folder = Path(folder).expanduser() if folder is not None else user_cache() / "omniglot"
    if all((folder / name).is_file() for name in ARCHIVE_MD5) and check(folder).ok:
        return folder
    elsewhere = "or copy both archives from another machine and give their folder with --data PATH"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as made:
            part = Path(made)
            for name, md5 in ARCHIVE_MD5.items():
                fetch(UPSTREAM + name, part / name)
                if (found := file_digest(part / name, "md5")) != md5:
                    raise DataError(
                        f"{UPSTREAM}{name}: expected a file with MD5 {md5}, got {found}. Hint: try again, "
                        f"{elsewhere}. Nothing was kept."
                    )
            report = check(part)
            if not report.ok:
                raise DataError(
                    f"{UPSTREAM}: expected the drawings known as Omniglot, got {report.characters:,} "
                    f"characters, {report.drawings:,} drawings, digest {report.digest}, problems: "
                    f"{some_of(report.problems, 1)}. Hint: compare with another copy. Nothing was kept."
                )
            for name in ARCHIVE_MD5:
                os.replace(part / name, folder / name)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{UPSTREAM}: expected a download to {folder}, got an error ({getattr(error, 'reason', error)}). "
            f"Hint: check the network and the space there, {elsewhere}. Nothing was kept."
        ) from None
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
    # Equal bits are duplicates; `first` maps them to the first drawing that has them.
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
    notes = tuple(
        f"{name}: MD5 {'as' if file_digest(place / name, 'md5') == md5 else 'other than'} torchvision has it"
        for name, md5 in ARCHIVE_MD5.items()
        if (place / name).is_file()
    )
    return Report(place, source.kind, *counts, digest, tuple(duplicates), tuple(problems), notes)


def _places() -> list[Path]:
    named = os.environ.get("IMAML_DATA")
    return [*([Path(named).expanduser()] if named else []), Path.cwd() / "data", user_cache()]


def _places_text() -> str:
    unset = "" if os.environ.get("IMAML_DATA") else " (IMAML_DATA is not set)"
    return ", ".join(map(str, _places())) + unset


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


def _require_none(source: Source, problems: list[str]) -> None:
    if problems:
        more = f" and {len(problems) - 1:,} more problems" if len(problems) > 1 else ""
        found = f"this problem: {problems[0]}{more} (imaml data check omniglot {source.path} lists them)"
        raise not_omniglot(source.path, found, "Omniglot as upstream has it")


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
