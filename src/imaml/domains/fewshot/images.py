"""Labelled image tables in memory, and image files read into them: NumPy only, no JAX.

old, new = by_group(table, "train", fraction=0.5, seed=0)    # two halves of the training classes
images, labels, files = read_image_folder("drawings/")       # a folder a class; float32 (n, 28, 28), 1 = ink
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike

from ...core.errors import DataError
from ...core.machine import usable_cores, user_cache
from ...core.streams import note
from ...core.validation import not_one_of, require_number, some_of
from ...storage.atomic import make_folder, reason, replacing
from .pixels import FORMATS, is_image, read_image, regular_file

SPLITS = ("train", "validation", "test")
HEIC = (".heic", ".heif", ".avif")
AS_PNG = "Hint: save them as .png or .jpg."
MANY = 300  # images from which on progress is shown
EVERY = 5.0  # seconds between two lines of progress
FORMAT = 2  # of what is kept; a change of how images are read makes another
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_LAYOUT = "train/, val/ and test/ with one folder of images for each class, or train.csv, ... beside images/"
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled image table in memory, checked when made. Its arrays are read-only.

    Attributes:
        pixels: uint8 ``(rows, height, width, channels)``, 255 = ink for drawings, brightness for photographs.
        first: int32 ``(classes,)``, the row of a class's first image.
        count: int32 ``(classes,)``, how many images it has; no row is shared.
        names: The classes' names, unique.
        groups: The classes' groups, such as alphabets.
        splits: "train", "validation" and "test" to class ids, pairwise disjoint. A class in a split needs two
            images, one to learn from and one to be asked about.

    Raises:
        DataError: If the parts do not fit together.
    """

    pixels: np.ndarray
    first: np.ndarray
    count: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]
    splits: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check everything (DataError) and make the arrays read-only."""
        pixels = np.asarray(self.pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or not pixels.size:
            raise DataError(
                f"pixels: expected uint8 (rows, height, width, channels), got {pixels.dtype} {pixels.shape}. "
                "Hint: for values in [0, 1] pass np.rint(255 * pixels).astype(np.uint8); add a last axis of "
                "length 1 to grey images."
            )
        first, count = _integers("first", self.first), _integers("count", self.count)
        names, groups = tuple(map(str, self.names)), tuple(map(str, self.groups))
        lengths = {"first": len(first), "count": len(count), "names": len(names), "groups": len(groups)}
        if len(set(lengths.values())) != 1:
            raise DataError(f"Images: expected one entry a class, got {lengths}.")
        _require_distinct("names", names)
        _check_rows(first, count, names, len(pixels))
        splits = _checked_splits(self.splits, count, names)
        pixels = pixels.view()
        for array in (pixels, first, count, *splits.values()):
            array.setflags(write=False)
        values = {"pixels": pixels, "first": first, "count": count, "names": names, "groups": groups}
        for name, value in (*values.items(), ("splits", splits)):
            object.__setattr__(self, name, value)

    @property
    def classes(self) -> int:
        """How many classes the table has, in and out of splits."""
        return len(self.names)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Height, width, channels of one image."""
        return self.pixels.shape[1:]

    def ids(self, split: str) -> np.ndarray:
        """Return the class ids of a split.

        Args:
            split: The split.

        Returns:
            int32 ``(n,)``, in the order in which they were given.

        Raises:
            DataError: If the table does not have the split.
        """
        if split not in self.splits:
            raise DataError(not_one_of("split", split, self.splits))
        return self.splits[split]

    def of(self, class_id: int) -> np.ndarray:
        """Return one class's images.

        Args:
            class_id: The number of the class.

        Returns:
            A view, uint8 ``(n, height, width, channels)``.
        """
        return self.pixels[self.first[class_id] : self.first[class_id] + self.count[class_id]]

    def with_splits(self, **splits: np.ndarray | Sequence[int] | None) -> Images:
        """Return the same table with other splits.

        Args:
            **splits: Class ids by split; None removes a split. Splits that are not named stay.

        Returns:
            The table.

        Raises:
            DataError: If the splits do not fit the table.
        """
        kept = {**self.splits, **splits}
        return replace(self, splits={name: ids for name, ids in kept.items() if ids is not None})


def by_group(
    table: Images, split: str = "train", fraction: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the classes of a split into two parts, groups being kept whole.

    For the experiment with new tasks:

        old, new = by_group(table, "train", fraction=0.5, seed=0)
        table.with_splits(train=old), table.with_splits(train=new)

    Args:
        table: The table.
        split: The split.
        fraction: The fraction of groups in the first part, rounded, at least one group in each part.
        seed: Draws these groups.

    Returns:
        The class ids of the two parts, int32.

    Raises:
        ConfigError: If the fraction is not between 0 and 1.
        DataError: If the split has one group only.
    """
    require_number("by_group", 0, 1, open=True, fraction=fraction)
    ids = table.ids(split)
    present = sorted({table.groups[i] for i in ids})
    if len(present) < 2:
        raise DataError(f"by_group: expected two groups or more in {split!r}, got {some_of(present)}.")
    number = min(max(round(fraction * len(present)), 1), len(present) - 1)
    chosen = set(shuffled(present, seed)[:number])
    inside = np.array([table.groups[i] in chosen for i in ids])
    return ids[inside], ids[~inside]


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """Return names in an order drawn by a seed: sorted by a hash, so the same under every NumPy version.

    Args:
        names: The names.
        seed: The seed.

    Returns:
        The names in that order.
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def image_files(folder: str | Path, flat: bool = False) -> dict[str, list[Path]]:
    """Return the image files of a folder, by class.

    A class is a folder with images in it, at any depth; its name is its path, such as "Greek/alpha". Hidden
    files and files that are not images by their names (those of PNG, JPEG, GIF, BMP, TIFF, WebP, PGM and PPM)
    are excluded; a warning names the images among them.

    Args:
        folder: The folder.
        flat: Whether images may lie directly inside; their class is then "".

    Returns:
        Class names to files, both sorted by name.

    Raises:
        DataError: If the folder is missing or empty, a class is empty, or images lie beside folders.

    Warns:
        RuntimeWarning: If there are images of a kind that cannot be read, such as HEIC, or images without the
            suffix of one in their names.
    """
    folder = Path(folder).expanduser()
    expected = "a folder of images" if flat else "a folder with one folder of images for each class"
    example = folder / "1.png" if flat else folder / "apple" / "1.png"
    entries, loose = _listing(folder, expected, f"an example of an image is {example}"), _images_in(folder)
    below = [entry.name for entry in entries if entry.is_dir()]
    held = found_images(folder)
    if loose or held.classes:
        _warn_of_passed(folder, held)
    if loose and flat and not below:
        return {"": loose}
    if loose or not below:
        beside = f" beside the folders {some_of(below)}" if below else ""
        given = f"images, {some_of(loose)}{beside}" if loose else _held(entries)
        where = "directly in it" if flat else "in a folder named after its class"
        raise DataError(
            f"{folder}: expected {expected}, got {given}. Hint: put each image ({', '.join(SUFFIXES)}) "
            f"{where}, for example {example}."
        )
    for name in below:
        if not any(known == name or known.startswith(f"{name}/") for known in held.classes):
            entries = _listing(folder / name)
            hint = f"put its images there, for example {folder / name / '1.png'}."
            if any(entry.suffix.lower() in HEIC for entry in entries):
                hint = AS_PNG.removeprefix("Hint: ")
            raise DataError(
                f"{folder / name}: expected images of the class {name!r}, got {_held(entries)}. Hint: {hint}"
            )
    return {name: held.classes[name] for name in sorted(held.classes)}


class Found(NamedTuple):
    """What lies in a folder.

    Attributes:
        classes: The image files of each class, by its name.
        others: Files that are not images by their names, by suffix: how many.
        loose: Images that are in no folder of a class.
        passed: The files that `others` counts.
    """

    classes: dict[str, list[Path]]
    others: Counter[str]
    loose: list[Path]
    passed: list[Path]


def found_images(folder: Path) -> Found:
    """Return the images in a folder and in the folders below it, links included.

    Args:
        folder: The folder.

    Returns:
        What lies in it; a class for each folder below that has images directly in it.
    """
    classes: dict[str, list[Path]] = {}
    passed: list[Path] = []
    loose: list[Path] = []
    seen = {os.path.realpath(folder)}  # a link may lead back
    for place, below, names in os.walk(folder, followlinks=True):
        inside = {name: os.path.realpath(Path(place) / name) for name in below}
        below[:] = sorted(n for n in below if not n.startswith((".", "__MACOSX")) and inside[n] not in seen)
        seen |= {inside[name] for name in below}
        files = [Path(place) / name for name in sorted(names) if not name.startswith(".")]
        images = [file for file in files if file.suffix.lower() in SUFFIXES]
        passed += [file for file in files if file.suffix.lower() not in SUFFIXES]
        if Path(place) == folder:
            loose = images
        elif images:
            classes[Path(place).relative_to(folder).as_posix()] = images
    others = Counter(file.suffix.lower() or "without a suffix" for file in passed)
    return Found(classes, others, loose, passed)


def _warn_of_passed(folder: Path, held: Found) -> None:
    """Warn of images that are excluded because of their names."""
    unread = [suffix for suffix in HEIC if held.others[suffix]]
    said = []
    if unread:
        count = sum(held.others[suffix] for suffix in unread)
        said.append(f"{count} images are excluded, as {', '.join(unread)} cannot be read. {AS_PNG}")
    unnamed = [file for file in held.passed if file.suffix.lower() not in HEIC and is_image(file)]
    if unnamed:
        said.append(
            f"{len(unnamed)} images are excluded, as their names end in none of {', '.join(SUFFIXES)} "
            f"({some_of(unnamed)}). Hint: rename them."
        )
    for what in said:
        warnings.warn(f"{folder}: {what}", RuntimeWarning, stacklevel=4)


def read_files(files: Sequence[Path], side: int, channels: int) -> np.ndarray:
    """Read image files in parallel threads, with lines of progress.

    The array is kept in `user_cache()` by the names, sizes and times of change of the files.

    Args:
        files: The files.
        side: Pixels a side.
        channels: 1 for drawings, whose ink is stretched to 1, or 3.

    Returns:
        uint8 ``(n, side, side, channels)``.

    Raises:
        DataError: If an image cannot be read.
    """

    def one(file: Path) -> np.ndarray:
        values = read_image(file, side, channels, stretch=channels == 1)
        return np.rint(255 * values).reshape(side, side, channels).astype(np.uint8)

    def read() -> np.ndarray:
        pixels = np.empty((len(files), side, side, channels), np.uint8)
        said = time.monotonic()
        if len(files) > MANY:
            note(f"reading {len(files):,} images; they are cached for the next run")
        threads = ThreadPoolExecutor(usable_cores())  # Pillow decodes without the interpreter's lock
        try:
            for row, image in enumerate(threads.map(one, files)):
                pixels[row] = image
                if len(files) > MANY and time.monotonic() - said > EVERY:
                    said = time.monotonic()
                    note(f"read {row + 1:,} of {len(files):,} images")
        finally:
            threads.shutdown(cancel_futures=True)
        return pixels

    statuses = [(file, regular_file(file)) for file in files]
    stamps = [(str(file.resolve()), status.st_size, status.st_mtime_ns) for file, status in statuses]
    key = hashlib.sha256(repr((FORMAT, side, channels, stamps)).encode()).hexdigest()[:32]
    return cached_array(f"images-{key}", read)


class Drawings(NamedTuple):
    """The images of a folder.

    Attributes:
        images: float32 ``(n, side, side)`` or ``(n, side, side, 3)``.
        labels: The class of each.
        files: The file of each.
    """

    images: np.ndarray
    labels: list[str]
    files: list[Path]


def read_image_folder(path: str | Path, side: int = 28, channels: int = 1, flat: bool = False) -> Drawings:
    """Read the images of a folder.

    They come in the order of `image_files`; `read_image` says how one is read. The ink of drawings is
    stretched to 1.

    Args:
        path: The folder.
        side: Pixels a side.
        channels: 1 or 3.
        flat: Whether images lie directly inside, instead of in a folder a class.

    Returns:
        Values in [0, 1], 1 = ink for one channel; labels; files.

    Raises:
        DataError: If it is no such folder, or an image cannot be read.
    """
    found = [(file, name) for name, members in image_files(path, flat).items() for file in members]
    images = np.stack([read_image(file, side, channels, stretch=channels == 1) for file, _ in found])
    return Drawings(images, [name for _, name in found], [file for file, _ in found])


def read_split_folders(path: str | Path, side: int = 84, channels: int = 3) -> Images:
    """Read a folder in one of the usual layouts of mini-ImageNet, with its splits.

    Either train/, val/ (or validation/) and test/ with a folder of images for each class; or train.csv,
    val.csv (or validation.csv) and test.csv with a line "filename,label" for each image of images/, with or
    without these two words as a header.
    Only train must be there. A class's group is its own name. The table is kept in `user_cache()` by the
    names, sizes and times of change of its files.

    Args:
        path: The folder.
        side: Pixels a side.
        channels: 1 or 3.

    Returns:
        The table.

    Raises:
        DataError: If the layout is another, an image cannot be read or is listed twice, or a class is in two
            splits.
    """
    path = Path(path).expanduser()
    hint = f"an example of an image is {path / 'train' / 'apple' / '1.png'}"
    entries = _listing(path, _LAYOUT, hint)
    found = {split: classes for split in SPLITS if (classes := _split_files(path, split)) is not None}
    if "train" not in found:
        if any(_images_in(entry) for entry in entries if entry.is_dir()):
            hint = f"for a folder with one folder for each class use imaml train images --data {path}"
        raise DataError(f"{path}: expected {_LAYOUT}, got {some_of(entries)}. Hint: {hint}.")
    single = [name for classes in found.values() for name, files in classes.items() if len(files) < 2]
    if single and len(single) < sum(map(len, found.values())):
        warnings.warn(
            f"{path}: {len(single)} classes are excluded, as they have one image ({some_of(single)}).",
            RuntimeWarning,
            stacklevel=2,
        )
        kept = {split: {n: f for n, f in classes.items() if len(f) > 1} for split, classes in found.items()}
        found = {split: classes for split, classes in kept.items() if classes}
    members = [files for classes in found.values() for files in classes.values()]
    # A copy in the support and in the query set, or in training and in test, is not a test.
    twice = [
        file for file, times in Counter(file for group in members for file in group).items() if times > 1
    ]
    if twice:
        raise DataError(
            f"{path}: expected each image once, got {len(twice)} in several lines ({some_of(twice)}). Hint: "
            "remove these lines from the .csv files."
        )
    files, count = [file for group in members for file in group], np.array([len(group) for group in members])

    names = tuple(dict.fromkeys(name for classes in found.values() for name in classes))
    number = {name: index for index, name in enumerate(names)}
    splits = {split: np.array([number[name] for name in classes]) for split, classes in found.items()}
    _checked_splits(splits, count, names)  # before a minute of decoding, not after
    return Images(read_files(files, side, channels), np.cumsum(count) - count, count, names, names, splits)


def cached_array(key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that a function made when it was last called under a key, else call it.

    A file is put in its place by one rename, and its checksum is verified when it is read: a damaged file is
    made anew, a half-written one is never seen. Without a writable folder none is kept.

    Args:
        key: Says what the array is made of.
        make: Makes it.

    Returns:
        The array.
    """
    file = user_cache() / "tables" / f"{key}.npz"
    with (
        contextlib.suppress(OSError, ValueError, EOFError, BadZipFile),
        file.open("rb") as stream,
        np.load(stream) as arrays,
    ):
        return arrays["array"]
    array = make()
    with contextlib.suppress(OSError):
        make_folder(file.parent)
        with replacing(file, durable=True) as part, part.open("wb") as stream:
            np.savez(stream, array=array)
    return array


def _integers(what: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{what}: expected integers (n,), at least one, got {array.dtype} {array.shape}.")
    return array.astype(np.int32)


def _require_distinct(what: str, names: Sequence[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise DataError(f"{what}: expected each class once, got {name!r} {times} times.")


def _check_rows(first: np.ndarray, count: np.ndarray, names: Sequence[str], rows: int) -> None:
    """Check that each class has rows of the table, and shares none (DataError)."""
    for name, start, number in zip(names, first.tolist(), count.tolist(), strict=True):
        if start < 0 or number < 1 or start + number > rows:
            raise DataError(
                f"class {name!r}: expected at least one image within the table's {rows} rows, got {number} "
                f"from row {start}."
            )
    order = np.argsort(first, kind="stable")
    for one, two in pairwise(order):
        if first[one] + count[one] > first[two]:
            raise DataError(f"classes {names[one]!r} and {names[two]!r}: expected no common rows, got some.")


def _class_ids(what: str, values: ArrayLike, names: tuple[str, ...]) -> np.ndarray:
    ids = _integers(what, values)
    if ids.min() < 0 or ids.max() >= len(names):
        raise DataError(f"{what}: expected ids from 0 to {len(names) - 1}, got {ids.min()} to {ids.max()}.")
    _require_distinct(what, [names[i] for i in ids.tolist()])
    return ids


def _checked_splits(
    splits: Mapping[str, ArrayLike], count: np.ndarray, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    for split in splits:
        if split not in SPLITS:
            raise DataError(not_one_of("splits", split, SPLITS))
    checked = {split: _class_ids(f"split {split!r}", ids, names) for split, ids in splits.items()}
    owner: dict[int, str] = {}
    for split, ids in checked.items():
        for i in ids.tolist():
            if owner.setdefault(i, split) != split:
                raise DataError(
                    f"class {names[i]!r}: expected it in one split, got {owner[i]!r} and {split!r}. Hint: "
                    "remove it from one of them."
                )
            if count[i] < 2:
                raise DataError(
                    f"class {names[i]!r}: expected at least 2 images, as it is in the split {split!r}, got "
                    "1. Hint: add one or drop the class."
                )
    return checked


def _listing(folder: Path, expected: str = "a folder that can be listed", example: str = "") -> list[Path]:
    """What is in a folder, without hidden files (DataError)."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))
    except OSError as error:
        kinds = {FileNotFoundError: "no such folder", NotADirectoryError: "a file"}
        found = kinds.get(type(error), f"an error ({reason(error)})")
        hint = f"check the path{example and '; '}{example}"
        raise DataError(f"{folder}: expected {expected}, got {found}. Hint: {hint}.") from None


def _held(entries: Sequence[Path]) -> str:
    """What a folder without images holds, for a message."""
    return f"no images but {some_of(entries)}" if entries else "an empty folder"


def _images_in(folder: Path) -> list[Path]:
    # A FIFO or a broken link with an image's name is kept: `read_image` raises an error with its name.
    return [entry for entry in _listing(folder) if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]


def _split_files(path: Path, split: str) -> dict[str, list[Path]] | None:
    """Class name -> files of one split, None if neither its folder nor its csv is there."""
    for name in _SPLIT_FOLDERS[split]:
        if (path / name).is_dir():
            return image_files(path / name)
        if (path / f"{name}.csv").is_file():
            return _csv_files(path / f"{name}.csv")
    return None


def _csv_files(table: Path) -> dict[str, list[Path]]:
    expected = 'the header "filename,label", then one image of images/ a line'
    classes: dict[str, list[Path]] = {}
    try:
        rows = list(csv.reader(table.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: expected {expected}, got an error ({error}).") from None
    # The first line is an image's, too, if it names one: tables without a header are as common.
    headed = not rows or not rows[0] or Path(rows[0][0].strip()).suffix.lower() not in SUFFIXES
    for line, row in enumerate(rows[headed:], start=1 + headed):
        name, label, *_ = [*map(str.strip, row), "", ""]
        file = Path(os.path.normpath(table.parent / "images" / name))
        if row and not (name and label and file.is_file()):
            raise DataError(
                f"{table}, line {line}: expected {expected}, got {row}, and {file} is not a file."
            )
        if row:
            classes.setdefault(label, []).append(file)
    if not classes:
        raise DataError(f"{table}: expected {expected}, got no images.")
    return classes
