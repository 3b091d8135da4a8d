"""`imaml train arrays`, `images` and `frame`: runs of `imaml.fit` on a user's own tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token

from ..core.errors import ConfigError
from ..core.streams import note
from .options import Count, Flag, Names, Positive, Text, Whole, split_names
from .startup import prepare_jax

if TYPE_CHECKING:
    from ..config.run import Config
    from ..core.tree import Tree
    from ..domains.models.imported import Imported
    from ..domains.tasks.collection import Tasks
    from ..domains.tasks.sources import TasksFile
    from ..predict import Learner

MODELS = ("mlp", "linear", "conv1d", "conv4")
AGAIN = ("steps", "minutes", "dry_run", "quiet")  # what a run may be resumed with
FEW = 500  # classes of drawings below which a run should start from an artefact of drawings


def rows(kind: type, tokens: list[Token]) -> float:
    """Convert the text of --shots: "5" is a number of rows, "0.5" a share of them.

    Args:
        kind: The option's type, which Cyclopts passes.
        tokens: The option's text, one item.

    Returns:
        The number.

    Raises:
        ValueError: If the text is not a number.
    """
    text = tokens[0].value
    return int(text) if text.lstrip("-").isdigit() else float(text)


@Parameter(name="*")
@dataclass(frozen=True)
class Fit:
    """Options of `imaml.fit`.

    Args:
        model: The network: mlp, linear, conv1d, conv4, or one of your own, FILE.py:NAME or
            package.module:NAME. The name is that of an object, or of a class or function that is called
            without arguments. By default mlp for vectors, conv1d for signals and conv4 for images.
        loss: The loss of a row: squared, cross_entropy, binary, ordinal, poisson, negative_binomial, or a
            function of your own, FILE.py:NAME. By default squared for numbers, cross_entropy for classes.
        shots: Rows of a support set: a whole number, or a share of the task's rows, such as 0.5. If groups
            are classes: images or rows of each class.
        queries: The most rows of a query set; if groups are classes, of each class.
        ways: Classes of a task, if tasks are episodes of classes.
        order: Whether a support set has random rows of a task, or its first rows.
        strength: The regularisation strength.
        adapt: Parameters that a task adapts, as A,B (default: all).
        tasks_per_step: Tasks in each step.
        steps: The most steps.
        minutes: The most minutes, trials included (default: 1 if --steps is not given either).
        validation: The share of tasks for validation.
        test: The share of tasks for testing.
        seed: Draws splits, initial parameters and tasks.
        out: Run directory (default: runs/NAME by the name of the data, then runs/NAME-2, and so on).
        resume: Continue the run in --out; give your own --model and --loss again. Other options must be the
            same as at the start.
        from_: Start from the parameters of this run directory or artefact; "omniglot" and "characters" are
            artefacts of this package, for drawings.
        dry_run: Read the data, print how they would be split into tasks, and do not train.
        quiet: Show no progress.
    """

    model: str | None = None
    loss: str | None = None
    shots: Annotated[float | None, Parameter(converter=rows)] = None
    queries: Whole = None
    ways: Whole = None
    order: Literal["random", "first"] | None = None
    strength: float | None = None
    adapt: Names = None
    tasks_per_step: Whole = None
    steps: Whole = None
    minutes: float | None = None
    validation: float = 0.2
    test: float = 0.2
    seed: Count = 0
    out: Path | None = None
    resume: Flag = False
    from_: str | None = None
    dry_run: Flag = False
    quiet: Flag = False


def arrays_command(*, data: str, options: Fit = Fit()) -> int | None:
    """Learn from the tasks in an .npz file, with a model of your own if you like.

    The file has the arrays x (rows, ...), y (rows, ...) and groups (rows,), the label of each row's task.
    Without y the groups are classes, and tasks are episodes of classification. A tree of inputs is x/NAME,
    .... The arrays weights, offset and split ("train", "validation" or "test" for each row) are optional.

    Options that you do not set are chosen from the data, and the choices are printed. The run directory works
    with imaml evaluate, adapt, sample and report.

    Args:
        data: The .npz file.
        options: How to learn.

    Returns:
        The exit status when interrupted.
    """
    from ..domains.tasks.sources import TasksFile

    return _fit(TasksFile(data), options)


def frame_command(
    *,
    data: str,
    task: str,
    target: Names,
    features: Names = None,
    weights: str = "",
    offset: str = "",
    split: str = "",
    text: Text = Text(),
    options: Fit = Fit(),
) -> int | None:
    """Learn from a table with one observation per row, with your own model or loss if you like.

    Columns of texts are one-hot encoded. For missing cells, dates and linear mixed models choose imaml train
    tables.

    Args:
        data: A .csv, .tsv or .parquet file with a header.
        task: The column that names the task of each row.
        target: The column to predict; several as A,B.
        features: The columns to predict from, as A,B (default: all others).
        weights: The column that says how many times a row counts.
        offset: The column that is added to the first output, such as the logarithm of an exposure.
        split: The column that says which split a task belongs to: train, validation or test.
        text: How a text file is written.
        options: How to learn.

    Returns:
        The exit status when interrupted.
    """
    from ..domains.tasks.sources import TasksFile

    columns = split_names(target), split_names(features), weights, offset, split
    return _fit(TasksFile(data, "frame", task, *columns, **text.given), options)


def images_command(
    *,
    data: str,
    side: Positive = 28,
    colour: Flag = False,
    options: Fit = Fit(),
) -> int | None:
    """Learn to classify images of new classes from a few images of each.

    A class is a folder with images in it, at any depth. If the folder has train/, then train/, val/ and test/
    are the splits; else classes are divided at random. Drawings may have any size, colours and contrast:
    pixels that differ from the colour of the border are ink. For drawings, --from omniglot starts from
    parameters that were learned on Omniglot, which helps most if there are few classes.

    Args:
        data: The folder.
        side: The side in pixels that images are shrunk to.
        colour: Keep colours, for photographs.
        options: How to learn.

    Returns:
        The exit status when interrupted.
    """
    from ..domains.tasks.sources import TasksFile

    return _fit(TasksFile(data, "images", side=side, colour=colour), options)


OWN: dict[str, Callable[..., int | None]] = {
    "arrays": arrays_command,
    "images": images_command,
    "frame": frame_command,
}


def object_at(text: str | None, option: str, known: tuple[str, ...] = ()) -> Imported | str | None:
    """Return what an option for a model or a loss names. A place of Python code is imported.

    Args:
        text: The option's text.
        option: The option.
        known: Names that are not places.

    Returns:
        The object; a known name as it is; None for none.

    Raises:
        ConfigError: If it is none of these.
    """
    from ..core.validation import not_one_of
    from ..domains.models.imported import FORM, imported

    if text is None or text in known:
        return text
    if known and ":" not in text and not text.endswith(".py"):
        message = not_one_of(option, text, known)
        hint = "" if "Hint" in message else f" Hint: one of your own is {FORM}."
        raise ConfigError(message + hint)
    return imported(text, option, made=option == "--model")


def shipped(origin: str) -> Path:
    """Return the artefact that --from means.

    Args:
        origin: A path, or the name of an artefact of this package, with or without -5w1s.

    Returns:
        The path.

    Raises:
        ConfigError: If it is neither.
    """
    from ..core.validation import some_of

    path = Path(origin)
    if path.exists() or len(path.parts) > 1:
        return path
    places = (Path("artefacts"), Path(__file__).parents[3] / "artefacts")
    found = {
        name: file
        for place in places
        for file in sorted(place.glob("*.safetensors"))
        for name in (file.stem, file.stem.removesuffix("-5w1s"))
    }
    if origin not in found:
        listed = "artefacts are in the folder artefacts/ of the repository; give the path of one"
        if found:
            listed = f"the artefacts here are {some_of(sorted(found))}"
        raise ConfigError(
            f"--from: expected a run directory or an artefact, got {origin!r}, and there is none. "
            f"Hint: {listed}."
        )
    return found[origin]


def beginning(learner: Learner, ways: int | None) -> tuple[Tree, int | None]:
    """Return the meta-parameters that a run starts from, and the classes of its tasks.

    Args:
        learner: What was learned before.
        ways: The classes of a task that were asked for, or None for as many as before.

    Returns:
        The meta-parameters; if the number of classes is another one, with a fresh head, and without learned
        strengths, as those may be of each parameter. And the classes.
    """
    from ..problems.precision import Theta

    domain, before = learner.config.domain, getattr(learner.config.domain, "ways", None) or None
    if ways is None or before is None or ways == before:
        return learner.theta, ways or before
    mean = Theta.of(learner.theta).mean
    return replace(domain, ways=ways).without_data().narrow(mean), ways  # type: ignore[type-var]


def _preview(tasks: Tasks, model: object, loss: object, given: Fit, ways: int | None, start: Tree) -> None:
    """Print what `fit` chooses before it trains, the sizes of splits, and the number of parameters."""
    import jax

    from ..domains.base import SPLITS
    from ..domains.tasks.build import domain_of

    names = ("shots", "queries", "order", "validation", "test", "seed")
    options: dict[str, Any] = {name: getattr(given, name) for name in names}
    domain, choices = domain_of(tasks, model, loss, ways=ways, start=start, **options)  # type: ignore[arg-type]
    for choice in choices:
        print(f"chosen     {choice}")
    held = {split: int(domain.splits[split].size) for split in SPLITS}
    kind = "classes" if tasks.episodes else "tasks"
    print(f"{kind:<11}" + ", ".join(f"{count:,} for {split}" for split, count in held.items()))
    print(
        f"a task     at most {domain.recipe.support} rows to learn from, {domain.recipe.queries} to predict"
        + " of each class" * tasks.episodes
    )
    shapes = jax.eval_shape(domain.init, jax.random.key(0))
    print(f"parameters {sum(leaf.size for leaf in jax.tree.leaves(shapes)):,}")


def _resumed(file: TasksFile, given: Fit) -> int | None:
    """Continue the run in --out."""
    from ..domains.tasks.own_losses import NAMED
    from ..training.directory import read_config
    from .train import train_command

    if given.out is not None:
        require_as_begun(file, given, read_config(given.out))
    again: dict[str, Any] = {name: getattr(given, name) for name in ("out", "model", *AGAIN)}
    loss = None if given.loss in NAMED else given.loss
    return train_command(resume=True, data=file.path, loss=loss, **again)


def require_as_begun(file: TasksFile, given: Fit, stored: Config) -> None:
    """Check that no option asks for another run than the one that is resumed.

    Args:
        file: The file that was named, with the options that say how it is read.
        given: The options.
        stored: The configuration of the run.

    Raises:
        ConfigError: If one does.
    """
    from ..domains.tasks.own_losses import NAMED
    from ..domains.tasks.sources import TasksFile

    domain: Any = stored.domain
    method: Any = stored.method
    if not domain.own_tasks:
        raise ConfigError(
            f"--resume: expected a run on tasks of your own in {given.out}, got one of a preset. Hint: imaml "
            f"train --resume --out {given.out}."
        )
    source = file if domain.file is None else domain.file
    known = {name: getattr(domain, name) for name in ("queries", "ways", "order")}
    known |= {"shots": domain.share or domain.support, "loss": domain.loss.kind}
    known |= {"validation": source.validation, "test": source.test}
    known |= {"seed": stored.training.seed, "tasks_per_step": stored.training.tasks}
    known |= {"strength": getattr(method, "strength", None), "adapt": getattr(method, "adapt", None)}
    asked = {f.name: getattr(given, f.name) for f in fields(Fit) if getattr(given, f.name) != f.default}
    asked = {name: value for name, value in asked.items() if name not in ("out", "resume", *AGAIN)}
    asked |= {"adapt": split_names(given.adapt)} if given.adapt else {}
    if given.model not in MODELS:  # one of their own is compared with the run's when it is loaded
        asked.pop("model", None)
    if given.loss not in NAMED:
        asked.pop("loss", None)
    usual = TasksFile(file.path)
    for field in fields(TasksFile):  # how it is read, not where it is
        value = getattr(file, field.name)
        if field.name != "path" and (field.name == "form" or value != getattr(usual, field.name)):
            asked[field.name], known[field.name] = value, getattr(source, field.name)
    for name, value in asked.items():
        was, now = (", ".join(v) if isinstance(v, tuple) else v for v in (known.get(name), value))
        if now != was:
            option = {"from_": "from", "form": "data", "targets": "target"}.get(name, name.replace("_", "-"))
            begun = "none with --resume" if was is None else f"{was!r}, as the run in {given.out} was begun"
            raise ConfigError(
                f"--{option}: expected {begun}, got {now!r}. Hint: omit it to continue that run, or "
                f"start a new run from its parameters with --from {given.out}."
            )


def _fit(file: TasksFile, given: Fit) -> int | None:
    """Learn, score and report."""
    if given.resume:
        return _resumed(file, given)
    prepare_jax()
    from ..domains.tasks.own_losses import NAMED
    from ..predict import load
    from ..training.directory import claimed, create_run_directory
    from ..training.fit import fit
    from .train import conclude

    model = object_at(given.model, "--model", MODELS)
    loss = object_at(given.loss, "--loss", tuple(NAMED))
    brought = {
        name: None if isinstance(value, str) else value for name, value in (("model", model), ("loss", loss))
    }
    start = None if given.from_ is None else load(shipped(given.from_), **brought)
    theta, ways = (None, given.ways) if start is None else beginning(start, given.ways)
    if file.form == "images" and not given.quiet:
        note(f"reading {file.path}")
    tasks = file.read()
    if not given.quiet:
        kind = "classes" if tasks.episodes else "tasks"
        note(f"read     {len(tasks):,} {kind} of {int(tasks.counts.sum()):,} rows from {file.path}")
        drawings = file.form == "images" and file.side == 28 and not file.colour
        if drawings and start is None and len(tasks) < FEW:
            note("hint     --from omniglot starts from parameters learned on Omniglot: best for few drawings")
    if given.dry_run:
        _preview(tasks, model, loss, given, ways, theta)
        return None
    names: tuple[str, ...] = ("shots", "queries", "order", "validation", "test", "strength", "tasks_per_step")
    chosen: dict[str, Any] = {name: getattr(given, name) for name in (*names, "steps", "minutes", "seed")}
    wanted = given.out or Path("runs") / (Path(file.path).stem or "tasks")
    with claimed(wanted, numbered=given.out is None) as out:
        create_run_directory(out)
        run = fit(
            tasks,
            model,
            loss,  # type: ignore[arg-type]
            ways=ways,
            adapt=split_names(given.adapt) or None,
            out=out,
            start=theta,
            progress=False if given.quiet else None,
            **chosen,
        )
        return conclude(run, out, given.quiet)
