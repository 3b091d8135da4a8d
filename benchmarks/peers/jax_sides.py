"""imaml, and the JAX libraries: jaxopt and Optimistix. Each builds `run()` and the meta-gradient's vector.

jaxopt's is written as its users would, with XLA's convolution; and with imaml's network.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from scipy.sparse.linalg import LinearOperator, minres

import imaml as ours
from imaml.domains.networks import MLP, Conv4
from imaml.training.cost import count_flops
from imaml.training.step import devices_mesh

from .works import WORKS, read


def loss_of(work, xla_convolution=False):
    """loss(parameters, (x, y)) of one task, the same for support and query."""
    if work.kind == "conv4":
        network = _xla_conv4 if xla_convolution else lambda p, x: Conv4(work.ways).forward(p, x)[0]
    else:
        network = lambda p, x: MLP(work.sizes).forward(p, x)[0]  # noqa: E731

    def loss(parameters, batch):
        x, y = batch
        out = network(parameters, x)
        if work.kind == "sinusoid":
            return 0.5 * jnp.mean(jnp.square(out - y))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], axis=-1))

    return loss


def _xla_conv4(parameters, x):
    for layer in (1, 2, 3, 4):
        module = parameters[f"conv{layer}"]
        kernel = module["kernel"].reshape(module["kernel"].shape[0], 3, 3, -1)
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "OHWI", "NHWC")
        )
        x = (x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5)
        x = jax.nn.relu(x * module["scale"] + module["bias"])
    return x.reshape(x.shape[0], -1) @ parameters["head"]["kernel"] + parameters["head"]["bias"]


def _inputs(arrays):
    batches = [(jnp.asarray(arrays.x[part]), jnp.asarray(arrays.y[part])) for part in arrays.x]
    return arrays.nested(jnp.asarray), batches


def imaml(work, arrays, threads):
    """`imaml.IMAML`, tasks shared between devices where a step is long."""
    theta, (support, query) = _inputs(arrays)
    mesh = devices_mesh(work.tasks) if threads > 1 and not work.small else None
    method = _method(work, chunk=None if work.small else 1, mesh=mesh)
    step = jax.jit(functools.partial(method, estimate=False))  # no peer estimates its error
    tasks, key = ours.Task(support, query), jax.random.key(0)
    if mesh is not None:  # as training does: once, not at every step
        theta, key = jax.device_put((theta, key), NamedSharding(mesh, PartitionSpec()))
        tasks = jax.device_put(tasks, NamedSharding(mesh, PartitionSpec(*mesh.axis_names)))

    def run():
        return jax.block_until_ready(step(theta, tasks, key))[0]

    return run, arrays.vector


def _method(work, **how):
    loss = loss_of(work)
    how |= {"inner": ours.GradientDescent(work.rate, steps=work.steps), "linear": ours.CG(steps=work.cg)}
    problem = ours.proximal(loss, strength=work.strength)
    return ours.IMAML(problem, lambda phi, theta, batch: loss(phi, batch), **how)


def jaxopt(work, arrays, threads, xla_convolution=True):
    """`jaxopt.GradientDescent` with its implicit differentiation by conjugate gradients, under vmap."""
    import jaxopt as library

    loss = loss_of(work, xla_convolution)
    solver = library.GradientDescent(
        _anchored(work, loss),
        stepsize=work.rate,
        maxiter=work.steps,
        tol=0.0,
        acceleration=False,
        implicit_diff=True,
        implicit_diff_solve=functools.partial(library.linear_solve.solve_cg, maxiter=work.cg, tol=0.0),
    )
    return _differentiated(lambda theta, batch: solver.run(theta, theta, batch).params, loss, arrays)


def optimistix(work, arrays, threads):
    """`optimistix.minimise` with `ImplicitAdjoint` and Lineax's CG; with XLA's convolution.

    That CG takes a curvature p.Ap below 100 eps n |r|^2 for that of a singular system, and gives up: in
    float32 and with n = 100,000 parameters this is nearly every system.
    """
    import lineax
    import optimistix as library

    loss = loss_of(work, xla_convolution=True)
    objective = _anchored(work, loss)
    adjoint = library.ImplicitAdjoint(linear_solver=lineax.CG(rtol=0.0, atol=0.0, max_steps=work.cg))

    def solve(theta, batch):
        return library.minimise(
            lambda phi, extra: objective(phi, *extra),
            library.GradientDescent(work.rate, rtol=0.0, atol=0.0),
            theta,
            (theta, batch),
            # The first evaluation moves nothing yet.
            max_steps=work.steps + 1,
            throw=False,
            adjoint=adjoint,
            tags=frozenset({lineax.positive_semidefinite_tag}),
        ).value

    return _differentiated(solve, loss, arrays)


def _anchored(work, loss):
    def objective(phi, theta, batch):
        squares = jax.tree.map(lambda p, t: ((p - t) ** 2).sum(), phi, theta)
        return loss(phi, batch) + work.strength / 2 * sum(jax.tree.leaves(squares))

    return objective


def _differentiated(solve, loss, arrays):
    theta, (support, query) = _inputs(arrays)

    def one(theta, support, query):
        return jax.grad(lambda theta: loss(solve(theta, support), query))(theta)

    def mean(theta, support, query):
        over = jax.vmap(one, in_axes=(None, 0, 0))(theta, support, query)
        return jax.tree.map(lambda g: jnp.mean(g, axis=0), over)

    step = jax.jit(mean)
    return lambda: jax.block_until_ready(step(theta, support, query)), arrays.vector


def reference(work, arrays):
    """The meta-gradient at the same phi with the linear systems solved, and the worst relative residual.

    Dense up to 3,000 parameters; above by MINRES, to 1e-5 or 300 steps. Needs float64 switched on.
    """
    theta, unravel = ravel_pytree(arrays.nested(lambda v: jnp.asarray(v, jnp.float64)))
    of_tree = loss_of(work)
    slope = jax.jit(jax.grad(lambda phi, batch: of_tree(unravel(phi), batch)))
    product = jax.jit(lambda phi, v, batch: jax.jvp(lambda p: slope(p, batch), (phi,), (v,))[1])
    total, worst = jnp.zeros_like(theta), 0.0
    for task in range(work.tasks):
        support, query = (
            (arrays.x[part][task].astype(np.float64), jnp.asarray(arrays.y[part][task])) for part in arrays.x
        )
        phi = theta
        for _ in range(work.steps):
            phi = phi - work.rate * (slope(phi, support) + work.strength * (phi - theta))
        b = np.asarray(slope(phi, query))
        apply = functools.partial(_system, work.strength, product, phi, support)
        if theta.size <= 3000:
            u = np.linalg.solve(np.stack([apply(row) for row in np.eye(theta.size)]), b)
        else:
            operator = LinearOperator((theta.size, theta.size), matvec=apply, dtype=np.float64)
            u = minres(operator, b, rtol=1e-5, maxiter=300)[0]
        worst = max(worst, float(np.linalg.norm(apply(u) - b) / np.linalg.norm(b)))
        total += u / work.tasks
    return arrays.vector(unravel(total)), worst


def _system(strength, product, phi, support, v):
    return np.asarray(v + product(phi, v, support) / strength)


def flops_of(work, arrays):
    """FLOPs of the matrix products of one meta-gradient, from imaml's step on one device."""
    theta, (support, query) = _inputs(arrays)
    method = functools.partial(_method(work), estimate=False)
    return count_flops(method, theta, ours.Task(support, query), jax.random.key(0)).flops


if __name__ == "__main__":  # WORK FOLDER: writes the reference beside the work; the large ones have none
    work, folder = WORKS[sys.argv[1]], Path(sys.argv[2])
    given = read(folder)
    gradient, residual = (0.0, 0.0) if work.reference else reference(work, given)
    np.savez(folder / "exact.npz", gradient=gradient, residual=residual, flops=flops_of(work, given))
