"""A pendulum of unknown mass, length and friction swung up, from two short runs under random torques.

    python examples/trajectory.py [STEPS]     # 300 by default, some minutes

A model of the pendulum is adapted to what was measured; iterative LQR plans the swing-up with it; the plan
and its feedback are followed on the true pendulum.
"""

import sys

import jax

import imaml

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
domain = imaml.plants("pendulum")
solver = imaml.CG(steps=15)
method = imaml.IMAML(
    domain.problem(0.05, curvature="gauss-newton"),
    domain.query_loss,
    inner=imaml.NewtonCG(steps=4, linear=solver),
    linear=solver,
)
run = imaml.train(
    domain, method, imaml.Optimiser("adam", 3e-3, clip=1.0), steps=steps, tasks=16, validate_every=0
)

task = jax.jit(lambda key: domain.sample(key, "test"))(jax.random.key(1))  # a pendulum that was never seen
phi, _ = jax.jit(method.adapt)(run.theta, task.support)
plan = jax.jit(domain.plan)
follow = jax.jit(domain.followed)
for name, parameters in (("before adaptation", run.theta), ("after", phi)):
    planned = plan(parameters)
    states, _, cost = follow(planned.value, task.query.physics)
    print(f"{name}: cost {cost:.1f}, the last angle {states[-1, 0]:.2f}; {planned.status.ending.name}")
print(f"where the pendulum is known: {jax.jit(domain.best)(task.query.physics).cost:.1f}")
