"""`tables-evidence` beside statsmodels' mixed model: the same estimates, on tables of all sizes.

    python -m benchmarks run mixed --data sleepstudy.csv

Random intercept and slope for each group, maximum likelihood; sleepstudy (Reaction from Days, 18 people), and
simulated tables of 10 to 1,000 groups with 2 to 500 rows each. statsmodels runs in an environment of its own.
Differences are relative; of a covariance in units of its standard deviations, as those of the effects.
"""

import contextlib
import io
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

import imaml
from benchmarks.harness import HERE, benchmark
from benchmarks.peers import environments
from imaml.cli.main import main as command
from imaml.domains.tables.files import read_table
from imaml.domains.tables.mixed_model import learned_prior

TRUTH = {"mean": [3.0, -2.0], "covariance": [[4.0, 0.5], [0.5, 1.0]], "noise_variance": 0.25}
EFFECTS = 20  # groups whose effects are compared: each number of rows is compiled anew
SIMULATED = ((10, 2, 6), (10, 2, 500), (100, 2, 20), (300, 2, 100), (1000, 2, 10), (1000, 2, 500))


def simulate(groups, least, most, path):
    """Writes a table of so many groups of `least` to `most` rows, drawn from TRUTH."""
    random = np.random.default_rng((groups, most))
    rows = ["who,x,y"]
    for group in range(groups):
        line = random.multivariate_normal(TRUTH["mean"], TRUTH["covariance"])
        x = random.normal(5, 2, random.integers(least, most + 1))
        y = line[0] + line[1] * x + TRUTH["noise_variance"] ** 0.5 * random.normal(size=len(x))
        rows += [f"g{group},{a!r},{b!r}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    Path(path).write_text("\n".join(rows) + "\n")


def learned(preset, path, group, target, feature, out):
    """Runs `imaml train` on a table; returns what it learned, and the seconds taken."""
    words = [f"--data={path}", f"--task={group}", f"--target={target}", f"--features={feature}"]
    words += [f"--out={out}", "--quiet", "--training.test_tasks=0"]
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        status = command(["train", preset, *words])
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"imaml train ended with status {status}")
    return imaml.load(out), seconds


def ours(path, group, target, feature, out):
    """What `tables-evidence` learns, in the table's units, and each group's effect."""
    found, seconds = learned("tables-evidence", path, group, target, feature, out)
    prior = learned_prior(found.config.domain, found.theta, found.method.problem)
    mean = np.array(list(prior["mean"].values()))
    table = read_table(path)
    names, x, y = np.array(table.columns[group]), table.numbers(feature, ""), table.numbers(target, "")
    effects = {}
    for name in list(dict.fromkeys(names.tolist()))[:EFFECTS]:
        rows = names == name
        at = np.asarray(found.adapt({feature: x[rows]}, y[rows]).predict({feature: [0.0, 1.0]}))
        effects[str(name)] = [float(at[0] - mean[0]), float(at[1] - at[0] - mean[1])]
    figures = {"mean": mean, "covariance": np.asarray(prior["covariance"])}
    figures |= {"noise_variance": float(prior["noise_variance"]), "effects": effects}
    return {"seconds": seconds, **figures, "rows": len(y), "groups": len(set(names.tolist()))}


def differences(found, other):
    """How far two fits are apart, see above."""
    mean, spread = np.array(other["mean"]), np.array(other["covariance"])
    scale = np.sqrt(np.diag(spread))
    apart = {"mean": np.max(np.abs(found["mean"] / mean - 1))}
    apart["covariance"] = np.max(np.abs(found["covariance"] - spread) / np.outer(scale, scale))
    apart["noise_variance"] = abs(found["noise_variance"] / other["noise_variance"] - 1)
    if "effects" in other:
        gaps = [np.array(effect) - other["effects"][name] for name, effect in found["effects"].items()]
        apart["effects"] = np.max(np.abs(gaps) / scale)
    return apart


def compared(name, path, group, target, feature, truth=None):
    """A row of the results: both fits of one table."""
    with tempfile.TemporaryDirectory() as folder:
        found = ours(path, group, target, feature, Path(folder) / "run")
    reference = [environments.python_of("statsmodels"), HERE / "learning" / "mixed_reference.py"]
    words = [*reference, path, group, target, feature]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    row = {"table": name, "groups": found["groups"], "rows": found["rows"]}
    if run.returncode:
        row["statsmodels"] = run.stderr.strip().splitlines()[-1]
    else:
        other = json.loads(run.stdout)
        row["difference"] = differences(found, other)
        row["statsmodels"] = {k: v for k, v in other.items() if k != "effects"}
    row["imaml"] = {k: v for k, v in found.items() if k not in ("effects", "rows", "groups")}
    if truth:
        groups, free = row["groups"], row["rows"] - 2 * row["groups"]
        variances = np.diag(truth["covariance"])
        off = np.abs(found["mean"] - np.array(truth["mean"])) / np.sqrt(variances / groups)
        spread = np.abs(np.diag(found["covariance"]) / variances - 1) / np.sqrt(2 / (groups - 1))
        noise = abs(found["noise_variance"] / truth["noise_variance"] - 1) / np.sqrt(2 / free)
        far = {"mean": np.max(off), "variances": np.max(spread), "noise_variance": noise}
        row["standard_errors_from_truth"] = far
    return row


@benchmark("mixed", quick={"simulated": 1})
def main(run, data, simulated=len(SIMULATED)):
    """Fits the sleepstudy and so many simulated tables by both."""
    problem = environments.install("statsmodels")
    if problem:
        raise SystemExit(problem)
    run.add(compared("sleepstudy", data, "Subject", "Reaction", "Days"))
    for groups, least, most in SIMULATED[:simulated]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.csv"
            simulate(groups, least, most, path)
            name = f"simulated, {groups} groups of {least} to {most} rows"
            run.add(compared(name, path, "who", "y", "x", TRUTH))
