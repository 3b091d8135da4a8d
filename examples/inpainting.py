"""The hidden half of a drawing from ten others of its character, as the least of an energy near what is seen.

    python examples/inpainting.py [STEPS]     # 200 by default, about two minutes

Two solutions, one within the other: the energy's parameters are fitted to the ten drawings near theta, and a
drawing is completed by minimising the energy over its pixels. The meta-gradient goes through both.
"""

import sys

import jax

import imaml

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
domain = imaml.restoration(shots=10, damage="half")
method = imaml.IMAML(
    domain.problem(0.01, curvature="gauss-newton"),
    domain.query_loss,
    inner=imaml.NewtonCG(steps=3, linear=imaml.CG(steps=10)),
    linear=imaml.CG(steps=10),
)
run = imaml.train(
    domain, method, imaml.Optimiser("adam", 3e-3, clip=1.0), steps=steps, tasks=8, validate_every=0
)

task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(1))  # a character that was never seen
phi, _ = jax.jit(method.adapt)(run.theta, task.support)
for name, parameters in (("before adaptation", run.theta), ("after", phi)):
    print(f"{name}: squared error of hidden pixels {jax.jit(domain.metrics)(parameters, task)['mse']:.4f}")
for name, error in jax.jit(domain.baselines)(task).items():
    print(f"{name}: {error:.4f}")
