"""Arrays whose rows are grouped by a label: each group is a task, here a sensor with its offset and gain."""

import subprocess
import sys

import numpy as np

import imaml

FILE = sys.argv[1] if len(sys.argv) > 1 else "sensors.imaml"
rng = np.random.default_rng(0)

if "--adapt" not in sys.argv:
    sensor = np.repeat(np.arange(60), 20)
    gain, offset = rng.normal(2, 0.5, 60), rng.normal(0, 1, 60)
    x = rng.uniform(-1, 1, len(sensor))
    y = gain[sensor] * np.sin(2 * x) + offset[sensor] + rng.normal(0, 0.1, len(sensor))
    tasks = imaml.Tasks.from_arrays(x, y, groups=sensor)
    run = imaml.fit(tasks, imaml.MLP((1, 32, 32, 1)), shots=5, strength=0.03, steps=100)
    print(run.evaluate(), flush=True)
    run.save(FILE)
    subprocess.run([sys.executable, __file__, FILE, "--adapt"], check=True)  # another process
else:
    predictor = imaml.load(FILE).adapt(x=[-0.9, -0.3, 0.2, 0.5, 0.9], y=[-0.4, 0.4, 1.8, 2.8, 3.1])
    print(predictor.predict_interval([0.0, 0.7]))
