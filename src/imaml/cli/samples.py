"""A new task as files: folders of images of the kind that `imaml adapt` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.errors import ConfigError, DataError
from ..core.validation import require_one_of
from ..domains.base import SPLITS
from ..domains.fewshot.episodes import Labelled


def write_task(domain: Any, out: str | Path, *, split: str = "test", seed: int = 0) -> tuple[int, int]:
    """Writes one random task as OUT/support/CLASS/N.png and OUT/query/CLASS/N.png.

    domain: one of images and classes, such as `imaml.characters()`. Drawings are written dark on
    light. Returns how many support and query images it wrote. Errors: `ConfigError` for a domain that has no
    images to tell apart; `DataError` where OUT has files already, or cannot be written.

    >>> import imaml, tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "my"
    >>> write_task(imaml.characters(ways=2, queries=3), folder)
    (2, 6)
    >>> sorted(str(file.relative_to(folder)) for file in (folder / "support").glob("*/*"))
    ['support/class-1/1.png', 'support/class-2/1.png']
    """
    from PIL import Image

    require_one_of("sample", "split", split, SPLITS)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} is there and not empty; accepted is a folder to be made, so that none is lost."
        )
    task = jax.device_get(jax.jit(lambda key: domain.sample(key, split))(jax.random.key(seed)))
    if not isinstance(task.support, Labelled):
        raise ConfigError(
            f"sample: tasks of {type(domain).__name__} are no images of classes; accepted are few-shot "
            "domains, such as of the presets characters-5w1s and omniglot-5w1s."
        )
    try:
        for part, rows in (("support", task.support), ("query", task.query)):
            count: dict[int, int] = {}
            for image, label in zip(rows.images, rows.labels, strict=True):
                number = count[int(label)] = count.get(int(label), 0) + 1
                folder = out / part / f"class-{int(label) + 1}"
                folder.mkdir(parents=True, exist_ok=True)
                grey = image.shape[-1] == 1  # a drawing, 1 = ink
                pixels = np.rint(255 * np.clip(1 - image[..., 0] if grey else image, 0, 1)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); choose another folder.") from error
    return len(task.support.labels), len(task.query.labels)
