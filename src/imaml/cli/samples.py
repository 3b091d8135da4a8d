"""A new task as files of the kind that `imaml adapt` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from ..core.errors import DataError
from ..core.validation import require_one_of
from ..domains.base import SPLITS


def write_task(domain: Any, out: str | Path, *, split: str = "test", seed: int = 0) -> tuple[int, int]:
    """Write one random task as files that `imaml adapt` reads.

    Args:
        domain: The domain. Tasks of images become OUT/support/CLASS/N.png and OUT/query/CLASS/N.png; others
            OUT/support.npz and OUT/query.npy.
        out: A folder that does not exist, or is empty.
        split: Which split the task is of.
        seed: Which task.

    Returns:
        How many support and query rows were written.

    Raises:
        DataError: If the folder is not empty or cannot be written.

    Example:
        >>> import imaml, tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "my"
        >>> write_task(imaml.characters(ways=2, queries=3), folder)
        (2, 6)
        >>> sorted(str(file.relative_to(folder)) for file in (folder / "support").glob("*/*"))
        ['support/class-1/1.png', 'support/class-2/1.png']
    """
    require_one_of("sample", "split", split, SPLITS)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} is there and not empty; accepted is a folder to be made, so that none is lost."
        )
    task = jax.device_get(jax.jit(lambda key: domain.sample(key, split))(jax.random.key(seed)))
    try:
        return domain.write(task, out)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); choose another folder.") from error
