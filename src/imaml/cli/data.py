"""The commands of data: `imaml data`, and `imaml sample`, which writes a task as files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from ..core.errors import ConfigError, DataError
from ..core.interrupts import Interrupts
from ..core.validation import some_of, suggestion
from ..storage.atomic import disk_errors
from .options import (
    DEFAULT,
    Changes,
    Count,
    Flag,
    Names,
    Positive,
    Text,
    configure,
    print_json,
    split_names,
)
from .own_tasks import object_at
from .startup import prepare_jax

data_app = App(name="data", help="List, download or check data sets.")
Name = Annotated[Literal["omniglot"], Parameter(name="NAME")]
STATUS = {"clean": 0, "warnings": 1, "unusable": 2}


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
def check_command(
    name: Annotated[str, Parameter(name="PATH")],
    path: Annotated[str | None, Parameter(name="PLACE")] = None,
    /,
    *,
    task: str | None = None,
    target: Names = None,
    features: Names = None,
    weights: str = "",
    offset: str = "",
    split: str = "",
    text: Text = Text(),
    side: Positive = 28,
    colour: Flag = False,
    json: Flag = False,
) -> int:
    """Check tasks of your own, or a downloaded data set.

    PATH is a file or folder that imaml train arrays, frame or images takes: an .npz file with arrays x, y and
    groups; a table, with --task and --target; or a folder with one folder of images for each class. Prints
    counts, then the problems and what to do about them: missing values, tasks that are too small or too few,
    rows or images that are in two tasks, constant columns, rare classes, unreadable files.

    The exit status is 0 if there is nothing to fix, 1 if a run would exclude data or its scores could
    mislead, and 2 if no run can use the data.

    Args:
        name: File or folder; or omniglot, whose files are compared with their checksums.
        path: For omniglot: its location (default: the usual places).
        task: For a table: the column that names the task of each row.
        target: For a table: the column to predict; several as A,B.
        features: For a table: the columns to predict from, as A,B (default: all others).
        weights: For a table: the column with the number of times that a row counts.
        offset: For a table: the column that is added to the first output.
        split: For a table: the column with the split of each task.
        text: How a text file is written.
        side: For images: the side in pixels that they are shrunk to.
        colour: For images: whether colours are kept.
        json: Print JSON.

    Returns:
        The exit status.
    """
    if name == "omniglot":
        from ..domains.fewshot import omniglot

        verified = omniglot.check(path)
        print(verified)
        return 0 if verified.ok else 2
    from ..domains.tasks.check import check
    from ..domains.tasks.sources import TABLES, Format, TasksFile, read_columns

    if path is not None:
        raise ConfigError(f"data check: expected one path, got {path!r} as well.")
    if not Path(name).exists():
        hint = suggestion(name, ["omniglot"]) or " Hint: check the path."
        raise DataError(f"data check: expected a file, a folder or omniglot, got {name!r}.{hint}")
    if Path(name).is_dir():
        file = TasksFile(name, "images", side=side, colour=colour)
    elif Path(name).suffix.lower() in TABLES:
        if task is None or target is None:
            columns = some_of(list(read_columns(name, Format()._replace(**text.given))), 20)
            raise ConfigError(
                "data check: expected --task and --target, the columns that name the tasks and that are to "
                f"be predicted, got {'no --task' if task is None else 'no --target'}. Hint: the columns of "
                f"{name} are {columns}."
            )
        columns = split_names(target), split_names(features), weights, offset, split
        file = TasksFile(name, "frame", task, *columns, **text.given)
    else:
        file = TasksFile(name)
    report = check(file)
    if json:
        print_json(report.to_json())
    else:
        print(report)
    return STATUS[report.status]


def sample_command(
    preset: str = DEFAULT,
    /,
    *,
    out: Path = Path("sample"),
    seed: Count = 0,
    split: Literal["train", "validation", "test"] = "test",
    data: str | None = None,
    model: str | None = None,
    loss: str | None = None,
    changes: Changes = (),
) -> None:
    """Write a random task as files, to try imaml adapt with.

    Tasks of an image preset become OUT/support/CLASS/1.png, ... and OUT/query/CLASS/1.png, ..., drawings dark
    on light. Tasks of a run on your own data become OUT/support.npz and OUT/query.npz, all others
    OUT/support.npz and OUT/query.npy. Every field of the preset is an option, as for imaml train, for example
    --domain.shots=5.

    Args:
        preset: Named configuration, or a run directory. `imaml presets` lists the configurations.
        out: New directory for the files.
        seed: Random seed of the task.
        split: Split that the task comes from.
        data: File or directory with the images, for presets that read images.
        model: The model that a run was fitted with if it is your own, FILE.py:NAME.
        loss: Your own loss, in the same form.
        changes: Fields of the configuration set by options with a dot.
    """
    from ..training.directory import read_config

    run = Path(preset)
    config = read_config(run) if (run / "config.json").is_file() else preset
    config = configure(config, changes, data=data)
    prepare_jax()
    brought = object_at(model, "--model"), object_at(loss, "--loss")
    config = replace(config, domain=config.domain.with_objects(*brought))
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
