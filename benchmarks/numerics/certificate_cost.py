"""What estimates and bounds of the error cost, beside the meta-step that they are of.

    python -m benchmarks.certificate_cost          # -> benchmarks/results/certificate_cost.json

One meta-step of 8 tasks with 16 inner steps and CG 5, float32, of three works: Conv4 on drawn characters
(5-way 1-shot, on all devices), the sinusoid network of 1,761 parameters, and linear regression of 5, which is
quadratic. The compiled step returns the gradient and its metrics, without the estimate, with it, and with
certificates of several kinds. Each round times all of them in turn; reported is the median of the rounds'
ratios. In training the estimate is computed in the steps that are logged, by default one in ten.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import jax

import imaml
from benchmarks.machine import describe_machine
from imaml.core.solution import Certification

RESULT = Path(__file__).parent / "results" / "certificate_cost.json"
TASKS = 8
SHORT = imaml.Certificate(steps=2)
KINDS = {  # curvature, certificate, whether the estimate is among the results
    "no estimate": ("hessian", False, False),
    "estimate": ("hessian", False, True),
    "certificate": ("hessian", imaml.Certificate(), False),
    "Gauss-Newton, no estimate": ("gauss-newton", False, False),
    "Gauss-Newton, estimate": ("gauss-newton", False, True),
    "Gauss-Newton, certificate of 2 steps": ("gauss-newton", SHORT, False),
    "Gauss-Newton, certificate": ("gauss-newton", imaml.Certificate(), False),
}
WORKS = {  # the domain, the inner rate, and how many tasks at once
    "Conv4": (lambda: imaml.characters(queries=5, normalisation="transductive"), 0.2, 1),
    "sinusoid": (imaml.sinusoid, 0.02, None),
    "linear regression": (imaml.linear_gaussian, 0.1, None),
}


def prepared(work, curvature, certificate, estimate):
    """The compiled step of a work, and its arguments."""
    from imaml.training.step import devices_mesh

    make, rate, chunk = WORKS[work]
    domain = make()
    keys = jax.random.split(jax.random.key(0), TASKS)
    tasks = jax.jit(lambda: jax.vmap(lambda k: domain.sample(k, "train"))(keys))()
    method = imaml.IMAML(
        domain.problem(0.5, curvature=curvature),
        domain.query_loss,
        inner=imaml.GradientDescent(rate, steps=16),
        linear=imaml.CG(steps=5),
        certify=certificate,
        chunk=chunk,
        mesh=devices_mesh(TASKS) if chunk == 1 else None,
        policy="skip",
    )
    step = jax.jit(functools.partial(method, estimate=estimate))
    return step, (domain.init(jax.random.key(1)), tasks, jax.random.key(2))


def measured(work, rounds):
    """The rows of one work."""
    steps, times, said = {}, {name: [] for name in KINDS}, {}
    for name, how in KINDS.items():
        step, arguments = prepared(work, *how)
        _, said[name] = jax.block_until_ready(step(*arguments))
        steps[name] = lambda step=step, arguments=arguments: jax.block_until_ready(step(*arguments))
    for round_ in range(rounds):
        for name in sorted(KINDS, key=lambda name, r=round_: (list(KINDS).index(name) * 5 + r) % len(KINDS)):
            began = time.perf_counter()
            steps[name]()
            times[name].append(1e3 * (time.perf_counter() - began))
    rows = []
    for name, (curvature, certificate, _) in KINDS.items():
        base = "no estimate" if curvature == "hessian" else "Gauss-Newton, no estimate"
        ratios = [a / b - 1 for a, b in zip(times[name], times[base], strict=True)]
        row = {"work": work, "what": name, "ms_median": statistics.median(times[name]), "more_than": base}
        row |= {"more_median": statistics.median(ratios), "more_all": sorted(ratios)}
        if certificate:
            codes = said[name].linear_status.certificate.tolist()
            row["tasks"] = {code.name: codes.count(int(code)) for code in Certification if int(code) in codes}
            row["products_median"] = statistics.median(said[name].linear_steps.tolist())
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k != "more_all"}), flush=True)
    return rows


def main():
    """Prints and writes the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    from imaml.cli.startup import use_all_cores

    use_all_cores()
    rows = [row for work in WORKS for row in measured(work, arguments.rounds)]
    command = f"python -m benchmarks.certificate_cost --rounds {arguments.rounds}"
    result = {"command": command, "machine": describe_machine(), "rounds": arguments.rounds, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
