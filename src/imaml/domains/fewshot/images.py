"""Labelled image tables in memory, and image files read into them: NumPy only, no JAX.

old, new = by_group(table, "train", fraction=0.5, seed=0)    # two halves of the training classes
images, labels, files = read_image_folder("drawings/")       # a folder a class; float32 (n, 28, 28), 1 = ink
"""

import contextlib
import csv
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imaml.core.errors import ConfigError, DataError
from imaml.core.validation import lacks, some_of
from imaml.domains.fewshot.pixels import FORMATS, read_image, regular_file

from ...core.machine import user_cache

SPLITS = ("train", "validation", "test")
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
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
        """Checks everything and makes the arrays read-only."""
        pixels = np.asarray(self.pixels)
        if pixels.dtype != np.uint8:
            raise DataError(
                f"pixels are {pixels.dtype}; accepted is uint8, 0 to 255: "
                "for values in [0, 1] pass np.rint(255 * pixels).astype(np.uint8)"
            )
        if pixels.ndim != 4 or pixels.size == 0:
            raise DataError(
                f"pixels have shape {pixels.shape}; accepted is (rows, height, width, channels), "
                "none of them 0: add a last axis of length 1 to grey images"
            )
        first, count = _integers(self.first, "first"), _integers(self.count, "count")
        names, groups = tuple(map(str, self.names)), tuple(map(str, self.groups))
        lengths = {"first": len(first), "count": len(count), "names": len(names), "groups": len(groups)}
        if len(set(lengths.values())) != 1 or not names:
            raise DataError(f"the table has {lengths} entries; accepted is one a class in each, at least one")
        _check_unique(names, "class name")
        _check_rows(first, count, names, len(pixels))
        splits = _checked_splits(self.splits, count, names)
        for array in (first, count, *splits.values()):
            array.setflags(write=False)
        pixels = pixels.view()
        pixels.setflags(write=False)
        values = {"pixels": pixels, "first": first, "count": count, "names": names, "groups": groups}
        for name, value in (*values.items(), ("splits", splits)):
            object.__setattr__(self, name, value)

    @property
    def classes(self) -> int:
        """How many classes the table has, in and out of splits."""
        return len(self.names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of one image."""
        return tuple(self.pixels.shape[1:])  # pyright: ignore[reportReturnType]

    def ids(self, split: str) -> np.ndarray:
        """The class ids of a split, int32, in the order in which they were given."""
        if split not in self.splits:
            raise DataError(
                f"the table has no split {split!r} but {some_of(tuple(self.splits))}: "
                "choose one of these, or add it by with_splits"
            )
        return self.splits[split]

    def of(self, class_id: int) -> np.ndarray:
        """One class's images, uint8 (n, height, width, channels): a view, not a copy."""
        return self.pixels[self.first[class_id] : self.first[class_id] + self.count[class_id]]

    def with_splits(self, **splits: np.ndarray | Sequence[int] | None) -> "Images":
        """The same table with the splits named replaced, or taken away with None; the others stay."""
        kept: dict[str, Any] = {**self.splits, **splits}
        return replace(self, splits={name: ids for name, ids in kept.items() if ids is not None})

    def subset(self, class_ids: np.ndarray | Sequence[int]) -> "Images":
        """A table of these classes alone, renumbered in the order given; rows are copied, splits shrink."""
        chosen = _class_ids(class_ids, "subset", self.names)
        number = {int(old): new for new, old in enumerate(chosen)}
        splits = {name: [number[i] for i in ids.tolist() if i in number] for name, ids in self.splits.items()}
        count = self.count[chosen]
        return Images(
            np.concatenate([self.of(i) for i in chosen]),
            np.cumsum(count) - count,
            count,
            tuple(self.names[i] for i in chosen),
            tuple(self.groups[i] for i in chosen),
            {name: np.array(ids, np.int32) for name, ids in splits.items() if ids},
        )


def by_group(
    table: Images,
    split: str = "train",
    *,
    names: Iterable[str] | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The class ids of a split in two parts, int32: those of the groups chosen, and those of all others.

    Give either the groups' `names` or the `fraction` of groups (rounded, at least one on each side) that a
    seeded shuffle puts first. Groups are kept whole. For the experiment with new tasks:

        old, new = by_group(table, "train", fraction=0.5, seed=0)
        table.with_splits(train=old), table.with_splits(train=new)
    """
    ids = table.ids(split)
    present = sorted({table.groups[i] for i in ids})
    if (names is None) == (fraction is None):
        raise ConfigError("by_group takes either names or a fraction, and not both")
    if names is not None:
        chosen = set(names)
        unknown = sorted(chosen - set(present))
        if unknown:
            raise DataError(f"no group {unknown[0]!r} in split {split!r}; accepted are {some_of(present)}")
    else:
        assert fraction is not None
        if not 0 < fraction < 1:
            raise ConfigError(f"fraction is {fraction}; accepted is a number between 0 and 1")
        if len(present) < 2:
            raise DataError(f"the split {split!r} has one group, {present[0]!r}; accepted are two or more")
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

    A class is a folder directly inside. Hidden files and files that are no images by their names (those of
    PNG, JPEG, GIF, BMP, TIFF, WebP, PGM and PPM) are passed over.

    Args:
        folder: The folder.
        flat: Whether images may lie directly inside; their class is then "".

    Returns:
        Class names to files, both sorted by name.

    Raises:
        DataError: If the folder is missing or empty, a class is empty, or images lie beside folders.
    """
    folder = Path(folder).expanduser()
    accepted = f"accepted is a folder with one folder of images for each class ({', '.join(SUFFIXES)})"
    accepted += ", or with images directly inside" if flat else ""
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; {accepted}")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; {accepted}")
    found = [entry for entry in _listing(folder) if entry.is_dir()]
    loose = _images_in(folder)
    if found and loose:
        raise DataError(
            f"{folder} holds both folders (such as {found[0].name}) and images (such as "
            f"{loose[0].name}); {accepted}: move the images into a class's folder"
        )
    if loose and not flat:
        raise DataError(
            f"{folder} holds images directly (such as {loose[0].name}); {accepted}, "
            "the folder's name being the class"
        )
    if not found and not loose:
        raise DataError(f"{folder} {lacks('images', _listing(folder))}; {accepted}")
    if loose:
        return {"": loose}
    classes = {entry.name: _images_in(entry) for entry in found}
    for name, files in classes.items():
        if not files:
            below = [entry.name for entry in _listing(folder / name) if entry.is_dir()]
            deeper = f"did you mean {folder / name}, which has {some_of(below)}?"
            raise DataError(
                f"{folder / name} holds no images, so the class {name!r} is empty; {accepted}: "
                + (deeper if below else "add images or remove the folder")
            )
    return classes


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

    They come in the order of `image_files`, which says what is refused; `read_image` says how one is read.

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
    images = np.stack([read_image(file, side, channels) for file, _ in found])
    return Drawings(images, [name for _, name in found], [file for file, _ in found])


def read_split_folders(path: str | Path, side: int = 84, channels: int = 3, cache: bool = True) -> Images:
    """The table of a folder in one of the usual layouts of mini-ImageNet, with its splits.

    Either train/, val/ (or validation/) and test/ with a folder of images for each class; or train.csv,
    val.csv (or validation.csv) and test.csv with lines "filename,label" below a header line, beside images/.
    Only train must be there. A class in two splits is refused. A class's group is its own name. The table is
    cached in `user_cache()` by the names, sizes and times of change of its files; `cache=False` reads anew.
    """
    path = Path(path).expanduser()
    accepted = (
        "accepted is train/, val/ and test/ with a folder of images for each class, "
        "or train.csv, val.csv and test.csv beside images/"
    )
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; {accepted}")
    found = {split: classes for split in SPLITS if (classes := _split_files(path, split)) is not None}
    if "train" not in found:
        raise DataError(f"{path} has no train/ and no train.csv but {some_of(_listing(path))}; {accepted}")
    owner: dict[str, str] = {}
    for split, classes in found.items():
        for name in classes:
            if owner.setdefault(name, split) != split:
                raise DataError(
                    f"{path}: the class {name!r} is in the splits {owner[name]!r} and {split!r}; "
                    "accepted are splits without a class in common: remove it from one of them"
                )
    files = [file for classes in found.values() for members in classes.values() for file in members]
    count = np.array([len(members) for classes in found.values() for members in classes.values()])

    def decoded() -> np.ndarray:
        pixels = np.empty((len(files), side, side, channels), np.uint8)
        for row, file in enumerate(files):
            pixels[row] = np.rint(255 * read_image(file, side, channels)).reshape(side, side, channels)
        return pixels

    number = {name: index for index, name in enumerate(owner)}
    splits = {split: np.array([number[name] for name in members]) for split, members in found.items()}
    names = tuple(owner)
    _checked_splits(splits, count, names)  # before a minute of decoding, not after
    if cache:
        statuses = [regular_file(file) for file in files]
        stamps = [
            (str(file.resolve()), status.st_size, status.st_mtime_ns)
            for file, status in zip(files, statuses, strict=True)
        ]
        key = hashlib.sha256(repr((1, side, channels, stamps)).encode()).hexdigest()[:32]
        pixels = cached_array(f"folders-{key}", decoded)
    else:
        pixels = decoded()
    return Images(pixels, np.cumsum(count) - count, count, names, names, splits)


def cached_array(key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that a function made when it was last called under a key, else call it.

    A file's name carries the SHA-256 of its bytes, and it is put there by one rename: a damaged file is
    noticed, removed and made anew, a half-written one is never seen. Without a writable folder none is kept.

    Args:
        key: Says what the array is made of.
        make: Makes it.

    Returns:
        The array.
    """
    folder = user_cache() / "tables"
    for file in folder.glob(f"{key}-*.npy"):
        with contextlib.suppress(OSError, ValueError):
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if file.stem == f"{key}-{digest}":
                return np.load(file, allow_pickle=False)
            file.unlink()
    array = make()
    part = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
        with os.fdopen(handle, "w+b") as stream:
            np.save(stream, array)
            stream.flush()
            os.fsync(stream.fileno())
            stream.seek(0)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.replace(part, folder / f"{key}-{digest}.npy")
    except OSError:
        pass
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)
    return array


def _integers(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name} is {array.dtype} of shape {array.shape}; accepted is one integer a class")
    return array.astype(np.int32)


def _check_unique(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise DataError(f"the {what} {twice!r} came twice; accepted are unique names")


def _check_rows(first: np.ndarray, count: np.ndarray, names: Sequence[str], rows: int) -> None:
    outside = (first < 0) | (count < 1) | (first.astype(np.int64) + count > rows)
    if outside.any():
        worst = int(np.argmax(outside))
        raise DataError(
            f"the class {names[worst]!r} has {count[worst]} images from row {first[worst]}; "
            f"accepted is at least one image within the table's {rows} rows"
        )
    order = np.argsort(first, kind="stable")
    shared = first[order][:-1] + count[order][:-1] > first[order][1:]
    if shared.any():
        one, two = (names[order[int(np.argmax(shared)) + step]] for step in (0, 1))
        raise DataError(f"the classes {one!r} and {two!r} share rows; accepted is one class for every image")


def _class_ids(values: np.ndarray | Sequence[int], split: str, names: tuple[str, ...]) -> np.ndarray:
    ids = np.asarray(values)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"the split {split!r} is {ids.dtype} of shape {ids.shape}; accepted is a list of at "
            "least one class id: leave an empty split out"
        )
    if ids.min() < 0 or ids.max() >= len(names):
        raise DataError(
            f"the split {split!r} has class ids from {ids.min()} to {ids.max()}; "
            f"accepted is 0 to {len(names) - 1}"
        )
    _check_unique([names[i] for i in ids], f"class of the split {split!r},")
    return ids.astype(np.int32)


def _checked_splits(
    splits: Mapping[str, np.ndarray], count: np.ndarray, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    unknown = [name for name in splits if name not in SPLITS]
    if unknown:
        raise DataError(f"a split is called {unknown[0]!r}; accepted are {', '.join(SPLITS)}")
    checked = {split: _class_ids(ids, split, names) for split, ids in splits.items()}
    owner: dict[int, str] = {}
    for split, ids in checked.items():
        for i in ids.tolist():
            if owner.setdefault(i, split) != split:
                raise DataError(
                    f"the class {names[i]!r} is in the splits {owner[i]!r} and {split!r}; "
                    "accepted are splits without a class in common: remove it from one of them"
                )
            if count[i] < 2:
                raise DataError(
                    f"the class {names[i]!r} of the split {split!r} has 1 image; accepted are at "
                    "least 2, one to learn from and one to be asked: add one or drop the class"
                )
    return checked


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith((".", "__MACOSX")))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}): make it readable") from None


def _images_in(folder: Path) -> list[Path]:
    # A FIFO or a broken link with an image's name is kept, for `read_image` to refuse it by its name.
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
    accepted = 'accepted is the header "filename,label", then one image a line'
    classes: dict[str, list[Path]] = {}
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} cannot be read ({error}); {accepted}") from None
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise DataError(f"{table}, line {line} is {','.join(row)!r}; {accepted}")
        file = table.parent / "images" / row[0].strip()
        if not file.is_file():
            raise DataError(
                f"{table}, line {line} names {row[0].strip()}, but there is no {file}; "
                "accepted is that every file named lies in images/"
            )
        classes.setdefault(row[1].strip(), []).append(file)
    if not classes:
        raise DataError(f"{table} names no images; {accepted}")
    return classes
