"""`imaml adapt`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..core.errors import ConfigError
from ..core.streams import note
from ..storage.programs import keep_programs
from .options import Flag, Reading, print_json, with_options
from .own_tasks import object_at

if TYPE_CHECKING:
    from ..core.solution import Status
    from ..core.tree import Tree
    from ..predict import Predictor


def adapt_command(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    support: str | None = None,
    query: str,
    uncertainty: Flag = False,
    model: str | None = None,
    loss: str | None = None,
    reading: Reading = Reading(),
    json: Flag = False,
) -> None:
    """Adapt a trained run to a new task, and predict.

    For a run on images, the support directory holds a directory of images for each class. Prints a line for
    each query image: file, class, probability. Reads PNG, JPEG, GIF, BMP, TIFF, WebP, PGM and PPM, up to 40
    million pixels when padded to a square, dark on light or light on dark. Each prediction depends only on
    its own image and the support set.

    For a run of imaml train tables, both files hold rows of new tasks, the support file with the target's
    column. The model adapts to each task from its own rows; a task without support rows gets the prediction
    for the population of all tasks. Prints a header and a line for each query row: its number, its task, the
    prediction.

    For a run of imaml train arrays or frame, both files hold rows of one new task: an .npz file with x, or a
    table with the feature columns; the support file also has y or the target column. Tables with the column
    that names the task may hold rows of several tasks. Prints a header and a line for each query row: its
    number, its task if there are several, the prediction.

    Args:
        run: Run directory or artefact.
        support: Labelled examples of the new task: DIR/CLASS/*.png, FILE.csv or FILE.npz. Without it,
            answers for a table are those for a task without rows.
        query: What to predict: a directory of images, FILE.csv or FILE.npz.
        uncertainty: Use the task's posterior. Probabilities are lower if the support set is uninformative,
            which helps to detect images of unknown classes; they are not calibrated. Numeric predictions get
            a 90 % interval.
        model: The model that the run was fitted with if it is your own, FILE.py:NAME. This executes the file.
        loss: Your own loss, in the same form.
        reading: How a new table is read.
        json: Print JSON.
    """
    keep_programs()

    from ..predict import load

    learned = load(run, model=object_at(model, "--model"), loss=object_at(loss, "--loss"))
    recipe = with_options(learned.config.domain, **vars(reading))
    learned = replace(learned, config=replace(learned.config, domain=recipe))
    if support is None and not (recipe.reads_table or recipe.own_tasks):
        raise ConfigError(
            "adapt: expected --support, got nothing. Hint: a run on a table alone can do without examples."
        )
    domain = recipe.without_data()
    few = None if support is None else domain.read(support)
    asked = domain.read(query, query=True)
    statuses: list[Status] = []

    def adapt(x: Tree) -> Predictor:
        predictor = learned.adapt(x)
        statuses.append(predictor.solution.status)
        return predictor

    found = domain.answers_each(adapt, few, asked, uncertainty)
    status = next((one for one in statuses if not bool(one.ok)), statuses[0])
    if not bool(status.ok):
        note(f"imaml: warning: the inner solve ended in {status.ending.name}. {status.advice}")
    if json:
        print_json({**found.about, "status": status.ending.name, "run": run, "predictions": found.rows})
        return
    for line in found.lines:
        print(line)
    if judged := found.note():
        note(f"imaml: {judged}")
