"""Densities from twelve points each, by an energy that was learned on other densities.

    python examples/energy.py [STEPS]     # 300 by default, about a minute

The inner problem is score matching, which needs no normaliser; the plane is small, so that the likelihood of
other points, which theta is learned by, is summed on a grid.
"""

import sys

import jax

import imaml

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
domain = imaml.densities("curves", shots=12)
solver = imaml.CG(steps=15)
method = imaml.IMAML(
    domain.problem(0.02, curvature="gauss-newton"),  # near theta: strength 0.02
    domain.query_loss,
    inner=imaml.NewtonCG(steps=4, linear=solver),
    linear=solver,
)
run = imaml.train(
    domain, method, imaml.Optimiser("adam", 3e-3, clip=1.0), steps=steps, tasks=16, validate_every=0
)

task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(1))  # a density that was never seen
phi, solution = jax.jit(method.adapt)(run.theta, task.support)
score = jax.jit(domain.metrics)
print(f"a new density, from 12 of its points: inner solve {solution.status.ending.name}")
for name, parameters in (("before adaptation", run.theta), ("after", phi)):
    print(f"{name}: {score(parameters, task)['nll']:.2f} nats a point")
for name, nats in jax.jit(domain.baselines)(task).items():
    print(f"{name}: {nats:.2f}")
