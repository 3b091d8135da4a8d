"""`imaml adapt`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from ..core.streams import note
from ..storage.programs import keep_programs
from .options import Flag, print_json


def adapt_command(
    run: Annotated[str, Parameter(name="RUN")],
    /,
    *,
    support: str,
    query: str,
    uncertainty: Flag = False,
    json: Flag = False,
) -> None:
    """Adapt a trained run to a new task, and predict.

    For a run on images, the support directory holds a directory of images for each class. Prints a line for
    each query image: file, class, probability. PNG, JPEG, GIF, BMP, TIFF, WebP, PGM and PPM are read, up to
    40 million pixels when padded to a square, dark on light or light on dark. Each answer depends on its own
    image and the support set alone.

    For a run on a table, both files hold rows of the new task, the support file with the target's column.
    Prints a head and a line for each query row: its number, its task, the answer.

    Args:
        run: Run directory or artefact.
        support: Labelled examples of the new task: DIR/CLASS/*.png, or FILE.csv.
        query: What to predict: a directory of images, or FILE.csv.
        uncertainty: Use the task's posterior. Probabilities are lower where the support set says little,
            which helps to detect images of none of the classes; they are not calibrated. Numbers of a table
            get an interval of 90 % probability.
        json: Print JSON.
    """
    keep_programs()

    from ..predict import load

    learned = load(run)
    domain = learned.config.domain.without_data()
    few = domain.read(support)
    asked = domain.read(query, query=True)
    predictor = learned.adapt(few)
    found = domain.answers(predictor, few, asked, uncertainty)
    status = predictor.solution.status
    if not bool(status.ok):
        note(f"imaml: warning: the inner solve ended in {status.ending.name}. {status.advice}")
    if json:
        print_json({**found.about, "status": status.ending.name, "run": run, "predictions": found.rows})
        return
    for line in found.lines:
        print(line)
    if judged := found.note():
        note(f"imaml: {judged}")
