"""Values of a new maze from eight random walks in it, by soft Q-learning from a start that many mazes taught.

    python examples/q_learning.py [STEPS]     # 300 by default, about a minute

The inner solution is where temporal differences are zero near theta. That is the gradient of nothing: the
linear system is not symmetric, conjugate gradients refuse it, and BiCGStab solves it.
"""

import sys

import jax

import imaml

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
domain = imaml.mazes(side=6, walks=8)
method = imaml.IMAML(
    domain.problem(0.02),
    domain.query_loss,
    inner=imaml.GradientDescent(0.2, steps=80),
    linear=imaml.BiCGStab(steps=20),
)
run = imaml.train(
    domain, method, imaml.Optimiser("adam", 3e-3, clip=1.0), steps=steps, tasks=16, validate_every=0
)

task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(1))  # a maze that was never seen
phi, solution = jax.jit(method.adapt)(run.theta, task.support)
print(f"a new maze, from {task.support.states.size} moves in it; |F| {solution.stats.residual:.1e}")
for name, parameters in (("before adaptation", run.theta), ("after", phi)):
    print(f"{name}: return of the greedy policy {jax.jit(domain.metrics)(parameters, task)['return']:.2f}")
for name, value in jax.jit(domain.baselines)(task).items():
    print(f"{name}: {value:.2f}")
