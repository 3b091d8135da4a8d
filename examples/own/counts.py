"""A data frame of counts per person: Poisson regression, in which each person has a level of their own."""

import subprocess
import sys

import numpy as np
import pandas as pd

import imaml

FILE = sys.argv[1] if len(sys.argv) > 1 else "counts.imaml"
rng = np.random.default_rng(0)

if "--adapt" not in sys.argv:
    frame = pd.DataFrame({"person": np.repeat(np.arange(80), 12), "dose": np.tile(np.linspace(0, 2, 12), 80)})
    level = rng.normal(0.5, 0.8, 80)
    frame["events"] = rng.poisson(np.exp(level[frame["person"]] + 1.0 * frame["dose"]))
    tasks = imaml.Tasks.from_frame(frame, task="person", target="events")
    run = imaml.fit(tasks, "linear", loss="poisson", shots=4, strength=1.0, steps=300)
    print(run.evaluate(), flush=True)
    run.save(FILE)
    subprocess.run([sys.executable, __file__, FILE, "--adapt"], check=True)  # another process
else:
    new = pd.DataFrame({"dose": [0.0, 0.5, 1.0], "events": [2, 3, 6]})
    print(imaml.load(FILE).adapt(new).predict_interval(pd.DataFrame({"dose": [1.5, 2.0]})))
