import jax
import jax.numpy as jnp

import imaml


def loss(phi, batch):  # one task's loss: any function of its parameters and its data
    x, y = batch
    return 0.5 * jnp.mean((jnp.tanh(x @ phi["hidden"]) @ phi["out"] - y) ** 2)


keys = jax.random.split(jax.random.key(0), 4)
theta = {"hidden": jax.random.normal(keys[0], (3, 8)), "out": 0.3 * jax.random.normal(keys[1], (8,))}
x, weights = jax.random.normal(keys[2], (16, 20, 3)), jax.random.normal(keys[3], (16, 3))
y = jnp.sin(jnp.einsum("tnd,td->tn", x, weights))  # sixteen tasks of twenty points
tasks = imaml.Task(support=(x[:, :10], y[:, :10]), query=(x[:, 10:], y[:, 10:]))

problem = imaml.proximal(loss, strength=0.5)  # loss(phi) + 0.5/2 |phi - theta|^2
inner = imaml.GradientDescent(0.2, tolerance=1e-4)  # tolerance of the inner solve
linear = imaml.CG(tolerance=1e-3)  # relative tolerance of the linear solve
method = imaml.IMAML(problem, lambda phi, theta, batch: loss(phi, batch), inner=inner, linear=linear)
gradient, metrics = jax.jit(method)(theta, tasks)  # the mean implicit meta-gradient, shaped like theta
method.check(metrics)  # warns about excluded tasks, raises if every task was; call it outside of jit
# |F|: norm of the inner objective's gradient, loss'(phi) + strength (phi - theta); zero at a solution
print("|F| at the solutions", metrics.inner_residual.max(), "in steps", metrics.inner_steps.max())
print("relative residual of the linear solves", metrics.linear_residual.max(), metrics.linear_status)
