"""Tables of known mixed models, and what lme4 and glmmTMB estimate of them.

`python tests/helpers/mixed_models.py [SLEEPSTUDY.csv] > tests/recorded/mixed_models.json` records the
estimates anew; it needs R with lme4 and glmmTMB.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# Rows of a group, fixed effects of (1, x, z), the standard deviation between groups, and what rows are.
SIMULATED = {
    "gaussian": ("gaussian", 40, (2, 8), (3.0, -2.0, 0.5), 1.5),
    "gaussian, small": ("gaussian", 25, (3, 3), (0.2, 0.4, 0.0), 0.6),
    # Tables of one shape, so that the second finds the program of the first.
    "poisson": ("poisson", 40, (3, 10), (0.3, 0.5, -0.3), 0.8),
    "poisson, few counts": ("poisson", 40, (3, 10), (-0.7, 0.4, 0.2), 0.5),
    "negative binomial": ("negative_binomial", 40, (3, 8), (1.0, 0.4, -0.3), 0.7),
    "negative binomial, less spread": ("negative_binomial", 40, (3, 8), (0.6, -0.5, 0.3), 0.5),
}
SIZE = 2.0  # of the negative binomial distribution: a variance of m + m^2 / SIZE


def simulated(name):
    """The columns of a table: g, x, z, e (the offset) and y."""
    kind, groups, (least, most), effects, spread = SIMULATED[name]
    random = np.random.default_rng(list(SIMULATED).index(name) + 100)
    g = np.repeat(np.arange(groups), random.integers(least, most + 1, groups))
    x, z, e = random.normal(size=(3, len(g)))
    x, e = x + 2, 0.5 * e * (kind != "gaussian")
    line = np.stack([np.ones_like(x), x, z], 1) @ effects + spread * random.normal(size=groups)[g] + e
    if kind == "gaussian":
        y = line + random.normal(size=len(g))
    else:
        more = random.gamma(SIZE, 1 / SIZE, len(g)) if kind == "negative_binomial" else 1.0
        y = random.poisson(np.exp(line) * more)
    return {"g": g, "x": x, "z": z, "e": e, "y": y}


def write(columns, path):
    """Write a table as CSV."""
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
    Path(path).write_text("\n".join(lines) + "\n")


def main(sleepstudy=None):
    """Print the estimates as JSON."""
    script, found = Path(__file__).with_suffix(".R"), {}
    with tempfile.TemporaryDirectory() as folder:
        models = []
        for name in SIMULATED:
            path = Path(folder) / f"{len(models)}.csv"
            write(simulated(name), path)
            models.append((name, path, SIMULATED[name][0], "y ~ x + z + offset(e) + (1 | g)"))
        models.append(("gaussian, no features", models[0][1], "gaussian", "y ~ 1 + (1 | g)"))
        models.append(("gaussian, slopes", models[0][1], "gaussian", "y ~ x + z + (1 + x | g)"))
        if sleepstudy:
            for name, varying in (("sleepstudy, intercepts", "1"), ("sleepstudy, slopes", "Days")):
                models.append((name, sleepstudy, "gaussian", f"Reaction ~ Days + ({varying} | Subject)"))
        for name, path, kind, formula in models:
            run = subprocess.run(
                ["Rscript", script, path, kind, formula], capture_output=True, text=True, check=True
            )
            found[name] = {"model": formula, **json.loads(run.stdout)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
