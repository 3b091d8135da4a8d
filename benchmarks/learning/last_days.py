"""A new person's last days from the first ones: adapted, pooled, and a model of each one's own.

    python -m benchmarks run last_days --data PATH

The sleepstudy table (18 people, 10 days; --data is its CSV file), Reaction from Days. People are held out a
few at a time: presets learn from the others, then see the first SHOTS days of one held out and predict the
rest, with 90 % intervals. Beside them one least-squares line for all of the others, and one for the first
days alone. Differences of root mean squared errors are paired over the 18 people; intervals are Student's.
"""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import benchmark, interval
from benchmarks.learning.mixed import learned

SHOTS = (2, 5)
PRESETS = ("tables", "tables-evidence")


def lines(train, first, last):
    """Predictions of the last days by least squares: of all the others' rows, and of the first days alone."""
    fit = lambda rows: np.polyfit(rows["Days"], rows["Reaction"], 1)  # noqa: E731
    fitted = {"pooled model": fit(train), "model of its own": fit(first)}
    return {name: np.polyval(line, last["Days"]) for name, line in fitted.items()}


def columns(rows):
    """Rows as a mapping from columns to values."""
    return {name: rows[name] for name in ("Days", "Reaction")}


@benchmark("last_days", quick={"folds": 2})
def main(run, data, folds=6):
    """Learns from the people of each fold's complement, and predicts those of the fold."""
    table = np.genfromtxt(data, delimiter=",", names=True, usecols=("Reaction", "Days", "Subject"))
    people = np.random.default_rng(0).permutation(np.unique(table["Subject"]))
    errors, covered = {shots: {} for shots in SHOTS}, {shots: {} for shots in SHOTS}
    for out in np.array_split(people, folds):
        train = table[~np.isin(table["Subject"], out)]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.csv"
            np.savetxt(path, train, "%.17g", ",", header=",".join(table.dtype.names), comments="")
            names = ("Subject", "Reaction", "Days")
            learners = {name: learned(name, path, *names, Path(folder) / name)[0] for name in PRESETS}
        for person in out:
            rows = np.sort(table[table["Subject"] == person], order="Days")
            for shots in SHOTS:
                first, last = rows[:shots], rows[shots:]
                truth = last["Reaction"]
                answers = lines(train, first, last)
                for name, learner in learners.items():
                    found = learner.adapt(columns(first)).predict_interval(columns(last))
                    answers[name] = found.mean
                    inside = (found.low <= truth) & (truth <= found.high)
                    covered[shots].setdefault(name, []).append(float(inside.mean()))
                for name, answer in answers.items():
                    error = float(np.sqrt(np.mean((answer - truth) ** 2)))
                    errors[shots].setdefault(name, []).append(error)
    for shots in SHOTS:
        for name, values in errors[shots].items():
            row = {"first_days": shots, "what": name, "people": len(values)}
            row["rmse"], row["rmse_ci95"] = interval(values, student=True)
            if name in covered[shots]:
                row["covered"] = interval(covered[shots][name], student=True)
                for other in ("pooled model", "model of its own"):
                    gap = np.array(values) - errors[shots][other]
                    row[f"less {other}"] = interval(gap, student=True)
            run.add(row, folds=folds)
