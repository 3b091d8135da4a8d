"""A list of tasks with any number of rows, and a model of Equinox."""

import subprocess
import sys

import equinox as eqx
import jax
import numpy as np

import imaml

FILE = sys.argv[1] if len(sys.argv) > 1 else "curves.imaml"
model = eqx.nn.MLP(1, 1, width_size=32, depth=2, activation=jax.nn.tanh, key=jax.random.key(0))
rng = np.random.default_rng(0)

if "--adapt" not in sys.argv:
    inputs = [rng.uniform(0, 1, (rng.integers(6, 40), 1)) for _ in range(60)]
    tasks = imaml.Tasks.from_list([(x, np.exp(-rng.uniform(0.5, 2) * x[:, 0])) for x in inputs])
    run = imaml.fit(tasks, model, shots=3, strength=0.01, steps=100)
    print(run.evaluate(), flush=True)
    run.save(FILE)
    subprocess.run([sys.executable, __file__, FILE, "--adapt"], check=True)  # another process
else:
    predictor = imaml.load(FILE, model=model).adapt(x=[[0.1], [0.4], [0.8]], y=[0.9, 0.65, 0.4])
    print(predictor.predict_interval([[0.6], [1.0]]))
