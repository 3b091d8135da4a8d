"""Classes from vectors, with a Flax NNX module that has batch normalisation and dropout."""

import subprocess
import sys

import numpy as np
from flax import nnx

import imaml

FILE = sys.argv[1] if len(sys.argv) > 1 else "tastes.imaml"
rngs, rng = nnx.Rngs(0), np.random.default_rng(0)
layers = nnx.Linear(8, 32, rngs=rngs), nnx.BatchNorm(32, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
model = nnx.Sequential(*layers, nnx.relu, nnx.Linear(32, 2, rngs=rngs))
if "--adapt" not in sys.argv:
    person, taste = np.repeat(np.arange(60), 30), rng.normal(size=(60, 8)) + 1
    x = rng.normal(size=(len(person), 8))
    y = np.where(np.sum(x * taste[person], 1) > 0, "likes", "dislikes")
    run = imaml.fit(imaml.Tasks.from_arrays(x, y, person), model, shots=10, strength=0.3, steps=200)
    print(run.evaluate(), flush=True)
    run.save(FILE)
    subprocess.run([sys.executable, __file__, FILE, "--adapt"], check=True)  # another process
else:
    predictor = imaml.load(FILE, model=model).adapt(rng.normal(size=(10, 8)), ["likes", "dislikes"] * 5)
    print(predictor.predict_proba(rng.normal(size=(3, 8)), uncertainty=True))
