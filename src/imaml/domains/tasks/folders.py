"""A folder of images as labelled arrays: a folder a class."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...core.errors import DataError
from ...core.tree import Tree
from ...core.validation import some_of
from ..fewshot.images import AS_PNG, HEIC, SUFFIXES, found_images, image_files, read_files

SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
SPREAD = 0.1  # between an image's darkest and brightest pixel, below which it is nearly blank


class Classes(NamedTuple):
    """The images of a folder.

    Attributes:
        images: uint8 ``(n, side, side, channels)``.
        labels: The class of each.
        split: The split of each, or None if the folder has none.
    """

    images: np.ndarray
    labels: list[str]
    split: list[str] | None


def read_classes(path: Path, side: int, channels: int) -> Classes:
    """Read a folder of images, with a folder for each class.

    A class is a folder with images directly in it, at any depth; its name is its path, as "Greek/alpha". If
    the folder has a folder train/, then train/, val/ (or validation/) and test/ are the splits. What was read
    is kept in `user_cache()` by the names, sizes and times of change of the files.

    Args:
        path: The folder.
        side: Pixels a side of what images are shrunk to.
        channels: 1 for drawings, whose ink is stretched to 1 on paper of 0, or 3 for photographs.

    Returns:
        The images of all classes that have two or more.

    Raises:
        DataError: If there is no such folder, it has fewer than two classes, a class is in two splits, or an
            image cannot be read.

    Warns:
        RuntimeWarning: If files are not images, a class has one image only, or an image is nearly blank.
    """
    path = path.expanduser()
    if not path.is_dir():
        got = "a file" if path.exists() else "no such folder"
        raise DataError(
            f"{path}: expected a folder with one folder of images for each class, got {got}. Hint: check the "
            "path."
        )
    splits = _splits(path)
    classes: dict[str, list[Path]] = {}
    split_of: dict[str, str] = {}
    others: Counter[str] = Counter()
    loose: list[Path] = []
    for folder in splits or [path]:
        found = found_images(folder)
        split = splits.get(folder, "")
        for name, files in found.classes.items():
            if split_of.setdefault(name, split) != split:
                raise DataError(
                    f"{path}: expected each class in one split, got {name!r} in {split_of[name]!r} and "
                    f"{split!r}. Hint: the classes of validation and test are new ones."
                )
            classes.setdefault(name, []).extend(files)
        others += found.others
        loose += found.loose
    _warn_of_others(path, others, loose, bool(classes))
    small = sorted(name for name, files in classes.items() if len(files) < 2)
    if small:
        _warn(f"{path}: {len(small)} of {len(classes)} classes are excluded, as they have one image", small)
    kept = {name: sorted(files) for name, files in sorted(classes.items()) if len(files) > 1}
    if len(kept) < 2:
        held = f"{len(kept)} of at least two images" if classes else _held(others, loose)
        raise DataError(
            f"{path}: expected at least two folders of images, one for each class, got {held}. Hint: put "
            f"images ({', '.join(SUFFIXES)}) into folders named after their classes, for example "
            f"{path / 'apple' / '1.png'}."
        )
    images = read_files([file for files in kept.values() for file in files], side, channels)
    labels = [name for name, files in kept.items() for _ in files]
    _warn_of_blank(path, images, [file for files in kept.values() for file in files])
    return Classes(images, labels, [split_of[name] for name in labels] if splits else None)


def read_images(path: Tree, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str] | None]:
    """Read images of one task as `read_classes` reads them.

    Args:
        path: An image, a list of images, a folder of images, or a folder with a folder for each class.
        shape: ``(side, side, channels)`` of the run's images.

    Returns:
        uint8 ``(n, *shape)``, and the class of each; None if they are not in folders of classes.

    Raises:
        DataError: If there are none, or one cannot be read.
    """
    files, labels = files_of(path)
    return read_files(files, shape[0], shape[2]), labels


def files_of(path: Tree) -> tuple[list[Path], list[str] | None]:
    """Return the image files of one task.

    Args:
        path: See `read_images`.

    Returns:
        The files, and the class of each; None if they are not in folders of classes.

    Raises:
        DataError: If there are none, or one is missing.
    """
    places = [Path(item).expanduser() for item in ([path] if isinstance(path, str | Path) else path)]
    files, labels = places, None
    if len(places) == 1 and places[0].is_dir():
        found = image_files(places[0], flat=True)
        files = [file for members in found.values() for file in members]
        names = [name for name, members in found.items() for _ in members]
        labels = None if list(found) == [""] else names
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: expected an image or a folder of images, got no such file.")
    return files, labels


def image_paths(path: str | Path) -> list[Path]:
    """Return the files that `read_classes` reads.

    Args:
        path: The folder.

    Returns:
        The images of all classes.
    """
    found = found_images(Path(path).expanduser())
    return [file for files in found.classes.values() for file in files]


def _splits(path: Path) -> dict[Path, str]:
    """The folders of splits; none if there is no train/, or it has images directly in it and is a class."""
    train = path / "train"
    if not train.is_dir() or any(file.suffix.lower() in SUFFIXES for file in train.iterdir()):
        return {}
    inside = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    left = [entry.name for entry in inside if entry.name not in SPLITS]
    if left:
        _warn(f"{path}: {len(left)} folders are excluded, as they are none of train/, val/ and test/", left)
    return {path / name: split for name, split in SPLITS.items() if (path / name).is_dir()}


def _warn_of_others(path: Path, others: Counter[str], loose: list[Path], classes: bool) -> None:
    """Warn of files that are excluded."""
    if others and classes:
        listed = [f"{count:,} {suffix}" for suffix, count in others.most_common()]
        hint = f" {AS_PNG}" if any(suffix in others for suffix in HEIC) else ""
        _warn(f"{path}: {others.total():,} files are excluded, as they have no known suffix", listed, hint)
    if loose and classes:
        _warn(f"{path}: {len(loose)} images are excluded, as they are not in the folder of a class", loose)


def _warn_of_blank(path: Path, images: np.ndarray, files: list[Path]) -> None:
    """Warn of images with almost no difference between their pixels."""
    flat = images.reshape(len(images), -1)
    spread = flat.max(axis=1).astype(np.int64) - flat.min(axis=1)
    blank = [
        file.relative_to(path).as_posix()
        for file, one in zip(files, spread, strict=True)
        if one < 255 * SPREAD
    ]
    if blank:
        side = images.shape[1]
        hint = " Hint: crop what is drawn, or draw it in thicker lines." if images.shape[-1] == 1 else ""
        _warn(f"{path}: {len(blank)} images are nearly blank at {side} x {side} pixels", blank, hint)


def _warn(message: str, names: list[str] | list[Path], hint: str = "") -> None:
    warnings.warn(f"{message} ({some_of(names)}).{hint}", RuntimeWarning, stacklevel=5)


def _held(others: Counter[str], loose: list[Path]) -> str:
    """What a folder without classes holds."""
    if loose:
        return f"images directly in it ({some_of(loose)})"
    if others:
        return f"no images but files {some_of(sorted(others))}"
    return "an empty folder"
