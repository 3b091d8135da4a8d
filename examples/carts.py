"""A pole kept up on a cart whose motor may be wired either way, in Gymnasium, after 100 random pushes.

    python examples/carts.py [STEPS]     # 300 by default, about a minute; needs gymnasium

The environment is stepped outside of JAX: its random episodes are data, made once, and a policy is judged in
it through a callback. Nothing needs its derivative. The learned theta keeps no pole up by itself, as it
cannot know the wiring; adapted actors and critics do.
"""

import sys

import jax

import imaml

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
domain = imaml.carts(steps=100)
method = imaml.IMAML(
    domain.problem(1.0),
    domain.query_loss,
    inner=imaml.GradientDescent(0.1, steps=40),
    linear=imaml.GMRES(steps=15),
)
run = imaml.train(
    domain, method, imaml.Optimiser("adam", 3e-3, clip=1.0), steps=steps, tasks=16, validate_every=0
)

keys = jax.random.split(jax.random.key(1), 8)
tasks = jax.vmap(lambda key: domain.sample(key, "test"))(keys)  # carts that were never seen
phi, solution = jax.jit(jax.vmap(method.adapt, (None, 0)))(run.theta, tasks.support)
print("force of the motors:", tasks.query.physics[:, -1].round(1))
for name, parameters, axis in (("before adaptation", run.theta, None), ("after", phi, 0)):
    up = jax.jit(jax.vmap(domain.metrics, (axis, 0)))(parameters, tasks)["return"]
    print(f"{name}: poles stay up for {up.mean():.0f} pushes of 200")
for name, up in jax.jit(jax.vmap(domain.baselines))(tasks).items():
    print(f"{name}: {up.mean():.0f}")
