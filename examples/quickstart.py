import numpy as np

import imaml
from imaml.config import Method

rng = np.random.default_rng(0)  # a table of 40 people, each with a level and a trend, on 8 days
level, trend = rng.normal(250, 30, 40), rng.normal(10, 4, 40)
with open("scores.csv", "w") as file:
    print("person,day,score", file=file)
    for person, day in np.ndindex(40, 8):
        print(f"{person},{day},{level[person] + trend[person] * day + rng.normal(0, 5)}", file=file)

domain = imaml.tables("scores.csv", task="person", target="score")  # each person is a task
method = Method("imaml", strength=0.1, inner=imaml.NewtonCG(steps=2), linear=imaml.CG(steps=5))
run = imaml.train(domain, method, imaml.Optimiser("adam", 0.02), steps=300, tasks=8, validate_every=0)
predictor = run.adapt({"day": [0, 1, 2]}, [280.0, 284.0, 293.0])  # three days of a new person
print(predictor.predict({"day": [6, 7]}))  # two later days
