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
inner = imaml.GradientDescent(0.2, tolerance=1e-4)  # how well each task is solved
linear = imaml.CG(tolerance=1e-3)  # how well its meta-gradient is
method = imaml.IMAML(problem, lambda phi, theta, batch: loss(phi, batch), inner=inner, linear=linear)
gradient, known = jax.jit(method)(theta, tasks)  # the mean implicit meta-gradient, shaped like theta
method.check(known)  # warns of excluded tasks, and raises if none was used; inside jit neither is possible
# |F|: length of the inner problem's gradient, loss'(phi) + strength (phi - theta), which is 0 at a solution
print("|F| at the solutions", known.inner_residual.max(), "in steps", known.inner_steps.max())
print("relative residual of the linear solves", known.linear_residual.max(), known.linear_status)
