"""Labelled image tables, image files of every kind, and the folders that are refused."""

import os
import socket
import struct
import warnings
import zlib

import jax
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from imaml.core.errors import ConfigError, DataError
from imaml.domains.fewshot import images
from imaml.domains.fewshot.domain import FewShotRecipe
from imaml.domains.fewshot.images import (
    Images,
    by_group,
    cached_array,
    image_files,
    read_files,
    read_image_folder,
    read_split_folders,
)
from imaml.domains.fewshot.pixels import (
    FORMATS,
    MOST_BYTES,
    MOST_PIXELS,
    MOST_SIDE,
    area_average,
    area_sums,
    open_image,
    read_image,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def table(**changes):
    """Six classes of 3 images in three groups, one split each pair, with the fields given exchanged."""
    pixels = np.random.default_rng(0).integers(0, 256, (18, 4, 5, 1), np.uint8)
    fields = {
        "pixels": pixels,
        "first": np.arange(0, 18, 3),
        "count": np.full(6, 3),
        "names": tuple("abcdef"),
        "groups": ("one", "one", "two", "two", "three", "three"),
        "splits": {"train": [0, 1, 2, 3], "validation": [4], "test": [5]},
    }
    return Images(**{**fields, **changes})


def test_table_is_what_was_given_and_read_only():
    made = table()
    assert made.classes == 6
    assert made.image_shape == (4, 5, 1)
    assert made.first.dtype == made.count.dtype == made.ids("train").dtype == np.int32
    np.testing.assert_array_equal(made.of(2), made.pixels[6:9])
    for array in (made.pixels, made.first, made.count, made.ids("test")):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


BAD_TABLES = {
    "float pixels": ({"pixels": np.zeros((18, 4, 5, 1))}, "pixels: expected uint8 .*got float64.*np.rint"),
    "no channel axis": (
        {"pixels": np.zeros((18, 4, 5), np.uint8)},
        r"pixels: expected .*got uint8 \(18, 4, 5\)\..*add a last",
    ),
    "no rows": ({"pixels": np.zeros((0, 4, 5, 1), np.uint8)}, r"got uint8 \(0, 4, 5, 1\)"),
    "float counts": ({"count": np.full(6, 3.0)}, r"count: expected integers .*got float64 \(6,\)"),
    "one name too few": ({"names": tuple("abcde")}, "expected one entry a class.*got .*'names': 5"),
    "no classes": (
        {"names": (), "groups": (), "first": np.zeros(0, int), "count": np.zeros(0, int)},
        r"first: expected integers \(n,\), at least one",
    ),
    "a name twice": ({"names": tuple("abcdea")}, "names: expected each class once, got 'a' 2 times"),
    "rows beyond the table": (
        {"count": np.array([3, 3, 3, 3, 3, 4])},
        "class 'f': expected .*18 rows, got 4 from row 15",
    ),
    "shared rows": (
        {"first": np.array([0, 2, 6, 9, 12, 15])},
        "classes 'a' and 'b': expected no common rows",
    ),
    "overlapping splits": (
        {"splits": {"train": [0, 1], "test": [1, 2]}},
        "class 'b': expected it in one split, got 'train' and 'test'",
    ),
    "a class twice in a split": (
        {"splits": {"train": [0, 0]}},
        "split 'train': expected each class once, got 'a' 2 times",
    ),
    "a split of unknown name": (
        {"splits": {"val": [0]}},
        "splits: expected one of test, train, validation, got 'val'",
    ),
    "an id too high": ({"splits": {"train": [6]}}, "expected ids from 0 to 5, got 6 to 6"),
    "a negative id": ({"splits": {"train": [-1]}}, "expected ids from 0 to 5, got -1 to -1"),
    "an empty split": ({"splits": {"train": []}}, "split 'train': expected integers .*at least one"),
    "a class with one image": (
        {"count": np.array([3, 1, 3, 3, 3, 3])},
        "class 'b': expected at least 2 images.* 'train', got 1.*add one or drop",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table_is_refused(case):
    changes, message = BAD_TABLES[case]
    with pytest.raises(DataError, match=message):
        table(**changes)


def test_a_class_with_one_image_may_stay_outside_the_splits():
    made = table(count=np.array([1, 3, 3, 3, 3, 3]), splits={"train": [1, 2]})
    assert made.count[0] == 1


def test_with_splits_replaces_adds_and_removes():
    made = table().with_splits(train=[0], test=None)
    assert list(made.splits) == ["train", "validation"]
    assert made.ids("train").tolist() == [0]
    with pytest.raises(DataError, match="split: expected one of train, validation, got 'test'"):
        made.ids("test")
    with pytest.raises(DataError, match="class 'e': expected it in one split, got 'train' and 'validation'"):
        made.with_splits(train=[4])


def test_by_group_keeps_groups_whole_and_repeats_by_seed():
    made = table().with_splits(train=np.arange(6), validation=None, test=None)
    seen = set()
    for seed in range(20):
        chosen, rest = by_group(made, fraction=1 / 3, seed=seed)
        assert sorted([*chosen, *rest]) == list(range(6))
        assert not {made.groups[i] for i in chosen} & {made.groups[i] for i in rest}
        assert len(chosen) == 2
        np.testing.assert_array_equal(chosen, by_group(made, fraction=1 / 3, seed=seed)[0])
        seen.add(made.groups[chosen[0]])
    assert seen == {"one", "two", "three"}


def test_by_group_leaves_something_on_each_side():
    for fraction in (0.01, 0.99):
        chosen, rest = by_group(table(), fraction=fraction)
        assert len(chosen) == len(rest) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": "test", "fraction": 0.5}, DataError, "expected two groups or more in 'test', got three"),
        ({"fraction": 1.0}, ConfigError, "fraction: expected .*above 0 and below 1, got 1.0"),
    ],
)
def test_by_group_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        by_group(table(), **arguments)


def area_weights(before, after):
    """How much of each old pixel lies in each new one, in parts of which both are whole numbers."""
    unit = int(np.gcd(before, after))
    wide, narrow = before // unit, after // unit
    old, new = np.arange(before) * narrow, np.arange(after)[:, None] * wide
    return np.clip(np.minimum(old + narrow, new + wide) - np.maximum(old, new), 0, None)


@pytest.mark.parametrize(("before", "after"), [(105, 28), (28, 28), (7, 3), (3, 7), (100, 1), (1, 4)])
def test_area_sums_share_every_pixel_out(before, after):
    weights = area_weights(before, after)
    np.testing.assert_array_equal(weights.sum(0), weights[:, 0].sum())
    np.testing.assert_array_equal(area_sums(np.eye(before), after), weights.T)


@pytest.mark.parametrize("side", [28, 20, 130])
def test_area_average_of_bits_is_exact(side):
    bits = np.random.default_rng(0).random((3, 105, 98)) < 0.1
    down, across = area_weights(105, side), area_weights(98, side)
    sums = down @ bits.astype(np.int64) @ across.T
    expected = sums.astype(np.float32) / np.float32(down[0].sum() * across[0].sum())
    np.testing.assert_array_equal(area_average(bits, side), expected)


def test_area_average_is_the_mean_over_blocks():
    image = np.random.default_rng(1).random((2, 12, 20), np.float32)
    blocks = image.reshape(2, 4, 3, 4, 5).mean((2, 4))
    np.testing.assert_allclose(area_average(image, 4), blocks, rtol=1e-6)  # float32, 15 terms
    np.testing.assert_allclose(area_average(image, 7).mean((1, 2)), image.mean((1, 2)), rtol=1e-6)


INK = np.zeros((56, 56), bool)
INK[14:42, 26:30] = True  # an upright stroke in the middle


def grey(dark=0, light=255):
    return np.where(INK, dark, light).astype(np.uint8)


def rgba(ink, paper, alpha_ink=255, alpha_paper=255):
    colour = np.where(INK[..., None], np.uint8(ink), np.uint8(paper)) * np.ones((1, 1, 3), np.uint8)
    alpha = np.where(INK, alpha_ink, alpha_paper).astype(np.uint8)
    return Image.fromarray(np.dstack([colour, alpha]))


def palette(transparent):
    image = Image.fromarray(np.where(INK, 1, 0).astype(np.uint8)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([255, 255, 255, 0, 0, 0] if not transparent else [0, 0, 0, 0, 0, 0])
    if transparent:
        image.info["transparency"] = 0
    return image


DRAWINGS = {
    "grey, dark on light": lambda: Image.fromarray(grey()),
    "grey, light on dark": lambda: Image.fromarray(255 - grey()),
    "1 bit": lambda: Image.fromarray(grey()).convert("1"),
    "16 bits": lambda: Image.fromarray(grey().astype(np.uint16) * 257),
    "colour": lambda: Image.fromarray(grey()).convert("RGB"),
    "opaque RGBA": lambda: rgba(0, 255),
    "black ink on nothing": lambda: rgba(0, 0, 255, 0),
    "white ink on nothing": lambda: rgba(255, 255, 255, 0),
    "grey and alpha": lambda: rgba(0, 0, 255, 0).convert("LA"),
    "palette": lambda: palette(False),
    "palette, transparent paper": lambda: palette(True),
}


@pytest.mark.parametrize("kind", DRAWINGS)
def test_every_kind_of_drawing_is_read_alike(kind, tmp_path):
    DRAWINGS[kind]().save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, area_average(INK, 28), atol=1e-6)


def test_jpeg_is_read_with_its_loss(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg"), area_average(INK, 28), atol=0.1)


def test_oblong_drawing_is_padded_with_its_paper(tmp_path):
    Image.fromarray(grey(30, 220)[:, 20:36]).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", side=14)
    np.testing.assert_allclose(read, area_average((255 - grey(30, 220)) / 255, 14), atol=1e-6)


def test_photograph_keeps_its_brightness_and_turns_upright(tmp_path):
    pixels = np.zeros((20, 10, 3), np.uint8)
    pixels[:10, :, 0] = 255  # the upper half is red
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png", side=4, channels=3)
    assert read.shape == (4, 4, 3)
    np.testing.assert_allclose(read[:2, :, 0], 1, atol=1e-6)
    np.testing.assert_allclose(read[2:], 0, atol=1e-6)


def test_values_stay_within_0_and_1(tmp_path):
    Image.fromarray(np.full((97, 89), 255, np.uint8)).save(tmp_path / "a.png")
    for channels in (1, 3):
        read = read_image(tmp_path / "a.png", side=13, channels=channels)
        assert 0 <= read.min() <= read.max() <= 1


def save(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey()).save(file)


def test_folder_of_classes(tmp_path):
    save(tmp_path, "b/2.png", "b/1.PNG", "a/x.jpg", "a/.hidden.png", "__MACOSX/z.png", ".git/y.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    read = read_image_folder(tmp_path, side=14)
    assert read.images.shape == (3, 14, 14)
    assert read.labels == ["a", "b", "b"]
    assert [file.name for file in read.files] == ["x.jpg", "1.PNG", "2.png"]
    assert read_image_folder(tmp_path, channels=3).images.shape == (3, 28, 28, 3)


def test_flat_folder_where_accepted(tmp_path):
    save(tmp_path, "2.png", "1.png")
    assert [file.name for file in image_files(tmp_path, flat=True)[""]] == ["1.png", "2.png"]
    assert read_image_folder(tmp_path, flat=True).images.shape == (2, 28, 28)


def truncated(tmp_path):
    save(tmp_path, "a/1.png")
    whole = (tmp_path / "a/1.png").read_bytes()
    (tmp_path / "a/1.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def text_as_png(tmp_path):
    save(tmp_path, "a/1.png")
    (tmp_path / "a/1.png").write_text("no image")
    return tmp_path


def wide_pixels(tmp_path):
    save(tmp_path, "a/1.png")
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(tmp_path / "a/2.tiff")
    return tmp_path


def made(*names):
    def make(tmp_path):
        save(tmp_path, *names)
        return tmp_path

    return make


def made_of(*names):
    def make(tmp_path):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("a note")
        return tmp_path

    return make


def with_empty_class(tmp_path):
    save(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    return tmp_path


def a_file(tmp_path):
    save(tmp_path, "1.png")
    return tmp_path / "1.png"


def empty(tmp_path):
    (tmp_path / "nothing").mkdir()
    return tmp_path / "nothing"


BAD_FOLDERS = {
    "missing": (
        lambda path: path / "no",
        "no: expected a folder with one folder of images for each class, got no such folder. Hint: check the "
        r"path; an example of an image is \S+no/apple/1\.png\.$",
    ),
    "a file": (a_file, "1.png: expected a folder .*got a file. Hint: check the path"),
    "empty": (
        empty,
        r"nothing: expected a folder with one folder of images for each class, got an empty folder\. Hint: "
        r"put each image \(\.png, .*\.ppm\) in a folder named after its class, for example "
        r"\S+nothing/apple/1\.png\.$",
    ),
    "other files": (made_of("a.txt", "b.txt"), r"got no images but a\.txt, b\.txt\. Hint: put each image"),
    "flat where classes are wanted": (
        made("1.png"),
        "got images, 1.png. Hint: .* in a folder named after its class",
    ),
    "classes and loose images": (
        made("a/1.png", "2.png"),
        "got images, 2.png beside the folders a. Hint: put each",
    ),
    "an empty class": (
        with_empty_class,
        "b: expected images of the class 'b', got an empty folder. Hint: put its images there, for example "
        r"\S+b/1\.png\.$",
    ),
    "a class of other files": (
        made_of("b/notes.txt"),
        r"b: expected images of the class 'b', got no images but notes\.txt\. Hint: put its images there, "
        r"for example \S+b/1\.png\.$",
    ),
    "images that cannot be read": (
        made_of("b/1.heic"),
        r"b: expected images of the class 'b', got no images but 1\.heic\. Hint: save them as \.png or "
        r"\.jpg\.$",
    ),
    "a truncated image": (
        truncated,
        r"1\.png: expected a PNG, JPEG, GIF, BMP, TIFF, WebP, PGM or PPM image, got one that is damaged or "
        r"of another format \(.*truncated.*\)\. Hint: save it again, for example as PNG; the suffix of its "
        r"name does not count\.$",
    ),
    "text called .png": (
        text_as_png,
        r"1\.png: expected a PNG, JPEG, GIF, BMP, TIFF, WebP, PGM or PPM image, got one that is damaged or "
        r"of another format\. Hint: save it again, for example as PNG; the suffix of its "
        r"name does not count\.$",
    ),
    "float pixels, NaN": (
        wide_pixels,
        "2.tiff: expected 8 or 16 bits a channel, got 32-bit pixels. Hint: save it",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folder_is_refused(case, tmp_path):
    make, message = BAD_FOLDERS[case]
    with pytest.raises(DataError, match=message):
        read_image_folder(make(tmp_path))


def test_a_huge_image_is_refused(tmp_path, monkeypatch):
    save(tmp_path, "1.png")
    for most in (56 * 56 - 1, 56 * 56 // 2 - 1):  # Pillow warns above the one and raises above twice
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with pytest.raises(
            DataError, match=f"1.png: expected .* at most {most:,} pixels, got more. Hint: shrink"
        ):
            read_image(tmp_path / "1.png")


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_named_is_read_by_its_content(format, tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.png", format)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), area_average(INK, 28), atol=0.2)
    Image.fromarray(grey()).save(tmp_path / f"b{FORMATS[format][0]}", format)
    assert len(read_image_folder(tmp_path, flat=True).files) == 2


@pytest.mark.parametrize("format", sorted({"EPS", "ICO", "PCX", "TGA", "JPEG2000", "PDF", "SGI"}))
def test_other_formats_are_not_opened_whatever_the_name(format, tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    try:
        Image.fromarray(grey()).save(tmp_path / "a.png", format)
    except OSError:
        pytest.skip(f"this Pillow cannot write {format}")
    with pytest.raises(DataError, match=r"a\.png: expected a PNG, JPEG, GIF, BMP, TIFF, WebP, PGM or PPM"):
        read_image(tmp_path / "a.png")


def png_of(width, height):
    """A PNG file that says it is so large, with next to nothing in it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "channels"),
    [
        (30_000, 1, 1),
        (1, 30_000, 3),
        (MOST_SIDE + 1, 2, 3),
        (6_325, 1, 1),
        (8_000, 5_001, 3),
        (20_000, 20_000, 1),
        (2**31 - 1, 2**31 - 1, 3),
    ],
)
def test_sizes_are_checked_before_anything_is_decoded_or_padded(
    width, height, channels, tmp_path, monkeypatch
):
    (tmp_path / "a.png").write_bytes(png_of(width, height))
    monkeypatch.setattr(np, "pad", lambda *_, **__: pytest.fail("it was padded"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match=r"a\.png: expected .*40,000,000.* got .*Hint: shrink"):
        read_image(tmp_path / "a.png", channels=channels)


def test_the_largest_sizes_named_are_accepted(tmp_path):
    for width, height, padded in ((6_324, 1, True), (MOST_SIDE, MOST_PIXELS // MOST_SIDE, False)):
        with open_image(png_of(width, height), padded=padded) as image:
            assert image.size == (width, height)


def tiled_tiff(side, tile):
    """A tiled TIFF file, compressed to nothing whatever its tile's side."""
    packed = zlib.compress(b"\0" * tile * tile, 9)
    values = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile}
    values |= {324: 8 + 2 + 12 * 10 + 4, 325: len(packed)}  # the only tile's place, after the directory
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + packed


def test_tiles_far_larger_than_the_image_are_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiled_tiff(20, 32))
    assert read_image(tmp_path / "a.tif").shape == (28, 28)
    (tmp_path / "a.tif").write_bytes(tiled_tiff(20, 6_400))
    with pytest.raises(DataError, match=r"a\.tif, a tile: expected .*got 6,400 x 6,400, 40,960,000 pixels"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("format", ["gif", "tif", "webp", "png"])
def test_of_several_frames_the_first_counts_and_no_other_is_decoded(format, tmp_path):
    first, second = Image.fromarray(grey()), Image.new("L", (56, 56), 128)
    first.save(tmp_path / f"a.{format}", save_all=True, append_images=[second])
    expected = pytest.approx(area_average(INK, 28), abs=0.2)
    assert read_image(tmp_path / f"a.{format}") == expected
    if format == "gif":  # a second frame of 65,535 x 65,535 pixels
        content = (tmp_path / "a.gif").read_bytes()
        frame = content.rindex(struct.pack("<BHHHH", 0x2C, 0, 0, 56, 56))
        huge = struct.pack("<BHHHH", 0x2C, 0, 0, 65_535, 65_535)
        (tmp_path / "a.gif").write_bytes(content[:frame] + huge + content[frame + len(huge) :])
        assert read_image(tmp_path / "a.gif") == expected


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def listening(path, monkeypatch):
    monkeypatch.chdir(path.parent)  # as a socket's path may have 100 characters only
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path.name)


def sparse(path):
    with path.open("wb") as stream:
        stream.truncate(MOST_BYTES + 1)


NO_FILES = {
    "FIFO": (fifo, r"expected an image file, got a FIFO \(named pipe\)\. Hint: check the path\."),
    "device": (device, "expected an image file, got a device"),
    "folder": (lambda path: path.mkdir(), "expected an image file, got a folder"),
    "socket": (listening, "expected an image file, got a socket"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "expected an image file, got no such file"),
    "loop": (lambda path: path.symlink_to(path.name), "got an error .Too many levels"),
    "huge": (sparse, "expected an image file of at most 268,435,456 bytes, got 268,435,457"),
    "empty": (lambda path: path.touch(), "damaged or of another format"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_image_file_is_refused_unopened(kind, tmp_path, monkeypatch):
    make, message = NO_FILES[kind]
    path = tmp_path / "a.png"
    make(path, monkeypatch) if make is listening else make(path)
    with pytest.raises(DataError, match=rf"a\.png: .*{message}"):
        read_image(path)
    if kind != "folder":  # which would be a class
        with pytest.raises(DataError, match=rf"a\.png: .*{message}"):
            read_image_folder(tmp_path, flat=True)


def test_a_path_that_cannot_be_is_refused():
    with pytest.raises(DataError, match="expected an image file, got an error"):
        read_image("a\0.png")


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_read_or_refused_by_name(format, tmp_path):
    file, rng = tmp_path / "a.png", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(file, format)
    content = file.read_bytes()
    refused = 0
    for trial in range(200):
        damaged = bytearray(content[: rng.integers(len(content))] if trial % 4 == 0 else content)
        for place in rng.integers(0, min(len(damaged), 200), 3) if damaged else ():
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            assert np.isfinite(read_image(file)).all()
        except DataError as error:
            assert str(error).startswith(str(file))  # noqa: PT017
            refused += 1
    assert refused > 10


def test_what_a_decoder_stumbles_over_is_an_error_of_ours(tmp_path, monkeypatch):
    save(tmp_path, "a.png")
    for error in (KeyError("tag"), struct.error("short"), OverflowError("big"), MemoryError()):

        def stumble(*_, error=error):
            raise error

        monkeypatch.setattr(Image.Image, "load", stumble)
        with pytest.raises(DataError, match=r"a\.png: expected"):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"channels": 2}, "channels: expected one of 1, 3"), ({"side": 0}, "side: expected")],
)
def test_bad_size_is_refused(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_image(tmp_path / "1.png", **arguments)


def split_folders(path, validation="val"):
    save(
        path,
        *(
            f"{split}/{split}-{c}/{i}.png"
            for split in ("train", validation, "test")
            for c in "ab"
            for i in "12"
        ),
    )
    return path


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_split_folders(validation, tmp_path):
    read = read_split_folders(split_folders(tmp_path, validation), side=8)
    assert read.pixels.shape == (12, 8, 8, 3)
    assert {name: [read.names[i] for i in ids] for name, ids in read.splits.items()} == {
        "train": ["train-a", "train-b"],
        "validation": [f"{validation}-a", f"{validation}-b"],
        "test": ["test-a", "test-b"],
    }
    expected = 255 * (1 - area_average(INK, 8))
    np.testing.assert_array_equal(read.pixels, np.rint(expected)[None, :, :, None] + np.zeros((12, 1, 1, 3)))


def write_csv(path, **splits):
    save(path, *(f"images/{name}" for rows in splits.values() for name, _ in rows))
    for split, rows in splits.items():
        lines = ["filename,label", *(f"{name},{label}" for name, label in rows)]
        (path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return path


def test_csv_layout_groups_rows_by_class(tmp_path):
    rows = [("1.jpg", "x"), ("2.jpg", "y"), ("3.jpg", "x"), ("4.jpg", "y")]
    read = read_split_folders(
        write_csv(tmp_path, train=rows, test=[("5.jpg", "z"), ("6.jpg", "z")]), side=8, channels=1
    )
    assert read.names == ("x", "y", "z")
    assert read.pixels.shape == (6, 8, 8, 1)
    assert list(read.splits) == ["train", "test"]


def test_a_csv_without_a_header_keeps_its_first_image(tmp_path):
    rows = [("1.jpg", "x"), ("2.jpg", "y"), ("3.jpg", "x"), ("4.jpg", "y")]
    file = write_csv(tmp_path, train=rows) / "train.csv"
    file.write_text(file.read_text().partition("\n")[2])
    read = read_split_folders(tmp_path, side=8, channels=1)
    assert dict(zip(read.names, read.count.tolist(), strict=True)) == {"x": 2, "y": 2}


def test_split_folders_are_cached_and_changes_noticed(tmp_path, monkeypatch):
    split_folders(tmp_path / "data")
    first = read_split_folders(tmp_path / "data", side=8)
    with monkeypatch.context() as patch:
        patch.setattr(images, "read_image", lambda *_: pytest.fail("it was decoded again"))
        np.testing.assert_array_equal(read_split_folders(tmp_path / "data", side=8).pixels, first.pixels)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "data/train/train-a/1.png")
    assert not read_split_folders(tmp_path / "data", side=8).pixels[0].any()


def leak(path):
    save(split_folders(path), "test/train-a/1.png", "test/train-a/2.png")
    return path


def single(path):
    save(split_folders(path), "train/lonely/1.png")
    return path


def lost_file(path):
    write_csv(path, train=[("1.jpg", "x"), ("2.jpg", "x")])
    (path / "images/2.jpg").unlink()
    return path


def csv_of(text):
    def make(path):
        save(path, "images/1.jpg")
        (path / "train.csv").write_bytes(text)
        return path

    return make


BAD_SPLITS = {
    "missing": (lambda path: path / "no", r"expected train/, val/ and test/ .*got no such folder\. Hint"),
    "no train": (made("other/a/1.png"), "expected train/, val/ and test/ .*got other"),
    "a class in two splits": (
        leak,
        "class 'train-a': expected it in one split, got 'train' and 'test'.*remove it",
    ),
    "folders of classes alone": (
        made("a/1.png", "b/1.png"),
        r"got a, b\. Hint: for a folder with one folder for each class use imaml train images --data "
        r"\S+data\.$",
    ),
    "csv with an image listed twice": (
        lambda path: write_csv(path, train=[("1.jpg", "x"), ("2.jpg", "x"), ("1.jpg", "x")]),
        r"expected each image once, got 1 in several lines \(1\.jpg\)\. Hint: remove",
    ),
    "csv with an image in two splits": (
        lambda path: write_csv(
            path, train=[("1.jpg", "x"), ("2.jpg", "x")], test=[("./1.jpg", "y"), ("3.jpg", "y")]
        ),
        r"expected each image once, got 1 in several lines",
    ),
    "csv without a header, and with a file that is not there": (
        csv_of(b"2.jpg,x\n1.jpg,x\n"),
        r"train.csv, line 1: .*images/2.jpg is not a file",
    ),
    "csv with a file that is not there": (
        lost_file,
        r"train.csv, line 3: expected .*got .'2.jpg', 'x'., and .*images/2.jpg is not a file",
    ),
    "csv without labels": (csv_of(b"filename,label\n1.jpg\n"), "line 2: expected the header .*got .'1.jpg'."),
    "csv without lines": (csv_of(b"filename,label\n"), "expected the header .*got no images"),
    "csv of bytes": (csv_of(b"\xff\xfe\x00"), "train.csv: expected the header .*got an error"),
}


@pytest.mark.parametrize("case", BAD_SPLITS)
def test_bad_split_folders_are_refused(case, tmp_path):
    make, message = BAD_SPLITS[case]
    with pytest.raises(DataError, match=message):
        read_split_folders(make(tmp_path / "data") if case != "missing" else make(tmp_path))


def test_a_class_with_one_image_is_excluded(tmp_path):
    with pytest.warns(RuntimeWarning, match=r"1 classes are excluded, as they have one image \(lonely\)"):
        assert "lonely" not in read_split_folders(single(tmp_path / "data"), side=4).names


def test_folders_of_classes_may_be_nested(tmp_path):
    save(tmp_path, "Greek/alpha/1.png", "Greek/beta/1.png", "Latin/a/1.png", "train/0.png")
    names = ["Greek/alpha", "Greek/beta", "Latin/a", "train"]
    assert list(image_files(tmp_path)) == names
    assert read_image_folder(tmp_path, side=4).labels == names


def test_images_that_cannot_be_read_are_said(tmp_path):
    save(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "2.HEIC").write_text("")
    (tmp_path / "a" / "notes.txt").write_text("")
    with pytest.warns(RuntimeWarning, match=r"1 images are excluded, as \.heic cannot be read\. Hint: save"):
        assert len(read_image_folder(tmp_path, side=4).labels) == 2


def test_images_whose_names_are_no_images_are_said(tmp_path):
    """A query's images would have no answers, without a word."""
    save(tmp_path, "1.png", "3.jfif", "4.png")
    (tmp_path / "4.png").rename(tmp_path / "scan")
    (tmp_path / "notes").write_text("no image")
    with pytest.warns(RuntimeWarning, match=r": 1 images are excluded, as .*\(scan\)\. Hint: rename"):
        files = image_files(tmp_path, flat=True)[""]
    assert [file.name for file in files] == ["1.png", "3.jfif"]


def test_a_drawing_to_adapt_to_is_read_at_any_contrast(tmp_path):
    """As drawings are read for training: ink is 1, whatever its colour."""
    grey = np.where(INK[..., None], np.uint8([90, 90, 170]), np.uint8([150, 150, 230]))
    Image.fromarray(grey).save(tmp_path / "1.png")
    read = read_image_folder(tmp_path, flat=True).images[0]
    np.testing.assert_allclose(read, area_average(INK, 28), atol=1e-6)


def test_threads_read_what_one_reads_and_leave_warnings_as_they_were(tmp_path):
    save(tmp_path, *(f"a/{i}.png" for i in range(40)))
    before = list(warnings.filters)
    files = image_files(tmp_path)["a"]
    found = read_files(files, 9, 1)
    assert warnings.filters == before
    one = np.stack([np.rint(255 * read_image(file, 9, stretch=True)) for file in files])
    np.testing.assert_array_equal(found[..., 0], one)


def cache_files(tmp_path):
    return sorted((tmp_path / "cache/imaml/tables").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "a bit flipped", "emptied"])
def test_a_damaged_cache_is_made_anew(damage, tmp_path):
    array = np.arange(1000) % 251
    np.testing.assert_array_equal(cached_array("key", lambda: array), array)
    (file,) = cache_files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-7] ^= 4
    file.write_bytes({"truncated": content[:-20], "emptied": b""}.get(damage, bytes(content)))
    np.testing.assert_array_equal(cached_array("key", lambda: array), array)
    assert cache_files(tmp_path) == [file]  # the same name is the same content: it was written again
    np.testing.assert_array_equal(cached_array("key", lambda: pytest.fail("not cached")), array)


def test_without_a_writable_cache_arrays_are_made_each_time(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert cached_array("key", lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert cached_array("key", lambda: np.arange(2)).tolist() == [0, 1]


def test_a_folder_of_classes_is_scored_on_but_not_learned_from(tmp_path):
    tmp_path /= "data"
    save(tmp_path, *(f"{letter}/{i}.png" for letter in "abcdef" for i in range(3)), "a/3.png")
    recipe = FewShotRecipe(source="omniglot", ways=5, shots=1, queries=2).scored_on(str(tmp_path))
    assert recipe.source == "folder"
    domain = recipe.build()
    assert domain.splits["test"].tolist() == list(range(6))
    key = jax.random.key(0)
    assert domain.sample(key, "test").query.images.shape == (10, 28, 28, 1)
    for split in ("train", "validation"):
        with pytest.raises(DataError, match=rf"{split} split: .* got none.*imaml train images"):
            domain.sample(key, split)
    within = FewShotRecipe(source="omniglot", ways=5, queries=2, within=0.5)  # artefacts/omniglot-5w1s
    assert within.scored_on(str(tmp_path)).build().splits["test"].tolist() == list(range(6))
    (tmp_path / "train").mkdir()
    assert FewShotRecipe(source="images").scored_on(str(tmp_path)).source == "images"
    assert FewShotRecipe(source="mini-imagenet").scored_on(str(tmp_path)).source == "mini-imagenet"
