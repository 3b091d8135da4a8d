"""What estimates and bounds of the error cost, beside the meta-step that they are of.

    python -m benchmarks run certificate_cost

One meta-step of 8 tasks with 16 inner steps and CG 5, float32, of three works: Conv4 on drawn characters
(5-way 1-shot, on all devices), the sinusoid network of 1,761 parameters, and linear regression of 5, which is
quadratic. The compiled step returns the gradient and its metrics, without the estimate, with it, and with
certificates of several kinds. Each round times all of them in turn; reported is the median of the rounds'
ratios. In training the estimate is computed in the steps that are logged, by default one in ten.
"""

import functools
import statistics

import jax

import imaml
from benchmarks.harness import benchmark, in_turn
from imaml.training.step import devices_mesh

TASKS = 8
KINDS = {  # curvature, certificate, whether the estimate is among the results
    "no estimate": ("hessian", False, False),
    "estimate": ("hessian", False, True),
    "certificate": ("hessian", imaml.Certificate(), False),
    "Gauss-Newton, no estimate": ("gauss-newton", False, False),
    "Gauss-Newton, estimate": ("gauss-newton", False, True),
    "Gauss-Newton, certificate of 2 steps": ("gauss-newton", imaml.Certificate(steps=2), False),
    "Gauss-Newton, certificate": ("gauss-newton", imaml.Certificate(), False),
}
WORKS = {  # the domain, the inner rate, and how many tasks at once
    "Conv4": (lambda: imaml.characters(queries=5, normalisation="transductive"), 0.2, 1),
    "sinusoid": (imaml.sinusoid, 0.02, None),
    "linear regression": (imaml.linear_gaussian, 0.1, None),
}


def prepared(work, curvature, certificate, estimate):
    """The compiled step of a work, and its arguments."""
    make, rate, chunk = WORKS[work]
    domain = make()
    keys = jax.random.split(jax.random.key(0), TASKS)
    tasks = jax.jit(lambda: jax.vmap(lambda k: domain.sample(k, "train"))(keys))()
    how = {"inner": imaml.GradientDescent(rate, steps=16), "linear": imaml.CG(steps=5)}
    how |= {
        "certify": certificate,
        "chunk": chunk,
        "mesh": devices_mesh(TASKS) if chunk == 1 else None,
        "policy": "skip",
    }
    method = imaml.IMAML(domain.problem(0.5, curvature=curvature), domain.query_loss, **how)
    step = jax.jit(functools.partial(method, estimate=estimate))
    return step, (domain.init(jax.random.key(1)), tasks, jax.random.key(2))


@benchmark("certificate_cost", quick={"rounds": 2, "works": ("linear regression",)}, devices=True)
def main(run, rounds=15, works=tuple(WORKS)):
    """Times all kinds of each work in turn."""
    for work in works:
        calls, said = {}, {}
        for name, how in KINDS.items():
            step, arguments = prepared(work, *how)
            said[name] = step(*arguments)[1]
            calls[name] = functools.partial(step, *arguments)
        times = in_turn(calls, rounds)
        for name, (curvature, certificate, _) in KINDS.items():
            base = "no estimate" if curvature == "hessian" else "Gauss-Newton, no estimate"
            ratios = sorted(a / b - 1 for a, b in zip(times[name], times[base], strict=True))
            row = {"work": work, "what": name, "ms_median": statistics.median(times[name]), "more_than": base}
            row |= {"more_median": statistics.median(ratios), "more_all": ratios}
            if certificate:
                codes = said[name].linear_status.certificate.tolist()
                row["tasks"] = {c.name: codes.count(int(c)) for c in imaml.Certification if int(c) in codes}
                row["products_median"] = statistics.median(said[name].linear_steps.tolist())
            run.add(row, rounds=rounds)
