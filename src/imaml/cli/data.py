"""The commands of data: `imaml data`, and `imaml sample`, which writes a task as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from ..core.errors import DataError
from ..core.interrupts import Interrupts
from ..storage.atomic import disk_errors
from .options import DEFAULT, Changes, Count, configure
from .startup import prepare_jax

data_app = App(name="data", help="List, download or check data sets.")
Name = Annotated[Literal["omniglot"], Parameter(name="NAME")]


@data_app.command(name="list")
def list_command() -> None:
    """List the data sets, and where imaml looks for them."""
    from ..domains.fewshot import omniglot

    print(omniglot.listing())


@data_app.command(name="get")
def get_command(name: Name, folder: Annotated[str | None, Parameter(name="DIR")] = None, /) -> None:
    """Download a data set and verify it.

    Args:
        name: Data set.
        folder: Directory to keep it in (default: the cache directory).
    """
    from ..domains.fewshot import omniglot

    with Interrupts(visible=False) as interrupts, interrupts.stoppable():  # it removes what is half done
        print(f"Omniglot is in {omniglot.get(folder)}")


@data_app.command(name="check")
def check_command(name: Name, path: Annotated[str | None, Parameter(name="PATH")] = None, /) -> int:
    """Verify a data set that is on this machine.

    Args:
        name: Data set.
        path: Where it is (default: the usual places).

    Returns:
        The exit status, 2 where the data are damaged.
    """
    from ..domains.fewshot import omniglot

    report = omniglot.check(path)
    print(report)
    return 0 if report.ok else 2


def sample_command(
    preset: str = DEFAULT,
    /,
    *,
    out: Path = Path("sample"),
    seed: Count = 0,
    split: Literal["train", "validation", "test"] = "test",
    data: str | None = None,
    changes: Changes = (),
) -> None:
    """Write a random task as files, to try imaml adapt with.

    Tasks of images become OUT/support/CLASS/1.png, ... and OUT/query/CLASS/1.png, ..., drawings dark on
    light; other tasks become OUT/support.npz and OUT/query.npy. Every field of the preset is an option, as
    for imaml train, for example --domain.shots=5.

    Args:
        preset: Named configuration. `imaml presets` lists them.
        out: New directory for the files.
        seed: Random seed of the task.
        split: Split that the task comes from.
        data: File or directory with the images, for presets that read images.
        changes: Fields of the configuration set by options with a dot.
    """
    config = configure(preset, changes, data=data)
    prepare_jax()
    import jax

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out}: expected a directory that does not exist yet, got one with files in it. "
            "Hint: choose another with --out."
        )
    domain = config.domain.build()
    task = jax.device_get(jax.jit(lambda key: domain.sample(key, split))(jax.random.key(seed)))
    with disk_errors(out, DataError):
        few, asked = domain.write(task, out)
    print(f"{out} holds a task: {few} support examples to adapt to, {asked} query examples to predict")
