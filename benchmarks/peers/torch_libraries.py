"""The PyTorch libraries, each used as its own example of implicit MAML or bilevel learning does."""

import torch

from .torch_sides import anchor, averaged, forward_of, implicit_step, inputs, loss_of, score, vector


class Network(torch.nn.Module):
    """The work's network as a module."""

    def __init__(self, work, names, values):
        super().__init__()
        self.values = torch.nn.ParameterList([torch.nn.Parameter(v.clone()) for v in values])
        self.network = forward_of(work, names)

    def forward(self, x):
        return self.network(list(self.values), x)


def torchopt(work, arrays, threads, normal=False):
    """`torchopt.nn.ImplicitMetaGradientModule`; normal: its example's CG, on the normal equations."""
    import torchopt as library

    solvers = library.linear_solve
    solver = (solvers.solve_normal_cg if normal else solvers.solve_cg)(maxiter=work.cg, atol=0)
    theta, batches = inputs(work, arrays)
    meta = Network(work, list(arrays.theta), theta)

    class Inner(library.nn.ImplicitMetaGradientModule, linear_solve=solver):
        def __init__(self, meta_net):
            super().__init__()
            self.meta_net = meta_net
            self.net = library.module_clone(meta_net, by="deepcopy", detach_buffers=True)
            for p in self.net.parameters():
                p.detach_().requires_grad_()

        def objective(self, x, y):
            distance = anchor(list(self.parameters()), list(self.meta_parameters()))
            return score(work, self.net(x), y) + work.strength * distance

        def solve(self, x, y):
            parameters = tuple(self.parameters())
            optimiser = library.SGD(parameters, lr=work.rate)
            with torch.enable_grad():
                for _ in range(work.steps):
                    loss = self.objective(x, y)
                    optimiser.zero_grad()
                    loss.backward(inputs=parameters)
                    optimiser.step()
            return self

    def run():
        meta.zero_grad()
        for task in range(work.tasks):
            (x, y), (qx, qy) = ([part[task] for part in batch] for batch in batches)
            solved = Inner(meta).solve(x, y)
            (score(work, solved.net(qx), qy) / work.tasks).backward()
        return [p.grad for p in meta.values]

    return run, vector


def higher(work, arrays, threads, unrolled=False):
    """`higher.innerloop_ctx` without its graph, and the implicit step by hand.

    unrolled: MAML through `higher`: the same steps differentiated, which is another gradient; for its memory.
    """
    import higher as library

    theta, batches = inputs(work, arrays)
    names = list(arrays.theta)
    network, loss = Network(work, names, theta), loss_of(work, names)
    how = {"copy_initial_weights": False} if unrolled else {"track_higher_grads": False}

    def one(support, query):
        optimiser = torch.optim.SGD(network.parameters(), lr=work.rate)
        with library.innerloop_ctx(network, optimiser, **how) as (model, steps):
            start = list(model.parameters(time=0)) if unrolled else theta
            for _ in range(work.steps):
                distance = anchor(list(model.parameters()), start)
                steps.step(score(work, model(support[0]), support[1]) + work.strength * distance)
            if unrolled:
                return torch.autograd.grad(score(work, model(query[0]), query[1]), start)
            phi = [p.detach().requires_grad_() for p in model.parameters()]
        return implicit_step(work, loss, phi, support, query)

    return averaged(work, theta, batches, one)


def hypergrad(work, arrays, threads):
    """`hypergrad.conjugate_gradient` after the same gradient steps."""
    from hypergrad.approx_hypergrad import conjugate_gradient

    theta, batches = inputs(work, arrays)
    loss = loss_of(work, list(arrays.theta))

    def one(support, query):
        def inner(phi, outer):
            return loss(list(phi), *support) + work.strength * anchor(phi, outer)

        phi = tuple(t.clone() for t in theta)
        for _ in range(work.steps):
            slope = torch.func.grad(inner)(phi, tuple(theta))
            phi = tuple(p - work.rate * g for p, g in zip(phi, slope, strict=True))
        outer = lambda phi, theta: loss(list(phi), *query) + 0 * anchor(phi, theta)  # noqa: E731
        return conjugate_gradient(inner, outer, phi, tuple(theta), work.cg, 1.0)

    return averaged(work, theta, batches, one)


def betty(work, arrays, threads):
    """Betty's `Engine` over two `ImplicitProblem`s, one engine a task; its "cg" hypergradient."""
    from betty.configs import Config, EngineConfig
    from betty.engine import Engine
    from betty.problems import ImplicitProblem

    theta, batches = inputs(work, arrays)
    names = list(arrays.theta)

    class Outer(ImplicitProblem):
        def forward(self):
            return list(self.module.values)

        def training_step(self, batch):
            return score(work, self.inner(batch[0]), batch[1])

        def optimizer_step(self, *arguments, **named):
            self.gradient = [p.grad.clone() for p in self.module.values]

    class Inner(ImplicitProblem):
        def training_step(self, batch):
            distance = anchor(list(self.module.parameters()), self.outer())
            return score(work, self.module(batch[0]), batch[1]) + work.strength * distance

    def one(support, query):
        problems = []
        for kind, name, batch, config in (
            (Outer, "outer", query, Config()),
            (Inner, "inner", support, Config(type="cg", cg_iterations=work.cg, unroll_steps=work.steps)),
        ):
            module = Network(work, names, theta)
            optimiser = torch.optim.SGD(module.parameters(), lr=work.rate)
            problems.append(kind(name, config, module, optimiser, train_data_loader=[batch]))
        outer, inner = problems
        engine = Engine(
            config=EngineConfig(train_iters=work.steps, logger_type="none"),
            problems=problems,
            dependencies={"u2l": {outer: [inner]}, "l2u": {inner: [outer]}},
        )
        engine.run()
        return outer.gradient

    return averaged(work, theta, batches, one)
