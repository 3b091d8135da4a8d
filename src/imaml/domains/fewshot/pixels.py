"""One image file or array as numbers: opening, decoding, polarity, shrinking by area average.

`open_image` is the one place where the package opens an image: it checks files and sizes before any pixel is
decoded.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...core.errors import DataError
from ...core.validation import require_one_of, require_whole
from ...storage.atomic import reason

if TYPE_CHECKING:
    from PIL import Image

# Pillow's name of a format -> its files' suffixes. Pillow knows many more formats, and finds out by a file's
# content which it is, whatever the file's name. One of them is PostScript: a program, which Ghostscript runs.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".pgm", ".ppm"),
}
READABLE = "PNG, JPEG, GIF, BMP, TIFF, WebP, PGM or PPM"
MOST_SIDE = 10_000  # pixels of width or height
MOST_PIXELS = 40_000_000  # in all, of a drawing after padding to a square: about 1 GB while it is read
MOST_BYTES = 1 << 28  # of a file: 40 million pixels of 4 channels, uncompressed, have 160 MB

_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF


def regular_file(file: str | Path) -> os.stat_result:
    """Return what the system knows of an image file, without opening it.

    Args:
        file: The path; symbolic links are followed.

    Returns:
        The status of the file: its size, its times.

    Raises:
        DataError: If there is no such file, or it is a folder, FIFO, socket or device (to open a FIFO would
            wait for a writer, a device may never end), or has more than ``MOST_BYTES``.
    """
    try:
        status = os.stat(file)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        missing = isinstance(error, FileNotFoundError)
        found = "no such file" if missing else f"an error ({reason(error)})"
        raise DataError(f"{file}: expected an image file, got {found}. Hint: check the path.") from None
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO (named pipe)", stat.S_IFSOCK: "a socket"}
        found = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise DataError(f"{file}: expected an image file, got {found}. Hint: check the path.")
    if status.st_size > MOST_BYTES:
        raise DataError(
            f"{file}: expected an image file of at most {MOST_BYTES:,} bytes, got {status.st_size:,}. Hint: "
            "shrink the image, or save it as PNG."
        )
    return status


@contextlib.contextmanager
def open_image(
    content: str | Path | bytes,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    padded: bool = False,
) -> Iterator[Image.Image]:
    """Open an image, checked but not yet decoded; the package opens images nowhere else.

    Whatever Pillow raises inside the ``with`` block, as for a damaged file, becomes a ``DataError``.

    Args:
        content: The path of a file, or a file's bytes.
        formats: Pillow's names of the formats that it may have. The file's content decides, not its suffix.
        padded: Whether the image will be padded to a square, so that the square's pixels count.

    Yields:
        The image. Its pixels are decoded when asked for, inside the ``with`` block.

    Raises:
        DataError: If it is not a regular file, in none of the formats, damaged, wider or higher than
            ``MOST_SIDE``, or has more than ``MOST_PIXELS``.
    """
    from PIL import Image

    name = "the image" if isinstance(content, bytes) else str(content)
    if not isinstance(content, bytes):
        regular_file(content)
    with _FILTERS:
        try:
            with (
                io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as stream,
                Image.open(stream, formats=tuple(formats)) as image,
            ):
                _check_size(name, *image.size, padded)
                tags = getattr(image, "tag_v2", {})  # of TIFF, whose tiles may be larger than the image
                if _TILE_WIDTH in tags and _TILE_LENGTH in tags:
                    _check_size(f"{name}, a tile", int(tags[_TILE_WIDTH]), int(tags[_TILE_LENGTH]), False)
                yield image
        except DataError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
            # Above Pillow's own limit, which a program may have lowered.
            most = min(MOST_PIXELS, Image.MAX_IMAGE_PIXELS or MOST_PIXELS)
            raise DataError(
                f"{name}: expected an image of at most {most:,} pixels, got more. Hint: shrink it first."
            ) from None
        except Exception as error:
            # Of a damaged file Pillow's decoders raise what they stumble over, such as struct.error, KeyError
            # or OverflowError beside the documented OSError and SyntaxError.
            unknown = isinstance(error, Image.UnidentifiedImageError)
            why = "" if unknown else f" ({reason(error)})"
            wanted = READABLE if len(formats) == len(FORMATS) else " or ".join(formats)
            raise DataError(
                f"{name}: expected a {wanted} image, got one that is damaged or of another format{why}. "
                "Hint: save it again, for example as PNG; the suffix of its name does not count."
            ) from None


def is_image(file: Path) -> bool:
    """Return whether a file is an image that can be read, whatever its name is; its pixels are not decoded.

    Args:
        file: The file.

    Returns:
        Whether its content begins as an image's does.
    """
    with contextlib.suppress(DataError), open_image(file):
        return True
    return False


class _Filters:
    """How Pillow's warnings are treated while images are open, in however many threads.

    `warnings.catch_warnings` alone restores what another thread has set.
    """

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        from PIL import Image

        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.saved = warnings.catch_warnings()
                self.saved.__enter__()
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                warnings.filterwarnings("ignore", category=UserWarning)  # damaged EXIF: not the pixels

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.saved.__exit__(None, None, None)


_FILTERS = _Filters()


def _check_size(name: str, width: int, height: int, padded: bool) -> None:
    """Check, before anything is allocated, that a size is not 0 and within the limits (DataError)."""
    pixels = max(width, height) ** 2 if padded else width * height
    if 0 < width <= MOST_SIDE and 0 < height <= MOST_SIDE and pixels <= MOST_PIXELS:
        return
    raise DataError(
        f"{name}: expected 1 to {MOST_SIDE:,} pixels a side and at most {MOST_PIXELS:,} in all, got "
        f"{width:,} x {height:,}, {pixels:,} pixels{' when padded to a square' * padded}. Hint: shrink it "
        "or crop it first."
    )


def area_sums(values: np.ndarray, after: int) -> np.ndarray:
    """Return sums over equal parts of the last axis; of a pixel between two parts each gets its share.

    The unit of length divides both old and new pixels, so that of whole numbers the sums are whole numbers,
    which float64 holds exactly: the same on every machine. A part's sum is a difference of two cumulative
    sums. A product with a matrix of shares would cost `after` times as much, and BLAS divides a small product
    among so many threads that most of its time is theirs.

    Args:
        values: ``(..., before)``.
        after: How many parts.

    Returns:
        float64 ``(..., after)``, in units of ``gcd(before, after) / after`` of an old pixel.
    """
    before = values.shape[-1]
    unit = int(np.gcd(before, after))
    wide, narrow = before // unit, after // unit  # of a new and of an old pixel, in units
    whole, part = np.divmod(np.arange(after) * wide, narrow)  # old pixels before each new one, and units more
    upto = np.zeros((*values.shape[:-1], before + 1))
    np.cumsum(values, axis=-1, out=upto[..., 1:])
    begins = narrow * upto[..., whole] + part * values[..., whole]
    ends = np.concatenate([begins[..., 1:], narrow * upto[..., -1:]], axis=-1)
    return ends - begins


def area_average(images: np.ndarray, side: int) -> np.ndarray:
    """Return images resized, each pixel the mean over its area.

    Args:
        images: ``(..., height, width)``.
        side: Pixels a side.

    Returns:
        float32 ``(..., side, side)``.
    """
    height, width = images.shape[-2:]
    across = area_sums(images.astype(np.float64), side)
    sums = np.swapaxes(area_sums(np.swapaxes(across, -1, -2), side), -1, -2)
    area = (height // np.gcd(height, side)) * (width // np.gcd(width, side))
    return sums.astype(np.float32) / np.float32(area)


FAINT = 0.08  # contrast, of 1 between black and white, below which a drawing is blank


def read_image(file: str | Path, side: int = 28, channels: int = 1, stretch: bool = False) -> np.ndarray:
    """Read one image file.

    One channel is a drawing: 1 = ink; inverted if the median of its border is bright (dark ink on light
    paper); padded with its paper to a square, never squashed. Three channels are a photograph: brightness as
    it is, squashed to a square, as is the custom for mini-ImageNet. Grey, colour, palette, transparent, 1-bit
    and 16-bit files are read. EXIF rotations are followed. Of an animation the first frame counts. Formats:
    PNG, JPEG, GIF, BMP, TIFF, WebP, PGM and PPM, by the file's content.

    Args:
        file: The image file.
        side: Pixels a side of what is returned.
        channels: 1 for a drawing, 3 for a photograph.
        stretch: Of a drawing, whether ink is what differs from the border's colour, in brightness or in hue,
            and is stretched to 1. A drawing with a contrast below 8 % is then blank. By default ink is
            brightness or darkness, as it is.

    Returns:
        float32 in [0, 1], ``(side, side)`` for one channel, ``(side, side, 3)`` for three.

    Raises:
        DataError: If the file is not a regular file, is damaged or in another format, or is too large: more
            than 10,000 pixels a side, or 40 million in all (for a drawing, after padding). It names the file.
        ConfigError: If ``side`` is below 1, or ``channels`` is neither 1 nor 3.
    """
    require_one_of("read_image", "channels", channels, (1, 3))
    require_whole("read_image", 1, side=side)
    pixels = _decode(file, "RGB" if channels == 3 or stretch else "L")
    if channels == 3:
        return np.clip(np.moveaxis(area_average(np.moveaxis(pixels, -1, 0), side), 0, -1), 0, 1)
    if stretch:
        pixels = _ink(pixels)
    elif np.median(_border(pixels)) > 0.5:
        np.subtract(1, pixels, out=pixels)
    missing = [max(pixels.shape) - size for size in pixels.shape]
    margins = [(number // 2, number - number // 2) for number in missing]
    pixels = np.pad(pixels, margins, constant_values=np.median(_border(pixels)))
    return np.clip(area_average(pixels, side), 0, 1)


def _ink(pixels: np.ndarray) -> np.ndarray:
    """How far each pixel of a drawing (height, width, 3) is from its paper: 0 the paper, 1 the ink.

    The paper is the border's colour. The ink's distance is that of the furthest thousandth of the pixels, of
    which a speck is none.
    """
    squares = np.mean(np.square(pixels - np.median(_border(pixels), axis=0)), axis=-1)
    distances = np.sqrt(squares)
    last = -1 - distances.size // 1000
    most = np.partition(distances, last, axis=None)[last]
    return np.minimum(distances / most, 1) if most >= FAINT else np.zeros_like(distances)


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _decode(file: str | Path, mode: str) -> np.ndarray:
    """A file's pixels as float32 in [0, 1], (height, width) for mode "L", (height, width, 3) for "RGB"."""
    from PIL import ImageOps

    with open_image(file, padded=mode == "L") as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if image.mode == "F" or image.mode.startswith("I"):
            wide = np.asarray(image)
            if image.mode == "F" or wide.min() < 0 or wide.max() > 65535:
                raise DataError(
                    f"{file}: expected 8 or 16 bits a channel, got 32-bit pixels. Hint: save it as PNG."
                )
            grey = (wide / 65535).astype(np.float32)
            return grey if mode == "L" else np.repeat(grey[..., None], 3, axis=-1)
        if image.has_transparency_data:
            image = _on_paper(image.convert("RGBA"))
        pixels = np.array(image.convert(mode), np.float32)
    pixels /= 255  # in place: of a large image each copy counts
    return pixels


def _on_paper(image: Image.Image) -> Image.Image:
    """A transparent image (mode RGBA) laid on paper that its ink shows on.

    Where the border is opaque, the paper is the border's own colour; where it is transparent, black or white,
    whichever is further from the mean of what is drawn.
    """
    from PIL import Image

    grey = np.asarray(image.convert("RGB").convert("L"), np.float32)
    alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    edge, edge_alpha = _border(grey), _border(alpha)
    if np.median(edge_alpha) > 0.5:
        paper = int(np.median(edge[edge_alpha > 0.5]))
    else:
        paper = 255 if (grey * alpha).sum() < 127.5 * alpha.sum() or not alpha.any() else 0
    return Image.alpha_composite(Image.new("RGBA", image.size, (paper, paper, paper, 255)), image)
