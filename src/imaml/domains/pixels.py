"""One image file or array as numbers: decoding, polarity, shrinking by area average."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from imaml.errors import ConfigError, DataError


def area_weights(before: int, after: int) -> np.ndarray:
    """Integer weights (after, before), float32: how much of each old pixel lies in each new one.

    The unit of length divides both pixels, and each row has the same sum, at most `before`. So averages of
    1-bit images are sums of whole numbers below 2^24, exact in float32: the same bits on every machine.
    """
    unit = int(np.gcd(before, after))
    wide, narrow = before // unit, after // unit
    old, new = np.arange(before) * narrow, np.arange(after)[:, None] * wide
    overlap = np.minimum(old + narrow, new + wide) - np.maximum(old, new)
    return np.clip(overlap, 0, None).astype(np.float32)


def area_average(images: np.ndarray, side: int) -> np.ndarray:
    """Images (..., height, width) resized to float32 (..., side, side), each pixel the mean over its area."""
    down, across = area_weights(images.shape[-2], side), area_weights(images.shape[-1], side)
    total = float(down[0].sum()) * float(across[0].sum())
    flat = images.astype(np.float32).reshape(-1, images.shape[-1]) @ across.T  # one product, not one an image
    return down @ flat.reshape(*images.shape[:-1], side) / np.float32(total)


def read_image(file: str | Path, side: int = 28, channels: int = 1) -> np.ndarray:
    """One image file as float32 in [0, 1]: (side, side) for one channel, (side, side, 3) for three.

    One channel is a drawing: 1 = ink; inverted when the median of its border is bright (dark ink on light
    paper); padded with its paper to a square, never squashed. Three channels are a photograph: brightness as
    it is, squashed to a square, as is the custom for mini-ImageNet. Grey, colour, palette, transparent, 1-bit
    and 16-bit files are read; EXIF rotations are followed; the first frame of an animation counts; contrast
    is not stretched. Errors: `DataError` names the file.
    """
    if channels not in (1, 3):
        raise ConfigError(f"channels is {channels}; accepted is 1 (drawings, 1 = ink) or 3 (photographs)")
    if side < 1:
        raise ConfigError(f"side is {side}; accepted is a positive number of pixels")
    pixels = _decode(Path(file), "L" if channels == 1 else "RGB")
    if channels == 3:
        return np.clip(np.moveaxis(area_average(np.moveaxis(pixels, -1, 0), side), 0, -1), 0, 1)
    if np.median(_border(pixels)) > 0.5:
        pixels = 1 - pixels
    height, width = pixels.shape
    top, left = max(width - height, 0), max(height - width, 0)
    pixels = np.pad(
        pixels,
        ((top // 2, top - top // 2), (left // 2, left - left // 2)),
        constant_values=np.median(_border(pixels)),
    )
    return np.clip(area_average(pixels, side), 0, 1)


def _border(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _decode(file: Path, mode: str) -> np.ndarray:
    """A file's pixels as float32 in [0, 1], (height, width) for mode "L", (height, width, 3) for "RGB"."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # damaged EXIF: not the pixels
            with Image.open(file) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{file} is too large; accepted are up to {Image.MAX_IMAGE_PIXELS} pixels: shrink it first"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(
            f"{file} cannot be read as an image ({error}); accepted is a whole PNG, JPEG or "
            "other common image: replace the file or remove it"
        ) from None
    if image.mode == "F" or image.mode.startswith("I"):
        wide = np.asarray(image)
        if image.mode == "F" or wide.min() < 0 or wide.max() > 65535:
            raise DataError(f"{file} has 32-bit pixels; accepted are 8 or 16 bits a channel: save it as PNG")
        grey = (wide / 65535).astype(np.float32)
        return grey if mode == "L" else np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = _on_paper(image.convert("RGBA"))
    return np.asarray(image.convert(mode), np.float32) / 255


def _on_paper(image: Any) -> Any:
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
