"""More drawings of a new character after seeing ten, by a generator against a discriminator.

    python examples/generation.py [STEPS]     # 800 by default, about four minutes

Both players stay near theta. A penalty on the discriminator's slope makes their game turn inwards, so plain
descent of both arrives at its stationary point. GMRES solves the system behind the meta-gradient, which is
not symmetric. A task whose players went around in circles would be said to have CYCLED, and not be averaged
in.
"""

import sys

import jax

import imaml

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 800
domain = imaml.generation(shots=10)
method = imaml.IMAML(
    domain.problem(0.1),
    domain.query_loss,
    inner=imaml.GradientDescent(0.03, steps=250),
    linear=imaml.GMRES(steps=10),
)
run = imaml.train(
    domain, method, imaml.Optimiser("adam", 5e-3, clip=1.0), steps=steps, tasks=8, validate_every=0
)

task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(1))  # a character that was never seen
phi, solution = jax.jit(method.adapt)(run.theta, task.support)
print(f"a new character, from ten drawings; |F| {solution.stats.residual:.1e}, {solution.status.ending.name}")
for name, parameters in (("before adaptation", run.theta), ("after", phi)):
    found = jax.jit(domain.metrics)(parameters, task)
    print(f"{name}: two-sample statistic {found['mmd']:.3f}, recognised {100 * found['recognised']:.0f} %")
for name, statistic in jax.jit(domain.baselines)(task).items():
    print(f"{name}: {statistic:.3f}")
