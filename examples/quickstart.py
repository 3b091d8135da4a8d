import numpy as np

import imaml

rng = np.random.default_rng(0)  # 60 people, each with a level and a trend, on 8 days
person, day = np.divmod(np.arange(480), 8)
level, trend = rng.normal(250, 30, 60), rng.normal(10, 4, 60)
score = level[person] + trend[person] * day + rng.normal(0, 5, 480)

tasks = imaml.Tasks.from_arrays(day, score, groups=person)  # each person is a task
run = imaml.fit(tasks, "linear", shots=3, order="first", steps=200)  # the first 3 days predict the others
print(run.evaluate())  # held-out people, with baselines
run.save("people.imaml")
predictor = imaml.load("people.imaml").adapt([0, 1, 2], [280.0, 284.0, 293.0])  # three days of a new person
print(predictor.predict_interval([6, 7]))  # two later days
