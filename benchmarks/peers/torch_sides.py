"""PyTorch alone: an eager loop over tasks, torch.func in a loop and under vmap, and that compiled."""

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vmap


def forward_of(work, names):
    """network(parameters, x): logits or values; parameters is a list in the order of names."""

    def mlp(parameters, x):
        p = dict(zip(names, parameters, strict=True))
        last = len(work.sizes) - 1
        for layer in range(1, last + 1):
            x = x @ p[f"layer{layer}/kernel"] + p[f"layer{layer}/bias"]
            x = F.relu(x) if layer < last else x
        return x

    def conv4(parameters, x):
        p = dict(zip(names, parameters, strict=True))
        x = x.permute(0, 3, 1, 2)
        for layer in (1, 2, 3, 4):
            kernel = p[f"conv{layer}/kernel"]
            kernel = kernel.reshape(kernel.shape[0], 3, 3, -1).permute(0, 3, 1, 2)
            x = F.conv2d(x, kernel, stride=2, padding=1)
            scale, bias = p[f"conv{layer}/scale"], p[f"conv{layer}/bias"]
            x = F.relu(F.batch_norm(x, None, None, scale, bias, training=True))
        x = x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)
        return x @ p["head/kernel"] + p["head/bias"]

    return conv4 if work.kind == "conv4" else mlp


def loss_of(work, names):
    """loss(parameters, x, y) of one task, the same for support and query."""
    network = forward_of(work, names)
    return lambda parameters, x, y: score(work, network(parameters, x), y)


def score(work, out, y):
    """The loss of a network's outputs."""
    return 0.5 * (out - y).square().mean() if work.kind == "sinusoid" else F.cross_entropy(out, y)


def inputs(work, arrays):
    """theta as a list of tensors, and (x, y) of support and of query."""
    kind = getattr(torch, work.dtype) if work.kind == "sinusoid" else torch.int64
    theta = [torch.tensor(v) for v in arrays.theta.values()]
    return theta, [(torch.tensor(arrays.x[p]), torch.tensor(arrays.y[p]).to(kind)) for p in arrays.x]


def vector(tensors):
    """A list of tensors as one NumPy vector."""
    return np.concatenate([t.detach().numpy().ravel() for t in tensors])


def anchor(phi, theta):
    """Half the squared distance."""
    return 0.5 * sum(((p - t) ** 2).sum() for p, t in zip(phi, theta, strict=True))


def dot(left, right):
    """The inner product of two lists of tensors."""
    return sum((i * j).sum() for i, j in zip(left, right, strict=True))


def descended(work, phi, slope, theta):
    """After a step of gradient descent; slope: the gradient of the loss without the anchor."""
    triples = zip(phi, slope, theta, strict=True)
    return [p - work.rate * (g + work.strength * (p - t)) for p, g, t in triples]


def scaled(work, product, v):
    """The system times v: H v / strength + v, from a product H v."""
    return [h / work.strength + i for h, i in zip(product, v, strict=True)]


def conjugate_gradients(apply, b, steps):
    """So many steps for apply(x) = b, over lists of tensors, from zero."""
    x = [torch.zeros_like(t) for t in b]
    r, p = list(b), list(b)
    square = dot(r, r)
    for _ in range(steps):
        image = apply(p)
        length = square / dot(p, image)
        x = [i + length * j for i, j in zip(x, p, strict=True)]
        r = [i - length * j for i, j in zip(r, image, strict=True)]
        after = dot(r, r)
        p = [i + after / square * j for i, j in zip(r, p, strict=True)]
        square = after
    return x


def implicit_step(work, loss, phi, support, query):
    """One task's meta-gradient at phi, with double backward for the products."""
    b = torch.autograd.grad(loss(phi, *query), phi)
    slope = torch.autograd.grad(loss(phi, *support), phi, create_graph=True)

    def apply(v):
        return scaled(work, torch.autograd.grad(slope, phi, v, retain_graph=True), v)

    return conjugate_gradients(apply, b, work.cg)


def averaged(work, theta, batches, one):
    """run() that averages one(support, query) over the tasks in a loop."""

    def run():
        total = [torch.zeros_like(t) for t in theta]
        for task in range(work.tasks):
            support, query = ([part[task] for part in batch] for batch in batches)
            total = [a + u / work.tasks for a, u in zip(total, one(support, query), strict=True)]
        return total

    return run, vector


def eager(work, arrays, threads):
    """The loop that one would write by hand: gradient steps, then implicit_step."""
    theta, batches = inputs(work, arrays)
    loss = loss_of(work, list(arrays.theta))

    def one(support, query):
        phi = [t.clone().requires_grad_() for t in theta]
        for _ in range(work.steps):
            slope = torch.autograd.grad(loss(phi, *support), phi)
            with torch.no_grad():
                phi = [p.requires_grad_() for p in descended(work, phi, slope, theta)]
        return implicit_step(work, loss, phi, support, query)

    return averaged(work, theta, batches, one)


def _functional(work, arrays, reverse=False):
    """One task's step; reverse: products as a gradient of slope times v, which is what torch.compile takes
    under vmap, instead of forward over reverse."""
    loss = loss_of(work, list(arrays.theta))

    def one(theta, support, query):
        slope = grad(lambda phi: loss(phi, *support))
        phi = theta
        for _ in range(work.steps):
            phi = descended(work, phi, slope(phi), theta)
        b = grad(lambda phi: loss(phi, *query))(phi)

        def apply(v):
            along = lambda phi: dot(slope(phi), v)  # noqa: E731
            return scaled(work, grad(along)(phi) if reverse else jvp(slope, (phi,), (v,))[1], v)

        return conjugate_gradients(apply, b, work.cg)

    return one


def func_loop(work, arrays, threads, compiled=False):
    """torch.func, a loop over tasks; compiled: by torch.compile, one task's step."""
    theta, batches = inputs(work, arrays)
    one = _functional(work, arrays)
    one = torch.compile(one, dynamic=False) if compiled else one
    return averaged(work, theta, batches, lambda support, query: one(theta, support, query))


def func_vmap(work, arrays, threads, compiled=False):
    """torch.func, tasks under vmap; compiled: by torch.compile, the whole step."""
    theta, batches = inputs(work, arrays)
    over = vmap(_functional(work, arrays, reverse=compiled), in_dims=(None, 0, 0))
    step = lambda theta, support, query: [u.mean(0) for u in over(theta, support, query)]  # noqa: E731
    step = torch.compile(step, dynamic=False) if compiled else step
    return lambda: step(theta, *batches), vector


def compiled_pieces(work, arrays, threads):
    """torch.compile of a gradient step, of the query gradient and of a product, in loops over them."""
    theta, batches = inputs(work, arrays)
    loss = loss_of(work, list(arrays.theta))

    def slope(phi, x, y):
        return grad(lambda phi: loss(phi, x, y))(phi)

    def moved(phi, x, y):
        return descended(work, phi, slope(phi, x, y), theta)

    def system(phi, v, x, y):
        return scaled(work, grad(lambda phi: dot(slope(phi, x, y), v))(phi), v)

    slope_of, step, product = (torch.compile(f, dynamic=False) for f in (slope, moved, system))

    def one(support, query):
        phi = theta
        for _ in range(work.steps):
            phi = step(phi, *support)
        b = slope_of(phi, *query)
        return conjugate_gradients(lambda v: product(phi, v, *support), b, work.cg)

    return averaged(work, theta, batches, one)
