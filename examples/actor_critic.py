"""A point steered to a goal that only rewards tell, by actor and critic, from four random walks.

    python examples/actor_critic.py [STEPS]     # 300 by default, about a minute

Actor and critic are adapted together: each is stationary given the other, and neither minimises anything
alone. The system behind the meta-gradient is therefore not symmetric, and conjugate gradients refuse it:
BiCGStab solves it.
"""

import sys

import jax

import imaml

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
domain = imaml.navigation(episodes=4, length=16)
method = imaml.IMAML(
    domain.problem(1.0),
    domain.query_loss,
    inner=imaml.GradientDescent(0.1, steps=40),
    linear=imaml.BiCGStab(steps=15),
)
run = imaml.train(
    domain, method, imaml.Optimiser("adam", 3e-3, clip=1.0), steps=steps, tasks=16, validate_every=0
)

task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(1))  # a goal that was never seen
phi, solution = jax.jit(method.adapt)(run.theta, task.support)
score = jax.jit(domain.metrics)
print(f"a new goal at {task.query.goal}; |F| {solution.stats.residual:.1e} after 40 steps")
for name, parameters in (("before adaptation", run.theta), ("after", phi)):
    print(f"{name}: return {score(parameters, task)['return']:.3f}")
for name, gain in jax.jit(domain.baselines)(task).items():
    print(f"{name}: {gain:.3f}")
