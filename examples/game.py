"""A generator that learns to imitate a new density from 24 points, against a discriminator.

    python examples/game.py [STEPS]     # 300 by default, about two minutes

The inner solution is where neither player gains by moving, near theta. Simultaneous gradient steps may circle
around it; the extragradient method looks a step ahead. BiCGStab solves the system behind the meta-gradient.
"""

import sys

import jax

import imaml

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
domain = imaml.imitation("curves", shots=24)
method = imaml.IMAML(
    domain.problem(0.1),
    domain.query_loss,
    inner=imaml.ExtraGradient(0.03, steps=60),
    linear=imaml.BiCGStab(steps=15),
)
run = imaml.train(
    domain, method, imaml.Optimiser("adam", 3e-3, clip=1.0), steps=steps, tasks=16, validate_every=0
)

task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(1))  # a density that was never seen
phi, solution = jax.jit(method.adapt)(run.theta, task.support)
score = jax.jit(domain.metrics)
print(f"a new density, from 24 of its points; |F| {solution.stats.residual:.1e} after 60 steps")
for name, parameters in (("before adaptation", run.theta), ("after", phi)):
    found = score(parameters, task)
    accuracy = 100 * found["told_apart"]
    print(f"{name}: two-sample statistic {found['mmd']:.3f}, discriminator accuracy {accuracy:.0f} %")
for name, statistic in jax.jit(domain.baselines)(task).items():
    print(f"{name}: {statistic:.3f}")
